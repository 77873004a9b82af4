"""Branches of parallel three-layer networks: their patterns, their cones, and directions inside these.

A branch computes s (sum_j sigma_j (X z_j)_+)_+ for m hidden neurons. With the patterns D_1j of its hidden neurons,
their signs sigma_j, and the pattern D_2 of its sum it is linear in Z = (z_1, ..., z_m) on the cone

    (2 D_1j - I) X z_j >= 0        (2 D_2 - I) sum_j sigma_j D_1j X z_j >= 0
"""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from convexnn.projection import AbstractCones, ColumnProducts

_CENTRE_STEPS = 30
_CHUNK = 256  # branches that are worked on together


@dataclass(frozen=True)
class Branches:
    """Patterns and signs of branches, each with a direction inside its cone."""

    D1: Bool[Tensor, "T m n"]
    sigma: Float[Tensor, "T m"]  # -1 or +1
    D2: Bool[Tensor, "T n"]
    inside: Float[Tensor, "T m d"]  # of norm one as a whole

    def __len__(self) -> int:
        return len(self.D1)

    @property
    def width(self) -> int:
        """Hidden neurons m of each branch."""
        return self.D1.shape[1]

    def take(self, index: Int[Tensor, " k"] | Bool[Tensor, " T"]) -> "Branches":
        """Some of the branches."""
        return Branches(self.D1[index], self.sigma[index], self.D2[index], self.inside[index])

    def joined(self, other: "Branches") -> tuple["Branches", Int[Tensor, " k"]]:
        """These branches, then those of ``other`` that are new; their indices in both together."""
        both = Branches(
            torch.cat([self.D1, other.D1]),
            torch.cat([self.sigma, other.sigma]),
            torch.cat([self.D2, other.D2]),
            torch.cat([self.inside, other.inside]),
        )
        first = both._first_of_each()
        return both.take(first), first

    def _first_of_each(self) -> Int[Tensor, " k"]:
        """Hidden neurons count in any order. Where none of them is active D_2 does not matter."""
        if len(self) == 0:
            return torch.zeros(0, dtype=torch.long)
        signed = torch.cat([self.D1, (self.sigma > 0)[:, :, None]], 2)
        keys = np.sort(_rows_as_bytes(signed.reshape(-1, signed.shape[2])).reshape(len(self), -1), axis=1)
        second = _rows_as_bytes(self.D2 & self.D1.any(1))
        keys = np.concatenate([keys, second[:, None]], 1)
        _, first = np.unique(keys, axis=0, return_index=True)
        return torch.from_numpy(np.sort(first))


def _rows_as_bytes(D: Bool[Tensor, "k n"]) -> np.ndarray:
    """A number for each row, equal where rows are."""
    packed = np.packbits(D.numpy(), axis=1)
    return np.unique(packed, axis=0, return_inverse=True)[1].reshape(-1)


def of_weights(X: Float[Tensor, "n d"], Z: Float[Tensor, "T m d"], sigma: Float[Tensor, "T m"]) -> Branches:
    """The branches that these weights lie in."""
    T = Z @ X.T
    size = Z.flatten(1).norm(dim=1).clamp(min=torch.finfo(Z.dtype).tiny)
    D2 = (sigma[:, :, None] * torch.relu(T)).sum(1) >= 0
    return Branches(T >= 0, sigma, D2, Z / size[:, None, None])


@dataclass(frozen=True)
class BranchCones(AbstractCones):
    """The cones of branches: m rows for each sample from the hidden neurons, and one from their sum.

    Where no hidden neuron is active the sum has no row: that of the first neuron takes its place. Samples of zeros have
    no rows.
    """

    X: Float[Tensor, "l d"]  # samples that are not zero
    first: Float[Tensor, "B m l"]  # 2 D_1j - 1
    second: Float[Tensor, "B m l"]  # (2 D_2 - 1) sigma_j D_1j
    products: ColumnProducts

    @classmethod
    def of(cls, X: Float[Tensor, "n d"], branches: Branches) -> "BranchCones":
        """The cone of each branch."""
        live = X.norm(dim=1) > 0
        D1, sign = branches.D1[:, :, live].to(X), 2.0 * branches.D2[:, live].to(X) - 1.0
        first, second = 2.0 * D1 - 1.0, sign[:, None] * branches.sigma[:, :, None] * D1
        second[:, 0] = torch.where(branches.D1[:, :, live].any(1), second[:, 0], first[:, 0])
        return cls(X[live], first, second, ColumnProducts.of(X[live]))

    def __len__(self) -> int:
        return len(self.first)

    @property
    def width(self) -> int:
        """Hidden neurons of each branch."""
        return self.first.shape[1]

    def forward(self, U: Float[Tensor, "B e"]) -> Float[Tensor, "B r"]:
        """Slacks."""
        return self.slacks(self.parts(U) @ self.X.T)

    def parts(self, U: Float[Tensor, "B e"]) -> Float[Tensor, "B m d"]:
        """The weights of each hidden neuron."""
        return U.reshape(len(U), self.width, self.X.shape[1])

    def slacks(self, T: Float[Tensor, "B m l"]) -> Float[Tensor, "B r"]:
        """Of these products with the samples."""
        return torch.cat([(self.first * T).flatten(1), (self.second * T).sum(1)], 1)

    def spread(self, L: Float[Tensor, "B r"]) -> Float[Tensor, "B m l"]:
        """The transpose of :meth:`slacks`."""
        own, joint = self.split(L)
        return (self.first * own).addcmul_(self.second, joint[:, None])

    def split(self, L: Float[Tensor, "B r"]) -> tuple[Float[Tensor, "B m l"], Float[Tensor, "B l"]]:
        """Rows of the hidden neurons and of their sum."""
        count = self.width * len(self.X)
        return L[:, :count].reshape(self.first.shape), L[:, count:]

    def adjoint(self, L: Float[Tensor, "B r"]) -> Float[Tensor, "B e"]:
        """G'l."""
        return (self.spread(L) @ self.X).flatten(1)

    def gram(self, w: Float[Tensor, "B r"]) -> Float[Tensor, "B e e"]:
        """G'diag(w)G: blocks X'diag(.)X for each pair of hidden neurons."""
        own, joint = self.split(w)
        m, d = self.width, self.X.shape[1]
        pairs = torch.tril_indices(m, m)
        weights = self.second[:, pairs[0]] * self.second[:, pairs[1]] * joint[:, None]
        weights[:, pairs[0] == pairs[1]] += own
        grams = self.products.gram(weights.flatten(0, 1), d).reshape(len(w), -1, d, d)
        H = w.new_empty((len(w), m, d, m, d))
        for k, (i, j) in enumerate(pairs.T.tolist()):
            H[:, i, :, j] = H[:, j, :, i] = grams[:, k]
        return H.reshape(len(w), m * d, m * d)

    def take(self, index: Bool[Tensor, " B"] | Int[Tensor, " k"]) -> "BranchCones":
        """Some of the cones."""
        return BranchCones(self.X, self.first[index], self.second[index], self.products)

    @cached_property
    def row_sizes(self) -> Float[Tensor, " r"]:
        """Mean absolute entries of the samples."""
        return self.X.abs().mean(1).repeat(self.width + 1)


def centred(X: Float[Tensor, "n d"], branches: Branches) -> Branches:
    """The same branches with directions at analytic centres, min ||z||^2 / 2 - (1/r) sum of logarithms of slacks.

    Damped Newton steps from the directions inside; where rounding ends them the last point inside is kept.
    """
    cones = BranchCones.of(X, branches)
    if len(cones.X) == 0 or len(branches) == 0:
        return branches
    parts = torch.arange(len(branches)).split(_CHUNK)
    u = torch.cat([_centres(cones.take(part), branches.inside[part].flatten(1)) for part in parts])
    return replace(branches, inside=u.reshape(branches.inside.shape))


def _centres(cones: BranchCones, u: Float[Tensor, "B e"]) -> Float[Tensor, "B e"]:
    r = len(cones.row_sizes)
    for _ in range(_CENTRE_STEPS):
        slack = cones.forward(u)
        H = cones.gram(1.0 / slack**2) / r
        H.diagonal(dim1=1, dim2=2).add_(1.0)
        gradient = u - cones.adjoint(1.0 / slack) / r
        move = -torch.linalg.solve_ex(H, gradient).result
        ratio = -(cones.forward(move) / slack)
        decrement = (-(gradient * move).sum(1, keepdim=True) * r).clamp(min=0.0).sqrt()
        furthest = (0.9 / ratio.amax(1, keepdim=True).clamp(min=1e-9)).clamp(max=1.0)
        step = torch.where(decrement < 0.25, furthest, torch.minimum(1 / (1 + decrement), furthest))
        new = u + step * move
        fine = torch.isfinite(new).all(1) & (cones.forward(new) > 0).all(1)
        u = torch.where(fine[:, None], new, u)
        if float(decrement.max()) < 1e-3:
            break
    return u / u.norm(dim=1, keepdim=True)


def rooms(X: Float[Tensor, "n d"], branches: Branches) -> Float[Tensor, " T"]:
    """The smallest slack of each direction inside, relative to the norm of its sample."""
    size = X.norm(dim=1)
    cones = BranchCones.of(X, branches)
    slack = cones.forward(branches.inside.flatten(1)).reshape(len(branches), branches.width + 1, len(cones.X))
    return (slack / size[size > 0]).flatten(1).amin(1) if len(cones.X) else torch.ones(len(branches)).to(X)
