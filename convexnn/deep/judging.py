"""The judge of parallel programs: objective and bound at given points, by other code than made the points.

For a block Z of norm one in its cone {G Z >= 0} and any a >= 0, <C, Z> <= <C + G'a, Z> <= ||C + G'a||. So with C the
correlations of any V in the domain of the dual and any multipliers, M = max ||C_l + G_l'a_l|| is an upper bound of what
a block can reach, and D(t V) with t M <= weight_decay is a lower bound of the program (weak duality).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from convexnn.deep.parallel import ParallelPoint, ParallelProgram
from convexnn.duality import DualPoint, dual_point
from convexnn.result import relative_gap

_CHUNK = 256


@dataclass(frozen=True)
class ParallelJudgement:
    """What is known about a program at a point and a dual point."""

    point: ParallelPoint  # feasible
    objective: float  # convex objective at that point
    dual: DualPoint  # its bound holds for these branches, and says nothing about others

    def gap(self, floor: float = 0.0) -> float:
        """Relative gap of the program."""
        return relative_gap(self.objective, self.dual.bound, floor)


def judge_primal(program: ParallelProgram, point: ParallelPoint) -> tuple[ParallelPoint, float]:
    """The feasible point near this one, and its objective."""
    feasible = program.feasible(point)
    return feasible, program.objective(feasible)


def judge_dual(program: ParallelProgram, V: Float[Tensor, "n K"], multipliers: Float[Tensor, "N r"]) -> DualPoint:
    """The bound of V, moved into the domain of the dual first, with these multipliers; negative ones count as zero."""
    V, largest = program.problem.admit(V), 0.0
    for part in torch.arange(program.n_blocks).split(_CHUNK):
        sign, outputs, branches = program.places(part)
        spread = sign[:, None, None] * program.masks[branches] * V.T[outputs][:, None]
        C = (spread @ program.problem.X).flatten(1)
        pulled = C + program.cones.take(branches).adjoint(multipliers[part].clamp(min=0.0))
        largest = max(largest, float(pulled.norm(dim=1).max()))
    return dual_point(program.problem, V, largest)
