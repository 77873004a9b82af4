"""The solver of parallel programs: an interior point on the branches that matter, and exact pricing of the others."""

import time
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from convexnn.deep.judging import ParallelJudgement, judge_dual, judge_primal
from convexnn.deep.parallel import ParallelPoint, ParallelProgram
from convexnn.duality import DualPoint
from convexnn.projection import price_cones
from convexnn.result import Status, TraceEntry, relative_gap
from convexnn.solvers.answer import ProgramLimits, Report
from convexnn.solvers.interior import InteriorOptions, InteriorPoint, solve_map

_FIRST = 40
_FIRST_TOL = 3e-2
_FALL = 0.03  # of the tolerance from round to round
_MOST_ROUNDS = 60
_MOST_STEPS = 200
_CHUNK = 256  # branches that are priced together
_SHARES = (0.05, 0.5)  # sizes of the start, see InteriorOptions
_GONE = 1e-5  # norm, relative to the largest, at which a block leaves the working set


@dataclass(frozen=True)
class ParallelAnswer:
    """A judged point of a program, its dual point, and how the run ended."""

    judgement: ParallelJudgement
    V: Float[Tensor, "n K"]
    status: Status
    trace: tuple[TraceEntry, ...] = field(repr=False, default=())


@dataclass
class _Run:
    """Working set, best point, and multipliers of every block: mutable, so that an interrupt loses nothing."""

    program: ParallelProgram
    limits: ProgramLimits
    started: float
    working: Int[Tensor, " B"]
    multipliers: Float[Tensor, "N r"]
    point: ParallelPoint
    objective: float
    dual: DualPoint
    V: Float[Tensor, "n K"]
    given_up: Bool[Tensor, " N"]
    trace: list[TraceEntry] = field(default_factory=list)

    def gap(self) -> float:
        return relative_gap(self.objective, self.dual.bound, self.program.problem.floor())

    def answer(self, status: Status) -> ParallelAnswer:
        judgement = ParallelJudgement(self.point, self.objective, self.dual)
        return ParallelAnswer(judgement, self.V, status, tuple(self.trace))


def solve_parallel(
    program: ParallelProgram,
    limits: ProgramLimits,
    *,
    start: Int[Tensor, " k"] | None = None,
    report: Report | None = None,
) -> ParallelAnswer:
    """Solve to a relative gap of ``limits.tol``; blocks ``start`` are in the first working set.

    Ctrl-C and the time limit return the best point and the best bound so far.
    """
    run = _begin(program, limits, start)
    try:
        return run.answer(_rounds(run, report))
    except KeyboardInterrupt:
        return run.answer(Status.INTERRUPTED)


def _begin(program: ParallelProgram, limits: ProgramLimits, start: Int[Tensor, " k"] | None) -> _Run:
    zero, started = program.zero(), time.perf_counter()
    V = program.problem.dual_point(program.output(zero))
    multipliers = V.new_zeros((program.n_blocks, len(program.cones.row_sizes)))
    score = (program.correlations(V) * program.centre.repeat(2 * program.n_outputs, 1)).sum(1)
    if start is not None:
        score[start] = torch.inf
    count = min(max(_FIRST * program.n_outputs, 0 if start is None else len(start)), len(score))
    working = torch.sort(torch.topk(score, count).indices).values
    dual, objective = judge_dual(program, V, multipliers), program.objective(zero)
    given_up = torch.zeros(program.n_blocks, dtype=torch.bool)
    return _Run(program, limits, started, working, multipliers, zero, objective, dual, V, given_up)


def _rounds(run: _Run, report: Report | None) -> Status:
    tol, status = _FIRST_TOL, None
    while status is None:
        deadline = run.started + run.limits.max_seconds
        options = InteriorOptions(tol, _MOST_STEPS, deadline)
        found = _interior(run, options)
        run.multipliers[run.working] = found.multipliers
        violators = _price(run, found, tol)
        _see(run, found, report)
        finest = tol <= 0.5 * run.limits.tol
        status = _status(run, stalled=finest and len(violators) == 0)
        run.working = _next(run, found, violators)
        if len(violators) < 10 or tol > 1e-2:
            tol = max(tol * _FALL, 0.5 * run.limits.tol)
    return status


def _interior(run: _Run, options: InteriorOptions) -> InteriorPoint:
    """The program of the working set; a run that stalls is tried again from other sizes of the start."""
    maps, firm, best = run.program.blocks(run.working), run.given_up[run.working], None
    for share in _SHARES:
        found = solve_map(run.program, maps, replace(options, share=share), firm=firm)
        best = found if best is None or found.gap < best.gap else best
        if found.gap <= options.tol or len(found.kept) < len(run.working) or time.perf_counter() > options.deadline:
            break
    assert best is not None
    return best


def _status(run: _Run, *, stalled: bool) -> Status | None:
    status = run.limits.status(run.gap(), time.perf_counter() - run.started, len(run.trace))
    if status is not None or len(run.trace) >= _MOST_ROUNDS:
        return status or Status.MAX_ROUNDS
    return Status.STALLED if stalled else None


def _price(run: _Run, found: InteriorPoint, tol: float) -> Int[Tensor, " k"]:
    """Blocks outside the working set that violate the dual point, or that a projection does not decide, worst first.

    The multipliers of all that were priced are kept: they bound what a block can reach.
    """
    program = run.program
    V = program.problem.admit(found.V)
    C = program.correlations(V)
    outside = torch.ones(program.n_blocks, dtype=torch.bool)
    outside[run.working[found.kept]] = False
    target = program.problem.weight_decay * (1 + (0.1 * run.limits.tol if tol < 1e-5 else 0.3 * tol))
    left = torch.nonzero(outside)[:, 0]
    left = left[_upper(run, C, left) > target]
    score = (C[left] * program.centre[program.places(left)[2]]).sum(1)
    reach, wanted = C.new_zeros(len(C)), 2 * _added(run)
    for part in left[torch.argsort(score, descending=True)].split(_CHUNK):
        if len(part) == 0 or time.perf_counter() > run.started + run.limits.max_seconds:
            break
        branches = program.places(part)[2]
        prices = price_cones(program.cones.take(branches), C[part], program.centre[branches], target)
        run.multipliers[part] = prices.multipliers
        reach[part] = torch.where(prices.upper > target, prices.upper, prices.lower)
        if int((reach > target).sum()) >= wanted:
            break
    worst = torch.argsort(reach, descending=True)
    return worst[reach[worst] > target]


def _upper(run: _Run, C: Float[Tensor, "N e"], index: Int[Tensor, " k"]) -> Float[Tensor, " k"]:
    """Upper bounds by the multipliers at hand, at their best scale; they are rescaled in place."""
    out = [C.new_zeros(0)]
    for part in index.split(_CHUNK):
        pull = run.program.cones.take(run.program.places(part)[2]).adjoint(run.multipliers[part])
        scale = (-(C[part] * pull).sum(1) / (pull * pull).sum(1).clamp(min=1e-300)).clamp(min=0.0)
        run.multipliers[part] *= scale[:, None]
        out.append((C[part] + scale[:, None] * pull).norm(dim=1))
    return torch.cat(out)


def _added(run: _Run) -> int:
    return max(10, len(run.working) // 2)


def _see(run: _Run, found: InteriorPoint, report: Report | None) -> None:
    """Judge the point of this round on the whole program; the better primal and the better dual are kept."""
    point, objective = judge_primal(run.program, ParallelPoint(run.working, found.U, found.bias))
    if objective < run.objective:
        run.point, run.objective = point, objective
    dual = judge_dual(run.program, found.V, run.multipliers)
    if dual.bound > run.dual.bound:
        run.dual, run.V = dual, found.V
    entry = TraceEntry(time.perf_counter() - run.started, run.objective, run.dual.bound, len(run.working))
    run.trace.append(entry)
    if report is not None:
        report(entry)


def _next(run: _Run, found: InteriorPoint, violators: Int[Tensor, " k"]) -> Int[Tensor, " B"]:
    """Without the blocks that are all but zero, unless they came back once, and with the worst violators."""
    if len(violators) == 0:
        return run.working
    norms = found.U.norm(dim=1)
    stays = (norms > _GONE * norms.max()) | run.given_up[run.working]
    run.given_up[run.working[~stays]] = True
    return torch.unique(torch.cat([run.working[stays], violators[: _added(run)]]))


def shrunk(point: ParallelPoint, program: ParallelProgram, tol: float) -> ParallelPoint:
    """Without the blocks that an interior point leaves at almost zero, where that costs less than ``tol`` of it."""
    objective, norms = program.objective(point), point.U.norm(dim=1)
    for tolerance in (1e-3, 1e-4, 1e-6, 1e-8):
        keep = norms > tolerance * (norms.max() if len(norms) else 0.0)
        small = replace(point, index=point.index[keep], U=point.U[keep])
        if program.objective(small) <= objective * (1 + 0.01 * tol) + program.problem.floor():
            return small
    return point
