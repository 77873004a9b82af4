"""Many inputs: how many keep their label everywhere in their regions?"""

import logging
import os
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from importlib.metadata import version
from types import MappingProxyType
from typing import Any, SupportsFloat

import numpy as np
from torch import nn
from tqdm.auto import tqdm

from certify.batches import (
    Answers,
    Asked,
    Batch,
    answers_of,
    batches_of,
    bound_batch,
    digest_of_network,
    open_inputs,
    search_input,
)
from certify.errors import InvalidInputError, InvalidTypeError
from certify.inputs import as_inputs, as_labels
from certify.jobs import Ledger, digest_of, run_jobs
from certify.jobs.ledger import Record
from certify.regions.spatial import Deformation
from certify.search import Deadline, Plan
from certify.setup import Question, plan_of
from certify.verdict import Status

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class AccuracyReport:
    """Clean, attacked and certified accuracy: certified <= attacked <= clean, by construction.

    An input counts as wrong only where the network itself, run on it alone, gives it another label; one that is
    proved is neither wrong nor attacked.

    Attributes:
        clean: fraction of inputs that the network labels rightly.
        attacked: fraction for which, besides, no counterexample was found; at least the robust accuracy.
        certified: fraction proved to keep the label in the whole region; at most the robust accuracy.
        statuses: a `Status` for every input; a wrongly labelled input is its own counterexample.
        worst_margins: for every input the smallest lower bound of its margins; minus infinity where none was
            computed (a counterexample came first).
        counterexamples: by input number, in the network's own precision.
        eps, norm, method: as asked.
        seconds: wall time.
        interrupted: whether the run was stopped before its end; what was not looked at counts as UNKNOWN.
        region: the limits of vector fields, in the place of a ball; None where there is a ball.
        flows: by input number the vector field that makes the counterexample.
    """

    clean: float
    attacked: float
    certified: float
    statuses: np.ndarray = field(repr=False)
    worst_margins: np.ndarray = field(repr=False)
    counterexamples: Mapping[int, np.ndarray] = field(repr=False)
    eps: float
    norm: str
    method: str
    seconds: float
    interrupted: bool = False
    region: Deformation | None = None
    flows: Mapping[int, np.ndarray] = field(default_factory=lambda: MappingProxyType({}), repr=False)

    def __len__(self) -> int:
        return len(self.statuses)

    def __str__(self) -> str:
        n = len(self)
        where = f"{self.norm} ball of radius {self.eps:g}" if self.region is None else str(self.region)
        rows = [
            f"{n} inputs, {where}, method {self.method}, {self.seconds:.3g} s"
            + (" (interrupted)" if self.interrupted else ""),
            f"  clean      {self.clean:7.2%}   labelled rightly",
            f"  attacked   {self.attacked:7.2%}   and no counterexample found",
            f"  certified  {self.certified:7.2%}   and proved in the whole region",
        ]
        return "\n".join(rows)


def certified_accuracy(
    network: nn.Module,
    X: Any,
    y: Any,
    *,
    eps: SupportsFloat | None = None,
    norm: str = "linf",
    method: str | Plan = "auto",
    domain: Any = None,
    n_jobs: int | None = None,
    results: str | os.PathLike[str] | None = None,
    progress: bool | None = None,
    region: Deformation | None = None,
) -> AccuracyReport:
    """Attack and certify every input of a data set.

    Args:
        network: a torch module that `graph_from_torch` can read, in eval mode.
        X: inputs, the batch axis first (array, tensor or data frame).
        y: class numbers, one for each input; 0 and 1 for a network with one output (1 where it is positive).
        eps: radius of the balls, in the units of X.
        norm: "linf", "l2" or "l1".
        method: as for `verify`.
        domain: as for `verify`.
        n_jobs: workers, as for `joblib.Parallel`; None takes them from `joblib.parallel_config`, which also chooses
            processes, Dask or Ray, and is one worker, here, where nothing is configured. The answers are the same,
            unless a search runs out of time.
        results: a file for the answers as they come. A run that was stopped goes on from it; answers to another
            question, network or version are never taken.
        progress: a progress bar: yes, no, or (None) only on a terminal.
        region: in the place of a ball, limits of vector fields, `Deformation(delta, norm, gamma)`, that deform images
            X (batch, height, width) or (batch, channels, height, width). No eps and no norm then.

    Returns:
        The report. An interrupt (Ctrl-C) does not lose the work: the rest counts as UNKNOWN.

    Raises:
        ResultsFileError: for a results file of another question, or that is no such file.
        WorkerLostError: when a worker dies; what the results file has is kept.
        CertifyError: as for `verify`.
    """
    plan, clock = plan_of(method), Deadline()
    inputs = as_inputs(X, "X")
    if inputs.ndim < 2:
        raise InvalidInputError(
            f"X has shape {tuple(inputs.shape)}; expected the batch axis first, then the input's own"
        )
    if region is not None and not isinstance(region, Deformation):
        raise InvalidTypeError(f"region is a {type(region).__name__}; expected a Deformation: limits without an image")
    question = Question.of(network, tuple(inputs.shape[1:]), eps=eps, norm=norm, domain=domain, deformation=region)
    batches = batches_of((question, plan), inputs, as_labels(y, len(inputs)))
    asked = {} if results is None else asked_of(question, plan)
    with Ledger.open(results, asked) as ledger:
        interrupted = _run(question, plan, batches, ledger, n_jobs, progress)
        known = Answers.join([answers_of(question, batch, ledger.known) for batch in batches])
    return AccuracyReport(
        clean=float(known.clean.mean()),
        attacked=float((known.clean & (known.statuses != Status.FALSIFIED)).mean()),
        certified=float((known.statuses == Status.VERIFIED).mean()),
        statuses=known.statuses,
        worst_margins=known.margins,
        counterexamples=MappingProxyType(known.counterexamples),
        eps=question.eps,
        norm=norm if region is None else region.name,
        method=plan.name,
        seconds=clock.elapsed,
        interrupted=interrupted,
        region=region,
        flows=MappingProxyType(known.flows),
    )


def asked_of(question: Question, plan: Plan) -> dict[str, Any]:
    """What answers depend on beside the inputs and labels, which are in their keys."""
    limits = None if question.domain is None else [v.numpy() for v in question.domain]
    return {
        "version": version("convexnn"),
        "command": "accuracy",
        "network": digest_of_network(question),
        "eps": question.eps,
        "norm": question.norm,
        "deformation": repr(question.deformation),
        "domain": None if limits is None else digest_of(*limits),
        "plan": repr(plan),
    }


def _run(
    question: Question, plan: Plan, batches: list[Batch], ledger: Ledger, n_jobs: int | None, progress: bool | None
) -> bool:
    """Every batch, then, for a plan that searches, every input that its bounds left open; whether it was stopped."""
    total = sum(len(batch) for batch in batches)
    hidden = None if progress is None else not progress
    with tqdm(total=total, desc="certify", unit="input", disable=hidden) as bar:
        try:
            waiting = {batch.key: batch for batch in batches if batch.key not in ledger.known}
            bar.update(total - sum(map(len, waiting.values())))
            _answer(bound_batch, (question, plan), list(waiting.values()), ledger, n_jobs, bar)
            left = {single.key: single for batch in batches for single in open_inputs(batch, ledger)}
            bar.update(-len(left))
            _answer(search_input, (question, plan), list(left.values()), ledger, n_jobs, bar)
        except KeyboardInterrupt:
            _log.warning("interrupted after %d of %d inputs; the rest is reported as unknown", bar.n, total)
            return True
    return False


def _answer(
    function: Callable[[Asked, Batch], Record],
    shared: Asked,
    jobs: list[Batch],
    ledger: Ledger,
    n_jobs: int | None,
    bar: Any,
) -> None:
    sizes = {job.key: len(job) for job in jobs}
    with closing(run_jobs(function, shared, jobs, n_jobs=n_jobs)) as records:
        for record in records:
            ledger.add(record["key"], record)
            bar.update(sizes[record["key"]])
