"""What training returns: status, trace and result, as frozen values."""

import enum
import json
from dataclasses import dataclass, field
from typing import Any

import torch

_PRICED = 1e-6  # multipliers, relative to the largest, from which on rows are listed


class Status(enum.Enum):
    """How a run ended; the value is the sentence a user reads."""

    CONVERGED = "The gap is at most tol, and fresh starts confirmed it."
    SOLVED = "The gap of the program over these activation patterns is at most tol; bound_kind says what it covers."
    NULL = "No neuron was found that pays for its weights: the constant network is within tol of the bound."
    MAX_SECONDS = "The time limit was reached: this is the best network found, with its own gap."
    MAX_ROUNDS = "The round limit was reached: this is the best network found, with its own gap."
    STALLED = "Several rounds in a row improved neither the network nor the bound: this is the best network found."
    INTERRUPTED = "The run was interrupted: this is the best network found, with its own gap."
    NON_FINITE = "A non-finite number appeared: this is the last network that was finite."


@dataclass(frozen=True)
class TraceEntry:
    """One round of training."""

    seconds: float  # since the start of the call
    objective: float  # of the best network so far
    bound: float  # the best lower bound so far (see TrainingResult.bound_kind)
    n_neurons: int  # of the current network


@dataclass(frozen=True)
class ProofReport:
    """A bound that the exact checker accepted, as ``certify check`` will."""

    objective: float  # of the network in balanced form, rounded up from exact arithmetic
    bound: float  # rounded down from exact arithmetic
    facts: tuple[str, ...]  # what the checker says
    stages: tuple[tuple[str, float, float], ...]  # name, seconds since the search began, best bound
    interrupted: bool  # by Ctrl-C: the best bound until then
    file: str | None  # where the proof was written

    @property
    def gap(self) -> float:
        """Relative, as proved."""
        return relative_gap(self.objective, self.bound)


@dataclass(frozen=True)
class OptimalityGap:
    """How far a network can still be from the best two-layer ReLU network of any width.

    ``bound_kind`` says what the lower bound is worth. ``"local-search"``: the largest correlation
    of the dual point with a neuron was searched by local ascent from many starts; this is
    evidence, not proof. A gap built on such a bound can be wrong when the search missed a neuron. ``"proved"``: the
    exact checker accepted a proof of it; ``local_search_bound`` is then the evidence beside it, which is often higher.
    """

    objective: float  # J of the network in balanced form
    objective_as_given: float  # J of the weights as they stand
    bound: float
    bound_kind: str
    gap: float  # relative, see relative_gap
    n_neurons: int
    seconds: float
    local_search_bound: float | None = None
    proof: ProofReport | None = None

    def __str__(self) -> str:
        lines = (
            f"objective {self.objective:.8g}\n"
            f"bound     {self.bound:.8g} ({self.bound_kind})\n"
            f"gap       {self.gap:.2e} (relative)"
        )
        if self.local_search_bound is None:
            return lines
        evidence = relative_gap(self.objective, self.local_search_bound)
        return lines + f"\nevidence  {self.local_search_bound:.8g} (local-search, gap {evidence:.2e})"


@dataclass(frozen=True)
class ProgramReport:
    """The convex program over fixed activation patterns behind a network: its own objective, bound and gap.

    The gap is about weights for these patterns. That other patterns would help is not excluded:
    with confidence ``confidence`` one more random pattern improves the program's optimum with
    probability at most ``improvement_probability``, which says nothing about how far the optimum
    over all patterns is.
    """

    kind: str  # "relu", "gated" or "scp"
    n_patterns: int
    n_drawn: int  # directions drawn, those with a known pattern included
    complete: bool  # every pattern that exists
    objective: float  # of the convex program, at a feasible point
    bound: float
    gap: float  # relative
    improvement_probability: float
    confidence: float

    def __str__(self) -> str:
        what = "all" if self.complete else "sampled"
        lines = (
            f"program   {self.kind}, {self.n_patterns} {what} patterns, own gap {self.gap:.2e} at {self.objective:.8g}"
        )
        if self.complete or self.improvement_probability >= 1:
            return lines  # nothing is left to say
        return lines + (
            f"\n          a further random pattern improves it with probability <= {self.improvement_probability:.2g}"
            f" (confidence {self.confidence:.0%})"
        )


@dataclass(frozen=True)
class ConstraintReport:
    """Constraints A f <= b as the returned network meets them, and what each costs.

    ``multipliers`` are at least zero, in units of the objective per unit of the row: raising a limit by a small t
    changes the optimal value of the program by -multiplier * t. Rows that are not tight have none, up to the accuracy
    of the solver. Where rows hold as equalities (f <= 1 and f >= 1) multipliers are not unique.
    """

    names: tuple[str, ...]
    values: tuple[float, ...]  # A f of the network itself
    limits: tuple[float, ...]  # b
    multipliers: tuple[float, ...]
    violation: float  # the largest A f - b of the network, zero where every row holds
    tolerance: float  # of that, for the row with the largest weights; in proportion to their norm for the others

    def __str__(self) -> str:
        least = _PRICED * max(self.multipliers)  # what a solver leaves at almost zero
        tight = sum(multiplier > least for multiplier in self.multipliers)
        lines = f"rows      {len(self.names)}, largest violation {self.violation:.1e} (tolerance {self.tolerance:.1e})"
        order = sorted(range(len(self.names)), key=lambda k: -self.multipliers[k])[:5]
        for k in order[:tight]:
            lines += f"\n          {self.multipliers[k]:.4g} per unit of: {self.names[k]}"
        return lines


@dataclass(frozen=True)
class RobustReport:
    """What a robustly trained network is worth: the convex program behind it, and the patterns that it was built on.

    ``objective`` and ``bound`` are of the program over these patterns, worst case included. ``largest_eps`` holds, of
    hard cones, the largest radius that each sampled pattern survives (the largest of the radii, where they differ; none
    where all are zero); on large data it is what the sampled direction survives, which may be less.
    """

    cones: str  # "hard": the worst case is exact; "soft": an upper bound of it
    norm: str
    eps: tuple[float, ...]  # one radius, or one for each feature
    n_sampled: int
    n_surviving: int  # patterns with a cone that has an interior; of soft cones all
    n_cutting: int  # of these, patterns with samples on both sides: without any, the network is a linear function
    objective: float
    bound: float
    gap: float
    largest_eps: tuple[float, ...] = field(repr=False, default=())

    def __str__(self) -> str:
        radius = f"{max(self.eps):g}" if len(self.eps) == 1 else f"up to {max(self.eps):g}"
        lines = (
            f"robust    {self.cones} cones, {self.norm} radius {radius}: {self.n_surviving} of {self.n_sampled} "
            f"patterns, {self.n_cutting} of them with samples on both sides, own gap {self.gap:.2e} at "
            f"{self.objective:.8g}"
        )
        if self.n_cutting == 0:
            lines += "\n          no pattern has samples on both sides: this is a robust linear classifier"
        return lines


@dataclass(frozen=True)
class TrainingResult:
    """A trained network and what is known about its optimality."""

    network: torch.nn.Sequential  # Linear(d, k), ReLU, Linear(k, K)
    objective: float  # J, recomputed from the network's weights
    bound: float  # lower bound on J over the networks that bound_kind names
    bound_kind: str  # "proved", "local-search", "all-patterns": any width; "sampled-program": this program
    gap: float  # relative, see relative_gap
    status: Status
    n_neurons: int
    seconds: float
    n_rounds: int
    method: str
    loss: str
    weight_decay: float
    trace: tuple[TraceEntry, ...] = field(repr=False, default=())
    program: ProgramReport | None = None  # of the methods that fix activation patterns
    proof: ProofReport | None = None  # where bound_kind is "proved"
    robust: RobustReport | None = None  # of training with robust=; objective and gap are then of the worst case
    constraints: ConstraintReport | None = None  # of training with constraints=

    def to_dict(self) -> dict[str, Any]:
        """Everything but the network, as plain Python values (for JSON)."""
        names = (
            "objective",
            "bound",
            "bound_kind",
            "gap",
            "n_neurons",
            "seconds",
            "n_rounds",
            "method",
            "loss",
        )
        out: dict[str, Any] = {name: getattr(self, name) for name in (*names, "weight_decay")}
        out["status"] = self.status.name
        out["message"] = self.status.value
        out["program"] = None if self.program is None else vars(self.program)
        out["proof"] = None if self.proof is None else vars(self.proof)
        out["robust"] = None if self.robust is None else vars(self.robust)
        out["constraints"] = None if self.constraints is None else vars(self.constraints)
        out["trace"] = [vars(entry) for entry in self.trace]
        return out

    def to_json(self) -> str:
        """The result without the network, as JSON text."""
        return json.dumps(self.to_dict(), indent=2)

    def __str__(self) -> str:
        return (
            f"status    {self.status.name}: {self.status.value}\n"
            f"objective {self.objective:.8g}\n"
            f"bound     {self.bound:.8g} ({self.bound_kind})\n"
            f"gap       {self.gap:.2e} (relative)\n"
            f"neurons   {self.n_neurons}\n"
            f"seconds   {self.seconds:.2f} in {self.n_rounds} rounds"
        ) + "".join(f"\n{part}" for part in (self.program, self.robust, self.constraints) if part is not None)


def relative_gap(objective: float, bound: float, floor: float = 0.0) -> float:
    """(objective - bound) / |objective|, never negative.

    ``floor`` is a difference that counts as none: where the data can be fitted without loss or
    penalty both numbers are zero up to rounding, and a ratio would mean nothing.
    """
    difference = objective - bound
    if difference <= floor:
        return 0.0
    return difference / abs(objective) if objective != 0.0 else float("inf")
