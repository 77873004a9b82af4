"""An accurate solver for programs with many patterns: an interior point on the blocks that matter.

Blocks outside the working set are priced at its dual point: sign * X'D_p v is projected on the cone
of the pattern, and a projection longer than the weight decay is a violator. Multipliers of earlier
projections screen most blocks without a new one.
"""

import time
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from convexnn.duality import judge_program
from convexnn.programs import AbstractProgram, ConvexPoint
from convexnn.result import Status, TraceEntry
from convexnn.solvers.answer import ProgramAnswer, ProgramLimits, Report, better
from convexnn.solvers.interior import InteriorOptions, InteriorPoint, solve_blocks
from convexnn.solvers.screening import Screen, first_scores

_FIRST = 40
_SMALL = 400  # blocks up to which all are in the first working set: most leave it on the way
_FIRST_TOL = 3e-2
_WITH = 0.03
_WITHOUT = 0.003
_MOST_ROUNDS = 60
_SHARES = (0.5, 5.0, 50.0)  # starts in turn where runs stall, see InteriorOptions
_MOST_STEPS = 100  # of the interior point in one round


@dataclass
class _Run:
    """Working set, best point and the bounds known of every block."""

    program: AbstractProgram
    limits: ProgramLimits
    started: float
    working: Int[Tensor, " B"]
    screen: Screen
    given_up: Bool[Tensor, " N"]  # once: blocks that come back stay
    best: ProgramAnswer | None = None
    trace: list[TraceEntry] = field(default_factory=list)

    def gap(self) -> float:
        return float("inf") if self.best is None else self.best.judgement.gap(self.program.problem.floor())


def solve_working_set(
    program: AbstractProgram,
    limits: ProgramLimits,
    *,
    start: ConvexPoint | None = None,
    report: Report | None = None,
) -> ProgramAnswer:
    """Solve to a relative gap of ``limits.tol``; blocks that are not zero in ``start`` are in the first working set."""
    screen, working = Screen.of(program), _first_blocks(program, start)
    given_up = torch.zeros(len(screen), dtype=torch.bool, device=working.device)
    run = _Run(program, limits, time.perf_counter(), working, screen, given_up)
    tol = _FIRST_TOL if len(run.working) < len(run.screen) else 0.5 * limits.tol
    try:
        status = _rounds(run, tol, report)
    except KeyboardInterrupt:
        if run.best is None:
            raise
        status = Status.INTERRUPTED
    assert run.best is not None
    return ProgramAnswer(run.best.judgement, run.best.V, run.best.multipliers, status, len(run.trace), tuple(run.trace))


def _rounds(run: _Run, tol: float, report: Report | None) -> Status:
    program, limits, iterate, status, again = run.program, run.limits, None, None, False
    shares = list(_SHARES)
    while status is None:
        deadline = run.started + limits.max_seconds
        options = InteriorOptions(tol, _MOST_STEPS, deadline, refinements=2 if again else 1, share=shares[0])
        firm = run.given_up[run.working]
        found = solve_blocks(program, run.working, options, iterate, firm)
        violators = _price(run, found, tol)
        _see(run, found, report)
        # A run that goes on from a point near the optimum, or gave blocks up, can stall where a new one does not.
        finest, fresh = tol <= 0.5 * limits.tol, iterate is None and len(found.kept) == len(run.working)
        ended = finest and fresh and len(violators) == 0
        status = _status(run, ended=ended and len(shares) == 1)
        shares = shares[1:] if ended and len(shares) > 1 else shares
        again = finest and len(violators) == 0
        iterate = None if len(violators) or finest else found.iterate
        before, gone = run.working, torch.ones_like(firm)
        gone[found.kept] = False
        run.working = _next_working_set(run, found, violators, tol) if len(violators) else before[found.kept]
        run.given_up[before] |= gone | ~torch.isin(before, run.working)
        if len(violators) < 10 or tol > 1e-2:
            tol = max(tol * (_WITH if len(violators) else _WITHOUT), 0.5 * limits.tol)
    return status


def _first_blocks(program: AbstractProgram, start: ConvexPoint | None) -> Int[Tensor, " B"]:
    """The blocks with the highest scores, with those of the start."""
    K, score = program.shape[1], first_scores(program)
    if start is not None:
        score = score + torch.where(start.U.reshape(len(score), -1).norm(dim=1) > 0, torch.inf, 0.0)
    separate = program.penalty.cone_size(program.problem.n_inputs) == program.problem.n_inputs
    few = not separate or len(score) <= _SMALL
    first = len(score) if few else max(_FIRST * K, int(torch.isinf(score).sum()))
    return torch.sort(torch.argsort(score, descending=True)[: min(first, len(score))]).values


def _price(run: _Run, found: InteriorPoint, tol: float) -> Int[Tensor, " k"]:
    """Violators among the blocks outside the working set, worst first; keeps the multipliers that were found."""
    program = run.program
    C = program.correlations(found.V).reshape(len(run.screen), -1)
    run.screen.multipliers[run.working] = found.multipliers
    outside = torch.ones_like(C[:, 0], dtype=torch.bool)
    outside[run.working[found.kept]] = False
    target = program.problem.weight_decay * (1 + (0.1 * run.limits.tol if tol < 1e-5 else 0.3 * tol))
    wanted = 2 * _added(run)
    chunk = max(wanted, 64) if tol > 1e-5 else 512
    lower = run.screen.lower(C, outside, target, wanted=wanted, chunk=chunk)
    worst = torch.argsort(lower, descending=True)
    return worst[lower[worst] > target]


def _added(run: _Run) -> int:
    return max(10, len(run.working) // 2)


def _see(run: _Run, found: InteriorPoint, report: Report | None) -> None:
    """Judge the point of this round on the whole program, and keep the better primal and dual."""
    program, shape = run.program, run.program.shape
    U = program.problem.X.new_zeros(shape).reshape(len(run.screen), -1)
    U[run.working] = found.U
    multipliers = None if program.cone is None else run.screen.multipliers.reshape(*shape[:3], -1)
    judged = judge_program(program, ConvexPoint(U.reshape(shape), found.bias), found.V, multipliers)
    new = ProgramAnswer(judged, found.V, None if multipliers is None else multipliers.clone(), Status.STALLED, 0)
    run.best = new if run.best is None else better(run.best, new)
    entry = TraceEntry(
        time.perf_counter() - run.started,
        run.best.judgement.objective,
        run.best.judgement.dual.bound,
        len(run.working),
    )
    run.trace.append(entry)
    if report is not None:
        report(entry)


def _status(run: _Run, *, ended: bool) -> Status | None:
    status = run.limits.status(run.gap(), time.perf_counter() - run.started, len(run.trace))
    if status is not None or len(run.trace) >= _MOST_ROUNDS:
        return status or Status.MAX_ROUNDS
    return Status.STALLED if ended else None


def _next_working_set(run: _Run, found: InteriorPoint, violators: Int[Tensor, " k"], tol: float) -> Int[Tensor, " B"]:
    """Without the blocks that are all but zero, unless they came back once, and with the worst violators."""
    norms = found.U.norm(dim=1)
    used = norms > (1e-3 if tol > 1e-3 else 1e-5) * norms.max()
    kept = run.working[used | run.given_up[run.working]]
    return torch.unique(torch.cat([kept, violators[: _added(run)]]))
