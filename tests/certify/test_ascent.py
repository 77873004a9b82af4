"""Optimised bounds against automatic differentiation, linear programs and sampling."""

import numpy as np
import pytest
import torch
from certify_cases import NETWORKS, centres, graph_of, mlp, randomised, seeded
from certify_laws import exact_minimum, never_looser, samples_stay_inside
from scipy.optimize import linprog

from certify.bounds import CROWN, IBP, AlphaCROWN
from certify.bounds.alpha import Relaxed
from certify.bounds.ascent import Forms, Parameters, ascend, slots_below
from certify.bounds.backward import Form, make_step
from certify.ir.from_torch import graph_from_torch
from certify.ir.ops import ReLU
from certify.properties import margins_of_labels
from certify.regions import Box, LpBall

with_relu = pytest.mark.parametrize(
    "name", [n for n in NETWORKS if any(isinstance(node.op, ReLU) for node in graph_of(n).nodes)]
)


def boxes(graph, batch, eps=0.3, seed=0):
    centre = centres(torch.Size(graph.input_shape).numel(), batch, seed)
    return Box(centre - eps, centre + eps)


def forms_on_output(graph, region, conditions=1, seed=1):
    """Random conditions on the output, one form for every region, and the bounds that they rest on."""
    bounds = CROWN()(graph, region)
    rows = torch.randn((len(region.centre), conditions, *graph.output_shape), generator=seeded(seed)).double()
    constants = torch.randn((len(region.centre), conditions), generator=seeded(seed + 1)).double()
    return Forms(graph, region, bounds, graph.output, rows, constants), bounds


def random_parameters(forms, seed):
    g, least = seeded(seed), forms.least_area()
    low, high = forms.limits
    slopes = low + (high - low) * torch.rand(low.shape, generator=g).double()
    signs = torch.randint(-1, 2, low.shape, generator=g).double()
    multipliers = signs * torch.rand(low.shape, generator=g).double()
    weights = None if least.weights is None else torch.rand(least.weights.shape, generator=g).double()
    return Parameters(slopes, multipliers, weights), signs


@with_relu
@pytest.mark.parametrize("conditions", [1, 3])
def test_gradient_is_that_of_automatic_differentiation(name, conditions):
    graph = graph_of(name)
    forms, _ = forms_on_output(graph, boxes(graph, 5), conditions)
    parameters, _ = random_parameters(forms, 2)
    leaves = [v.clone().requires_grad_(True) for v in parameters.each if v is not None]
    expected = torch.autograd.grad(forms.substitute(Parameters(*leaves)).value.sum(), leaves)
    found = forms.gradient(forms.substitute(parameters), parameters)
    low, high = forms.limits
    free = (high > low).double()
    torch.testing.assert_close(found.slopes * free, expected[0] * free, rtol=1e-9, atol=1e-10)
    for ours, theirs in zip(found.each[1:], expected[1:], strict=False):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)


@with_relu
def test_any_parameters_bound_what_obeys_the_fixed_phases(name):
    """Sampled inputs with the given phases have conditions above the bound, for arbitrary slopes and multipliers."""
    graph = graph_of(name)
    region = boxes(graph, 6)
    forms, bounds = forms_on_output(graph, region, 2)
    parameters, signs = random_parameters(forms, 3)
    steps = {k: make_step(graph, graph.nodes[k], bounds) for k in range(1, len(graph.nodes))}
    relaxed = Relaxed.of(graph, region, bounds, steps)
    # Phases of a sampled point of each region, so that some inputs obey them.
    values = graph.values(region.sample(seeded(4)))
    phase = torch.cat([torch.where(values[s.source] >= 0, 1.0, -1.0).flatten(1) for s in forms.slots], 1)
    signs = phase * signs.abs()
    parameters = Parameters(parameters.slopes, parameters.multipliers.abs() * signs, parameters.weights)
    form = Form(graph.output, forms.rows, forms.constants, torch.zeros(6, 1, dtype=torch.float64))
    proved = relaxed.judge(form, torch.arange(6), parameters)
    generator, met = seeded(5), 0
    for _ in range(300):
        values = graph.values(region.sample(generator))
        z = torch.cat([values[s.source].flatten(1) for s in forms.slots], 1)
        obeys = (z * signs >= 0).all(1)
        conditions = torch.einsum("bcn,bn->bc", forms.rows.flatten(2), values[-1].flatten(1)) + forms.constants
        weighted = (parameters.weights * conditions).sum(1)
        assert (weighted[obeys] >= proved[obeys] - 1e-12 * (1 + weighted[obeys].abs())).all()
        met += int(obeys.sum())
    assert met > 0


@with_relu
def test_ascent_never_falls_below_its_start(name):
    graph = graph_of(name)
    forms, _ = forms_on_output(graph, boxes(graph, 5))
    start = forms.least_area()
    assert (ascend(forms, start, 10).value >= forms.substitute(start).value).all()


@pytest.mark.parametrize("seed", range(3))
def test_one_hidden_layer_reaches_the_triangle_program(seed):
    """With one layer of ReLUs the best slopes give exactly the linear program over the triangles."""
    graph = graph_from_torch(randomised(mlp(4, 9, 3).double(), seed), input_shape=(4,))
    region = boxes(graph, 1, eps=0.5, seed=seed)
    margins = margins_of_labels(torch.tensor([0]), 3)
    method = AlphaCROWN(steps_margins=400)
    lower = method.margins(graph, region, method(graph, region), margins)[0]
    low, high = CROWN()(graph, region)[1]
    for target in range(2):
        exact = triangle_program(graph, region, low[0].numpy(), high[0].numpy(), margins.rows[0, target].numpy())
        assert lower[target].item() <= exact + 1e-9
        assert lower[target].item() >= exact - 1e-3 * (1 + abs(exact))


def triangle_program(graph, region, low, high, row):
    first, second = graph.nodes[1].op, graph.nodes[3].op
    w, b = first.weight.numpy(), first.bias.numpy()
    objective = np.concatenate([np.zeros(w.shape[1]), row @ second.weight.numpy()])
    eye, rows, limits = np.eye(len(b)), [], []
    unstable = (low < 0) & (high > 0)
    slope = np.where(unstable, high / np.where(unstable, high - low, 1.0), (low >= 0).astype(float))
    rows += [np.hstack([w, -eye]) * (high > 0)[:, None]]  # h >= z unless inactive
    limits += [-b * (high > 0)]
    rows += [np.hstack([-slope[:, None] * w, eye])]  # h <= slope (z - l), and z or 0 where stable
    limits += [slope * b - slope * np.where(unstable, low, 0.0)]
    box = list(zip(region.lower[0].tolist(), region.upper[0].tolist(), strict=True)) + [(0, None)] * len(b)
    result = linprog(objective, np.vstack(rows), np.concatenate(limits), bounds=box, method="highs")
    return result.fun + row @ second.bias.numpy()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_tighter_than_crown_and_below_the_exact_minimum(seed, norm):
    graph = graph_from_torch(randomised(mlp(2, 4, 3, 2).double(), seed), input_shape=(2,))
    region = LpBall(centres(2, 1, seed), 0.6, norm, torch.zeros(1, 2).double(), torch.ones(1, 2).double())
    margins = margins_of_labels(torch.tensor([0]), 2)
    crown, alpha = (m.margins(graph, region, m(graph, region), margins).item() for m in (CROWN(), AlphaCROWN()))
    assert alpha >= crown
    if norm == "linf":
        low, high = (v[0].numpy() for v in region.bounding_box())
        assert alpha <= exact_minimum(graph, low, high, margins.rows[0, 0].numpy()) + 1e-9


@pytest.mark.parametrize("method", [CROWN, AlphaCROWN], ids=["crown", "alpha"])
@pytest.mark.parametrize("asked", [0, 3, 10])
def test_bounds_stopped_anywhere_are_valid(method, asked):
    """Out of time after so many questions: between intervals and what the method gives in full, samples inside."""
    graph = graph_of("deep")
    region, left = boxes(graph, 3), iter(range(asked))
    stopped = method(stop=lambda: next(left, None) is None)(graph, region)
    never_looser(stopped, IBP()(graph, region))
    samples_stay_inside(graph, region, stopped, seed=3)


def test_values_beyond_single_precision_are_bounded_too():
    graph = graph_of("two-layer")
    region = Box(torch.full((1, 3), -1e30).double(), torch.full((1, 3), 1e30).double())
    margins = margins_of_labels(torch.tensor([0]), 3)
    crown, alpha = (m.margins(graph, region, m(graph, region), margins) for m in (CROWN(), AlphaCROWN()))
    assert (alpha >= crown).all()
    assert torch.isfinite(alpha).all()


def test_slots_are_the_relaxed_nodes_that_a_form_passes():
    graph = graph_of("deep")
    assert [s.node for s in slots_below(graph, graph.output)] == [8, 6, 4, 2]
    assert [s.node for s in slots_below(graph, 3)] == [2]
    assert slots_below(graph, 1) == ()
