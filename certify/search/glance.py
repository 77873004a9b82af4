"""A first look at a property by values and gradients of any network of affine operations and ReLUs, in numpy.

Most satisfiable properties have a witness that a few steps of descent find; then nobody has to wait for torch to load.
"""

from collections.abc import Callable, Sequence
from math import prod

import numpy as np

from certify.ir.graph import Graph
from certify.ir.ops import AbstractAffine, ReLU
from certify.properties.query import Case

# A candidate (n,), and whether the network itself says that it is a witness.
Confirm = Callable[[np.ndarray], bool]

_STARTS, _STEPS = 8, 12
# The first step as a share of half the width, and each further one relative to the last.
_LENGTH, _FALL = 0.5, 0.8
# Multiplications that take less time than loading torch does.
_MOST = 2 * 10**8
# Cases among which the most promising ones are chosen.
_SEEN = 100


def glances(graph: Graph) -> int:
    """How many cases are worth a look; 0 also where an operation has no gradient here."""
    if not all(isinstance(node.op, AbstractAffine | ReLU) for node in graph.nodes[1:]):
        return 0
    return _MOST // (2 * _STARTS * (_STEPS + 1) * sum(_work(graph, k) for k in range(len(graph.nodes))))


def promising(graph: Graph, cases: Sequence[Case]) -> list[Case]:
    """The cases that are worth a look: those whose conditions are nearest to true in the middle of their boxes."""
    most, seen = glances(graph), cases[:_SEEN]
    if most == 0:
        return []
    middles = np.stack([0.5 * case.lower + 0.5 * case.upper for case in seen])
    boxes, place = np.unique(middles, axis=0, return_inverse=True)
    outputs = np.concatenate([graph(box[None]).reshape((1, -1)) for box in boxes])
    slack = [float((case.A @ outputs[k] - case.b).max()) for case, k in zip(seen, place.ravel(), strict=True)]
    return [seen[k] for k in np.argsort(slack, kind="stable")[:most]]


def _work(graph: Graph, k: int) -> int:
    """Multiplications of a node, roughly."""
    node = graph.nodes[k]
    weight = getattr(node.op, "weight", None)
    if weight is None:
        return prod(node.shape)
    axes = weight.ndim - 2
    if axes > 0:  # a convolution, or its transpose: every kernel entry meets all results, or all inputs
        return int(weight.size) * min(prod(s[len(s) - axes :]) for s in (node.shape, graph.nodes[node.inputs[0]].shape))
    return int(weight.size) * prod(node.shape[:-1])


def glance(graph: Graph, case: Case, confirm: Confirm, seed: int) -> bool:
    """Whether descent from the middle of the box and from random points finds a witness.

    Args:
        graph: affine operations and ReLUs, with numpy arrays.
        case: with at least one condition.
        confirm: judges candidates; its word is final.
        seed: of the starts.
    """
    lower, upper = case.lower, case.upper
    share = np.random.default_rng(seed).uniform(size=(_STARTS, len(lower)))
    share[0] = 0.5
    # Half of the starts are corners.
    share[1::2] = share[1::2].round()
    points = np.clip(lower * (1 - share) + upper * share, lower, upper)
    width = 0.5 * upper - 0.5 * lower
    for step in range(_STEPS + 1):
        slack, gradient = _slopes(graph, case, points)
        order = np.argsort(slack)
        if slack[order[0]] <= 0 and confirm(points[order[0]]):
            return True
        points = np.clip(points - _LENGTH * _FALL**step * width * np.sign(gradient), lower, upper)
    return False


def _slopes(graph: Graph, case: Case, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The largest condition at every point, and its gradient."""
    values = graph.values(points)
    slack = values[-1].reshape((len(points), -1)) @ case.A.T - case.b
    worst = slack.argmax(1)
    rows = {graph.output: case.A[worst].reshape((len(points), 1, *graph.output_shape))}
    for k in range(graph.output, 0, -1):
        if k not in rows:
            continue
        node, row = graph.nodes[k], rows.pop(k)
        if isinstance(node.op, AbstractAffine):
            parts = node.op.adjoint(row)
        else:
            parts = (row * (values[node.inputs[0]] > 0)[:, None],)
        for source, part in zip(node.inputs, parts, strict=True):
            rows[source] = rows[source] + part if source in rows else part
    gradient = rows[0].reshape(points.shape) if 0 in rows else np.zeros_like(points)
    return slack[np.arange(len(points)), worst], gradient
