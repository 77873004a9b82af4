"""Points of convex programs that were judged, and what they cost."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol


class Judged(Protocol):
    """What a judge says of a point."""

    @property
    def objective(self) -> float:
        """At a feasible point."""

    def gap(self, floor: float = 0.0) -> float:
        """Relative."""


class Answer(Protocol):
    """What a solver returns."""

    @property
    def judgement(self) -> Judged:
        """Of its point."""


@dataclass(frozen=True)
class Timed:
    """A judged point and what it cost."""

    seconds: float
    judgement: Judged

    def row(self, name: str) -> str:
        judged = self.judgement
        return f"| {name} | {self.seconds:.2f} | {judged.objective:.8f} | {judged.gap():.1e} |"


def timed(solve: Callable[[], Answer | Judged]) -> Timed:
    """CPU seconds of a solver."""
    started = time.process_time()
    answer = solve()
    seconds = time.process_time() - started
    return Timed(seconds, getattr(answer, "judgement", answer))
