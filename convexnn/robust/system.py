"""The linear systems of the interior point: everything is eliminated but u, one rho for each reach, and the bias.

With weights on the inequalities, the excess of a pair and the level of a sample are diagonal, y is what
:mod:`convexnn.robust.reach` eliminates, and t what the group cones do. Hard cones meet only in the
slopes of groups of samples; the pairs of soft ones in every sample that they are charged to. What is left
is factorised by :mod:`convexnn.robust.factor`.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from convexnn.robust.blocks import RobustBlocks, Rows, Variables
from convexnn.robust.charged import ChargedFactor
from convexnn.robust.coupling import Coupling
from convexnn.robust.factor import DenseFactor, GroupFactor, Parts, block_matrices, factorised
from convexnn.robust.reach import ReachForm
from convexnn.solvers.cones import Scaling


@dataclass(frozen=True)
class Weights:
    """Multiplier over slack of the rows, the scaling of the cones, the curvature of each sample's level or margin."""

    rows: Rows
    cones: Scaling
    curvature: Float[Tensor, " n"]


@dataclass(frozen=True)
class ReducedSystem:
    """The factorised matrix on (u, rho of blocks, rho of groups, bias), and the way there and back."""

    blocks: RobustBlocks
    weights: Weights
    groups: Scaling
    own: ReachForm
    joint: ReachForm
    coupling: Coupling
    factor: DenseFactor | GroupFactor | ChargedFactor

    @classmethod
    def of(cls, blocks: RobustBlocks, weights: Weights) -> "ReducedSystem":
        """Build and factorise; a ridge is added where rounding has made the matrix indefinite."""
        groups, own_cones, joint_cones = _scalings(blocks, weights.cones)
        own = blocks.reach.form(weights.rows.own, own_cones)
        joint = blocks.reach.form(weights.rows.joint, joint_cones)
        coupling = _coupling(blocks, weights)
        factor: DenseFactor | GroupFactor | ChargedFactor
        if blocks.harmful is None:
            factor = factorised(blocks, Parts.of(blocks, groups, own, joint, coupling))
        else:
            factor = ChargedFactor.of(blocks, block_matrices(blocks, groups, own, coupling), joint, coupling)
        return cls(blocks, weights, groups, own, joint, coupling, factor)

    def solve(self, right: Variables, *, refine: bool = True) -> Variables:
        """The solution of (curvature + A'W A) x = right."""
        blocks, reach, coupling = self.blocks, self.blocks.reach, self.coupling
        groups = self.groups
        pull, own_v = reach.reduce(self.own, right.y)
        pull_joint, joint_v = reach.reduce(self.joint, right.w)
        own_right = blocks.dense(right.excess) if len(right.excess) else None
        u = right.u + own_v + blocks.shared.T @ joint_v - groups.cross * (right.t[:, None] / groups.head)
        H = self._offset(right, own_right)
        force = -coupling.apply(H)
        if blocks.levels:
            force = force - coupling.margin * (right.level / coupling.total)
        reduced = _spread(blocks, coupling, force)
        vector = torch.cat(
            [(u + reduced[0]).reshape(-1), pull + reduced[1], pull_joint + reduced[2], right.bias + reduced[3]]
        )
        if own_right is not None:
            vector = vector + self._excess_right(own_right, len(vector))
        X = self.factor.solve(vector, refine=refine)
        return self._recover(X, right, own_right, H)

    def _offset(self, right: Variables, excess: Tensor | None) -> Float[Tensor, "q n"]:
        """What the right-hand sides of the excesses add to the margins."""
        if excess is None:
            return torch.zeros_like(self.blocks.ends)
        both = self.blocks.dense(self.weights.rows.pairs + self.weights.rows.excess).clamp(min=1e-300)
        return -self.blocks.charged @ (excess / both)

    def _excess_right(self, excess: Tensor, N: int) -> Tensor:
        pulled = self.coupling.share * excess
        out = excess.new_zeros(N)
        B, d = len(self.blocks), self.blocks.X.shape[1]
        out[: B * d] = -((self.blocks.sides * pulled) @ self.blocks.X).reshape(-1)
        out[B * d : B * d + B] = pulled.sum(1)
        return out

    def _recover(self, X: Tensor, right: Variables, excess: Tensor | None, H: Tensor) -> Variables:
        blocks, reach, coupling = self.blocks, self.blocks.reach, self.coupling
        groups = self.groups
        u, rho, rho_joint, bias = _split(blocks, X)
        slack = blocks.sides * (u @ blocks.X.T) - rho[:, None]
        z = blocks.slopes(u)
        f = (blocks.X * z[blocks.group]).sum(1) + (bias if len(bias) else 0.0)
        H = H + blocks.ends * f - rho_joint[blocks.group] + blocks.charged @ (coupling.share * slack)
        level = right.level
        force = coupling.apply(H)
        if blocks.levels:
            level = (right.level - (coupling.margin * H).sum(0)) / coupling.total
            force = force + coupling.margin * (right.level / coupling.total)
        found = right.excess
        if excess is not None:
            pairs, own = self.weights.rows.pairs, self.weights.rows.excess
            force_pairs = blocks.pairs(blocks.charged.T @ force)
            found = (right.excess + force_pairs - pairs * blocks.pairs(slack)) / (pairs + own)
        y = reach.recover(self.own, rho, u, right.y)
        w = reach.recover(self.joint, rho_joint, z, right.w)
        t = (right.t - (groups.cross * u).sum(1)) / groups.head[:, 0]
        return Variables(u, y, w, bias, t, found, level)


def _scalings(blocks: RobustBlocks, cones: Scaling) -> tuple[Scaling, Scaling | None, Scaling | None]:
    parts = [blocks.parted(part) for part in (cones.w0, cones.w1, cones.eta, cones.lam)]
    groups, own, joint = (Scaling(*column) for column in zip(*parts, strict=True))
    return (groups, own, joint) if blocks.reach.conic else (groups, None, None)


def _coupling(blocks: RobustBlocks, weights: Weights) -> Coupling:
    rows = weights.rows
    soft, curvature = len(rows.excess) > 0, weights.curvature
    pair, share, compliance = blocks.dense(rows.pairs), torch.zeros_like(blocks.mask), torch.zeros_like(blocks.ends)
    if soft:
        both = rows.pairs + rows.excess
        pair, share = blocks.dense(rows.pairs * (rows.excess / both)), blocks.dense(rows.pairs / both)
        compliance = blocks.charged @ blocks.dense(1 / both)
    if not blocks.levels:
        margin = 1 / (1 / curvature.clamp(min=1e-300) + compliance)
        zero = torch.zeros_like(curvature)
        return Coupling(margin, margin, zero, torch.ones_like(curvature), share, pair)
    loss = rows.loss.reshape(blocks.ends.shape)
    margin = 1 / (1 / loss + compliance)
    own = rows.level if blocks.program.margin_loss else curvature
    total = own + margin.sum(0)
    difference = margin[0] * (margin[-1] / total) if len(margin) == 2 else torch.zeros_like(total)
    return Coupling(margin, margin * (own / total), difference, total, share, pair)


def _split(blocks: RobustBlocks, X: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    B, d, g = len(blocks), blocks.X.shape[1], len(blocks.shared)
    u, rho, joint, bias = torch.split(X, [B * d, B, g, len(X) - B * d - B - g])
    return u.reshape(B, d), rho, joint, bias


def _spread(
    blocks: RobustBlocks, coupling: Coupling, force: Float[Tensor, "q n"]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The adjoint of the margins as functions of (u, rho, rho of groups, bias), on forces."""
    forces, total = (blocks.ends * force).sum(0), force.sum(0)
    z = blocks.X.new_zeros((len(blocks.shared), blocks.X.shape[1])).index_add(
        0, blocks.group, forces[:, None] * blocks.X
    )
    joint = -force.new_zeros(len(blocks.shared)).index_add(0, blocks.group, total)
    u, rho = blocks.shared.T @ z, force.new_zeros(len(blocks))
    if blocks.harmful is not None:
        pulled = coupling.share * (blocks.charged.T @ force)
        u, rho = u + (blocks.sides * pulled) @ blocks.X, -pulled.sum(1)
    bias = forces.sum()[None] if blocks.program.problem.output_bias else forces[:0]
    return u, rho, joint, bias
