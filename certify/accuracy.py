"""Many inputs: how many keep their label everywhere in their regions?"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from types import MappingProxyType
from typing import Any, SupportsFloat

import numpy as np
import torch
from torch import nn
from tqdm.auto import tqdm

from certify.errors import InvalidInputError
from certify.inputs import as_inputs, as_labels
from certify.search import Deadline, Outcome, Plan, Problem
from certify.search.climb import climb
from certify.setup import make_problem, plan_of
from certify.threads import threads_for
from certify.verdict import Status

_log = logging.getLogger(__name__)

# Entries of the largest array that a batch makes, about 64 MiB in float64.
_ENTRIES = 2**23
_LARGEST_BATCH = 256


@dataclass(frozen=True, eq=False)
class AccuracyReport:
    """Clean, attacked and certified accuracy: certified <= attacked <= clean.

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

    def __len__(self) -> int:
        return len(self.statuses)

    def __str__(self) -> str:
        n = len(self)
        rows = [
            f"{n} inputs, {self.norm} ball of radius {self.eps:g}, method {self.method}, {self.seconds:.3g} s"
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
    eps: SupportsFloat,
    norm: str = "linf",
    method: str | Plan = "auto",
    domain: Any = None,
    progress: bool | None = None,
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
        progress: a progress bar: yes, no, or (None) only on a terminal.

    Returns:
        The report. An interrupt (Ctrl-C) does not lose the work: the rest counts as UNKNOWN.

    Raises:
        CertifyError: as for `verify`.
    """
    plan, clock = plan_of(method), Deadline()
    inputs = as_inputs(X, "X")
    if inputs.ndim < 2:
        raise InvalidInputError(
            f"X has shape {tuple(inputs.shape)}; expected the batch axis first, then the input's own"
        )
    problem = make_problem(network, inputs, as_labels(y, len(inputs)), eps=eps, norm=norm, domain=domain)
    with threads_for(problem.multiplications * _batch_size(problem)):
        statuses, margins, witnesses, interrupted = _run(problem, plan, progress)
        clean = _clean(problem)
    falsified = np.array([s is Status.FALSIFIED for s in statuses])
    return AccuracyReport(
        clean=float(clean.mean()),
        attacked=float((clean & ~falsified).mean()),
        certified=float(np.mean([s is Status.VERIFIED for s in statuses])),
        statuses=statuses,
        worst_margins=margins,
        counterexamples=MappingProxyType(witnesses),
        eps=problem.region.eps,
        norm=norm,
        method=plan.name,
        seconds=clock.elapsed,
        interrupted=interrupted,
    )


def _batch_size(problem: Problem) -> int:
    widest = max(prod(node.shape) for node in problem.graph.nodes)
    entries = widest * problem.margins.rows.shape[1]
    return max(1, min(_LARGEST_BATCH, len(problem), _ENTRIES // entries))


def _clean(problem: Problem) -> np.ndarray:
    right = []
    for batch in torch.arange(len(problem)).split(_batch_size(problem)):
        part = problem.select(batch)
        with torch.no_grad():
            right.append(~part.margins.violated(part.margins_at(part.region.centre)))
    return torch.cat(right).cpu().numpy()


def _run(
    problem: Problem, plan: Plan, progress: bool | None
) -> tuple[np.ndarray, np.ndarray, dict[int, np.ndarray], bool]:
    statuses = np.full(len(problem), Status.UNKNOWN, dtype=object)
    margins = np.full(len(problem), -np.inf)
    witnesses: dict[int, np.ndarray] = {}
    bar = tqdm(total=len(problem), desc="certify", unit="input", disable=None if progress is None else not progress)
    with bar:
        try:
            for batch in torch.arange(len(problem)).split(_batch_size(problem)):
                outcome = climb(problem.select(batch), plan, Deadline())
                index = batch.numpy()
                statuses[index] = outcome.status
                margins[index] = outcome.lower.amin(1).cpu().numpy()
                witnesses |= _shaped(problem, outcome, int(index[0]))
                bar.update(len(batch))
        except KeyboardInterrupt:
            _log.warning("interrupted after %d of %d inputs; the rest is reported as unknown", bar.n, len(problem))
            return statuses, margins, witnesses, True
    return statuses, margins, witnesses, False


def _shaped(problem: Problem, outcome: Outcome, first: int) -> dict[int, np.ndarray]:
    shape = problem.graph.input_shape
    return {first + k: point.reshape(shape).cpu().numpy() for k, point in outcome.witness.items()}
