"""A graph as the exact chain of dense layers that proofs are about."""

from math import prod
from typing import Any

import numpy as np

from certify.errors import UnsupportedOp
from certify.ir.graph import Graph, Node
from certify.ir.ops import AbstractAffine, Linear, ReLU, Reshape
from certify.proof.artefact import Dyadic
from certify.proof.check.exact import product
from certify.proof.check.network import Network
from certify.proof.writing import exact

_LARGEST = 2**24


def exact_network(graph: Graph) -> Network:
    """The layers between the ReLUs of a graph with numpy arrays, without any rounding.

    Take a graph that was not simplified: merged weights are rounded.

    Raises:
        UnsupportedOp: the network is no chain of affine layers and ReLUs, or too large to be written down densely.
    """
    layers, start = [], 0
    for k in (k for k in _needed(graph) if isinstance(graph.nodes[k].op, ReLU)):
        layers.append(_layer(graph, start, graph.nodes[k].inputs[0]))
        start = k
    if start == graph.output and start > 0:
        n = prod(graph.output_shape)
        layers.append((exact(np.eye(n)), exact(np.zeros(n))))
    else:
        layers.append(_layer(graph, start, graph.output))
    return Network(tuple(layers))


def _needed(graph: Graph) -> list[int]:
    """The nodes that the output depends on, in order."""
    needed = {graph.output}
    for k in range(graph.output, 0, -1):
        if k in needed:
            needed.update(graph.nodes[k].inputs)
    return sorted(needed)


def _layer(graph: Graph, start: int, end: int) -> tuple[Dyadic, Dyadic]:
    """The affine map from node `start` to node `end`: products of matrices, each of one operation and exact."""
    between = _between(graph, start, end)
    size = prod(graph.nodes[end].shape)
    if size * max(prod(graph.nodes[k].shape) for k in (*between, start)) > _LARGEST:
        raise UnsupportedOp("a layer of the network is too large to be written down as a dense matrix for a proof")
    rows: dict[int, Dyadic] = {}
    offset = Dyadic([0] * size, 0)
    for k in between:
        node = graph.nodes[k]
        if isinstance(node.op, Reshape):
            parts: tuple[Dyadic, ...] = (rows.get(k) or exact(np.eye(size)),)
        else:
            (matrices, constant), current = _matrices(node), rows.get(k)
            parts = tuple(m if current is None else _product(current, m) for m in matrices)
            moved = constant if current is None else _column(_product(current, _column(constant)))
            offset = _plus(offset, moved)
        for source, part in zip(node.inputs, parts, strict=True):
            rows[source] = _plus(rows[source], part) if source in rows else part
    return rows.get(start, exact(np.eye(size))), offset


def _matrices(node: Node) -> tuple[tuple[Dyadic, ...], Dyadic]:
    """One operation as matrices, one for each input, and its offset.

    Unit rows times one operation's weights are these weights: nothing is added that could round.
    """
    assert isinstance(node.op, AbstractAffine)
    if isinstance(node.op, Linear):
        return (exact(node.op.weight),), exact(node.op.bias)
    n = prod(node.shape)
    unit = np.eye(n).reshape((1, n, *node.shape))
    offset = np.broadcast_to(node.op.offset(unit), (1, n))[0]
    return tuple(exact(np.asarray(part).reshape(n, -1)) for part in node.op.adjoint(unit)), exact(offset)


def _product(A: Dyadic, B: Dyadic) -> Dyadic:
    return Dyadic(product(A.values, B.values), A.scale + B.scale).reduced()


def _column(vector: Dyadic) -> Dyadic:
    """A vector as a matrix of one column, and back."""
    if vector.values and isinstance(vector.values[0], list):
        return Dyadic([row[0] for row in vector.values], vector.scale)
    return Dyadic([[v] for v in vector.values], vector.scale)


def _plus(A: Dyadic, B: Dyadic) -> Dyadic:
    scale = max(A.scale, B.scale)

    def add(p: Any, q: Any) -> Any:
        return [add(v, w) for v, w in zip(p, q, strict=True)] if isinstance(p, list) else p + q

    return Dyadic(add(A.at(scale), B.at(scale)), scale)


def _between(graph: Graph, start: int, end: int) -> list[int]:
    """The nodes from `start` (left out) to `end` in falling order, all of them affine."""
    wanted, found = {end}, []
    for k in range(end, start, -1):
        if k not in wanted:
            continue
        op = graph.nodes[k].op
        if not isinstance(op, AbstractAffine):
            raise UnsupportedOp(f"proofs are about chains of affine layers and ReLUs; {type(op).__name__} is neither")
        wanted.update(graph.nodes[k].inputs)
        found.append(k)
    if end != start and min(wanted) < start:
        raise UnsupportedOp("proofs are about chains of layers; a branch of this network skips a ReLU")
    return found
