"""Laws that every member obeys. They raise `AssertionError` where a member does not."""

import torch
from convexnn_cases import normal
from torch import Tensor

from convexnn.losses import AbstractLoss
from convexnn.neurons import Neurons


def directional(function, F: Tensor, dF: Tensor, step: float = 1e-5) -> Tensor:
    """Central difference of a function of F along dF."""
    return (function(F + step * dF) - function(F - step * dF)) / (2 * step)


def gradient_is_the_derivative(loss: AbstractLoss, seed: int) -> None:
    F, dF = normal(*loss.targets.shape, seed=seed), normal(*loss.targets.shape, seed=seed + 1)
    expected = directional(loss.value, F, dF)
    torch.testing.assert_close(-(loss.negative_gradient(F) * dF).sum(), expected, rtol=1e-6, atol=1e-9)


def hessian_product_is_the_derivative(loss: AbstractLoss, seed: int) -> None:
    F, dF = normal(*loss.targets.shape, seed=seed), normal(*loss.targets.shape, seed=seed + 1)
    expected = -directional(loss.negative_gradient, F, dF)
    torch.testing.assert_close(loss.hessian_product(loss.curvature(F), dF), expected, rtol=1e-6, atol=1e-9)


def quadratic_form_is_the_hessian(loss: AbstractLoss, seed: int) -> None:
    """Row j of the form is dF'H_i dF with dF = a_j at every sample."""
    F, A = normal(*loss.targets.shape, seed=seed), normal(4, loss.n_outputs, seed=seed + 1)
    curvature = loss.curvature(F)
    form = loss.quadratic_form(curvature, A)
    for j, row in enumerate(A):
        spread = row.expand_as(F)
        expected = (spread * loss.hessian_product(curvature, spread)).sum(1)
        torch.testing.assert_close(form[j], expected, rtol=1e-10, atol=1e-15)
    assert float(form.max()) <= float((loss.weights.max() * (A**2).sum(1)).max()) * loss.largest_curvature * (1 + 1e-9)


def root_is_the_root_of_the_hessian(loss: AbstractLoss, seed: int) -> None:
    F, dF = normal(*loss.targets.shape, seed=seed), normal(*loss.targets.shape, seed=seed + 1)
    curvature = loss.curvature(F)
    root = loss.curvature_root(curvature)
    full = torch.diag_embed(root) if root.ndim == 2 else root
    image = torch.einsum("nij,nkj,nk->ni", full, full, dF)
    torch.testing.assert_close(image, loss.hessian_product(curvature, dF), rtol=1e-9, atol=1e-14)


def prox_minimises(loss: AbstractLoss, step: float, seed: int) -> None:
    """No other point has a smaller step * L(F) + ||F - Z||^2 / 2, near or far."""
    Z = 3 * normal(*loss.targets.shape, seed=seed)
    F = loss.prox(Z, step)

    def value(G: Tensor) -> float:
        return float(step * loss.value(G) + 0.5 * ((G - Z) ** 2).sum())

    for k in range(20):
        for size in (1e-4, 1e-2, 1.0):
            other = F + size * normal(*F.shape, seed=seed + k)
            assert value(F) <= value(other) + 1e-12 * max(1.0, value(F))


def summed_hessians_are_sums(loss: AbstractLoss, seed: int) -> None:
    """Row k of entry j is sum_i S_ji H_i applied to the k-th unit vector."""
    F, S = normal(*loss.targets.shape, seed=seed), normal(3, len(loss.targets), seed=seed + 1).abs()
    curvature = loss.curvature(F)
    summed = loss.summed_hessians(curvature, S)
    batch = torch.eye(loss.n_outputs, dtype=F.dtype)[:, None, :].expand(-1, len(F), -1)
    columns = loss.hessian_product(curvature, batch)
    torch.testing.assert_close(summed, torch.einsum("ji,kil->jkl", S, columns), rtol=1e-10, atol=1e-15)


def is_convex(loss: AbstractLoss, seed: int) -> None:
    for k in range(10):
        F, G = (3 * normal(*loss.targets.shape, seed=seed + 2 * k + i) for i in (0, 1))
        for share in (0.1, 0.5, 0.8):
            chord = share * loss.value(F) + (1 - share) * loss.value(G)
            assert float(loss.value(share * F + (1 - share) * G)) <= float(chord) + 1e-14


def weak_duality(loss: AbstractLoss, V: Tensor, seed: int) -> None:
    """D(V) <= L(F) + <V, F> for every F."""
    dual = float(loss.dual_value(V))
    for k in range(20):
        F = (0.1 + k) * normal(*loss.targets.shape, seed=seed + k)
        assert dual <= float(loss.value(F) + (V * F).sum()) + 1e-13


def fenchel_equality(loss: AbstractLoss, seed: int) -> None:
    """D(V) = L(F) + <V, F> at V = -grad L(F)."""
    F = 2 * normal(*loss.targets.shape, seed=seed)
    V = loss.negative_gradient(F)
    torch.testing.assert_close(loss.dual_value(V), loss.value(F) + (V * F).sum(), rtol=1e-12, atol=1e-13)


def same_function(first: Neurons, second: Neurons, X: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(first(X), second(X), rtol=tolerance, atol=tolerance)
