"""The judge: weak duality for every dual point, and bounds that are reached at the optimum."""

import numpy as np
import pytest
import torch
from convexnn_cases import inside_domain, normal, problem_of, random_neurons, seeded
from convexnn_references import circle_maximum

from convexnn.ascent import evaluate
from convexnn.duality import dual_bound, dual_point, judge, largest_maximum
from convexnn.losses import LOSSES
from convexnn.neurons import Neurons
from convexnn.solvers.sliding import ROUND
from convexnn.training import train

every_problem = pytest.mark.parametrize(("name", "output_bias"), [(n, b) for n in LOSSES for b in (False, True)])


def networks(problem, count=30):
    """Random networks of many sizes, and multiples of the same."""
    for seed in range(count):
        neurons = random_neurons(1 + seed % 7, problem.n_inputs, problem.loss.n_outputs, seed=seed)
        scale = 0.02 * (1 + seed) ** 1.2
        bias = scale * neurons.bias if problem.output_bias else 0 * neurons.bias
        yield Neurons(scale * neurons.W, neurons.A, bias)


@every_problem
@pytest.mark.parametrize("weight_decay", [1e-3, 0.1])
def test_weak_duality(name, output_bias, weight_decay):
    """With M from a dense grid the bound of any dual point is below the objective of any network."""
    problem = problem_of(name, 10, 2, weight_decay, output_bias=output_bias)
    objectives = [problem.objective(neurons.balanced()) for neurons in networks(problem)]
    for seed in range(8):
        V = problem.admit(inside_domain(problem.loss, seed))
        bound = dual_bound(problem, V, circle_maximum(problem.X.numpy(), V.numpy(), 20_000))
        assert bound <= min(objectives) + 1e-12


@every_problem
def test_weak_duality_of_trained_networks(name, output_bias):
    """Also at the dual points of good networks, where the bound nearly meets their objective."""
    problem = problem_of(name, 10, 2, 0.05, output_bias=output_bias)
    y = problem.loss.targets.argmax(1) if name == "softmax" else problem.loss.targets
    options = {"loss": name, "weight_decay": 0.05, "hidden_bias": False, "output_bias": output_bias, "tol": 1e-4}
    result = train(problem.X, y, random_state=0, **options)
    with torch.no_grad():
        F = result.network(problem.X)
    V = problem.dual_point(F)
    bound = dual_bound(problem, V, circle_maximum(problem.X.numpy(), V.numpy()))
    assert bound <= result.objective
    assert result.bound <= result.objective
    if name != "hinge":  # whose gradient at a kink is no good dual point
        assert bound >= result.objective * (1 - 0.05)


@every_problem
def test_scale_is_the_best_one_allowed(name, output_bias):
    problem = problem_of(name, 10, 2, 0.05, output_bias=output_bias)
    V = problem.admit(inside_domain(problem.loss, 1))
    M = circle_maximum(problem.X.numpy(), V.numpy(), 20_000)
    bound = dual_bound(problem, V, M)
    for s in np.linspace(0, min(1.0, 0.05 / M), 50):
        assert float(problem.loss.dual_value(float(s) * V)) <= bound + 1e-12


def test_larger_maxima_give_smaller_bounds():
    problem = problem_of("squared", 10, 2, 0.05)
    V = problem.admit(inside_domain(problem.loss, 1))
    bounds = [dual_bound(problem, V, M) for M in (0.0, 0.01, 0.1, 1.0, 100.0)]
    assert bounds == sorted(bounds, reverse=True)
    assert bounds[-1] >= 0.0


@every_problem
def test_judge_agrees_with_the_grid(name, output_bias):
    problem = problem_of(name, 10, 2, 0.05, output_bias=output_bias)
    neurons = random_neurons(4, 2, problem.loss.n_outputs, seed=0)
    V = problem.dual_point(neurons(problem.X))
    judgement = judge(problem, V, neurons, effort=ROUND, generator=seeded(0))
    expected = dual_bound(problem, V, circle_maximum(problem.X.numpy(), V.numpy()))
    assert expected * (1 - 1e-9) <= judgement.dual.bound <= expected * (1 + 2e-5)  # a climb ends within 1e-5
    found = evaluate(problem.X, V, judgement.candidates.U).best()
    assert judgement.dual.bound == pytest.approx(dual_bound(problem, V, found), rel=1e-12)
    # The dual point is feasible and has the value that is claimed.
    assert circle_maximum(problem.X.numpy(), judgement.dual.V.numpy()) <= problem.weight_decay * (1 + 2e-5)
    assert float(problem.loss.dual_value(judgement.dual.V)) == judgement.dual.bound
    assert judgement.dual.bound == pytest.approx(dual_bound(problem, judgement.dual.V, problem.weight_decay), rel=1e-12)


def test_judge_sees_the_networks_own_neurons():
    problem = problem_of("squared", 30, 8, 0.05)
    neurons = random_neurons(40, 8, seed=0)
    V = problem.dual_point(neurons(problem.X))
    own = dual_bound(problem, V, evaluate(problem.X, V, neurons.W).best())
    assert judge(problem, V, neurons, effort=ROUND, generator=seeded(0)).dual.bound <= own


@every_problem
def test_largest_maximum(name, output_bias):
    """A maximum just below it keeps the bound above the target, one just above does not."""
    problem = problem_of(name, 10, 2, 0.05, output_bias=output_bias)
    V = problem.admit(inside_domain(problem.loss, 1))
    dual = dual_point(problem, V, circle_maximum(problem.X.numpy(), V.numpy(), 20_000))
    for share in (0.5, 0.99):
        target = share * dual.bound
        M = largest_maximum(problem, dual, target)
        assert dual_bound(problem, dual.V, M * (1 - 1e-6)) >= target
        assert float(problem.loss.dual_value(0.05 / (M * (1 + 1e-6)) * dual.V)) <= target


def test_zero_dual_point_bounds_by_nothing():
    for name in LOSSES:
        problem = problem_of(name, 9, 2, 0.1)
        V = torch.zeros_like(problem.loss.targets)
        assert dual_bound(problem, V, 0.0) == pytest.approx(0.0, abs=1e-12)
        assert dual_bound(problem, V, 1.0) == pytest.approx(0.0, abs=1e-12)


def test_reached_without_regularity_of_the_data():
    """Perturbing the dual point never lifts the bound above a trained objective."""
    problem = problem_of("squared", 10, 2, 0.05, output_bias=False)
    result = train(problem.X, problem.loss.targets, weight_decay=0.05, hidden_bias=False, output_bias=False, tol=1e-6)
    with torch.no_grad():
        V = problem.dual_point(result.network(problem.X))
    for seed in range(20):
        moved = V + 0.01 * V.abs().max() * normal(*V.shape, seed=seed)
        bound = dual_bound(problem, moved, circle_maximum(problem.X.numpy(), moved.numpy(), 20_000))
        assert bound <= result.objective
