"""Which functions have networks whose bounds are exact, and how far a network's bounds are from exact.

A relaxation is precise on a network if the interval that it computes for the output is the exact range on every
box. Baader, Mueller, Mao & Vechev, "Expressivity of ReLU-networks under convex relaxations", ICLR 2024, ask which
continuous piecewise linear functions have a network like that; the constructions here are theirs, or variants.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from certify.bounds import METHODS, AbstractMethod
from certify.bounds.base import place
from certify.errors import InvalidInputError
from certify.inputs import as_inputs
from certify.ir.from_torch import graph_from_torch
from certify.ir.graph import Graph
from certify.regions import Box
from certify.search.milp import minimum, require_relu

Vector = Float[np.ndarray, " _"]

# Of the range of a network of several inputs, which a search proves: relative.
_GAP = 1e-6


class Shortcut(nn.Module):
    """body(x) + A x + b."""

    def __init__(self, body: nn.Module, shortcut: nn.Linear) -> None:
        super().__init__()
        self.body, self.shortcut = body, shortcut

    def forward(self, x: Tensor) -> Tensor:
        """The sum of both."""
        return self.body(x) + self.shortcut(x)


def monotone_network(points: Any, values: Any) -> nn.Sequential:
    """A monotone function that interval bounds are precise on.

    With w_i = x_{i+1} - x_i, slopes s_i and r_i(x) = w_i - relu(w_i - relu(x - x_i)), the ramp from 0 to w_i,

        f(x) = f(x_0) + sum_i s_i r_i(x) ,     all s_i of one sign:

    every layer is monotone in x, so that the ends of a box give the ends of all intervals.

    Args:
        points: x_0 < ... < x_n.
        values: f there, increasing or decreasing; linear in between and constant outside.

    Raises:
        InvalidInputError: for points out of order, or values that are not monotone.
    """
    x, f = _function(points, values)
    rise = np.diff(f)
    if not ((rise >= 0).all() or (rise <= 0).all()):
        raise InvalidInputError("the values go up and down; expected a monotone function: use univariate_network")
    width = np.diff(x)
    slopes, unit = rise / width, np.eye(len(width))
    return nn.Sequential(
        _linear(np.ones((len(width), 1)), -x[:-1]),
        nn.ReLU(),
        _linear(-unit, width),
        nn.ReLU(),
        _linear(-slopes[None], np.array([f[0] + slopes @ width])),
    )


def convex_network(points: Any, values: Any, *, slope: int = 0) -> nn.Module:
    """A convex function that DeepPoly with the given lower slope, and the triangle, are precise on.

    With a minimiser m among the points, and the changes of slope g_i >= 0 right of it and h_i >= 0 left of it,

        f(x) = f(m) + sum_{x_i >= m} g_i relu(x - x_i) + sum_{x_i <= m} h_i relu(x_i - x) .

    Where all lower lines are 0 the lower bound is f(m), or the nearer end's value; the upper lines meet f at both
    ends of a box. For the lower lines z, relu(z) is written as z + relu(-z), whose lower line then is 0.

    Args:
        points: x_0 < ... < x_n.
        values: f there; linear in between, and beyond both ends with the slopes that it has there, but never below
            its least value.
        slope: of DeepPoly, 0 or 1.

    Raises:
        InvalidInputError: for points out of order, values that are not convex, or another slope.
    """
    if slope not in (0, 1):
        raise InvalidInputError(f"the slope of DeepPoly is {slope}; expected 0 or 1")
    x, f = _function(points, values)
    slopes = np.diff(f) / np.diff(x)
    if (np.diff(slopes) < 0).any():
        raise InvalidInputError("the slopes between the values fall somewhere; expected a convex function")
    m = int(f.argmin())
    up, down = np.clip(slopes, 0, None), np.clip(-slopes, 0, None)
    right, left = np.diff(up[m:], prepend=0.0), np.diff(down[:m][::-1], prepend=0.0)
    sign = np.concatenate([np.ones(len(right)), -np.ones(len(left))])
    kinks = np.concatenate([x[m:-1], x[1 : m + 1][::-1]])
    weights = np.concatenate([right, left])
    flip = -1.0 if slope == 1 else 1.0
    hidden = _linear(flip * sign[:, None], -flip * sign * kinks)
    body = nn.Sequential(hidden, nn.ReLU(), _linear(weights[None], np.array([f[m]])))
    if slope == 0:
        return body
    return Shortcut(body, _linear(np.array([[weights @ sign]]), np.array([-(weights * sign) @ kinks])))


def univariate_network(points: Any, values: Any) -> nn.Sequential:
    """Any continuous piecewise linear function of one variable, in one layer: multi-neuron bounds are precise on it.

        f(x) = f(x_0) + sum_i c_i relu(x - x_i) ,     c_i the change of slope at x_i

    Between its kinks the network moves along straight lines, so its range over the convex hull of what its neurons
    do together is that of f. The hulls of three neighbours suffice: with a_i = relu(x - x_i) they say that
    t_i = (a_i - a_{i+1}) / (x_{i+1} - x_i) obeys 1 >= t_0 >= t_1 >= ... >= 0, a simplex whose corners are the kinks.

    Args:
        points: x_0 < ... < x_n.
        values: f there; linear in between and constant outside.

    Raises:
        InvalidInputError: for points out of order.
    """
    x, f = _function(points, values)
    slopes = np.diff(f) / np.diff(x)
    changes = np.diff(slopes, prepend=0.0, append=0.0)
    return nn.Sequential(_linear(np.ones((len(x), 1)), -x), nn.ReLU(), _linear(changes[None], f[:1]))


def maximum_networks(seed: int = 0, count: int = 8) -> dict[str, nn.Module]:
    """Networks that compute max(x, y): no single-neuron relaxation is precise on any of them.

    The first are the ones that come to mind. The rest are random members of the family of all networks of one
    hidden layer without a bias: a share alpha of relu(x - y) and 1 - alpha of relu(y - x), a linear rest, and
    neurons that cancel each other, c (relu(w.v) - relu(-w.v) - w.v).
    """
    found: dict[str, nn.Module] = {
        "y + relu(x - y)": _hinges([[1, -1]], [1], [0, 1]),
        "x + relu(y - x)": _hinges([[-1, 1]], [1], [1, 0]),
        "(x + y + |x - y|) / 2": _hinges([[1, -1], [-1, 1]], [0.5, 0.5], [0.5, 0.5]),
        "relu(x - y) + relu(y) - relu(-y)": _hinges([[1, -1], [0, 1], [0, -1]], [1, 1, -1], [0, 0]),
    }
    both = _hinges([[1, -1], [-1, 1]], np.eye(2), [[0, 1], [1, 0]])
    found["max(max(x, y), max(x, y))"] = nn.Sequential(both, found["y + relu(x - y)"])
    generator = np.random.default_rng(seed)
    for k in range(count):
        alpha, size = generator.uniform(-0.5, 1.5), int(generator.integers(1, 4))
        ways, shares = generator.normal(size=(size, 2)), generator.normal(size=size)
        rows = np.concatenate([[[1, -1], [-1, 1]], ways, -ways])
        rest = np.array([1 - alpha, alpha]) - shares @ ways
        found[f"random {k}"] = _hinges(rows, np.concatenate([[alpha, 1 - alpha], shares, -shares]), rest)
    return found


def _hinges(rows: Any, shares: Any, rest: Any) -> Shortcut:
    """shares.relu(rows v) + rest.v."""
    rows, shares, rest = np.asarray(rows), np.atleast_2d(shares), np.atleast_2d(rest)
    hidden, outer = _linear(rows, np.zeros(len(rows))), _linear(shares, np.zeros(len(shares)))
    return Shortcut(nn.Sequential(hidden, nn.ReLU(), outer), _linear(rest, np.zeros(len(rest))))


def _function(points: Any, values: Any) -> tuple[Vector, Vector]:
    x, f = as_inputs(points, "points").numpy(), as_inputs(values, "values").numpy()
    if x.ndim != 1 or x.shape != f.shape or len(x) < 2:
        raise InvalidInputError(
            f"points have shape {x.shape}, values {f.shape}; expected as many of both, two or more, in a row"
        )
    if not (np.diff(x) > 0).all():
        raise InvalidInputError("the points do not increase; expected x_0 < x_1 < ...: sort them, and drop equal ones")
    return x, f


def _linear(weight: Any, bias: Any) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(torch.as_tensor(weight))
        layer.bias.copy_(torch.as_tensor(bias))
    return layer.eval()


@dataclass(frozen=True, eq=False)
class Precision:
    """Intervals of a network's outputs beside their exact ranges.

    Attributes:
        lower, upper: what the method computes.
        exact_lower, exact_upper: attained values; for several inputs the true range is at most 1e-6 (relative)
            beyond them.
    """

    lower: Float[np.ndarray, "boxes outputs"]
    upper: Float[np.ndarray, "boxes outputs"]
    exact_lower: Float[np.ndarray, "boxes outputs"]
    exact_upper: Float[np.ndarray, "boxes outputs"]

    @property
    def excess(self) -> Float[np.ndarray, "boxes outputs"]:
        """How far the farther end is outside the exact range."""
        return np.maximum(self.exact_lower - self.lower, self.upper - self.exact_upper)

    @property
    def worst(self) -> float:
        """The largest excess, in units of the largest exact value (at least 1)."""
        size = max(1.0, float(np.abs(self.exact_lower).max()), float(np.abs(self.exact_upper).max()))
        return float(self.excess.max()) / size

    def is_precise(self, tolerance: float = 1e-6) -> bool:
        """Whether no interval is wider than the range, up to rounding."""
        return self.worst <= tolerance


def random_boxes(lower: Any, upper: Any, count: int, seed: int = 0) -> Box:
    """Boxes between random corners of the box from `lower` to `upper`, the whole of it first."""
    ends = [as_inputs(end, name).flatten() for end, name in ((lower, "lower"), (upper, "upper"))]
    share = torch.rand((2, count, len(ends[0])), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    share[0, 0], share[1, 0] = 0.0, 1.0
    corners = ends[0] + share * (ends[1] - ends[0])
    return Box(corners.amin(0), corners.amax(0))


Ranges = tuple[Float[np.ndarray, "boxes outputs"], Float[np.ndarray, "boxes outputs"]]


def precision(network: nn.Module, method: str | AbstractMethod, boxes: Box, exact: Ranges | None = None) -> Precision:
    """How far a method's intervals for the outputs are from the exact ranges, box by box.

    Args:
        network: a torch module of ReLU and affine layers with flat inputs.
        method: by name, or a value such as `MultiNeuron(group=3)`.
        boxes: (boxes, inputs), in float64.
        exact: the exact ranges, if they are known; by default those of `exact_ranges`.

    Raises:
        UnsupportedOp: for activations other than ReLU.
        InvalidInputError: for an unknown method.
    """
    if isinstance(method, str) and method not in METHODS:
        raise InvalidInputError(f"method is {method!r}; expected one of {', '.join(METHODS)}")
    chosen = METHODS[method] if isinstance(method, str) else method
    graph = _graph_of(network, boxes)
    ranges = exact_ranges(network, boxes) if exact is None else exact
    with torch.no_grad():
        bounds = chosen(graph, boxes)
    lower, upper = (v.flatten(1).numpy() for v in bounds[graph.output])
    return Precision(lower, upper, *(np.broadcast_to(end, lower.shape) for end in ranges))


def exact_ranges(network: nn.Module, boxes: Box) -> Ranges:
    """The least and the largest value of every output on every box, at points where they are attained.

    No relaxation is involved where the network has one input: it is linear between its kinks, which are computed
    layer by layer. With more inputs a mixed-integer program finds where each output is least and largest, and the
    search on phases proves that no value is further than 1e-6 (relative) beyond it.

    Raises:
        UnsupportedOp: for activations other than ReLU.
    """
    graph = _graph_of(network, boxes)
    with torch.no_grad():
        ranges = [_range(graph, boxes.select([k])) for k in range(len(boxes.centre))]
    lower, upper = (np.stack(ends) for ends in zip(*ranges, strict=True))
    return lower, upper


def _graph_of(network: nn.Module, boxes: Box) -> Graph:
    graph = place(graph_from_torch(network, input_shape=tuple(boxes.centre.shape[1:])), boxes.centre)
    require_relu(graph)
    return graph


def _range(graph: Graph, box: Box) -> tuple[Vector, Vector]:
    if box.centre.shape[1] == 1:
        values = _at_kinks(graph, float(box.lower), float(box.upper))
        return values.amin(0).numpy(), values.amax(0).numpy()
    ends = np.array(list(_extremes(graph, box)))
    return ends[:, 0], ends[:, 1]


def _extremes(graph: Graph, box: Box) -> Iterator[tuple[float, float]]:
    for row in torch.eye(int(np.prod(graph.output_shape)), dtype=torch.float64):
        yield minimum(graph, box, row, gap=_GAP).upper, -minimum(graph, box, -row, gap=_GAP).upper


def _at_kinks(graph: Graph, lower: float, upper: float) -> Float[Tensor, "kinks outputs"]:
    """The outputs at both ends and at every kink between: the network is linear in between."""
    knots = torch.tensor([[lower], [upper]], dtype=torch.float64)
    for k in sorted(graph.relaxed):
        value = graph.values(knots)[k].flatten(1)
        before, after = value[:-1], value[1:]
        crossed = before * after < 0
        share = before / torch.where(crossed, before - after, torch.ones_like(before))
        new = (knots[:-1] + share * (knots[1:] - knots[:-1]))[crossed]
        knots = torch.cat([knots.flatten(), new]).clamp(lower, upper).unique()[:, None]
    return graph(knots).flatten(1)
