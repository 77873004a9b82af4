"""The members that the laws are checked on. A new loss needs a line in ``TARGETS`` and in ``CVXPY_LOSSES``."""

from collections.abc import Callable

import cvxpy as cp
import numpy as np
import torch

from convexnn.data import read_loss
from convexnn.losses import LOSSES, AbstractLoss
from convexnn.neurons import Neurons
from convexnn.problem import Problem


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=seeded(seed), dtype=torch.float64)


def signs(n: int, rng: np.random.Generator) -> np.ndarray:
    y = np.where(rng.standard_normal(n) > 0, 1.0, -1.0)
    y[:2] = 1.0, -1.0
    return y


def labels(n: int, rng: np.random.Generator, classes: int = 3) -> np.ndarray:
    y = rng.integers(classes, size=n)
    y[:classes] = np.arange(classes)
    return y


# name -> targets as a user writes them, several kinds each
TARGETS: dict[str, list[Callable[[int, np.random.Generator], np.ndarray]]] = {
    "squared": [lambda n, rng: rng.standard_normal(n), lambda n, rng: rng.standard_normal((n, 3))],
    "logistic": [signs],
    "hinge": [signs],
    "softmax": [labels, lambda n, rng: labels(n, rng, 2), lambda n, rng: rng.dirichlet(np.ones(4), n)],
}
LOSS_CASES = [(name, kind, weighted) for name in LOSSES for kind in range(len(TARGETS[name])) for weighted in (0, 1)]


def targets_of(name: str, n: int, seed: int, kind: int = 0) -> np.ndarray:
    return TARGETS[name][kind](n, np.random.default_rng(seed))


def loss_of(name: str, kind: int = 0, weighted: bool = False, *, n: int = 9, seed: int = 0) -> AbstractLoss:
    weights = np.random.default_rng(seed + 1).uniform(0.2, 3.0, n) if weighted else None
    return read_loss(name, targets_of(name, n, seed, kind), n, weights)


def inside_domain(loss: AbstractLoss, seed: int) -> torch.Tensor:
    """A point of the dual domain: minus the gradient at a random point."""
    return loss.smoothed(0.5).negative_gradient(2 * normal(*loss.targets.shape, seed=seed))


def _cvxpy_squared(F: cp.Expression, Y: np.ndarray, c: np.ndarray) -> cp.Expression:
    return 0.5 * cp.sum_squares(cp.multiply(np.sqrt(c)[:, None], F - Y))


def _cvxpy_logistic(F: cp.Expression, Y: np.ndarray, c: np.ndarray) -> cp.Expression:
    return c @ cp.logistic(-cp.multiply(Y, F))[:, 0]


def _cvxpy_hinge(F: cp.Expression, Y: np.ndarray, c: np.ndarray) -> cp.Expression:
    return c @ cp.pos(1 - cp.multiply(Y, F))[:, 0]


def _cvxpy_softmax(F: cp.Expression, Y: np.ndarray, c: np.ndarray) -> cp.Expression:
    return c @ (cp.log_sum_exp(F, axis=1) - cp.sum(cp.multiply(F, Y), axis=1))


# name -> L(F) as a cvxpy expression of F, targets and weights
CVXPY_LOSSES = {
    "squared": _cvxpy_squared,
    "logistic": _cvxpy_logistic,
    "hinge": _cvxpy_hinge,
    "softmax": _cvxpy_softmax,
}


def cvxpy_loss(loss: AbstractLoss, F: cp.Expression) -> cp.Expression:
    return CVXPY_LOSSES[loss.name](F, loss.targets.numpy(), loss.weights.numpy())


def problem_of(
    name: str, n: int, d: int, weight_decay: float, *, kind: int = 0, output_bias: bool = True, seed: int = 0
) -> Problem:
    X = normal(n, d, seed=seed + 100)
    return Problem(X, loss_of(name, kind, n=n, seed=seed), weight_decay, output_bias)


def random_neurons(k: int, d: int, K: int = 1, *, seed: int) -> Neurons:
    return Neurons(normal(k, d, seed=seed), normal(k, K, seed=seed + 1), normal(K, seed=seed + 2))
