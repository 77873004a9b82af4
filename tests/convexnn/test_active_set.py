"""Newton on the active set: derivatives are those of the objective, and what it reaches is a minimum."""

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
