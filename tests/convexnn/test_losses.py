"""Every loss obeys the laws of its value, its derivatives and its dual."""

import convexnn_laws as laws
import cvxpy as cp
import numpy as np
import pytest
import torch
from convexnn_cases import (
    CVXPY_LOSSES,
    LOSS_CASES,
    TARGETS,
    cvxpy_loss,
    inside_domain,
    loss_of,
    normal,
)
from scipy.optimize import minimize, minimize_scalar

from convexnn.losses import LOSSES, AbstractMarginLoss
from convexnn.losses.hinge import HingeLoss

every_loss = pytest.mark.parametrize(("name", "kind", "weighted"), LOSS_CASES)


def differentiable(name, kind, weighted):
    """The hinge has derivatives away from its kink only: its smoothing has them everywhere."""
    loss = loss_of(name, kind, bool(weighted))
    return [loss] if name != "hinge" else [loss.smoothed(0.3), loss.smoothed(1e-2)]


def test_every_loss_has_cases():
    assert set(TARGETS) == set(LOSSES) == set(CVXPY_LOSSES)


@every_loss
def test_derivatives(name, kind, weighted):
    for loss in differentiable(name, kind, weighted):
        for seed in range(3):
            laws.gradient_is_the_derivative(loss, seed)
            laws.hessian_product_is_the_derivative(loss, seed)
            laws.quadratic_form_is_the_hessian(loss, seed)
            laws.summed_hessians_are_sums(loss, seed)
            laws.root_is_the_root_of_the_hessian(loss, seed)


@every_loss
@pytest.mark.parametrize("step", [1e-3, 1.0, 100.0])
def test_prox(name, kind, weighted, step):
    loss = loss_of(name, kind, bool(weighted))
    for seed in range(3):
        laws.prox_minimises(loss, step, seed)


def test_gradient_of_the_hinge_away_from_its_kink():
    loss = loss_of("hinge")
    for seed in range(3):
        laws.gradient_is_the_derivative(loss, seed)


@every_loss
def test_convex(name, kind, weighted):
    for loss in (loss_of(name, kind, bool(weighted)), *differentiable(name, kind, weighted)):
        laws.is_convex(loss, 0)


@every_loss
def test_value_is_the_formula(name, kind, weighted):
    loss = loss_of(name, kind, bool(weighted))
    F = 2 * normal(*loss.targets.shape, seed=1)
    expected = cvxpy_loss(loss, cp.Constant(F.numpy())).value
    assert float(loss.value(F)) == pytest.approx(float(expected), rel=1e-12)


@every_loss
def test_fenchel_young(name, kind, weighted):
    loss = loss_of(name, kind, bool(weighted))
    for seed in range(4):
        laws.weak_duality(loss, inside_domain(loss, seed), seed + 10)
        laws.weak_duality(loss, 0.3 * inside_domain(loss, seed), seed + 10)
        laws.fenchel_equality(loss, seed)


@every_loss
def test_dual_value_is_the_conjugate(name, kind, weighted):
    """D(V) = min over F of L(F) + <V, F>, by cvxpy."""
    loss = loss_of(name, kind, bool(weighted), n=4)
    V = inside_domain(loss, 3)
    F = cp.Variable(V.shape)
    program = cp.Problem(cp.Minimize(cvxpy_loss(loss, F) + cp.sum(cp.multiply(V.numpy(), F))))
    program.solve(solver=cp.CLARABEL)
    assert float(loss.dual_value(V)) == pytest.approx(float(program.value), abs=1e-7)


@every_loss
@pytest.mark.parametrize("limit", [0.02, 0.7, 1.0, 5.0, 1e300])
def test_best_scale(name, kind, weighted, limit):
    """No other s in [0, limit] with sV in the domain has a larger D(sV)."""
    loss = loss_of(name, kind, bool(weighted))
    for seed in range(3):
        V = inside_domain(loss, seed)
        s = loss.best_scale(V, limit)
        reach = min(limit, 1.0) if name == "softmax" else limit
        if isinstance(loss, AbstractMarginLoss):
            reach = min(limit, 1 / float(loss.box_coordinates(V).max()))
        assert 0 <= s <= reach * (1 + 1e-12)
        trial = minimize_scalar(
            lambda t, V=V: -float(loss.dual_value(t * V)), bounds=(0, min(reach, 1e3)), method="bounded"
        )
        assert float(loss.dual_value(s * V)) >= -trial.fun - 1e-12


@every_loss
def test_best_scale_of_a_bad_direction(name, kind, weighted):
    """Where D falls along V from the start, the zero vector is best: D(0) is the bound."""
    loss = loss_of(name, kind, bool(weighted))
    assert loss.best_scale(torch.zeros_like(loss.targets), 1.0) >= 0.0
    if name == "squared":
        assert loss.best_scale(-loss.weights[:, None] * loss.targets, 1.0) == 0.0


@every_loss
def test_balance(name, kind, weighted):
    loss = loss_of(name, kind, bool(weighted))
    for seed in range(5):
        V = inside_domain(loss, seed)
        balanced = loss.balance(V)
        assert float(balanced.sum(0).abs().max()) <= 1e-14
        laws.weak_duality(loss, balanced, seed)
        torch.testing.assert_close(loss.balance(balanced), balanced, rtol=0, atol=1e-13)
        # Near 1'V = 0 the point hardly moves.
        nudged = loss.balance(balanced * (1 - 1e-6 * torch.rand(len(V), 1, dtype=V.dtype)))
        torch.testing.assert_close(nudged, balanced, rtol=0, atol=2e-5)


@every_loss
def test_balance_of_extreme_points(name, kind, weighted):
    loss = loss_of(name, kind, bool(weighted))
    for V in (torch.zeros_like(loss.targets), loss.negative_gradient(1e3 * loss.targets)):
        balanced = loss.balance(V)
        assert bool(torch.isfinite(balanced).all())
        assert float(balanced.sum(0).abs().max()) <= 1e-13 * max(1.0, float(V.abs().max()))
        assert bool(torch.isfinite(loss.dual_value(balanced)))


def test_balance_keeps_margin_losses_in_the_box():
    for name in ("logistic", "hinge"):
        loss = loss_of(name, weighted=True)
        q = loss.box_coordinates(loss.balance(inside_domain(loss, 5)))
        assert bool(((q >= 0) & (q <= 1)).all())


def test_balance_keeps_softmax_in_the_simplex():
    for kind in range(3):
        loss = loss_of("softmax", kind, weighted=True)
        p = loss.targets - loss.balance(inside_domain(loss, 5)) / loss.weights[:, None]
        assert float(p.min()) >= -1e-15
        torch.testing.assert_close(p.sum(1), torch.ones(len(p), dtype=p.dtype), rtol=1e-13, atol=0)


@every_loss
def test_optimal_bias(name, kind, weighted):
    loss = loss_of(name, kind, bool(weighted))
    for scale in (0.0, 1.0, 5.0):
        F = scale * normal(*loss.targets.shape, seed=2)
        b = loss.optimal_bias(F)
        best = minimize(lambda c, F=F: float(loss.value(F + torch.as_tensor(c))), np.zeros(F.shape[1]), tol=1e-12)
        polished = minimize(
            lambda c, F=F: float(loss.value(F + torch.as_tensor(c))), best.x, method="Nelder-Mead", tol=1e-12
        )
        assert float(loss.value(F + b)) <= min(best.fun, polished.fun) + 1e-12
        if name != "hinge":
            assert float(loss.negative_gradient(F + b).sum(0).abs().max()) <= 1e-7


@pytest.mark.parametrize("name", LOSSES)
def test_weights_equal_repeated_samples(name):
    times = torch.tensor([1, 3, 2, 1, 4, 1])
    targets = loss_of(name, n=6).targets
    weights = times.double() / times.sum()
    weighted = LOSSES[name](targets, weights)
    repeated = LOSSES[name](targets.repeat_interleave(times, 0), torch.full((12,), 1 / 12, dtype=torch.float64))
    F = normal(*targets.shape, seed=4)
    expanded = F.repeat_interleave(times, 0)
    torch.testing.assert_close(weighted.value(F), repeated.value(expanded), rtol=1e-13, atol=0)
    V = weighted.negative_gradient(F)
    summed = (V / times[:, None]).repeat_interleave(times, 0)
    torch.testing.assert_close(repeated.negative_gradient(expanded), summed, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(weighted.dual_value(V), repeated.dual_value(summed), rtol=1e-12, atol=1e-15)
    b = weighted.optimal_bias(F)
    torch.testing.assert_close(repeated.value(expanded + b), weighted.value(F + b), rtol=1e-12, atol=0)


@every_loss
def test_extreme_outputs_are_finite(name, kind, weighted):
    loss = loss_of(name, kind, bool(weighted)).smoothed(1e-3)
    for scale in (1e3, 1e6):
        F = scale * normal(*loss.targets.shape, seed=6)
        V = loss.negative_gradient(F)
        for value in (loss.value(F), V, loss.curvature(F), loss.dual_value(V)):
            assert bool(torch.isfinite(value).all())
        assert np.isfinite(loss.best_scale(V, 1.0))
        assert bool(torch.isfinite(loss.optimal_bias(F)).all())


@pytest.mark.parametrize("mu", [1.0, 0.1, 1e-3])
def test_smoothed_hinge_stays_within_half_its_width(mu):
    loss = loss_of("hinge", weighted=True)
    smooth = loss.smoothed(mu)
    for seed in range(5):
        F = normal(9, 1, seed=seed)
        F[:3] = loss.targets[:3]  # exactly on the kink, where the error is largest
        difference = float(smooth.value(F) - loss.value(F))
        assert 0 < difference <= mu / 2
        assert smooth.smoothing_error(F) == pytest.approx(difference, rel=1e-9)
        q = loss.box_coordinates(smooth.negative_gradient(F))
        assert bool(((q >= 0) & (q <= 1)).all())
    assert float(smooth.value(loss.targets)) == pytest.approx(mu / 2)


def test_smoothing_leaves_smooth_losses_alone():
    for name in set(LOSSES) - {"hinge"}:
        loss = loss_of(name)
        assert loss.smoothed(0.1) is loss
        assert loss.initial_dual(loss.targets) is None
        assert loss.smoothing_error(loss.targets) == 0.0


def test_dual_variable_of_the_hinge():
    """At w = t/q the primal-dual curvature is the second derivative, and a zero step keeps w."""
    smooth = loss_of("hinge").smoothed(0.2)
    F = normal(9, 1, seed=1)
    w = smooth.initial_dual(F)
    torch.testing.assert_close(smooth.curvature(F, w), smooth.curvature(F))
    torch.testing.assert_close(smooth.advance_dual(F, w, torch.zeros_like(F)), w)
    step = 1e-6 * normal(9, 1, seed=2)
    torch.testing.assert_close(smooth.advance_dual(F, w, step), smooth.initial_dual(F + step), rtol=0, atol=1e-9)
    assert isinstance(smooth, HingeLoss)


def test_single_precision_agrees():
    for name in LOSSES:
        loss = loss_of(name)
        single = LOSSES[name](loss.targets.float(), loss.weights.float())
        F = normal(*loss.targets.shape, seed=3)
        assert float(single.value(F.float())) == pytest.approx(float(loss.value(F)), rel=1e-5)
        torch.testing.assert_close(
            single.negative_gradient(F.float()).double(), loss.negative_gradient(F), atol=1e-6, rtol=0
        )
