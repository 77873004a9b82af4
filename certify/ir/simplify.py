"""Rewrites that leave the function alone: fewer nodes, tighter bounds.

Merging W2 (W1 x + b1) + b2 is exact in real arithmetic; in float64 the merged weights are off by about 1e-16
of |W2| |W1|, much more of the weights themselves where products cancel. Bounds are about the simplified graph.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from certify.ir.graph import Graph, Node
from certify.ir.ops import AbstractOp, Conv, Linear, Reshape, Scale, Select

_LARGEST = 2**24  # entries of a product that has more than its factors

Rule = Callable[[Any, Any], AbstractOp | None]


def _linear_linear(first: Linear, second: Linear) -> Linear | None:
    fan_in, width, fan_out = first.weight.shape[1], len(first.weight), len(second.weight)
    if fan_in * fan_out > max(_LARGEST, width * (fan_in + fan_out)):
        return None  # a bottleneck: the product of two small matrices is a large one
    return Linear(second.weight @ first.weight, second.weight @ first.bias + second.bias)


def _linear_scale(first: Linear, second: Scale) -> Linear:
    return Linear(second.scale[:, None] * first.weight, second.scale * first.bias + second.shift)


def _scale_linear(first: Scale, second: Linear) -> Linear:
    shift = first.shift if len(first.shift) > 1 else first.shift.repeat(second.weight.shape[1])
    return Linear(second.weight * first.scale, second.weight @ shift + second.bias)


def _scale_scale(first: Scale, second: Scale) -> Scale:
    return Scale(second.scale * first.scale, second.scale * first.shift + second.shift)


def _conv_scale(first: Conv, second: Scale) -> Conv | None:
    if not (_by_channel(second.scale) and _by_channel(second.shift)):
        return None
    scale, shift = second.scale.reshape(-1), second.shift.reshape(-1)
    weight = scale.reshape((-1, *[1] * (len(first.weight.shape) - 1))) * first.weight
    return replace(first, weight=weight, bias=scale * first.bias + shift)


def _scale_conv(first: Scale, second: Conv) -> Conv | None:
    """Zeros that pad the convolution are not shifted with the values, so a shift only merges without padding."""
    padded = any((*second.window.before, *second.window.after)) and bool((first.shift != 0).any())
    if padded or second.groups > 1 or not (_by_channel(first.scale) and _by_channel(first.shift)):
        return None
    axes = tuple(range(1, len(second.weight.shape)))
    shape = (1, -1, *[1] * len(second.spatial))
    moved = (second.weight * first.shift.reshape(shape)).sum(axes)
    return replace(second, weight=second.weight * first.scale.reshape(shape), bias=second.bias + moved)


def _by_channel(array: Any) -> bool:
    return all(n == 1 for n in array.shape[1:])


def _reshape_reshape(first: Reshape, second: Reshape) -> Reshape:
    return Reshape(first.source, second.target)


def _select_select(first: Select, second: Select) -> Select:
    index = first.index.ravel()[second.index.clip(0)]
    return Select(first.source, np.where(second.index < 0, -1, index))


def _reshape_select(first: Reshape, second: Select) -> Select:
    return Select(first.source, second.index)


def _select_reshape(first: Select, second: Reshape) -> Select:
    return Select(first.source, first.index.reshape(second.target))


# Two consecutive operations, the first read by nobody else, become one (where the rule does not return None).
_MERGE: dict[tuple[type, type], Rule] = {
    (Linear, Linear): _linear_linear,
    (Linear, Scale): _linear_scale,
    (Scale, Linear): _scale_linear,
    (Scale, Scale): _scale_scale,
    (Conv, Scale): _conv_scale,
    (Scale, Conv): _scale_conv,
    (Reshape, Reshape): _reshape_reshape,
    (Select, Select): _select_select,
    (Reshape, Select): _reshape_select,
    (Select, Reshape): _select_reshape,
}


def _is_identity(op: AbstractOp) -> bool:
    if isinstance(op, Scale):
        return bool((op.scale == 1).all()) and bool((op.shift == 0).all())
    return isinstance(op, Reshape) and op.source == op.target


def _merged(first: AbstractOp, second: AbstractOp) -> AbstractOp | None:
    rule = _MERGE.get((type(first), type(second)))
    return rule(first, second) if rule is not None else None


def simplify(graph: Graph) -> Graph:
    """The same function with consecutive affine operations merged; identities and unread nodes are dropped."""
    alive = _alive(graph)
    readers = [0] * len(graph.nodes)
    for k in alive:
        for i in (*graph.nodes[k].inputs, *graph.nodes[k].hints):
            readers[i] += 1
    kept: list[Node] = [graph.nodes[0]]
    counts = [readers[0]]  # readers of each kept node, in the old graph
    place = {0: 0}  # id in the old graph -> id in the new one
    for k in alive[1:]:
        node = graph.nodes[k]
        inputs, hints = (tuple(place[i] for i in ids) for ids in (node.inputs, node.hints))
        source = inputs[0]
        both = _merged(kept[source].op, node.op) if counts[source] == 1 and len(inputs) == 1 else None
        if both is not None:
            kept[source] = Node(both, kept[source].inputs, node.shape)
            counts[source], place[k] = readers[k], source
        elif _is_identity(node.op):
            counts[source] += readers[k] - 1
            place[k] = source
        else:
            kept.append(Node(node.op, inputs, node.shape, hints))
            counts.append(readers[k])
            place[k] = len(kept) - 1
    return Graph(tuple(kept[: place[graph.output] + 1]))


def _alive(graph: Graph) -> list[int]:
    """The input, and the nodes that the output depends on, in order."""
    needed = {graph.output}
    for k in range(graph.output, 0, -1):
        if k in needed:
            needed.update((*graph.nodes[k].inputs, *graph.nodes[k].hints))
    return sorted(needed | {0})
