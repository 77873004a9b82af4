"""Laws that every member obeys. They raise `AssertionError` where a member does not."""

from itertools import product

import numpy as np
import pytest
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


def adjoint_matches_forward(op: AbstractAffine, shapes: tuple[tuple[int, ...], ...], seed: int) -> None:
    """c'(A x + b) = (A'c)'x + c'b; |A| r bounds every A x with |x| <= r and is reached; numpy does as torch does."""
    g = torch.Generator().manual_seed(seed)
    x = [torch.randn((5, *shape), generator=g, dtype=torch.float64) for shape in shapes]
    out = op.output_shape(*shapes)
    assert op.forward(*x).shape == (5, *out)
    c = torch.randn((5, 4, *out), generator=g, dtype=torch.float64)
    left = (c * op.forward(*x).unsqueeze(1)).flatten(2).sum(2)
    rows = op.adjoint(c)
    right = sum((r * v.unsqueeze(1)).flatten(2).sum(2) for r, v in zip(rows, x, strict=True)) + op.offset(c)
    torch.testing.assert_close(left, right, rtol=1e-12, atol=1e-12)
    shift = op.forward(*(torch.zeros_like(v) for v in x))
    torch.testing.assert_close(torch.as_tensor(op.offset_size()).double().expand(out), shift[0].abs())
    for k in range(len(x)):
        spread_is_reached(op, shapes, k, g)
    plain = op.map_arrays(lambda v: v.numpy())
    assert plain.forward(*(v.numpy() for v in x)) == pytest.approx(op.forward(*x).numpy(), abs=1e-12)
    assert plain.spread(*(v.abs().numpy() for v in x)) == pytest.approx(op.spread(*(v.abs() for v in x)), abs=1e-12)
    for ours, theirs in zip(plain.adjoint(c.numpy()), rows, strict=True):
        assert ours == pytest.approx(theirs.numpy(), abs=1e-12)
    assert np.asarray(plain.offset(c.numpy())) == pytest.approx(np.asarray(op.offset(c)), abs=1e-12)


def spread_is_reached(op: AbstractAffine, shapes: tuple[tuple[int, ...], ...], k: int, g: torch.Generator) -> None:
    """Column by column of the k-th input's matrix."""
    radius = torch.rand((1, *shapes[k]), generator=g, dtype=torch.float64)
    count = radius[0].numel()
    unit = torch.eye(count, dtype=torch.float64).reshape(-1, *shapes[k])
    zeros = [torch.zeros((count, *shape), dtype=torch.float64) for shape in shapes]
    columns = (op.forward(*zeros[:k], unit, *zeros[k + 1 :]) - op.forward(*zeros)).abs()
    radii = [torch.zeros((1, *shape), dtype=torch.float64) for shape in shapes]
    spread = op.spread(*radii[:k], radius, *radii[k + 1 :])[0]
    weights = radius.reshape(-1, *[1] * (columns.ndim - 1))
    torch.testing.assert_close(spread, (columns * weights).sum(0), rtol=1e-12, atol=1e-12)


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
