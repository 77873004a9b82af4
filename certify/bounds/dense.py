"""Networks as chains of exact dense layers, for the methods that need matrices.

Convolutions become their sparse matrices, written out; what would have to be rounded on the way is refused, so that a
proof about the chain is a proof about the network.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from certify.bounds.base import Bounds
from certify.errors import UnsupportedOp
from certify.ir import Graph
from certify.ir.chain import Layer, dense_chain
from certify.ir.ops import AbstractAffine, AbstractOp, ReLU, Reshape, Select

# Entries of the largest matrix: 128 MiB.
_LARGEST = 2**24


@dataclass(frozen=True, eq=False)
class DenseNetwork:
    """z_1 = W_1 x + b_1, z_k = W_k relu(z_{k-1}) + b_k, y = W relu(z_L) + b, in float64 and exactly the network's.

    Attributes:
        hidden: (W_1, b_1), ..., (W_L, b_L).
        output: (W, b).
        nodes: ids of the graph's nodes whose values are z_1, ..., z_L.
    """

    hidden: tuple[Layer, ...]
    output: Layer
    nodes: tuple[int, ...]

    @staticmethod
    def of(graph: Graph) -> "DenseNetwork":
        """From a graph of any array type; raises `UnsupportedOp` where it is no such chain, saying why."""
        others = {type(n.op).__name__ for n in graph.nodes[1:] if not isinstance(n.op, AbstractAffine | ReLU)}
        if others:
            raise UnsupportedOp(f"the network has {', '.join(sorted(others))}; this method takes {_EXPECTED}")
        relus = [k for k, n in enumerate(graph.nodes) if isinstance(n.op, ReLU)]
        _require_exact(graph, relus)
        layers = dense_chain(graph.map_arrays(_numpy), _LARGEST)
        if layers is None:
            raise UnsupportedOp(
                f"the network has a branch that skips a ReLU, or a layer of more than {_LARGEST} entries;"
                f" this method takes {_EXPECTED}"
            )
        return DenseNetwork(layers[:-1], layers[-1], tuple(graph.nodes[k].inputs[0] for k in relus))

    def depth_of(self, node: int) -> int | None:
        """k where the node's value is z_k, counted from 1."""
        return self.nodes.index(node) + 1 if node in self.nodes else None

    def hidden_bounds(self, bounds: Bounds, batch: int = 0) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """l and u of every z_k that has bounds, for one input of the batch."""
        known = [k for k in self.nodes if k in bounds]
        lower, upper = ([_numpy(v[k][batch]).ravel() for k in known] for v in (bounds.lower, bounds.upper))
        return lower, upper


_EXPECTED = "chains of affine layers and ReLUs, at most one weighted layer between two ReLUs"


def _require_exact(graph: Graph, relus: list[int]) -> None:
    """At most one weighted operation between two ReLUs: then every entry of the dense matrix is a single weight."""
    for k in (*relus, None):
        ops = _affine_above(graph, graph.output if k is None else graph.nodes[k].inputs[0])
        weighted = [type(op).__name__ for op in ops if not _moves(op)]
        if len(weighted) > 1:
            raise UnsupportedOp(
                f"between two ReLUs the network has {' and '.join(weighted)}, whose product would be rounded;"
                f" this method takes {_EXPECTED}"
            )


def _moves(op: AbstractOp) -> bool:
    """Whether it only moves entries, none of them to two places."""
    if isinstance(op, Select):
        kept = np.asarray(op.index).ravel()
        kept = kept[kept >= 0]
        return len(np.unique(kept)) == len(kept)
    return isinstance(op, Reshape)


def _affine_above(graph: Graph, end: int) -> list[AbstractAffine]:
    """The affine operations that lead to a node from the inputs or ReLUs before it."""
    found, seen, todo = [], set(), [end]
    while todo:
        node = graph.nodes[k := todo.pop()]
        if k in seen or not isinstance(node.op, AbstractAffine):
            continue
        seen.add(k)
        found.append(node.op)
        todo += node.inputs
    return found


def _numpy(value: Tensor | np.ndarray) -> np.ndarray:
    array = value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else value
    return np.asarray(array, dtype=np.float64) if np.issubdtype(array.dtype, np.floating) else array
