"""Branch and bound over simplicial cones: proves M(v) <= weight decay for a given v, for few columns.

The cones, their rays and the bound of a cone are the checker's (``certify.proof.check.simplices``), so that what this
search accepts the checker accepts too.
"""

import time
from dataclasses import dataclass

import numpy as np

from certify.proof.artefact import Dyadic
from certify.proof.check.simplices import Parts, between, orthants, parts_of, suggested

Array = np.ndarray

MOST_COLUMNS = 6
_BATCH = 1000


@dataclass
class _Node:
    """A cone: integer rays, heights of P at them, and either a split and two parts or nothing."""

    rays: list[tuple[int, ...]]
    heights: list[float]
    split: int = -1
    parts: "tuple[_Node, _Node] | None" = None


def covering(
    X: Dyadic, v: Dyadic, sign: int, weight: float, *, seconds: float, max_cones: int = 400_000
) -> list[int] | None:
    """The cones that prove sign v'(Xu)_+ <= weight |u|, in the file's order.

    None where time or cones ran out, or a ray shows that it is not so.
    """
    deadline = time.perf_counter() + seconds
    parts = parts_of(X, v, sign)
    d = len(X.values[0])
    roots = [_node(parts, [tuple(ray) for ray in cone]) for cone in orthants(d)]
    open_, count = list(roots), len(roots)
    while open_:
        if time.perf_counter() > deadline or count > max_cones:
            return None
        batch, open_ = open_[-_BATCH:], open_[:-_BATCH]
        W = np.array([[_unit(ray) for ray in node.rays] for node in batch])
        heights = np.array([node.heights for node in batch])
        if (heights - np.maximum(W @ parts.minus_floats.T, 0).sum(-1) > weight).any():
            return None
        size = suggested(W, heights, parts.minus_floats).size
        for k in np.flatnonzero(~(size <= weight * (1 - 1e-10))):
            _split(parts, batch[k], W[k])
            open_ += batch[k].parts  # type: ignore[arg-type]
            count += 2
    return [k for root in roots for k in _order(root)]


def _unit(ray: tuple[int, ...]) -> Array:
    out = np.array([float(x) for x in ray])
    return out / np.sqrt((out**2).sum())


def _height(parts: Parts, ray: tuple[int, ...]) -> float:
    return float(np.maximum(parts.plus_floats @ _unit(ray), 0).sum())


def _node(parts: Parts, rays: list[tuple[int, ...]]) -> _Node:
    return _Node(rays, [_height(parts, ray) for ray in rays])


def _split(parts: Parts, node: _Node, W: Array) -> None:
    """In two, across the longest edge."""
    d = len(W)
    cosines = W @ W.T
    cosines[np.tril_indices(d)] = np.inf
    i, j = divmod(int(cosines.argmin()), d)
    ray = tuple(between(list(node.rays[i]), list(node.rays[j])))
    height = _height(parts, ray)
    node.split = i * d + j
    node.parts = (_with(node, i, ray, height), _with(node, j, ray, height))


def _with(node: _Node, k: int, ray: tuple[int, ...], height: float) -> _Node:
    rays, heights = list(node.rays), list(node.heights)
    rays[k], heights[k] = ray, height
    return _Node(rays, heights)


def _order(root: _Node) -> list[int]:
    """Depth first, the part that replaces ray i before the one that replaces ray j."""
    out, stack = [], [root]
    while stack:
        node = stack.pop()
        out.append(node.split)
        if node.parts is not None:
            stack += [node.parts[1], node.parts[0]]
    return out
