"""Robust programs to a small certified gap: the interior point on a working set of blocks, with exact pricing.

Blocks outside the working set are priced at its dual point by projections; multipliers of earlier
projections screen most of them without a new one. What the answer is worth is said by
:mod:`convexnn.robust.duality` for the whole program.
"""

import time
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from convexnn.programs import ConvexPoint
from convexnn.result import Status, TraceEntry
from convexnn.robust.answer import RobustAnswer, better
from convexnn.robust.duality import RobustDual, RobustJudgement, admitted, correlations, judge_robust
from convexnn.robust.interior import InteriorOptions, point_of, solve_blocks
from convexnn.robust.iterates import Solved
from convexnn.robust.pricing import MOST_STEPS, Cones, price
from convexnn.robust.program import AbstractRobustProgram
from convexnn.solvers.answer import ProgramLimits, Report

FIRST = 20  # blocks
_SMALL = 20_000  # entries (blocks, columns) times columns, up to which all blocks are in the first working set
_FIRST_TOL = 1e-2
_FINEST = 0.5  # of the tolerance, of the program restricted to the working set
_WITH = 1e-3  # by which the tolerance falls where there are violators, and where there are none
_WITHOUT = 0.0
_LAST = 12  # violators from which on the working set only grows
_MOST_ROUNDS = 60
_MOST_COLUMNS = 25_000  # of the blocks in the working set together: their matrix has five gigabytes
_FEW_STEPS = 20  # of the pricing while the working set lacks many blocks: the worst violators show early


@dataclass
class _Run:
    """Working set, best judgement and the multipliers known of every block."""

    program: AbstractRobustProgram
    limits: ProgramLimits
    started: float
    working: Int[Tensor, " B"]
    multipliers: Float[Tensor, "N n"]
    given_up: Bool[Tensor, " N"]  # once: blocks that come back stay
    best: RobustJudgement | None = None
    trace: list[TraceEntry] = field(default_factory=list)
    n_steps: int = 0

    def gap(self) -> float:
        return float("inf") if self.best is None else self.best.gap(self.program.problem.floor())


def step_cost(program: AbstractRobustProgram, n_blocks: int) -> float:
    """Multiplications of one step of the interior point with soft cones: a product of rows and a factorisation."""
    n, N = len(program.problem.X), n_blocks * (program.problem.n_inputs + 1)
    return n * N**2 + N**3 / 3


def solve_working_set(
    program: AbstractRobustProgram,
    limits: ProgramLimits,
    *,
    start: ConvexPoint | None = None,
    report: Report | None = None,
) -> RobustAnswer:
    """Solve to a relative gap of ``limits.tol``; blocks that are not zero in ``start`` are in the first working set."""
    S, P, _ = program.shape
    multipliers = program.problem.X.new_zeros((S * P, len(program.problem.X)))
    given_up = torch.zeros(S * P, dtype=torch.bool, device=multipliers.device)
    run = _Run(program, limits, time.perf_counter(), _first_blocks(program, start), multipliers, given_up)
    try:
        status = _rounds(run, report)
    except KeyboardInterrupt:
        if run.best is None:
            raise
        status = Status.INTERRUPTED
    assert run.best is not None
    return RobustAnswer(run.best, status, run.n_steps, tuple(run.trace))


def _rounds(run: _Run, report: Report | None) -> Status:
    finest = _FINEST * run.limits.tol
    tol = finest if len(run.working) == len(run.multipliers) else max(_FIRST_TOL, finest)
    while True:
        deadline = run.started + run.limits.max_seconds
        options = InteriorOptions(tol, deadline=deadline)
        found = solve_blocks(run.program, run.working, options, run.given_up[run.working])
        run.n_steps += found.n_steps
        run.multipliers[run.working] = found.multipliers
        if len(run.working) == len(run.multipliers):  # the multipliers of blocks that were given up may do
            _judge(run, found)
            if run.gap() <= run.limits.tol:
                _note(run, report)
                return Status.CONVERGED
        room = max(FIRST, _MOST_COLUMNS // (run.program.problem.n_inputs + 1)) - len(found.kept)
        violators = _price(run, found, tol)[: max(0, room)]
        _judge(run, found)
        _note(run, report)
        status = run.limits.status(run.gap(), time.perf_counter() - run.started, 0)
        if status is not None:
            return status
        if len(run.trace) >= _MOST_ROUNDS:
            return Status.MAX_ROUNDS
        if len(violators) == 0 and tol <= finest and len(found.kept) == len(run.working):
            return Status.STALLED
        before = run.working
        run.working = _next_working_set(run, found, violators, tol) if len(violators) else before[found.kept]
        run.given_up[before[~torch.isin(before, run.working)]] = True
        run.given_up[before] |= ~torch.isin(torch.arange(len(before), device=before.device), found.kept)
        if len(violators) < 10 or tol > 1e-2:
            tol = max(tol * (_WITH if len(violators) else _WITHOUT), finest)


def _first_blocks(program: AbstractRobustProgram, start: ConvexPoint | None) -> Int[Tensor, " B"]:
    """Those of the start, and those whose directions gain most at the constant network."""
    S, P, d = program.shape
    V = program.problem.dual_point(program.output(program.zero()))[:, 0]
    n, like = len(V), program.problem.X
    constant = RobustDual(V.clamp(min=0.0), (-V).clamp(min=0.0), torch.zeros_like(like), like.new_zeros((S, 0, n)))
    dual = admitted(program, constant)
    gates = program.patterns.gates / program.patterns.gates.norm(dim=1, keepdim=True)
    score = (correlations(program, dual) * gates).sum(-1)
    if program.soft:
        excess = (-program.slack(gates.expand(S, -1, -1))).clamp(min=0.0)
        score = score - (excess * torch.stack([dual.above, dual.below])[:, None]).sum(-1)
    score = score.reshape(-1)
    if start is not None:
        score = score + torch.where(start.U.reshape(S * P, d).norm(dim=1) > 0, torch.inf, 0.0)
    every = S * P * d * d <= _SMALL
    count = S * P if every else min(S * P, max(FIRST, int(torch.isinf(score).sum())))
    return torch.sort(torch.argsort(score, descending=True)[:count]).values


def _price(run: _Run, found: Solved, tol: float) -> Int[Tensor, " k"]:
    """Violators among the blocks outside the working set, worst first; keeps the multipliers that were found."""
    program, (_, P, _) = run.program, run.program.shape
    C = correlations(program, found.dual).reshape(len(run.multipliers), -1)
    limit = program.problem.weight_decay
    target = limit * (1 + (0.1 * run.limits.tol if tol < 1e-4 else 0.3 * tol))
    steps = MOST_STEPS if tol <= _FINEST * run.limits.tol else _FEW_STEPS
    outside = torch.ones_like(C[:, 0], dtype=torch.bool)
    outside[run.working[found.kept]] = False
    lower = torch.zeros_like(C[:, 0])
    for s, charge in enumerate((found.dual.above, found.dual.below)):
        part = torch.nonzero(outside[s * P : (s + 1) * P])[:, 0]
        if len(part):
            lower[s * P + part] = _price_sign(run, C, s * P + part, charge if program.soft else None, (target, steps))
    worst = torch.argsort(lower, descending=True)
    return worst[lower[worst] > target]


def _price_sign(
    run: _Run,
    C: Float[Tensor, "N d"],
    index: Int[Tensor, " k"],
    charge: Float[Tensor, " n"] | None,
    aim: tuple[float, int],
) -> Float[Tensor, " k"]:
    """Lower bounds of what these blocks, of one sign, reach; zero where the multipliers at hand exclude them.

    ``aim``: what counts as a violation, and how many steps may be spent.
    """
    program, P, (target, max_steps) = run.program, run.program.shape[1], aim
    gates = program.patterns.gates[index % P]
    centre = gates / gates.norm(dim=1, keepdim=True)
    cones = Cones(program.problem.X, program.sides[index % P], centre, program.ball, charge)
    lower = torch.zeros_like(C[index, 0])
    left = cones.upper(C[index], run.multipliers[index]) > target
    if bool(left.any()):
        prices = price(cones.take(left), C[index[left]], target, accuracy=1e-7, max_steps=max_steps)
        lower[left] = prices.lower
        run.multipliers[index[left]] = prices.multipliers
    return lower


def _judge(run: _Run, found: Solved) -> None:
    """Judge the point of this round on the whole program, and keep the better primal and dual."""
    program, (S, P, _) = run.program, run.program.shape
    multipliers = run.multipliers.reshape(S, P, -1)
    dual = RobustDual(found.dual.below, found.dual.above, found.dual.worst, multipliers)
    run.best = better(run.best, judge_robust(program, point_of(program, run.working, found), dual))


def _note(run: _Run, report: Report | None) -> None:
    """The best that is known after this round."""
    assert run.best is not None
    elapsed = time.perf_counter() - run.started
    run.trace.append(TraceEntry(elapsed, run.best.objective, run.best.bound, len(run.working)))
    if report is not None:
        report(run.trace[-1])


def _next_working_set(run: _Run, found: Solved, violators: Int[Tensor, " k"], tol: float) -> Int[Tensor, " B"]:
    """Without the blocks that are all but zero, unless few are missing: then those come back by turns."""
    if len(violators) <= _LAST:
        return torch.unique(torch.cat([run.working, violators]))
    norms = found.u.norm(dim=1)
    used = (norms > (1e-2 if tol > 1e-3 else 1e-4) * norms.max()) | run.given_up[run.working]
    added = max(10, len(run.working) // 2)
    return torch.unique(torch.cat([run.working[used], violators[:added]]))
