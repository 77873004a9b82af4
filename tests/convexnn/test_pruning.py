"""Pruning: the outputs and the objective stay, and no more neurons are left than the rank of their contributions."""

from functools import cache

import numpy as np
import pytest
import torch
from convexnn_cases import normal, random_neurons, targets_of
from scipy.optimize import linprog
from torch import nn

import convexnn
from convexnn.errors import InvalidInputError
from convexnn.network import from_torch, to_torch
from convexnn.neurons import Neurons
from convexnn.problem import Problem
from convexnn.solutions.elimination import fewest, rank
from convexnn.solutions.pruning import added_up, prune, radial_residual
from convexnn.solutions.shrinking import pruning_curve

LOSSES = [("squared", 0), ("squared", 1), ("logistic", 0), ("hinge", 0), ("softmax", 0)]


@cache
def trained(loss, kind, n, weight_decay):
    X, y = data_of(loss, kind, n)
    return convexnn.train(X, y, loss=loss, weight_decay=weight_decay, tol=1e-4, max_seconds=3.0, random_state=0).network


def stationary_copies(loss, kind, n, weight_decay, *, copies=6, seed=0):
    """A network at its optimum, each neuron split into copies of random shares: still optimal, and far from minimal."""
    neurons = from_torch(trained(loss, kind, n, weight_decay)).balanced()
    shares = torch.rand(copies, len(neurons), 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    roots = torch.sqrt(shares / shares.sum(0))
    d, K = neurons.W.shape[1], neurons.n_outputs
    split = Neurons((roots * neurons.W).reshape(-1, d), (roots * neurons.A).reshape(-1, K), neurons.bias)
    return to_torch(split, hidden_bias=True, output_bias=True), len(neurons)


def data_of(loss, kind, n=40, d=3):
    return normal(n, d, seed=100), targets_of(loss, n, 0, kind)


@pytest.mark.parametrize(("loss", "kind"), LOSSES)
def test_copies_of_an_optimal_network(loss, kind):
    """The network itself comes back: outputs to 1e-8, the same objective."""
    X, y = data_of(loss, kind)
    network, size = stationary_copies(loss, kind, 40, 0.05)
    pruned = prune(network, X, y, loss=loss, weight_decay=0.05)
    assert pruned.n_given == 6 * size
    assert pruned.n_neurons <= min(size, pruned.rank)
    with torch.no_grad():
        torch.testing.assert_close(pruned.network(X), network(X), rtol=1e-8, atol=1e-8)
    assert pruned.objective == pytest.approx(pruned.objective_before, rel=1e-8)
    assert pruned.n_neurons == pruned.network[0].out_features


@pytest.mark.parametrize(("loss", "kind"), LOSSES)
@pytest.mark.parametrize("bias", [True, False])
def test_any_network_keeps_its_outputs_and_never_gains_objective(loss, kind, bias):
    """Also far from stationary, and with many more neurons than samples; at most rank(contributions) are left."""
    X, y = data_of(loss, kind, n=12)
    K = torch.as_tensor(np.asarray(y)).reshape(12, -1).shape[1] if loss != "softmax" else 3
    given = random_neurons(90, 3 + bias, K, seed=3)
    network = to_torch(given, hidden_bias=bias, output_bias=bias)
    pruned = prune(network, X, y, loss=loss, weight_decay=0.1)
    with torch.no_grad():
        torch.testing.assert_close(pruned.network(X), network(X), rtol=1e-7, atol=1e-7)
    assert pruned.objective <= pruned.objective_before * (1 + 1e-10)
    assert pruned.n_neurons <= pruned.rank <= 12 * K - bias * K
    assert pruned.fit_change <= 1e-8
    assert pruned.residual > 1e-2


def test_rank_counts_the_output_bias():
    """What an output bias can make up for needs no neuron: twelve outputs, eleven dimensions."""
    X, y = data_of("squared", 0, n=12)
    network = to_torch(random_neurons(90, 3, 1, seed=3), hidden_bias=False, output_bias=True)
    assert prune(network, X, y, weight_decay=0.1).rank == 11


def test_objective_falls_where_directions_are_not_stationary():
    """Neurons that are alike on the data are added up: the norm of the sum, in place of the sum of norms."""
    X = torch.tensor([[1.0, 0.0], [2.0, 0.0]], dtype=torch.float64)
    W = torch.tensor([[1.0, 0.0], [1.0, 3.0], [1.0, 0.1]], dtype=torch.float64)  # alike on these data
    network = to_torch(
        Neurons(W, torch.ones(3, 1).double(), torch.zeros(1).double()), hidden_bias=False, output_bias=False
    )
    pruned = prune(network, X, torch.zeros(2), weight_decay=1.0)
    assert pruned.n_neurons == 1
    saved = 1 + 10**0.5 + 1.01**0.5 - (3**2 + 3.1**2) ** 0.5
    assert pruned.objective_before - pruned.objective == pytest.approx(saved, rel=1e-12)
    W, A = pruned.network[0].weight.detach(), pruned.network[2].weight.detach()
    torch.testing.assert_close((torch.relu(X @ W.T) @ A.T)[:, 0], 3 * X[:, 0])


def test_merging_adds_neurons_of_one_pattern_and_sign_and_no_others():
    X = normal(30, 3, seed=1)
    w = normal(1, 3, seed=2)
    T = X @ w.T
    near = w + 1e-3 * float(T.abs().min()) * normal(1, 3, seed=3)  # the same pattern, another direction
    W = torch.cat([w, near, w, -w])
    A = torch.tensor([[1.0], [2.0], [-1.0], [1.0]], dtype=torch.float64)
    neurons = Neurons(W, A, torch.zeros(1, dtype=torch.float64)).balanced()
    problem = Problem(X, convexnn.data.read_loss("squared", np.zeros(30), 30), 0.1, False)
    merged = added_up(problem, neurons, 1e-12)
    assert len(merged) == 3
    torch.testing.assert_close(merged(X), neurons(X), rtol=1e-12, atol=1e-12)
    assert float(merged.half_squared_norm()) <= float(neurons.half_squared_norm())


def test_merging_across_a_kink_changes_outputs_by_no_more_than_allowed():
    generator = torch.Generator().manual_seed(0)
    X = normal(30, 3, seed=1)
    w = normal(1, 3, seed=2)
    w = w - (X[:1] @ w.T) / (X[0] @ X[0]) * X[:1]  # on the kink of the first sample
    W = w + 1e-6 * torch.randn(40, 3, generator=generator, dtype=torch.float64)
    neurons = Neurons(W, torch.ones(40, 1).double(), torch.zeros(1).double()).balanced()
    problem = Problem(X, convexnn.data.read_loss("squared", np.zeros(30), 30), 0.1, False)
    sizes = []
    for allowed in (1e-9, 1e-6, 1e-4):
        merged = added_up(problem, neurons, allowed)
        assert float((merged(X) - neurons(X)).abs().max()) <= allowed * (1 + 1e-9)
        sizes.append(len(merged))
    assert sizes[0] >= sizes[1] >= sizes[2] == 1
    assert sizes[0] >= 2


@pytest.mark.parametrize("seed", range(5))
def test_elimination_reaches_a_vertex(seed):
    """Positive costs that any x with P x = P 1 shares, c = P'v: a vertex, with the same sum and the same costs."""
    rng = np.random.default_rng(seed)
    inner = np.concatenate([rng.standard_normal((5, 40)), rng.uniform(0.1, 1.0, (1, 40))])
    P = rng.standard_normal((9, 6)) @ inner  # rank six
    c = inner[-1]
    found = fewest(P, c, 1e-10)
    assert found.rank == 6
    assert (found.weights >= 0).all()
    assert np.count_nonzero(found.weights) <= 6
    np.testing.assert_allclose(P @ found.weights, P.sum(1), atol=1e-11)
    np.testing.assert_allclose(c @ found.weights, c.sum(), atol=1e-10)


def test_rank_does_not_depend_on_the_sizes_of_vectors():
    """Six dimensions, in sizes over ten decades, and dependent vectors among them."""
    rng = np.random.default_rng(0)
    P, sizes = rng.standard_normal((9, 6)), 10.0 ** np.linspace(-10, 0, 6)
    assert rank(P) == rank(P * sizes) == rank(P * sizes[::-1]) == 6
    assert rank(np.concatenate([P @ rng.standard_normal((6, 10)), P * sizes], 1)) == 6
    assert rank(np.zeros((4, 3))) == 0


@pytest.mark.parametrize("seed", [0, 1, 5, 38, 87, 237])  # the last four: steps without regard to costs raise them
def test_elimination_never_raises_other_costs(seed):
    """And never goes below the least cost, that of the linear program."""
    rng = np.random.default_rng(seed)
    P, c = rng.standard_normal((5, 30)), 10 ** rng.uniform(-2, 2, 30)
    found = fewest(P, c, 1e-10)
    best = linprog(c, A_eq=P, b_eq=P.sum(1)).fun
    assert best * (1 - 1e-9) <= c @ found.weights <= c.sum() * (1 + 1e-12)
    assert np.count_nonzero(found.weights) <= 5


def test_elimination_of_nearly_dependent_vectors():
    """Copies to rounding, sizes over ten decades, more vectors than dimensions: the sum stays to 1e-10."""
    rng = np.random.default_rng(0)
    P = rng.standard_normal((20, 15))
    P = np.concatenate([P, P + 1e-15 * rng.standard_normal(P.shape), rng.standard_normal((20, 40))], 1)
    P *= 10.0 ** rng.uniform(-10, 0, P.shape[1])
    found = fewest(P, np.linalg.norm(P, axis=0), 1e-12)
    assert np.count_nonzero(found.weights) <= 20
    np.testing.assert_allclose(P @ found.weights, P.sum(1), atol=1e-12)


def test_vanishing_vectors_need_no_weight():
    P = np.array([[1.0, 0.0, 2.0], [0.0, 0.0, 0.0]])
    found = fewest(P, np.ones(3), 1e-12)
    assert found.weights[1] == 0
    assert np.count_nonzero(found.weights) == 1
    assert fewest(np.zeros((2, 3)), np.ones(3), 1e-12).weights.tolist() == [0, 0, 0]


def test_residual_is_the_derivative_of_rescaling():
    """d J / d x_j at x = 1, x_j scaling both layers of neuron j by its root; zero at an optimum."""
    X, y = data_of("logistic", 0)
    problem = Problem(X, convexnn.data.read_loss("logistic", y, 40), 0.05, False)
    neurons = random_neurons(4, 3, 1, seed=5).balanced()
    neurons = Neurons(neurons.W, neurons.A, torch.zeros(1, dtype=torch.float64))
    step, total = 1e-6, 0.0
    for j in range(4):
        values = []
        for sign in (1, -1):
            root = torch.ones(4, 1, dtype=torch.float64)
            root[j] = (1 + sign * step) ** 0.5
            values.append(problem.objective(Neurons(neurons.W * root, neurons.A * root, neurons.bias)))
        total += abs(values[0] - values[1]) / (2 * step)
    assert radial_residual(problem, neurons) == pytest.approx(total / problem.objective(neurons), rel=1e-6)


def test_networks_that_are_not_stationary_are_refused_on_request():
    X, y = data_of("squared", 0)
    network = to_torch(random_neurons(9, 3, 1, seed=3), hidden_bias=False, output_bias=False)
    with pytest.raises(InvalidInputError, match="not stationary"):
        prune(network, X, y, weight_decay=0.1, max_residual=1e-3)
    split, _ = stationary_copies("squared", 0, 40, 0.05, copies=2)
    assert prune(split, X, y, weight_decay=0.05, max_residual=1e-3).residual <= 1e-3
    with pytest.raises(InvalidInputError, match="not stationary"):
        prune(split, X, y, weight_decay=0.2, max_residual=1e-3)


def test_networks_without_effect():
    X, y = data_of("squared", 0)
    network = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1)).double()
    with torch.no_grad():
        network[0].bias.fill_(-100.0)
    pruned = prune(network, X, y, weight_decay=0.1)
    assert pruned.n_neurons == 0
    with torch.no_grad():
        torch.testing.assert_close(pruned.network(X), network(X))


def test_single_precision_networks_keep_their_outputs():
    X, y = data_of("squared", 0)
    network, _ = stationary_copies("squared", 0, 40, 0.05)
    pruned = prune(network.float(), X, y, weight_decay=0.05, tol=1e-6)
    with torch.no_grad():
        torch.testing.assert_close(pruned.network(X), network.double()(X), rtol=0, atol=1e-5)
    assert pruned.n_neurons < pruned.n_given


CURVES = [(correction, loss) for correction in ("weight-decay", "least-squares") for loss in ("squared", "softmax")]
SLOW_CURVES = [("slide", "softmax"), ("weight-decay", "logistic"), ("least-squares", "logistic")]


@pytest.mark.parametrize(
    ("correction", "loss"),
    [*CURVES, ("slide", "squared"), ("slide", "logistic")]
    + [pytest.param(*case, marks=pytest.mark.slow) for case in SLOW_CURVES],
)
def test_curves(correction, loss):
    """Sizes fall, figures are those of the networks, and the first point costs nothing."""
    X, y = data_of(loss, 0)
    network, _ = stationary_copies(loss, 0, 40, 0.05, copies=2)
    curve = pruning_curve(network, X, y, loss=loss, weight_decay=0.05, correction=correction, test=(X, y))
    sizes = [point.n_neurons for point in curve.points]
    assert sizes == sorted(set(sizes), reverse=True)
    assert sizes[-1] <= 1
    assert curve.points[0].objective == pytest.approx(curve.pruned.objective_before, rel=1e-8)
    with torch.no_grad():
        F = network(X)
    for point in curve.points:
        neurons = from_torch(point.network)
        assert len(neurons) == max(point.n_neurons, 1)
        with torch.no_grad():
            value = convexnn.data.read_loss(loss, y, 40).value(point.network(X))
            change = float((point.network(X) - F).abs().max() / (F - F.mean(0)).abs().max())
        assert point.fit_change == pytest.approx(change, rel=1e-6, abs=1e-12)
        assert point.objective == pytest.approx(float(value + 0.05 * neurons.masses().sum()), rel=1e-9)
        assert point.test_loss == pytest.approx(point.loss, rel=1e-9)
    for increase in (1e-6, 0.05, 0.5, 100.0):
        limit = (1 + increase) * curve.pruned.objective_before
        sizes = [point.n_neurons for point in curve.points if point.objective <= limit]
        assert curve.smallest(increase).n_neurons == min(sizes)
    assert curve.smallest(1e-6).n_neurons > curve.smallest(100.0).n_neurons == curve.points[-1].n_neurons
    assert (curve.points[0].test_accuracy is None) == (loss == "squared")


def test_corrections_are_minima_of_what_they_say():
    """Of the output weights: moving them a little never lowers the objective, or brings the outputs nearer."""
    X, y = data_of("squared", 0)
    network, _ = stationary_copies("squared", 0, 40, 0.05, copies=1)
    problem = Problem(torch.cat([X, torch.ones(40, 1)], 1), convexnn.data.read_loss("squared", y, 40), 0.05, True)
    with torch.no_grad():
        target = network(X)
    for correction in ("weight-decay", "least-squares"):
        curve = pruning_curve(network, X, y, weight_decay=0.05, correction=correction, sizes=[3])
        neurons = from_torch(curve.points[-1].network)
        neurons = Neurons(neurons.W / neurons.W.norm(dim=1, keepdim=True), neurons.A * neurons.W.norm(dim=1)[:, None],
                          neurons.bias)  # fmt: skip

        def value(at, correction=correction):
            if correction == "least-squares":
                return float(((at(problem.X) - target) ** 2).sum())
            return float(problem.loss.value(at(problem.X)) + 0.05 * at.masses().sum())

        for j in range(len(neurons)):
            for step in (1e-4, -1e-4):
                A = neurons.A.clone()
                A[j] += step
                assert value(Neurons(neurons.W, A, neurons.bias)) >= value(neurons) - 1e-12
        for step in (1e-4, -1e-4):
            assert value(Neurons(neurons.W, neurons.A, neurons.bias + step)) >= value(neurons) - 1e-12


@pytest.mark.usefixtures("unchecked")
def test_unknown_corrections_and_sizes_are_refused():
    X, y = data_of("squared", 0)
    network = to_torch(random_neurons(3, 3, 1, seed=3), hidden_bias=False, output_bias=False)
    with pytest.raises(InvalidInputError, match="correction"):
        pruning_curve(network, X, y, weight_decay=0.1, correction="none")
    for sizes in ([0], 3, "12"):
        with pytest.raises(InvalidInputError, match="sizes"):
            pruning_curve(network, X, y, weight_decay=0.1, sizes=sizes)
    with pytest.raises(InvalidInputError, match="test data"):
        pruning_curve(network, X, y, weight_decay=0.1, test=(X[:, :2], y))
