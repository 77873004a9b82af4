"""What every solver of a convex program takes and returns."""

from collections.abc import Callable
from dataclasses import dataclass, field

from jaxtyping import Float
from torch import Tensor

from convexnn.duality import ProgramJudgement
from convexnn.programs import ConvexPoint
from convexnn.result import Status, TraceEntry

Report = Callable[[TraceEntry], None]


@dataclass(frozen=True)
class ProgramLimits:
    """When to stop."""

    tol: float = 1e-6  # relative gap of the program
    max_seconds: float = float("inf")
    max_steps: int = 100_000

    def status(self, gap: float, seconds: float, n_steps: int) -> Status | None:
        """How a run that got this far has ended, or None."""
        if gap <= self.tol:
            return Status.CONVERGED
        if seconds > self.max_seconds:
            return Status.MAX_SECONDS
        return Status.MAX_ROUNDS if n_steps >= self.max_steps else None


@dataclass(frozen=True)
class ProgramAnswer:
    """A judged point of a program, and how the run ended."""

    judgement: ProgramJudgement
    V: Float[Tensor, "n K"]
    multipliers: Float[Tensor, "S K P m"] | None
    status: Status
    n_steps: int
    trace: tuple[TraceEntry, ...] = field(repr=False, default=())
    raw: ConvexPoint | None = None  # the solver's own point, where it can be outside the cones: still a network


def better(old: ProgramAnswer, new: ProgramAnswer) -> ProgramAnswer:
    """The better point of the two with the better dual point of the two."""
    primal = new if new.judgement.objective < old.judgement.objective else old
    dual = new if new.judgement.dual.bound > old.judgement.dual.bound else old
    judgement = ProgramJudgement(primal.judgement.point, primal.judgement.objective, dual.judgement.dual)
    return ProgramAnswer(judgement, dual.V, dual.multipliers, new.status, new.n_steps, raw=new.raw)
