"""Independent judges of small problems: they share no code with the solver.

``exact_optimum`` solves the convex program over all activation patterns (Pilanci & Ergen, ICML 2020)
with cvxpy and Clarabel. ``circle_bracket`` brackets the optimum for two columns and any number of
outputs by column generation on the circle: a network that exists, and a dual point whose maximum is
taken over a fine grid and corrected by a Lipschitz bound.
"""

import warnings
from itertools import combinations, product

import cvxpy as cp
import numpy as np
import torch
from scipy.optimize import minimize_scalar, root

from convexnn.problem import Problem
from convexnn_cases import cvxpy_loss

ACCURATE = {"tol_gap_abs": 1e-9, "tol_gap_rel": 1e-9, "tol_feas": 1e-9, "max_iter": 500}


def clarabel(problem: cp.Problem) -> float:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Solution may be inaccurate")  # within 1e-8, which is good enough here
        problem.solve(solver=cp.CLARABEL, **ACCURATE)
    assert problem.status in (cp.OPTIMAL, cp.OPTIMAL_INACCURATE)
    return float(problem.value)


def activation_patterns(X: np.ndarray) -> np.ndarray:
    """All sign patterns 1[Xu > 0] of open cells, for rows in general position that span the space.

    Each cell is a pointed cone, so it touches a ray on which d - 1 of the rows vanish; around that
    ray these rows take every sign and the others keep theirs.
    """
    n, d = X.shape
    found = set()
    for rows in map(list, combinations(range(n), d - 1)):
        ray = np.linalg.svd(X[rows])[2][-1] if d > 1 else np.ones(1)
        for sign, around in product((1, -1), product((0, 1), repeat=d - 1)):
            pattern = (sign * X @ ray > 0).astype(int)
            pattern[rows] = around
            found.add(tuple(pattern))
    return np.array(sorted(found), dtype=float)


def exact_optimum(problem: Problem) -> float:
    """min J over all networks with one output, by one convex program over all activation patterns."""
    X, wd = problem.X.numpy(), problem.weight_decay
    output, mass, constraints = 0, 0, []
    for pattern in activation_patterns(X):
        for sign in (1.0, -1.0):
            u = cp.Variable(X.shape[1])
            output = output + sign * (pattern[:, None] * X) @ u
            mass = mass + cp.norm(u, 2)
            constraints.append(((2 * pattern - 1)[:, None] * X) @ u >= 0)
    F = cp.reshape(output, (len(X), 1), order="C")
    if problem.output_bias:
        F = F + cp.Variable()
    return clarabel(cp.Problem(cp.Minimize(cvxpy_loss(problem.loss, F) + wd * mass), constraints))


def circle(m: int) -> np.ndarray:
    angles = np.linspace(0, 2 * np.pi, m, endpoint=False)
    return np.stack([np.cos(angles), np.sin(angles)], 1)


def sphere(m: int) -> np.ndarray:
    """A Fibonacci grid of m points on the sphere in three dimensions."""
    k = np.arange(m) + 0.5
    height, angle = 1 - 2 * k / m, np.pi * (1 + 5**0.5) * k
    radius = np.sqrt(1 - height**2)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle), height], 1)


def correlations(X: np.ndarray, V: np.ndarray, U: np.ndarray) -> np.ndarray:
    """||V'(Xu)_+|| for each row u of U."""
    return np.linalg.norm(np.maximum(U @ X.T, 0) @ V, axis=1)


def kinks_of(X: np.ndarray) -> np.ndarray:
    """Both unit directions on which each row of X vanishes, for two columns."""
    normals = np.stack([-X[:, 1], X[:, 0]], 1) / np.linalg.norm(X, axis=1, keepdims=True)
    return np.concatenate([normals, -normals])


def circle_maximum(X: np.ndarray, V: np.ndarray, m: int = 100_000) -> float:
    """An upper bound of M(V) for two columns, within a factor of 1 + 5e-10.

    The grid holds the kinks. Between neighbours V'(Xu)_+ is linear in u, so that its norm is convex, and the arc lies
    in the triangle of the origin and the two neighbours, these extended by 1/cos(half the angle between them).
    """
    U = np.concatenate([circle(m), kinks_of(X)])
    return float(correlations(X, V, U).max() / np.cos(np.pi / m))


def dual_value(name: str, V: np.ndarray, Y: np.ndarray, c: np.ndarray) -> float:
    """min over F of L(F) + <V, F>, in closed form."""
    if name == "squared":
        return float((V * Y).sum() - 0.5 * ((V**2).sum(1) / c).sum())
    if name == "softmax":
        p = np.maximum(Y - V / c[:, None], 1e-300)
        return float(-c @ (p * np.log(p)).sum(1))
    q = np.clip((V * Y)[:, 0] / c, 1e-300, 1 - 1e-16)
    return float(-c @ (q * np.log(q) + (1 - q) * np.log(1 - q)))


def circle_bracket(problem: Problem, rounds: int = 15, m: int = 100_000) -> tuple[float, float]:
    """(lower, upper) around the optimum for two columns, smooth losses and any number of outputs."""
    X, Y, c = problem.X.numpy(), problem.loss.targets.numpy(), problem.loss.weights.numpy()
    fine, atoms = circle(m), np.concatenate([circle(64), kinks_of(X)])
    upper, lower = np.inf, -np.inf
    for _ in range(rounds):
        value, V = _restricted(problem, atoms)
        upper = min(upper, value)
        s = min(1.0, problem.weight_decay / circle_maximum(X, V, m))
        best = minimize_scalar(lambda t: -dual_value(problem.loss.name, t * V, Y, c), bounds=(0, s), method="bounded")
        lower = max(lower, -best.fun, dual_value(problem.loss.name, s * V, Y, c))
        if upper - lower < 1e-8:
            break
        values = correlations(X, V, fine)
        peaks = (values >= np.roll(values, 1)) & (values >= np.roll(values, -1))
        atoms = np.concatenate([atoms, fine[peaks & (values > problem.weight_decay * (1 - 1e-3))]])
    return lower, upper


def _restricted(problem: Problem, U: np.ndarray) -> tuple[float, np.ndarray]:
    """Objective of the best network whose neurons point along rows of U, and its dual point."""
    X, K = problem.X.numpy(), problem.loss.n_outputs
    A, bias = cp.Variable((len(U), K)), cp.Variable((1, K))
    F = np.maximum(X @ U.T, 0) @ A
    if problem.output_bias:
        F = F + np.ones((len(X), 1)) @ bias
    mass = cp.sum(cp.norm(A, 2, axis=1))
    clarabel(cp.Problem(cp.Minimize(cvxpy_loss(problem.loss, F) + problem.weight_decay * mass)))
    output = torch.tensor(F.value.reshape(len(X), K))
    penalty = problem.weight_decay * np.linalg.norm(A.value, axis=1).sum()
    return float(problem.loss.value(output)) + penalty, _minus_gradient(problem, output.numpy())


def _minus_gradient(problem: Problem, F: np.ndarray) -> np.ndarray:
    """V = -grad L at F, after moving the output bias until 1'V = 0 to rounding, where there is one."""
    if not problem.output_bias:
        return _residual(problem, F)
    K = F.shape[1]
    free = K - 1 if problem.loss.name == "softmax" else K  # a constant added to every logit does nothing

    def shifted(b: np.ndarray) -> np.ndarray:
        return _residual(problem, F + np.concatenate([b, np.zeros(K - free)]))

    return shifted(root(lambda b: shifted(b).sum(0)[:free], np.zeros(free), tol=1e-14).x)


def _residual(problem: Problem, F: np.ndarray) -> np.ndarray:
    Y, c = problem.loss.targets.numpy(), problem.loss.weights.numpy()[:, None]
    if problem.loss.name == "squared":
        return c * (Y - F)
    if problem.loss.name == "softmax":
        p = np.exp(F - F.max(1, keepdims=True))
        return c * (Y - p / p.sum(1, keepdims=True))
    return c * Y / (1 + np.exp(Y * F))
