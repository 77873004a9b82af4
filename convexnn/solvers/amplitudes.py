"""The convex step: amplitudes of fixed neurons, min L(Phi A + b) + weight_decay sum_j ||A_j||."""

import torch
from jaxtyping import Float
from torch import Tensor

from convexnn.losses import AbstractLoss
from convexnn.nonnegative import nonnegative_minimiser

_RIDGE = 1e-9  # relative to the mean curvature; raised where a Newton step fails


def signed_amplitudes(
    features: Float[Tensor, "n k"],
    loss: AbstractLoss,
    weight_decay: float,
    amplitudes: Float[Tensor, " k"],
    bias: Float[Tensor, "1"] | None,
    max_steps: int = 60,
) -> tuple[Float[Tensor, " k"], Float[Tensor, "1"] | None]:
    """Non-negative amplitudes of features that carry their sign: Newton's method over the non-negative orthant."""
    a, b = amplitudes.clamp(min=0.0), bias
    value = _value(features, loss, weight_decay, a, b)
    dual, ridge = loss.initial_dual(_output(features, a, b)), _RIDGE
    for _ in range(max_steps):
        F = _output(features, a, b)
        V = loss.negative_gradient(F)[:, 0]
        g = weight_decay - features.T @ V
        if _is_optimal(a, b, g, V, weight_decay):
            break
        open_ = torch.nonzero((a > 0) | (g < weight_decay))[:, 0]  # the others point away from the residual
        h = loss.curvature(F, dual)[:, 0]
        step, b_step = _newton_step(features[:, open_], h, (a[open_], g[open_], b), V, ridge)
        decrement = -float(g[open_] @ step) + (0.0 if b_step is None else float(V.sum() * b_step))
        if decrement < 1e-13 * abs(value) and ridge == _RIDGE:
            break
        moved = _search(features, loss, weight_decay, (a, b, value), (open_, step, b_step, decrement))
        if moved is None:
            dual, ridge = loss.initial_dual(F), 1e3 * ridge
            if ridge > 1.0:
                break
            continue
        a, b, value = moved
        dual, ridge = loss.advance_dual(F, dual, _output(features, a, b) - F), max(_RIDGE, 0.1 * ridge)
    return a, b


def _is_optimal(a: Tensor, b: Tensor | None, g: Tensor, V: Tensor, weight_decay: float) -> bool:
    stationary = (torch.where(a > 0, g, g.clamp(max=0.0)).abs() < 1e-8 * weight_decay).all()
    return bool(stationary) and (b is None or abs(float(V.sum())) < 1e-12 * float(V.abs().sum()))


def _output(features: Tensor, a: Tensor, b: Tensor | None) -> Tensor:
    F = features @ a[:, None]
    return F if b is None else F + b


def _value(features: Tensor, loss: AbstractLoss, weight_decay: float, a: Tensor, b: Tensor | None) -> float:
    return float(loss.value(_output(features, a, b)) + weight_decay * a.sum())


def _newton_step(
    features: Tensor, h: Tensor, at: tuple[Tensor, Tensor, Tensor | None], V: Tensor, ridge: float
) -> tuple[Tensor, Tensor | None]:
    """To the minimiser of the quadratic model over non-negative amplitudes, and the bias' part of the step."""
    a, g, b = at
    weighted = features * h[:, None]
    H = features.T @ weighted
    diagonal = H.diagonal()
    diagonal += ridge * diagonal.mean() + torch.finfo(H.dtype).tiny
    if b is None:
        return _nonnegative_step(H, g, a), None
    # The bias follows the amplitudes: eliminated, so that its size does not round them away.
    total, pull, push = h.sum(), weighted.sum(0), V.sum()
    step = _nonnegative_step(H - torch.outer(pull, pull) / total, g + pull * (push / total), a)
    return step, ((push - pull @ step) / total)[None]


def _nonnegative_step(H: Tensor, g: Tensor, a: Tensor) -> Tensor:
    arrays = (part.double().cpu().numpy() for part in (H, g - H @ a, a))
    return torch.from_numpy(nonnegative_minimiser(*arrays)).to(a) - a


def _search(
    features: Tensor,
    loss: AbstractLoss,
    weight_decay: float,
    point: tuple[Tensor, Tensor | None, float],
    direction: tuple[Tensor, Tensor, Tensor | None, float],
) -> tuple[Tensor, Tensor | None, float] | None:
    """Along the segment to the model's minimiser, which is feasible."""
    a, b, value = point
    index, step, b_step, decrement = direction
    scale = 1.0
    for _ in range(20):
        trial = a.clone()
        trial[index] = (a[index] + scale * step).clamp(min=0.0)
        b_trial = b if b is None or b_step is None else b + scale * b_step
        new = _value(features, loss, weight_decay, trial, b_trial)
        if new < value - 1e-6 * scale * abs(decrement):
            return trial, b_trial, new
        scale *= 0.5
    return None


def group_amplitudes(
    features: Float[Tensor, "n k"],
    loss: AbstractLoss,
    weight_decay: float,
    amplitudes: Float[Tensor, "k K"],
    bias: Float[Tensor, " K"] | None,
    max_steps: int = 60,
) -> tuple[Float[Tensor, "k K"], Float[Tensor, " K"] | None]:
    """Output rows of fixed neurons by FISTA with restart on the group penalty."""
    with_bias = bias is not None
    if len(amplitudes) == 0 and not with_bias:
        return amplitudes, bias
    Phi = torch.cat([features, features.new_ones((len(features), 1))], 1) if with_bias else features
    A = torch.cat([amplitudes, bias[None]]) if bias is not None else amplitudes
    k = len(amplitudes)
    step = 1.0 / _lipschitz(Phi, loss)
    Z, t = A, 1.0
    for _ in range(max_steps):
        Y = Z + step * (Phi.T @ loss.negative_gradient(Phi @ Z))
        shrink = (1 - weight_decay * step / Y[:k].norm(dim=1, keepdim=True).clamp(min=1e-30)).clamp(min=0.0)
        new = torch.cat([Y[:k] * shrink, Y[k:]])
        if float(((Z - new) * (new - A)).sum()) > 0:
            t = 1.0
        t_next = 0.5 * (1 + (1 + 4 * t * t) ** 0.5)
        Z = new + ((t - 1) / t_next) * (new - A)
        A, t = new, t_next
    return (A[:k], A[k]) if with_bias else (A, None)


def _lipschitz(Phi: Tensor, loss: AbstractLoss) -> float:
    """Largest eigenvalue of Phi' diag(c) Phi times the curvature of the sample loss."""
    weighted = Phi * loss.weights[:, None].sqrt()
    gram = weighted.T @ weighted if Phi.shape[1] < Phi.shape[0] else weighted @ weighted.T
    return 1.01 * loss.largest_curvature * float(torch.linalg.eigvalsh(gram)[-1].clamp(min=1e-300))
