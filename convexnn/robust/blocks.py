"""Some blocks of a robust program as an explicit cone program: its variables, inequalities and linear maps.

    min  sum_i c_i l(level or margin) + weight_decay * sum_j t_j
    s.t. ||u_j|| <= t_j,  r(u_j) <= rho(y_j),  r(z_g) <= rho(w_g),  z_g = sum_j S_gj u_j,
         (2D - I) x_k'u_j - rho(y_j) [+ excess_kj] >= 0,  [excess_kj >= 0,]
         margin_qk = sides_qk (x_k'z + b) - rho(w) [- sum_j excess_kj],
         level_k + margin_qk >= goal_qk  (hinge: goal 1, level >= 0; squared: goal sides * y, both sides)

Samples with the same signed pattern over these blocks share their slope z_g: there are few of them
where cones are hard, which is what makes the program small.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from convexnn.projection import ColumnProducts
from convexnn.robust.program import AbstractRobustProgram, SoftRobustProgram
from convexnn.robust.reach import AbstractReach, reach_of


@dataclass(frozen=True)
class Variables:
    """A point, a direction or a gradient of the program above."""

    u: Float[Tensor, "B d"]
    y: Float[Tensor, "B y"]
    w: Float[Tensor, "g y"]
    bias: Float[Tensor, " b"]  # no entry where none is trained
    t: Float[Tensor, " B"]
    excess: Float[Tensor, " p"]  # of the pairs (block, sample), none where cones are hard
    level: Float[Tensor, " l"]  # one of each sample for the hinge and the squared loss

    def parts(self) -> tuple[Tensor, ...]:
        """The tensors in order."""
        return tuple(getattr(self, part.name) for part in fields(self))

    def combine(self, other: "Variables", function: Callable[[Tensor, Tensor], Tensor]) -> "Variables":
        """Part by part."""
        return Variables(*(function(a, b) for a, b in zip(self.parts(), other.parts(), strict=True)))

    def take(self, keep: Bool[Tensor, " B"], pairs: Bool[Tensor, " p"]) -> "Variables":
        """Those of some blocks and of their pairs."""
        excess = self.excess[pairs] if len(self.excess) else self.excess
        return replace(self, u=self.u[keep], y=self.y[keep], t=self.t[keep], excess=excess)

    def moved(self, step: float, by: "Variables") -> "Variables":
        """After a step."""
        return self.combine(by, lambda a, b: a + step * b)


@dataclass(frozen=True)
class Rows:
    """The linear inequalities, as views of one flat vector, so that steps and products are single operations."""

    own: Float[Tensor, "B w"]
    joint: Float[Tensor, "g w"]
    pairs: Float[Tensor, " p"]
    excess: Float[Tensor, " e"]
    loss: Float[Tensor, " q"]
    level: Float[Tensor, " l"]

    def flat(self) -> Float[Tensor, " N"]:
        """One after the other."""
        return torch.cat([getattr(self, part.name).reshape(-1) for part in fields(self)])

    def take(self, keep: Bool[Tensor, " B"], pairs: Bool[Tensor, " p"]) -> "Rows":
        """Those of some blocks and of their pairs."""
        excess = self.excess[pairs] if len(self.excess) else self.excess
        return replace(self, own=self.own[keep], pairs=self.pairs[pairs], excess=excess)


@dataclass(frozen=True)
class RobustBlocks:
    """Data of some blocks (sign, pattern) of a program."""

    program: AbstractRobustProgram
    reach: AbstractReach
    signs: Float[Tensor, " B"]
    mask: Float[Tensor, "B n"]
    centre: Float[Tensor, "B d"]  # directions of the patterns
    soft: Bool[Tensor, "B n"] | None  # the pairs that have an excess; None: every pair has a hard row
    shared: Float[Tensor, "g B"]  # S: signed patterns over the blocks
    group: Int[Tensor, " n"]  # which of them each sample has

    @classmethod
    def of(cls, program: AbstractRobustProgram, index: Int[Tensor, " B"]) -> "RobustBlocks":
        """The blocks with these flat indices into the program's shape (2, P)."""
        P = program.shape[1]
        signs, pattern = program.signs[index // P, 0, 0], index % P
        mask, centre = program.mask[pattern], program.patterns.gates[pattern]
        soft = program.harmful[index // P, 0] if isinstance(program, SoftRobustProgram) else None
        shared, group = torch.unique((signs[:, None] * mask).T, dim=0, return_inverse=True)
        return cls(program, reach_of(program.ball), signs, mask, centre, soft, shared, group)

    def take(self, keep: Bool[Tensor, " B"]) -> "RobustBlocks":
        """Some of the blocks, in the same groups of samples."""
        return replace(
            self,
            signs=self.signs[keep],
            mask=self.mask[keep],
            centre=self.centre[keep],
            soft=None if self.soft is None else self.soft[keep],
            shared=self.shared[:, keep],
        )

    def __len__(self) -> int:
        return len(self.signs)

    @property
    def X(self) -> Float[Tensor, "n d"]:  # noqa: N802
        """The samples."""
        return self.program.problem.X

    @cached_property
    def sides(self) -> Float[Tensor, "B n"]:
        """(2D - I) of each block."""
        return 2.0 * self.mask - 1.0

    @cached_property
    def products(self) -> ColumnProducts:
        """Of the samples with themselves."""
        return ColumnProducts.of(self.X)

    @cached_property
    def harmful(self) -> Int[Tensor, " p"] | None:
        """The pairs of soft cones, flat indices into (B, n)."""
        return None if self.soft is None else torch.nonzero(self.soft.reshape(-1))[:, 0]

    @cached_property
    def ends(self) -> Float[Tensor, "q n"]:
        """The ends of the output's range that the loss looks at: the sign of the target, or both."""
        y = self.program.targets
        return y[None] if self.program.margin_loss else torch.stack([torch.ones_like(y), -torch.ones_like(y)])

    @cached_property
    def charged(self) -> Float[Tensor, "q B"]:
        """At which end the excesses of a block count: with sign +1 at the upper one, with -1 at the lower one."""
        if self.program.margin_loss:  # harmful pairs are those at the one end that there is
            return torch.ones_like(self.signs)[None]
        return torch.stack([self.signs < 0, self.signs > 0]).to(self.X)

    @property
    def levels(self) -> int:
        """Levels: none for the logistic loss, whose margins enter as they are."""
        return 0 if self.program.problem.loss.name == "logistic" else len(self.X)

    @cached_property
    def goal(self) -> Float[Tensor, "q n"]:
        """Levels and margins together are at least this."""
        return torch.ones_like(self.ends) if self.program.margin_loss else self.ends * self.program.targets

    def pairs(self, dense: Shaped[Tensor, "B n"]) -> Shaped[Tensor, " p"]:
        """The entries of the pairs that have an inequality."""
        flat = dense.reshape(-1)
        return flat if self.harmful is None else flat[self.harmful]

    def dense(self, pairs: Float[Tensor, " p"]) -> Float[Tensor, "B n"]:
        """Pairs among zeros."""
        if self.harmful is None:
            return pairs.reshape(self.mask.shape)
        return pairs.new_zeros(self.mask.numel()).index_copy(0, self.harmful, pairs).reshape(self.mask.shape)

    def slack(self, u: Float[Tensor, "B d"]) -> Float[Tensor, "B n"]:
        """(2D - I) X u - r(u)."""
        return self.sides * (u @ self.X.T) - self.program.ball.support(u)[:, None]

    @cached_property
    def inside(self) -> Float[Tensor, "B n"]:
        """The slacks of the directions, positive for hard cones."""
        return self.slack(self.centre).clamp(min=torch.finfo(self.X.dtype).tiny)

    def slopes(self, u: Float[Tensor, "B d"]) -> Float[Tensor, "g d"]:
        """z_g."""
        return self.shared @ u

    def margins(self, at: Variables) -> Float[Tensor, "q n"]:
        """As in the module's docstring; linear."""
        z = self.slopes(at.u)
        f = (self.X * z[self.group]).sum(1)
        if len(at.bias):
            f = f + at.bias
        out = self.ends * f - self.reach.value(at.w)[self.group]
        return out - self.charged @ self.dense(at.excess) if len(at.excess) else out

    def rows(self, at: Variables) -> Rows:
        """The linear inequalities' left-hand sides, without their constants."""
        slack = self.sides * (at.u @ self.X.T) - self.reach.value(at.y)[:, None]
        pairs = self.pairs(slack)
        loss = at.level.new_zeros(0)
        if self.levels:
            loss = (at.level + self.margins(at)).reshape(-1)
        return Rows(
            self.reach.rows(at.u, at.y),
            self.reach.rows(self.slopes(at.u), at.w),
            pairs + at.excess if len(at.excess) else pairs,
            at.excess,
            loss,
            at.level if self.program.margin_loss else at.level[:0],
        )

    @cached_property
    def constant(self) -> Float[Tensor, " N"]:
        """What is added to the rows: minus the goals of the loss."""
        rows = self.views(self.X.new_zeros(self.n_rows))
        if self.levels:
            rows.loss.copy_(-self.goal.reshape(-1))
        return rows.flat()

    @cached_property
    def _sizes(self) -> tuple[tuple[int, ...], ...]:
        p = self.mask.numel() if self.harmful is None else len(self.harmful)
        soft = 0 if self.harmful is None else p
        width, q = self.reach.width, len(self.ends)
        levels = self.levels if self.program.margin_loss else 0
        return (len(self), width), (len(self.shared), width), (p,), (soft,), (q * self.levels,), (levels,)

    @cached_property
    def n_rows(self) -> int:
        """Linear inequalities in all."""
        return sum(int(torch.tensor(size).prod()) for size in self._sizes)

    @cached_property
    def _lengths(self) -> list[int]:
        return [int(torch.tensor(size).prod()) for size in self._sizes]

    def views(self, flat: Float[Tensor, " N"]) -> Rows:
        """The parts of a flat vector."""
        parts = torch.split(flat, self._lengths)
        return Rows(*(part.reshape(size) for part, size in zip(parts, self._sizes, strict=True)))

    def cones(self, at: Variables) -> Float[Tensor, "c e"]:
        """The second-order cones, one a row: (t, u), then of a conic ball those of u and z."""
        groups = torch.cat([at.t[:, None], at.u], 1)
        if not self.reach.conic:
            return groups
        return torch.cat([groups, self.reach.cones(at.u, at.y), self.reach.cones(self.slopes(at.u), at.w)])

    def parted(self, cones: Float[Tensor, "c e"]) -> tuple[Tensor, Tensor, Tensor]:
        """Groups, own and joint cones; the latter two are empty where the ball is not conic."""
        B = len(self)
        if not self.reach.conic:
            return cones, cones[:0], cones[:0]
        return cones[:B], cones[B : 2 * B], cones[2 * B :]

    def pull(self, rows: Rows, cones: Float[Tensor, "c e"], weights: Float[Tensor, "q n"] | None = None) -> Variables:
        """The adjoint of :meth:`rows` and :meth:`cones`; ``weights`` are those of the margins of the logistic loss."""
        groups, own_cones, joint_cones = self.parted(cones)
        margins = rows.loss.reshape(self.ends.shape) if weights is None else weights
        u, y = self.reach.pull(rows.own)
        z, w = self.reach.pull(rows.joint)
        if self.reach.conic:
            (u, y), (z, w) = self.reach.pull_cones(own_cones), self.reach.pull_cones(joint_cones)
        pairs = self.dense(rows.pairs)
        u = u + groups[:, 1:] + (self.sides * pairs) @ self.X
        y = y - self.reach.spread(pairs.sum(1))
        forces = (self.ends * margins).sum(0)
        z = z.index_add(0, self.group, forces[:, None] * self.X)
        total = margins.new_zeros(len(w)).index_add(0, self.group, margins.sum(0))
        w = w - self.reach.spread(total)
        excess = rows.pairs + rows.excess - self.pairs(self.charged.T @ margins) if len(rows.excess) else rows.excess
        level = margins.sum(0) if self.levels else rows.level
        if len(rows.level):
            level = level + rows.level
        bias = forces.sum()[None] if self.program.problem.output_bias else forces[:0]
        return Variables(u + self.shared.T @ z, y, w, bias, groups[:, 0], excess, level)
