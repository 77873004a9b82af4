"""The convex program of parallel three-layer networks over given branches.

    min L( sum_l s_l D_2l sum_j sigma_jl D_1jl X z_jl ) + weight_decay sum_l ||Z_l||_F    s.t. Z_l in the cone of l

with a block l for each branch, output and sign s_l. With ||Z_l||_F = ||b_l|| and unit hidden neurons w_jl, the
objective is that of the network f = sum_l s_l ((X W_l)_+ b_l)_+ with the penalty (weight_decay / 2) sum_l (||b_l||^2 +
s_l^2): only products count, and the arithmetic mean of ||b||^2 and s^2 is least where both are ||Z_l||_F (Ergen &
Pilanci 2021; Wang, Ergen & Pilanci 2023).
"""

from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from convexnn.deep.branches import BranchCones, Branches
from convexnn.errors import InvalidInputError
from convexnn.penalties import AbstractPenalty, GroupPenalty
from convexnn.problem import Problem
from convexnn.solvers.blocks import AbstractBlockMap, Image


@dataclass(frozen=True)
class ParallelPoint:
    """Some blocks of the program, the others zero, and an output bias."""

    index: Int[Tensor, " B"]  # flat, of (sign, output, branch)
    U: Float[Tensor, "B e"]
    bias: Float[Tensor, " K"]


@dataclass(frozen=True)
class ParallelProgram:
    """Data, loss, weight decay and branches; a block has e = m d entries."""

    problem: Problem
    branches: Branches
    penalty: AbstractPenalty = field(default_factory=GroupPenalty)

    def __post_init__(self) -> None:
        if len(self.branches) == 0:
            raise InvalidInputError("a program of parallel networks needs at least one branch, and there are none.")
        (n, d), (_, m, given) = self.problem.X.shape, self.branches.D1.shape
        if given != n or self.branches.inside.shape[1:] != (m, d):
            columns = self.branches.inside.shape[2]
            raise InvalidInputError(
                f"the branches are of {given} samples with {columns} columns; the data have {n}, {d}."
            )

    @cached_property
    def cones(self) -> BranchCones:
        """Of the branches, one sign and output."""
        return BranchCones.of(self.problem.X, self.branches)

    @cached_property
    def masks(self) -> Float[Tensor, "T m n"]:
        """sigma_j D_2 D_1j."""
        inner = self.branches.sigma[:, :, None] * self.branches.D1
        return inner * self.branches.D2[:, None]

    @cached_property
    def centre(self) -> Float[Tensor, "T e"]:
        """Unit directions inside the cones."""
        return self.branches.inside.flatten(1)

    @property
    def n_outputs(self) -> int:
        """Number K of outputs."""
        return self.problem.loss.n_outputs

    @property
    def n_blocks(self) -> int:
        """Two signs, K outputs and T branches."""
        return 2 * self.n_outputs * len(self.branches)

    def places(self, index: Int[Tensor, " B"]) -> tuple[Tensor, Tensor, Tensor]:
        """Sign, output and branch of each block."""
        T, K = len(self.branches), self.n_outputs
        sign = 1.0 - 2.0 * (index // (K * T)).to(self.problem.X)
        return sign, (index // T) % K, index % T

    def blocks(self, index: Int[Tensor, " B"]) -> "BranchMap":
        """These blocks as one linear map."""
        sign, outputs, branches = self.places(index)
        masks = sign[:, None, None] * self.masks[branches]
        pairs = torch.unique(index % (self.n_outputs * len(self.branches)), return_inverse=True)[1]
        cones = self.cones.take(branches)
        return BranchMap(self.problem.X, masks, outputs, self.n_outputs, pairs, cones, self.centre[branches])

    def correlations(self, V: Float[Tensor, "n K"]) -> Float[Tensor, "N e"]:
        """s X'D_1j D_2 sigma_j v_k for every block."""
        own = torch.cat([(self.masks * V[:, k] @ self.problem.X).flatten(1) for k in range(V.shape[1])])
        return torch.cat([own, -own])

    def output(self, point: ParallelPoint) -> Float[Tensor, "n K"]:
        """F, with the bias."""
        return self.blocks(point.index).forward(point.U) + point.bias

    def objective(self, point: ParallelPoint) -> float:
        """The convex objective."""
        loss = self.problem.loss.value(self.output(point))
        return float(loss + self.problem.weight_decay * self.penalty.value(point.U))

    def feasible(self, point: ParallelPoint) -> ParallelPoint:
        """Blocks inside their cones, near these."""
        maps = self.blocks(point.index)
        return replace(point, U=maps.repaired(point.U, maps.cones.forward(point.U)))

    def zero(self) -> ParallelPoint:
        """No weights, and the best constant output."""
        empty = torch.zeros(0, dtype=torch.long)
        return ParallelPoint(empty, self.problem.X.new_zeros((0, self.centre.shape[1])), self.problem.constant())


@dataclass(frozen=True)
class BranchMap(AbstractBlockMap):
    """Blocks of a parallel program."""

    X: Float[Tensor, "n d"]
    masks: Float[Tensor, "B m n"]  # s sigma_j D_2 D_1j
    outputs: Int[Tensor, " B"]
    n_outputs: int
    pairs: Int[Tensor, " B"]
    cones: BranchCones
    centre: Float[Tensor, "B e"]

    @cached_property
    def inside(self) -> Float[Tensor, "B r"]:
        """Slacks of the directions inside."""
        return self.cones.forward(self.centre).clamp(min=torch.finfo(self.X.dtype).tiny)

    @cached_property
    def live(self) -> Bool[Tensor, " n"] | None:
        """Samples that have slacks, where some have none."""
        return None if len(self.cones.X) == len(self.X) else self.X.norm(dim=1) > 0

    @property
    def shape(self) -> tuple[int, int]:
        """Number of blocks, number of entries of each."""
        return len(self.masks), self.centre.shape[1]

    def take(self, keep: Bool[Tensor, " B"]) -> "BranchMap":
        """Some of the blocks."""
        pairs = torch.unique(self.pairs[keep], return_inverse=True)[1]
        return BranchMap(
            self.X,
            self.masks[keep],
            self.outputs[keep],
            self.n_outputs,
            pairs,
            self.cones.take(keep),
            self.centre[keep],
        )

    def forward(self, U: Float[Tensor, "B e"]) -> Float[Tensor, "n K"]:
        """Outputs without bias."""
        return self._outputs(self.cones.parts(U) @ self.X.T)

    def _outputs(self, T: Float[Tensor, "B m n"]) -> Float[Tensor, "n K"]:
        parts = (self.masks * T).sum(1)
        if self.n_outputs == 1:
            return parts.sum(0)[:, None]
        return parts.new_zeros((self.n_outputs, len(self.X))).index_add_(0, self.outputs, parts).T

    def image(self, U: Float[Tensor, "B e"]) -> Image:
        """Outputs and slacks from one product."""
        T = self.cones.parts(U) @ self.X.T
        return Image(self._outputs(T), self.cones.slacks(T if self.live is None else T[:, :, self.live]))

    def adjoint(self, V: Float[Tensor, "n K"]) -> Float[Tensor, "B e"]:
        """s X'D_1j D_2 sigma_j v_k."""
        return ((self.masks * V.T[self.outputs][:, None]) @ self.X).flatten(1)

    def pull(self, V: Float[Tensor, "n K"], L: Float[Tensor, "B r"]) -> Float[Tensor, "B e"]:
        """c + G'l."""
        return self.adjoint(V) + self.cones.adjoint(L)

    def repaired(self, U: Float[Tensor, "B e"], slack: Float[Tensor, "B r"]) -> Float[Tensor, "B e"]:
        """Moved along the directions inside, as far as the worst slack needs."""
        if slack.shape[1] == 0 or len(slack) == 0:
            return U
        short = (-slack / self.inside).amax(1, keepdim=True).clamp(min=0.0)
        return U + short * self.centre

    def cone_gram(self, w: Float[Tensor, "B r"]) -> Float[Tensor, "B e e"]:
        """G'diag(w)G."""
        return self.cones.gram(w)
