"""What every loss offers, and what separable losses share."""

import abc
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class AbstractLoss(abc.ABC):
    """A weighted sum of sample losses, L(F) = sum_i c_i l(F_i, Y_i), with sum_i c_i = 1.

    With equal weights c_i = 1/n this is the mean loss of the training problem. The dual of the
    training problem is max_V D(V) subject to max_{||u|| <= 1} ||V' (Xu)_+|| <= weight decay, with
    D(V) = -sum_i c_i l*(-V_i / c_i) and, where an unregularised output bias is trained, 1'V = 0
    (Pilanci & Ergen, ICML 2020).
    """

    targets: Float[Tensor, "n K"]
    weights: Float[Tensor, " n"]

    name: ClassVar[str]

    @abc.abstractmethod
    def value(self, F: Float[Tensor, "n K"]) -> Float[Tensor, ""]:
        """L(F)."""

    @abc.abstractmethod
    def negative_gradient(self, F: Float[Tensor, "n K"]) -> Float[Tensor, "n K"]:
        """V = -dL/dF, a point of the domain of the dual."""

    @abc.abstractmethod
    def curvature(self, F: Float[Tensor, "n K"], dual: Tensor | None = None) -> Tensor:
        """What :meth:`hessian_product` and :meth:`quadratic_form` need of the point F.

        ``dual`` is the dual variable of a smoothed kink, for the losses that have one.
        """

    @abc.abstractmethod
    def hessian_product(self, curvature: Tensor, dF: Float[Tensor, "*m n K"]) -> Float[Tensor, "*m n K"]:
        """Second derivative of L at a point, applied to dF."""

    @abc.abstractmethod
    def curvature_root(self, curvature: Tensor) -> Tensor:
        """R with Hessian R R': its diagonal n x K where the Hessian is diagonal, else n x K x K."""

    @abc.abstractmethod
    def quadratic_form(self, curvature: Tensor, A: Float[Tensor, "k K"]) -> Float[Tensor, "k n"]:
        """a_j' H_i a_j for each row a_j of A and the K x K Hessian H_i of each sample."""

    @abc.abstractmethod
    def prox(self, Z: Float[Tensor, "n K"], step: float) -> Float[Tensor, "n K"]:
        """argmin over F of step * L(F) + ||F - Z||^2 / 2."""

    @abc.abstractmethod
    def summed_hessians(self, curvature: Tensor, S: Float[Tensor, "k n"]) -> Float[Tensor, "k K K"]:
        """sum_i S_ji H_i for each row of S and the K x K Hessian H_i of each sample."""

    @abc.abstractmethod
    def dual_value(self, V: Float[Tensor, "n K"]) -> Float[Tensor, ""]:
        """D(V) for V inside the domain of the dual."""

    @abc.abstractmethod
    def best_scale(self, V: Float[Tensor, "n K"], limit: float) -> float:
        """The s in [0, limit] with s V in the domain that maximises D(s V)."""

    def within_domain(self, V: Float[Tensor, "n K"]) -> Float[Tensor, "n K"]:
        """A point of the domain of the dual near V, V itself where it is inside; of a domain without bounds V."""
        return V

    @abc.abstractmethod
    def balance(self, V: Float[Tensor, "n K"]) -> Float[Tensor, "n K"]:
        """A point of the domain near V with 1'V = 0, as an unregularised output bias demands."""

    def smoothed(self, mu: float) -> "AbstractLoss":
        """A twice differentiable loss within mu/2 above this one; smooth losses return themselves."""
        del mu
        return self

    def initial_dual(self, F: Float[Tensor, "n K"]) -> Tensor | None:
        """Dual variable of the smoothed kink, for primal-dual Newton steps; None for smooth losses."""
        del F
        return None

    def advance_dual(self, F: Float[Tensor, "n K"], dual: Tensor | None, dF: Float[Tensor, "n K"]) -> Tensor | None:
        """The dual variable after a step dF from F."""
        del F, dF
        return dual

    def smoothing_error(self, F: Float[Tensor, "n K"]) -> float:
        """By how much smoothing has raised L(F)."""
        del F
        return 0.0

    @property
    @abc.abstractmethod
    def largest_curvature(self) -> float:
        """Largest second derivative of the sample loss l in its first argument."""

    @property
    def n_outputs(self) -> int:
        """Number K of outputs."""
        return self.targets.shape[1]

    def optimal_bias(self, F: Float[Tensor, "n K"], max_steps: int = 50) -> Float[Tensor, " K"]:
        """The constant b that minimises L(F + b), by damped Newton steps."""
        bias = F.new_zeros(F.shape[1])
        value = self.value(F)
        for _ in range(max_steps):
            step = self._bias_step(F + bias)
            scale = 1.0
            while scale > 1e-8 and self.value(F + bias + scale * step) > value:
                scale *= 0.5
            candidate = self.value(F + bias + scale * step)
            if not candidate < value:
                break
            bias, value = bias + scale * step, candidate
        return bias

    def _bias_step(self, F: Float[Tensor, "n K"]) -> Float[Tensor, " K"]:
        curvature = self.curvature(F)
        ones = torch.eye(F.shape[1], dtype=F.dtype, device=F.device)
        H = torch.stack([self.hessian_product(curvature, row.expand_as(F)).sum(0) for row in ones])
        precision = torch.finfo(F.dtype)  # softmax has no curvature along a shift of all outputs
        ridge = max(1e-12, 8 * precision.eps) * torch.trace(H) + precision.tiny
        return torch.linalg.solve(H + ridge * ones, self.negative_gradient(F).sum(0))


class AbstractSeparableLoss(AbstractLoss):
    """Losses whose Hessian is diagonal: ``curvature`` is that diagonal, n x K."""

    def hessian_product(self, curvature: Tensor, dF: Float[Tensor, "*m n K"]) -> Float[Tensor, "*m n K"]:
        """Second derivative of L at a point, applied to dF."""
        return curvature * dF

    def curvature_root(self, curvature: Tensor) -> Float[Tensor, "n K"]:
        """Square roots of the diagonal."""
        return curvature.sqrt()

    def quadratic_form(self, curvature: Tensor, A: Float[Tensor, "k K"]) -> Float[Tensor, "k n"]:
        """a_j' H_i a_j for each row a_j of A and each sample i."""
        return (A * A) @ curvature.T

    def summed_hessians(self, curvature: Tensor, S: Float[Tensor, "k n"]) -> Float[Tensor, "k K K"]:
        """sum_i S_ji H_i, diagonal."""
        return torch.diag_embed(S @ curvature)


class AbstractMarginLoss(AbstractSeparableLoss):
    """Binary losses of the margin y f, y in {-1, +1}, whose dual lives in 0 <= y_i v_i / c_i <= 1."""

    def box_coordinates(self, V: Float[Tensor, "n 1"]) -> Float[Tensor, "n 1"]:
        """q_i = y_i v_i / c_i, in [0, 1] inside the domain."""
        return self.targets * V / self.weights[:, None]

    def within_domain(self, V: Float[Tensor, "n 1"]) -> Float[Tensor, "n 1"]:
        """Clip every q_i to [0, 1]."""
        return self.targets * self.weights[:, None] * self.box_coordinates(V).clamp(0.0, 1.0)

    def balance(self, V: Float[Tensor, "n 1"]) -> Float[Tensor, "n 1"]:
        """Scale the larger of the two classes' sums down, which keeps every q_i in [0, 1]."""
        positive = torch.where(self.targets > 0, V, 0.0).sum()
        negative = -torch.where(self.targets < 0, V, 0.0).sum()
        smaller = torch.minimum(positive, negative)
        up = torch.where(positive > smaller, smaller / positive, 1.0)
        down = torch.where(negative > smaller, smaller / negative, 1.0)
        return V * torch.where(self.targets > 0, up, down)

    def domain_scale(self, V: Float[Tensor, "n 1"], limit: float) -> float:
        """The largest s <= limit that keeps s V in the domain."""
        largest = float(self.box_coordinates(V).max())
        return limit if largest * limit <= 1.0 else 1.0 / largest


def maximise_concave(derivative: Callable[[float], float], upper: float, steps: int = 60) -> float:
    """Bisect the root of a non-increasing derivative on [0, upper]."""
    low, high = 0.0, upper
    if derivative(high) >= 0:
        return high
    for _ in range(steps):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if derivative(middle) > 0 else (low, middle)
    return low


def newton_prox(loss: AbstractLoss, Z: Float[Tensor, "n K"], step: float, max_steps: int = 50) -> Float[Tensor, "n K"]:
    """The prox of a smooth loss by Newton steps, each sample on its own and halved while its gradient grows.

    The Hessian of step * L + ||. - Z||^2 / 2 is I + step R R' with R from ``curvature_root``.
    """
    F, accuracy = Z, 8 * torch.finfo(Z.dtype).eps
    gradient = F - Z - step * loss.negative_gradient(F)
    scale = torch.ones_like(F[:, :1])
    for _ in range(max_steps):
        size = gradient.norm(dim=1, keepdim=True)
        if bool((size <= accuracy * (1 + Z.abs().amax(1, keepdim=True))).all()):
            break
        trial = F + scale * _newton_step(loss.curvature_root(loss.curvature(F)), step, -gradient)
        trial_gradient = trial - Z - step * loss.negative_gradient(trial)
        better = trial_gradient.norm(dim=1, keepdim=True) < size
        F, gradient = torch.where(better, trial, F), torch.where(better, trial_gradient, gradient)
        scale = torch.where(better, (2 * scale).clamp(max=1.0), 0.5 * scale)
    return F


def _newton_step(root: Tensor, step: float, right: Tensor) -> Tensor:
    if root.ndim == 2:
        return right / (1 + step * root * root)
    H = step * root @ root.mT
    H.diagonal(dim1=1, dim2=2).add_(1.0)
    return torch.linalg.solve(H, right[:, :, None])[:, :, 0]
