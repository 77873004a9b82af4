"""FISTA with restart on a working set of patterns, for gated programs with a differentiable loss."""

import time
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from convexnn.duality import judge_program
from convexnn.errors import InvalidInputError
from convexnn.patterns import Patterns
from convexnn.programs import AbstractProgram, ConvexPoint
from convexnn.result import Status, TraceEntry
from convexnn.solvers.answer import ProgramAnswer, ProgramLimits, Report, better

_FIRST = 64
_CHECK = 20  # steps between two looks at the gap of the working set
_GROWTH = 1.1
_CUT = 0.5
_ROUNDING = 1e-9
_POWER_STEPS = 8


@dataclass(frozen=True)
class _Momentum:
    """Current point, extrapolated point, the outputs of both, the weight of the next extrapolation, the step."""

    point: ConvexPoint
    ahead: ConvexPoint
    F: Float[Tensor, "n K"]
    F_ahead: Float[Tensor, "n K"]
    t: float
    length: float


def solve_fista(
    program: AbstractProgram,
    limits: ProgramLimits,
    *,
    start: ConvexPoint | None = None,
    report: Report | None = None,
) -> ProgramAnswer:
    """Proximal gradient steps with momentum (Beck & Teboulle 2009), restarted when it points uphill
    (O'Donoghue & Candes 2015), on the patterns with the largest correlations (as celer and skglm do). The
    step length follows the curvature along the path: it grows by and by, and is cut where it is too long.

    Raises:
        InvalidInputError: the program has cones, or the loss has a kink.
    """
    _check(program)
    started, point = time.perf_counter(), program.zero() if start is None else start
    trace: list[TraceEntry] = []
    best, n_steps, status, length = _judged(program, point, 0), 0, None, 1.0 / _curvature(program)
    while True:
        status = limits.status(best.judgement.gap(program.problem.floor()), time.perf_counter() - started, n_steps)
        if status is not None:
            return replace(best, status=status, n_steps=n_steps, trace=tuple(trace))
        chosen = _working_set(program, best, point)
        tol = max(0.8 * limits.tol, min(0.1 * best.judgement.gap(), 0.1))
        remaining = limits.max_seconds - (time.perf_counter() - started)
        inner = ProgramLimits(tol, remaining, limits.max_steps - n_steps)
        try:
            point, steps, length = _descend(_restricted(program, chosen), _part(point, chosen), inner, length)
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


def _descend(
    program: AbstractProgram, start: ConvexPoint, limits: ProgramLimits, length: float
) -> tuple[ConvexPoint, int, float]:
    started, steps = time.perf_counter(), 0
    F = program.output(start)
    at = _Momentum(start, start, F, F, 1.0, length)
    while True:
        at = _step(program, at)
        steps += 1
        if steps % _CHECK == 0:
            gap = _judged(program, at.point, steps).judgement.gap(program.problem.floor())
            if limits.status(gap, time.perf_counter() - started, steps) is not None:
                return at.point, steps, at.length


def _step(program: AbstractProgram, at: _Momentum) -> _Momentum:
    V = program.problem.loss.negative_gradient(at.F_ahead)
    C, rise = program.correlations(V), V.sum(0)
    new, F, length = _proximal(program, at, (C, rise), _GROWTH * at.length)
    dU, db = new.U - at.point.U, new.bias - at.point.bias
    uphill = ((at.ahead.U - new.U) * dU).sum() + ((at.ahead.bias - new.bias) * db).sum()
    t = 1.0 if float(uphill) > 0 else at.t
    t_next = 0.5 * (1 + (1 + 4 * t * t) ** 0.5)
    push = (t - 1) / t_next
    ahead = ConvexPoint(new.U + push * dU, new.bias + push * db)
    return _Momentum(new, ahead, F, F + push * (F - at.F), t_next, length)


def _proximal(
    program: AbstractProgram, at: _Momentum, rise: tuple[Tensor, Tensor], length: float
) -> tuple[ConvexPoint, Float[Tensor, "n K"], float]:
    """The proximal step from the extrapolated point, at the first length along which the curvature is below 1/length.

    That is curvature * ||dF||^2 (weighted) <= ||step||^2 / length, which bounds the loss from above there.
    """
    problem, ahead = program.problem, at.ahead
    while True:
        U = program.penalty.prox(ahead.U + length * rise[0], length * problem.weight_decay)
        bias = ahead.bias + length * rise[1] if problem.output_bias else ahead.bias
        new = ConvexPoint(U, bias)
        F = program.output(new)
        moved = float(((U - ahead.U) ** 2).sum() + ((bias - ahead.bias) ** 2).sum())
        bent = problem.loss.largest_curvature * float(((F - at.F_ahead) ** 2).sum(1) @ problem.loss.weights)
        if moved == 0 or not bent * length > moved * (1 + _ROUNDING):  # NaN ends the run, in the loop above
            return new, F, length
        length = max(_CUT * length, min(0.9 * length, moved / bent))


def _curvature(program: AbstractProgram, steps: int = _POWER_STEPS) -> float:
    """Nearly the largest eigenvalue of A'diag(c)A, by power steps, times the curvature of the loss."""
    problem = program.problem
    V = torch.ones_like(problem.loss.targets[:, :1]) + 0.1 * problem.X[:, :1]
    weights, size = problem.loss.weights[:, None], 1.0
    for _ in range(steps):
        V = V / V.norm().clamp(min=1e-300)
        weighted = weights.sqrt() * V
        image = program.gated.forward(program.gated.adjoint(weighted.T)).T
        image = weights.sqrt() * (image + weighted.sum(0) if problem.output_bias else image)
        size, V = float(image.norm()), image
    return max(problem.loss.largest_curvature * size, 1e-300)


def _active(point: ConvexPoint) -> int:
    return int((point.U.norm(dim=-1) > 0).sum())
