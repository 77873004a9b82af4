"""Iterates of the interior point for robust programs: where it starts, and what an iterate is worth.

Every iterate gives a feasible network, by a move along the directions of the patterns, and its multipliers, made
feasible, a bound.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from convexnn.result import relative_gap
from convexnn.robust.blocks import RobustBlocks, Rows, Variables
from convexnn.robust.duality import RobustDual, admitted, at_best_scale
from convexnn.robust.program import Outputs, worst_outputs

_FIRST_MULTIPLIER = 0.3  # relative to a sample's weight in the loss
_FIRST_PRICE = 10.0  # relative to the weight decay; neither matters by more than a tenth of the steps
_CONES = 0.1  # of the complementarity that the cones take; near their boundary, which is curved, steps are short


@dataclass(frozen=True)
class Solved:
    """The best point and the best dual point seen."""

    u: Float[Tensor, "B d"]
    bias: Float[Tensor, " 1"]
    objective: float
    dual: RobustDual  # without multipliers of blocks
    multipliers: Float[Tensor, "B n"]
    bound: float  # of the blocks that were kept alone
    n_steps: int
    kept: Int[Tensor, " k"]  # the blocks that were not given up as zero

    def gap(self, floor: float) -> float:
        """Relative, of the program with these blocks."""
        return relative_gap(self.objective, self.bound, floor)


@dataclass(frozen=True)
class Iterate:
    """A point, positive slacks, which become those of the point, and positive multipliers of them."""

    x: Variables
    s: Float[Tensor, " N"]
    cones: Float[Tensor, "c e"]
    z: Float[Tensor, " N"]
    duals: Float[Tensor, "c e"]

    def take(self, blocks: RobustBlocks, keep: Bool[Tensor, " B"]) -> "Iterate":
        """Of some of the blocks."""
        pairs = blocks.pairs(keep[:, None].expand_as(blocks.mask))
        cones = torch.ones(len(self.cones), dtype=torch.bool, device=keep.device)
        cones[: len(keep)] = keep
        if blocks.reach.conic:
            cones[len(keep) : 2 * len(keep)] = keep
        s, z = (blocks.views(part).take(keep, pairs).flat() for part in (self.s, self.z))
        return Iterate(self.x.take(keep, pairs), s, self.cones[cones], z, self.duals[cones])

    def complementarity(self) -> float:
        """The mean product of slacks and multipliers."""
        total = torch.dot(self.s, self.z) + (self.cones * self.duals).sum()
        return float(total) / self.count

    @property
    def barrier(self) -> float:
        """How many times the others' the products of the cones are on the central path."""
        return max(1.0, _CONES * len(self.s) / max(1, len(self.cones)))

    @property
    def count(self) -> float:
        """Products that go to zero, those of cones as often as they are larger."""
        return len(self.s) + self.barrier * len(self.cones)


def first_iterate(blocks: RobustBlocks) -> Iterate:
    """No weights; slacks as large as the targets, multipliers of rows as large as the slope of a sample's loss."""
    problem, B, like = blocks.program.problem, len(blocks), blocks.X
    g, p = len(blocks.shared), 0 if blocks.harmful is None else len(blocks.harmful)
    extra, bias = blocks.reach.extra, problem.constant() if problem.output_bias else like.new_zeros(0)
    u, y, w = torch.zeros_like(blocks.centre), like.new_zeros((B, extra)), like.new_zeros((g, extra))
    x = Variables(u, y, w, bias, u[:, 0], like.new_zeros(p), like.new_zeros(blocks.levels))
    size, weight = float(problem.loss.targets.abs().mean()), float(problem.loss.weights.mean())
    if not blocks.program.margin_loss:  # whose slope grows with the residual
        weight = weight * max(size, 1e-12)
    s, cones = torch.full((blocks.n_rows,), max(size, 1e-12)).to(like), torch.zeros_like(blocks.cones(x))
    duals = torch.zeros_like(cones)
    cones[:, 0], duals[:, 0] = max(size, 1e-12), weight
    duals[:B, 0] = _FIRST_PRICE * problem.weight_decay
    return Iterate(x, s, cones, _FIRST_MULTIPLIER * weight * torch.ones_like(s), duals)


def margin_weights(blocks: RobustBlocks, x: Variables) -> tuple[Tensor | None, Tensor]:
    """Of the logistic loss: minus its slope at each margin; and its curvature there. Of the others: of the level."""
    c = blocks.program.problem.loss.weights
    if blocks.levels:
        return None, c
    p = torch.sigmoid(-blocks.margins(x))
    return c * p, (c * p * (1 - p))[0]


def judged(blocks: RobustBlocks, at: Iterate, n_steps: int) -> tuple[Solved, Float[Tensor, " B"]]:
    """The exact objective of the point and the bound of its multipliers, for these blocks; what each block reaches."""
    program = blocks.program
    u, bias = _repaired(blocks, at.x.u), at.x.bias if len(at.x.bias) else at.x.u.new_zeros(1)
    objective = _objective(blocks, u, bias)
    rows = blocks.views(at.z)
    dual = admitted(program, _dual(blocks, at, rows))
    alpha = blocks.dense(rows.pairs)
    if program.soft:
        alpha = torch.minimum(alpha, torch.where(blocks.signs[:, None] > 0, dual.above, dual.below))
    reached = _norms(blocks, dual, alpha) / program.problem.weight_decay
    limit = 1 / float(reached.max()) if float(reached.max()) > 0 else 1e300
    scaled, bound = at_best_scale(program, dual, limit)
    ratio = float(scaled.total.sum() / dual.total.sum().clamp(min=1e-300))
    kept = torch.arange(len(blocks))
    return Solved(u, bias, objective, scaled, ratio * alpha, bound, n_steps, kept), reached


def _repaired(blocks: RobustBlocks, u: Float[Tensor, "B d"]) -> Float[Tensor, "B d"]:
    """The nearest points u + t g inside hard cones."""
    if blocks.program.soft:
        return u
    short = (-blocks.slack(u) / blocks.inside).amax(1).clamp(min=0.0)
    return u + short[:, None] * blocks.centre


def _objective(blocks: RobustBlocks, u: Tensor, bias: Tensor) -> float:
    program = blocks.program
    z = blocks.slopes(u)
    f = (blocks.X * z[blocks.group]).sum(1) + bias
    reach = program.ball.support(z)[blocks.group]
    low, high = f - reach, f + reach
    if program.soft:
        excess = (-blocks.slack(u)).clamp(min=0.0)
        plus = (blocks.signs > 0).to(u)
        low, high = low - (1 - plus) @ excess, high + plus @ excess
    F = worst_outputs(program.problem.loss.targets, Outputs(low, high), margin=program.margin_loss)
    return float(program.problem.loss.value(F) + program.problem.weight_decay * u.norm(dim=1).sum())


def _dual(blocks: RobustBlocks, at: Iterate, rows: Rows) -> RobustDual:
    """The weights of the margins, and mu = minus what the joint reaches pull at the slopes, per unit of weight."""
    force, _ = margin_weights(blocks, at.x)
    weights = rows.loss.reshape(blocks.ends.shape) if force is None else force
    if blocks.program.margin_loss:
        up = blocks.program.targets > 0
        below, above = torch.where(up, weights[0], 0.0), torch.where(up, 0.0, weights[0])
    else:
        below, above = weights
    if blocks.reach.conic:
        pull, _ = blocks.reach.pull_cones(blocks.parted(at.duals)[2])
    else:
        pull, _ = blocks.reach.pull(rows.joint)
    total = torch.zeros_like(pull[:, 0]).index_add(0, blocks.group, below + above)
    worst = (-pull / total[:, None].clamp(min=1e-300))[blocks.group]
    return RobustDual(below, above, worst, blocks.X.new_zeros((2, 0, len(blocks.X))))


def _norms(blocks: RobustBlocks, dual: RobustDual, alpha: Float[Tensor, "B n"]) -> Float[Tensor, " B"]:
    """dist(c + X'(2D - I) a, (1'a) * ball) of each block."""
    rows = dual.net[:, None] * blocks.X - dual.total[:, None] * dual.worst
    pulled = (blocks.signs[:, None] * blocks.mask) @ rows + (blocks.sides * alpha) @ blocks.X
    return (pulled - blocks.program.ball.project(pulled, alpha.sum(1))).norm(dim=1)
