"""Sliding, several outputs: first- and second-layer weights move together.

min L(r(X W') A + b) + (weight_decay / 2) (||W||^2 + ||A||^2) by the primal-dual smoothed Newton
method, its steps from preconditioned conjugate gradients.
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

_CHUNK = 2**21  # numbers held for the couplings of some neurons

Block = tuple[Tensor, Tensor, Tensor]  # parts for W, A and the bias


@dataclass(frozen=True)
class _Setting:
    problem: Problem
    E2: Float[Tensor, "k 1"]


@dataclass(frozen=True)
class _Point:
    neurons: Neurons
    act: Activations
    H: Float[Tensor, "k n"]  # smoothed activations r(T)
    F: Float[Tensor, "n K"]
    value: float


def slide_vector(
    problem: Problem,
    neurons: Neurons,
    levels: Levels,
    *,
    pairs: ColumnPairs | None,
    deadline: float = float("inf"),
    max_steps: int = 40,
) -> tuple[Neurons, Float[Tensor, "n K"]]:
    """Neurons near a stationary point for their pattern of kinks, and the dual point V there."""
    level = levels.start
    T = neurons.W @ problem.X.T
    setting = _setting(problem, (neurons, T), levels.start)
    point = _evaluate(setting, neurons, T)
    dual = point.act.T / point.act.Q
    for _ in range(max_steps):
        direction, TP, slope = _newton_direction(setting, point, dual, pairs)
        moved, dual = _advance(setting, point, dual, direction, TP, slope)
        stuck = moved is None
        point = moved or point
        error = _smoothing_error(setting, point)
        if stuck or -slope < max(0.05 * error, 1e-14 * abs(point.value)):
            finer = levels.next(level, error)
            if finer is None:
                break
            level = finer
            setting = _setting(problem, (point.neurons, point.act.T), level)
            point = _evaluate(setting, point.neurons, point.act.T)
        if time.perf_counter() > deadline:
            break
    return point.neurons, problem.dual_point(point.F)


def _setting(problem: Problem, at: tuple[Neurons, Tensor], level: float) -> _Setting:
    neurons, T = at
    norms = neurons.W.norm(dim=1)
    return _Setting(problem, squared_widths(T, norms, level, problem.typical_activation(), problem.n_inputs))


def _evaluate(setting: _Setting, neurons: Neurons, T: Tensor) -> _Point:
    act = Activations.at(T, setting.E2)
    H = 0.5 * act.doubled()
    F = (neurons.A.T @ H).T + neurons.bias
    value = float(setting.problem.loss.value(F) + setting.problem.weight_decay * neurons.half_squared_norm())
    return _Point(neurons, act, H, F, value)


def _newton_direction(
    setting: _Setting, point: _Point, dual: Tensor, pairs: ColumnPairs | None
) -> tuple[Block, Tensor, float]:
    problem, loss, wd = setting.problem, setting.problem.loss, setting.problem.weight_decay
    X, (W, A) = problem.X, (point.neurons.W, point.neurons.A)
    V = loss.negative_gradient(point.F)
    R = point.act.T / point.act.Q
    slopes = 0.5 * (1 + R)
    pull = A @ V.T
    gradient = (wd * W - (slopes * pull) @ X, wd * A - point.H @ V, -V.sum(0))
    if not problem.output_bias:
        gradient = (*gradient[:2], torch.zeros_like(gradient[2]))
    kinks = 0.5 * (-pull).clamp(min=0.0) * dual_slope(dual, R, point.act.Q)
    model = _model(problem, point, slopes, kinks, V)
    precondition = _preconditioner(problem, model, pairs)
    direction = _conjugate_gradients(_hessian(problem, model), precondition, _cast(gradient, torch.float32))
    direction = _cast(direction, W.dtype)
    return direction, direction[0] @ problem.X.T, _dot(gradient, direction)


@dataclass(frozen=True)
class _Model:
    """What the second derivatives are made of. Single precision: the tolerance of a direction is a tenth."""

    A: Float[Tensor, "k K"]
    H: Float[Tensor, "k n"]
    slopes: Float[Tensor, "k n"]
    kinks: Float[Tensor, "k n"]
    curvature: Tensor
    C: Float[Tensor, "k d K"]  # X'diag(slopes_j)V


def _model(problem: Problem, point: _Point, slopes: Tensor, kinks: Tensor, V: Tensor) -> _Model:
    curvature = problem.loss.curvature(point.F).float()
    slopes, X, V = slopes.float(), problem.X.float(), V.float()
    C = torch.stack([(slopes * v) @ X for v in V.T], 2)
    return _Model(point.neurons.A.float(), point.H.float(), slopes, kinks.float(), curvature, C)


def _hessian(problem: Problem, model: _Model) -> Callable[[Tensor, Tensor, Tensor], Block]:
    """Few outputs come first in every product: rows as long as the samples are what BLAS is fast at."""
    loss, wd, X = problem.to(torch.float32).loss, problem.weight_decay, problem.X.float()
    A, H, slopes, C = model.A, model.H, model.slopes, model.C
    across = A.T.contiguous()

    def product(P: Tensor, q: Tensor, b: Tensor) -> Block:
        TP = P @ X.T
        moved = across @ (slopes * TP) + q.T @ H + b[:, None]
        Y = loss.hessian_product(model.curvature, moved.T).T
        pulled = (A @ Y).mul_(slopes).addcmul_(model.kinks, TP)
        out_W = torch.addmm(P, pulled, X, beta=wd) - (C @ q[:, :, None])[:, :, 0]
        out_A = wd * q + (Y @ H.T).T - (C.mT @ P[:, :, None])[:, :, 0]
        out_b = Y.sum(1) if problem.output_bias else torch.zeros_like(b)
        return out_W, out_A, out_b

    return product


def _preconditioner(problem: Problem, model: _Model, pairs: ColumnPairs | None) -> Callable[[Block], Block]:
    """The Hessian's block of every neuron, both layers together; the bias on its own.

    What couples a neuron's two layers is as large as what curves them: without it conjugate gradients
    take many times as many steps.
    """
    loss, wd = problem.to(torch.float32).loss, problem.weight_decay
    slopes, H, curvature = model.slopes, model.H, model.curvature
    own = model.kinks + slopes * slopes * loss.quadratic_form(curvature, model.A)
    solve = _block_inverse(problem.X, own.to(problem.X.dtype), wd, pairs)
    coupling = _couplings(problem, model) - model.C
    solved = solve(coupling)
    schur = loss.summed_hessians(curvature, H * H) - coupling.mT @ solved
    schur.diagonal(dim1=1, dim2=2).add_(wd)
    values, Q = torch.linalg.eigh(schur)
    scaled = Q / values.abs().clamp(min=1e-2 * wd)[:, None, :]

    def apply(r: Block) -> Block:
        y = solve(r[0][:, :, None])
        q = scaled @ (Q.mT @ (r[1][:, :, None] - coupling.mT @ y))
        return (y - solved @ q)[:, :, 0], q[:, :, 0], r[2] / loss.largest_curvature

    return apply


def _couplings(problem: Problem, model: _Model) -> Tensor:
    """sum_i slopes_ji h_ji x_i (H_i a_j)' for every neuron, (k, d, K)."""
    loss, A, X = problem.to(torch.float32).loss, model.A, problem.X.float()
    n, K = len(X), A.shape[1]
    out = X.new_empty((len(A), X.shape[1], K))
    size = max(1, _CHUNK // (n * K))
    for low in range(0, len(A), size):
        part = slice(low, low + size)
        pulled = loss.hessian_product(model.curvature, A[part, None, :].expand(-1, n, -1))
        out[part] = (((model.slopes[part] * model.H[part])[:, :, None] * pulled).mT @ X).mT
    return out


def _block_inverse(X: Tensor, curvature: Tensor, wd: float, pairs: ColumnPairs | None) -> Callable[[Tensor], Tensor]:
    """Solves with the first layer's blocks, for right-hand sides (k, d, m)."""
    if pairs is None:
        diagonal = (curvature @ (X * X) + wd).float()[:, :, None]
        return lambda r: r / diagonal
    blocks = pairs.single.hessians(curvature.float())
    blocks.diagonal(dim1=1, dim2=2).add_(wd)
    lower, info = torch.linalg.cholesky_ex(blocks)
    if bool(info.any()):
        blocks = pairs.hessians(curvature)
        blocks.diagonal(dim1=1, dim2=2).add_(wd)
        inverse = torch.linalg.inv_ex(blocks).inverse.float()  # of a singular block: a step that the search refuses
    else:
        inverse = torch.cholesky_inverse(lower)
    return lambda r: torch.bmm(inverse, r)


def _cast(block: Block, dtype: torch.dtype) -> Block:
    return block[0].to(dtype), block[1].to(dtype), block[2].to(dtype)


def _dot(left: Block, right: Block) -> float:
    return float(sum((a * b).sum() for a, b in zip(left, right, strict=True)))


def _axpy(x: Block, step: float, y: Block) -> Block:
    return x[0] + step * y[0], x[1] + step * y[1], x[2] + step * y[2]


def _conjugate_gradients(
    product: Callable[[Tensor, Tensor, Tensor], Block],
    precondition: Callable[[Block], Block],
    gradient: Block,
    max_steps: int = 20,
    tolerance: float = 0.1,
) -> Block:
    """A descent direction; the Hessian may be indefinite: negative curvature is the last step's."""
    r: Block = (-gradient[0], -gradient[1], -gradient[2])
    x: Block = (torch.zeros_like(r[0]), torch.zeros_like(r[1]), torch.zeros_like(r[2]))
    y = precondition(r)
    p, rz = y, _dot(r, y)
    first = rz
    for _ in range(max_steps):
        Ap = product(*p)
        curvature = _dot(p, Ap)
        if curvature <= 1e-12 * abs(rz):
            return _axpy(x, rz / max(abs(curvature), 1e-12 * rz), p)
        step = rz / curvature
        x, r = _axpy(x, step, p), _axpy(r, -step, Ap)
        y = precondition(r)
        new = _dot(r, y)
        if new < tolerance**2 * first:
            break
        p, rz = _axpy(y, new / rz, p), new
    return x


def _advance(
    setting: _Setting, point: _Point, dual: Tensor, direction: Block, TP: Tensor, slope: float
) -> tuple[_Point | None, Tensor]:
    old = point.neurons
    step = 1.0
    for _ in range(12):
        W, A, bias = _axpy((old.W, old.A, old.bias), step, direction)
        trial = _evaluate(setting, Neurons(W, A, bias), point.act.T + step * TP)
        if trial.value <= point.value + 1e-4 * step * slope + 1e-15 * abs(point.value):
            R = point.act.T / point.act.Q
            change = dual_slope(dual, R, point.act.Q) * TP - (dual - R)
            return trial, (dual + step * change).clamp(-1 + 1e-7, 1 - 1e-7)
        step *= 0.5
    return None, dual


def _smoothing_error(setting: _Setting, point: _Point) -> float:
    """What the smoothing of the kinks adds to the objective, to first order."""
    pull = point.neurons.A @ setting.problem.loss.negative_gradient(point.F).T
    return float(((-pull).clamp(min=0.0) * point.act.smoothing_error()).sum())
