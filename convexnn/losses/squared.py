"""Squared loss (f - y)^2 / 2, one or more outputs."""

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from convexnn.losses.base import AbstractSeparableLoss


class SquaredLoss(AbstractSeparableLoss):
    """l(f, y) = ||f - y||^2 / 2; D(V) = <V, Y> - sum_i ||V_i||^2 / (2 c_i)."""

    name: ClassVar[str] = "squared"

    def value(self, F: Float[Tensor, "n K"]) -> Float[Tensor, ""]:
        """L(F)."""
        return 0.5 * torch.dot(self.weights, ((F - self.targets) ** 2).sum(1))

    def negative_gradient(self, F: Float[Tensor, "n K"]) -> Float[Tensor, "n K"]:
        """V = c (Y - F)."""
        return self.weights[:, None] * (self.targets - F)

    def curvature(self, F: Float[Tensor, "n K"], dual: Tensor | None = None) -> Tensor:
        """The weights, for every output."""
        del dual
        return self.weights[:, None].expand_as(F)

    def prox(self, Z: Float[Tensor, "n K"], step: float) -> Float[Tensor, "n K"]:
        """(Z + step c Y) / (1 + step c)."""
        pull = step * self.weights[:, None]
        return (Z + pull * self.targets) / (1 + pull)

    @property
    def largest_curvature(self) -> float:
        """The loss is quadratic."""
        return 1.0

    def dual_value(self, V: Float[Tensor, "n K"]) -> Float[Tensor, ""]:
        """D(V), defined for every V."""
        return (V * self.targets).sum() - 0.5 * ((V * V).sum(1) / self.weights).sum()

    def best_scale(self, V: Float[Tensor, "n K"], limit: float) -> float:
        """<V, Y> / sum_i (||V_i||^2 / c_i), clipped to [0, limit]."""
        curvature = float(((V * V).sum(1) / self.weights).sum())
        if curvature == 0.0:
            return 0.0
        return min(limit, max(0.0, float((V * self.targets).sum()) / curvature))

    def balance(self, V: Float[Tensor, "n K"]) -> Float[Tensor, "n K"]:
        """Subtract the weighted mean."""
        return V - self.weights[:, None] * V.sum(0)
