"""Training on a fixed set of activation patterns: which program, which solver, and what the answer is worth."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from convexnn.ascent import Candidates, ColumnPairs, distinct, evaluate
from convexnn.duality import DualPoint, dual_point, judge
from convexnn.errors import InvalidInputError
from convexnn.neurons import Neurons, no_neurons, unit_rows
from convexnn.patterns import Patterns, enumerate_patterns, improvement_probability, patterns_of, sample_patterns
from convexnn.problem import Problem
from convexnn.programs import AbstractProgram, ConvexPoint, GatedProgram, ReLUProgram
from convexnn.programs.base import neurons_of
from convexnn.result import ProgramReport, Status, TraceEntry, relative_gap
from convexnn.solvers.admm_rounds import solve_admm
from convexnn.solvers.answer import ProgramAnswer, ProgramLimits, better
from convexnn.solvers.fista import solve_fista
from convexnn.solvers.loop import Answer, Limits
from convexnn.solvers.reference import solve_reference
from convexnn.solvers.scp import sample_sphere, solve_scp
from convexnn.solvers.sliding import EARLY, confirmation_effort
from convexnn.solvers.working_set import solve_working_set

METHODS = ("auto", "interior-point", "admm", "fista", "scp", "exact", "reference", "reference-scs", "reference-mosek")
CONFIDENCE = 0.95

_INTERIOR_SAMPLES = 4000  # samples times outputs up to which the interior point is the better choice
_INTERIOR_COLUMNS = 300
_POLISH = 1e-2  # gap at which ADMM hands over where a smaller one is asked for
_FISTA_STEPS = 300  # after which the same holds for FISTA
_AROUND = 6  # cones of a neuron on a kink that a refinement tries
_ADDED = 30
_PATIENCE = 3
_ROUNDING = 1e-9  # of a correlation, relative to the weight decay


@dataclass(frozen=True)
class Restriction:
    """Which patterns, and how to solve with them."""

    method: str
    n_patterns: int
    refine: bool = False
    dtype: torch.dtype = torch.float64

    def __post_init__(self) -> None:
        if self.refine and self.method in ("fista", "scp", "exact"):
            raise InvalidInputError(
                f"refine=True adds patterns to a sampled ReLU program, which method={self.method!r} does not solve; "
                'use "interior-point", "admm" or "reference", or leave refine=False.'
            )


@dataclass(frozen=True)
class RestrictedAnswer:
    """A network, what its bound is worth, and what is known of the program behind it."""

    answer: Answer
    bound_kind: str
    report: ProgramReport


Report = Callable[[TraceEntry], None] | None


def solve_restricted(
    problem: Problem, how: Restriction, *, start: Neurons | None, limits: Limits, seed: int, report: Report = None
) -> RestrictedAnswer:
    """Choose patterns, solve their program and turn its point into a network."""
    generator = torch.Generator().manual_seed(seed)
    if how.method == "scp":
        return _scp(problem, how, limits, generator, report)
    patterns = _patterns(problem, how, start, generator)
    kind = GatedProgram if how.method == "fista" else ReLUProgram
    program: AbstractProgram = kind(problem, patterns)
    if how.refine:
        return _refined(program, how, limits, generator, report)
    try:
        found = _solve(program, how, _limits(limits, 0.0), None, report)
    except KeyboardInterrupt:
        return _interrupted(program)
    return _answer(program, found, limits)


def _patterns(problem: Problem, how: Restriction, start: Neurons | None, generator: torch.Generator) -> Patterns:
    if how.method == "exact":
        return enumerate_patterns(problem.X)
    patterns = sample_patterns(problem.X, how.n_patterns, generator)
    if start is None or len(start) == 0:
        return patterns
    own = patterns_of(problem.X, start.W, generator, around=_AROUND)
    return own.joined(patterns)


def _limits(limits: Limits, spent: float) -> ProgramLimits:
    return ProgramLimits(limits.tol, max(limits.max_seconds - spent, 1e-3), 100_000)


def _solve(
    program: AbstractProgram, how: Restriction, limits: ProgramLimits, start: ConvexPoint | None, report: Report
) -> ProgramAnswer:
    method = how.method if how.method != "auto" else _by_size(program)
    if method in ("interior-point", "exact"):
        return solve_working_set(program, limits, start=start, report=report)
    if method.startswith("reference"):
        return solve_reference(program, limits, backend=method.partition("-")[2] or "clarabel")
    return _first_order_and_polish(program, how, limits, start, report)


def _by_size(program: AbstractProgram) -> str:
    samples = program.problem.loss.targets.numel()
    small = samples <= _INTERIOR_SAMPLES and program.problem.n_inputs <= _INTERIOR_COLUMNS
    return "interior-point" if small else "admm"


def _first_order_and_polish(
    program: AbstractProgram, how: Restriction, limits: ProgramLimits, start: ConvexPoint | None, report: Report
) -> ProgramAnswer:
    """ADMM to a rough gap, or some steps of FISTA; from there the interior point where the problem is of its size."""
    started, polish = time.perf_counter(), _by_size(program) == "interior-point"
    if how.method == "fista":
        rough = replace(limits, max_steps=_FISTA_STEPS) if polish else limits
        found = solve_fista(program, rough, start=start, report=report)
    else:
        rough = replace(limits, tol=max(limits.tol, _POLISH)) if polish else limits
        found = solve_admm(program, rough, start=start, dtype=how.dtype, report=report)
    if found.judgement.gap(program.problem.floor()) <= limits.tol or not polish or found.status is Status.INTERRUPTED:
        return found
    left = replace(limits, max_seconds=limits.max_seconds - (time.perf_counter() - started))
    if left.max_seconds <= 0:  # its own status is about the rough tolerance
        return replace(found, status=Status.MAX_SECONDS)
    try:
        polished = solve_working_set(program, left, start=found.judgement.point, report=report)
    except KeyboardInterrupt:  # before it had judged a point
        return replace(found, status=Status.INTERRUPTED)
    both = better(found, polished)
    status = Status.CONVERGED if both.judgement.gap(program.problem.floor()) <= limits.tol else polished.status
    steps, trace = found.n_steps + polished.n_steps, (*found.trace, *polished.trace)
    return replace(both, status=status, trace=trace, n_steps=steps, raw=found.raw)


def _answer(program: AbstractProgram, found: ProgramAnswer, limits: Limits) -> RestrictedAnswer:
    problem, judgement = program.problem, found.judgement
    neurons = _network(program, judgement.point, limits.tol)
    objective = problem.objective(neurons)
    if found.raw is not None and program.cone is not None:
        outside = neurons_of(found.raw.U, program.signs, found.raw.bias)
        if problem.objective(outside) < objective:
            neurons, objective = outside, problem.objective(outside)
    status: Status = Status.SOLVED if found.status is Status.CONVERGED else found.status
    if relative_gap(problem.objective(_constant(problem)), judgement.dual.bound, problem.floor()) <= limits.tol:
        neurons, status = _constant(problem), Status.CONVERGED  # which training reports as NULL
        objective = problem.objective(neurons)
    bound, covered = _bound_with(program, found, neurons)
    about = _report(program, found, complete=program.patterns.complete and covered)
    # With several outputs each neuron of the program feeds one of them: other networks are not covered.
    every = about.complete and problem.loss.n_outputs == 1 and program.cone is not None
    answer = Answer(neurons, objective, bound, status, found.trace, found.n_steps)
    return RestrictedAnswer(answer, "all-patterns" if every else "sampled-program", about)


def _bound_with(program: AbstractProgram, found: ProgramAnswer, neurons: Neurons) -> tuple[float, bool]:
    """The program's bound with the network's neurons among its columns, and whether they were there already.

    Neurons that were merged, or that ADMM left outside the cones, can go below the bound of the program
    alone. If they do although every pattern was listed, the list was not complete.
    """
    dual = found.judgement.dual
    wanted = torch.relu(unit_rows(neurons.W) @ program.problem.X.T) @ dual.V
    largest = max((unit_rows(neurons.A) * wanted).sum(1).tolist(), default=0.0)
    limit = program.problem.weight_decay
    bound = dual.bound if largest <= limit else min(dual.bound, dual_point(program.problem, dual.V, largest).bound)
    return bound, largest <= limit * (1 + _ROUNDING)


def _report(program: AbstractProgram, found: ProgramAnswer, *, complete: bool) -> ProgramReport:
    patterns, judgement = program.patterns, found.judgement
    return ProgramReport(
        kind=program.name,
        n_patterns=len(patterns),
        n_drawn=patterns.n_drawn,
        complete=complete,
        objective=judgement.objective,
        bound=judgement.dual.bound,
        gap=judgement.gap(program.problem.floor()),
        improvement_probability=0.0 if complete else _probability(program.problem, patterns.n_random),
        confidence=CONFIDENCE,
    )


def _probability(problem: Problem, n_random: int) -> float:
    return improvement_probability(problem.loss.targets.numel(), n_random, 1 - CONFIDENCE) if n_random else 1.0


def _constant(problem: Problem) -> Neurons:
    return no_neurons(problem.n_inputs, problem.constant())


def _network(program: AbstractProgram, point: ConvexPoint, tol: float) -> Neurons:
    """The network of a point, without the neurons that interior points leave at almost zero."""
    full = program.network(point)
    objective = program.problem.objective(full)
    for tolerance in (1e-4, 1e-6, 1e-8):
        pruned = full.pruned(tolerance).merged()
        if program.problem.objective(pruned) <= objective * (1 + 0.01 * tol) + program.problem.floor():
            return pruned
    return full


def _interrupted(program: AbstractProgram) -> RestrictedAnswer:
    """Nothing was judged yet: the constant network and no bound."""
    constant = _constant(program.problem)
    objective = program.problem.objective(constant)
    answer = Answer(constant, objective, -math.inf, Status.INTERRUPTED, (), 0)
    return RestrictedAnswer(answer, "sampled-program", _unjudged(program))


def _unjudged(program: AbstractProgram) -> ProgramReport:
    objective, patterns = program.problem.objective(_constant(program.problem)), program.patterns
    return ProgramReport(
        kind=program.name,
        n_patterns=len(patterns),
        n_drawn=patterns.n_drawn,
        complete=patterns.complete,
        objective=objective,
        bound=-math.inf,
        gap=math.inf,
        improvement_probability=1.0,
        confidence=CONFIDENCE,
    )


def _scp(
    problem: Problem, how: Restriction, limits: Limits, generator: torch.Generator, report: Report
) -> RestrictedAnswer:
    count = how.n_patterns
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise InvalidInputError(f"n_patterns={count!r}; an integer of at least 1 is expected.")
    U = sample_sphere(problem.n_inputs, count, generator).to(problem.X.device)
    found = solve_scp(problem, U, _limits(limits, 0.0), report=report)
    neurons = found.neurons.pruned(1e-9)
    probability = _probability(problem, count)
    gap = relative_gap(found.objective, found.dual.bound, problem.floor())
    about = ProgramReport("scp", count, count, False, found.objective, found.dual.bound, gap, probability, CONFIDENCE)
    status = Status.SOLVED if found.status is Status.CONVERGED and len(neurons) else found.status
    answer = Answer(neurons, problem.objective(neurons), found.dual.bound, status, found.trace, found.n_steps)
    return RestrictedAnswer(answer, "sampled-program", about)


@dataclass
class _Refinement:
    """The best network and the best dual point so far, of any round: mutable, so that a limit loses nothing."""

    problem: Problem
    neurons: Neurons
    objective: float
    dual: DualPoint | None = None  # that fresh starts were tried on
    trace: list[TraceEntry] = field(default_factory=list)
    idle: int = 0

    @property
    def bound(self) -> float:
        return self.dual.bound if self.dual is not None else -math.inf

    def gap(self, bound: float) -> float:
        return relative_gap(self.objective, bound, self.problem.floor())

    def see(self, neurons: Neurons, objective: float) -> None:
        enough = objective < self.objective * (1 - 1e-7)
        self.idle = 0 if enough else self.idle + 1
        if objective < self.objective:
            self.neurons, self.objective = neurons, objective

    def disprove(self, U: Tensor) -> None:
        """Lower the bound to what these neurons leave of it."""
        if self.dual is not None:
            largest = max(evaluate(self.problem.X, self.dual.V, U).best(), self.problem.weight_decay)
            self.dual = dual_point(self.problem, self.dual.V, largest)

    def status(self, limits: Limits, seconds: float) -> Status | None:
        if self.gap(self.bound) <= limits.tol:
            return Status.CONVERGED
        if seconds > limits.max_seconds:
            return Status.MAX_SECONDS
        if self.idle >= _PATIENCE:
            return Status.STALLED
        return Status.MAX_ROUNDS if len(self.trace) >= limits.max_rounds else None


def _refined(
    program: AbstractProgram, how: Restriction, limits: Limits, generator: torch.Generator, report: Report
) -> RestrictedAnswer:
    """Add the patterns around the network's neurons and of neurons that violate the dual, and solve again.

    Ends when a few rounds in a row change nothing. The bound is that of a dual point against a search
    over all patterns (local search: evidence, not proof).
    """
    problem, started, point = program.problem, time.perf_counter(), None
    best = _Refinement(problem, _constant(problem), problem.objective(_constant(problem)))
    pairs, status, about = ColumnPairs.fit(problem.X), None, None
    try:
        while status is None:
            spent = time.perf_counter() - started
            found = _solve(program, how, replace(_limits(limits, spent), tol=0.3 * limits.tol), point, None)
            if found.status is Status.INTERRUPTED:
                raise KeyboardInterrupt
            about = _report(program, found, complete=program.patterns.complete)
            neurons = _network(program, found.judgement.point, limits.tol)
            best.see(neurons, problem.objective(neurons))
            candidates = _price(best, problem.admit(found.V), neurons, limits.tol, generator, pairs)
            best.trace.append(TraceEntry(time.perf_counter() - started, best.objective, best.bound, len(neurons)))
            if report is not None:
                report(best.trace[-1])
            status = best.status(limits, best.trace[-1].seconds)
            added = _new_patterns(problem, neurons, distinct(candidates, _ADDED).U, generator)
            program, point = _extended(program, found.judgement.point, added)
    except KeyboardInterrupt:
        status = Status.INTERRUPTED
    answer = Answer(best.neurons, best.objective, best.bound, status, tuple(best.trace), len(best.trace))
    return RestrictedAnswer(answer, "local-search", about or _unjudged(program))


def _price(
    best: _Refinement,
    V: Tensor,
    neurons: Neurons,
    tol: float,
    generator: torch.Generator,
    pairs: ColumnPairs | None,
) -> Candidates:
    """Search for neurons that violate V, and see what is left of the bounds: of V, and of the best so far.

    Both know the neurons of the best network, so that no bound can be above its objective.
    """
    problem, W = best.problem, best.neurons.W
    priced = judge(problem, V, neurons, effort=EARLY, generator=generator, known=W, pairs=pairs)
    if best.dual is None or best.idle or best.gap(priced.dual.bound) <= tol:
        effort = confirmation_effort(problem)
        priced = judge(problem, V, neurons, effort=effort, generator=generator, known=W, pairs=pairs)
        best.disprove(torch.cat([W, priced.candidates.U]))
        if priced.dual.bound > best.bound:
            best.dual = priced.dual
    else:
        best.disprove(torch.cat([W, priced.candidates.U]))
    return priced.candidates


def _new_patterns(problem: Problem, neurons: Neurons, U: Tensor, generator: torch.Generator) -> Patterns:
    directions = torch.cat([unit_rows(neurons.W), U]) if len(neurons) else U
    return patterns_of(problem.X, directions, generator, around=_AROUND)


def _extended(program: AbstractProgram, point: ConvexPoint, added: Patterns) -> tuple[AbstractProgram, ConvexPoint]:
    """The patterns in use and the new ones, and the point in the larger program."""
    used = point.U.norm(dim=-1)
    live = torch.nonzero((used > 1e-7 * used.max()).any(0).any(0))[:, 0]
    old = program.patterns
    kept = Patterns(old.D[live], old.gates[live], old.n_drawn)
    patterns = kept.joined(added)
    larger = replace(program, patterns=patterns)
    U = point.U.new_zeros(larger.shape)
    U[:, :, : len(live)] = point.U[:, :, live]
    return larger, ConvexPoint(U, point.bias)
