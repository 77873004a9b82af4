"""Bounds on the values of a graph's nodes, and what a method is."""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from certify.ir import Graph
from certify.ir.ops import AbstractAffine
from certify.properties import Margins
from certify.regions import AbstractRegion


@dataclass(frozen=True, eq=False)
class Bounds:
    """lower <= value <= upper by node id, `(batch, *shape)` each; a node without an entry is unbounded."""

    lower: Mapping[int, Tensor] = field(default_factory=dict)
    upper: Mapping[int, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("lower", "upper"):
            object.__setattr__(self, name, MappingProxyType(dict(getattr(self, name))))

    def __getitem__(self, node: int) -> tuple[Tensor, Tensor]:
        return self.lower[node], self.upper[node]

    def __contains__(self, node: object) -> bool:
        return node in self.lower

    def tightened(self, node: int, lower: Tensor, upper: Tensor) -> "Bounds":
        """The intersection with more bounds on one node; a NaN tells nothing."""
        if node in self:
            lower, upper = torch.fmax(lower, self.lower[node]), torch.fmin(upper, self.upper[node])
        return Bounds({**self.lower, node: lower}, {**self.upper, node: upper})

    def size(self, node: int) -> Tensor:
        """Largest absolute value of every entry."""
        return torch.maximum(self.lower[node].abs(), self.upper[node].abs())

    def to(self, where: torch.dtype | str) -> "Bounds":
        """In another precision, rounded to the nearest, or on another device."""
        return Bounds({k: v.to(where) for k, v in self.lower.items()}, {k: v.to(where) for k, v in self.upper.items()})

    def only(self, nodes: Iterable[int]) -> "Bounds":
        """The bounds of some of the nodes."""
        nodes = tuple(nodes)
        return Bounds({k: self.lower[k] for k in nodes}, {k: self.upper[k] for k in nodes})

    def select(self, index: Any) -> "Bounds":
        """The bounds of some of the inputs."""
        return Bounds({k: v[index] for k, v in self.lower.items()}, {k: v[index] for k, v in self.upper.items()})


def last(steps: Iterable[Bounds], otherwise: Bounds) -> Bounds:
    """The bounds after all steps."""
    final = deque(steps, maxlen=1)
    return final[0] if final else otherwise


class AbstractMethod(ABC):
    """A way to bound a network on a region. A method is a frozen value; nothing is stored on the graph."""

    @property
    @abstractmethod
    def name(self) -> str:
        """What a user calls it."""

    @property
    def largest_batch(self) -> int:
        """From how many inputs on more of them at once gain nothing."""
        return 256

    @abstractmethod
    def steps(self, graph: Graph, region: AbstractRegion, known: Bounds | None = None) -> Iterator[Bounds]:
        """The bounds after one node more each time: a caller short of time stops anywhere."""

    def __call__(self, graph: Graph, region: AbstractRegion, known: Bounds | None = None) -> Bounds:
        """Bounds on every node, never looser than the known ones."""
        return last(self.steps(graph, region, known), known or Bounds())

    @abstractmethod
    def margins(
        self, graph: Graph, region: AbstractRegion, bounds: Bounds, margins: Margins
    ) -> Float[Tensor, "batch targets"]:
        """Lower bounds of the margins, given bounds on every node."""

    def suggestions(
        self,
        graph: Graph,
        region: AbstractRegion,
        bounds: Bounds,
        margins: Margins,
        lower: Float[Tensor, "batch targets"],
    ) -> Float[Tensor, "batch points n"] | None:
        """Inputs for an attack on the margins that these lower bounds leave open; None where it has no idea."""
        return None


def count_needed(graph: Graph) -> int:
    """Nodes whose bounds the margins rest on: all below the output, and an output that is not affine too."""
    return graph.output + (not isinstance(graph.nodes[graph.output].op, AbstractAffine))


def place(graph: Graph, like: Tensor) -> Graph:
    """The graph in the precision and on the device of a tensor."""
    arrays = (v for n in graph.nodes for v in n.op.weights.values())
    if all(isinstance(v, Tensor) and v.dtype == like.dtype and v.device == like.device for v in arrays):
        return graph
    return graph.map_arrays(partial(torch.as_tensor, dtype=like.dtype, device=like.device))
