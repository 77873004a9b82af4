"""Linear programs, cuts over groups of neurons, and what is never looser than what."""

import subprocess
import sys
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise, product

import numpy as np
import pytest
import torch
from certify_cases import (
    NETWORKS,
    PROGRAMS,
    REGIONS,
    SLOPES,
    centres,
    graph_of,
    mlp,
    randomised,
    regions_around,
    seeded,
)
from certify_laws import exact_minimum, margins_below_samples, samples_stay_inside
from scipy.optimize import linprog
from torch import nn

from certify import InvalidInputError
from certify.bounds import CROWN, IBP, AlphaCROWN, DeepPoly, Intersection, MultiNeuron, TriangleLP
from certify.bounds import linear_model as programs
from certify.bounds.hulls import directions, facets, proved_limit
from certify.ir.from_torch import graph_from_torch
from certify.ir.ops import Linear
from certify.properties import margins_of_labels
from certify.regions import Box

by_program = pytest.mark.parametrize("method", PROGRAMS, ids=lambda m: m.name)


def problem(name, region_name, seed, batch=2):
    graph = graph_of(name)
    n, m = torch.Size(graph.input_shape).numel(), graph.output_shape[0]
    region = regions_around(centres(n, batch, seed), 0.3)[region_name]
    return graph, region, margins_of_labels(torch.arange(batch) % max(m, 2), m)


@by_program
@pytest.mark.parametrize("region_name", ["box", "l2 in domain", "l1"])
@pytest.mark.parametrize("name", ["two-layer", "batch-norm", "relu-last", "one-output"])
def test_bounds_and_margins_hold(name, region_name, method):
    bounds_and_margins_hold(name, region_name, method)


@pytest.mark.slow
@by_program
@pytest.mark.parametrize("region_name", REGIONS)
@pytest.mark.parametrize("name", NETWORKS)
def test_bounds_and_margins_hold_everywhere(name, region_name, method):
    bounds_and_margins_hold(name, region_name, method)


def bounds_and_margins_hold(name, region_name, method):
    graph, region, margins = problem(name, region_name, seed=11)
    samples_stay_inside(graph, region, method(graph, region), seed=12)
    margins_below_samples(method, graph, region, margins, seed=13)


@pytest.mark.parametrize("region_name", ["box", "linf in domain", "l1"])
@pytest.mark.parametrize("name", ["two-layer", "float64"])
def test_no_program_is_looser_than_what_it_contains(name, region_name):
    graph, region, margins = problem(name, region_name, seed=21, batch=3)
    lp, cuts = (method(graph, region) for method in PROGRAMS)
    for loose in (IBP(), *SLOPES, CROWN(), AlphaCROWN()):
        if region_name in ("box", "linf in domain"):  # elsewhere the program meets the region by tangents only
            never_looser_where_undecided(lp, loose(graph, region), graph.relaxed)
        lower = TriangleLP().margins(graph, region, lp, margins)
        assert (lower >= loose.margins(graph, region, loose(graph, region), margins) - 1e-2).all()
    never_looser_where_undecided(cuts, lp, graph.relaxed)


def never_looser_where_undecided(tight, loose, nodes):
    """Once an entry's sign is known, its bounds do not matter, and no program is solved for it."""
    for k in nodes:
        open_still = (tight.lower[k] < 0) & (tight.upper[k] > 0)
        assert (tight.lower[k] >= loose.lower[k] - 1e-6)[open_still].all()
        assert (tight.upper[k] <= loose.upper[k] + 1e-6)[open_still].all()


@pytest.mark.parametrize("seed", range(6))
def test_no_bound_passes_the_exact_minimum_and_the_ladder_rises_to_it(seed):
    graph = graph_from_torch(randomised(mlp(2, 4, 4, 2).double(), seed), input_shape=(2,))
    centre = centres(2, 1, seed)
    region = Box(centre - 0.5, centre + 0.5)
    margins = margins_of_labels(torch.tensor([0]), 2)
    exact = exact_minimum(graph, region.lower[0].numpy(), region.upper[0].numpy(), margins.rows[0, 0].numpy())
    ladder = [CROWN(), TriangleLP(), MultiNeuron(), MultiNeuron(group=3)]
    found = [m.margins(graph, region, m(graph, region), margins).item() for m in ladder]
    assert all(value <= exact + 1e-9 for value in found)
    assert all(a <= b + 1e-6 for a, b in pairwise(found[:3]))
    intersected = Intersection((DeepPoly(0), DeepPoly(1)))
    both = intersected.margins(graph, region, intersected(graph, region), margins).item()
    alone = [m.margins(graph, region, m(graph, region), margins).item() for m in SLOPES]
    assert max(alone) - 1e-12 <= both <= exact + 1e-9


def test_workers_share_the_neurons_of_one_input_and_change_nothing(monkeypatch):
    graph, region, _ = problem("deep", "box", seed=7, batch=1)
    whole = TriangleLP(workers=1)(graph, region)
    monkeypatch.setattr(TriangleLP, "together", 2)
    asked = []
    solve = TriangleLP.solve
    monkeypatch.setattr(TriangleLP, "solve", lambda *a: asked.append(len(a[-1])) or solve(*a))
    alone, shared = (TriangleLP(workers=workers)(graph, region) for workers in (1, 3))
    assert len(asked) > 4
    assert max(asked) == 4
    for k in graph.relaxed:
        for side in ("lower", "upper"):
            one, two, all_in_one = (getattr(b, side)[k] for b in (alone, shared, whole))
            assert torch.equal(one, two)
            torch.testing.assert_close(one, all_in_one, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_the_proved_bound_is_the_optimum_of_an_independent_program(seed):
    """Every pre-activation and activation a variable of its own, solved by scipy."""
    graph = graph_from_torch(randomised(mlp(4, 9, 8, 3).double(), seed), input_shape=(4,))
    region = Box(*(centres(4, 1, seed) + shift for shift in (-0.4, 0.4)))
    margins = margins_of_labels(torch.tensor([0]), 3)
    bounds = TriangleLP()(graph, region)
    lower = TriangleLP().margins(graph, region, bounds, margins)[0]
    for target in range(2):
        assert lower[target].item() == pytest.approx(triangle_minimum(graph, bounds, margins.rows[0, target]), abs=1e-6)


def triangle_minimum(graph, bounds, row):
    """min row.y with one variable for every entry of every node."""
    starts = np.cumsum([0] + [n.shape[0] for n in graph.nodes])
    equal, equal_to, below, below_to = [], [], [], []
    limits = [(None, None)] * starts[-1]

    def line(k, entries):
        full = np.zeros(starts[-1])
        for node, index, value in entries:
            full[starts[node] + index] += value
        return full

    for j, (a, b) in enumerate(zip(bounds.lower[0][0].tolist(), bounds.upper[0][0].tolist(), strict=True)):
        limits[j] = (a, b)
    for k, node in enumerate(graph.nodes[1:], start=1):
        (source,) = node.inputs
        for j in range(node.shape[0]):
            if isinstance(node.op, Linear):
                weights = [(source, i, -w) for i, w in enumerate(node.op.weight[j].tolist())]
                equal.append(line(k, [(k, j, 1.0), *weights]))
                equal_to.append(node.op.bias[j].item())
                continue
            low, high = bounds.lower[source][0, j].item(), bounds.upper[source][0, j].item()
            if high <= 0 or low >= 0:
                equal.append(line(k, [(k, j, 1.0), (source, j, -float(low >= 0))]))
                equal_to.append(0.0)
            else:
                limits[starts[k] + j] = (0, None)
                slope = high / (high - low)
                below += [line(k, [(source, j, 1.0), (k, j, -1.0)]), line(k, [(k, j, 1.0), (source, j, -slope)])]
                below_to += [0.0, -slope * low]
    objective = np.zeros(starts[-1])
    objective[starts[graph.output] :] = row.numpy()
    result = linprog(objective, below or None, below_to or None, equal, equal_to, limits, method="highs")
    assert result.status == 0
    return result.fun


@by_program
@pytest.mark.parametrize("seed", range(3))
def test_wrong_multipliers_loosen_a_bound_but_never_break_it(method, seed, monkeypatch):
    """The solver is replaced by a liar: any multipliers at all give valid bounds."""
    graph, region, margins = problem("deep", "linf in domain", seed)
    honest, generator = programs.LinearModel.minimise, np.random.default_rng(seed)

    def lie(self, objective):
        found = honest(self, objective)
        return found and replace(found, value=1e9, row_dual=3 * generator.normal(size=len(found.row_dual)))

    monkeypatch.setattr(programs.LinearModel, "minimise", lie)
    samples_stay_inside(graph, region, method(graph, region), seed=31)
    margins_below_samples(method, graph, region, margins, seed=32)


def test_a_solver_without_an_answer_leaves_the_bounds_of_substitution(monkeypatch):
    graph, region, margins = problem("deep", "box", 41)
    monkeypatch.setattr(programs.LinearModel, "minimise", lambda self, objective: None)
    bounds = TriangleLP()(graph, region)
    assert torch.equal(
        TriangleLP().margins(graph, region, bounds, margins), CROWN().margins(graph, region, bounds, margins)
    )


@by_program
def test_stopped_programs_leave_valid_bounds(method):
    graph, region, _ = problem("deep", "box", 45)
    for patience in (0, 3, 10):
        calls = iter(range(10**6))
        stopped = replace(method, stop=lambda calls=calls, most=patience: next(calls) >= most)
        samples_stay_inside(graph, region, stopped(graph, region), seed=46)


@by_program
def test_single_precision_programs_hold_for_the_double_network(method):
    graph, region, margins = problem("float64", "linf in domain", 51)
    small = region.to(torch.float32)
    lower = method.margins(graph, small, method(graph, small), margins)
    generator = seeded(52)
    for _ in range(50):
        assert (margins.of_outputs(graph(region.sample(generator))) >= lower.double()).all()


def test_programs_that_would_not_fit_are_refused(monkeypatch):
    graph, region, _ = problem("deep", "box", 61)
    monkeypatch.setattr(programs, "_LARGEST", 10)
    with pytest.raises(InvalidInputError, match="too large, or its bounds too loose"):
        TriangleLP()(graph, region)


def random_limits(k, seed):
    points = np.random.default_rng(seed).normal(size=(6, k))
    return (points @ directions(k).T).max(0) + 0.1


@pytest.mark.parametrize("seed", range(10))
def test_limits_of_pairs_are_above_every_vertex_in_rational_arithmetic(seed):
    limits = random_limits(2, seed)
    normals, offsets = facets(limits, 2)
    assert len(normals)
    proved = [proved_limit(normal, limits) for normal in normals]
    np.testing.assert_allclose(proved, offsets, atol=1e-10)
    vertices = list(rational_vertices(limits))
    for normal, limit in zip(normals, proved, strict=True):
        p, q, r, s = map(Fraction, normal.tolist())
        assert all(p * x + q * y + r * max(x, 0) + s * max(y, 0) <= Fraction(limit) for x, y in vertices)


def rational_vertices(limits):
    """Corners of the octagon cut by the axes, without rounding."""
    rows = [tuple(map(Fraction, d)) for d in directions(2).tolist()]
    plain = list(zip(rows, map(Fraction, limits.tolist()), strict=True))
    axes = [((Fraction(1), Fraction(0)), Fraction(0)), ((Fraction(0), Fraction(1)), Fraction(0))]
    for ((a, b), e), ((c, d), f) in product(plain + axes, repeat=2):
        det = a * d - b * c
        if det:
            x, y = (e * d - b * f) / det, (a * f - e * c) / det
            if all(u * x + v * y <= w for (u, v), w in plain):
                yield x, y


@pytest.mark.parametrize("k", [2, 3])
def test_proved_limits_hold_for_any_normal(k):
    generator = np.random.default_rng(k)
    limits = random_limits(k, 70)
    points = generator.uniform(-4, 4, (20000, k))
    points = points[(points @ directions(k).T <= limits).all(1)]
    both = np.concatenate([points, points.clip(0)], 1)
    for normal in generator.normal(size=(30, 2 * k)):
        assert (both @ normal).max() <= proved_limit(normal, limits)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("k", [2, 3])
def test_facets_of_neurons_that_move_together_are_the_hull_of_their_curve(k, seed):
    """Pre-activations x - x_i for x in [-1, 1]: any objective has its largest value at an end or a kink."""
    generator = np.random.default_rng(seed)
    kinks = np.sort(generator.uniform(-0.9, 0.9, k))
    ends = np.array([-1.0, 1.0])
    curve = np.concatenate([ends, kinks])[:, None] - kinks
    both = np.concatenate([curve, curve.clip(0)], 1)
    normals, offsets = facets((directions(k) @ (ends[:, None] - kinks).T).max(1), k)
    assert (both @ normals.T <= offsets + 1e-9).all()
    for objective in generator.normal(size=(5, 2 * k)):
        box = [(-5, 5)] * (2 * k)
        found = linprog(-objective, normals, offsets + 1e-9, bounds=box, method="highs")
        assert -found.fun == pytest.approx((both @ objective).max(), abs=1e-6)
    for normal in normals[:10]:
        limit = proved_limit(normal, (directions(k) @ (ends[:, None] - kinks).T).max(1))
        assert limit == pytest.approx((both @ normal).max(), abs=1e-9)


@pytest.mark.parametrize("activation", [nn.Tanh, nn.Sigmoid])
@pytest.mark.parametrize("seed", range(2))
def test_programs_hold_for_smooth_activations(seed, activation):
    """The hulls of groups are those of ReLUs; applied to tanh they cut values off."""
    layers = [nn.Linear(2, 6), activation(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), activation(), nn.Linear(6, 2)]
    network = randomised(nn.Sequential(*layers).double(), seed)
    with torch.no_grad():
        for layer in network[::2]:
            layer.weight.mul_(2)
    graph = graph_from_torch(network)
    centre = centres(2, 1, seed)
    region = Box(centre - 0.5, centre + 0.5)
    for method in PROGRAMS:
        samples_stay_inside(graph, region, method(graph, region), seed, count=100)


def test_points_and_segments_give_no_cut():
    for limits in (np.zeros(8), np.array([max(d[0], 0.0) for d in directions(2)])):
        normals, offsets = facets(limits, 2)
        assert len(normals) == len(offsets) == 0


def test_slopes_of_deeppoly_are_zero_or_one():
    with pytest.raises(InvalidInputError, match="expected 0 or 1"):
        DeepPoly(2)
    with pytest.raises(InvalidInputError, match="at least one"):
        Intersection(())


def test_nothing_is_printed_where_pipelines_read_answers():
    """In a program of its own: HiGHS says its name once."""
    code = (
        "import certify, torch; from torch import nn; torch.manual_seed(0)\n"
        "net = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 2))\n"
        "certify.verify(net, torch.zeros(3), label=0, eps=1.0, method='lp')"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, timeout=120)
    assert run.stdout == b""
