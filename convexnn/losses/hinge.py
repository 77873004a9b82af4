"""Hinge loss (1 - y f)_+, y in {-1, +1}, one output, and its smoothing."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from convexnn.losses.base import AbstractMarginLoss


@dataclass(frozen=True)
class HingeLoss(AbstractMarginLoss):
    """l(f, y) = (1 - y f)_+; D = sum_i y_i v_i on 0 <= y_i v_i / c_i <= 1.

    With mu > 0 the kink is smoothed, l_mu = (t + sqrt(t^2 + mu^2)) / 2 at t = 1 - y f
    (Chen & Harker 1993; Kanzow 1996). Its gradient stays in the domain of the exact dual, so the
    dual value needs no smoothing.
    """

    mu: float = 0.0

    name: ClassVar[str] = "hinge"

    def smoothed(self, mu: float) -> "HingeLoss":
        """The same loss with its kink smoothed over a width mu."""
        return HingeLoss(self.targets, self.weights, mu)

    def _slack(self, F: Float[Tensor, "n 1"]) -> tuple[Tensor, Tensor]:
        t = 1 - self.targets * F
        return t, torch.sqrt(t * t + self.mu**2)

    def value(self, F: Float[Tensor, "n 1"]) -> Float[Tensor, ""]:
        """L(F), of the smoothed loss where mu > 0."""
        t, q = self._slack(F)
        return 0.5 * torch.dot(self.weights, (t + q)[:, 0])

    def negative_gradient(self, F: Float[Tensor, "n 1"]) -> Float[Tensor, "n 1"]:
        """V = c y (1 + t / q) / 2; at an exact kink of the unsmoothed loss, c y / 2."""
        t, q = self._slack(F)
        ratio = torch.where(q > 0, t / q.clamp(min=1e-300), 0.0)
        return 0.5 * self.weights[:, None] * self.targets * (1 + ratio)

    def curvature(self, F: Float[Tensor, "n 1"], dual: Tensor | None = None) -> Tensor:
        """The weights c times (1 - w t/q) / (2 q), which at w = t/q is the second derivative c mu^2 / (2 q^3)."""
        t, q = self._slack(F)
        q = q.clamp(min=1e-150)
        return 0.5 * self.weights[:, None] * (1 - (t / q if dual is None else dual) * t / q).clamp(min=1e-12) / q

    def initial_dual(self, F: Float[Tensor, "n 1"]) -> Tensor | None:
        """W = t / q."""
        t, q = self._slack(F)
        return t / q.clamp(min=1e-150)

    def advance_dual(self, F: Float[Tensor, "n 1"], dual: Tensor | None, dF: Float[Tensor, "n 1"]) -> Tensor | None:
        """Newton step of w q = t, linearised, kept inside (-1, 1)."""
        if dual is None:
            return None
        t, q = self._slack(F)
        ratio = t / q.clamp(min=1e-150)
        change = (1 - dual * ratio) / q.clamp(min=1e-150) * (-self.targets * dF) - (dual - ratio)
        return (dual + change).clamp(-0.99999999, 0.99999999)

    def smoothing_error(self, F: Float[Tensor, "n 1"]) -> float:
        """sum_i c_i (q - |t|) / 2."""
        t, q = self._slack(F)
        return 0.5 * float(torch.dot(self.weights, (q - t.abs())[:, 0]))

    def prox(self, Z: Float[Tensor, "n 1"], step: float) -> Float[Tensor, "n 1"]:
        """Move the margin up to one, by at most step c; of the loss with its kink."""
        return Z + self.targets * (1 - self.targets * Z).clamp(min=0.0).minimum(step * self.weights[:, None])

    def optimal_bias(self, F: Float[Tensor, "n 1"], max_steps: int = 50) -> Float[Tensor, " 1"]:
        """The weighted quantile of the kinks y_i - F_i where the slope changes its sign."""
        del max_steps
        kinks, order = torch.sort((self.targets - F)[:, 0])
        slope = torch.cumsum(self.weights[order], 0) - self.weights[self.targets[:, 0] > 0].sum()
        first = int(torch.argmax((slope >= -1e-15).to(torch.uint8)))
        return kinks[first : first + 1]

    @property
    def largest_curvature(self) -> float:
        """At the smoothed kink."""
        return 0.5 / self.mu if self.mu > 0 else float("inf")

    def dual_value(self, V: Float[Tensor, "n 1"]) -> Float[Tensor, ""]:
        """sum_i y_i v_i."""
        return (self.targets * V).sum()

    def best_scale(self, V: Float[Tensor, "n 1"], limit: float) -> float:
        """The dual is linear: as far as the domain and the limit allow."""
        return self.domain_scale(V, limit) if float(self.dual_value(V)) > 0 else 0.0
