"""Soft programs of any size: the interior point, and before it the first-order method where its steps are long."""

import time
from dataclasses import replace

import torch

from convexnn.programs import ConvexPoint
from convexnn.result import Status, TraceEntry
from convexnn.robust.answer import RobustAnswer, better
from convexnn.robust.first_order import solve_first_order
from convexnn.robust.program import AbstractRobustProgram
from convexnn.robust.working_set import FIRST, solve_working_set, step_cost
from convexnn.solvers.answer import ProgramLimits, Report

_LONG = 1e11  # operations of the interior point's first steps from which on the first-order method goes first
_SHARE = 0.3  # of the time, if it is limited, for the first-order method
_MOST_SECONDS = 120.0


def solve_in_turn(
    program: AbstractRobustProgram, limits: ProgramLimits, *, report: Report | None = None
) -> RobustAnswer:
    """The better point and the better bound of both methods.

    Only the interior point finds multipliers with a close bound, and where its steps are short its first blocks are
    already better than the first-order method's end.
    """
    if step_cost(program, FIRST) < _LONG:
        return solve_working_set(program, limits, report=report)
    began = time.perf_counter()
    first = solve_first_order(
        program, replace(limits, max_seconds=min(_SHARE * limits.max_seconds, _MOST_SECONDS)), report=report
    )
    left = limits.max_seconds - (time.perf_counter() - began)
    if first.status in (Status.CONVERGED, Status.INTERRUPTED) or left <= 0:
        return first
    offset, seen = time.perf_counter() - began, first.trace[-1]

    def joined(entry: TraceEntry) -> TraceEntry:
        objective, bound = min(entry.objective, seen.objective), max(entry.bound, seen.bound)
        return TraceEntry(offset + entry.seconds, objective, bound, entry.n_neurons)

    def see(entry: TraceEntry) -> None:
        if report is not None:
            report(joined(entry))

    try:
        then = solve_working_set(
            program,
            replace(limits, max_seconds=left),
            start=_largest(first.judgement.point, FIRST),
            report=see,
        )
    except KeyboardInterrupt:  # before it had judged a point
        return replace(first, status=Status.INTERRUPTED)
    judgement = better(first.judgement, then.judgement)
    status = then.status
    if judgement.gap(program.problem.floor()) <= limits.tol:
        status = Status.CONVERGED
    trace = (*first.trace, *map(joined, then.trace))
    return RobustAnswer(judgement, status, first.n_steps + then.n_steps, trace)


def _largest(point: ConvexPoint, count: int) -> ConvexPoint:
    """With all but the largest blocks at zero."""
    norms = point.U.norm(dim=-1)
    least = torch.topk(norms.reshape(-1), min(count, norms.numel())).values[-1]
    return replace(point, U=torch.where((norms >= least)[..., None], point.U, 0.0))
