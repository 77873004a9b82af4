"""Training under constraints: the program over all points, its solution, and the network that comes out."""

import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor

from convexnn.ascent import Candidates, distinct, evaluate
from convexnn.constrained.duality import ConstrainedDual, ConstrainedJudgement, scaled_dual
from convexnn.constrained.feasibility import examined
from convexnn.constrained.interior import InteriorLimits, allowed, better, ended, solve_interior
from convexnn.constrained.program import ConstrainedProgram, Rows, read_rows, widened
from convexnn.constrained.reference import solve_reference
from convexnn.constraints import Constraints
from convexnn.errors import InvalidInputError, InvalidTypeError, SolverError, SolverWarning
from convexnn.neurons import Neurons, no_neurons, unit_rows
from convexnn.patterns import Patterns, patterns_of, sample_patterns
from convexnn.pricing import search, starting_points
from convexnn.problem import Problem, reduce_to_rank
from convexnn.programs import GatedProgram, ReLUProgram
from convexnn.result import ConstraintReport, ProgramReport, Status, TraceEntry, relative_gap
from convexnn.solvers.answer import ProgramLimits
from convexnn.solvers.loop import Answer, Limits
from convexnn.solvers.sliding import EARLY, confirmation_effort

METHODS = ("global", "auto", "interior-point", "fista", "reference")
LOSSES = ("squared", "logistic", "hinge")

_SHARES = (0.5, 5.0, 50.0)  # starts in turn where runs stall
_ACTIVE = (3e-2, 3e-3, 3e-4, 1e-5)  # norms of blocks, relative to the largest, from which on they may be neurons
_AROUND = 4  # cones of a neuron on a kink that a refinement tries
_ADDED = 30
_ROUNDING = {"reference": 1000.0}  # times what the program allows; cvxpy has tolerances of its own
_USUAL_ROUNDING = 10.0  # the network rounds as well
_PATIENCE = 3
_ROUGH = 1e-4  # a gap above which cvxpy takes over from an interior point that stalled
_SMALL = 200_000  # rows of cones up to which it does

Report = Callable[[TraceEntry], None] | None


@dataclass(frozen=True)
class ConstrainedSettings:
    """How to train: method, number of patterns, whether there is a first-layer bias, whether to add patterns."""

    method: str
    n_patterns: int
    hidden_bias: bool
    refine: bool

    @property
    def searches(self) -> bool:
        """Whether patterns are added until nothing improves."""
        return self.refine or self.method == "global"


@dataclass(frozen=True)
class ConstrainedOutcome:
    """A network with what is known of the program behind it, and the points and rows to check it on."""

    answer: Answer
    bound_kind: str
    program: ProgramReport
    points: Float[Tensor, "N c"]  # features
    rows: Rows
    multipliers: Float[Tensor, " m"]  # in the user's units
    tolerance: float  # of A f - b in the user's units, of the row with the largest weights

    def report(self, F: Float[Tensor, "N 1"]) -> ConstraintReport:
        """The constraints at these outputs of the network itself; warns where it does not keep to them."""
        rows = self.rows
        limits, excess = rows.b * rows.scales, rows.excess(F).clamp(min=0.0)
        worst = int((excess / rows.scales).argmax())  # a row of larger weights may be off by more
        most = self.tolerance * float(rows.scales[worst] / rows.scales.max())
        if float(excess[worst]) > most:
            warnings.warn(
                f"the network violates a constraint ({rows.names[worst]}) by {float(excess[worst]):.2g} (tolerance "
                f"{most:.1e}): training ended as {self.answer.status.name}. Raise max_seconds, or try another method.",
                SolverWarning,
                stacklevel=4,
            )
        return ConstraintReport(
            names=rows.names,
            values=tuple(((rows.A @ F[:, 0]) * rows.scales).tolist()),
            limits=tuple(limits.tolist()),
            multipliers=tuple(self.multipliers.tolist()),
            violation=float(excess.max()),
            tolerance=self.tolerance,
        )


def check_constrained(constraints: object, settings: ConstrainedSettings, problem: Problem, others: set[str]) -> None:
    """Raise where another setting of training does not go with constraints; ``others`` were asked for besides."""
    if not isinstance(constraints, Constraints):
        raise InvalidTypeError(f"constraints={constraints!r}; a convexnn.Constraints is expected.")
    if settings.method not in METHODS:
        raise InvalidInputError(
            f"method={settings.method!r} does not take constraints; choose one of {', '.join(METHODS)}."
        )
    if others:
        raise InvalidInputError(f"constraints do not go with {', '.join(sorted(others))} yet: leave one of them out.")
    if problem.loss.name not in LOSSES or problem.loss.n_outputs != 1:
        raise InvalidInputError(
            f"constraints are on one output of the losses {', '.join(LOSSES)}; got {problem.loss.name!r} with "
            f"{problem.loss.n_outputs} outputs."
        )
    if settings.refine and settings.method in ("fista", "reference"):
        raise InvalidInputError(f'refine=True does not go with method={settings.method!r}; use "interior-point".')


def train_constrained(
    problem: Problem,
    constraints: Constraints,
    features: Float[Tensor, "n c"],
    settings: ConstrainedSettings,
    *,
    start: Neurons | None,
    limits: Limits,
    seed: int,
    report: Report = None,
) -> ConstrainedOutcome:
    """Sample patterns of all points, solve their program and turn its point into a network.

    Raises:
        InfeasibleConstraintsError: no network with these patterns meets the constraints.
    """
    problem = problem.to(torch.device("cpu"))
    points, rows = read_rows(constraints, features)
    X = torch.cat([points, torch.ones_like(points[:, :1])], 1) if settings.hidden_bias else points
    wide, reduction = reduce_to_rank(widened(problem, X))
    problem = replace(problem, X=wide.X[: len(features)])
    generator = torch.Generator().manual_seed(seed)
    patterns = sample_patterns(wide.X, settings.n_patterns, generator)
    if start is not None and len(start):
        own = reduction.restrict(start.to(torch.device("cpu")))
        patterns = patterns_of(wide.X, own.W, generator, around=_AROUND).joined(patterns)
    kind = GatedProgram if settings.method == "fista" else ReLUProgram
    run = _Run(ConstrainedProgram(problem, kind(wide, patterns), rows), settings, limits, generator, report)
    status = _rounds(run) if settings.searches else _once(run)
    assert run.neurons is not None
    assert run.about is not None
    assert run.dual is not None
    neurons, dual = reduction.lift(run.neurons), run.dual
    bound = min(dual.bound, run.objective)
    answer = Answer(neurons, run.objective, bound, status, tuple(run.trace), len(run.trace))
    kind_of_bound = "local-search" if settings.searches else "sampled-program"
    room = _ROUNDING.get(settings.method, _USUAL_ROUNDING)
    tolerance = room * allowed(run.program) * float(rows.scales.max())
    return ConstrainedOutcome(answer, kind_of_bound, run.about, points, rows, dual.mu / rows.scales, tolerance)


@dataclass
class _Run:
    """The program of this round, and the best network and dual point of any round."""

    program: ConstrainedProgram
    settings: ConstrainedSettings
    limits: Limits
    generator: torch.Generator
    report: Report
    started: float = field(default_factory=time.perf_counter)
    neurons: Neurons | None = None
    objective: float = math.inf
    violation: float = math.inf
    last: ConstrainedJudgement | None = None
    dual: ConstrainedDual | None = None
    about: ProgramReport | None = None
    trace: list[TraceEntry] = field(default_factory=list)
    idle: int = 0

    @property
    def floor(self) -> float:
        return self.program.problem.floor()

    @property
    def bound(self) -> float:
        return -math.inf if self.dual is None else self.dual.bound

    def seconds(self) -> float:
        return time.perf_counter() - self.started

    def deadline(self) -> float:
        return self.started + self.limits.max_seconds

    def see(self, neurons: Neurons) -> None:
        """Keep the network if it is better than the one at hand: nearer to the constraints, then cheaper."""
        objective, violation = worth(self.program, neurons)
        limit = allowed(self.program)
        known, new = (max(self.violation, limit), self.objective), (max(violation, limit), objective)
        gain = new[0] < known[0] or objective < self.objective * (1 - 1e-7)
        self.idle = 0 if gain else self.idle + 1
        if new < known:
            self.neurons, self.objective, self.violation = neurons, objective, violation

    def entry(self) -> None:
        found = TraceEntry(self.seconds(), self.objective, self.bound, len(self.neurons or ()))
        self.trace.append(found)
        if self.report is not None:
            self.report(found)

    def describe(self) -> None:
        """Keep what is known of this round's program, if its point is the best so far."""
        assert self.last is not None
        program, patterns, judged = self.program, self.program.wide.patterns, self.last
        if self.about is not None and self.about.objective <= judged.objective:
            return
        self.about = ProgramReport(
            kind=program.wide.name,
            n_patterns=len(patterns),
            n_drawn=patterns.n_drawn,
            complete=patterns.complete,
            objective=judged.objective,
            bound=judged.dual.bound,
            gap=judged.gap(self.floor),
            improvement_probability=1.0,  # the scenario bound is for programs without constraints
            confidence=0.95,
        )


def worth(program: ConstrainedProgram, neurons: Neurons) -> tuple[float, float]:
    """J of these weights as they stand, and by how much they violate rows of norm one."""
    F = neurons(program.wide.problem.X)
    loss = program.problem.loss.value(F[: program.n])
    objective = float(loss + program.problem.weight_decay * neurons.half_squared_norm())
    return objective, float((program.rows.excess(F) / program.rows.scales).clamp(min=0.0).max())


def _once(run: _Run) -> Status:
    """Solve the program of the sampled patterns."""
    status = _solve(run, run.limits.tol)
    assert run.last is not None
    run.describe()
    run.see(_network(run, run.last))
    run.dual = run.last.dual
    constant = no_neurons(run.program.problem.n_inputs, run.program.problem.constant())
    objective, violation = worth(run.program, constant)
    run.entry()
    if violation <= allowed(run.program) and relative_gap(objective, run.bound, run.floor) <= run.limits.tol:
        run.neurons, run.objective, run.violation = constant, objective, violation
        return Status.CONVERGED  # which training reports as NULL
    solved = run.violation <= allowed(run.program) and run.last.gap(run.floor) <= run.limits.tol
    if status is None and solved:
        return Status.SOLVED
    run.see(constant)  # the network of a run that was cut short can be worse than no neuron at all
    if status is not None:
        return status
    return Status.MAX_SECONDS if run.seconds() > run.limits.max_seconds else Status.STALLED


def _solve(run: _Run, tol: float) -> Status | None:
    """The program of this round into ``run.last``; a status where the run was interrupted."""
    program, best = run.program, None
    split = examined(program)
    if run.settings.method == "reference":
        run.last = solve_reference(program, ProgramLimits(tol))
        return None

    def see(judged: ConstrainedJudgement) -> None:
        nonlocal best
        best = judged if best is None else better(program, best, judged)
        run.last = best

    limits = InteriorLimits(tol, deadline=run.deadline())
    try:
        for share in _SHARES:
            solve_interior(program, split, limits, share=share, see=see)
            assert run.last is not None
            if ended(program, run.last, tol) or time.perf_counter() > run.deadline():
                return None
        _fall_back(run, see)
    except KeyboardInterrupt:
        if run.last is None:
            raise
        return Status.INTERRUPTED
    return None


def _fall_back(run: _Run, see: Callable[[ConstrainedJudgement], None]) -> None:
    """To cvxpy, where the interior point is far from the tolerance and the program is of its size."""
    program, judged = run.program, run.last
    assert judged is not None
    S, _, P, _ = program.wide.shape
    size = S * P * len(program.wide.problem.X)
    if ended(program, judged, max(run.limits.tol, _ROUGH)) or size > _SMALL:
        return
    try:
        see(solve_reference(program, ProgramLimits(run.limits.tol)))
    except SolverError:
        return  # the interior point's answer stays, with its own gap


def _network(run: _Run, judged: ConstrainedJudgement) -> Neurons:
    """The network of the point, without the neurons that interior points leave at almost zero.

    Dropping them moves the outputs, and with them what the constraints see: the program is solved once more with the
    other blocks alone. If that does not come out as well, all neurons stay.
    """
    program, full = run.program, run.program.wide.network(judged.point)
    objective, violation = worth(program, full)
    most = (max(violation, allowed(program)), objective * (1 + 0.1 * run.limits.tol) + run.floor)
    norms, tried = judged.point.U.norm(dim=-1).reshape(-1), 0
    for share in _ACTIVE:
        blocks = torch.nonzero(norms > share * norms.max())[:, 0]
        if not tried < len(blocks) < len(norms):
            continue
        tried = len(blocks)
        limits = InteriorLimits(0.1 * run.limits.tol, deadline=run.deadline())
        again = solve_interior(program, examined(program), limits, blocks=blocks)
        found = program.wide.network(again.point)
        for network in (found.pruned(1e-4).merged(), found.pruned(1e-7).merged(), found):
            value, excess = worth(program, network)
            if excess <= most[0] and value <= most[1]:
                return network
    return full


def _rounds(run: _Run) -> Status:
    """Add the patterns around the network's neurons and of neurons that violate the dual, and solve again."""
    status: Status | None = None
    while status is None:
        try:
            gap = relative_gap(run.objective, run.bound, run.floor)
            status = _solve(run, max(0.3 * run.limits.tol, min(3e-3, 0.03 * gap)))
            assert run.last is not None
            run.describe()
            neurons = _network(run, run.last)
            run.see(neurons)
            found = _price(run, neurons)
            run.entry()
            status = status or _status(run)
            if status is None:
                _extend(run, neurons, found)
        except KeyboardInterrupt:
            if run.neurons is None or run.dual is None:
                raise
            status = Status.INTERRUPTED
    return status


def _status(run: _Run) -> Status | None:
    if relative_gap(run.objective, run.bound, run.floor) <= run.limits.tol and run.violation <= allowed(run.program):
        return Status.CONVERGED
    if run.seconds() > run.limits.max_seconds:
        return Status.MAX_SECONDS
    if run.idle >= _PATIENCE:
        return Status.STALLED
    return Status.MAX_ROUNDS if len(run.trace) >= run.limits.max_rounds else None


def _price(run: _Run, neurons: Neurons) -> Candidates:
    """Neurons that violate the dual point of this round; keeps the best bound (local search: evidence, not proof).

    Whatever is found is held against the bound of earlier rounds too.
    """
    program, judged = run.program, run.last
    assert judged is not None
    dual = judged.dual
    found = _searched(run, dual, neurons, confirm=False)
    bound = scaled_dual(program, dual.V, dual.mu, found.best())
    confirm = run.idle > 0 or run.seconds() > run.limits.max_seconds
    if confirm or relative_gap(run.objective, bound.bound, run.floor) <= run.limits.tol:
        found = _searched(run, dual, neurons, confirm=True)
        bound = scaled_dual(program, dual.V, dual.mu, found.best())
    if run.dual is not None:
        X, W = program.wide.problem.X, program.pulled(run.dual.V, run.dual.mu)
        largest = max(evaluate(X, W, torch.cat([found.U, unit_rows(neurons.W)])).best(), program.problem.weight_decay)
        known = scaled_dual(program, run.dual.V, run.dual.mu, largest)
        run.dual = known if known.bound > bound.bound else bound
    else:
        run.dual = bound
    return found


def _searched(run: _Run, dual: ConstrainedDual, neurons: Neurons, *, confirm: bool) -> Candidates:
    wide = run.program.wide.problem
    W = run.program.pulled(dual.V, dual.mu)
    effort = confirmation_effort(wide) if confirm else EARLY
    starts = starting_points(wide.X, W, neurons, effort.n_starts, run.generator)
    known = unit_rows(neurons.W) if len(neurons) else None
    scale = wide.typical_activation()
    return search(wide.X, W, starts, effort=effort, scale=scale, generator=run.generator, known=known)


def _extend(run: _Run, neurons: Neurons, found: Candidates) -> None:
    """The patterns in use, and those around the network's neurons and the worst violators."""
    program, judged = run.program, run.last
    assert judged is not None
    X, old = program.wide.problem.X, program.wide.patterns
    directions = torch.cat([unit_rows(neurons.W), distinct(found, _ADDED).U])
    added = patterns_of(X, directions, run.generator, around=_AROUND)
    used = judged.point.U.norm(dim=-1).amax(0)[0]
    live = torch.nonzero(used > 1e-7 * used.max())[:, 0]
    kept = Patterns(old.D[live], old.gates[live], old.n_drawn)
    run.program = replace(program, wide=replace(program.wide, patterns=kept.joined(added)))
