"""Data that once led to a wrong gap, a bound above the objective, or an error."""

import numpy as np
import pytest
import torch
from convexnn_cases import normal

from convexnn import Status, train
from convexnn.losses import LOSSES
from convexnn.solvers.amplitudes import group_amplitudes, signed_amplitudes


@pytest.mark.parametrize("shift", [1e4, 1e6, 1e8])
def test_targets_far_from_zero_do_not_hide_the_gap(shift):
    X = normal(40, 2, seed=1).numpy()
    y = np.sin(2 * X[:, 0]) + X[:, 1]
    near = train(X, y, weight_decay=1e-2, random_state=0)
    far = train(X, y + shift, weight_decay=1e-2, random_state=0)
    assert far.status is Status.CONVERGED
    assert far.gap <= 1e-4
    assert far.objective == pytest.approx(near.objective, rel=3e-4)


def test_constant_targets_are_fitted_exactly():
    result = train(normal(9, 2, seed=2), np.full(9, 1e6 / 3), weight_decay=1e-2, random_state=0)
    assert result.status is Status.NULL
    assert result.gap == 0.0


def test_no_bound_above_the_objective():
    # Features of one millionth beside a bias: the search misses neurons, and rounds can make the network worse.
    X = 1e-6 * np.array([[0.3], [-1.2], [0.8], [0.1]])
    for seed in range(12):
        y = normal(4, seed=seed).numpy()
        result = train(X, y, weight_decay=2e-7, max_rounds=12, random_state=seed)
        assert result.bound <= result.objective * (1 + 1e-9)


@pytest.mark.parametrize("name", ["squared", "logistic", "hinge"])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("count", [0, 3])
def test_amplitudes_of_neurons_that_do_not_help(name, with_bias, count):
    targets = torch.tensor([[1.0], [-1.0], [1.0], [1.0]], dtype=torch.float64)
    loss = LOSSES[name](targets, torch.full((4,), 0.25, dtype=torch.float64)).smoothed(0.1)
    features, nothing = torch.ones((4, count), dtype=torch.float64), targets.new_zeros(count)
    bias = targets.new_zeros(1) if with_bias else None
    amplitudes, _ = signed_amplitudes(features, loss, 10.0, nothing, bias)
    assert (amplitudes == 0).all()
    amplitudes, _ = group_amplitudes(features, loss, 10.0, nothing[:, None], bias)
    assert (amplitudes == 0).all()
