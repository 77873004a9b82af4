"""Thousands of property files: `verify_many`."""

import logging
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Any, SupportsFloat

from tqdm.auto import tqdm

from certify.errors import CertifyError, InvalidInputError, MissingDependencyError
from certify.instances import Instance, as_instance
from certify.ir.digest import digest_of_graph, digest_of_program
from certify.ir.onnx_file import read_program
from certify.jobs import Ledger, array_from_json, array_to_json, digest_of, run_jobs
from certify.jobs.arrays import bound_from_json, bound_to_json
from certify.jobs.ledger import Record
from certify.properties.query import Query
from certify.queries import METHODS, Network, as_timeout, verify_vnnlib
from certify.search.deadline import Deadline
from certify.verdict import Answer, QueryVerdict, Witness

_log = logging.getLogger(__name__)

# Networks that a worker keeps read.
_NETWORKS = 4


@dataclass(frozen=True, eq=False)
class ManyVerdicts:
    """The answers to many questions, in the order in which they were asked.

    Attributes:
        instances: what was asked.
        verdicts: the answer to each, as from `verify_vnnlib`; None where there is an error, or where the run was
            stopped before.
        errors: by number, why a question could not be answered.
        seconds: wall time of this run.
        interrupted: whether the run was stopped before its end.
    """

    instances: tuple[Instance, ...] = field(repr=False)
    verdicts: tuple[QueryVerdict | None, ...] = field(repr=False)
    errors: Mapping[int, str] = field(repr=False)
    seconds: float
    interrupted: bool = False

    def __len__(self) -> int:
        return len(self.verdicts)

    @property
    def counts(self) -> Mapping[str, int]:
        """How many of each answer, of errors, and of questions that were not reached."""
        found = Counter(self.word(k) for k in range(len(self)))
        names = [*(answer.name for answer in Answer), "ERROR", "OPEN"]
        return MappingProxyType({name: found[name] for name in names})

    def word(self, k: int) -> str:
        """SAT, UNSAT, UNKNOWN or TIMEOUT; ERROR, or OPEN where the run was stopped before."""
        verdict = self.verdicts[k]
        return verdict.answer.name if verdict is not None else "ERROR" if k in self.errors else "OPEN"

    def __str__(self) -> str:
        shown = ", ".join(f"{count} {name.lower()}" for name, count in self.counts.items() if count)
        return f"{len(self)} properties, {self.seconds:.3g} s{' (interrupted)' * self.interrupted}: {shown or 'none'}"


def verify_many(
    instances: Iterable[Instance | Sequence[Any]],
    *,
    timeout: SupportsFloat | None = None,
    method: str = "auto",
    seed: int = 0,
    n_jobs: int | None = None,
    results: str | os.PathLike[str] | None = None,
    progress: bool | None = None,
) -> ManyVerdicts:
    """`verify_vnnlib` for many properties, on as many machines as there are.

    Args:
        instances: `Instance`s or pairs (network, query); see `read_instances`. Files have to be where every worker
            can read them under the same name.
        timeout: seconds for each that has no limit of its own.
        method: as for `verify_vnnlib`.
        seed: as for `verify_vnnlib`.
        n_jobs: workers, as for `joblib.Parallel`; None takes them from `joblib.parallel_config`, which also chooses
            processes, Dask or Ray, and is one worker, here, where nothing is configured. The answers are the same,
            unless time runs out.
        results: a file for the answers as they come. A run that was stopped goes on from it: an answer is taken
            where network, property, time limit, method, seed and version are the same, whatever the files are called
            and wherever they stand in the list.
        progress: a progress bar: yes, no, or (None) only on a terminal.

    Returns:
        All answers. A question that cannot be read or is not supported is an error in the report, and does not stop
        the others; so is one that failed otherwise, but that one is tried again by the next run. An interrupt (Ctrl-C)
        does not lose what was answered.

    Raises:
        InvalidInputError: for a file that is absent, or what is no list of instances.
        ResultsFileError: for a results file of other settings, or that is no such file.
        WorkerLostError: when a worker dies; what the results file has is kept.
    """
    clock = Deadline()
    if method not in METHODS:
        raise InvalidInputError(f"method is {method!r}; expected one of {', '.join(METHODS)}")
    limit = as_timeout(timeout)
    asked = tuple(as_instance(value, limit) for value in instances)
    networks, jobs = _jobs(asked)
    settings = {"version": version("convexnn"), "command": "verify", "method": method, "seed": seed}
    with Ledger.open(results, settings) as ledger:
        waiting = {job.key: job for job in jobs if job.key not in ledger.known}
        stopped, failed = _run((networks, method, seed), waiting, jobs, ledger, n_jobs, progress)
        found = [failed.get(job.key) or ledger.known.get(job.key) for job in jobs]
    return ManyVerdicts(
        asked,
        tuple(None if record is None or "error" in record else _verdict(record) for record in found),
        MappingProxyType({k: record["error"] for k, record in enumerate(found) if record and "error" in record}),
        clock.elapsed,
        stopped,
    )


@dataclass(frozen=True, eq=False)
class _Job:
    """A question with what tells it from others; the network by number."""

    key: str
    network: int
    query: str | Query
    query_digest: str
    timeout: float | None
    names: tuple[str, str]


@dataclass(frozen=True)
class _Source:
    """A network and what tells it from others."""

    digest: str
    source: Any = field(compare=False)


def _jobs(instances: Sequence[Instance]) -> tuple[tuple[_Source, ...], list[_Job]]:
    """Every network once, and a job for every instance."""
    numbers: dict[Any, int] = {}
    networks: list[_Source] = []
    digests: dict[str, str] = {}
    jobs = []
    for instance in instances:
        source, query = _plain(instance.network), _plain(instance.query)
        same = source if isinstance(source, str | bytes) else id(source)
        if same not in numbers:
            numbers[same] = len(networks)
            networks.append(_Source(_digest_of_network(source), source))
        if isinstance(query, str) and query not in digests:
            digests[query] = _digest_of_query(query)
        own = digests[query] if isinstance(query, str) else _digest_of_query(query)
        seconds = as_timeout(instance.timeout)
        key = digest_of(networks[numbers[same]].digest, own, seconds)
        jobs.append(_Job(key, numbers[same], query, own, seconds, instance.names))
    return tuple(networks), jobs


def _plain(source: Any) -> Any:
    return os.fspath(source) if isinstance(source, os.PathLike) else source


def _digest_of_network(source: Any) -> str:
    """Of the file; where it cannot be read as a network, of its bytes: whoever asks it is told why."""
    if not isinstance(source, str | bytes):
        return digest_of_graph(Network.read(source).graph)
    try:
        return digest_of_program(read_program(source))
    except MissingDependencyError:
        raise
    except CertifyError:
        return digest_of(source if isinstance(source, bytes) else _bytes_of(source))


def _digest_of_query(query: str | Query) -> str:
    return query.digest if isinstance(query, Query) else digest_of(_bytes_of(query))


def _bytes_of(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InvalidInputError(f"cannot read {path}: {error.strerror}; check the path") from error


_Shared = tuple[tuple[_Source, ...], str, int]


def _run(
    shared: _Shared,
    waiting: Mapping[str, _Job],
    jobs: Sequence[_Job],
    ledger: Ledger,
    n_jobs: int | None,
    progress: bool | None,
) -> tuple[bool, dict[str, Record]]:
    """Whether it was stopped, and what failed for reasons that may be gone next time."""
    failed: dict[str, Record] = {}
    size = Counter(job.key for job in jobs)
    hidden = None if progress is None else not progress
    with tqdm(total=len(jobs), desc="verify", unit="property", disable=hidden) as bar:
        bar.update(len(jobs) - sum(size[key] for key in waiting))
        try:
            with closing(run_jobs(_answer, shared, list(waiting.values()), n_jobs=n_jobs)) as answers:
                for key, record, final in answers:
                    if final:
                        ledger.add(key, record)
                    else:
                        failed[key] = record
                    bar.update(size[key])
        except KeyboardInterrupt:
            _log.warning("interrupted after %d of %d properties", bar.n, len(jobs))
            return True, failed
    return False, failed


def _answer(shared: _Shared, job: _Job) -> tuple[str, Record, bool]:
    """Key, answer, and whether it will be the same next time."""
    networks, method, seed = shared
    about = dict(zip(("network", "query"), job.names, strict=True))
    try:
        model = _network(networks[job.network])
        if _digest_of_query(job.query) != job.query_digest:
            raise OSError(f"{job.query} has changed since the run began")
        verdict = verify_vnnlib(model, job.query, timeout=job.timeout, method=method, seed=seed)
    except MissingDependencyError:
        raise
    except CertifyError as error:
        return job.key, {**about, "error": _told(error)}, True
    except Exception as error:  # one bad file must not stop the others
        return job.key, {**about, "error": _told(error)}, False
    return job.key, {**about, **_record(verdict)}, True


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


@lru_cache(maxsize=_NETWORKS)
def _network(source: _Source) -> Network:
    if isinstance(source.source, str) and _digest_of_network(source.source) != source.digest:
        raise OSError(f"{source.source} has changed since the run began")
    return Network.read(source.source)


def _record(verdict: QueryVerdict) -> Record:
    record: Record = {
        "answer": verdict.answer.name,
        "bound": bound_to_json(verdict.bound),
        "method": verdict.method,
        "boxes": verdict.boxes,
        "seconds": verdict.seconds,
    }
    if verdict.witness is not None:
        record["inputs"] = array_to_json(verdict.witness.inputs)
        record["outputs"] = array_to_json(verdict.witness.outputs)
        record["excess"] = verdict.witness.excess
    return record


def _verdict(record: Record) -> QueryVerdict:
    witness = None
    if "inputs" in record:
        witness = Witness(array_from_json(record["inputs"]), array_from_json(record["outputs"]), record["excess"])
    bound = bound_from_json(record["bound"])
    return QueryVerdict(Answer[record["answer"]], witness, bound, record["method"], record["boxes"], record["seconds"])
