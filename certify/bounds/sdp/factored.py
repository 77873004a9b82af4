"""`Program` on factors X = U U', with penalties for its constraints, and Newton's method for what they make of it.

U has the unit vector e_1 as its row 0, so that X_00 = 1; the other rows are free. With multipliers y and a weight s the
function is

    c.X[:, 0]  +  sum over equalities of  s/2 A_k(X)^2 - y_k A_k(X)  +  sum over inequalities of  y_k / s psi(s A_k(X)),

where psi(t) = -log(1 + t) for t >= -1/2, and its Taylor polynomial of degree 2 there below. The first kind is the
augmented Lagrangian, the second the modified barrier of Polyak ("Modified barrier functions", Math. Programming 54,
1992): unlike the augmented Lagrangian of an inequality it has a continuous second derivative, and Newton's method on
it needs a tenth of the steps. Both have the gradient 2 S(y+) U, S = C - sum y+_k A_k, at the next multipliers y+:
y - s A and -y psi'(s A), which stay positive.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy.linalg as sl

from certify.bounds.sdp.program import Matrix, Program, Vector

_BEND = -0.5
_LEAST_SHIFT, _LARGEST_SHIFT = 1e-8, 1e10
_PROGRESS = 1e-4


def constraints_at(program: Program, factor: Matrix) -> Vector:
    """A_k(U U') for all k."""
    G = program.forms.T @ factor
    products = np.einsum("kr,kr->k", G[program.left], G[program.right])
    squares = np.einsum("nr,nr->n", factor, factor)
    return np.concatenate([products, squares[0] - program.groups @ squares])


def residual(program: Program, values: Vector) -> float:
    """The largest violation."""
    return float(np.where(program.inequality, np.maximum(-values, 0), np.abs(values)).max(initial=0.0))


@dataclass(frozen=True, eq=False)
class Penalised:
    """The function, of the rows of U after the first one, flat."""

    program: Program
    rank: int
    y: Vector
    weight: float

    def factor(self, v: Vector) -> Matrix:
        """U."""
        return np.concatenate([np.eye(1, self.rank), v.reshape(-1, self.rank)])

    def at(self, v: Vector) -> tuple[float, Vector]:
        """Value and gradient."""
        program, U = self.program, self.factor(v)
        penalties, y, _ = self._penalties(constraints_at(program, U))
        gradient = 2 * (program.cost - program.adjoint(y)) @ U
        return float(program.objective @ U[:, 0] + penalties.sum()), gradient[1:].ravel()

    def next_multipliers(self, v: Vector) -> Vector:
        """y+."""
        return self._penalties(constraints_at(self.program, self.factor(v)))[1]

    def _penalties(self, values: Vector) -> tuple[Vector, Vector, Vector]:
        """Of every constraint: the penalty, minus its derivative, and its second derivative."""
        t, k = self.weight * values, self.program.inequality
        bent = t < _BEND
        inside = np.where(bent, _BEND, t)
        step = t - inside
        slope, bend = 1 / (1 + inside), 1 / (1 + inside) ** 2
        psi = -np.log1p(inside) - slope * step + bend * step**2 / 2
        slope = slope - np.where(bent, bend * step, 0)
        penalties = np.where(k, self.y / self.weight * psi, (t / 2 - self.y) * values)
        return (
            penalties,
            np.where(k, self.y * slope, self.y - t),
            np.where(k, self.y * self.weight * bend, self.weight),
        )

    def hessian(self, v: Vector) -> Matrix:
        """The second derivative: 2 S(y+) for every column of U, and a rank-one matrix for every constraint."""
        program, U, r = self.program, self.factor(v), self.rank
        _, y, bend = self._penalties(constraints_at(program, U))
        G, F = U.T @ program.forms, program.forms[1:]
        a, b = program.left, program.right
        products = F[:, None, a] * G[:, b] + F[:, None, b] * G[:, a]
        groups = -2 * program.groups.T[1:, None] * U[1:, :, None]
        J = np.concatenate([products, groups], 2).reshape(-1, len(bend)) * np.sqrt(bend)
        H = J @ J.T
        S = 2 * (program.cost - program.adjoint(y))[1:, 1:]
        of_columns = H.reshape(len(S), r, len(S), r)
        for q in range(r):
            of_columns[:, q, :, q] += S
        return H


def minimise(
    function: Penalised, v: Vector, tolerance: float, iterations: int, *, stop: Callable[[], bool] | None = None
) -> tuple[Vector, int]:
    """Newton's method with a multiple of the identity added until the step is a descent, from v; and its steps.

    Ends where no entry of the gradient is above the tolerance. A negative curvature is left behind: the shifted
    Hessian is positive definite, and the values only fall.
    """
    value, gradient = function.at(v)
    shift = 1e-3 * function.weight / 10
    for count in range(iterations):
        if np.abs(gradient).max(initial=0.0) <= tolerance or (stop is not None and stop()):
            return v, count
        H = function.hessian(v)
        found = _step(function, H, (v, value, gradient), shift)
        if found is None:
            return v, count
        v, value, gradient, shift = found
    return v, iterations


def _step(
    function: Penalised, H: Matrix, at: tuple[Vector, float, Vector], shift: float
) -> tuple[Vector, float, Vector, float] | None:
    """The next point with value, gradient and shift; None where rounding leaves no descent."""
    v, value, gradient = at
    diagonal = np.arange(len(v))
    while shift < _LARGEST_SHIFT * function.weight:
        shifted = H.copy()
        shifted[diagonal, diagonal] += shift
        try:
            step = -sl.cho_solve(sl.cho_factor(shifted, lower=True, check_finite=False), gradient, check_finite=False)
        except sl.LinAlgError:
            shift = max(4 * shift, _LEAST_SHIFT)
            continue
        new, slope = function.at(v + step)
        expected = -float(gradient @ step + step @ (H @ step) / 2)
        ratio = (value - new) / max(expected, np.finfo(float).tiny)
        if ratio > _PROGRESS:
            factor = 0.2 if ratio > 0.75 else 3.0 if ratio < 0.25 else 1.0
            return v + step, new, slope, factor * shift
        shift = max(4 * shift, _LEAST_SHIFT)
    return None
