"""Boxes."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from certify.errors import InvalidInputError
from certify.regions.base import AbstractRegion, dot
from certify.rounding import cast_down, cast_up, gamma, up


@dataclass(frozen=True, eq=False)
class Box(AbstractRegion):
    """lower <= x <= upper, entry by entry.

    Raises:
        InvalidInputError: for NaN, infinite or crossing limits, or shapes that differ.
    """

    lower: Float[Tensor, "batch n"]
    upper: Float[Tensor, "batch n"]

    def __post_init__(self) -> None:
        if self.lower.shape != self.upper.shape or self.lower.ndim != 2:
            raise InvalidInputError(
                f"box limits have shapes {tuple(self.lower.shape)} and {tuple(self.upper.shape)};"
                " expected two arrays (batch, n)"
            )
        if not bool(torch.isfinite(self.lower).all() and torch.isfinite(self.upper).all()):
            raise InvalidInputError("a box limit is NaN or infinite; expected finite limits")
        if bool((self.lower > self.upper).any()):
            raise InvalidInputError("a lower limit of the box is above its upper limit; expected lower <= upper")

    @cached_property
    def centre(self) -> Float[Tensor, "batch n"]:  # type: ignore[override]
        """The midpoint."""
        middle = self.lower + (self.upper - self.lower) / 2
        return middle.clamp(self.lower, self.upper)

    @cached_property
    def radius(self) -> Float[Tensor, "batch n"]:
        """Half widths around `centre`, rounded up."""
        return up(torch.maximum(self.upper - self.centre, self.centre - self.lower))

    @cached_property
    def _reach(self) -> Float[Tensor, "batch n"]:
        return safe_reach(self.centre, self.radius)

    def minimum(
        self, rows: Float[Tensor, "#chosen rows n"], inputs: Int[Tensor, " chosen"] | None = None
    ) -> Float[Tensor, "chosen rows"]:
        """row.centre - |row|.radius, rounded down."""
        centre, reach = self.centre, self._reach
        if inputs is not None:
            centre, reach = centre[inputs], reach[inputs]
        return dot(rows, centre) - dot(rows.abs(), reach)

    def minimiser(self, rows: Float[Tensor, "batch n"]) -> Float[Tensor, "batch n"]:
        """The corner against the row; the centre where the row is zero."""
        return self.centre - rows.sign() * self.radius

    def bounding_box(self) -> tuple[Float[Tensor, "batch n"], Float[Tensor, "batch n"]]:
        """The limits."""
        return self.lower, self.upper

    def contains(self, points: Float[Tensor, "batch n"], tolerance: float = 0.0) -> Bool[Tensor, " batch"]:
        """Entry by entry."""
        inside = (points >= self.lower - tolerance) & (points <= self.upper + tolerance)
        return inside.all(dim=1)

    def project(self, points: Float[Tensor, "batch n"]) -> Float[Tensor, "batch n"]:
        """Clipping."""
        return points.clamp(self.lower, self.upper)

    def sample(self, generator: torch.Generator) -> Float[Tensor, "batch n"]:
        """Uniform."""
        share = torch.rand(self.lower.shape, generator=generator, dtype=self.lower.dtype).to(self.lower.device)
        return (self.lower + share * (self.upper - self.lower)).clamp(self.lower, self.upper)

    def ascent_direction(self, gradient: Float[Tensor, "batch n"]) -> Float[Tensor, "batch n"]:
        """Signs, in half widths."""
        return gradient.sign() * self.radius

    def select(self, index: Any) -> "Box":
        """The boxes of some of the inputs."""
        return Box(self.lower[index], self.upper[index])

    def cpu(self) -> "Box":
        """The same boxes in the memory of the CPU."""
        return Box(self.lower.cpu(), self.upper.cpu())

    def to(self, dtype: torch.dtype) -> "Box":
        """Rounded outward."""
        return self if dtype == self.lower.dtype else Box(cast_down(self.lower, dtype), cast_up(self.upper, dtype))


def interval_minimum(
    rows: Float[Tensor, "#batch rows n"], centre: Float[Tensor, "batch n"], radius: Float[Tensor, "batch n"]
) -> Float[Tensor, "batch rows"]:
    """row.centre - |row|.radius, rounded down."""
    return dot(rows, centre) - dot(rows.abs(), safe_reach(centre, radius))


def safe_reach(centre: Float[Tensor, "batch n"], radius: Float[Tensor, "batch n"]) -> Float[Tensor, "batch n"]:
    """The radius, enlarged by what row.centre - |row|.radius rounds off."""
    rounding = gamma(2 * centre.shape[1], centre.dtype)
    return radius + rounding * (centre.abs() + radius)
