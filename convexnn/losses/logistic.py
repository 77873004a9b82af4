"""Logistic loss log(1 + exp(-y f)), y in {-1, +1}, one output."""

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from convexnn.losses.base import AbstractMarginLoss, maximise_concave, newton_prox


class LogisticLoss(AbstractMarginLoss):
    """l(f, y) = log(1 + exp(-y f)); D = -sum_i c_i [q log q + (1-q) log(1-q)], q_i = y_i v_i / c_i."""

    name: ClassVar[str] = "logistic"

    def value(self, F: Float[Tensor, "n 1"]) -> Float[Tensor, ""]:
        """L(F)."""
        return torch.dot(self.weights, torch.nn.functional.softplus(-self.targets * F)[:, 0])

    def negative_gradient(self, F: Float[Tensor, "n 1"]) -> Float[Tensor, "n 1"]:
        """V = c y sigmoid(-y f)."""
        return self.weights[:, None] * self.targets * torch.sigmoid(-self.targets * F)

    def curvature(self, F: Float[Tensor, "n 1"], dual: Tensor | None = None) -> Tensor:
        """The weights times p (1 - p)."""
        del dual
        p = torch.sigmoid(F)
        return self.weights[:, None] * p * (1 - p)

    def prox(self, Z: Float[Tensor, "n 1"], step: float) -> Float[Tensor, "n 1"]:
        """By Newton steps."""
        return newton_prox(self, Z, step)

    @property
    def largest_curvature(self) -> float:
        """At f = 0."""
        return 0.25

    def dual_value(self, V: Float[Tensor, "n 1"]) -> Float[Tensor, ""]:
        """The weighted binary entropy of q."""
        q = self.box_coordinates(V).clamp(0.0, 1.0)[:, 0]
        return -torch.dot(self.weights, torch.xlogy(q, q) + torch.xlogy(1 - q, 1 - q))

    def best_scale(self, V: Float[Tensor, "n 1"], limit: float) -> float:
        """The root of the entropy's derivative along V, clipped to the domain and to the limit."""
        q = self.box_coordinates(V).clamp(0.0, 1.0)[:, 0]

        def derivative(s: float) -> float:
            t = (s * q).clamp(max=1.0)
            slope = torch.where(q > 0, q * (torch.log1p(-t) - torch.log(t.clamp(min=1e-300))), 0.0)
            return float(torch.dot(self.weights, slope))

        return maximise_concave(derivative, self.domain_scale(V, limit))
