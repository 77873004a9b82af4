"""How a loss enters the interior point: smooth ones by their Hessian, the hinge by slacks and multipliers.

The hinge c (1 - y f)_+ is min c xi over xi >= 0 and sigma = xi - (1 - y f) >= 0, with multipliers
rho and q, rho + q = c; its dual variable is v = y q.
"""

import abc
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from convexnn.losses import AbstractLoss, HingeLoss
from convexnn.solvers.newton import Linearisation


@dataclass(frozen=True)
class Kink:
    """Slacks p = (xi, sigma) and multipliers q = (rho, q) of each sample, all positive; none for smooth losses."""

    p: Float[Tensor, "m 2"]
    q: Float[Tensor, "m 2"]

    def products(self) -> Float[Tensor, "m 2"]:
        """What goes to zero."""
        return self.p * self.q


@dataclass(frozen=True)
class AbstractLossPart(abc.ABC):
    """The loss at one iterate."""

    loss: AbstractLoss
    F: Float[Tensor, "n K"]
    kink: Kink

    @abc.abstractmethod
    def dual(self) -> Float[Tensor, "n K"]:
        """V in the domain of the dual."""

    @abc.abstractmethod
    def linearised(self) -> Linearisation:
        """L'' with V(F + dF) = shifted(products) - L'' dF to first order."""

    @abc.abstractmethod
    def shifted(self, products: Float[Tensor, "m 2"]) -> Float[Tensor, "n K"]:
        """V after a step dF = 0 whose linearised complementarity products are these."""

    @abc.abstractmethod
    def moved(self, products: Float[Tensor, "m 2"], dF: Float[Tensor, "n K"], LdF: Float[Tensor, "n K"]) -> Kink:
        """The step of slacks and multipliers that goes with dF and with L'' dF."""


class SmoothPart(AbstractLossPart):
    """Losses with a Hessian."""

    def dual(self) -> Float[Tensor, "n K"]:
        """Minus the gradient."""
        return self.loss.negative_gradient(self.F)

    def linearised(self) -> Linearisation:
        """The Hessian."""
        return Linearisation(self.loss.curvature_root(self.loss.curvature(self.F)))

    def shifted(self, products: Float[Tensor, "m 2"]) -> Float[Tensor, "n K"]:
        """Nothing shifts."""
        del products
        return self.dual()

    def moved(self, products: Float[Tensor, "m 2"], dF: Float[Tensor, "n K"], LdF: Float[Tensor, "n K"]) -> Kink:
        """Nothing moves."""
        del dF, LdF
        return Kink(products, products)


class HingePart(AbstractLossPart):
    """The hinge; with a = rho/xi and b = q/sigma its curvature is a b / (a + b)."""

    @property
    def _ratios(self) -> tuple[Tensor, Tensor]:
        ratio = self.kink.q / self.kink.p
        return ratio[:, 0], ratio[:, 1]

    @property
    def _short(self) -> Tensor:
        """sigma - xi + 1 - y f."""
        return self.kink.p[:, 1] - self.kink.p[:, 0] + (1 - self.loss.targets * self.F)[:, 0]

    def dual(self) -> Float[Tensor, "n K"]:
        """y q, scaled into the box."""
        return (self.loss.weights * self.kink.q[:, 1] / self.kink.q.sum(1))[:, None] * self.loss.targets

    def linearised(self) -> Linearisation:
        """Diagonal."""
        a, b = self._ratios
        return Linearisation((a * b / (a + b)).sqrt()[:, None])

    def _right(self, products: Tensor) -> Tensor:
        """(a + b) dxi at dF = 0."""
        ratio = products / self.kink.p
        return ratio.sum(1) - (self.loss.weights - self.kink.q.sum(1)) + self._ratios[1] * self._short

    def shifted(self, products: Float[Tensor, "m 2"]) -> Float[Tensor, "n K"]:
        """y (q + dq) at dF = 0."""
        return (self.kink.q[:, 1] + self._dq(products))[:, None] * self.loss.targets

    def _dq(self, products: Tensor) -> Tensor:
        a, b = self._ratios
        return products[:, 1] / self.kink.p[:, 1] + b * self._short - b / (a + b) * self._right(products)

    def moved(self, products: Float[Tensor, "m 2"], dF: Float[Tensor, "n K"], LdF: Float[Tensor, "n K"]) -> Kink:
        """By back substitution, from the side that is the larger: the other one's rounding would grow."""
        a, b = self._ratios
        p, q = self.kink.p, self.kink.q
        along = (self.loss.targets * dF)[:, 0]
        dxi = (self._right(products) - b * along) / (a + b)
        dp = torch.stack([dxi, dxi + along - self._short], 1)
        dq_sigma = self._dq(products) - (self.loss.targets * LdF)[:, 0]
        dq = torch.stack([self.loss.weights - q.sum(1) - dq_sigma, dq_sigma], 1)
        dual_side = q / self.loss.weights[:, None] > p
        return Kink(torch.where(dual_side, (products - p * dq) / q, dp), dq)


def first_kink(loss: AbstractLoss, F: Float[Tensor, "n K"]) -> Kink:
    """Slacks of at least one, multipliers in the middle."""
    if not isinstance(loss, HingeLoss):
        return Kink(F.new_zeros((0, 2)), F.new_zeros((0, 2)))
    t = (1 - loss.targets * F)[:, 0]
    xi = t.clamp(min=0.0) + 1.0
    return Kink(torch.stack([xi, xi - t], 1), 0.5 * loss.weights[:, None].expand(-1, 2))


def loss_part(loss: AbstractLoss, F: Float[Tensor, "n K"], kink: Kink) -> AbstractLossPart:
    """The part that this loss needs."""
    return (HingePart if isinstance(loss, HingeLoss) else SmoothPart)(loss, F, kink)
