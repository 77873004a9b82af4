"""A time limit."""

from dataclasses import dataclass, field
from math import inf
from time import perf_counter


class OutOfTimeError(Exception):
    """The time limit was reached in the middle of something; caught where the limit was set."""


@dataclass(frozen=True)
class Deadline:
    """Expires `seconds` after it was made; never for None."""

    seconds: float | None = None
    start: float = field(default_factory=perf_counter)

    @property
    def elapsed(self) -> float:
        """Seconds since it was made."""
        return perf_counter() - self.start

    @property
    def left(self) -> float:
        """Seconds until then."""
        return inf if self.seconds is None else max(self.seconds - self.elapsed, 0.0)

    @property
    def expired(self) -> bool:
        """Whether the limit is over."""
        return self.seconds is not None and self.elapsed >= self.seconds

    def within(self, seconds: float | None) -> "Deadline":
        """A new one that also expires after so many seconds from now."""
        left = [v for v in (seconds, None if self.seconds is None else self.seconds - self.elapsed) if v is not None]
        return Deadline(min(left, default=None))

    def require(self) -> None:
        """Raises `OutOfTimeError` once the limit is over: for work that is thrown away then."""
        if self.expired:
            raise OutOfTimeError
