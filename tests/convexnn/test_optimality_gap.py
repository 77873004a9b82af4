"""The gap of any network: honest for good ones, large for bad ones, blind to how a neuron is scaled."""

import numpy as np
import pytest
import torch
from convexnn_cases import normal, targets_of
from torch import nn

from convexnn.errors import InvalidInputError
from convexnn.gap import optimality_gap
from convexnn.losses import LOSSES
from convexnn.training import train

pytestmark = pytest.mark.usefixtures("unchecked")

WEIGHT_DECAY = 0.03
TOL = {"squared": 1e-4, "logistic": 1e-4, "softmax": 1e-2, "hinge": 3e-2}


def data(loss, n=15, d=3):
    return normal(n, d, seed=0), targets_of(loss, n, 0)


def random_network(loss, hidden_bias=True, output_bias=True):
    torch.manual_seed(0)
    outputs = 3 if loss == "softmax" else 1
    return nn.Sequential(nn.Linear(3, 8, bias=hidden_bias), nn.ReLU(), nn.Linear(8, outputs, bias=output_bias)).double()


def gap_of(network, X, y, loss, **options):
    return optimality_gap(network, X, y, loss=loss, weight_decay=WEIGHT_DECAY, random_state=0, **options)


@pytest.mark.parametrize("loss", LOSSES)
def test_of_a_trained_network(loss):
    X, y = data(loss)
    result = train(X, y, loss=loss, weight_decay=WEIGHT_DECAY, tol=TOL[loss], random_state=0)
    gap = gap_of(result.network, X, y, loss, tol=TOL[loss])
    assert gap.objective == pytest.approx(result.objective, rel=1e-9)
    assert gap.objective_as_given == pytest.approx(result.objective, rel=1e-9)
    assert gap.gap <= 2 * TOL[loss]
    assert gap.bound <= gap.objective
    assert gap.n_neurons == result.n_neurons
    assert gap.bound_kind == "local-search"
    assert "local-search" in str(gap)


@pytest.mark.parametrize(("hidden_bias", "output_bias"), [(False, False), (True, True)])
@pytest.mark.parametrize("loss", ["squared", "softmax"])
def test_of_a_random_network(loss, hidden_bias, output_bias):
    """The gap is that to the optimum, which training finds with the same biases."""
    X, y = data(loss)
    gap = gap_of(random_network(loss, hidden_bias, output_bias), X, y, loss, tol=1e-2)
    options = {"hidden_bias": hidden_bias, "output_bias": output_bias, "random_state": 0}
    best = train(X, y, loss=loss, weight_decay=WEIGHT_DECAY, tol=1e-3, **options)
    assert gap.gap > 0.1
    assert gap.bound <= best.objective
    assert gap.bound == pytest.approx(best.objective, rel=2e-2)
    assert gap.gap == pytest.approx((gap.objective - gap.bound) / gap.objective)


def test_scaling_of_a_neuron_does_not_matter():
    X, y = data("squared")
    network = train(X, y, weight_decay=WEIGHT_DECAY, tol=1e-3, random_state=0).network
    before = gap_of(network, X, y, "squared", tol=1e-3)
    with torch.no_grad():
        F = network(X)
        network[0].weight[0] *= 10
        network[0].bias[0] *= 10
        network[2].weight[:, 0] /= 10
        torch.testing.assert_close(network(X), F)
    after = gap_of(network, X, y, "squared", tol=1e-3)
    assert after.objective == pytest.approx(before.objective, rel=1e-12)
    assert after.objective_as_given > after.objective * 1.01
    assert after.gap == pytest.approx(before.gap, abs=1e-3)


def test_objective_as_given_is_the_formula():
    X, y = data("squared")
    network = random_network("squared").float()
    gap = gap_of(network, X, y, "squared", tol=0.1)
    with torch.no_grad():
        loss = 0.5 * float(((network.double()(X)[:, 0] - torch.from_numpy(y)) ** 2).mean())
    squares = sum(float((p.detach() ** 2).sum()) for name, p in network.named_parameters() if name != "2.bias")
    assert gap.objective_as_given == pytest.approx(loss + WEIGHT_DECAY / 2 * squares, rel=1e-12)


def test_dead_neurons_cost_but_do_nothing():
    X, y = data("squared")
    network = random_network("squared")
    with torch.no_grad():
        network[2].weight[:, :3] = 0.0
    gap = gap_of(network, X, y, "squared", tol=0.1)
    assert gap.n_neurons == 5
    assert gap.objective < gap.objective_as_given


def test_the_network_is_left_alone():
    X, y = data("squared")
    network = random_network("squared").float()
    before = [p.clone() for p in network.parameters()]
    gap_of(network, X, y, "squared", tol=0.1)
    assert all(torch.equal(p, q) and p.dtype == q.dtype for p, q in zip(before, network.parameters(), strict=True))


def test_a_wrong_output_bias_is_seen():
    """The output bias is the network's own, not the best one: moving it opens the gap."""
    X, y = data("squared")
    network = train(X, y, weight_decay=WEIGHT_DECAY, tol=1e-3, random_state=0).network
    with torch.no_grad():
        network[2].bias += 1.0
    gap = gap_of(network, X, y, "squared", tol=1e-3)
    assert gap.objective >= 0.5
    assert gap.gap > 0.3


def test_sample_weights_equal_repeated_rows():
    X, y = data("squared", 10)
    times = np.array([1, 2, 1, 3, 1, 1, 2, 1, 1, 1])
    network = random_network("squared")
    weighted = gap_of(network, X, y, "squared", sample_weight=times, tol=1e-2)
    repeated = gap_of(network, np.repeat(X.numpy(), times, 0), np.repeat(y, times), "squared", tol=1e-2)
    assert weighted.objective == pytest.approx(repeated.objective, rel=1e-12)
    assert weighted.bound == pytest.approx(repeated.bound, rel=2e-2)


def test_time_limit():
    X, y = normal(2000, 40, seed=0), targets_of("squared", 2000, 0)
    network = nn.Sequential(nn.Linear(40, 8), nn.ReLU(), nn.Linear(8, 1))
    gap = optimality_gap(network, X, y, weight_decay=1e-4, max_seconds=0.5, random_state=0)
    assert gap.bound <= gap.objective
    assert gap.seconds < 30


def test_deterministic_for_a_seed():
    X, y = data("squared")
    network = random_network("squared")
    first, second = (gap_of(network, X, y, "squared", tol=1e-2) for _ in range(2))
    assert (first.objective, first.bound, first.gap) == (second.objective, second.bound, second.gap)


def test_gap_of_the_zero_network_above_the_null_level():
    X, y = data("squared")
    network = random_network("squared")
    with torch.no_grad():
        for p in network.parameters():
            p.zero_()
        network[2].bias += float(y.mean())
    gap = optimality_gap(network, X, y, weight_decay=10.0, random_state=0)
    assert gap.gap <= 1e-9
    assert gap.n_neurons == 0


def test_weights_beyond_double_precision_are_refused():
    network = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)).double()
    nn.init.constant_(network[0].weight, 1e300)
    with pytest.raises(InvalidInputError, match="too large"):
        optimality_gap(network, normal(6, 2, seed=0), np.arange(6.0), weight_decay=0.1)
