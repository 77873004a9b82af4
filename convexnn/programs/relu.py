"""The convex program of ReLU networks with given activation patterns."""

from functools import cached_property
from typing import ClassVar

from convexnn.neurons import Neurons
from convexnn.operators import ConeMap
from convexnn.programs.base import AbstractProgram, ConvexPoint, neurons_of


class ReLUProgram(AbstractProgram):
    """Blocks v_p and w_p in the cone (2D_p - I) X u >= 0, F = sum_p D_p X (v_p - w_p).

    With the group penalty a feasible point and its network have the same objective (Pilanci &
    Ergen, ICML 2020). With several outputs each neuron feeds one of them.
    """

    name: ClassVar[str] = "relu"
    signs: ClassVar[tuple[float, ...]] = (1.0, -1.0)

    @cached_property
    def cone(self) -> ConeMap:
        """One slack for each sample that is not zero."""
        return ConeMap(self.problem.X[self.live], 2.0 * self.gated.mask[:, self.live] - 1.0)

    def network(self, point: ConvexPoint) -> Neurons:
        """One neuron for each block that is not zero."""
        return neurons_of(self.feasible(point).U, self.signs, point.bias)
