"""Jobs through joblib, by whatever workers the caller configured: processes, Dask, Ray."""

import sys
import warnings
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np

from certify.errors import WorkerLostError
from certify.jobs.digests import digest_of

# Jobs of every worker in a round, where results do not come one by one.
_ROUND = 4

Shared = TypeVar("Shared")
Job = TypeVar("Job")
Result = TypeVar("Result")


def run_jobs(
    function: Callable[[Shared, Job], Result], shared: Shared, jobs: Sequence[Job], *, n_jobs: int | None
) -> Generator[Result, None, None]:
    """`function(shared, job)` for every job, in the order in which they finish.

    Args:
        function: importable by its name on every worker; its results say which job they belong to.
        shared: what all jobs need. Every worker gets it once: joblib writes it to a file that local processes map
            into memory, Dask sends it to a machine once.
        jobs: the rest.
        n_jobs: as for `joblib.Parallel`; None takes what `joblib.parallel_config` says, else 1, which runs the jobs
            here, one after the other.

    Raises:
        WorkerLostError: when a worker dies.
    """
    from joblib import delayed

    if _stays_here(n_jobs):
        yield from (function(shared, job) for job in jobs)
        return
    content, digest = _packed(shared)
    results = _finished([delayed(_call)(function, content, digest, job) for job in jobs], n_jobs)
    try:
        for result in results:  # noqa: UP028 (it would close them before the warning is silenced)
            yield result
    except Exception as error:
        if _is_loss(error):
            raise WorkerLostError(
                f"a worker died ({error}); memory may have run out: use fewer workers. What is in the results file"
                " is kept, and the same command goes on from there"
            ) from error
        raise
    finally:
        with warnings.catch_warnings():
            # Whoever stops early knows that jobs are dropped.
            warnings.filterwarnings("ignore", ".*(but not used|have been cancelled)", UserWarning)
            results.close()


def _finished(calls: Sequence[Any], n_jobs: int | None) -> Generator[Any, None, None]:
    """Results as they come, or in rounds where the workers (Ray's) only return many at once."""
    from joblib import Parallel, effective_n_jobs
    from joblib.parallel import get_active_backend

    if get_active_backend()[0].supports_return_generator:
        return Parallel(n_jobs=n_jobs, return_as="generator_unordered")(calls)
    return _rounds(calls, Parallel(n_jobs=n_jobs), _ROUND * effective_n_jobs(n_jobs))


def _rounds(calls: Sequence[Any], workers: Any, size: int) -> Generator[Any, None, None]:
    with workers:  # one set of processes for all rounds
        for start in range(0, len(calls), size):
            yield from workers(calls[start : start + size])


def _stays_here(n_jobs: int | None) -> bool:
    """One worker, and not on a cluster."""
    from joblib import effective_n_jobs
    from joblib.parallel import get_active_backend

    backend, _ = get_active_backend()
    return type(backend).__module__.startswith("joblib._parallel_backends") and effective_n_jobs(n_jobs) == 1


def _is_loss(error: Exception) -> bool:
    if type(error).__name__ == "TerminatedWorkerError":  # of loky, which joblib bundles
        return True
    distributed: Any = sys.modules.get("distributed")
    if distributed is not None and isinstance(error, distributed.scheduler.KilledWorker):
        return True
    ray: Any = sys.modules.get("ray")
    return ray is not None and isinstance(error, ray.exceptions.RayActorError | ray.exceptions.WorkerCrashedError)


def _packed(value: Any) -> tuple[np.ndarray, str]:
    """As an array, which every backend knows how to send once."""
    import cloudpickle

    content = np.frombuffer(cloudpickle.dumps(value), dtype=np.uint8)
    return content, digest_of(content)


@dataclass(frozen=True)
class _Parcel:
    """Equal where the digest is."""

    digest: str
    content: np.ndarray = field(compare=False)


@lru_cache(maxsize=2)
def _opened(parcel: _Parcel) -> Any:
    import cloudpickle

    return cloudpickle.loads(parcel.content.tobytes())


def _call(function: Callable[[Any, Any], Any], content: np.ndarray, digest: str, job: Any) -> Any:
    from joblib import parallel_config

    # What a job starts itself stays in its worker.
    with parallel_config(backend="threading", n_jobs=1):
        return function(_opened(_Parcel(digest, content)), job)
