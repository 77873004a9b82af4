"""Cross entropy of the softmax of K outputs, one-hot targets."""

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from convexnn.losses.base import AbstractLoss, maximise_concave, newton_prox


class SoftmaxLoss(AbstractLoss):
    """l(f, y) = log sum_k exp f_k - y'f; D = the mean entropy of p_i = y_i - v_i / c_i."""

    name: ClassVar[str] = "softmax"

    def value(self, F: Float[Tensor, "n K"]) -> Float[Tensor, ""]:
        """L(F)."""
        return torch.dot(self.weights, torch.logsumexp(F, 1) - (F * self.targets).sum(1))

    def negative_gradient(self, F: Float[Tensor, "n K"]) -> Float[Tensor, "n K"]:
        """V = c (Y - softmax(F))."""
        return self.weights[:, None] * (self.targets - torch.softmax(F, 1))

    def curvature(self, F: Float[Tensor, "n K"], dual: Tensor | None = None) -> Tensor:
        """The class probabilities."""
        del dual
        return torch.softmax(F, 1)

    def hessian_product(self, curvature: Tensor, dF: Float[Tensor, "*m n K"]) -> Float[Tensor, "*m n K"]:
        """(diag(p) - p p') dF for each sample, times its weight."""
        weighted = curvature * dF
        return self.weights[:, None] * (weighted - curvature * weighted.sum(-1, keepdim=True))

    def curvature_root(self, curvature: Tensor) -> Float[Tensor, "n K K"]:
        """diag(r) - p r', r the square roots of p, times the root of the weight."""
        r = curvature.sqrt()
        return self.weights.sqrt()[:, None, None] * (torch.diag_embed(r) - curvature[:, :, None] * r[:, None, :])

    def quadratic_form(self, curvature: Tensor, A: Float[Tensor, "k K"]) -> Float[Tensor, "k n"]:
        """The variance of a_j under p_i, times the weight of sample i."""
        return self.weights * ((A * A) @ curvature.T - (A @ curvature.T) ** 2)

    def summed_hessians(self, curvature: Tensor, S: Float[Tensor, "k n"]) -> Float[Tensor, "k K K"]:
        """sum_i S_ji c_i (diag(p_i) - p_i p_i')."""
        S = S * self.weights
        products = torch.stack([(S * p) @ curvature for p in curvature.T], 1)
        return torch.diag_embed(S @ curvature) - products

    def _probabilities(self, V: Float[Tensor, "n K"]) -> Float[Tensor, "n K"]:
        return (self.targets - V / self.weights[:, None]).clamp(min=0.0)

    def prox(self, Z: Float[Tensor, "n K"], step: float) -> Float[Tensor, "n K"]:
        """By Newton steps."""
        return newton_prox(self, Z, step)

    @property
    def largest_curvature(self) -> float:
        """Between two classes of equal probability."""
        return 0.5

    def dual_value(self, V: Float[Tensor, "n K"]) -> Float[Tensor, ""]:
        """The weighted mean entropy of the probabilities that V stands for."""
        p = self._probabilities(V)
        return -torch.dot(self.weights, torch.xlogy(p, p).sum(1))

    def best_scale(self, V: Float[Tensor, "n K"], limit: float) -> float:
        """The root of the entropy's derivative along V; every s in [0, 1] stays in the simplex."""
        shift = V / self.weights[:, None]

        def derivative(s: float) -> float:
            p = (self.targets - s * shift).clamp(min=1e-300)
            return float(torch.dot(self.weights, (shift * (torch.log(p) + 1)).sum(1)))

        return maximise_concave(derivative, min(1.0, limit))

    def within_domain(self, V: Float[Tensor, "n K"]) -> Float[Tensor, "n K"]:
        """Clip the probabilities at zero and scale them to a sum of one."""
        p = self._probabilities(V)
        return self.weights[:, None] * (self.targets - p / p.sum(1, keepdim=True).clamp(min=1e-300))

    def balance(self, V: Float[Tensor, "n K"]) -> Float[Tensor, "n K"]:
        """Mix in a constant distribution that moves the class frequencies onto those of the targets."""
        excess = V.sum(0)  # class frequencies of the targets, less those of the probabilities
        if not bool((excess.abs() > 0).any()):
            return V
        frequencies = self.weights @ self.targets
        # The smallest mixing weight for which the constant distribution is non-negative.
        p_frequencies = frequencies - excess
        share = float((-excess / p_frequencies.clamp(min=1e-300)).clamp(min=0.0).max())
        share = min(1.0, share + 1e-14)
        constant = ((frequencies - (1 - share) * p_frequencies) / share).clamp(min=0.0)
        p = (1 - share) * (self.targets - V / self.weights[:, None]) + share * constant / constant.sum()
        return self.weights[:, None] * (self.targets - p)
