"""Newton on the active set: derivatives are those of the objective, and what it reaches is a minimum."""

import numpy as np
import pytest
import torch
from convexnn_cases import normal, problem_of, random_neurons

import convexnn
from convexnn.neurons import Neurons
from convexnn.patterns import sample_patterns
from convexnn.problem import Problem
from convexnn.programs import ReLUProgram
from convexnn.solutions.active_set import ActiveSet, polish
from convexnn.solvers.answer import ProgramLimits
from convexnn.solvers.working_set import solve_working_set


def on_kinks(problem: Problem, *, k: int = 5, seed: int = 3) -> ActiveSet:
    """Random neurons, the first of them on the kinks of two samples, the second of one."""
    neurons = random_neurons(k, problem.n_inputs, problem.loss.n_outputs, seed=seed)
    W = neurons.W.clone()
    for j, rows in ((0, [0, 1]), (1, [2])):
        Q = torch.linalg.qr(problem.X[rows].T).Q
        W[j] -= Q @ (Q.T @ W[j])
    return ActiveSet.of(problem, Neurons(W, neurons.A, neurons.bias))


CASES = [("squared", 0, True), ("squared", 1, False), ("logistic", 0, True), ("softmax", 0, True)]


@pytest.mark.parametrize(("loss", "kind", "bias"), CASES)
def test_derivatives(loss, kind, bias):
    """Gradient, Hessian and Jacobian against differences of the objective, gradient and outputs of the network."""
    problem = problem_of(loss, 12, 4, 0.1, kind=kind, output_bias=bias)
    at = on_kinks(problem)
    assert int(at.kinks[0].sum()) == 2
    assert int(at.kinks[1].sum()) == 1
    assert at.objective == pytest.approx(problem.objective(at.neurons), rel=1e-12)
    torch.testing.assert_close(at.output, at.neurons(problem.X), rtol=1e-10, atol=1e-12)
    step = normal(len(at.gradient), seed=9)
    dZ, db = at.moves(step)

    def moved(t: float) -> ActiveSet:
        return ActiveSet(problem, at.Z + t * dZ, at.C, at.bias + t * db, at.D, at.kinks)

    t = 1e-6
    up, down = moved(t), moved(-t)
    slope = (problem.objective(up.neurons) - problem.objective(down.neurons)) / (2 * t)
    assert float(at.gradient @ step) == pytest.approx(slope, rel=1e-6)
    torch.testing.assert_close(at.hessian @ step, (up.gradient - down.gradient) / (2 * t), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(at.jacobian @ step, (up.output - down.output) / (2 * t), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(("loss", "kind", "bias"), [("squared", 0, True), ("logistic", 0, True), ("squared", 0, False)])
def test_polish_of_a_trained_network(loss, kind, bias):
    """Stationary to rounding, no worse, within 1e-7 of the bound, and no small move makes it better."""
    problem = problem_of(loss, 60, 3, 0.03, kind=kind, output_bias=bias)
    y = problem.loss.targets[:, 0]
    settings = {"hidden_bias": False, "output_bias": bias, "random_state": 0}
    result = convexnn.train(problem.X, y, loss=loss, weight_decay=0.03, tol=1e-5, **settings)
    start = convexnn.network.from_torch(result.network).balanced()
    at = polish(problem, start)
    assert at.residual < 1e-10
    assert at.objective <= result.objective + 1e-15
    assert at.objective - result.bound <= 1e-5 * at.objective
    assert at.condition > 0
    assert bool(at.kinks.any())
    assert float(at.excess()[0].max()) <= 1e-7
    generator = torch.Generator().manual_seed(0)
    for size in (1e-5, 1e-3):
        for _ in range(50):
            Z = at.Z + size * at.Z.norm() * torch.randn(at.Z.shape, generator=generator, dtype=torch.float64)
            assert problem.objective(ActiveSet(problem, Z, at.C, at.bias, at.D, at.kinks).neurons) >= at.objective


def test_kinks_that_are_no_minimum_are_left():
    """A network forced onto a kink of another sample comes back to the minimum that it was taken from."""
    problem = problem_of("squared", 40, 3, 0.05)
    y = problem.loss.targets[:, 0]
    result = convexnn.train(problem.X, y, weight_decay=0.05, tol=1e-6, hidden_bias=False, random_state=0)
    best = polish(problem, convexnn.network.from_torch(result.network).balanced())
    T = (best.Z @ problem.X.T).abs()
    W = best.neurons.W.clone()
    i = int(torch.where(best.kinks[0], torch.inf, T[0]).argmin())
    x = problem.X[i]
    W[0] -= (x @ W[0]) / (x @ x) * x
    forced = Neurons(W, best.neurons.A, best.bias)
    assert bool(ActiveSet.of(problem, forced).kinks[0, i])
    again = polish(problem, forced)
    assert not bool(again.kinks[0, i])
    assert again.objective == pytest.approx(best.objective, rel=1e-9)
    assert again.residual < 1e-10


@pytest.mark.parametrize("seed", range(4))
def test_excess_is_the_rate_at_which_the_objective_falls_off_a_kink(seed):
    """Kinks of both curvatures, by one-sided differences: the steeper fall, in |V_i c_j|, and its side."""
    problem = problem_of("squared", 12, 4, 0.1, output_bias=True)
    at = on_kinks(problem, seed=seed)
    pull, (excess, side) = at.C @ at.dual.T, at.excess()
    curvatures = set()
    for j in torch.nonzero(at.kinks.any(1))[:, 0].tolist():
        rows = torch.nonzero(at.kinks[j])[:, 0]
        for k, i in enumerate(rows.tolist()):
            away = torch.linalg.pinv(problem.X[rows])[:, k]  # off this kink, along the others
            rates = [rate(at, j, away), rate(at, j, -away)]
            expected = -min(rates) / abs(float(pull[j, i]))
            assert float(excess[j, i]) == pytest.approx(expected, rel=1e-4, abs=1e-4)
            assert bool(side[j, i]) == (rates[0] < rates[1])
            curvatures.add(bool(pull[j, i] > 0))
    assert float(excess[~at.kinks].max()) <= 0
    assert seed != 0 or curvatures == {True, False}


def rate(at: ActiveSet, j: int, way: torch.Tensor, t: float = 1e-7) -> float:
    """Of the objective, as neuron j moves off its kinks along a unit vector."""
    Z = at.Z.clone()
    Z[j] += t * way
    return (at.problem.objective(ActiveSet(at.problem, Z, at.C, at.bias, at.D, at.kinks).neurons) - at.objective) / t


@pytest.mark.parametrize("multiple", [2.0, -0.5])
def test_kinks_of_parallel_samples_are_one(multiple):
    """In the plane: a fall where one of the two directions has one, whichever way each kink bends by itself."""
    seen = set()
    for seed in range(40):
        problem = problem_of("squared", 8, 2, 0.1, seed=seed)
        X = problem.X.clone()
        X[1] = multiple * X[0]
        problem = Problem(X, problem.loss, 0.1, False)
        neurons, away = random_neurons(2, 2, 1, seed=seed), X[0] / X[0].norm()
        W = neurons.W.clone()
        W[0] -= (away @ W[0]) * away
        at = ActiveSet.of(problem, Neurons(W, neurons.A, neurons.bias))
        turns = (at.C @ at.dual.T)[0, :2]
        rates, (excess, side) = [rate(at, 0, away), rate(at, 0, -away)], at.excess()
        expected = -min(rates) / abs(float(turns @ X[:2].norm(dim=1)))
        assert excess[0, :2].tolist() == pytest.approx([expected] * 2, rel=1e-4, abs=1e-4)
        assert bool(side[0, 0]) == (rates[0] < rates[1])
        assert bool(side[0, 1]) == (bool(side[0, 0]) == (multiple > 0))
        seen.add((bool(turns.prod() > 0), min(rates) < 0))
    assert {(True, True), (True, False), (False, True)} <= seen


def test_multipliers_of_dependent_kinks_are_those_that_hold_a_neuron():
    """Three kinks in two dimensions: a fall where some direction has one, and it is that of steepest descent."""
    angles = torch.linspace(0, 2 * np.pi, 20001, dtype=torch.float64)
    seen = []
    for seed in range(200):
        problem = problem_of("squared", 8, 3, 0.1, seed=seed)
        X = problem.X.clone()
        X[2] = X[0] + 0.5 * X[1]
        problem = Problem(X, problem.loss, 0.1, False)
        neurons, Q = random_neurons(2, 3, 1, seed=seed), torch.linalg.qr(X[:2].T).Q
        W = neurons.W.clone()
        W[0] -= Q @ (Q.T @ W[0])
        at = ActiveSet.of(problem, Neurons(W, neurons.A, neurons.bias))
        turns = (at.C @ at.dual.T)[0, :3]
        if bool((turns > 0).any()):  # all convex
            continue
        ways = torch.stack([angles.cos(), angles.sin()], 1) @ Q.T
        rates = ways @ at.pulls[0] - torch.relu(ways @ X[:3].T) @ turns
        steepest, (excess, side) = ways[rates.argmin()], at.excess()
        assert rate(at, 0, steepest) == pytest.approx(float(rates.min()), rel=1e-3, abs=1e-5)
        seen.append(float(rates.min()) < -1e-9)
        assert bool(excess[0].max() > 1e-6) == seen[-1]
        if seen[-1]:
            crossed = (X[:3] @ steepest).abs() > 1e-2 * X[:3].norm(dim=1)
            assert float(excess[0].max()) == pytest.approx(-float(rates.min()) / 0.1, rel=2e-3)  # ways are a grid
            assert side[0, :3][crossed].tolist() == (X[:3] @ steepest > 0)[crossed].tolist()
    assert sum(seen) >= 3
    assert len(seen) - sum(seen) >= 3


def test_polish_ends_where_columns_take_few_values():
    """Kinks of many samples coincide: still stationary to rounding and held by multipliers, in few steps."""
    rng = np.random.default_rng(0)
    X = torch.from_numpy(
        np.column_stack([rng.integers(0, 2, (60, 4)), rng.integers(0, 3, 60), np.ones(60)]).astype(float)
    )
    y = rng.standard_normal(60)
    problem = Problem(X, convexnn.data.read_loss("squared", y, 60), 0.01, False)
    settings = {"hidden_bias": False, "output_bias": False, "random_state": 0}
    result = convexnn.train(X, y, weight_decay=0.01, tol=1e-6, **settings)
    at = polish(problem, convexnn.network.from_torch(result.network).balanced(), steps=40)
    assert max(len(torch.nonzero(row)) - (6 - N.shape[1]) for row, N in zip(at.kinks, at.bases, strict=True)) > 0
    assert at.residual < 1e-10
    assert float(at.excess()[0].max()) <= 1e-7
    assert result.bound <= at.objective <= result.objective + 1e-12


def test_a_kink_where_the_objective_falls_to_both_sides_is_left():
    """z = (z_1, 0) on the kink of (0, 1), whose target is 2, balanced by a sample that pulls it to the other side."""
    X = torch.tensor([[1.0, -0.5], [0.0, 1.0]], dtype=torch.float64)
    problem = Problem(X, convexnn.data.read_loss("squared", np.array([2.0, 2.0]), 2), 0.1, False)
    one = torch.ones(1, 1, dtype=torch.float64)
    at = polish(problem, Neurons(torch.tensor([[1.0, 0.0]], dtype=torch.float64), one, torch.zeros(1).double()))
    # F = (z_1 - z_2 / 2, z_2) off the kink: z = X^-1 (F), and J there by the normal equations of |z|.
    assert not bool(at.kinks.any())
    assert at.residual < 1e-10
    assert bool(at.D.all())
    angles = torch.linspace(-np.pi / 2, np.pi / 2, 4001, dtype=torch.float64)
    U = torch.stack([angles.cos(), angles.sin()], 1)
    P = torch.relu(U @ X.T)
    sizes = ((P @ problem.loss.targets[:, 0] / 2 - 0.1) / ((P**2).sum(1) / 2)).clamp(min=0)
    values = ((sizes[:, None] * P - 2.0) ** 2).sum(1) / 4 + 0.1 * sizes
    assert at.objective == pytest.approx(float(values.min()), rel=1e-6)


def test_cones_are_kept_and_the_optimum_is_that_of_the_program():
    """Over few random patterns: neurons stay in their cones, and the objective is that of an interior point."""
    problem = problem_of("squared", 30, 3, 0.005)
    patterns = sample_patterns(problem.X, 3, torch.Generator().manual_seed(1))
    program = ReLUProgram(problem, patterns)
    answer = solve_working_set(program, ProgramLimits(1e-8))
    U = answer.judgement.point.U[:, 0]
    S, P = torch.nonzero(U.norm(dim=-1) > 1e-4).T
    A = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)[S]
    cones = patterns.D[P]
    at = polish(problem, Neurons(U[S, P], A, answer.judgement.point.bias).balanced(), cones=cones)
    slack = (2.0 * cones - 1) * (at.Z @ problem.X.T)
    assert float(slack.min()) > -1e-12
    assert at.residual < 1e-10
    assert answer.judgement.dual.bound - 1e-12 <= at.objective <= answer.judgement.objective + 1e-12
    free = polish(problem, at.neurons)
    assert free.objective < at.objective - 1e-6  # without its cones it can do better: they do hold it
