"""A network as a directed acyclic graph of operations."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from certify.errors import InvalidInputError
from certify.ir.ops import AbstractAffine, AbstractOp, Input, Linear, Reshape, Shape


@dataclass(frozen=True, eq=False)
class Node:
    """One step of the computation.

    Attributes:
        op: the operation.
        inputs: ids of the nodes it reads.
        shape: shape of its result, without the batch axis.
        hints: ids of nodes whose largest entry it is, for operations of which that is known: intervals may use it.
    """

    op: AbstractOp
    inputs: tuple[int, ...]
    shape: Shape
    hints: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class Graph:
    """Nodes in topological order: node 0 is the input, the last one the output."""

    nodes: tuple[Node, ...]

    @staticmethod
    def start(shape: Shape) -> "Graph":
        """A graph that returns its input of the given shape."""
        return Graph((Node(Input(shape), (), shape),))

    def append(self, op: AbstractOp, *inputs: int) -> "Graph":
        """The graph with one more node, reading the given nodes (by default the last one)."""
        inputs = inputs or (self.output,)
        if any(not 0 <= i < len(self.nodes) for i in inputs):
            raise InvalidInputError(f"a node can only read nodes 0 to {self.output}; given {inputs}")
        shape = op.output_shape(*(self.nodes[i].shape for i in inputs))
        return Graph((*self.nodes, Node(op, inputs, shape)))

    @property
    def output(self) -> int:
        """Id of the output node."""
        return len(self.nodes) - 1

    @property
    def input_shape(self) -> Shape:
        """Shape of one input."""
        return self.nodes[0].shape

    @property
    def output_shape(self) -> Shape:
        """Shape of one output."""
        return self.nodes[-1].shape

    @cached_property
    def consumers(self) -> tuple[tuple[int, ...], ...]:
        """For every node the ids of the nodes that read it."""
        readers: list[list[int]] = [[] for _ in self.nodes]
        for k, node in enumerate(self.nodes):
            for i in node.inputs:
                readers[i].append(k)
        return tuple(map(tuple, readers))

    @cached_property
    def relaxed(self) -> frozenset[int]:
        """Ids of the nodes that a non-affine operation reads: the ones whose bounds matter."""
        return frozenset(i for n in self.nodes[1:] if not isinstance(n.op, AbstractAffine) for i in n.inputs)

    def reads_input(self, node: int) -> bool:
        """Whether the node is a linear layer on the (reshaped) input: its bounds are exact."""
        if not isinstance(self.nodes[node].op, Linear):
            return False
        source = self.nodes[node].inputs[0]
        while isinstance(self.nodes[source].op, Reshape):
            source = self.nodes[source].inputs[0]
        return source == 0

    def values(self, inputs: Any) -> list[Any]:
        """The value of every node at a batch of inputs, `(batch, *input_shape)` or flat `(batch, n)`."""
        values = [inputs.reshape((len(inputs), *self.input_shape))]
        for node in self.nodes[1:]:
            values.append(node.op.forward(*(values[i] for i in node.inputs)))
        return values

    def __call__(self, inputs: Any) -> Any:
        """The outputs `(batch, *output_shape)`."""
        return self.values(inputs)[-1]

    def map_arrays(self, convert: Callable[[Any], Any]) -> "Graph":
        """The graph with every array converted."""
        return Graph(tuple(replace(n, op=n.op.map_arrays(convert)) for n in self.nodes))
