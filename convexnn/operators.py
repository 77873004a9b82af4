"""The gated map: X and the patterns as one linear operator, applied without forming it."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class GatedMap:
    """A: U -> sum_p D_p X u_p for blocks u_p, one for each pattern; leading dimensions are carried along.

    ``mask`` holds the patterns as numbers 0 and 1, one a row.
    """

    X: Float[Tensor, "n d"]
    mask: Float[Tensor, "P n"]

    def forward(self, U: Float[Tensor, "*lead P d"]) -> Float[Tensor, "*lead n"]:
        """sum_p D_p X u_p."""
        return (self.mask * (U @ self.X.T)).sum(-2)

    def adjoint(self, V: Float[Tensor, "*lead n"]) -> Float[Tensor, "*lead P d"]:
        """X'D_p v for every p."""
        return (self.mask * V[..., None, :]) @ self.X

    def gram(self, inner: Float[Tensor, "n n"]) -> Float[Tensor, "n n"]:
        """sum_p D_p K D_p for a symmetric K: with K = X M^-1 X' this is A (I x M)^-1 A'."""
        return inner * (self.mask.T @ self.mask)


@dataclass(frozen=True)
class ConeMap:
    """G: u_p -> (2D_p - I) X u_p, the slacks of the cone of each pattern.

    Rows of X that are zero have no slack and are left out.
    """

    X: Float[Tensor, "m d"]
    signs: Float[Tensor, "P m"]

    def forward(self, U: Float[Tensor, "*lead P d"]) -> Float[Tensor, "*lead P m"]:
        """Slacks; the cone of pattern p is where its row is non-negative."""
        return self.signs * (U @ self.X.T)

    def adjoint(self, L: Float[Tensor, "*lead P m"]) -> Float[Tensor, "*lead P d"]:
        """X'(2D_p - I) l_p."""
        return (self.signs * L) @ self.X

    def repaired(self, U: Float[Tensor, "*lead P d"], gates: Float[Tensor, "P d"]) -> Float[Tensor, "*lead P d"]:
        """The nearest points u_p + t g_p, t >= 0, inside the cones, for directions g_p inside them."""
        if self.X.shape[0] == 0:
            return U
        inside = self.forward(gates).clamp(min=torch.finfo(U.dtype).tiny)
        short = (-self.forward(U) / inside).amax(-1).clamp(min=0.0)
        return U + short[..., None] * gates
