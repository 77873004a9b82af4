"""FISTA with restart on a working set of patterns, for gated programs with a differentiable loss."""

import time
from dataclasses import dataclass, replace

import torch
from jaxtyping import Int
from torch import Tensor

from convexnn.duality import judge_program
from convexnn.errors import InvalidInputError
from convexnn.patterns import Patterns
from convexnn.programs import AbstractProgram, ConvexPoint
from convexnn.result import Status, TraceEntry
from convexnn.solvers.answer import ProgramAnswer, ProgramLimits, Report, better

_FIRST = 64
_CHECK = 20  # steps between two looks at the gap of the working set


@dataclass(frozen=True)
class _Momentum:
    """Current point, extrapolated point, and the weight of the next extrapolation."""

    point: ConvexPoint
    ahead: ConvexPoint
    t: float


def solve_fista(
    program: AbstractProgram,
    limits: ProgramLimits,
    *,
    start: ConvexPoint | None = None,
    report: Report | None = None,
) -> ProgramAnswer:
    """Proximal gradient steps with momentum (Beck & Teboulle 2009), restarted when it points uphill
    (O'Donoghue & Candes 2015), on the patterns with the largest correlations (as celer and skglm do).

    Raises:
        InvalidInputError: the program has cones, or the loss has a kink.
    """
    _check(program)
    started, point = time.perf_counter(), program.zero() if start is None else start
    trace: list[TraceEntry] = []
    best, n_steps, status = _judged(program, point, 0), 0, None
    while True:
        status = limits.status(best.judgement.gap(program.problem.floor()), time.perf_counter() - started, n_steps)
        if status is not None:
            return replace(best, status=status, n_steps=n_steps, trace=tuple(trace))
        chosen = _working_set(program, best, point)
        tol = max(0.3 * limits.tol, min(0.1 * best.judgement.gap(), 0.1))
        remaining = limits.max_seconds - (time.perf_counter() - started)
        inner = ProgramLimits(tol, remaining, limits.max_steps - n_steps)
        try:
            point, steps = _descend(_restricted(program, chosen), _part(point, chosen), inner)
        except KeyboardInterrupt:
            return replace(best, status=Status.INTERRUPTED, n_steps=n_steps, trace=tuple(trace))
        point = _whole(program, point, chosen)
        n_steps += steps
        best = better(best, _judged(program, point, n_steps))
        trace.append(
            TraceEntry(
                time.perf_counter() - started, best.judgement.objective, best.judgement.dual.bound, _active(point)
            )
        )
        if report is not None:
            report(trace[-1])


def _check(program: AbstractProgram) -> None:
    if program.cone is not None:
        raise InvalidInputError(
            "FISTA solves gated programs, which have no cone constraints; use ADMM or the interior point."
        )
    if program.problem.loss.largest_curvature == float("inf"):
        raise InvalidInputError(
            f"FISTA needs a loss with a Lipschitz gradient, and {program.problem.loss.name!r} has a kink; "
            "use ADMM or the interior point."
        )


def _judged(program: AbstractProgram, point: ConvexPoint, n_steps: int) -> ProgramAnswer:
    V = program.problem.loss.negative_gradient(program.output(point))
    return ProgramAnswer(judge_program(program, point, V), V, None, Status.STALLED, n_steps)


def _working_set(program: AbstractProgram, best: ProgramAnswer, point: ConvexPoint) -> Int[Tensor, " k"]:
    """Patterns in use, and the most correlated ones, twice as many as are in use."""
    used = point.U.norm(dim=-1).amax((0, 1))
    score = program.penalty.dual_norms(program.correlations(program.problem.admit(best.V))).amax((0, 1))
    score = torch.where(used > 0, torch.inf, score)
    size = min(len(score), max(_FIRST, 2 * int((used > 0).sum())))
    return torch.sort(torch.topk(score, size).indices).values


def _restricted(program: AbstractProgram, chosen: Int[Tensor, " k"]) -> AbstractProgram:
    patterns = program.patterns
    return replace(program, patterns=Patterns(patterns.D[chosen], patterns.gates[chosen], len(chosen)))


def _part(point: ConvexPoint, chosen: Int[Tensor, " k"]) -> ConvexPoint:
    return ConvexPoint(point.U[:, :, chosen], point.bias)


def _whole(program: AbstractProgram, point: ConvexPoint, chosen: Int[Tensor, " k"]) -> ConvexPoint:
    U = point.U.new_zeros(program.shape)
    U[:, :, chosen] = point.U
    return ConvexPoint(U, point.bias)


def _descend(program: AbstractProgram, start: ConvexPoint, limits: ProgramLimits) -> tuple[ConvexPoint, int]:
    started, steps = time.perf_counter(), 0
    length = 1.0 / _lipschitz(program)
    at = _Momentum(start, start, 1.0)
    while True:
        at = _step(program, at, length)
        steps += 1
        if steps % _CHECK == 0:
            gap = _judged(program, at.point, steps).judgement.gap(program.problem.floor())
            if limits.status(gap, time.perf_counter() - started, steps) is not None:
                return at.point, steps


def _step(program: AbstractProgram, at: _Momentum, length: float) -> _Momentum:
    problem = program.problem
    V = problem.loss.negative_gradient(program.output(at.ahead))
    U = program.penalty.prox(at.ahead.U + length * program.correlations(V), length * problem.weight_decay)
    bias = at.ahead.bias + length * V.sum(0) if problem.output_bias else at.ahead.bias
    new = ConvexPoint(U, bias)
    uphill = ((at.ahead.U - U) * (U - at.point.U)).sum() + ((at.ahead.bias - bias) * (bias - at.point.bias)).sum()
    t = 1.0 if float(uphill) > 0 else at.t
    t_next = 0.5 * (1 + (1 + 4 * t * t) ** 0.5)
    push = (t - 1) / t_next
    ahead = ConvexPoint(U + push * (U - at.point.U), bias + push * (bias - at.point.bias))
    return _Momentum(new, ahead, t_next)


def _lipschitz(program: AbstractProgram, steps: int = 30) -> float:
    """The largest eigenvalue of A'diag(c)A, by power steps, times the curvature of the loss; 5 % to be safe."""
    problem = program.problem
    V = torch.ones_like(problem.loss.targets[:, :1]) + 0.1 * problem.X[:, :1]
    weights, size = problem.loss.weights[:, None], 1.0
    for _ in range(steps):
        V = V / V.norm().clamp(min=1e-300)
        weighted = weights.sqrt() * V
        image = program.gated.forward(program.gated.adjoint(weighted.T)).T
        image = weights.sqrt() * (image + weighted.sum(0) if problem.output_bias else image)
        size, V = float(image.norm()), image
    return max(1.05 * problem.loss.largest_curvature * size, 1e-300)


def _active(point: ConvexPoint) -> int:
    return int((point.U.norm(dim=-1) > 0).sum())
