"""What every solver of a robust program returns."""

from dataclasses import dataclass, field

from convexnn.result import Status, TraceEntry
from convexnn.robust.duality import RobustJudgement


@dataclass(frozen=True)
class RobustAnswer:
    """A judged point of a robust program, and how the run ended."""

    judgement: RobustJudgement
    status: Status
    n_steps: int
    trace: tuple[TraceEntry, ...] = field(repr=False, default=())


def better(old: RobustJudgement | None, new: RobustJudgement) -> RobustJudgement:
    """The better point of the two with the better dual point of the two."""
    if old is None:
        return new
    primal = new if new.objective < old.objective else old
    dual = new if new.bound > old.bound else old
    return RobustJudgement(primal.point, primal.objective, dual.dual, dual.bound)
