"""How a radius or a weight moves while training."""

from dataclasses import dataclass

from certify.errors import InvalidInputError


@dataclass(frozen=True)
class Ramp:
    """From `start` to `end`, smoothly: at rest at both ends, and never outside them.

    Attributes:
        end: the value after the ramp.
        warmup: epochs at `start`.
        length: epochs from `start` to `end`; 0 jumps.
        start: the value before the ramp.
    """

    end: float
    warmup: float = 0.0
    length: float = 0.0
    start: float = 0.0

    def __post_init__(self) -> None:
        if not (self.warmup >= 0 and self.length >= 0) or not abs(self.end - self.start) < float("inf"):
            raise InvalidInputError(
                f"a ramp from {self.start} to {self.end} after {self.warmup} epochs in {self.length};"
                " expected finite ends and times >= 0"
            )

    def __call__(self, epoch: float) -> float:
        """The value at a time in epochs, which may be a fraction."""
        if epoch < self.warmup:
            return self.start
        if epoch >= self.warmup + self.length:
            return self.end
        s = (epoch - self.warmup) / self.length
        return self.start + (self.end - self.start) * s * s * (3 - 2 * s)
