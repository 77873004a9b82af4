"""The table of docs/expressivity.md: every cell by a construction, or a failure that is measured."""

import numpy as np
import pytest
import torch

import certify
from certify.bounds import METHODS, MultiNeuron
from certify.expressivity import (
    convex_network,
    exact_ranges,
    maximum_networks,
    monotone_network,
    precision,
    random_boxes,
    univariate_network,
)
from certify.regions import Box

TRIPLES = MultiNeuron(group=3)
METHODS_AND_TRIPLES = [*METHODS, TRIPLES]
# Every neuron by itself; not bounds of norms and semidefinite ones, which take chains only.
SINGLE = ["ibp", "crown-ibp", "deeppoly-0", "deeppoly-1", "crown", "alpha-crown", "lp"]


def points_of(rng, count=5):
    return np.cumsum(rng.uniform(0.2, 1.0, count))


def monotone(seed):
    rng = np.random.default_rng(seed)
    return points_of(rng), rng.choice([-1.0, 1.0]) * np.cumsum(rng.exponential(size=5) * (rng.random(5) < 0.8))


def convex(seed):
    rng = np.random.default_rng(seed)
    x = points_of(rng)
    slopes = np.sort(rng.normal(size=4)) + rng.choice([-2.0, 0.0, 2.0])
    return x, np.append(0.0, np.cumsum(slopes * np.diff(x)))


def any_function(seed):
    rng = np.random.default_rng(seed)
    return points_of(rng), rng.normal(size=5)


def boxes_around(x, count=6, seed=0):
    return random_boxes([x[0] - 0.5], [x[-1] + 0.5], count, seed)


def computes(network, x, f, beyond=None):
    """At the points, between them, and constant outside unless told otherwise."""
    fine = np.linspace(x[0] - 1, x[-1] + 1, 301)
    expected = np.interp(fine, x, f)
    if beyond is not None:
        below, above = fine < x[0], fine > x[-1]
        expected[below] += beyond[0] * (fine[below] - x[0])
        expected[above] += beyond[1] * (fine[above] - x[-1])
    got = network(torch.from_numpy(fine)[:, None]).detach().flatten().numpy()
    np.testing.assert_allclose(got, expected, atol=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_monotone_functions_are_expressed_by_every_method(seed):
    x, f = monotone(seed)
    network = monotone_network(x, f)
    computes(network, x, f)
    exact = exact_ranges(network, boxes_around(x))
    for method in METHODS_AND_TRIPLES if seed == 0 else ["ibp", "lp"]:
        assert precision(network, method, boxes_around(x), exact).is_precise(1e-9)


@pytest.mark.parametrize("slope", [0, 1])
@pytest.mark.parametrize("seed", range(4))
def test_convex_functions_are_expressed_by_deeppoly_and_all_programs(seed, slope):
    x, f = convex(seed)
    network = convex_network(x, f, slope=slope)
    slopes = np.diff(f) / np.diff(x)
    computes(network, x, f, beyond=(min(slopes[0], 0.0), max(slopes[-1], 0.0)))
    for method in (f"deeppoly-{slope}", "lp", "multi-neuron", TRIPLES):
        assert precision(network, method, boxes_around(x)).is_precise(1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_all_functions_are_expressed_by_hulls_of_three_neurons_of_one_layer(seed):
    x, f = any_function(seed)
    network = univariate_network(x, f)
    assert len(network) == 3
    computes(network, x, f)
    assert precision(network, TRIPLES, boxes_around(x)).is_precise(1e-6)


def test_the_networks_of_one_method_are_not_those_of_another():
    """Failures of these networks; that no other network does better is a theorem only where the page says so."""
    x, f = np.array([-1.0, 0.0, 1.0]), np.array([1.0, 0.0, 2.0])
    whole = Box(torch.full((1, 1), -1.0).double(), torch.ones(1, 1).double())
    for slope in (0, 1):
        assert precision(convex_network(x, f, slope=slope), "ibp", whole).worst > 0.4
    assert precision(convex_network(x, f, slope=1), "deeppoly-0", whole).worst > 0.5
    zigzag = univariate_network([-1.0, -0.3, 0.2, 0.9, 1.5], [0.0, 1.0, -1.0, 0.5, 0.2])
    found = {m: precision(zigzag, m, boxes_around([-1.0, 1.5])).worst for m in SINGLE}
    assert min(found.values()) > 1.0
    pairs = precision(zigzag, "multi-neuron", boxes_around([-1.0, 1.5])).worst
    assert 0.1 < pairs < min(found.values())


def test_no_single_neuron_method_is_precise_on_a_maximum():
    """The source proves it of all networks; here it is measured for every one in the list."""
    networks = maximum_networks()
    grid = torch.cartesian_prod(*[torch.linspace(-2, 2, 21, dtype=torch.float64)] * 2)
    unit = Box(torch.zeros(1, 2).double(), torch.ones(1, 2).double())
    for name, network in networks.items():
        torch.testing.assert_close(network(grid).flatten(), grid.amax(1), rtol=0, atol=1e-12, msg=name)
        for method in SINGLE:
            assert precision(network, method, unit, (np.zeros((1, 1)), np.ones((1, 1)))).worst > 0.1, (name, method)
    assert len(networks) >= 12


def test_the_triangle_gives_one_and_a_half_for_the_maximum():
    unit = Box(torch.zeros(1, 2).double(), torch.ones(1, 2).double())
    network = maximum_networks()["y + relu(x - y)"]
    found = precision(network, "lp", unit)
    assert found.upper.item() == pytest.approx(1.5, abs=1e-9)
    assert (found.exact_lower.item(), found.exact_upper.item()) == pytest.approx((0.0, 1.0), abs=1e-9)


def test_groups_of_neurons_express_a_maximum_where_they_see_both_inputs():
    network = maximum_networks()["relu(x - y) + relu(y) - relu(-y)"]
    around = Box(torch.full((1, 2), -1.0).double(), torch.ones(1, 2).double())
    assert precision(network, "lp", around).worst > 0.4
    assert precision(network, TRIPLES, around).is_precise(1e-6)
    beside = Box(torch.full((1, 2), 0.25).double(), torch.ones(1, 2).double())  # y is positive: no group has it
    assert precision(network, TRIPLES, beside).worst == pytest.approx(0.375, abs=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_exact_ranges_are_those_of_dense_samples(seed):
    torch.manual_seed(seed)
    one = torch.nn.Sequential(torch.nn.Linear(1, 8), torch.nn.ReLU(), torch.nn.Linear(8, 6), torch.nn.ReLU())
    one = torch.nn.Sequential(*one, torch.nn.Linear(6, 2)).double().eval()
    boxes = random_boxes([-2.0], [3.0], 4, seed)
    found = precision(one, "ibp", boxes)
    for k in range(4):
        line = torch.linspace(float(boxes.lower[k]), float(boxes.upper[k]), 20001, dtype=torch.float64)[:, None]
        values = one(line).detach().numpy()
        assert (values.min(0) >= found.exact_lower[k] - 1e-12).all()
        assert (values.max(0) <= found.exact_upper[k] + 1e-12).all()
        np.testing.assert_allclose(values.min(0), found.exact_lower[k], atol=1e-3)
        np.testing.assert_allclose(values.max(0), found.exact_upper[k], atol=1e-3)
    assert (found.excess >= -1e-12).all()


def test_boxes_are_random_and_the_first_is_the_whole():
    boxes = random_boxes([0.0, -1.0], [1.0, 5.0], 9, seed=3)
    assert boxes.lower[0].tolist() == [0.0, -1.0]
    assert boxes.upper[0].tolist() == [1.0, 5.0]
    assert (boxes.lower <= boxes.upper).all()
    assert len(torch.unique(boxes.lower)) > 9


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: monotone_network([0, 1, 2], [0, 1, 0]), "go up and down"),
        (lambda: convex_network([0, 1, 2], [0, 1, 0]), "slopes between the values fall"),
        (lambda: convex_network([0, 1], [0, 1], slope=2), "expected 0 or 1"),
        (lambda: univariate_network([0, 0], [0, 1]), "do not increase"),
        (lambda: univariate_network([0, 1], [0, 1, 2]), "as many of both"),
        (lambda: univariate_network([0, np.nan], [0, 1]), "NaN"),
        (
            lambda: precision(univariate_network([0, 1], [0, 1]), "magic", random_boxes([0], [1], 1)),
            "expected one of ibp",
        ),
    ],
)
def test_bad_input_says_what_is_wrong(build, message):
    with pytest.raises(certify.InvalidInputError, match=message):
        build()


def test_other_activations_have_no_exact_range_here():
    network = torch.nn.Sequential(torch.nn.Linear(1, 2), torch.nn.Tanh(), torch.nn.Linear(2, 1)).eval()
    with pytest.raises(certify.UnsupportedOp, match="Tanh"):
        precision(network, "crown", random_boxes([0], [1], 1))
