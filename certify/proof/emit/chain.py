"""A graph as the exact chain of dense layers that proofs are about."""

from fractions import Fraction
from math import prod
from typing import Any

import numpy as np

from certify.errors import UnsupportedOp
from certify.ir.graph import Graph
from certify.ir.ops import AbstractAffine, AxisLinear, Linear, ReLU, Reshape, Scale, Select, Sum
from certify.proof.artefact import Dyadic
from certify.proof.check.network import Network
from certify.proof.writing import exact

_LARGEST = 2**24
# Their arithmetic is that of the numbers that they are given, so that fractions stay exact.
_ON_FRACTIONS = (AxisLinear, Linear, Reshape, Scale, Select, Sum)


def exact_network(graph: Graph) -> Network:
    """The layers between the ReLUs of a graph with numpy arrays, without any rounding.

    Take a graph that was not simplified: merged weights are rounded.

    Raises:
        UnsupportedOp: the network is no chain of affine layers and ReLUs, or too large to be written down densely.
    """
    layers, start = [], 0
    for k in (k for k, node in enumerate(graph.nodes) if isinstance(node.op, ReLU)):
        layers.append(_layer(graph, start, graph.nodes[k].inputs[0]))
        start = k
    if start == graph.output and start > 0:
        n = prod(graph.output_shape)
        layers.append((exact(np.eye(n)), exact(np.zeros(n))))
    else:
        layers.append(_layer(graph, start, graph.output))
    return Network(tuple(layers))


def _layer(graph: Graph, start: int, end: int) -> tuple[Dyadic, Dyadic]:
    """The affine map from node `start` to node `end`."""
    between = _between(graph, start, end)
    ops = [graph.nodes[k].op for k in between]
    first = graph.nodes[end]
    if len(between) == 1 and isinstance(first.op, Linear):
        return exact(first.op.weight), exact(first.op.bias)
    if (
        graph.nodes[end].shape
        and prod(first.shape) * max(prod(graph.nodes[k].shape) for k in (*between, start)) > _LARGEST
    ):
        raise UnsupportedOp("a layer of the network is too large to be written down as a dense matrix for a proof")
    # Unit rows times one operation's weights are these weights: nothing is added that could round.
    plain = sum(not isinstance(op, Reshape) for op in ops) <= 1 and not any(isinstance(op, Select) for op in ops)
    if not plain and not all(isinstance(op, _ON_FRACTIONS) for op in ops):
        raise UnsupportedOp("several weighted layers without a ReLU between them cannot be merged exactly for a proof")
    rows, offset = _substituted(graph if plain else _fractions(graph, between), start, end, between)
    return (exact(rows), exact(offset)) if plain else (_dyadic(rows), _dyadic(offset))


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


def _substituted(graph: Graph, start: int, end: int, between: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """The matrix and the offset, with unit rows on node `end` substituted node by node."""
    shape = graph.nodes[end].shape
    n = prod(shape)
    exactly = any(v.dtype == object for k in between for v in graph.nodes[k].op.weights.values())
    eye = np.eye(n, dtype=object) * Fraction(1) if exactly else np.eye(n)
    rows: dict[int, Any] = {end: eye.reshape((1, n, *shape))}
    offset = np.zeros(n, dtype=object if exactly else float)
    for k in between:
        current, node = rows.pop(k), graph.nodes[k]
        assert isinstance(node.op, AbstractAffine)
        offset = offset + np.broadcast_to(node.op.offset(current), (1, n))[0]
        for source, part in zip(node.inputs, node.op.adjoint(current), strict=True):
            rows[source] = rows[source] + part if source in rows else part
    return rows[start].reshape((n, -1)), offset


def _fractions(graph: Graph, between: list[int]) -> Graph:
    def convert(array: Any) -> Any:
        return np.vectorize(Fraction, otypes=[object])(array)

    nodes = list(graph.nodes)
    for k in between:
        nodes[k] = type(nodes[k])(_mapped(nodes[k].op, convert), nodes[k].inputs, nodes[k].shape, nodes[k].hints)
    return Graph(tuple(nodes))


def _mapped(op: Any, convert: Any) -> Any:
    return op.map_arrays(convert) if op.weights else op


def _dyadic(array: np.ndarray) -> Dyadic:
    """Fractions, all of them dyadic as sums of products of doubles are."""
    flat = [Fraction(v) for v in array.ravel()]
    scale = max((v.denominator.bit_length() - 1 for v in flat), default=0)
    values = np.empty(len(flat), dtype=object)
    values[:] = [v.numerator << (scale - v.denominator.bit_length() + 1) for v in flat]
    return Dyadic(values.reshape(array.shape).tolist(), scale)
