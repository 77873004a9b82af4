"""max(z, 0)."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from certify.relaxations.base import AbstractRelaxation, Pieces


@dataclass(frozen=True)
class ReLURelaxation(AbstractRelaxation):
    """The triangle of an unstable entry (l < 0 < u): above u (z - l)/(u - l), below any slope in [0, 1].

    The default lower slope, 1 where u > -l and 0 elsewhere, gives the smaller area (Zhang et al., "Efficient
    neural network robustness certification with general activation functions", NeurIPS 2018, section 3.2).
    """

    def interval(
        self, lower: Float[Tensor, "batch *shape"], upper: Float[Tensor, "batch *shape"]
    ) -> tuple[Float[Tensor, "batch *shape"], Float[Tensor, "batch *shape"]]:
        """Both ends, clipped."""
        return lower.clamp(min=0), upper.clamp(min=0)

    def undecided(
        self, lower: Float[Tensor, "batch *shape"], upper: Float[Tensor, "batch *shape"]
    ) -> Bool[Tensor, "batch *shape"]:
        """The unstable entries."""
        return (lower < 0) & (upper > 0)

    def free_slopes(
        self, lower: Float[Tensor, "batch *shape"], upper: Float[Tensor, "batch *shape"]
    ) -> tuple[Float[Tensor, "batch *shape"], Float[Tensor, "batch *shape"]]:
        """From 0 to 1 where unstable."""
        active = (upper > 0).to(upper.dtype)
        return active * (lower >= 0), active

    def pieces(
        self,
        lower: Float[Tensor, "batch *shape"],
        upper: Float[Tensor, "batch *shape"],
        slope: Float[Tensor, "batch *shape"] | None = None,
    ) -> Pieces:
        """The triangle, with an upper line that stays above it in floating point."""
        below, above = lower.clamp(max=0), upper.clamp(min=0)
        width = above - below
        chord = above / torch.where(width > 0, width, 1.0)
        # The chord has to be above at both ends for the slope as it was rounded: a few units in the last
        # place of either end are added to -chord * l.
        eps = torch.finfo(lower.dtype).eps
        intercept = -below * chord * (1 + 8 * eps) + 4 * eps * above * (below < 0)
        if slope is None:
            lower_slope = (above > -below).to(chord.dtype)
        else:
            lower_slope = torch.where(self.undecided(lower, upper), slope.clamp(0, 1), chord)
        return Pieces(lower_slope, None, chord, intercept)
