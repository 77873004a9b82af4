"""Rewrites that leave the function alone: fewer nodes, tighter bounds.

Merging W2 (W1 x + b1) + b2 is exact in real arithmetic; in float64 the merged weights carry a relative
rounding of about 1e-16, which the bounds inherit: they are about the simplified graph.
"""

from collections.abc import Callable
from typing import Any

from certify.ir.graph import Graph, Node
from certify.ir.ops import AbstractOp, Linear, Reshape, Scale

Rule = Callable[[Any, Any], AbstractOp]


def _linear_linear(first: Linear, second: Linear) -> Linear:
    return Linear(second.weight @ first.weight, second.weight @ first.bias + second.bias)


def _linear_scale(first: Linear, second: Scale) -> Linear:
    return Linear(second.scale[:, None] * first.weight, second.scale * first.bias + second.shift)


def _scale_linear(first: Scale, second: Linear) -> Linear:
    return Linear(second.weight * first.scale, second.weight @ first.shift + second.bias)


def _scale_scale(first: Scale, second: Scale) -> Scale:
    return Scale(second.scale * first.scale, second.scale * first.shift + second.shift)


def _reshape_reshape(first: Reshape, second: Reshape) -> Reshape:
    return Reshape(first.source, second.target)


# Two consecutive operations, the first read by nobody else, become one.
_MERGE: dict[tuple[type, type], Rule] = {
    (Linear, Linear): _linear_linear,
    (Linear, Scale): _linear_scale,
    (Scale, Linear): _scale_linear,
    (Scale, Scale): _scale_scale,
    (Reshape, Reshape): _reshape_reshape,
}


def _is_identity(op: AbstractOp) -> bool:
    return isinstance(op, Reshape) and op.source == op.target


def simplify(graph: Graph) -> Graph:
    """The same function with consecutive affine operations merged and identities dropped."""
    kept: list[Node] = [graph.nodes[0]]
    place = {0: 0}  # id in the old graph -> id in the new one
    readers: list[int] = [len(graph.consumers[0])]  # of each kept node, in the old graph
    for k, node in enumerate(graph.nodes[1:], start=1):
        inputs = tuple(place[i] for i in node.inputs)
        source = inputs[0]
        rule = _MERGE.get((type(kept[source].op), type(node.op)))
        if rule is not None and readers[source] == 1:
            op = rule(kept[source].op, node.op)
            kept[source] = Node(op, kept[source].inputs, node.shape)
            readers[source], place[k] = len(graph.consumers[k]), source
        elif _is_identity(node.op):
            readers[source] += len(graph.consumers[k]) - 1
            place[k] = source
        else:
            kept.append(Node(node.op, inputs, node.shape))
            readers.append(len(graph.consumers[k]))
            place[k] = len(kept) - 1
    return Graph(tuple(kept[: place[graph.output] + 1]))
