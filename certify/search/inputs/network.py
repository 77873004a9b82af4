"""The chain of a graph, with the sizes that bound what merging its operations rounded."""

from math import prod

import numpy as np

from certify.ir.chain import dense_chain
from certify.ir.graph import Graph
from certify.ir.ops import AbstractAffine, Linear, ReLU
from certify.search.inputs.chain import Chain

_LARGEST = 2**26  # entries of a matrix from one value to another


def chain_of(graph: Graph) -> Chain | None:
    """The graph as affine layers with ReLUs between them; None if it is something else, or too large for that.

    The graph should not be simplified: then all that merging rounds is accounted for.
    """
    layers = dense_chain(graph)
    if layers is None:
        return None
    cuts = [0, *(k for k, node in enumerate(graph.nodes) if isinstance(node.op, ReLU))]
    ends = [*(graph.nodes[k].inputs[0] for k in cuts[1:]), graph.output]
    found = []
    for start, end in zip(cuts, ends, strict=True):
        sizes = _absolute(graph, start, end)
        if sizes is None:
            return None
        found.append(sizes)
    plain = Chain.of(layers)
    absolute = tuple(
        (np.maximum(M, np.abs(W)), np.maximum(v, np.abs(b)))
        for (M, v, _), W, b in zip(found, plain.weights, plain.biases, strict=True)
    )
    return Chain(plain.weights, plain.biases, absolute, max(terms for _, _, terms in found))


def _absolute(graph: Graph, start: int, end: int) -> tuple[np.ndarray, np.ndarray, int] | None:
    """|A_1| ... |A_j| and the same for the constants, of the operations between two nodes, and their roundings.

    None where the matrices would be too large.
    """
    op, shape = graph.nodes[end].op, graph.nodes[start].shape
    fan_in, terms = prod(shape), 0
    if isinstance(op, Linear) and graph.nodes[end].inputs[0] == start:
        return np.abs(op.weight), np.abs(op.bias), op.terms + 2
    if (fan_in + 1) * max(prod(node.shape) for node in graph.nodes[start : end + 1]) > _LARGEST:
        return None
    # The last row carries the constants.
    values = {start: np.concatenate([np.eye(fan_in), np.zeros((1, fan_in))]).reshape((fan_in + 1, *shape))}
    for k in range(start + 1, end + 1):
        node = graph.nodes[k]
        if not (isinstance(node.op, AbstractAffine) and all(i in values for i in node.inputs)):
            continue
        value = np.array(node.op.spread(*(values[i] for i in node.inputs)))
        value[-1] += np.broadcast_to(node.op.offset_size(), (1, *node.shape))[0]
        values[k] = value
        terms += node.op.terms + 2
    flat = values[end].reshape((fan_in + 1, -1))
    return flat[:-1].T.copy(), flat[-1].copy(), terms
