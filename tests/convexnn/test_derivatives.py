"""Derivatives of optimal networks against differences of optima that are solved anew."""

import numpy as np
import pytest
import torch
from convexnn_cases import normal, targets_of

import convexnn
from convexnn.data import read_loss
from convexnn.errors import InvalidInputError, SolverError
from convexnn.network import to_torch
from convexnn.problem import Problem
from convexnn.solutions.active_set import ActiveSet, polish
from convexnn.solutions.derivatives import Sensitivity, sensitivity

DECAY = 0.05


def optimum(loss: str, y, weight_decay: float, *, weights=None, near=None, n: int = 40) -> ActiveSet:
    """Solved from the start, or from an optimum nearby."""
    X = normal(n, 3, seed=100)
    ones = torch.ones(n, 1, dtype=torch.float64)
    if near is None:
        result = convexnn.train(X, y, loss=loss, weight_decay=weight_decay, tol=1e-5, random_state=0)
        near = convexnn.network.from_torch(result.network).balanced()
    read = read_loss(loss, y, n)
    if weights is not None:
        read = type(read)(read.targets, weights)
    return polish(Problem(torch.cat([X, ones], 1), read, weight_decay, True), near)


def found(loss: str, y) -> tuple[Sensitivity, ActiveSet]:
    at = optimum(loss, y, DECAY)
    network = to_torch(at.neurons, hidden_bias=True, output_bias=True)
    return sensitivity(network, normal(40, 3, seed=100), y, loss=loss, weight_decay=DECAY), at


@pytest.mark.parametrize("loss", ["squared", "logistic"])
def test_weight_decay(loss):
    """Outputs, weights and objective, central differences of new optima on both sides."""
    y = targets_of(loss, 40, 0)
    derivative, at = found(loss, y)
    assert derivative.n_kinks > 0
    t = 1e-6 * DECAY
    up, down = (optimum(loss, y, DECAY + sign * t, near=at.neurons) for sign in (1, -1))
    torch.testing.assert_close(
        derivative.outputs_by_weight_decay, (up.output - down.output) / (2 * t), rtol=1e-5, atol=1e-6
    )
    dZ, db = derivative.weights_by_weight_decay
    both = torch.cat([derivative.at.Z, derivative.at.C], 1), torch.cat([at.Z, at.C], 1)
    order = torch.cdist(both[1], both[0]).argmin(1).tolist()  # the same neurons, in the order that pruning left
    torch.testing.assert_close(dZ[order], (up.Z - down.Z) / (2 * t), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(db, (up.bias - down.bias) / (2 * t), rtol=1e-5, atol=1e-6)
    slope = (up.objective - down.objective) / (2 * t)
    assert derivative.objective_by_weight_decay == pytest.approx(slope, rel=1e-6)


def test_targets():
    y = targets_of("squared", 40, 0)
    derivative, at = found("squared", y)
    dy, t = np.random.default_rng(3).standard_normal(40), 1e-6
    up, down = (optimum("squared", y + sign * t * dy, DECAY, near=at.neurons) for sign in (1, -1))
    moved = derivative.influence @ torch.from_numpy(dy)
    torch.testing.assert_close(moved, ((up.output - down.output) / (2 * t))[:, 0], rtol=1e-5, atol=1e-7)
    values = torch.linalg.eigvals(derivative.influence).real
    assert float(values.min()) > -1e-9
    assert float(values.max()) < 1 + 1e-9  # a shrinking fit
    assert 1.0 <= float(derivative.influence.trace()) <= 40.0  # the output bias is one degree of freedom


@pytest.mark.parametrize("loss", ["squared", "logistic"])
def test_sample_weights(loss):
    y = targets_of(loss, 40, 0)
    derivative, at = found(loss, y)
    dc, t = np.random.default_rng(4).standard_normal(40) / 40, 1e-6
    weights = torch.full((40,), 1 / 40, dtype=torch.float64)
    up, down = (
        optimum(loss, y, DECAY, weights=weights + sign * t * torch.from_numpy(dc), near=at.neurons) for sign in (1, -1)
    )
    moved = derivative.outputs_by_sample_weight @ torch.from_numpy(dc)
    torch.testing.assert_close(moved, ((up.output - down.output) / (2 * t))[:, 0], rtol=1e-5, atol=1e-7)


def test_distance_is_where_the_active_set_changes():
    """Well inside it the outputs are smooth in weight decay: the second difference is of second order."""
    y = targets_of("squared", 40, 0)
    derivative, at = found("squared", y)
    assert 0 < derivative.distance < 1
    t = 1e-3 * derivative.distance * DECAY
    up, down = (optimum("squared", y, DECAY + sign * t, near=at.neurons) for sign in (1, -1))
    assert torch.equal(up.kinks, down.kinks)


def test_what_has_no_derivative_is_refused():
    X, y = normal(40, 3, seed=100), targets_of("logistic", 40, 0)
    network = to_torch(optimum("logistic", y, DECAY).neurons, hidden_bias=True, output_bias=True)
    with pytest.raises(InvalidInputError, match="hinge"):
        sensitivity(network, X, y, loss="hinge", weight_decay=DECAY)
    with pytest.raises(InvalidInputError, match="labels"):
        _ = sensitivity(network, X, y, loss="logistic", weight_decay=DECAY).influence


def test_a_network_that_was_not_trained_is_refused():
    """Newton's method ends at a kink that the objective falls off, or nowhere."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 1)).double()
    with pytest.raises(SolverError):
        sensitivity(network, normal(40, 3, seed=100), targets_of("squared", 40, 0), weight_decay=DECAY)


def test_dependent_contributions_make_the_hessian_singular():
    """Two opposite neurons whose contributions differ by a constant: the split between them is free, until one goes."""
    X = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    problem = Problem(X, read_loss("squared", np.array([1.0, 2.0]), 2), 0.1, True)
    W, A = torch.tensor([[1.0], [-1.0]]).double(), torch.tensor([[1.0], [-1.0]]).double()
    bias = torch.zeros(1).double()
    assert ActiveSet.of(problem, convexnn.neurons.Neurons(W, A, bias)).condition < 1e-12
    assert ActiveSet.of(problem, convexnn.neurons.Neurons(W[:1], A[:1], bias)).condition > 1e-3
