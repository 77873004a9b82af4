"""The matrix of soft cones, whose pairs are charged to the margins, so that every sample joins all blocks.

With rho of the groups eliminated it is E on each block, the slopes' own curvature, which keeps features apart where
the ball is a box, and one row for each sample, centred within the samples of its group.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from convexnn.robust.blocks import RobustBlocks
from convexnn.robust.coupling import RIDGES, Coupling
from convexnn.robust.reach import ReachForm

_PANEL = 1024  # columns of the symmetric product that are computed together
_SINGLE_FROM = 1500  # columns from which on a factor in single precision, corrected in double, is faster
_ACCURACY = (1e-3, 1e-7)  # of the corrected solution, in the norm of the factor: of predictors, and of steps
_MOST_CORRECTIONS = 25


@dataclass(frozen=True)
class ChargedMatrix:
    """The matrix on (u, rho of blocks, bias), as the sum of its parts."""

    E: Float[Tensor, "B e e"]
    shared: Float[Tensor, "g B"]
    joint: ReachForm
    rows: Float[Tensor, "r N"]

    def apply(self, x: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
        """Matrix times vector."""
        B, d = len(self.E), self.E.shape[1] - 1
        own = torch.cat([x[: B * d].reshape(B, d), x[B * d : B * d + B, None]], 1)
        mine = (self.E @ own[:, :, None])[:, :, 0]
        mine[:, :d] += self.shared.T @ self._curved(self.shared @ own[:, :d])
        out = self.rows.T @ (self.rows @ x)
        out[: B * d] += mine[:, :d].reshape(-1)
        out[B * d : B * d + B] += mine[:, d]
        return out

    def _curved(self, Z: Float[Tensor, "g d"]) -> Float[Tensor, "g d"]:
        along = self.joint.coef[:, None] * (self.joint.vec * Z).sum(1, keepdim=True)
        return self.joint.diagonal * Z - along * self.joint.vec

    def diagonal(self) -> Float[Tensor, " N"]:
        """Of the matrix."""
        d = self.E.shape[1] - 1
        square = self.joint.diagonal - self.joint.coef[:, None] * self.joint.vec**2
        mine = self.E.diagonal(dim1=1, dim2=2).clone()
        mine[:, :d] += self.shared.T**2 @ square
        out = (self.rows**2).sum(0)
        out[: mine.numel()] += torch.cat([mine[:, :d].reshape(-1), mine[:, d]])
        return out

    def scaled(self, scale: Float[Tensor, " N"], dtype: torch.dtype) -> Float[Tensor, "N N"]:
        """scale * matrix * scale; the lower triangle counts."""
        (B, e, _), S, N = self.E.shape, self.shared, len(scale)
        d = e - 1
        M = torch.zeros((N, N), dtype=dtype, device=S.device)
        inner, factors = M[: B * d, : B * d].view(B, d, B, d), scale[: B * d].reshape(B, d)
        if bool((self.joint.coef == 0).all()):
            for k in range(d):
                T = S * factors[:, k]
                inner[:, k, :, k] = ((T.T * self.joint.diagonal[:, k]) @ T).to(dtype)
        else:
            self._add_curvature(inner, factors)
        j = torch.arange(B, device=M.device)
        both = torch.cat([factors, scale[B * d : B * d + B, None]], 1)
        E = (self.E * both[:, :, None] * both[:, None, :]).to(dtype)
        inner[j, :, j, :] += E[:, :d, :d]
        M[B * d : B * d + B, : B * d].view(B, B, d)[j, j] += E[:, d, :d]
        M[B * d : B * d + B, B * d : B * d + B].diagonal().add_(E[:, d, d])
        _add_square(M, (self.rows * scale).to(dtype))
        return M

    def _add_curvature(self, inner: Float[Tensor, "B d B d"], factors: Float[Tensor, "B d"]) -> None:
        """What features have in common where the ball is no box."""
        (B, d), S, joint = factors.shape, self.shared, self.joint
        full = torch.diag_embed(joint.diagonal)
        full = full - (joint.coef[:, None] * joint.vec)[:, :, None] * joint.vec[:, None, :]
        outer = (S[:, :, None] * S[:, None, :]).reshape(len(S), B * B)
        square = (outer.T @ full.reshape(-1, d * d)).reshape(B, B, d, d).permute(0, 2, 1, 3)
        inner.copy_(square * factors[:, :, None, None] * factors)


@dataclass(frozen=True)
class ChargedFactor:
    """The factorised matrix; rho of each group is ``centres @ x`` plus its own right-hand side over ``total``."""

    matrix: ChargedMatrix
    inverse: Callable[[Tensor], Tensor]  # or nearly
    exact: bool
    centres: Float[Tensor, "g N"]
    total: Float[Tensor, " g"]  # weights on rho of each group

    @classmethod
    def of(
        cls, blocks: RobustBlocks, E: Float[Tensor, "B e e"], joint: ReachForm, coupling: Coupling
    ) -> "ChargedFactor":
        """Build and factorise; a ridge is added where rounding has made the matrix indefinite."""
        rows, centres, total = _centred_rows(blocks, joint, coupling)
        matrix = ChargedMatrix(E, blocks.shared, joint, rows)
        scale = matrix.diagonal().clamp(min=1e-300).rsqrt()
        if len(scale) >= _SINGLE_FROM:
            factor, info = torch.linalg.cholesky_ex(matrix.scaled(scale, torch.float32))
            if int(info) == 0:
                return cls(matrix, _inverse(factor, scale), False, centres, total)
        M = matrix.scaled(scale, torch.float64)
        for ridge in RIDGES:
            M.diagonal().fill_(1 + ridge)
            factor, info = torch.linalg.cholesky_ex(M)
            if int(info) == 0:
                break
        return cls(matrix, _inverse(factor, scale), True, centres, total)

    def solve(self, vector: Float[Tensor, " M"], *, refine: bool = True) -> Float[Tensor, " M"]:
        """The inverse on (u, rho of blocks, rho of groups, bias), applied."""
        n_blocks = self.matrix.E.shape[0] * self.matrix.E.shape[1]
        first, joint, bias = torch.split(vector, [n_blocks, len(self.total), len(vector) - n_blocks - len(self.total)])
        right = torch.cat([first, bias]) + self.centres.T @ joint
        x = self.inverse(right) if self.exact else self._corrected(right, _ACCURACY[refine])
        return torch.cat([x[:n_blocks], self.centres @ x + joint / self.total, x[n_blocks:]])

    def _corrected(self, right: Float[Tensor, " N"], accuracy: float) -> Float[Tensor, " N"]:
        """Conjugate gradients with the factor as preconditioner."""
        x, r = torch.zeros_like(right), right
        z = self.inverse(r)
        q, size = z, float(r @ z)
        goal = accuracy**2 * size
        for _ in range(_MOST_CORRECTIONS):
            if not size > goal:
                break
            Mq = self.matrix.apply(q)
            step = size / float(q @ Mq)
            x, r = x + step * q, r - step * Mq
            z = self.inverse(r)
            old, size = size, float(r @ z)
            q = z + (size / old) * q
        return x


def _inverse(factor: Float[Tensor, "N N"], scale: Float[Tensor, " N"]) -> Callable[[Tensor], Tensor]:
    def apply(vector: Tensor) -> Tensor:
        scaled = (scale * vector).to(factor.dtype)
        return scale * torch.cholesky_solve(scaled[:, None], factor)[:, 0].to(scale.dtype)

    return apply


def _add_square(M: Float[Tensor, "N N"], rows: Float[Tensor, "r N"]) -> None:
    """M += rows'rows on and below the diagonal, panel by panel."""
    for start in range(0, len(M), _PANEL):
        end = start + _PANEL
        M[start:, start:end].addmm_(rows[:, start:].T, rows[:, start:end])


@dataclass(frozen=True)
class _Squares:
    """weights * (rows x - rho of the group)^2."""

    weights: Float[Tensor, " r"]
    rows: Float[Tensor, "r N"]

    def about(self, centres: Float[Tensor, "r N"]) -> Float[Tensor, "r N"]:
        """Roots of what is left where rho is the centre."""
        return self.weights.sqrt()[:, None] * (self.rows - centres)

    def take(self, index: Tensor) -> "_Squares":
        return _Squares(self.weights[index], self.rows[index])


def _centred_rows(
    blocks: RobustBlocks, joint: ReachForm, coupling: Coupling
) -> tuple[Float[Tensor, "r N"], Float[Tensor, "g N"], Float[Tensor, " g"]]:
    """Roots of the margins' form and of kappa (rho + k'z)^2 once rho, which minimises their sum, is gone.

    For weights w on squares (row'x - rho)^2 that rho is the weighted mean of row'x, and what is left are the
    squares of the differences. A group of one sample has two rows, which leave one difference.
    """
    group, g = blocks.group, len(blocks.shared)
    ends = [_Squares(coupling.single[q], _margin_rows(blocks, coupling, q)) for q in range(len(blocks.ends))]
    own = _Squares(joint.kappa, torch.zeros_like(ends[0].rows[:1]).repeat(g, 1))
    own.rows[:, : blocks.centre.numel()] = -(blocks.shared[:, :, None] * joint.k[:, None, :]).reshape(g, -1)
    total, centres = own.weights.clone(), own.weights[:, None] * own.rows
    for end in ends:
        total.index_add_(0, group, end.weights)
        centres.index_add_(0, group, end.weights[:, None] * end.rows)
    centres /= total[:, None]
    if len(ends) == 2:
        across = coupling.difference.sqrt()[:, None] * (ends[0].rows - ends[1].rows)
        parts = [*(end.about(centres[group]) for end in ends), across, own.about(centres)]
        return torch.cat(parts), centres, total
    alone = torch.bincount(group, minlength=g) == 1
    one = alone[group]
    single = replace(ends[0].take(one), weights=(ends[0].weights * (own.weights / total)[group])[one])
    parts = [single.about(own.rows[group[one]]), ends[0].take(~one).about(centres[group[~one]])]
    return torch.cat([*parts, own.take(~alone).about(centres[~alone])]), centres, total


def _margin_rows(blocks: RobustBlocks, coupling: Coupling, q: int) -> Float[Tensor, "n N"]:
    """The margins at one end as functions of (u, rho of blocks, bias), excesses gone; rho of the group is left out."""
    B, d, n = len(blocks), blocks.X.shape[1], len(blocks.X)
    theta, end = coupling.share * blocks.charged[q][:, None], blocks.ends[q]
    factor = end * (blocks.signs[:, None] * blocks.mask) + theta * blocks.sides
    parts = [(factor.T[:, :, None] * blocks.X[:, None, :]).reshape(n, B * d), -theta.T]
    if blocks.program.problem.output_bias:
        parts.append(end[:, None])
    return torch.cat(parts, 1)
