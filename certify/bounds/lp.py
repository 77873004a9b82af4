"""The triangle relaxation, solved to its optimum layer by layer.

Every layer's relaxation rests on the best bounds of the layers below (Tjeng, Xiao & Tedrake, "Evaluating
robustness of neural networks with mixed integer programming", ICLR 2019, section 4; Salman et al., "A convex
relaxation barrier to tight robustness verification of neural networks", NeurIPS 2019).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from certify.bounds.linear_model import LinearModel, Question, Solution
from certify.bounds.program import AbstractProgram, Objectives


@dataclass(frozen=True)
class TriangleLP(AbstractProgram):
    """The tightest relaxation that treats every neuron by itself, with hidden bounds from the same programs."""

    @property
    def name(self) -> str:
        """What a user calls it."""
        return "lp"

    @property
    def together(self) -> int:
        """So few that a layer keeps several workers busy, so many that writing the programs costs little."""
        return 24

    def solve(self, question: Question, model: LinearModel, objectives: Objectives) -> Sequence[Solution | None]:
        """One program for every objective, each from the last basis."""
        return [None if self.stopped else model.minimise(objective) for objective in objectives]
