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
from convexnn_cases import cvxpy_loss
from scipy.optimize import minimize, minimize_scalar, root

from convexnn.problem import Problem

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


def circle_bracket(problem: Problem, rounds: int = 20, m: int = 100_000) -> tuple[float, float]:
    """(lower, upper) around the optimum for two columns, smooth losses and any number of outputs."""
    X = problem.X.numpy()
    fine, atoms = circle(m), np.concatenate([circle(64), kinks_of(X)])
    upper, lower = np.inf, -np.inf
    for _ in range(rounds):
        F, masses = _restricted(problem, atoms)
        upper = min(upper, float(problem.loss.value(torch.tensor(F)) + problem.weight_decay * masses.sum()))
        V = _minus_gradient(problem, F)
        lower = max(lower, _lower_bound(problem, V, circle_maximum(X, V, m)))
        if upper - lower < 5e-8:
            break
        values = correlations(X, V, fine)
        peaks = (values >= np.roll(values, 1)) & (values >= np.roll(values, -1))
        peaks &= values > problem.weight_decay * (1 - 1e-3)
        atoms = np.concatenate([atoms[masses > 1e-7 * masses.max()], fine[peaks], kinks_of(X)])
    return lower, upper


def _lower_bound(problem: Problem, V: np.ndarray, maximum: float) -> float:
    """The best D(sV) with s M(V) <= weight decay."""
    Y, c = problem.loss.targets.numpy(), problem.loss.weights.numpy()
    reach = min(1.0, problem.weight_decay / maximum)
    inner = minimize_scalar(lambda s: -dual_value(problem.loss.name, s * V, Y, c), bounds=(0, reach), method="bounded")
    return max(-inner.fun, dual_value(problem.loss.name, reach * V, Y, c))


def _restricted(problem: Problem, U: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Outputs and masses of the best network whose neurons point along rows of U."""
    X, K = problem.X.numpy(), problem.loss.n_outputs
    A, bias = cp.Variable((len(U), K)), cp.Variable((1, K))
    F = np.maximum(X @ U.T, 0) @ A
    if problem.output_bias:
        F = F + np.ones((len(X), 1)) @ bias
    mass = cp.sum(cp.norm(A, 2, axis=1))
    clarabel(cp.Problem(cp.Minimize(cvxpy_loss(problem.loss, F) + problem.weight_decay * mass)))
    return _polished(problem, U, A.value, bias.value if problem.output_bias else None)


def _polished(problem: Problem, U: np.ndarray, A: np.ndarray, bias: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """The same by BFGS on the live atoms: interior points leave 1e-6 where there are exponential cones."""
    live = np.linalg.norm(A, axis=1) > 1e-4 * np.linalg.norm(A, axis=1).max()
    features = np.maximum(problem.X.numpy() @ U[live].T, 0)
    if bias is not None:
        features = np.concatenate([features, np.ones((len(features), 1))], 1)
    start = A[live] if bias is None else np.concatenate([A[live], bias])
    k = int(live.sum())

    def value_and_slope(flat: np.ndarray) -> tuple[float, np.ndarray]:
        B = flat.reshape(start.shape)
        F, norms = features @ B, np.linalg.norm(B[:k], axis=1, keepdims=True)
        slope = -features.T @ _residual(problem, F)
        slope[:k] += problem.weight_decay * B[:k] / np.maximum(norms, 1e-300)
        return float(problem.loss.value(torch.tensor(F))) + problem.weight_decay * norms.sum(), slope.ravel()

    found = minimize(value_and_slope, start.ravel(), jac=True, method="BFGS", options={"gtol": 1e-11, "maxiter": 500})
    B = found.x.reshape(start.shape)
    masses = np.zeros(len(U))
    masses[live] = np.linalg.norm(B[:k], axis=1)
    return features @ B, masses


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
