"""Sigmoid and tanh: functions that are convex below 0, concave above, and symmetric about their value at 0."""

from abc import abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from certify.relaxations.base import AbstractRelaxation, Pieces

_BISECTIONS = 30
# Units in the last place that a value or slope of the function, as torch computes it, may be off, and more.
_ULPS = 16


class AbstractSShapeRelaxation(AbstractRelaxation):
    """Lines of any slope k >= 0, moved until they touch.

    Lower line of slope k on [l, u]: its intercept is the least value of g(z) = f(z) - k z there.

    * Where z <= 0, f and so g are convex, and g lies above each of its tangents: with any s in [l, min(u, 0)],
      g(z) >= g(s) + g'(s) (z - s), a line whose least value is at an end. The s with f'(s) = k loses nothing; an
      inexact s loses little, and nothing of the proof.
    * Where z >= 0, g is concave: its least value is at an end, max(l, 0) or u.

    The upper line is a lower line of the reflected function: with f(z) = c - f(-z), a lower line k z + h on
    [-u, -l] is the upper line k z + c - h on [l, u].

    The default slope is that of the convex hull of f at the middle of the interval, which gives the smallest
    area between the line and f.
    """

    @property
    @abstractmethod
    def limits(self) -> tuple[float, float]:
        """The infimum and the supremum; their sum is c."""

    @property
    @abstractmethod
    def steepest(self) -> float:
        """f'(0)."""

    @abstractmethod
    def value(self, z: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """f(z)."""

    @abstractmethod
    def slope(self, z: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """f'(z)."""

    @abstractmethod
    def where_slope(self, k: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """About the z <= 0 with f'(z) = k."""

    def interval(
        self, lower: Float[Tensor, "batch *shape"], upper: Float[Tensor, "batch *shape"]
    ) -> tuple[Float[Tensor, "batch *shape"], Float[Tensor, "batch *shape"]]:
        """The values at both ends, rounded outward."""
        slack = _ULPS * torch.finfo(lower.dtype).eps
        low, high = self.limits
        return (self.value(lower) - slack).clamp(min=low), (self.value(upper) + slack).clamp(max=high)

    def undecided(
        self, lower: Float[Tensor, "batch *shape"], upper: Float[Tensor, "batch *shape"]
    ) -> Bool[Tensor, "batch *shape"]:
        """Every entry that is not a point."""
        return upper > lower

    def pieces(
        self,
        lower: Float[Tensor, "batch *shape"],
        upper: Float[Tensor, "batch *shape"],
        slope: Float[Tensor, "batch *shape"] | None = None,
    ) -> Pieces:
        """Touching lines: every slope of the lower one is sound, whatever its value."""
        finite = torch.isfinite(lower) & torch.isfinite(upper)
        below = self._hull_slope(lower, upper) if slope is None else slope.clamp(0.0, self.steepest)
        below, above = (torch.where(finite, k, 0.0) for k in (below, self._hull_slope(-upper, -lower)))
        low, high = self.limits
        shift = torch.where(finite, self._intercept(below, lower, upper), low)
        reflected = torch.where(finite, self._intercept(above, -upper, -lower), low)
        return Pieces(below, shift, above, low + high - reflected)

    def _intercept(
        self, k: Float[Tensor, "*shape"], lower: Float[Tensor, "*shape"], upper: Float[Tensor, "*shape"]
    ) -> Float[Tensor, "*shape"]:
        """A lower bound of f(z) - k z on [lower, upper], tight up to rounding."""
        ends = torch.minimum(self.value(lower) - k * lower, self.value(upper) - k * upper)
        last = upper.clamp(max=0.0)
        s = torch.minimum(torch.maximum(self.where_slope(k.detach()), lower), last)
        steep = self.slope(s)
        tilt = torch.minimum((steep - k) * (lower - s), (steep - k) * (last - s))
        convex = torch.where(lower < 0, self.value(s) - k * s + tilt.clamp(max=0.0), torch.inf)
        rounding = _ULPS * torch.finfo(k.dtype).eps * (1.0 + (k + steep) * (lower.abs() + upper.abs()))
        return torch.minimum(ends, convex) - rounding

    def _hull_slope(self, lower: Float[Tensor, "*shape"], upper: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """The slope at the middle of the largest convex function below f on [lower, upper].

        That is f up to the point d <= 0 where the tangent goes through (u, f(u)), and the tangent from there;
        with d < l, or l >= 0, it is the chord.
        """
        width = upper - lower
        chord = (self.value(upper) - self.value(lower)) / torch.where(width > 0, width, 1.0)
        # Rounding can make a short chord steeper than f ever is.
        chord = torch.where(width > 0, chord, self.slope(lower)).clamp(0.0, self.steepest)
        left, right = lower.clamp(max=0.0), upper.clamp(max=0.0)
        for _ in range(_BISECTIONS):
            middle = (left + right) / 2
            beyond = self.value(middle) + self.slope(middle) * (upper - middle) > self.value(upper)
            left, right = torch.where(beyond, left, middle), torch.where(beyond, middle, right)
        touching = self.slope(torch.minimum(left, (lower + upper) / 2))
        return torch.where((lower >= 0) | (left <= lower), chord, touching)


@dataclass(frozen=True)
class SigmoidRelaxation(AbstractSShapeRelaxation):
    """1 / (1 + exp(-z)): f' = f (1 - f)."""

    @property
    def limits(self) -> tuple[float, float]:
        """0 and 1."""
        return 0.0, 1.0

    @property
    def steepest(self) -> float:
        """1/4."""
        return 0.25

    def value(self, z: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """1 / (1 + exp(-z))."""
        return z.sigmoid()

    def slope(self, z: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """f(z) f(-z)."""
        return z.sigmoid() * (-z).sigmoid()

    def where_slope(self, k: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """f (1 - f) = k with f <= 1/2 has f = 2 k / (1 + sqrt(1 - 4 k))."""
        tiny = torch.finfo(k.dtype).tiny
        return (2 * k.clamp(min=tiny) / (1 + (1 - 4 * k).clamp(min=0.0).sqrt())).logit()


@dataclass(frozen=True)
class TanhRelaxation(AbstractSShapeRelaxation):
    """tanh(z): f' = 1 - f^2."""

    @property
    def limits(self) -> tuple[float, float]:
        """-1 and 1."""
        return -1.0, 1.0

    @property
    def steepest(self) -> float:
        """1."""
        return 1.0

    def value(self, z: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """tanh(z)."""
        return z.tanh()

    def slope(self, z: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """1 / cosh(z)^2, as 4 s (1 - s) with the sigmoid s of 2 z: exact where tanh is close to 1."""
        return 4 * (2 * z).sigmoid() * (-2 * z).sigmoid()

    def where_slope(self, k: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Half the place where the sigmoid's slope is k / 4."""
        return SigmoidRelaxation().where_slope(k / 4) / 2
