"""The convex step and the slides: they descend, and they end where no small change helps."""

from dataclasses import replace

import cvxpy as cp
import pytest
import torch
from convexnn_cases import cvxpy_loss, normal, problem_of, random_neurons
from convexnn_references import clarabel

from convexnn.ascent import ColumnPairs
from convexnn.losses import LOSSES
from convexnn.solvers import slide_scalar as scalar
from convexnn.solvers import slide_vector as vector
from convexnn.solvers.amplitudes import group_amplitudes, signed_amplitudes
from convexnn.solvers.slide_scalar import slide_scalar
from convexnn.solvers.slide_vector import slide_vector
from convexnn.solvers.smoothing import Activations, Levels, dual_slope

FINE = Levels(1e-1, 1e-8)
SCALAR = ["squared", "logistic", "hinge"]
biases = pytest.mark.parametrize("output_bias", [False, True])


@biases
@pytest.mark.parametrize("name", ["squared", "logistic"])
def test_signed_amplitudes_solve_the_lasso(name, output_bias):
    problem = problem_of(name, 12, 3, 0.02, output_bias=output_bias)
    features = torch.relu(normal(12, 8, seed=1)) * torch.sign(normal(1, 8, seed=2))
    bias = torch.zeros(1, dtype=torch.float64) if output_bias else None
    a, b = signed_amplitudes(features, problem.loss, 0.02, torch.zeros(8, dtype=torch.float64), bias)
    assert (b is None) is not output_bias
    assert float(a.min()) >= 0.0
    F = features @ a[:, None] + (0 if b is None else b)
    x, c = cp.Variable((8, 1), nonneg=True), cp.Variable()
    output = features.numpy() @ x + (c if output_bias else 0)
    expected = clarabel(cp.Problem(cp.Minimize(cvxpy_loss(problem.loss, output) + 0.02 * cp.sum(x))))
    assert float(problem.loss.value(F) + 0.02 * a.sum()) == pytest.approx(expected, rel=1e-6)


@biases
@pytest.mark.parametrize("name", ["squared", "softmax"])
def test_group_amplitudes_solve_the_group_lasso(name, output_bias):
    problem = problem_of(name, 12, 3, 0.02, kind=1, output_bias=output_bias)
    K, features = problem.loss.n_outputs, torch.relu(normal(12, 6, seed=1))
    bias = torch.zeros(K, dtype=torch.float64) if output_bias else None
    start = torch.zeros(6, K, dtype=torch.float64)
    A, b = group_amplitudes(features, problem.loss, 0.02, start, bias, max_steps=3000)
    F = features @ A + (0 if b is None else b)
    B, c = cp.Variable((6, K)), cp.Variable((1, K))
    output = features.numpy() @ B
    output = output + torch.ones(12, 1).numpy() @ c if output_bias else output
    mass = cp.sum(cp.norm(B, 2, axis=1))
    expected = clarabel(cp.Problem(cp.Minimize(cvxpy_loss(problem.loss, output) + 0.02 * mass)))
    assert float(problem.loss.value(F) + 0.02 * A.norm(dim=1).sum()) == pytest.approx(expected, rel=1e-6)


def slid(neurons, problem, pairs=True):
    slide = slide_scalar if neurons.n_outputs == 1 else slide_vector
    return slide(problem, neurons, FINE, pairs=ColumnPairs.fit(problem.X) if pairs else None, max_steps=300)


def started(problem, seed):
    neurons = random_neurons(5, problem.n_inputs, problem.loss.n_outputs, seed=seed).balanced()
    bias = neurons.bias if problem.output_bias else 0 * neurons.bias
    return type(neurons)(0.5 * neurons.W, 0.5 * neurons.A, bias)


@biases
@pytest.mark.parametrize("pairs", [True, False])
@pytest.mark.parametrize("name", LOSSES)
def test_slides_descend_to_a_stationary_point(name, pairs, output_bias):
    problem = problem_of(name, 14, 3, 0.02, output_bias=output_bias).smoothed(0.3)
    for seed in range(2 if pairs else 1):
        start = started(problem, seed)
        end, V = slid(start, problem, pairs)
        assert len(end) == len(start)
        if not output_bias:
            assert float(end.bias.abs().max()) == 0.0
        else:
            assert float(V.sum(0).abs().max()) < 1e-13
        value = problem.objective(end.balanced())
        assert value < problem.objective(start)
        # No small random change of all weights lowers the objective by more than the smoothing allows.
        for k in range(20):
            step = 1e-5
            near = type(end)(
                end.W + step * normal(*end.W.shape, seed=100 + k),
                end.A + step * normal(*end.A.shape, seed=200 + k),
                end.bias + step * output_bias * normal(*end.bias.shape, seed=300 + k),
            )
            assert problem.objective(near.balanced()) >= value - 1e-6


@pytest.mark.parametrize("name", SCALAR)
def test_both_slides_descend_on_one_output(name):
    problem = problem_of(name, 14, 3, 0.02).smoothed(0.3)
    start = started(problem, 4)
    for slide in (slide_scalar, slide_vector):
        end, _ = slide(problem, start, FINE, pairs=None, max_steps=300)
        assert problem.objective(end.balanced()) < 0.9 * problem.objective(start)


def test_a_deadline_in_the_past_ends_a_slide_at_once():
    problem = problem_of("squared", 14, 3, 0.02)
    start = started(problem, 0)
    end, _ = slide_scalar(problem, start, FINE, pairs=None, deadline=0.0)
    assert problem.objective(end.balanced()) < 1.1 * problem.objective(start)


def test_levels():
    levels, level, seen = Levels(1e-1, 1e-3), 1e-1, []
    while level is not None:
        seen.append(level)
        level = levels.next(level, 1.0)
    assert seen == pytest.approx([1e-1, 1e-2, 1e-3])
    assert Levels(1e-1, 1e-8, enough=1e-5).next(1e-2, 1e-6) is None


def test_smoothed_activations():
    T = normal(3, 20, seed=0)
    act = Activations.at(T, torch.tensor([[1e-2], [0.5], [1e-8]], dtype=torch.float64))
    error = 0.5 * act.doubled() - torch.relu(T)
    torch.testing.assert_close(act.smoothing_error(), error)
    assert float(error.min()) >= 0.0
    assert bool((error <= 0.5 * act.E2.sqrt() + 1e-15).all())
    # With W = R the dual slope is the second derivative of sqrt(t^2 + E^2).
    R = act.T / act.Q
    torch.testing.assert_close(dual_slope(R, R, act.Q), act.E2 / act.Q**3)


def second_order(name, k, weight_decay):
    """Hessian product and preconditioner of a slide of k neurons, where the smoothing is too fine to matter."""
    problem = problem_of(name, 25, 4, weight_decay, kind=1 if name == "squared" else 0, output_bias=False)
    neurons = random_neurons(k, 4, 3, seed=3)
    T = neurons.W @ problem.X.T
    setting = vector._setting(problem, (neurons, T), 1e-7)
    point = vector._evaluate(setting, neurons, T)
    slopes, V = 0.5 * (1 + point.act.T / point.act.Q), problem.loss.negative_gradient(point.F)
    model = vector._model(problem, point, slopes, torch.zeros_like(slopes), V)

    def gradient(W, A):
        at = vector._evaluate(setting, replace(neurons, W=W, A=A), W @ problem.X.T)
        V = problem.loss.negative_gradient(at.F)
        pull = (0.5 * (1 + at.act.T / at.act.Q)) * (A @ V.T)
        return weight_decay * W - pull @ problem.X, weight_decay * A - at.H @ V

    product = vector._hessian(problem, model)
    return neurons, gradient, product, vector._preconditioner(problem, model, ColumnPairs.fit(problem.X))


@pytest.mark.parametrize("name", ["squared", "softmax"])
def test_hessian_of_a_slide_is_the_derivative_of_its_gradient(name):
    neurons, gradient, product, _ = second_order(name, 3, 0.05)
    P, q, step = normal(3, 4, seed=5), normal(3, 3, seed=6), 1e-6
    ahead = gradient(neurons.W + step * P, neurons.A + step * q)
    behind = gradient(neurons.W - step * P, neurons.A - step * q)
    found = product(P.float(), q.float(), torch.zeros(3))
    for new, old, mine in zip(ahead, behind, found[:2], strict=True):
        torch.testing.assert_close(mine.double(), (new - old) / (2 * step), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["squared", "softmax"])
def test_preconditioner_of_one_neuron_is_the_inverse_of_its_hessian(name):
    _, _, product, precondition = second_order(name, 1, 3.0)
    r = (normal(1, 4, seed=7).float(), normal(1, 3, seed=8).float(), torch.zeros(3))
    back = product(*precondition(r))
    torch.testing.assert_close(back[0], r[0], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(back[1], r[1], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["squared", "logistic"])
@pytest.mark.parametrize("along", [0.0, scalar._ALONG])
def test_both_factorisations_invert_the_matrix_of_a_scalar_slide(name, along):
    """blockdiag(B) + J'J, J = [a_j sqrt(h) x']: built densely here, with the curvature that is added along neurons."""
    problem = problem_of(name, 9, 3, 0.05)
    X, Z = problem.X, normal(5, 3, seed=2)
    setting = scalar._setting(problem, torch.sign(normal(5, 1, seed=3)), (Z, Z @ X.T), 0.3)
    point = scalar._evaluate(setting, Z, torch.zeros(1, dtype=torch.float64), Z @ X.T)
    active, kinks, h = normal(5, 9, seed=4), normal(5, 9, seed=5).abs(), normal(1, 9, seed=6).abs()[0]
    blocks = scalar._blocks(X, kinks, point, 0.05, ColumnPairs.fit(X))
    J = (active * h.sqrt()).T[:, :, None] * X[:, None, :]
    H = J.reshape(9, -1).T @ J.reshape(9, -1)
    unit = Z / point.norms[:, None]
    for j in range(5):
        own = slice(3 * j, 3 * j + 3)
        H[own, own] += (X * kinks[j][:, None]).T @ X + 0.05 / point.norms[j] * (
            torch.eye(3) - (1 - along) * torch.outer(unit[j], unit[j])
        )
    factorise = scalar._by_samples if along else scalar._by_unknowns
    inverse = factorise(X, (active, h), blocks.clone(), point, 0.05)
    r = normal(5, 3, seed=7)
    back = H @ inverse(r.float()).double().reshape(-1)
    torch.testing.assert_close(back.reshape(5, 3), r, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("largest", [1.0, 1e9])  # of a curvature: with the larger one single precision is not enough
@pytest.mark.parametrize("with_pairs", [True, False])
def test_blocks_of_the_first_layer_are_inverted(largest, with_pairs):
    """Against the dense inverse in double precision."""
    X, wd = normal(30, 4, seed=0), 1e-3
    curvature = torch.rand((3, 30), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    curvature[:, 0] *= largest
    solve = vector._block_inverse(X, curvature, wd, ColumnPairs.fit(X) if with_pairs else None)
    eye = torch.eye(4).expand(3, 4, 4)
    inverse = solve(eye.contiguous()).double()
    blocks = torch.stack([X.T @ (row[:, None] * X) for row in curvature]) + wd * torch.eye(4, dtype=torch.float64)
    if not with_pairs:
        blocks = torch.diag_embed(blocks.diagonal(dim1=1, dim2=2))
    torch.testing.assert_close(inverse, torch.linalg.inv(blocks), rtol=1e-4, atol=1e-5)


def test_pairs_in_single_precision_are_the_same_products():
    X, H = normal(20, 5, seed=0), normal(3, 20, seed=1)
    pairs = ColumnPairs.fit(X)
    single = pairs.single.hessians(H.float())
    exact = torch.stack([X.T @ (row[:, None] * X) for row in H])
    assert single.dtype is torch.float32
    torch.testing.assert_close(single.double(), exact, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(pairs.hessians(H), exact)
