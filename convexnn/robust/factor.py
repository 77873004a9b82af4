"""Factorisations of the matrix of hard cones, on (u, rho of blocks, rho of groups, bias).

It is the sum of a small matrix E_j for each block and a small one Q_g for each group of samples with the same slope.
It is either formed and factorised, or, where groups are fewer than blocks, inverted by Woodbury with one matrix of
the size of the groups' slopes. Soft cones: :mod:`convexnn.robust.charged`.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from convexnn.robust.blocks import RobustBlocks
from convexnn.robust.coupling import RIDGES, Coupling
from convexnn.robust.reach import ReachForm
from convexnn.solvers.cones import Scaling

_FEWER = 0.8  # share of the blocks' size that the groups' may have for Woodbury to pay
_ACCURATE_UP_TO = 1e9  # largest diagonal entry of its matrix; beyond, rounding leaves too little of the direction


@dataclass(frozen=True)
class Parts:
    """The small matrices: E on (u, rho), Q on (z, rho of the group), and the row of the bias."""

    E: Float[Tensor, "B e e"]
    Q: Float[Tensor, "g e e"]
    bias: Float[Tensor, "g e"]
    corner: float

    @classmethod
    def of(cls, blocks: RobustBlocks, groups: Scaling, own: ReachForm, joint: ReachForm, coupling: Coupling) -> "Parts":
        """With the margins of each group in Q."""
        E = block_matrices(blocks, groups, own, coupling)
        Q, bias = _with_margins(blocks, joint.matrix(), coupling)
        return cls(E, Q, bias, float((coupling.single.sum(0) + 4 * coupling.difference).sum()))


def factorised(blocks: RobustBlocks, parts: Parts) -> "DenseFactor | GroupFactor":
    """The cheaper of the two factorisations."""
    g, d = len(blocks.shared), blocks.X.shape[1]
    if g * d < _FEWER * len(blocks) * (d + 1):
        found = GroupFactor.of(blocks, parts)
        if found is not None:
            return found
    return DenseFactor.of(blocks, parts)


@dataclass(frozen=True)
class DenseFactor:
    """The Cholesky factor of the whole matrix."""

    factor: Float[Tensor, "N N"]

    @classmethod
    def of(cls, blocks: RobustBlocks, parts: Parts) -> "DenseFactor":
        """Build and factorise; a ridge is added where rounding has made the matrix indefinite."""
        matrix = _matrix(blocks, parts)
        diagonal = matrix.diagonal().clone()
        for ridge in RIDGES:
            matrix.diagonal().copy_((1 + ridge) * diagonal)
            factor, info = torch.linalg.cholesky_ex(matrix)
            if int(info) == 0:
                break
        return cls(factor)

    def solve(self, vector: Float[Tensor, " N"], *, refine: bool = True) -> Float[Tensor, " N"]:
        """The inverse, applied."""
        del refine
        return torch.cholesky_solve(vector[:, None], self.factor)[:, 0]


@dataclass(frozen=True)
class GroupFactor:
    """With rho of the groups gone, Q_g = R R' on the slopes z = S u, and the Cholesky factor of I + R'S E^-1 S'R."""

    S: Float[Tensor, "g B"]
    E: Float[Tensor, "B e e"]
    blocks: Float[Tensor, "B e e"]  # Cholesky factors of E
    R: Float[Tensor, "g d d"]
    inner: Float[Tensor, "M M"]
    across: Float[Tensor, "g d"]  # of the slope with rho of its group
    corner: Float[Tensor, " g"]  # of rho of each group with itself
    bias: Float[Tensor, "g e"]
    bias_corner: float
    has_bias: bool

    @classmethod
    def of(cls, blocks: RobustBlocks, parts: Parts) -> "GroupFactor | None":
        """None where rounding leaves a part indefinite."""
        d, S = blocks.X.shape[1], blocks.shared
        across, corner = parts.Q[:, d, :d], parts.Q[:, d, d]
        reduced = parts.Q[:, :d, :d] - across[:, :, None] * (across / corner[:, None])[:, None, :]
        ridge = torch.diag_embed(1e-14 * parts.Q[:, :d, :d].diagonal(dim1=1, dim2=2))
        R, bad = torch.linalg.cholesky_ex(reduced + ridge)
        L, worse = torch.linalg.cholesky_ex(parts.E)
        if bool((bad > 0).any()) or bool((worse > 0).any()):
            return None
        inverse = torch.cholesky_inverse(L)[:, :d, :d]
        g, B = S.shape
        outer = (S[:, None, :] * S[None, :, :]).reshape(g * g, B)
        T = (outer @ inverse.reshape(B, d * d)).reshape(g, g, d, d)
        T = R.mT[:, None] @ T @ R[None]
        K = T.permute(0, 2, 1, 3).reshape(g * d, g * d)
        K.diagonal().add_(1.0)
        inner, info = torch.linalg.cholesky_ex(K)
        if int(info) > 0 or float(K.diagonal().max()) > _ACCURATE_UP_TO:
            return None
        has_bias = blocks.program.problem.output_bias
        return cls(S, parts.E, L, R, inner, across, corner, parts.bias, parts.corner, has_bias)

    def solve(self, vector: Float[Tensor, " N"], *, refine: bool = True) -> Float[Tensor, " N"]:
        """The inverse, applied, with one step of refinement where asked."""
        (g, B), d = self.S.shape, self.R.shape[1]
        u, rho, joint, bias = torch.split(vector, [B * d, B, g, len(vector) - B * d - B - g])
        v = torch.cat([u.reshape(B, d), rho[:, None]], 1)
        v[:, :d] -= self.S.T @ (self.across * (joint / self.corner)[:, None])
        found, b = self._refined(v, refine), bias
        if self.has_bias:
            h = self.bias[:, :d] - self.across * (self.bias[:, d] / self.corner)[:, None]
            column = torch.zeros_like(v)
            column[:, :d] = self.S.T @ h
            along = self._refined(column, refine)
            right = bias - (self.bias[:, d] * joint / self.corner).sum() - (column * found).sum()
            left = self.bias_corner - (self.bias[:, d] ** 2 / self.corner).sum() - (column * along).sum()
            b = right / left
            found = found - b * along
        z = self.S @ found[:, :d]
        rest = joint - (self.across * z).sum(1) - (self.bias[:, d] * b if self.has_bias else 0.0)
        return torch.cat([found[:, :d].reshape(-1), found[:, d], rest / self.corner, b])

    def _refined(self, v: Float[Tensor, "B e"], refine: bool) -> Float[Tensor, "B e"]:
        found = self._inverse(v)
        if not refine:
            return found
        return found + self._inverse(v - self._apply(found))

    def _apply(self, v: Float[Tensor, "B e"]) -> Float[Tensor, "B e"]:
        out = (self.E @ v[:, :, None])[:, :, 0]
        d = self.R.shape[1]
        forces = (self.R @ (self.R.mT @ (self.S @ v[:, :d])[:, :, None]))[:, :, 0]
        out[:, :d] += self.S.T @ forces
        return out

    def _inverse(self, v: Float[Tensor, "B e"]) -> Float[Tensor, "B e"]:
        d = self.R.shape[1]
        y = torch.cholesky_solve(v[:, :, None], self.blocks)[:, :, 0]
        s = (self.R.mT @ (self.S @ y[:, :d])[:, :, None]).reshape(-1, 1)
        t = torch.cholesky_solve(s, self.inner).reshape(len(self.S), d, 1)
        pull = torch.zeros_like(v)
        pull[:, :d] = self.S.T @ (self.R @ t)[:, :, 0]
        return y - torch.cholesky_solve(pull[:, :, None], self.blocks)[:, :, 0]


def _matrix(blocks: RobustBlocks, parts: Parts) -> Float[Tensor, "N N"]:
    B, d, g = len(blocks), blocks.X.shape[1], len(blocks.shared)
    N = B * d + B + g + int(blocks.program.problem.output_bias)
    M = blocks.X.new_zeros((N, N))
    _add_shared(blocks, M, parts.Q)
    if B * d + B + g < N:
        M[-1, : B * d] = (blocks.shared.T @ parts.bias[:, :d]).reshape(-1)
        M[-1, B * d + B : -1] = parts.bias[:, d]
        M[-1, -1] = parts.corner
    j = torch.arange(B, device=M.device)
    M[: B * d, : B * d].view(B, d, B, d)[j, :, j, :] += parts.E[:, :d, :d]
    M[B * d : B * d + B, : B * d].view(B, B, d)[j, j] += parts.E[:, d, :d]
    M[B * d : B * d + B, B * d : B * d + B].diagonal().add_(parts.E[:, d, d])
    M[: B * d, B * d :] = M[B * d :, : B * d].T  # the first square is symmetric already
    tail = M[B * d :, B * d :]
    tail.copy_(torch.tril(tail) + torch.tril(tail, -1).T)
    return M


def _with_margins(blocks: RobustBlocks, Q: Tensor, coupling: Coupling) -> tuple[Tensor, Tensor]:
    """The margins of each group on (z, rho), and their row with the bias: the sum over ends of w (s x, -1, s)."""
    straight = coupling.single.sum(0) + 4 * coupling.difference  # of f with itself: the ends' signs square away
    across = -(coupling.single * blocks.ends).sum(0)  # of f with rho
    d, g = blocks.X.shape[1], len(Q)
    onto = torch.zeros((g, len(blocks.X))).to(blocks.X)
    onto[blocks.group, torch.arange(len(blocks.X), device=onto.device)] = 1.0
    Q[:, :d, :d] += blocks.products.gram(onto * straight, d)
    mixed = (onto * across) @ blocks.X
    Q[:, d, :d] += mixed
    Q[:, :d, d] += mixed
    Q[:, d, d] += onto @ coupling.single.sum(0)
    return Q, torch.cat([(onto * straight) @ blocks.X, (onto @ across)[:, None]], 1)


def _add_shared(blocks: RobustBlocks, M: Tensor, Q: Float[Tensor, "g e e"]) -> None:
    """sum_g S_g S_g' (x) Q_g on u, S_g (x) its cross column with rho of the group, and its corner."""
    B, d, g = len(blocks), blocks.X.shape[1], len(blocks.shared)
    S = blocks.shared
    outer = (S[:, :, None] * S[:, None, :]).reshape(g, B * B)
    inner = (outer.T @ Q[:, :d, :d].reshape(g, d * d)).reshape(B, B, d, d)
    M[: B * d, : B * d].view(B, d, B, d).copy_(inner.permute(0, 2, 1, 3))
    start = B * d + B
    M[start : start + g, : B * d] = (S[:, :, None] * Q[:, d, None, :d]).reshape(g, B * d)
    M[start : start + g, start : start + g].diagonal().add_(Q[:, d, d])


def block_matrices(blocks: RobustBlocks, groups: Scaling, own: ReachForm, coupling: Coupling) -> Float[Tensor, "B e e"]:
    """Cones of the slacks, reach and norm of each block, on (u, rho)."""
    d, w = blocks.X.shape[1], coupling.pair
    E = own.matrix()
    E[:, :d, :d] += blocks.products.gram(w, d)
    mixed = (w * blocks.sides) @ blocks.X
    E[:, d, :d] -= mixed
    E[:, :d, d] -= mixed
    E[:, d, d] += w.sum(1)
    E[:, :d, :d] -= groups.pull[:, :, None] * groups.w1[:, :, None] * groups.w1[:, None, :]
    E.diagonal(dim1=1, dim2=2)[:, :d] += 1 / groups.eta**2
    return E
