"""Which blocks of a program violate a dual point: projections, and screening by the multipliers of earlier ones."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from convexnn.operators import ConeMap
from convexnn.programs import AbstractProgram
from convexnn.projection import ColumnProducts, price

_CHUNK = 512  # blocks that are projected together


@dataclass
class Screen:
    """Multipliers of each block, which bound what it can reach; they change as blocks are projected."""

    program: AbstractProgram
    multipliers: Float[Tensor, "N m"]  # of the last projection of each block, or of a solver

    @classmethod
    def of(cls, program: AbstractProgram) -> "Screen":
        """Nothing is known."""
        S, K, P, _ = program.shape
        width = 0 if program.cone is None else program.cone.X.shape[0]
        return cls(program, program.problem.X.new_zeros((S * K * P, width)))

    def __len__(self) -> int:
        return len(self.multipliers)

    def lower(
        self,
        C: Float[Tensor, "N d"],
        among: Bool[Tensor, " N"],
        target: float,
        *,
        wanted: int | None = None,
        chunk: int = _CHUNK,
        accuracy: float = 0.05,
    ) -> Float[Tensor, " N"]:
        """Lower bounds of max c'u over unit blocks in their cones, above ``target`` for every violator that is found.

        Blocks are projected, the most promising first, until there are ``wanted`` violators. The
        upper bound of a violator, by its multipliers, is within ``accuracy`` of the lower one.
        """
        cone, patterns = self.program.cone, self.program.patterns
        if cone is None:
            return torch.where(among, self.program.penalty.dual_norms(C), 0.0)
        centre = patterns.gates / patterns.gates.norm(dim=1, keepdim=True)
        P, lower = len(patterns), C.new_zeros(len(C))
        left = torch.nonzero(among)[:, 0]
        left = left[self._upper(cone, C, left) > target]
        score = (C[left] * centre[left % P]).sum(1)
        products = ColumnProducts.of(cone.X)
        for part in left[torch.argsort(score, descending=True)].split(chunk):
            own = ConeMap(cone.X, cone.signs[part % P])
            prices = price(own, products, C[part], centre[part % P], target, slack=accuracy)
            lower[part] = prices.lower
            self.multipliers[part] = prices.multipliers
            if wanted is not None and int((lower > target).sum()) >= wanted:
                break
        return lower

    def _upper(self, cone: ConeMap, C: Float[Tensor, "N d"], index: Int[Tensor, " k"]) -> Float[Tensor, " k"]:
        """Upper bounds by the multipliers at hand, at their best scale; the multipliers are rescaled in place."""
        own = ConeMap(cone.X, cone.signs[index % len(self.program.patterns)])
        pull = own.adjoint(self.multipliers[index])
        c = C[index]
        scale = (-(c * pull).sum(1) / (pull * pull).sum(1).clamp(min=1e-300)).clamp(min=0.0)
        self.multipliers[index] *= scale[:, None]
        return (c + scale[:, None] * pull).norm(dim=1)


def first_scores(program: AbstractProgram) -> Float[Tensor, " N"]:
    """How each block correlates with the gradient at the constant network, along a direction inside its cone."""
    S, K, _, d = program.shape
    C = program.correlations(program.problem.dual_point(program.output(program.zero()))).reshape(-1, d)
    if program.cone is None:
        return program.penalty.dual_norms(C)
    gates = program.patterns.gates / program.patterns.gates.norm(dim=1, keepdim=True)
    return (C * gates.repeat(S * K, 1)).sum(1)
