"""Laws that every member obeys. They raise `AssertionError` where a member does not."""

from itertools import product

import numpy as np
import torch
from scipy.optimize import linprog

from certify.bounds.base import AbstractMethod, Bounds
from certify.ir.graph import Graph
from certify.ir.ops import AbstractAffine, AbstractOp, Linear, ReLU
from certify.properties import Margins
from certify.regions.base import AbstractRegion


def samples_stay_inside(graph: Graph, region: AbstractRegion, bounds: Bounds, seed: int, count: int = 15) -> None:
    """The value of every node at every sampled input lies between its bounds: no tolerance."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        for k, value in enumerate(graph.values(region.sample(generator))):
            lower, upper = bounds[k]
            # Sampled values are rounded as well, by far less than this.
            slack = 1e-13 * (1 + value.abs())
            assert (value >= lower - slack).all(), f"node {k} falls below its bound"
            assert (value <= upper + slack).all(), f"node {k} rises above its bound"


def never_looser(tight: Bounds, loose: Bounds, tolerance: float = 0.0) -> None:
    for k in loose.lower:
        assert (tight.lower[k] >= loose.lower[k] - tolerance).all(), f"lower bound of node {k}"
        assert (tight.upper[k] <= loose.upper[k] + tolerance).all(), f"upper bound of node {k}"


def margins_below_samples(
    method: AbstractMethod, graph: Graph, region: AbstractRegion, margins: Margins, seed: int, count: int = 15
) -> None:
    lower = method.margins(graph, region, method(graph, region), margins)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        value = margins.of_outputs(graph(region.sample(generator)).flatten(1))
        assert (value >= lower - 1e-13 * (1 + value.abs())).all()


def adjoint_matches_forward(op: AbstractAffine, shape: tuple[int, ...], seed: int) -> None:
    """c'(A x + b) = (A'c)'x + c'b, and |A| r bounds every A x with |x| <= r and is reached."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn((5, *shape), generator=g, dtype=torch.float64)
    out = op.output_shape(shape)
    c = torch.randn((5, 4, *out), generator=g, dtype=torch.float64)
    left = (c * op.forward(x).unsqueeze(1)).flatten(2).sum(2)
    (row,) = op.adjoint(c)
    right = (row * x.unsqueeze(1)).flatten(2).sum(2) + op.offset(c)
    torch.testing.assert_close(left, right, rtol=1e-12, atol=1e-12)
    radius = torch.rand((5, *shape), generator=g, dtype=torch.float64)
    shift = op.forward(torch.zeros_like(x))
    moved = (op.forward(radius * x.sign()) - shift).abs()
    assert (moved <= op.spread(radius) + 1e-12).all()
    unit = torch.eye(radius[0].numel(), dtype=torch.float64).reshape(-1, *shape)
    columns = (op.forward(unit) - op.forward(torch.zeros_like(unit))).abs()
    torch.testing.assert_close(op.spread(radius)[0], (columns * radius[0].reshape(-1, *[1] * len(out))).sum(0))


def relaxation_brackets(record: object, op: AbstractOp, seed: int) -> None:
    """Both linear pieces and the interval hold on a grid between the bounds, for default and given slopes."""
    g = torch.Generator().manual_seed(seed)
    lower = torch.randn((1, 60), generator=g, dtype=torch.float64)
    upper = lower + torch.rand((1, 60), generator=g, dtype=torch.float64) ** 3 * 3
    lower[0, :3], upper[0, :3] = torch.tensor([0.0, -1.0, 0.0]), torch.tensor([0.0, 0.0, 1.0])
    slopes = torch.rand((1, 60), generator=g, dtype=torch.float64)
    for pieces in (record.pieces(lower, upper), record.pieces(lower, upper, slopes)):
        for share in torch.linspace(0, 1, 101, dtype=torch.float64):
            z = lower + share * (upper - lower)
            value = op.forward(z)
            below = pieces.lower_slope * z
            if pieces.lower_intercept is not None:
                below = below + pieces.lower_intercept
            assert (below <= value + 1e-15).all()
            assert (value <= pieces.upper_slope * z + pieces.upper_intercept + 1e-15).all()
            ends = record.interval(lower, upper)
            assert (ends[0] <= value).all()
            assert (value <= ends[1]).all()


def exact_minimum(graph: Graph, lower: np.ndarray, upper: np.ndarray, objective: np.ndarray) -> float:
    """min c.y over a box by one LP for every sign pattern of a chain of linear layers and ReLUs."""
    widths = [n.shape[0] for n in graph.nodes if isinstance(n.op, ReLU)]
    best = np.inf
    for signs in product(*[product((0.0, 1.0), repeat=w) for w in widths]):
        best = min(best, _minimum_of_pattern(graph, list(signs), lower, upper, objective))
    return best


def _minimum_of_pattern(
    graph: Graph, signs: list[tuple[float, ...]], lower: np.ndarray, upper: np.ndarray, objective: np.ndarray
) -> float:
    matrix, shift = np.eye(len(lower)), np.zeros(len(lower))
    rows, limits = [], []
    for node in graph.nodes[1:]:
        if isinstance(node.op, Linear):
            w = node.op.weight.numpy()
            matrix, shift = w @ matrix, w @ shift + node.op.bias.numpy()
        else:
            on = np.array(signs.pop(0))
            sign = np.where(on > 0, -1.0, 1.0)  # on: z >= 0, off: z <= 0
            rows.append(sign[:, None] * matrix)
            limits.append(-sign * shift)
            matrix, shift = on[:, None] * matrix, on * shift
    box = list(zip(lower, upper, strict=True))
    result = linprog(objective @ matrix, np.vstack(rows), np.concatenate(limits), bounds=box, method="highs")
    return float(result.fun + objective @ shift) if result.status == 0 else np.inf
