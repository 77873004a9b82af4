"""The best of several methods at every node."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce

import torch
from jaxtyping import Float
from torch import Tensor

from certify.bounds.base import AbstractMethod, Bounds
from certify.errors import InvalidInputError
from certify.ir import Graph
from certify.properties import Margins
from certify.regions import AbstractRegion


@dataclass(frozen=True)
class Intersection(AbstractMethod):
    """Every entry gets the tightest of the methods' bounds; so does every margin, from the intersected bounds.

    Attributes:
        methods: at least one.
    """

    methods: tuple[AbstractMethod, ...]

    def __post_init__(self) -> None:
        if not self.methods:
            raise InvalidInputError("an intersection of no methods; expected at least one")

    @property
    def name(self) -> str:
        """What a user calls it."""
        return " & ".join(method.name for method in self.methods)

    @property
    def largest_batch(self) -> int:
        """What suits all of them."""
        return min(method.largest_batch for method in self.methods)

    def steps(self, graph: Graph, region: AbstractRegion, known: Bounds | None = None) -> Iterator[Bounds]:
        """One node more each time."""
        for together in zip(*(m.steps(graph, region, known) for m in self.methods), strict=True):
            yield reduce(_intersected, together)

    def margins(
        self, graph: Graph, region: AbstractRegion, bounds: Bounds, margins: Margins
    ) -> Float[Tensor, "batch targets"]:
        """The largest of the methods' bounds."""
        found = (m.margins(graph, region, bounds, margins) for m in self.methods)
        return reduce(torch.maximum, found)


def _intersected(left: Bounds, right: Bounds) -> Bounds:
    for node in right.lower:
        left = left.tightened(node, *right[node])
    return left
