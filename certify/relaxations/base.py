"""Linear pieces around a non-affine operation."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Pieces:
    """lower_slope z + lower_intercept <= f(z) <= upper_slope z + upper_intercept between the bounds.

    A `lower_intercept` of None is zero everywhere.
    """

    lower_slope: Float[Tensor, "batch *shape"]
    lower_intercept: Float[Tensor, "batch *shape"] | None
    upper_slope: Float[Tensor, "batch *shape"]
    upper_intercept: Float[Tensor, "batch *shape"]

    def select(self, index: Any) -> "Pieces":
        """The pieces of some of the inputs."""
        below = None if self.lower_intercept is None else self.lower_intercept[index]
        return Pieces(self.lower_slope[index], below, self.upper_slope[index], self.upper_intercept[index])


class AbstractRelaxation(ABC):
    """What every bounding method reads about one pointwise operation."""

    @abstractmethod
    def interval(
        self, lower: Float[Tensor, "batch *shape"], upper: Float[Tensor, "batch *shape"]
    ) -> tuple[Float[Tensor, "batch *shape"], Float[Tensor, "batch *shape"]]:
        """The range of f on [lower, upper]."""

    @abstractmethod
    def undecided(self, lower: Float[Tensor, "batch *shape"], upper: Float[Tensor, "batch *shape"]) -> torch.Tensor:
        """Which entries are not affine between their bounds, so that tighter bounds would help."""

    @abstractmethod
    def pieces(
        self,
        lower: Float[Tensor, "batch *shape"],
        upper: Float[Tensor, "batch *shape"],
        slope: Float[Tensor, "batch *shape"] | None = None,
    ) -> Pieces:
        """The linear pieces; `slope` sets the free lower slopes, by default the ones of least area."""

    def free_slopes(
        self, lower: Float[Tensor, "batch *shape"], upper: Float[Tensor, "batch *shape"]
    ) -> tuple[Float[Tensor, "batch *shape"], Float[Tensor, "batch *shape"]] | None:
        """Between which values the lower slope can be chosen, a single one where it cannot; None: nowhere."""
        return None
