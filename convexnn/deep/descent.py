"""Local descent of parallel three-layer networks: from the cells of a convex program into better ones beside them."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from convexnn.deep.three_layers import ParallelWeights
from convexnn.problem import Problem

_STEPS = 400
_RATE = 0.03  # first step of Adam, relative to the typical size of a weight; it falls to zero along a cosine
_MOMENTA = (0.9, 0.99)


def descended(problem: Problem, weights: ParallelWeights) -> ParallelWeights:
    """The best network on a path of Adam (Kingma & Ba 2015) from this one, which is in the running itself.

    Minimises L + weight_decay sum_l ||Z_l||_F with the directions of the last layer fixed: in balanced form the
    objective of the network.
    """
    if len(weights.Z) == 0:
        return weights
    Z, bias = weights.Z * weights.A.norm(dim=1)[:, None, None], weights.bias
    A = weights.A / weights.A.norm(dim=1, keepdim=True)
    state = [torch.zeros_like(Z), torch.zeros_like(Z), torch.zeros_like(bias), torch.zeros_like(bias)]
    rate_Z = _RATE * float(Z.abs().mean())
    rate_b = rate_Z if problem.output_bias else 0.0
    best, least = (Z, bias), math.inf
    for k in range(_STEPS + 1):
        value, slope_Z, slope_b = _slopes(problem, Z, weights.sigma, A, bias)
        if value < least:
            best, least = (Z, bias), value
        share = 0.5 * (1 + math.cos(math.pi * k / _STEPS))
        Z = Z - share * rate_Z * _direction(state, 0, slope_Z, k)
        bias = bias - share * rate_b * _direction(state, 2, slope_b, k)
    return ParallelWeights(best[0], weights.sigma, A, best[1])


def _slopes(
    problem: Problem, Z: Tensor, sigma: Tensor, A: Tensor, bias: Tensor
) -> tuple[float, Float[Tensor, "B m d"], Float[Tensor, " K"]]:
    """The objective and its gradient."""
    T = Z @ problem.X.T
    hidden = (sigma[:, :, None] * torch.relu(T)).sum(1)
    F = torch.relu(hidden).T @ A + bias
    norms = Z.flatten(1).norm(dim=1)
    V = problem.loss.negative_gradient(F)
    value = float(problem.loss.value(F) + problem.weight_decay * norms.sum())
    inner = (A @ V.T) * (hidden > 0)
    C = (sigma[:, :, None] * (T > 0) * inner[:, None]) @ problem.X
    pull = problem.weight_decay * Z / norms.clamp(min=torch.finfo(Z.dtype).tiny)[:, None, None]
    return value, pull - C, -V.sum(0)


def _direction(state: list[Tensor], at: int, slope: Tensor, k: int) -> Tensor:
    first, second = _MOMENTA
    state[at] = first * state[at] + (1 - first) * slope
    state[at + 1] = second * state[at + 1] + (1 - second) * slope**2
    mean, square = state[at] / (1 - first ** (k + 1)), state[at + 1] / (1 - second ** (k + 1))
    return mean / (square.sqrt() + 1e-300)
