"""The one loop: limits, trace, the judge's confirmation, and the best answer kept at all times."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from convexnn.duality import Judgement, judge
from convexnn.neurons import Neurons
from convexnn.pricing import ColumnPairs
from convexnn.problem import Problem
from convexnn.result import Status, TraceEntry, relative_gap
from convexnn.solvers.sliding import SlidingFrankWolfe, SlidingState


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


@dataclass
class _Record:
    """Best primal and dual; the only mutable thing, so that an interrupt loses nothing."""

    neurons: Neurons
    objective: float
    bound: float
    trace: list[TraceEntry]
    started: float

    def see_network(self, problem: Problem, neurons: Neurons) -> None:
        objective = problem.objective(neurons)
        if objective < self.objective:
            self.neurons, self.objective = neurons, objective

    def see_bound(self, bound: float, *, replaces: bool = False) -> None:
        self.bound = bound if replaces else max(self.bound, bound)

    def note(self, n_neurons: int) -> None:
        elapsed = time.perf_counter() - self.started
        self.trace.append(TraceEntry(elapsed, self.objective, self.bound, n_neurons))

    def gap(self) -> float:
        return relative_gap(self.objective, self.bound)


def solve(
    problem: Problem,
    solver: SlidingFrankWolfe,
    *,
    start: Neurons | None,
    limits: Limits,
    seed: int,
    report: Callable[[TraceEntry], None] | None = None,
) -> Answer:
    """Run rounds until the gap is confirmed or a limit is reached."""
    started = time.perf_counter()
    state = solver.init(problem, start)
    record = _Record(state.neurons, problem.objective(state.neurons), -float("inf"), [], started)
    rounds = 0
    try:
        status, rounds = _rounds(problem, solver, state, record, limits, seed, report)
    except KeyboardInterrupt:
        status, rounds = Status.INTERRUPTED, len(record.trace)
    return Answer(record.neurons, record.objective, record.bound, status, tuple(record.trace), rounds)


def _rounds(
    problem: Problem,
    solver: SlidingFrankWolfe,
    state: SlidingState,
    record: _Record,
    limits: Limits,
    seed: int,
    report: Callable[[TraceEntry], None] | None,
) -> tuple[Status, int]:
    generator, fresh = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(seed + 1_000_003)
    pairs = ColumnPairs.fit(problem.X)
    n_rounds = 0
    while True:
        n_rounds += 1
        state = solver.price(problem, state, pairs, generator)
        record.see_bound(state.bound)
        if record.gap() <= limits.tol:
            judgement = _confirm(problem, solver, state, fresh, pairs)
            record.see_bound(judgement.bound, replaces=True)
            state = replace(state, candidates=judgement.candidates)
        record.note(len(state.neurons))
        if report is not None:
            report(record.trace[-1])
        state = replace(state, gap=record.gap())
        status = _verdict(problem, state, record, limits, n_rounds)
        if status is not None:
            return status, n_rounds
        state = solver.improve(problem, state, pairs)
        record.see_network(problem, state.neurons)


def _confirm(
    problem: Problem,
    solver: SlidingFrankWolfe,
    state: SlidingState,
    fresh: torch.Generator,
    pairs: ColumnPairs | None,
) -> Judgement:
    n_starts = 4 * solver.n_starts
    known = state.candidates.U
    return judge(
        problem, state.V, state.neurons, n_starts=n_starts, generator=fresh, known=known, pairs=pairs
    )


def _verdict(
    problem: Problem, state: SlidingState, record: _Record, limits: Limits, n_rounds: int
) -> Status | None:
    if not torch.isfinite(state.V).all():
        return Status.NON_FINITE
    if record.gap() <= limits.tol:
        return Status.NULL if len(record.neurons) == 0 else Status.CONVERGED
    if time.perf_counter() - record.started > limits.max_seconds:
        return Status.MAX_SECONDS
    return Status.MAX_ROUNDS if n_rounds >= limits.max_rounds else None
