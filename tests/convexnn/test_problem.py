"""The training problem: its objective, and the reduction of the data to their rank."""

import math

import pytest
import torch
from convexnn_cases import loss_of, normal, problem_of, random_neurons

from convexnn.losses import LOSSES
from convexnn.problem import Problem, reduce_to_rank


def data(kind):
    X = normal(12, 5, seed=1)
    ones = torch.ones(12, 1, dtype=torch.float64)
    return {
        "full rank": X,
        "wide": normal(6, 15, seed=2),
        "square": normal(7, 7, seed=2),
        "duplicate column": torch.cat([X, X[:, :2]], 1),
        "constant columns": torch.cat([X, ones, 3 * ones], 1),
        "zero column": torch.cat([X, 0 * ones], 1),
        "low rank": normal(12, 2, seed=3) @ normal(2, 8, seed=4),
        "duplicate rows": X[:3].repeat(4, 1),
        "one sample": X[:1],
        "tiny": 1e-100 * X,
        "huge": 1e100 * X,
        "uneven": X * torch.tensor([1e-4, 1e-2, 1.0, 1e2, 1e4], dtype=torch.float64),
        "one zero row": torch.cat([X, 0 * X[:1]]),
    }[kind]


RANKS = {
    "full rank": 5,
    "wide": 6,
    "square": 7,
    "duplicate column": 5,
    "constant columns": 6,
    "zero column": 5,
    "low rank": 2,
    "duplicate rows": 3,
    "one sample": 1,
    "tiny": 5,
    "huge": 5,
    "uneven": 5,
    "one zero row": 5,
}


@pytest.mark.parametrize("kind", RANKS)
def test_reduction_is_an_isometry(kind):
    X = data(kind)
    problem = Problem(X, loss_of("squared", n=len(X)), 0.1)
    reduced, reduction = reduce_to_rank(problem)
    assert reduced.X.shape == (len(X), RANKS[kind])
    scale = float(X.abs().max())
    gram, expected = (reduced.X / scale) @ (reduced.X / scale).T, (X / scale) @ (X / scale).T
    torch.testing.assert_close(gram, expected, rtol=0, atol=1e-12)
    neurons = random_neurons(6, RANKS[kind], seed=5)
    lifted = reduction.lift(neurons)
    assert lifted.W.shape == (6, X.shape[1])
    torch.testing.assert_close(lifted.W.norm(dim=1), neurons.W.norm(dim=1), rtol=1e-12, atol=0)
    torch.testing.assert_close(reduction.restrict(lifted).W, neurons.W, rtol=0, atol=1e-12)
    assert reduced.objective(neurons) == pytest.approx(problem.objective(lifted), rel=1e-9)


@pytest.mark.parametrize("kind", RANKS)
def test_restriction_keeps_the_function_and_shrinks_norms(kind):
    X = data(kind)
    reduced, reduction = reduce_to_rank(Problem(X, loss_of("squared", n=len(X)), 0.1))
    neurons = random_neurons(6, X.shape[1], seed=5)
    restricted = reduction.restrict(neurons)
    scale = float(X.abs().max())
    torch.testing.assert_close(restricted(reduced.X) / scale, neurons(X) / scale, rtol=0, atol=1e-12)
    assert bool((restricted.W.norm(dim=1) <= neurons.W.norm(dim=1) * (1 + 1e-12)).all())


@pytest.mark.parametrize("name", LOSSES)
def test_objective_is_the_formula(name):
    problem = problem_of(name, 8, 3, 0.05)
    neurons = random_neurons(5, 3, problem.loss.n_outputs, seed=1)
    squares = sum(float(x) ** 2 for part in (neurons.W, neurons.A) for x in part.flatten())
    pairs = list(zip(neurons.W, neurons.A, strict=True))
    F = torch.stack([neurons.bias + sum(max(float(w @ x), 0) * a for w, a in pairs) for x in problem.X])
    assert problem.objective(neurons) == pytest.approx(float(problem.loss.value(F)) + 0.025 * squares, rel=1e-12)


@pytest.mark.parametrize("name", LOSSES)
def test_constant_is_the_best_constant(name):
    problem = problem_of(name, 9, 2, 0.05)
    ones = torch.ones_like(problem.loss.targets)
    best = problem.loss.value(problem.constant() * ones)
    for seed in range(10):
        assert best <= problem.loss.value((problem.constant() + normal(problem.loss.n_outputs, seed=seed)) * ones)
    without = problem_of(name, 9, 2, 0.05, output_bias=False)
    assert float(without.constant().abs().max()) == 0.0


def test_dual_points_are_admitted():
    for name in LOSSES:
        problem = problem_of(name, 9, 2, 0.05)
        V = problem.dual_point(normal(*problem.loss.targets.shape, seed=1))
        assert float(V.sum(0).abs().max()) < 1e-14


def test_typical_activation():
    problem = problem_of("squared", 9, 3, 0.05)
    assert problem.typical_activation() == pytest.approx(math.sqrt(float((problem.X**2).sum()) / 9))
