"""The convex program of gated networks, whose gates are fixed and whose weights are free."""

from typing import ClassVar

import torch

from convexnn.neurons import Neurons
from convexnn.operators import ConeMap
from convexnn.programs.base import AbstractProgram, ConvexPoint, neurons_of
from convexnn.programs.decomposition import decompose


class GatedProgram(AbstractProgram):
    """Free blocks u_p, F = sum_p D_p X u_p (Fiat, Malach & Shalev-Shwartz 2019; Mishkin, Sahiner & Pilanci 2022).

    A relaxation of :class:`ReLUProgram` with the same patterns: its bound is a bound there too.
    """

    name: ClassVar[str] = "gated"
    signs: ClassVar[tuple[float, ...]] = (1.0,)

    @property
    def cone(self) -> ConeMap | None:
        """No constraints."""
        return None

    def network(self, point: ConvexPoint) -> Neurons:
        """A ReLU network with the same outputs on the data; its norms, and so its penalty, are larger.

        Each block is split as u = v - w with v and w in the cone of its pattern.
        """
        live = point.U[0].norm(dim=-1).amax(0) > 0
        V, W = decompose(self.problem.X, self.patterns.D[live], self.patterns.gates[live], point.U[0, :, live])
        return neurons_of(torch.stack([V, W]), (1.0, -1.0), point.bias)
