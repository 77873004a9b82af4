import inspect
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from certify_cases import (
    CHAINS,
    METHODS,
    NETWORKS,
    PROGRAMS,
    REGIONS,
    SLOPES,
    centres,
    graph_of,
    mlp,
    randomised,
    regions_around,
)
from certify_laws import exact_minimum, margins_below_samples, never_looser, samples_stay_inside

import certify.bounds
from certify.bounds import CROWN, IBP, Intersection
from certify.bounds.base import AbstractMethod
from certify.ir.from_torch import graph_from_torch
from certify.properties import Margins, margins_of_labels
from certify.regions import Box, LpBall

by_name = pytest.mark.parametrize("name", NETWORKS)
by_region = pytest.mark.parametrize("region_name", REGIONS)
by_method = pytest.mark.parametrize("method", METHODS + SLOPES, ids=lambda m: m.name)


def region_for(graph, region_name, seed, batch=4, eps=0.3):
    n = torch.Size(graph.input_shape).numel()
    return regions_around(centres(n, batch, seed), eps)[region_name]


def margins_for(graph, batch):
    n = graph.output_shape[0]
    return margins_of_labels(torch.arange(batch) % max(n, 2), n)


def test_every_method_is_listed():
    classes = [c for _, c in inspect.getmembers(certify.bounds, inspect.isclass) if issubclass(c, AbstractMethod)]
    listed = METHODS + SLOPES + PROGRAMS + CHAINS
    members = {type(m) for m in listed} | {AbstractMethod, Intersection}
    assert set(classes) <= members
    assert {m.name for m in listed} == set(certify.bounds.METHODS)


@by_method
@by_region
@by_name
def test_bounds_contain_samples(name, region_name, method):
    graph = graph_of(name)
    region = region_for(graph, region_name, seed=11)
    samples_stay_inside(graph, region, method(graph, region), seed=12)


@by_method
@by_region
@by_name
def test_margins_are_below_samples(name, region_name, method):
    graph = graph_of(name)
    region = region_for(graph, region_name, seed=21)
    margins_below_samples(method, graph, region, margins_for(graph, 4), seed=22)


@by_region
@by_name
def test_tighter_methods_are_never_looser(name, region_name):
    graph = graph_of(name)
    region = region_for(graph, region_name, seed=31, batch=20)
    margins = margins_for(graph, 20)
    bounds = [method(graph, region) for method in METHODS]
    lower = [m.margins(graph, region, b, margins) for m, b in zip(METHODS, bounds, strict=True)]
    for loose, tight in pairwise(range(len(METHODS))):
        for k in graph.relaxed:  # what the margins rest on
            assert (bounds[tight].lower[k] >= bounds[loose].lower[k] - 1e-12).all()
            assert (bounds[tight].upper[k] <= bounds[loose].upper[k] + 1e-12).all()
        assert (lower[tight] >= lower[0] - 1e-12 * (1 + lower[0].abs())).all()
        # Tighter hidden bounds can flip a slope of least area: a single margin may be worse, not the mean.
        assert lower[tight].mean() >= lower[loose].mean() - 1e-12


@by_region
@by_name
def test_known_bounds_only_help(name, region_name):
    graph = graph_of(name)
    region = region_for(graph, region_name, seed=41)
    for method in METHODS:
        known = method(graph, region)
        never_looser(method(graph, region, known), known)


@by_region
def test_crown_is_exact_where_no_neuron_is_unstable(region_name):
    """Then the network is affine on the region and the bound is the region's own minimum of that map."""
    graph = graph_of("deep")
    region = region_for(graph, region_name, seed=51, batch=8, eps=1e-4)
    margins = margins_for(graph, 8)
    bounds = CROWN()(graph, region)
    stable = torch.stack([((bounds.lower[k] >= 0) | (bounds.upper[k] <= 0)).all(1) for k in graph.relaxed]).all(0)
    assert stable.any()
    lower = CROWN().margins(graph, region, bounds, margins)
    jacobian = torch.func.vmap(torch.func.jacrev(lambda x: graph(x[None])[0]))(region.centre)
    rows = margins.rows @ jacobian
    at_centre = margins.of_outputs(graph(region.centre))
    exact = region.minimum(rows) + at_centre - torch.einsum("btn,bn->bt", rows, region.centre)
    torch.testing.assert_close(lower[stable], exact[stable], rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("seed", range(4))
def test_no_bound_passes_the_exact_minimum(seed):
    """The exact minimum is one LP for every sign pattern; CROWN is above IBP on the way there."""
    graph = graph_from_torch(randomised(mlp(2, 3, 3, 2).double(), seed), input_shape=(2,))
    centre = centres(2, 1, seed)
    region = Box(centre - 0.5, centre + 0.5)
    margins = margins_of_labels(torch.tensor([0]), 2)
    exact = exact_minimum(graph, region.lower[0].numpy(), region.upper[0].numpy(), margins.rows[0, 0].numpy())
    for method in METHODS:
        lower = method.margins(graph, region, method(graph, region), margins).item()
        assert lower <= exact + 1e-9
    assert lower >= exact - 2.0  # CROWN is in the right place too, not just low


def test_crown_equals_the_hand_computed_value():
    """y = relu(x1 + x2) - relu(x1 + x2/2) + 1/4 on [-1, 1] x [-1/2, 3/2], by hand."""
    net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU(), torch.nn.Linear(2, 1)).double().eval()
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[1.0, 1.0], [1.0, 0.5]]))
        net[0].bias.zero_()
        net[2].weight.copy_(torch.tensor([[1.0, -1.0]]))
        net[2].bias.fill_(0.25)
    graph = graph_from_torch(net)
    region = Box(torch.tensor([[-1.0, -0.5]]).double(), torch.tensor([[1.0, 1.5]]).double())
    bounds = CROWN()(graph, region)
    # z1 in [-3/2, 5/2] below: slope 1. z2 in [-5/4, 7/4] above: slope 7/12, intercept 35/48.
    # 5/12 x1 + 17/24 x2 - 35/48 + 1/4 at the corner (-1, -1/2)
    assert bounds.lower[graph.output].item() == pytest.approx(-5 / 12 - 17 / 48 - 35 / 48 + 1 / 4, abs=1e-12)
    # z1 above: slope 5/8, intercept 15/16. z2 below: slope 1. -3/8 x1 + 1/8 x2 + 19/16 at (-1, 3/2)
    assert bounds.upper[graph.output].item() == pytest.approx(3 / 8 + 3 / 16 + 19 / 16, abs=1e-12)


@by_name
def test_chunks_change_nothing(name, monkeypatch):
    graph = graph_of(name)
    region = region_for(graph, "l2 in domain", seed=61)
    whole = CROWN()(graph, region)
    monkeypatch.setattr("certify.bounds.crown._CHUNK", 1)
    chunked = CROWN()(graph, region)
    for k in graph.relaxed:
        lower, upper = whole[k]
        unstable = (lower < 0) & (upper > 0)
        torch.testing.assert_close(chunked.lower[k][unstable], lower[unstable], rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(chunked.upper[k][unstable], upper[unstable], rtol=1e-11, atol=1e-11)


@by_region
@pytest.mark.parametrize("name", ["deep", "no-bias", "float64", "batch-norm"])
def test_fused_layers_give_what_one_layer_at_a_time_gives(name, region_name, monkeypatch):
    graph = graph_of(name)
    region = region_for(graph, region_name, seed=62)
    monkeypatch.setattr("certify.bounds.entries._MOST_BENT", 1.0)
    fused = CROWN()(graph, region)
    monkeypatch.setattr("certify.bounds.entries._MOST_BENT", -1.0)
    plain = CROWN()(graph, region)
    for k in graph.relaxed:
        torch.testing.assert_close(fused.lower[k], plain.lower[k], rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(fused.upper[k], plain.upper[k], rtol=1e-11, atol=1e-11)


# Not where intervals may win: an input's neighbours decide which settled entries are bounded besides.
@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
@by_name
def test_bounds_of_a_batch_are_the_bounds_of_its_inputs(name, method):
    graph = graph_of(name)
    region = region_for(graph, "linf in domain", seed=71)
    margins = margins_for(graph, 4)
    together = method.margins(graph, region, method(graph, region), margins)
    for k in range(4):
        one = region.select([k])
        alone = method.margins(graph, one, method(graph, one), margins.select([k]))
        # An ascent in single precision depends on the order of its sums, so slopes differ in the last digits.
        tolerance = 1e-6 if method.name == "alpha-crown" else 1e-11
        torch.testing.assert_close(alone[0], together[k], rtol=tolerance, atol=tolerance)


@by_method
@by_region
def test_float32_bounds_hold_for_the_float64_network(region_name, method):
    graph = graph_of("float64")
    region = region_for(graph, region_name, seed=81)
    small = region.to(torch.float32)
    margins = margins_for(graph, 4)
    lower = method.margins(graph, small, method(graph, small), margins)
    assert lower.dtype == torch.float32
    exact = method.margins(graph, region, method(graph, region), margins)
    torch.testing.assert_close(lower.double(), exact, rtol=1e-3, atol=1e-3)
    generator = torch.Generator().manual_seed(82)
    for _ in range(50):
        assert (margins.of_outputs(graph(region.sample(generator))) >= lower.double()).all()


def test_overflow_says_nothing_rather_than_something():
    net = randomised(mlp(2, 4, 2).double(), 0)
    with torch.no_grad():
        net[0].weight.mul_(1e200)
        net[2].weight.mul_(1e200)
    graph = graph_from_torch_unchecked(net)
    region = LpBall(torch.full((1, 2), 0.5).double(), 0.1)
    for method in METHODS:
        lower = method.margins(graph, region, method(graph, region), margins_of_labels(torch.tensor([0]), 2))
        assert (lower == -torch.inf).all()


def graph_from_torch_unchecked(net):
    from certify.ir.graph import Graph
    from certify.ir.ops import Linear, ReLU

    graph = Graph.start((2,))
    for layer in net:
        op = ReLU() if isinstance(layer, torch.nn.ReLU) else Linear(layer.weight.detach(), layer.bias.detach())
        graph = graph.append(op)
    return graph


def test_constants_of_a_margin_count():
    graph = graph_of("two-layer")
    region = region_for(graph, "l1", seed=91)
    margins = margins_for(graph, 4)
    moved = replace(margins, constants=margins.constants + 2.0)
    for method in METHODS:
        bounds = method(graph, region)
        plain, shifted = (method.margins(graph, region, bounds, m) for m in (margins, moved))
        torch.testing.assert_close(shifted, plain + 2.0, rtol=1e-12, atol=1e-12)


def test_margins_select_rows():
    margins = margins_of_labels(torch.tensor([1, 0, 2]), 3)
    assert isinstance(margins, Margins)
    assert margins.rivals.tolist() == [[0, 2], [1, 2], [0, 1]]
    outputs = torch.tensor([[1.0, 5.0, 2.0], [0.0, 0.0, -1.0], [9.0, 8.0, 7.0]]).double()
    assert margins.of_outputs(outputs).tolist() == [[4.0, 3.0], [0.0, 1.0], [-2.0, -1.0]]
    assert margins.violated(margins.of_outputs(outputs)).tolist() == [False, True, True]


def test_ibp_of_one_layer_by_hand():
    graph = graph_of("linear")
    region = Box(torch.zeros(1, 4).double(), torch.ones(1, 4).double())
    op = graph.nodes[1].op
    bounds = IBP()(graph, region)
    torch.testing.assert_close(bounds.lower[1][0], op.bias + op.weight.clamp(max=0).sum(1), rtol=0, atol=1e-13)
    torch.testing.assert_close(bounds.upper[1][0], op.bias + op.weight.clamp(min=0).sum(1), rtol=0, atol=1e-13)
