"""Robust training: which patterns, which cones, which solver, and the network that comes out."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from convexnn.errors import InvalidInputError
from convexnn.neurons import Neurons, no_neurons
from convexnn.patterns import Patterns, patterns_of
from convexnn.problem import Problem
from convexnn.programs import ConvexPoint
from convexnn.result import RobustReport, Status, TraceEntry, relative_gap
from convexnn.robust.answer import RobustAnswer
from convexnn.robust.ball import Ball, read_ball
from convexnn.robust.certified import Known, certified_objective
from convexnn.robust.duality import RobustJudgement
from convexnn.robust.first_order import solve_first_order
from convexnn.robust.in_turn import solve_in_turn
from convexnn.robust.majorise import majorise
from convexnn.robust.program import AbstractRobustProgram, HardRobustProgram, SoftRobustProgram
from convexnn.robust.reference import solve_reference
from convexnn.robust.sampling import SOURCES, RobustPatterns, sample_robust
from convexnn.robust.survival import survival, surviving
from convexnn.robust.working_set import solve_working_set
from convexnn.solvers.answer import ProgramLimits
from convexnn.solvers.loop import Answer, Limits

CONES = ("soft", "hard")
METHODS = ("global", "auto", "interior-point", "first-order", "reference")
MAJORISE = "mm"  # the refinement that majorises the certified loss

_SHARES = tuple(0.5**k for k in range(1, 31))  # of the way from the best constant to a point that is worse
_ACTIVE = 1e-4  # norm of a block, relative to the largest, from which on it is a neuron

Report = Callable[[TraceEntry], None] | None


@dataclass(frozen=True)
class Robust:
    """Train against perturbations of the features, each sample its own: see :func:`convexnn.train`.

    Args:
        eps: radius of the ball, or radii of each feature ``(d,)``: the reach of each for ``"linf"``, the semi-axes of
            an ellipsoid for ``"l2"`` and of a cross-polytope for ``"l1"``. In the units of X.
        norm: ``"linf"``, ``"l2"`` or ``"l1"``.
        cones: ``"soft"`` charges to the loss what a change of activation pattern can cost; it takes any pattern.
            ``"hard"`` forbids changes on every ball (Bai, Gautam & Sojoudi 2022): the worst case is then exact, but
            most patterns have no such weights once eps is as large as the gaps of the data. The optimum over the same
            patterns is never better with hard cones.
        patterns: ``"gap"`` (thresholds in gaps of projections of the data), ``"data"`` (Gaussian directions) or
            ``"perturbed"`` (Gaussian directions, each sample moved in its ball).
    """

    eps: Any
    norm: str = "linf"
    cones: str = "soft"
    patterns: str = "gap"

    def __post_init__(self) -> None:
        if not isinstance(self.cones, str) or self.cones not in CONES:
            raise InvalidInputError(f"cones={self.cones!r} are not known; choose one of {', '.join(CONES)}.")
        if not isinstance(self.patterns, str) or self.patterns not in SOURCES:
            raise InvalidInputError(f"patterns={self.patterns!r} is not known; choose one of {', '.join(SOURCES)}.")


@dataclass(frozen=True)
class RobustOutcome:
    """A network with its certified objective, and what is known of the program behind it."""

    answer: Answer
    report: RobustReport
    ball: Ball
    slopes: Known  # of each neuron at each sample, with which the network is certified


def check_robust(how: Robust, method: str, *, refine: bool | str, prove: str | None) -> None:
    """Raise where another setting of training does not go with robust programs."""
    if method not in METHODS:
        raise InvalidInputError(f"method={method!r} does not train robustly; choose one of {', '.join(METHODS)}.")
    if method == "first-order" and how.cones == "hard":
        raise InvalidInputError(
            'method="first-order" solves soft cones; use method="interior-point" for hard ones, or cones="soft".'
        )
    if prove is not None:
        raise InvalidInputError("robust training has no proof for patterns that were not sampled: leave prove=None.")
    if refine is True and (how.cones == "hard" or method == "reference"):
        raise InvalidInputError(
            "refine=True adds the patterns that neurons have at the samples. Neurons in hard cones have those of the "
            'program, and method="reference" solves once; use soft cones and method="auto", or leave refine=False.'
        )


def train_robust(
    problem: Problem,
    how: Robust,
    settings: tuple[str, int, bool, bool | str],
    *,
    start: Neurons | None,
    limits: Limits,
    seed: int,
    report: Report = None,
) -> RobustOutcome:
    """Sample patterns, solve their program and turn its point into a network.

    ``settings``: method, number of patterns, whether there is a first-layer bias, whether to refine.
    """
    method, n_patterns, hidden_bias, refine = settings
    cpu = torch.device("cpu")
    home, problem = problem.X.device, problem.to(cpu)
    ball = read_ball(how.eps, how.norm, problem.n_inputs - hidden_bias, hidden_bias=hidden_bias)
    generator = torch.Generator().manual_seed(seed)
    kind = SoftRobustProgram if how.cones == "soft" else HardRobustProgram
    sampled = sample_robust(
        problem.X,
        ball,
        n_patterns,
        generator,
        source=how.patterns,
        hidden_bias=hidden_bias,
        soft=how.cones == "soft",
    )
    if start is not None and len(start):
        sampled = _with_start(problem, ball, sampled, start.to(cpu), generator, soft=how.cones == "soft")
    program: AbstractRobustProgram = kind(problem, sampled.patterns, ball)
    started = time.perf_counter()
    try:
        solved = _solve(program, method, ProgramLimits(limits.tol, limits.max_seconds), report)
        solved = replace(solved, judgement=_not_above_constant(program, solved.judgement))
        if refine is True:
            program, solved = _refined(program, solved, limits, started, report)
            patterns = program.patterns
            sampled = RobustPatterns(patterns, sampled.n_sampled, len(patterns), sampled.factors)
    except KeyboardInterrupt:
        solved = None
    answer, slopes = _answer(program, solved, limits)
    if refine == MAJORISE and answer.status is not Status.INTERRUPTED:
        starts: list[tuple[Neurons, Known | None]] = [(answer.neurons, slopes)]
        if start is not None:
            starts.append((start.to(cpu), None))
        answer, slopes = _majorised(program, answer, slopes, starts, limits, started, report)
    answer = replace(answer, neurons=answer.neurons.to(home))
    return RobustOutcome(answer, _about(program, how, sampled, solved), ball, slopes)


def _with_start(
    problem: Problem, ball: Ball, sampled: RobustPatterns, start: Neurons, generator: torch.Generator, *, soft: bool
) -> RobustPatterns:
    """The patterns of a network, those of them that survive where cones are hard, and then the sampled ones."""
    own = patterns_of(problem.X, start.W, generator)
    if soft:
        both = own.joined(sampled.patterns)
        return RobustPatterns(both, sampled.n_sampled, len(both), sampled.factors)
    found = survival(problem.X, own, ball)
    kept: Patterns = surviving(own, found, ball) if bool(found.inside.any()) else own.take(found.inside)
    both = kept.joined(sampled.patterns)
    factors = torch.cat([found.factors, sampled.factors])
    return RobustPatterns(both, len(factors), len(both), factors)


def _solve(program: AbstractRobustProgram, method: str, limits: ProgramLimits, report: Report) -> RobustAnswer:
    """Soft cones start with the first-order method where they are large, unless one method is asked for."""
    if method == "reference":
        return solve_reference(program, limits)
    if method == "first-order":
        return solve_first_order(program, limits, report=report)
    if program.soft and method != "interior-point":
        return solve_in_turn(program, limits, report=report)
    return solve_working_set(program, limits, report=report)


def _not_above_constant(program: AbstractRobustProgram, judged: RobustJudgement) -> RobustJudgement:
    """A run that was cut short can be above the best constant; the segment between the two may hold better points."""
    zero, point = program.zero(), judged.point
    if judged.objective <= program.objective(zero):
        return judged
    parts = [ConvexPoint(t * point.U, t * point.bias + (1 - t) * zero.bias) for t in _SHARES]
    best = min([zero, *parts], key=program.objective)
    return replace(judged, point=best, objective=program.objective(best))


def _majorised(
    program: AbstractRobustProgram,
    answer: Answer,
    slopes: Known,
    starts: list[tuple[Neurons, Known | None]],
    limits: Limits,
    started: float,
    report: Report,
) -> tuple[Answer, Known]:
    """Lower the certified loss of the network, and of the one to start from if there is one; keep the better end."""
    trace = list(answer.trace)

    def see(entry: TraceEntry) -> None:
        trace.append(replace(entry, seconds=time.perf_counter() - started, bound=answer.bound))
        if report is not None:
            report(trace[-1])

    for neurons, known in starts:
        left = limits.max_seconds - (time.perf_counter() - started)
        if len(neurons) == 0 or left <= 0:
            continue
        some = ProgramLimits(limits.tol, left, limits.max_rounds)
        found = majorise(program.problem, program.ball, neurons, some, known=known, report=see)
        if found.objective < answer.objective:
            answer = replace(answer, neurons=found.neurons, objective=found.objective)
            slopes = found.slopes
        if found.status is Status.INTERRUPTED:
            answer = replace(answer, status=found.status)
            break
    return replace(answer, trace=tuple(trace)), slopes


def _refined(
    program: AbstractRobustProgram, solved: RobustAnswer, limits: Limits, started: float, report: Report
) -> tuple[AbstractRobustProgram, RobustAnswer]:
    """Add the patterns that the active neurons have at the samples, and solve again until that gains nothing.

    A neuron of soft cones can be on another side than its pattern says; with its own it may be charged less. Old
    patterns stay, so that the objective never rises. ``started`` is when the time limit began.
    """
    generator = torch.Generator().manual_seed(0)
    for _ in range(limits.max_rounds):
        old, point = solved.judgement.objective, solved.judgement.point
        norms = point.U.norm(dim=-1)
        own = patterns_of(program.problem.X, point.U[norms > _ACTIVE * norms.max()], generator)
        joined = program.patterns.joined(own)
        left = limits.max_seconds - (time.perf_counter() - started)
        if len(joined) == len(program.patterns) or left <= 0 or solved.status is Status.INTERRUPTED:
            break
        wider = replace(program, patterns=joined)
        start = point.U.new_zeros((2, 1, len(joined), point.U.shape[-1]))
        start[:, :, : len(program.patterns)] = point.U
        try:
            found = solve_working_set(
                wider, ProgramLimits(limits.tol, left), start=ConvexPoint(start, point.bias), report=report
            )
        except KeyboardInterrupt:  # before it had judged a point
            return program, replace(solved, status=Status.INTERRUPTED)
        if found.judgement.objective >= old:
            break
        program, solved = wider, replace(found, trace=(*solved.trace, *found.trace))
        if found.judgement.objective > old * (1 - limits.tol):
            break
    return program, solved


def _about(
    program: AbstractRobustProgram, how: Robust, sampled: RobustPatterns, solved: RobustAnswer | None
) -> RobustReport:
    radii = program.ball.radii[: program.problem.n_inputs]
    moving = radii[radii > 0]
    same = len(moving) > 0 and bool((moving == moving[0]).all())
    eps = (float(moving[0]),) if same else tuple(radii.tolist())
    largest = sampled.factors * float(radii.max()) if len(moving) else sampled.factors[:0]  # of a point: nothing
    objective = program.objective(program.zero()) if solved is None else solved.judgement.objective
    bound = -math.inf if solved is None else solved.judgement.bound
    return RobustReport(
        cones=how.cones,
        norm=how.norm,
        eps=eps,
        n_sampled=sampled.n_sampled,
        n_surviving=sampled.n_surviving,
        n_cutting=sampled.n_cutting,
        objective=objective,
        bound=bound,
        gap=relative_gap(objective, bound, program.problem.floor()),
        largest_eps=tuple(largest.tolist()),
    )


def _answer(program: AbstractRobustProgram, solved: RobustAnswer | None, limits: Limits) -> tuple[Answer, Known]:
    """And the slopes of the network's neurons."""
    problem = program.problem
    constant, none = no_neurons(problem.n_inputs, problem.constant()), problem.X[:, :0]
    worth = certified_objective(problem, program.ball, constant)
    if solved is None:
        return Answer(constant, worth, -math.inf, Status.INTERRUPTED, (), 0), none
    bound, status = solved.judgement.bound, solved.status
    if relative_gap(worth, bound, problem.floor()) <= limits.tol:
        return Answer(constant, worth, bound, Status.CONVERGED, solved.trace, len(solved.trace)), none
    if not bool((solved.judgement.point.U != 0).any()):
        return Answer(constant, worth, bound, status, solved.trace, len(solved.trace)), none
    neurons, slopes, objective = _network(program, solved, limits.tol)
    status = Status.SOLVED if status is Status.CONVERGED else status
    return Answer(neurons, objective, bound, status, solved.trace, len(solved.trace)), slopes


def _network(
    program: AbstractRobustProgram, solved: RobustAnswer, tol: float
) -> tuple[Neurons, Float[Tensor, "n k"], float]:
    """The network of the point, without the neurons that interior points leave at almost zero.

    Neurons that point the same way stay apart: with soft cones their slopes can differ.
    """
    problem, point = program.problem, program.feasible(solved.judgement.point)
    norms = point.U.norm(dim=-1, keepdim=True)
    for tolerance in (1e-4, 1e-6, 1e-8, 0.0):
        pruned = replace(point, U=torch.where(norms > tolerance * norms.max(), point.U, 0.0))
        live = torch.nonzero(pruned.U[:, 0].norm(dim=-1) > 0)[:, 1]
        neurons, slopes = program.network(pruned), program.mask[live].T
        value = certified_objective(problem, program.ball, neurons, slopes)
        if value <= solved.judgement.objective * (1 + 0.01 * tol) + problem.floor():
            break
    return neurons, slopes, value


def certified_loss(problem: Problem, neurons: Neurons, outcome: RobustOutcome) -> float:
    """The certified objective of the network of a run, from its weights."""
    cpu = torch.device("cpu")
    known = outcome.slopes if outcome.slopes.shape[-1] == len(neurons) else None  # a constant network has a dead neuron
    return certified_objective(problem.to(cpu), outcome.ball, neurons.to(cpu), known)


def read_robust(value: Any) -> Robust:
    """A :class:`Robust`, or one of a radius alone."""
    return value if isinstance(value, Robust) else Robust(value)
