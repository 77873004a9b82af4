"""Second-order cones ||x_1|| <= x_0, one a row, and their Nesterov-Todd scaling (Nesterov & Todd 1997)."""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

_FAR = 1e9


@dataclass(frozen=True)
class Scaling:
    """W with W z = W^-1 x = lam for points x and z inside the cones; w = (w0, w1), w0^2 - ||w1||^2 = 1."""

    w0: Float[Tensor, "q 1"]
    w1: Float[Tensor, "q g"]
    eta: Float[Tensor, "q 1"]
    lam: Float[Tensor, "q e"]

    @classmethod
    def of(cls, x: Float[Tensor, "q e"], z: Float[Tensor, "q e"]) -> "Scaling":
        """The scaling of two interior points."""
        size_x, size_z = hyperbolic_norm(x), hyperbolic_norm(z)
        xb, zb = x / size_x, z / size_z
        gamma = torch.sqrt(0.5 * (1 + (xb * zb).sum(1, keepdim=True)))
        w0 = (xb[:, :1] + zb[:, :1]) / (2 * gamma)
        w1 = (xb[:, 1:] - zb[:, 1:]) / (2 * gamma)
        eta = torch.sqrt(size_x / size_z)
        return cls(w0, w1, eta, _apply(w0, w1, eta, z))

    def apply(self, a: Float[Tensor, "q e"]) -> Float[Tensor, "q e"]:
        """W a."""
        return _apply(self.w0, self.w1, self.eta, a)

    def apply_inverse(self, a: Float[Tensor, "q e"]) -> Float[Tensor, "q e"]:
        """W^-1 a."""
        return _apply(self.w0, -self.w1, 1 / self.eta, a)

    @cached_property
    def head(self) -> Float[Tensor, "q 1"]:
        """The entry (0, 0) of W^-2."""
        return (2 * self.w0**2 - 1) / self.eta**2

    @cached_property
    def cross(self) -> Float[Tensor, "q g"]:
        """The rest of row 0 of W^-2."""
        return -2 * self.w0 * self.w1 / self.eta**2

    @cached_property
    def pull(self) -> Float[Tensor, "q 1"]:
        """beta in the Schur complement of W^-2 after its row 0, I / eta^2 - beta w1 w1'."""
        return 2 / (self.eta**2 * (2 * self.w0**2 - 1))


def _apply(w0: Tensor, w1: Tensor, eta: Tensor, a: Tensor) -> Tensor:
    along = (w1 * a[:, 1:]).sum(1, keepdim=True)
    return eta * torch.cat([w0 * a[:, :1] + along, a[:, 1:] + w1 * (a[:, :1] + along / (1 + w0))], 1)


def hyperbolic_norm(x: Float[Tensor, "q e"]) -> Float[Tensor, "q 1"]:
    """sqrt(x_0^2 - ||x_1||^2)."""
    tail = x[:, 1:].norm(dim=1, keepdim=True)
    return torch.sqrt(((x[:, :1] - tail) * (x[:, :1] + tail)).clamp(min=1e-300))


def jordan_product(a: Float[Tensor, "q e"], b: Float[Tensor, "q e"]) -> Float[Tensor, "q e"]:
    """(a'b, a_0 b_1 + b_0 a_1)."""
    return torch.cat([(a * b).sum(1, keepdim=True), a[:, :1] * b[:, 1:] + b[:, :1] * a[:, 1:]], 1)


def jordan_divide(a: Float[Tensor, "q e"], b: Float[Tensor, "q e"]) -> Float[Tensor, "q e"]:
    """The x with jordan_product(a, x) = b."""
    along = (a[:, 1:] * b[:, 1:]).sum(1, keepdim=True)
    head = (a[:, :1] * b[:, :1] - along) / hyperbolic_norm(a) ** 2
    return torch.cat([head, (b[:, 1:] - head * a[:, 1:]) / a[:, :1]], 1)


def longest_steps(x: Float[Tensor, "q e"], dx: Float[Tensor, "q e"]) -> Float[Tensor, " q"]:
    """For each cone the largest step from inside that does not leave it."""
    tail = x[:, 1:].norm(dim=1)
    a = dx[:, 0] ** 2 - (dx[:, 1:] ** 2).sum(1)
    b = x[:, 0] * dx[:, 0] - (x[:, 1:] * dx[:, 1:]).sum(1)
    c = (x[:, 0] - tail) * (x[:, 0] + tail)
    discriminant = b * b - a * c
    root = discriminant.clamp(min=0.0).sqrt()
    q = -(b + torch.where(b >= 0, root, -root))
    far = torch.full_like(b, _FAR)

    def positive(step: Tensor) -> Tensor:
        return torch.where((step > 0) & (discriminant >= 0) & torch.isfinite(step), step, far)

    head = torch.where(dx[:, 0] < 0, -x[:, 0] / dx[:, 0], far)
    return torch.minimum(torch.minimum(positive(q / a), positive(c / q)), head)


def longest_step(x: Float[Tensor, "q e"], dx: Float[Tensor, "q e"]) -> float:
    """The largest step from inside the cones that does not leave them."""
    return min(_FAR, float(longest_steps(x, dx).min()))


def longest_ratio(x: Tensor, dx: Tensor) -> float:
    """The largest step that keeps positive numbers positive."""
    return _FAR if x.numel() == 0 else 1 / max(float((-dx / x).max()), 1 / _FAR)
