"""A network as a chain of dense affine layers with ReLUs between them."""

from math import prod

import numpy as np

from certify.ir.graph import Graph
from certify.ir.ops import AbstractAffine, Linear, ReLU

Layer = tuple[np.ndarray, np.ndarray]


def dense_chain(graph: Graph, max_entries: int = 2**24) -> tuple[Layer, ...] | None:
    """(W_1, b_1), ..., (W_k, b_k) such that the flat output is W_k relu(... relu(W_1 x + b_1) ...) + b_k.

    Whatever lies between two ReLUs (convolutions, sums of branches, reshapes, ...) becomes one float64 matrix.
    Single layers keep their weights exactly; where several merge, the matrix is rounded as any product is.

    Args:
        graph: the network, with numpy arrays.
        max_entries: of the largest matrix.

    Returns:
        The layers, or None where the network is no such chain (a branch that skips a ReLU, another
        non-affine operation) or a matrix would be too large.
    """
    layers: list[Layer] = []
    start = 0
    for k in (*(k for k, n in enumerate(graph.nodes) if isinstance(n.op, ReLU)), None):
        end = graph.output if k is None else graph.nodes[k].inputs[0]
        if k is None and isinstance(graph.nodes[-1].op, ReLU):
            size = prod(graph.output_shape)
            return (*layers, (np.eye(size), np.zeros(size)))
        layer = _affine_between(graph, start, end, max_entries)
        if layer is None:
            return None
        layers.append(layer)
        start = start if k is None else k
    return tuple(layers)


def _affine_between(graph: Graph, start: int, end: int, max_entries: int) -> Layer | None:
    """The map from node `start` to node `end`, if affine operations on `start` alone make it."""
    fan_in, fan_out = prod(graph.nodes[start].shape), prod(graph.nodes[end].shape)
    node = graph.nodes[end]
    if isinstance(node.op, Linear) and node.inputs[0] == start:
        return np.asarray(node.op.weight, dtype=np.float64), np.asarray(node.op.bias, dtype=np.float64)
    if fan_out * max(fan_in, fan_out) > max_entries:
        return None
    rows = {end: np.eye(fan_out).reshape((1, fan_out, *node.shape))}
    offset = np.zeros(fan_out)
    for k in range(end, start, -1):
        if k not in rows:
            continue
        current, op = rows.pop(k), graph.nodes[k].op
        if not isinstance(op, AbstractAffine) or current.size > max_entries:
            return None
        offset = offset + np.broadcast_to(op.offset(current), (1, fan_out))[0]
        for source, part in zip(graph.nodes[k].inputs, op.adjoint(current), strict=True):
            rows[source] = rows[source] + part if source in rows else part
    if set(rows) != {start}:
        return None
    return np.ascontiguousarray(rows[start].reshape((fan_out, fan_in))), offset
