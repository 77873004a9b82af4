"""A batch of questions about one network: does every input of the region keep all margins?"""

from dataclasses import dataclass, replace
from itertools import pairwise
from math import prod
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from certify.ir import Graph
from certify.properties import Margins
from certify.regions import AbstractRegion, LpBall
from certify.regions.spatial.canvas import Canvas
from certify.regions.spatial.deformations import Deformations
from certify.regions.spatial.flows import Flows


@dataclass(frozen=True, eq=False)
class Problem:
    """The network as it was given and as a graph, the regions, and the margins to keep.

    Bounds are computed on the graph, in float64; counterexamples are judged by the network itself, in its own
    precision.

    The points of `region` are inputs or, with a canvas, vector fields that make inputs of its images.
    """

    network: nn.Module
    graph: Graph
    region: LpBall | Flows
    margins: Margins
    dtype: torch.dtype
    canvas: Canvas | None = None

    def __len__(self) -> int:
        return len(self.region.centre)

    @property
    def inputs(self) -> AbstractRegion:
        """A region that holds all inputs in question: what bounds are about."""
        return self.region if self.canvas is None else self.canvas.outer

    @property
    def widest_first(self) -> tuple["Problem", ...]:
        """The question about any fields, then the one about smooth ones: bounds of a box cost little.

        So no bound is looser with a limit of differences than without.
        """
        if self.canvas is None or not isinstance(self.canvas.outer, Deformations):
            return (self,)
        return replace(self, canvas=replace(self.canvas, outer=self.canvas.outer.box)), self

    @property
    def multiplications(self) -> int:
        """Of the largest matrix product for one input: the two widest neighbours."""
        widths = [prod(node.shape) for node in self.graph.nodes]
        return max((a * b for a, b in pairwise(widths)), default=0)

    def select(self, index: Any) -> "Problem":
        """The questions about some of the inputs."""
        canvas = None if self.canvas is None else self.canvas.select(index)
        return replace(self, region=self.region.select(index), margins=self.margins.select(index), canvas=canvas)

    def drawn(self, points: Float[Tensor, "batch n"]) -> Float[Tensor, "batch inputs"]:
        """The inputs that points of the region stand for."""
        return points if self.canvas is None else self.canvas.draw(points)

    def run(self, points: Float[Tensor, "batch n"]) -> Float[Tensor, "batch outputs"]:
        """Outputs of the original network at points rounded to its precision.

        It gets a copy: a layer that works in place must not move the points.
        """
        shaped = self.drawn(points).to(self.dtype).reshape((-1, *self.graph.input_shape)).clone()
        return self.network(shaped).flatten(1).double()

    def margins_at(self, points: Float[Tensor, "batch n"]) -> Float[Tensor, "batch targets"]:
        """The margins of the original network at the points."""
        return self.margins.of_outputs(self.run(points))

    def is_counterexample(self, points: Float[Tensor, "batch n"]) -> Bool[Tensor, " batch"]:
        """Whether each point, as the network reads it, is in its region and loses a margin there.

        Every point is run alone, as a user would: results in a batch can differ in the last digit.
        """
        points = points.to(self.dtype) if self.canvas is None else points
        with torch.no_grad():
            lost = [self.select([k])._is_lost(points[k : k + 1]) for k in range(len(points))]
        return self.region.contains(points.double()) & torch.tensor(lost, device=points.device)

    def _is_lost(self, point: Float[Tensor, "1 n"]) -> bool:
        return bool(self.margins.violated(self.margins_at(point)))
