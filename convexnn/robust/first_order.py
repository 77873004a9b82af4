"""Soft robust programs in dense products: smoothed objectives, whose maximisers are the dual points that are judged."""

import time
from dataclasses import dataclass, field

import torch

from convexnn.programs import ConvexPoint
from convexnn.result import Status, TraceEntry
from convexnn.robust.answer import RobustAnswer, better
from convexnn.robust.descent import Descended, descend
from convexnn.robust.duality import RobustDual, RobustJudgement, judge_robust
from convexnn.robust.program import AbstractRobustProgram
from convexnn.robust.sloped import SlopedProgram
from convexnn.robust.smoothed import Evaluated
from convexnn.solvers.answer import ProgramLimits, Report


@dataclass
class _Run:
    program: AbstractRobustProgram
    sloped: SlopedProgram
    limits: ProgramLimits
    started: float
    report: Report | None
    best: RobustJudgement | None = None
    trace: list[TraceEntry] = field(default_factory=list)

    def see(self, seen: Descended) -> bool:
        """Judge, and say whether that is enough."""
        judged = judge_robust(self.program, _point(self.program, seen), dual_of(self.program, self.sloped, seen.last))
        self.best = better(self.best, judged)
        seconds = time.perf_counter() - self.started
        live = int((seen.U.norm(dim=1) > 1e-4 * seen.U.norm(dim=1).max()).sum())
        self.trace.append(TraceEntry(seconds, self.best.objective, self.best.bound, live))
        if self.report is not None:
            self.report(self.trace[-1])
        return self.best.gap(self.program.problem.floor()) <= self.limits.tol


def solve_first_order(
    program: AbstractRobustProgram,
    limits: ProgramLimits,
    *,
    start: ConvexPoint | None = None,
    report: Report | None = None,
) -> RobustAnswer:
    """Until the gap is ``limits.tol``, time is up, or rounds gain no more; an interrupt keeps the best."""
    began = time.perf_counter()
    sloped = as_sloped(program)
    start = program.zero() if start is None else start
    run = _Run(program, sloped, limits, began, report)
    U = start.U.reshape(-1, program.problem.n_inputs)
    try:
        descend(sloped, U, start.bias, tol=0.1 * limits.tol, deadline=began + limits.max_seconds, stop=run.see)
    except KeyboardInterrupt:
        if run.best is None:
            raise
        return RobustAnswer(run.best, Status.INTERRUPTED, len(run.trace), tuple(run.trace))
    assert run.best is not None
    gap = run.best.gap(program.problem.floor())
    status = limits.status(gap, time.perf_counter() - began, 0) or Status.STALLED
    return RobustAnswer(run.best, status, len(run.trace), tuple(run.trace))


def as_sloped(program: AbstractRobustProgram) -> SlopedProgram:
    """The soft program as one of slopes 0 and 1; blocks in the order of its flat indices."""
    P = program.shape[1]
    signs = program.signs[:, 0, 0].repeat_interleave(P)
    slopes = program.mask.repeat(2, 1)[None]
    if not program.margin_loss:
        slopes = slopes.expand(2, -1, -1)
    return SlopedProgram(program.problem, program.ball, signs, slopes)


def dual_of(program: AbstractRobustProgram, sloped: SlopedProgram, at: Evaluated) -> RobustDual:
    """The point of the dual that the smoothed objective is attained at."""
    below = torch.where(sloped.ends > 0, at.weights, 0.0).sum(0)
    above = torch.where(sloped.ends > 0, 0.0, at.weights).sum(0)
    share = at.weights / at.weights.sum(0).clamp(min=1e-300)
    worst = program.ball.radii * (share[..., None] * at.maximisers.worst).sum(0)
    sides = torch.where(sloped.slopes > 0.5, 1 - at.maximisers.sides, at.maximisers.sides)
    charged = torch.where(sloped.harmful, at.weights[:, None, :], 0.0)
    return RobustDual(below, above, worst, (charged * sides).sum(0).reshape(2, program.shape[1], -1))


def _point(program: AbstractRobustProgram, seen: Descended) -> ConvexPoint:
    S, P, d = program.shape
    return ConvexPoint(seen.U.reshape(S, 1, P, d), seen.bias)
