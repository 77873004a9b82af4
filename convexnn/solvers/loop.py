"""The one loop: limits, trace, the judge's confirmation, and the best answer kept at all times."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor

from convexnn.ascent import ColumnPairs, evaluate
from convexnn.duality import DualPoint, Judgement, dual_bound, dual_point, judge, largest_maximum
from convexnn.neurons import Neurons
from convexnn.problem import Problem
from convexnn.result import Status, TraceEntry, relative_gap
from convexnn.solvers.sliding import SlidingFrankWolfe, SlidingState

_TRACKED = 6  # rounds near known directions before a search
_ROOM = 0.5  # share of the gap at which these end: a search will find a little more


@dataclass(frozen=True)
class Limits:
    """When to stop."""

    tol: float = 1e-4
    max_seconds: float = float("inf")
    max_rounds: int = 200


@dataclass(frozen=True)
class Answer:
    """The best network and the best bound so far."""

    neurons: Neurons
    objective: float
    bound: float
    status: Status
    trace: tuple[TraceEntry, ...]
    n_rounds: int
    V: Float[Tensor, "n K"] | None = None  # the dual point of a bound over all networks, where it is one
    pool: "Pool | None" = None


@dataclass(frozen=True)
class Pool:
    """Directions of large correlation that a search found, best first, for problems nearby."""

    U: Float[Tensor, "m d"]
    complete: bool  # the search found nothing that was not near the directions known before it


@dataclass
class _Run:
    """Best primal and dual so far: mutable, so that an interrupt loses nothing."""

    problem: Problem  # float64: what the answer is judged on
    limits: Limits
    started: float
    neurons: Neurons
    objective: float
    dual: DualPoint | None = None
    pool: Pool | None = None
    trace: list[TraceEntry] = field(default_factory=list)
    rounds_without_gain: int = 0

    @property
    def bound(self) -> float:
        return -float("inf") if self.dual is None else self.dual.bound

    def see_dual(self, dual: DualPoint) -> bool:
        better = dual.bound > self.bound
        if better:
            self.dual = dual
        return better

    def see_network(self, neurons: Neurons) -> bool:
        objective = self.problem.objective(neurons)
        better = objective < self.objective
        if better:
            self.neurons, self.objective = neurons, objective
        return better

    def note(self, n_neurons: int) -> TraceEntry:
        elapsed = time.perf_counter() - self.started
        self.trace.append(TraceEntry(elapsed, self.objective, self.bound, n_neurons))
        return self.trace[-1]

    def gap(self) -> float:
        return relative_gap(self.objective, self.bound, self.problem.floor())

    def done(self) -> bool:
        return self.gap() <= self.limits.tol

    def status(self) -> Status | None:
        if self.done():
            return Status.CONVERGED
        if time.perf_counter() - self.started > self.limits.max_seconds:
            return Status.MAX_SECONDS
        if self.rounds_without_gain > 8:
            return Status.STALLED
        return Status.MAX_ROUNDS if len(self.trace) >= self.limits.max_rounds else None


def solve(
    problem: Problem,
    solver: SlidingFrankWolfe,
    *,
    start: Neurons | None,
    limits: Limits,
    seed: int,
    dtype: torch.dtype = torch.float64,
    report: Callable[[TraceEntry], None] | None = None,
    pool: Pool | None = None,
) -> Answer:
    """Run rounds until the gap is confirmed or a limit is reached.

    The solver works in ``dtype``; objective and bound are computed from its points in float64. ``pool`` is that of an
    answer to a problem nearby: the first rounds look near its directions only, and give no bound.
    """
    started = time.perf_counter()
    working = problem.to(dtype)
    state = solver.init(working, None if start is None else start.to(dtype), None if pool is None else pool.U.to(dtype))
    neurons = state.neurons.to(torch.float64)
    run = _Run(problem, limits, started, neurons, problem.objective(neurons), pool=pool)
    try:
        status = _rounds(run, working, solver, state, seed, report)
    except KeyboardInterrupt:
        status = Status.INTERRUPTED
    V = None if run.dual is None else run.dual.V
    return Answer(run.neurons, run.objective, run.bound, status, tuple(run.trace), len(run.trace), V, run.pool)


def _rounds(
    run: _Run,
    working: Problem,
    solver: SlidingFrankWolfe,
    state: SlidingState,
    seed: int,
    report: Callable[[TraceEntry], None] | None,
) -> Status:
    generator, fresh = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(seed + 1_000_003)
    pairs = ColumnPairs.fit(working.X)
    deadline = run.started + run.limits.max_seconds
    state, ready = _tracked(run, working, solver, state, pairs, generator)
    if not (ready and run.pool is not None and run.pool.complete):
        state = solver.price(working, state, pairs, generator)
    n_searched = 0
    while True:
        V = run.problem.admit(state.V.double())
        known = evaluate(run.problem.X, V, state.candidates.U.double())
        gained = run.see_dual(dual_point(run.problem, V, known.best()))
        if run.dual is not None and run.done():
            judgement = _confirm(run, run.dual, solver, state, fresh)
            run.dual = judgement.dual
            U = torch.cat([known.U, judgement.candidates.U])
            state = replace(state, candidates=evaluate(working.X, state.V, U.to(working.X.dtype)))
        run.pool, n_searched = Pool(state.candidates.U, n_searched == 0), n_searched + 1
        entry = run.note(len(state.neurons))
        if report is not None:
            report(entry)
        status = run.status()
        if status is not None:
            return status
        state = solver.improve(
            working,
            replace(state, gap=run.gap(), objective=run.objective, idle=run.rounds_without_gain),
            pairs,
            deadline,
        )
        if not bool(torch.isfinite(state.V).all()):
            return Status.NON_FINITE
        gained |= run.see_network(state.neurons.to(torch.float64))
        run.rounds_without_gain = 0 if gained else run.rounds_without_gain + 1
        state = solver.price(working, state, pairs, generator)


def _tracked(
    run: _Run,
    working: Problem,
    solver: SlidingFrankWolfe,
    state: SlidingState,
    pairs: ColumnPairs | None,
    generator: torch.Generator,
) -> tuple[SlidingState, bool]:
    """Rounds near directions that were known before, and whether these leave no gap: then it is time for a search."""
    deadline, seen = run.started + run.limits.max_seconds, state
    for _ in range(_TRACKED if len(state.candidates) else 0):
        state = solver.track(working, state, pairs, generator)
        V = run.problem.admit(state.V.double())
        best = evaluate(run.problem.X, V, state.candidates.U.double()).best()
        gap = relative_gap(run.objective, dual_bound(run.problem, V, best), run.problem.floor())
        if gap <= _ROOM * run.limits.tol:
            return state, True
        if time.perf_counter() > deadline:
            break
        state = solver.improve(working, replace(state, gap=gap, objective=run.objective), pairs, deadline)
        if not bool(torch.isfinite(state.V).all()):
            return seen, False
        run.see_network(state.neurons.to(torch.float64))
        run.note(len(state.neurons))
    return state, False


def _confirm(
    run: _Run, dual: DualPoint, solver: SlidingFrankWolfe, state: SlidingState, fresh: torch.Generator
) -> Judgement:
    problem = run.problem
    # With the neurons of the best network among the known ones, no bound can be above its objective.
    return judge(
        problem,
        dual.V,
        state.neurons.to(torch.float64),
        effort=solver.confirming(problem),
        generator=fresh,
        known=torch.cat([state.candidates.U.double(), run.neurons.W]),
        pairs=ColumnPairs.fit(problem.X),
        enough=largest_maximum(problem, dual, run.objective * (1 - run.limits.tol)),
    )
