"""The trained objective is the global optimum, as independent programs over all neurons find it."""

import numpy as np
import pytest
import torch
from convexnn_cases import normal, targets_of
from convexnn_references import activation_patterns, circle_bracket, exact_optimum

from convexnn.data import read_loss
from convexnn.problem import Problem
from convexnn.training import train

SLOW = pytest.mark.slow
pytestmark = pytest.mark.usefixtures("unchecked")

# Relative errors: of the objective that is asked for, and of the bound. A loss with a kink takes many more rounds to
# the last digits, so that it is asked for fewer.
ACCURACY = {"squared": (1e-6, 1e-5), "logistic": (1e-6, 3e-6), "softmax": (3e-6, 3e-6), "hinge": (1e-4, 1e-4)}


def instance(name, n, d, weight_decay, hidden_bias, output_bias, *, kind=0, seed=0):
    """Data, targets and the problem in the columns that the neurons see."""
    X, y = normal(n, d, seed=seed + 50), targets_of(name, n, seed, kind)
    columns = torch.cat([X, torch.ones_like(X[:, :1])], 1) if hidden_bias else X
    return X, y, Problem(columns, read_loss(name, y, n), weight_decay, output_bias)


def trained(name, X, y, problem, hidden_bias):
    return train(
        X,
        y,
        loss=name,
        weight_decay=problem.weight_decay,
        hidden_bias=hidden_bias,
        output_bias=problem.output_bias,
        tol=0.3 * ACCURACY[name][0],
        random_state=0,
    )


@pytest.mark.parametrize(("n", "d", "count"), [(6, 1, 2), (7, 2, 14), (8, 3, 58), (7, 4, 84)])
def test_number_of_patterns(n, d, count):
    """2 sum_{k<d} C(n-1, k) cells for hyperplanes in general position (Cover 1965)."""
    X = normal(n, d, seed=n).numpy()
    if d == 1:
        X = np.abs(X)
    patterns = activation_patterns(X)
    assert len(patterns) == count
    sampled = (np.random.default_rng(0).standard_normal((3000, d)) @ X.T > 0).astype(float)
    assert {tuple(row) for row in sampled} <= {tuple(row) for row in patterns}


@pytest.mark.parametrize(
    ("name", "n", "d", "weight_decay", "hidden_bias", "output_bias"),
    [
        ("squared", 12, 2, 2e-2, False, False),
        ("squared", 12, 2, 2e-2, False, True),
        ("squared", 14, 1, 1e-2, True, True),
        ("squared", 9, 2, 1e-2, True, True),
        pytest.param("squared", 9, 2, 5e-3, True, False, marks=SLOW),
        ("squared", 8, 3, 3e-2, False, True),
        ("logistic", 12, 2, 2e-2, False, False),
        ("logistic", 12, 2, 5e-3, False, True),
        ("logistic", 14, 1, 1e-2, True, True),
        ("logistic", 9, 2, 1e-2, True, True),
        ("hinge", 12, 2, 5e-2, False, False),
        ("hinge", 14, 1, 2e-2, True, True),
        ("hinge", 9, 2, 2e-2, True, True),
        pytest.param("squared", 9, 2, 1e-3, True, False, marks=SLOW),
        pytest.param("squared", 12, 3, 5e-3, False, True, marks=SLOW),
        pytest.param("squared", 12, 2, 3e-3, True, True, marks=SLOW),
        pytest.param("squared", 8, 4, 1e-2, False, False, marks=SLOW),
        pytest.param("logistic", 12, 2, 1e-3, True, True, marks=SLOW),
        pytest.param("logistic", 10, 3, 1e-2, False, True, marks=SLOW),
        pytest.param("hinge", 12, 2, 1e-2, True, False, marks=SLOW),
        pytest.param("hinge", 10, 3, 3e-2, False, True, marks=SLOW),
    ],
)
def test_one_output(name, n, d, weight_decay, hidden_bias, output_bias):
    X, y, problem = instance(name, n, d, weight_decay, hidden_bias, output_bias)
    optimum = exact_optimum(problem)
    result = trained(name, X, y, problem, hidden_bias)
    of_objective, of_bound = ACCURACY[name]
    assert optimum - 2e-8 <= result.objective <= optimum * (1 + of_objective) + 1e-8
    assert optimum * (1 - of_bound) <= result.bound <= optimum + 2e-8


@pytest.mark.parametrize(
    ("name", "kind", "n", "weight_decay", "hidden_bias", "output_bias"),
    [
        ("squared", 1, 10, 3e-2, False, False),
        ("squared", 1, 10, 3e-2, False, True),
        ("squared", 1, 12, 2e-2, True, True),
        ("softmax", 0, 10, 2e-2, False, False),
        ("softmax", 0, 10, 2e-2, False, True),
        ("softmax", 1, 12, 1e-2, True, True),
        pytest.param("softmax", 2, 10, 3e-2, False, True, marks=SLOW),
        ("logistic", 0, 12, 1e-2, True, True),
        pytest.param("squared", 1, 20, 1e-2, True, True, marks=SLOW),
        pytest.param("softmax", 0, 20, 5e-3, True, True, marks=SLOW),
    ],
)
def test_several_outputs(name, kind, n, weight_decay, hidden_bias, output_bias):
    d = 1 if hidden_bias else 2
    X, y, problem = instance(name, n, d, weight_decay, hidden_bias, output_bias, kind=kind)
    lower, upper = circle_bracket(problem)
    assert -1e-9 <= upper - lower < 2e-7
    result = trained(name, X, y, problem, hidden_bias)
    of_objective, of_bound = ACCURACY[name]
    assert lower - 1e-9 <= result.objective <= upper * (1 + of_objective)
    assert lower * (1 - of_bound) <= result.bound <= upper * (1 + 1e-8)


def test_the_two_references_agree():
    """The pattern program and the bracket on the circle share nothing but the problem."""
    for output_bias in (False, True):
        for name in ("squared", "logistic"):
            problem = instance(name, 10, 2, 2e-2, False, output_bias)[2]
            lower, upper = circle_bracket(problem)
            assert lower - 2e-8 <= exact_optimum(problem) <= upper + 2e-8


def test_two_classes_of_softmax_are_logistic():
    """f_1 - f_0 = f with a_1 = -a_0: |a| = sqrt(2) |a_1|, so softmax at wd is logistic at wd / sqrt(2)."""
    X, y = normal(30, 2, seed=8), targets_of("softmax", 30, 8, 1)
    options = {"tol": 1e-6, "random_state": 0}
    soft = train(X, y, loss="softmax", weight_decay=1e-2, **options)
    margin = train(X, y, loss="logistic", weight_decay=1e-2 / 2**0.5, **options)
    assert soft.objective == pytest.approx(margin.objective, rel=2e-6)


def test_width_is_bounded_by_the_samples():
    """Some optimum has at most n + 1 neurons; more are possible but the trainer should not need many."""
    X, y, problem = instance("squared", 12, 2, 1e-2, True, True)
    assert trained("squared", X, y, problem, True).n_neurons <= 13


@SLOW
@pytest.mark.parametrize("loss", ["squared", "logistic"])
def test_no_restart_of_lbfgs_gets_below_the_bound(loss):
    X, y = normal(25, 4, seed=1), targets_of(loss, 25, 1)
    result = train(X, y, loss=loss, weight_decay=1e-2, tol=1e-6, random_state=0)
    problem = Problem(torch.cat([X, torch.ones(25, 1, dtype=X.dtype)], 1), read_loss(loss, y, 25), 1e-2)
    found = min(lbfgs(problem, seed) for seed in range(5))
    assert found >= result.bound
    assert found >= result.objective * (1 - 1e-6)


def lbfgs(problem, seed, width=40, steps=300):
    d, K = problem.n_inputs, problem.loss.n_outputs
    parts = [normal(width, d, seed=seed), normal(width, K, seed=seed + 1), torch.zeros(K, dtype=torch.float64)]
    W, A, b = (part.requires_grad_() for part in parts)
    optimiser = torch.optim.LBFGS([W, A, b], max_iter=steps, line_search_fn="strong_wolfe", tolerance_change=1e-14)

    def closure():
        optimiser.zero_grad()
        value = problem.loss.value(torch.relu(problem.X @ W.T) @ A + b)
        value = value + 0.5 * problem.weight_decay * ((W**2).sum() + (A**2).sum())
        value.backward()
        return value

    optimiser.step(closure)
    return float(closure().detach())
