"""ADMM on the patterns that matter, judged, repaired and restarted.

After some steps the iterate is repaired (:mod:`convexnn.solvers.repair`): that gives a feasible
point and a dual point of the whole program, both better than the iterate. Where their gap has fallen
enough, ADMM starts again from the two, on the patterns that the point uses and those that violate
the dual point. A restart needs a smaller gap than the last, so that they end; without them ADMM
runs on, on more and more patterns, and converges.
"""

import math
import time
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from convexnn.programs import AbstractProgram, ConvexPoint
from convexnn.result import Status, TraceEntry
from convexnn.solvers.admm import ADMM, ADMMOptions, ADMMState, first_rho
from convexnn.solvers.answer import ProgramAnswer, ProgramLimits, Report, better
from convexnn.solvers.repair import Dual, best_mixture, judged, own_dual, priced, repaired
from convexnn.solvers.screening import Screen, first_scores

_CHECK = 25  # steps between two looks at the gap, at first
_FEW = 100  # patterns up to which all are worked on
_FIRST = 50
_FALL = 0.8  # of the gap, from one restart to the next
_ADDED = 30  # patterns at least that a round may add
_ACCURACY = 0.1  # of projections, relative to the tolerance
_DEFAULT = ADMMOptions()


@dataclass
class _Run:
    """The program, the patterns in use, ADMM on them, and the best point and bound so far."""

    program: AbstractProgram
    limits: ProgramLimits
    dtype: torch.dtype
    options: ADMMOptions
    screen: Screen
    chosen: Int[Tensor, " p"]
    solver: ADMM
    state: ADMMState
    best: ProgramAnswer | None = None
    restarted_at: float = float("inf")  # the gap
    trace: list[TraceEntry] = field(default_factory=list)
    started: float = field(default_factory=time.perf_counter)

    def gap(self, answer: ProgramAnswer) -> float:
        return answer.judgement.gap(self.program.problem.floor())

    def room(self) -> float:
        """Between the best objective and the best bound."""
        return math.inf if self.best is None else self.best.judgement.objective - self.best.judgement.dual.bound

    def seconds(self) -> float:
        return time.perf_counter() - self.started


def solve_admm(
    program: AbstractProgram,
    limits: ProgramLimits,
    *,
    start: ConvexPoint | None = None,
    dtype: torch.dtype = torch.float64,
    options: ADMMOptions = _DEFAULT,
    report: Report | None = None,
) -> ProgramAnswer:
    """Run until the gap of the program, judged in float64 at a feasible point, is at most ``limits.tol``."""
    run, status = _begun(program, limits, start, dtype, options), None
    try:
        while status is None:
            due = min(run.state.n_steps + max(_CHECK, run.state.n_steps // 4), limits.max_steps)
            while run.state.n_steps < due and run.seconds() < limits.max_seconds:
                run.state = run.solver.step(run.state)
            status = _round(run, report)
    except KeyboardInterrupt:
        if run.best is None:
            raise
        status = Status.INTERRUPTED
    assert run.best is not None
    return replace(run.best, status=status, n_steps=run.state.n_steps, trace=tuple(run.trace))


def _begun(
    program: AbstractProgram,
    limits: ProgramLimits,
    start: ConvexPoint | None,
    dtype: torch.dtype,
    options: ADMMOptions,
) -> _Run:
    chosen = _first_patterns(program, start)
    part = _part(program, chosen)
    rho = first_rho(program.problem, len(chosen))
    solver = ADMM.of(part.to(dtype), rho, options)
    first = program.zero() if start is None else start
    state = solver.init(replace(first, U=first.U[:, :, chosen]).to(dtype), rho)
    return _Run(program, limits, dtype, options, Screen.of(program), chosen, solver, state)


def _first_patterns(program: AbstractProgram, start: ConvexPoint | None) -> Int[Tensor, " p"]:
    """All of few; else those most correlated with the gradient at the constant network, and those of the start."""
    P = len(program.patterns)
    if P <= _FEW:
        return torch.arange(P, device=program.problem.X.device)
    score = first_scores(program).reshape(-1, P).amax(0)
    used = torch.zeros_like(score, dtype=torch.bool) if start is None else (start.U.norm(dim=-1) > 0).any(0).any(0)
    score = score + torch.where(used, torch.inf, 0.0)
    count = min(P, max(_FIRST, int(used.sum())))
    return torch.sort(torch.argsort(score, descending=True)[:count]).values


def _part(program: AbstractProgram, chosen: Int[Tensor, " p"]) -> AbstractProgram:
    patterns = program.patterns
    if len(chosen) == len(patterns):
        return program
    return replace(program, patterns=replace(patterns, D=patterns.D[chosen], gates=patterns.gates[chosen]))


def _round(run: _Run, report: Report | None) -> Status | None:
    """Repair and judge the iterate, then restart or go on."""
    if run.best is not None and not bool(torch.isfinite(run.state.copies.A).all()):
        return Status.NON_FINITE
    raw = _whole(run)
    point = _feasible(run, raw)
    dual, lower = _dual(run, point)
    new = judged(run.program, point, dual, raw)
    run.best = new if run.best is None else better(run.best, new)
    judgement = run.best.judgement
    entry = TraceEntry(run.seconds(), judgement.objective, judgement.dual.bound, int((point.U.norm(dim=-1) > 0).sum()))
    run.trace.append(entry)
    if report is not None:
        report(entry)
    status = run.limits.status(run.gap(run.best), entry.seconds, run.state.n_steps)
    if status is None:
        _go_on(run, new, dual, _worst(run, lower))
    return status


def _whole(run: _Run) -> ConvexPoint:
    """The iterate as a point of the whole program."""
    part, point = run.solver.point(run.state).to(torch.float64), run.program.zero()
    point.U[:, :, run.chosen] = part.U
    return replace(point, bias=part.bias)


def _feasible(run: _Run, raw: ConvexPoint) -> ConvexPoint:
    """The repaired iterate, or the point of the program near it, whichever is better."""
    first, second = repaired(run.program, raw, run.room()), run.program.feasible(raw)
    return first if run.program.objective(first) <= run.program.objective(second) else second


def _dual(run: _Run, point: ConvexPoint) -> tuple[Dual, Float[Tensor, " N"]]:
    """The best between the iterate's dual point and that of the repaired point, and what violates the second."""
    program, screen, shape = run.program, run.screen, run.program.shape[:3]
    V, held = run.solver.dual(run.state)
    index = torch.arange(len(screen), device=V.device).reshape(shape)[:, :, run.chosen].reshape(-1)
    mine = held.to(torch.float64).clamp(min=0.0).reshape(len(index), -1)
    screen.multipliers[index] = mine
    wanted = 2 * _added(run) if len(run.chosen) < len(program.patterns) else len(screen)
    second, lower = priced(program, own_dual(program, point, run.room()), screen, _ACCURACY * run.limits.tol, wanted)
    own = second.multipliers.clone()
    own[index] = mine
    return best_mixture(program, Dual(program.problem.admit(V.to(torch.float64)), own), second), lower


def _added(run: _Run) -> int:
    return max(_ADDED, len(run.chosen) // 2)


def _worst(run: _Run, lower: Float[Tensor, " N"]) -> Int[Tensor, " p"]:
    """Patterns of the worst violators."""
    reach = lower.reshape(-1, len(run.program.patterns)).amax(0)
    order = torch.argsort(reach, descending=True)[: _added(run)]
    return order[reach[order] > 0]


def _go_on(run: _Run, new: ProgramAnswer, dual: Dual, worst: Int[Tensor, " p"]) -> None:
    """Restart from the repaired pair where its gap has fallen enough, else only add patterns."""
    gap = run.gap(new)
    restart = gap <= _FALL * run.restarted_at
    point = new.judgement.point
    if restart and len(run.program.patterns) > _FEW:
        chosen = torch.unique(torch.cat([torch.nonzero((point.U.norm(dim=-1) > 0).any(0).any(0))[:, 0], worst]))
    else:
        chosen = torch.unique(torch.cat([run.chosen, worst]))
    if not torch.equal(chosen, run.chosen) and len(chosen):
        run.solver = run.solver.on(_part(run.program, chosen).to(run.dtype))
        run.state = run.state.on(run.chosen, chosen)
        run.chosen = chosen
    if restart:
        run.restarted_at = gap
        scale = float(new.judgement.dual.V.norm() / dual.V.norm().clamp(min=1e-300))
        cones = scale * dual.multipliers.reshape(*run.program.shape[:3], -1)[:, :, run.chosen]
        start = ConvexPoint(point.U[:, :, run.chosen], point.bias).to(run.dtype)
        V = new.judgement.dual.V.to(run.dtype)
        run.state = run.solver.restarted(start, V, cones.to(run.dtype), run.state)
