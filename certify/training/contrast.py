"""A first layer for inputs that lie near two values."""

import math
from numbers import Real
from typing import SupportsFloat

from jaxtyping import Float
from torch import Tensor, nn

from certify.errors import InvalidInputError


class Contrast(nn.Module):
    """min(max((x - lower)/(upper - lower), 0), 1), entry by entry: 0 up to `lower`, 1 from `upper` on.

    Boxes that stay on one side of both limits become points, so that only entries whose box reaches between them
    remain uncertain for the layers that follow. It has no parameters.

    Args:
        lower: where the rise begins, in the units of the input.
        upper: where it ends.

    Raises:
        InvalidInputError: unless lower < upper, both finite.
    """

    def __init__(self, lower: SupportsFloat, upper: SupportsFloat) -> None:
        super().__init__()
        numbers = all(isinstance(v, Real) for v in (lower, upper))
        self.lower, self.upper = (float(lower), float(upper)) if numbers else (math.nan, math.nan)
        if not -math.inf < self.lower < self.upper < math.inf:
            raise InvalidInputError(f"limits {lower!r} and {upper!r}; expected two finite numbers, the lower one first")

    def forward(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """The same shape."""
        return ((x - self.lower) / (self.upper - self.lower)).clamp(0, 1)

    def extra_repr(self) -> str:
        """The limits."""
        return f"{self.lower:g}, {self.upper:g}"
