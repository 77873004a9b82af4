"""What a verification answers: a status, the numbers behind it, and the witness if there is one."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, unique
from types import MappingProxyType

import numpy as np


@unique
class Status(Enum):
    """The four answers; the value is the sentence a user reads."""

    VERIFIED = "verified: every input of the region keeps the label"
    FALSIFIED = "falsified: the counterexample is in the region and the network gives it another label"
    UNKNOWN = "unknown: no counterexample was found and the bounds are not tight enough; try a tighter method"
    TIMEOUT = "timeout: the time limit was reached before an answer; raise it or try a cheaper method"

    @property
    def decided(self) -> bool:
        """Whether this is an answer (verified or falsified)."""
        return self in (Status.VERIFIED, Status.FALSIFIED)


@dataclass(frozen=True, eq=False)
class Verdict:
    """The answer for one input.

    Attributes:
        status: one of the four answers.
        label: the class that has to be kept.
        lower_bounds: for every other class a lower bound of `score[label] - score[other]` over the region,
            in float64 and rounded down; minus infinity where no bound was computed.
        counterexample: an input of the region, in the network's own precision and shape, that the network was
            re-run on and that it gives another label; None unless FALSIFIED.
        method: the stage that decided, or the last one that ran.
        seconds: wall time.
        claims: lower bounds of margins that a mixed-integer solver claims, capped at 0: floating point, not proved,
            and never a reason for VERIFIED. Empty unless `method="milp"` solved such programs.
        flow: the vector field (2, height, width) that makes the counterexample of the image, where the region is one of
            vector fields: how far to the right, and how far down, every pixel looks.
        proof: the file with a proof that `certify check` accepts, if one was asked for and written.
    """

    status: Status
    label: int
    lower_bounds: Mapping[int, float]
    counterexample: np.ndarray | None = field(repr=False)
    method: str
    seconds: float
    claims: Mapping[int, float] = field(default_factory=dict)
    proof: str | None = None
    flow: np.ndarray | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "lower_bounds", MappingProxyType(dict(self.lower_bounds)))
        object.__setattr__(self, "claims", MappingProxyType(dict(self.claims)))

    @property
    def worst_margin(self) -> float:
        """The smallest of the lower bounds: positive exactly when they prove the label."""
        return min(self.lower_bounds.values())

    def __str__(self) -> str:
        lines = [f"{self.status.name} ({self.method}, {self.seconds:.3g} s)", f"  {self.status.value}"]
        if self.worst_margin > -np.inf:
            rival = min(self.lower_bounds, key=self.lower_bounds.__getitem__)
            lines.append(f"  label {self.label}, closest rival {rival}: margin at least {self.worst_margin:.6g}")
        if not self.status.decided and self.claims:
            kept = sum(bound >= 0 for bound in self.claims.values())
            lines.append(f"  HiGHS claims, without proof, that {kept} of {len(self.claims)} open margins hold")
        if self.proof is not None:
            lines.append(f"  proof for `certify check`: {self.proof}")
        if self.counterexample is not None:
            lines.append(f"  counterexample: array of shape {self.counterexample.shape} in .counterexample")
        return "\n".join(lines)


@unique
class Answer(Enum):
    """The four answers to a property file; the value is the sentence a user reads."""

    SAT = "sat: the witness is in the input box and the network's outputs on it are unsafe"
    UNSAT = "unsat: no input in the boxes has unsafe outputs"
    UNKNOWN = "unknown: no witness was found and the bounds are not tight enough; try another method"
    TIMEOUT = "timed out: the time limit was reached before an answer; raise it"

    @property
    def decided(self) -> bool:
        """Whether this is an answer (sat or unsat)."""
        return self in (Answer.SAT, Answer.UNSAT)


@dataclass(frozen=True, eq=False)
class Witness:
    """An input that the network itself was run on.

    Attributes:
        inputs: in the network's own precision and shape.
        outputs: what the network returned for it, in its own precision and shape.
        excess: how far the input is outside the box as written; 0 unless the box has no number of the network's
            precision in some coordinate, which then has the nearest one.
    """

    inputs: np.ndarray
    outputs: np.ndarray
    excess: float


@dataclass(frozen=True, eq=False)
class QueryVerdict:
    """The answer to a property file.

    Attributes:
        answer: one of the four.
        witness: None unless SAT.
        bound: no input has a margin below this, proved with rounding; 0 where all inputs are proved safe. The
            margin of an input is the least over the cases of the largest A_i y - b_i: unsafe where it is <= 0.
        method: what ran.
        boxes: input boxes, or sets of fixed phases, that were bounded.
        seconds: wall time.
    """

    answer: Answer
    witness: Witness | None = field(repr=False)
    bound: float
    method: str
    boxes: int
    seconds: float

    def __str__(self) -> str:
        lines = [
            f"{self.answer.name} ({self.method}, {self.boxes} boxes, {self.seconds:.3g} s)",
            f"  {self.answer.value}",
        ]
        if self.witness is not None and self.witness.excess > 0:
            lines.append(f"  the witness is outside the written box by {self.witness.excess:.3g}: the box has no")
            lines.append(f"  {self.witness.inputs.dtype} in some coordinate, and the witness has the nearest one")
        return "\n".join(lines)
