"""Bounds against exact rational arithmetic: no tolerance on the safe side."""

from decimal import Decimal, localcontext
from fractions import Fraction

import pytest
import torch
from certify_cases import METHODS, seeded
from certify_laws import relaxation_brackets

from certify.ir.graph import Graph
from certify.ir.ops import Linear, ReLU, Sigmoid, Tanh
from certify.properties import Margins
from certify.regions import Box, LpBall
from certify.relaxations import RELAXATIONS
from certify.relaxations.sshape import SigmoidRelaxation
from certify.rounding import cast_down, cast_up, gamma


def exact(tensor):
    return [[Fraction(v) for v in row] for row in tensor.tolist()]


def product(left, right):
    return [[sum(a * b for a, b in zip(row, col, strict=True)) for col in zip(*right, strict=True)] for row in left]


def affine_chain(seed, scale=1.0):
    """Two linear layers kept apart by ReLUs that never switch: affine, yet every method has to substitute."""
    g = seeded(seed)
    first = scale * torch.randn(5, 4, generator=g, dtype=torch.float64)
    second = torch.randn(3, 5, generator=g, dtype=torch.float64)
    shift = first.abs().sum(1) * 2
    graph = Graph.start((4,)).append(Linear(first, shift)).append(ReLU())
    return (
        graph.append(Linear(second, torch.randn(3, generator=g, dtype=torch.float64))),
        first,
        second,
        shift,
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("scale", [1.0, 1e8])
@pytest.mark.parametrize("seed", range(5))
def test_no_bound_is_above_the_rational_minimum(seed, scale, dtype):
    graph, first, second, shift = affine_chain(seed, scale)
    bias = graph.nodes[-1].op.bias
    lower = -torch.rand(1, 4, generator=seeded(seed + 50), dtype=torch.float64)
    upper = torch.rand(1, 4, generator=seeded(seed + 60), dtype=torch.float64)
    matrix = product(exact(second), exact(first))
    constant = [
        Fraction(b) + sum(r[0] for r in product([row], exact(shift[:, None])))
        for b, row in zip(bias.tolist(), exact(second), strict=True)
    ]
    corners = [
        [
            min(m * Fraction(a), m * Fraction(b))
            for m, a, b in zip(row, lower[0].tolist(), upper[0].tolist(), strict=True)
        ]
        for row in matrix
    ]
    minima = [c + sum(corner) for c, corner in zip(constant, corners, strict=True)]
    region = Box(lower, upper).to(dtype)
    for method in METHODS:
        bound = method(graph, region).lower[graph.output][0].tolist()
        for computed, true in zip(bound, minima, strict=True):
            assert Fraction(computed) <= true
            if method.name != "ibp":
                size = float(second.abs().sum() * (first.abs().sum() + shift.sum()))
                assert float(true - Fraction(computed)) <= 1e3 * torch.finfo(dtype).eps * size


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("seed", range(5))
def test_fused_layers_stay_below_rational_samples(seed, dtype):
    """Unstable, active and dead neurons; the graph is evaluated at rational points without any rounding."""
    g = seeded(seed + 80)
    first, second = (torch.randn(6, n, generator=g, dtype=torch.float64) for n in (3, 6))
    shift = torch.randn(6, generator=g, dtype=torch.float64)
    graph = Graph.start((3,)).append(Linear(first, shift)).append(ReLU())
    graph = graph.append(Linear(second, 1e4 * shift)).append(ReLU()).append(Linear(second, shift))
    centre = torch.rand(1, 3, generator=g, dtype=torch.float64)
    region = Box(centre - 0.3, centre + 0.3)
    bounds = METHODS[-1](graph, region.to(dtype))
    for _ in range(20):
        point = region.sample(g)
        hidden = [max(a[0] + b[0], Fraction(0)) for a, b in pairs(product(exact(first), exact(point.T)), shift)]
        wide = [a[0] + b[0] for a, b in pairs(product(exact(second), [[h] for h in hidden]), 1e4 * shift)]
        for value, low, high in zip(wide, bounds.lower[3][0].tolist(), bounds.upper[3][0].tolist(), strict=True):
            assert Fraction(low) <= value <= Fraction(high)


def pairs(left, vector):
    return zip(left, exact(vector[:, None]), strict=True)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_minima_of_balls_are_below_the_rational_value_of_any_point(norm):
    """Points built from exact rationals inside the ball, close to its extreme ones."""
    g = seeded(70)
    centre = torch.rand(1, 6, generator=g, dtype=torch.float64)
    region = LpBall(centre, 0.1, norm)
    rows = torch.randn(1, 20, 6, generator=g, dtype=torch.float64)
    low = region.minimum(rows)[0].tolist()
    c, eps = exact(centre)[0], Fraction(0.1)
    for row, bound in zip(exact(rows[0]), low, strict=True):
        if norm == "linf":
            step = [-eps if w > 0 else eps for w in row]
        elif norm == "l1":
            big = max(range(6), key=lambda i: abs(row[i]))
            step = [(-eps if row[i] > 0 else eps) if i == big else Fraction(0) for i in range(6)]
        else:
            # A rational just above |row|, so that the point is just inside the ball.
            length = Fraction(float(sum(w * w for w in row)) ** 0.5) * (1 + Fraction(1, 2**50))
            assert length * length >= sum(w * w for w in row)
            step = [-eps * w / length for w in row]
        value = sum(w * (a + d) for w, a, d in zip(row, c, step, strict=True))
        assert Fraction(bound) <= value
        assert float(value - Fraction(bound)) <= 1e-13


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_minima_of_boxes_are_below_the_rational_minimum(dtype):
    g = seeded(74)
    lower = torch.rand(1, 30, generator=g).to(dtype)
    region = Box(lower, lower + torch.rand(1, 30, generator=g).to(dtype))
    rows = torch.randn(1, 100, 30, generator=g).to(dtype)
    low, high = exact(region.lower)[0], exact(region.upper)[0]
    for row, bound in zip(exact(rows[0]), exact(region.minimum(rows))[0], strict=True):
        assert bound <= sum(min(w * a, w * b) for w, a, b in zip(row, low, high, strict=True))


def test_casts_round_to_the_safe_side():
    values = torch.randn(1000, generator=seeded(71), dtype=torch.float64)
    low, high = cast_down(values, torch.float32).double(), cast_up(values, torch.float32).double()
    assert (low <= values).all()
    assert (high >= values).all()
    assert (high - low <= 2.5e-7 * values.abs()).all()
    assert torch.equal(cast_down(values.float().double(), torch.float32), values.float())


def test_gamma_covers_a_sum_in_single_precision():
    terms = torch.rand(10_000, generator=seeded(72), dtype=torch.float32)
    running = torch.tensor(0.0, dtype=torch.float32)
    for term in terms[:2000]:
        running = running + term
    true = terms[:2000].double().sum()
    assert abs(running.double() - true) <= gamma(2000, torch.float32) * true


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
def test_rounding_of_sums_that_cancel_is_counted(method, dtype):
    """At one point: what the layers' products round off is far more than the slack of the region's own minimum."""
    for seed in range(4):
        g = seeded(seed)
        point = 0.01 * torch.rand(1, 8, generator=g).to(dtype) + 1
        first = 1e4 * torch.randn(1, 8, generator=g).to(dtype) + torch.rand(40, 8, generator=g).to(dtype)
        shift = 20 - first @ point[0]
        second, bias = torch.randn(6, 40, generator=g).to(dtype), torch.randn(6, generator=g).to(dtype)
        second -= second.mean(1, keepdim=True)
        rows = torch.randn(1, 10, 6, generator=g).to(dtype)
        graph = Graph.start((8,)).append(Linear(first, shift)).append(ReLU()).append(Linear(second, bias))
        hidden = [[v + b] for (v,), (b,) in pairs(product(exact(first), exact(point.T)), shift)]
        outputs = [[v + b] for (v,), (b,) in pairs(product(exact(second), hidden), bias)]
        bounds = method(graph, Box(point, point))
        for low, (value,), high in zip(exact(bounds.lower[3])[0], outputs, exact(bounds.upper[3])[0], strict=True):
            assert low <= value <= high
        margins = Margins(rows, rows.new_zeros(1, 10), torch.zeros(1, 10).long(), torch.zeros(1).bool())
        found = method.margins(graph, Box(point, point), bounds, margins)
        assert all(
            low <= value for low, (value,) in zip(exact(found)[0], product(exact(rows[0]), outputs), strict=True)
        )


def exactly(kind, z):
    """The operation to 60 digits."""
    with localcontext() as context:
        context.prec = 60
        power = (Decimal(z) * (-1 if kind is Sigmoid else -2)).exp()
        found = {ReLU: max(Decimal(z), Decimal(0)), Sigmoid: 1 / (1 + power), Tanh: (1 - power) / (1 + power)}
        return Fraction(found[kind])


@pytest.mark.parametrize("kind", RELAXATIONS)
def test_lines_hold_exactly_where_they_touch(kind):
    """At both ends and at 0, with 60 digits: one unit in the last place on the wrong side would be seen."""
    g = seeded(73)
    lower = -3 * torch.rand(1, 100, generator=g, dtype=torch.float64)
    upper = lower + 4 * torch.rand(1, 100, generator=g, dtype=torch.float64)
    record = RELAXATIONS[kind]
    pieces, ends = record.pieces(lower, upper), record.interval(lower, upper)
    low = torch.zeros_like(lower) if pieces.lower_intercept is None else pieces.lower_intercept
    lines = [exact(v)[0] for v in (pieces.lower_slope, low, pieces.upper_slope, pieces.upper_intercept, *ends)]
    for a, b, k, h, c, d, e, f in zip(*exact(torch.cat([lower, upper])), *lines, strict=True):
        for z in {a, b, min(max(Fraction(0), a), b)}:
            value = exactly(kind, float(z))
            assert k * z + h <= value <= c * z + d
            assert e <= value <= f


def test_a_tangent_at_the_wrong_place_costs_tightness_only():
    class Inexact(SigmoidRelaxation):
        def where_slope(self, k):
            return 0.6 * super().where_slope(k)

    relaxation_brackets(Inexact(), Sigmoid(), seed=4)


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
def test_a_large_constant_is_rounded_once_at_every_node(method):
    """100 additions of 0.6 units in its last place, each rounded up to 1."""
    step, layers, large = 0.6 * 2.0**-26, 100, 2.0**26 + 1.0
    graph = Graph.start((1,))
    for _ in range(layers):
        graph = graph.append(Linear(torch.ones(1, 1).double(), torch.full((1,), step).double())).append(ReLU())
    region = Box(torch.zeros(1, 1).double(), torch.full((1, 1), 1e-3).double())
    ones = torch.ones(1, 1).double()
    margins = Margins(ones[None], large * ones, torch.zeros(1, 1).long(), torch.zeros(1).bool())
    bound = method.margins(graph, region, method(graph, region), margins)
    assert Fraction(bound.item()) <= Fraction(large) + layers * Fraction(step)
