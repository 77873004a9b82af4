"""Sliding, one output: all neurons move at once by a primal-dual smoothed Newton method.

Variables z_j = |a_j| u_j with fixed signs s_j, and the output bias b:
min L(sum_j s_j (X z_j)_+ + b) + weight_decay sum_j ||z_j||.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from convexnn.ascent import ColumnPairs
from convexnn.neurons import Neurons
from convexnn.problem import Problem
from convexnn.solvers.smoothing import Activations, Levels, dual_slope, squared_widths

_DENSE_LIMIT = 1600  # unknowns or samples up to which a matrix of their size is factorised
_FEW_SAMPLES = 0.8  # samples for each unknown below which the samples' matrix is the cheaper one
_ALONG = 1e-4  # curvature added along the neurons, relative to that of the penalty across them
_STRIP = 256

Duals = tuple[Tensor, Tensor | None]  # of the neurons' kinks, and of the loss's own


@dataclass(frozen=True)
class _Setting:
    """What stays fixed at one level of smoothing."""

    problem: Problem
    signs: Float[Tensor, "k 1"]
    E2: Float[Tensor, "k 1"]
    norm_floor: float  # smooths ||z|| at zero


@dataclass(frozen=True)
class _Point:
    Z: Float[Tensor, "k d"]
    bias: Float[Tensor, "1"]
    act: Activations
    F: Float[Tensor, "n 1"]
    norms: Float[Tensor, " k"]
    value: float


def slide_scalar(
    problem: Problem,
    neurons: Neurons,
    levels: Levels,
    *,
    pairs: ColumnPairs | None,
    deadline: float = float("inf"),
    max_steps: int = 60,
) -> tuple[Neurons, Float[Tensor, "n 1"]]:
    """Neurons at a stationary point for their pattern of kinks, and the dual point V there."""
    masses, signs = neurons.masses(), torch.sign(neurons.A)
    Z = neurons.W * (masses / neurons.W.norm(dim=1))[:, None]
    level = levels.start
    T = Z @ problem.X.T
    setting = _setting(problem, signs, (Z, T), levels.start)
    point = _evaluate(setting, Z, neurons.bias, T)
    W = point.act.T / point.act.Q
    w = setting.problem.loss.initial_dual(point.F)
    for _ in range(max_steps):
        direction, slope = _newton_direction(setting, point, (W, w), pairs)
        moved, W, w = _advance(setting, point, (W, w), direction, slope)
        stuck = moved is None
        point = moved or point
        error = _smoothing_error(setting, point)
        if stuck or -slope < max(0.02 * error, 1e-10 * abs(point.value)):
            finer = levels.next(level, error)
            if finer is None:
                break
            level = finer
            setting = _setting(problem, signs, (point.Z, point.act.T), level)
            point = _evaluate(setting, point.Z, point.bias, point.act.T)
        if time.perf_counter() > deadline:
            break
    V = problem.dual_point(point.F)
    return _to_neurons(point, signs), V


def _setting(problem: Problem, signs: Tensor, at: tuple[Tensor, Tensor], level: float) -> _Setting:
    Z, T = at
    norms = Z.norm(dim=1)
    E2 = squared_widths(T, norms, level, problem.typical_activation(), problem.n_inputs)
    return _Setting(problem, signs, E2, 1e-2 * level * float(norms.max()) + 1e-14)


def _evaluate(setting: _Setting, Z: Tensor, bias: Tensor, T: Tensor) -> _Point:
    act = Activations.at(T, setting.E2)
    F = act.doubled().T @ (0.5 * setting.signs) + bias
    norms = torch.sqrt((Z * Z).sum(1) + setting.norm_floor**2)
    value = float(setting.problem.loss.value(F) + setting.problem.weight_decay * norms.sum())
    return _Point(Z, bias, act, F, norms, value)


def _newton_direction(
    setting: _Setting, point: _Point, duals: Duals, pairs: ColumnPairs | None
) -> tuple[tuple[Tensor, Tensor], float]:
    X, wd = setting.problem.X, setting.problem.weight_decay
    V = setting.problem.loss.negative_gradient(point.F)[:, 0]
    W, w = duals
    h = setting.problem.loss.curvature(point.F, w)[:, 0]
    R = point.act.T / point.act.Q
    active = 0.5 * (1 + R) * setting.signs
    G = wd * point.Z / point.norms[:, None] - (V * active) @ X
    g_bias = -V.sum() if setting.problem.output_bias else None
    kinks = 0.5 * (-V * setting.signs).clamp(min=0.0) * dual_slope(W, R, point.act.Q)
    P, p_bias = _conjugate_gradients(X, (active, h, kinks), (point, wd), (G, g_bias), pairs)
    slope = float((G * P).sum()) + (float(g_bias * p_bias) if g_bias is not None else 0.0)
    return (P, p_bias), slope


def _blocks(X: Tensor, curvature: Tensor, point: _Point, wd: float, pairs: ColumnPairs | None) -> Tensor:
    """X'diag(kinks)X + weight_decay (I/q - zz'/q^3), neuron by neuron."""
    if pairs is not None:
        blocks = pairs.hessians(curvature)
    else:
        blocks = torch.stack([X.T @ (row[:, None] * X) for row in curvature])
    unit = point.Z / point.norms[:, None]
    blocks -= (wd / point.norms)[:, None, None] * (unit[:, :, None] * unit[:, None, :])
    blocks.diagonal(dim1=1, dim2=2).add_((wd / point.norms)[:, None])
    return blocks


def _conjugate_gradients(
    X: Tensor,
    curvatures: tuple[Tensor, Tensor, Tensor],
    scaled: tuple[_Point, float],
    gradient: tuple[Tensor, Tensor | None],
    pairs: ColumnPairs | None,
    max_steps: int = 60,
) -> tuple[Tensor, Tensor]:
    """Conjugate gradients, preconditioned by the diagonal blocks and by the bias' own curvature."""
    active, h, kinks = (part.float() for part in curvatures)
    point, wd = scaled
    G, g_bias = gradient[0].float(), None if gradient[1] is None else gradient[1].float()
    norms, unit = point.norms[:, None].float(), (point.Z / point.norms[:, None]).float()
    with_bias = g_bias is not None
    inverse = _preconditioner(X, curvatures, point, wd, pairs)
    bias_inverse = 1.0 / h.sum()
    single = X.float()

    def product(P: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
        TP = P @ single.T
        y = h * ((active * TP).sum(0) + p)
        out = (active * y + kinks * TP) @ single
        out += (wd / norms) * (P - unit * (unit * P).sum(1, keepdim=True))
        return out, y.sum()[None] if with_bias else torch.zeros_like(p)

    zero = G.new_zeros(1)
    x, xb = torch.zeros_like(G), zero
    r, rb = -G, -g_bias[None] if g_bias is not None else zero
    y, yb = inverse(r), rb * bias_inverse
    p, pb = y, yb
    rz = (r * y).sum() + (rb * yb).sum()
    first = rz
    for _ in range(max_steps):
        Ap, Apb = product(p, pb)
        step = rz / ((p * Ap).sum() + (pb * Apb).sum()).clamp(min=1e-37)
        x, xb, r, rb = x + step * p, xb + step * pb, r - step * Ap, rb - step * Apb
        y, yb = inverse(r), rb * bias_inverse
        new = (r * y).sum() + (rb * yb).sum()
        if new < 1e-4 * first:
            break
        p, pb = y + (new / rz) * p, yb + (new / rz) * pb
        rz = new
    return x.to(X.dtype), xb.to(X.dtype)


def _preconditioner(
    X: Tensor, curvatures: tuple[Tensor, Tensor, Tensor], point: _Point, wd: float, pairs: ColumnPairs | None
) -> Callable[[Tensor], Tensor]:
    """The matrix factorised in single precision where unknowns or samples are few, else its diagonal blocks."""
    active, h, kinks = curvatures
    if pairs is not None and min(point.Z.numel(), len(X)) <= _DENSE_LIMIT:
        blocks = _blocks(X, kinks, point, wd, pairs)
        factorise = _by_samples if len(X) < _FEW_SAMPLES * point.Z.numel() else _by_unknowns
        inverse = factorise(X, (active, h), blocks, point, wd)
        if inverse is not None:
            return inverse
    return _block_preconditioner(X, kinks + active * active * h, point, wd, pairs)


def _by_unknowns(
    X: Tensor, data: tuple[Tensor, Tensor], blocks: Tensor, point: _Point, wd: float
) -> Callable[[Tensor], Tensor] | None:
    factor = _factorised(X, data, blocks)
    if factor is None:
        return None
    lower, scale = factor
    return lambda r: scale * torch.cholesky_solve((r.reshape(-1, 1) * scale.reshape(-1, 1)), lower).reshape(r.shape)


def _by_samples(
    X: Tensor, data: tuple[Tensor, Tensor], blocks: Tensor, point: _Point, wd: float
) -> Callable[[Tensor], Tensor] | None:
    """(B + J'J)^-1 = L^-T (I - Y (I + Y'Y)^-1 Y') L^-1 with B = L L' and Y = L^-1 J': a matrix of the samples' size.

    B has next to no curvature along the neurons themselves, where all of it comes from J: a little is added.
    """
    active, h = data
    unit = point.Z / point.norms[:, None]
    blocks = blocks + (_ALONG * wd / point.norms)[:, None, None] * (unit[:, :, None] * unit[:, None, :])
    lower, info = torch.linalg.cholesky_ex(blocks)
    if bool(info.any()):
        return None
    identity = torch.eye(X.shape[1], dtype=X.dtype, device=X.device).expand_as(lower)
    inverse = torch.linalg.solve_triangular(lower, identity, upper=False).float()
    Y = (inverse @ X.T.float()).mul_((active * h.sqrt()).float()[:, None, :]).reshape(-1, len(X))
    gram = _lower_gram(Y.T)
    gram.diagonal().add_(1.0)
    factor, failed = torch.linalg.cholesky_ex(gram)
    if int(failed):
        return None

    def apply(r: Tensor) -> Tensor:
        w = torch.bmm(inverse, r[:, :, None])
        w = w.reshape(-1, 1)
        w = w - Y @ torch.cholesky_solve(Y.T @ w, factor)
        return torch.bmm(inverse.transpose(1, 2), w.reshape(*r.shape, 1))[:, :, 0]

    return apply


def _lower_gram(J: Tensor) -> Tensor:
    """The lower triangle of J J', which is all that Cholesky reads."""
    size = len(J)
    H = J.new_zeros((size, size))
    for low in range(0, size, _STRIP):
        high = min(low + _STRIP, size)
        H[low:high, :high] = J[low:high] @ J[:high].T
    return H


def _factorised(X: Tensor, data: tuple[Tensor, Tensor], blocks: Tensor) -> tuple[Tensor, Tensor] | None:
    """Cholesky factor of the matrix scaled to a unit diagonal, and the scale (k, d)."""
    active, h = data
    k, d = len(active), X.shape[1]
    J = ((active * h.sqrt()).float()[:, None, :] * X.T.float()).reshape(k * d, -1)
    H = _lower_gram(J)
    H.reshape(k, d, k, d).diagonal(dim1=0, dim2=2).add_(blocks.float().permute(1, 2, 0))
    scale = H.diagonal().clamp(min=1e-37).rsqrt()
    H *= scale[:, None] * scale
    H.diagonal().add_(1e-6)
    lower, info = torch.linalg.cholesky_ex(H)
    return None if int(info) else (lower, scale.reshape(k, d))


def _block_preconditioner(
    X: Tensor, curvature: Tensor, point: _Point, wd: float, pairs: ColumnPairs | None
) -> Callable[[Tensor], Tensor]:
    if pairs is None:
        diagonal = curvature @ (X * X) + (wd / point.norms)[:, None]
        inverse_diagonal = diagonal.reciprocal().float()
        return lambda r: r * inverse_diagonal
    blocks = _blocks(X, curvature, point, wd, pairs)
    diagonal = blocks.diagonal(dim1=1, dim2=2)
    diagonal += max(1e-12, 8 * torch.finfo(X.dtype).eps) * diagonal.mean()
    inverse = torch.linalg.inv_ex(blocks).inverse.float()  # of a singular block: a step that the search refuses
    return lambda r: torch.bmm(inverse, r[:, :, None])[:, :, 0]


def _advance(
    setting: _Setting, point: _Point, duals: Duals, direction: tuple[Tensor, Tensor], slope: float
) -> tuple[_Point | None, Tensor, Tensor | None]:
    (W, w), (P, p_bias) = duals, direction
    TP = P @ setting.problem.X.T
    step = 1.0
    for _ in range(15):
        trial = _evaluate(setting, point.Z + step * P, point.bias + step * p_bias, point.act.T + step * TP)
        if trial.value <= point.value + 1e-4 * step * slope + 1e-15 * abs(point.value):
            R = point.act.T / point.act.Q
            dW = dual_slope(W, R, point.act.Q) * TP - (W - R)
            w = setting.problem.loss.advance_dual(point.F, w, trial.F - point.F)
            return trial, (W + step * dW).clamp(-0.99999999, 0.99999999), w
        step *= 0.5
    return None, W, w


def _smoothing_error(setting: _Setting, point: _Point) -> float:
    """What the smoothing of the kinks adds to the objective, to first order."""
    V = setting.problem.loss.negative_gradient(point.F)[:, 0]
    kinks = float(((-V * setting.signs).clamp(min=0.0) * point.act.smoothing_error()).sum())
    return kinks + setting.problem.loss.smoothing_error(point.F)


def _to_neurons(point: _Point, signs: Tensor) -> Neurons:
    norms = point.Z.norm(dim=1, keepdim=True)
    root = norms.sqrt().clamp(min=1e-150)
    return Neurons(point.Z / root, signs * root, point.bias)
