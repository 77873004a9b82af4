"""A primal-dual interior-point method for `Program`, whose every iterate gives a valid bound.

The dual asks for the largest t with S = C - sum y_k A_k - t E_00 positive semidefinite and y >= 0 on inequalities. At
every iterate S is positive definite, so t + 1 / (S^-1)_00 is a bound of the primal too: the largest t for these y.
Predictor and corrector use the HKM direction (Helmberg, Rendl, Vanderbei & Wolkowicz, SIAM J. Optim. 6, 1996; Kojima,
Shindoh & Hara, SIAM J. Optim. 7, 1997).

Floating point: what leaves this module are multipliers; `certify.bounds.sdp.judge` says what they prove.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import inf

import numpy as np
import scipy.linalg as sl
from jaxtyping import Bool
from scipy.linalg.blas import dtrsv

from certify.bounds.sdp.program import Matrix, Program, Vector

# Shares of the way to the boundary.
_PREDICTED, _EARLY, _LATE = 0.98, 0.95, 0.97
_FEASIBLE = 1e-3
_LANCZOS = 25
_SMALL = 60


@dataclass(frozen=True)
class Settings:
    """When to stop.

    Attributes:
        iterations: at most; 0 returns the start.
        tolerance: relative gap between the value of the relaxation and its bound.
        enough: stop once the bound is above; infinite to go on to the tolerance.
        hopeless: stop once the relaxation's value is clearly below; minus infinity to go on.
    """

    iterations: int = 40
    tolerance: float = 1e-6
    enough: float = inf
    hopeless: float = -inf


@dataclass(frozen=True, eq=False)
class Iterate:
    """The best point so far.

    Attributes:
        y: multipliers with the best bound.
        bound: theirs, in floating point.
        X: the last moment matrix; feasible up to `infeasibility`.
        value: its objective.
        iterations: done.
    """

    y: Vector
    bound: float
    X: Matrix
    value: float
    infeasibility: float
    iterations: int


@dataclass(eq=False)
class _State:
    """All change in every iteration but the last three, which the next one makes from them."""

    X: Matrix
    s: Vector  # slacks of the inequalities; 1 elsewhere
    y: Vector
    t: float
    S: Matrix
    factor: Matrix  # lower Cholesky factor of S
    inverse: Matrix
    best: float
    best_y: Vector


@dataclass(frozen=True, eq=False)
class _Direction:
    y: Vector  # the last entry is t's
    S: Matrix
    X: Matrix
    s: Vector


def solve(
    program: Program,
    start: Vector,
    moments: Matrix,
    settings: Settings,
    *,
    stop: Callable[[], bool] | None = None,
) -> Iterate:
    """From multipliers for which S is positive definite at some t, and a positive definite moment matrix."""
    state = _initial(program, start, moments)
    value, infeasibility = inf, inf
    for count in range(settings.iterations + 1):
        residual = _residual(program, state)
        value, infeasibility = float(np.sum(program.cost * state.X)), float(np.abs(residual).max())
        if _done(settings, state.best, value, infeasibility) or count == settings.iterations or (stop and stop()):
            break
        if not _step(program, state, late=count > 5):
            break
    return Iterate(state.best_y, state.best, state.X, value, infeasibility, count)


def _done(settings: Settings, best: float, value: float, infeasibility: float) -> bool:
    if best > settings.enough:
        return True
    if infeasibility < _FEASIBLE and value < settings.hopeless:
        return True
    return infeasibility < 1e-4 and value - best < settings.tolerance * max(1.0, abs(best))


def _initial(program: Program, start: Vector, moments: Matrix) -> _State:
    S = program.cost - program.adjoint(start)
    bound = best_t(S)
    t = bound - 0.2 * max(1.0, abs(bound))
    S[0, 0] -= t
    inequality = program.inequality
    s = np.ones(len(inequality))
    s[inequality] = np.maximum(program.apply(moments)[inequality], 0.05)
    factor, inverse = _factor(S)
    return _State(moments.copy(), s, start.copy(), t, S, factor, inverse, bound, start.copy())


def best_t(S: Matrix) -> float:
    """The largest t with S - t E_00 positive semidefinite; raises `LinAlgError` where there is none."""
    factor = sl.cholesky(S[1:, 1:], lower=True)
    half = sl.solve_triangular(factor, S[1:, 0], lower=True)
    return float(S[0, 0] - half @ half)


def _factor(S: Matrix) -> tuple[Matrix, Matrix]:
    factor = sl.cholesky(S, lower=True, check_finite=False)
    inverse = sl.cho_solve((factor, True), np.eye(len(S)), check_finite=False)
    return factor, (inverse + inverse.T) / 2


def _residual(program: Program, state: _State) -> Vector:
    """What X lacks: 0 - A X (+ s), and last 1 - X_00."""
    k = program.inequality
    found = -program.apply(state.X)
    found[k] += state.s[k]
    return np.append(found, 1.0 - state.X[0, 0])


def _step(program: Program, state: _State, *, late: bool) -> bool:
    """One predictor and corrector; False where rounding leaves no way on."""
    k = program.inequality
    nu = program.size + int(k.sum())
    mu = (float(np.sum(state.X * state.S)) + float(state.s[k] @ state.y[k])) / nu
    system = _system(program, state)
    root = _root(state.X)
    if system is None or root is None:
        return False
    ahead = _direction(program, state, system, 0.0)
    lengths = _lengths(state, root, ahead, k, _PREDICTED)
    centring = _centring(state, ahead, lengths, mu, nu, k)
    chosen = _direction(program, state, system, centring * mu, ahead)
    primal, dual = _lengths(state, root, chosen, k, _LATE if late else _EARLY)
    state.X = state.X + primal * chosen.X
    state.s = state.s + primal * chosen.s
    return _move_dual(program, state, chosen, dual)


def _system(program: Program, state: _State) -> tuple[Matrix, bool] | None:
    """The factored Schur matrix."""
    M = program.schur(state.X, state.inverse)
    k = np.flatnonzero(program.inequality)
    i = np.arange(len(M))
    M[i, i] *= 1 + 1e-13
    M[k, k] += state.s[k] / state.y[k]
    for _ in range(3):
        try:
            return sl.cho_factor(M, lower=True, check_finite=False)
        except sl.LinAlgError:
            M[i, i] *= 1 + 1e-9
    return None


def _root(X: Matrix) -> Matrix | None:
    for shift in (0.0, 1e-13, 1e-11):
        try:
            return sl.cholesky(X + shift * np.trace(X) * np.eye(len(X)), lower=True, check_finite=False)
        except sl.LinAlgError:
            continue
    return None


def _direction(
    program: Program, state: _State, system: tuple[Matrix, bool], mu: float, ahead: _Direction | None = None
) -> _Direction:
    """Towards complementarity mu; with the second-order terms of the predictor where there is one."""
    k, q = program.inequality, len(state.y)
    P = state.inverse
    right = np.append(-mu * program.apply(P), 1.0 - mu * P[0, 0])
    right[:q][k] += mu / state.y[k]
    second = None
    if ahead is not None:
        second = _symmetric(ahead.X @ ahead.S @ P)
        bend = ahead.s[k] * ahead.y[:q][k] / state.y[k]
        right += np.append(program.apply(second), second[0, 0])
        right[:q][k] -= bend
    dy = sl.cho_solve(system, right, check_finite=False)
    dS = -program.adjoint(dy[:q])
    dS[0, 0] -= dy[q]
    dX = mu * P - state.X - _symmetric(state.X @ dS @ P)
    ds = np.zeros(q)
    ds[k] = mu / state.y[k] - state.s[k] - state.s[k] / state.y[k] * dy[:q][k]
    if second is not None:
        dX -= second
        ds[k] -= bend
    return _Direction(dy, dS, dX, ds)


def _symmetric(M: Matrix) -> Matrix:
    return (M + M.T) / 2


def _lengths(
    state: _State, root: Matrix, direction: _Direction, k: Bool[np.ndarray, " q"], share: float
) -> tuple[float, float]:
    """Of the primal and the dual step, at most 1."""
    primal = min(_matrix_length(root, direction.X, share), _vector_length(state.s[k], direction.s[k], share))
    y = direction.y[: len(state.y)]
    dual = min(_matrix_length(state.factor, direction.S, share), _vector_length(state.y[k], y[k], share))
    return primal, dual


def _vector_length(at: Vector, step: Vector, share: float) -> float:
    down = step < 0
    return min(1.0, float((-share * at[down] / step[down]).min())) if down.any() else 1.0


def _matrix_length(factor: Matrix, step: Matrix, share: float) -> float:
    """How far to go from L L' along a step: from the least eigenvalue of L^-1 step L^-T, or an estimate below it."""
    if len(factor) < _SMALL:
        half = sl.solve_triangular(factor, step, lower=True, check_finite=False)
        whole = sl.solve_triangular(factor, half.T, lower=True, check_finite=False)
        least = float(sl.eigvalsh(_symmetric(whole), check_finite=False, subset_by_index=[0, 0])[0])
    else:
        least = _lanczos(factor, step)
    return 1.0 if least >= -share else -share / least


def _lanczos(factor: Matrix, step: Matrix) -> float:
    n = len(factor)
    L = np.asfortranarray(factor)
    q = np.random.default_rng(0).standard_normal(n)
    q /= np.linalg.norm(q)
    basis = np.zeros((_LANCZOS, n))
    diagonal: list[float] = []
    beside: list[float] = []
    for j in range(_LANCZOS):
        basis[j] = q
        w = dtrsv(L, step @ dtrsv(L, q, lower=1, trans=1), lower=1)
        diagonal.append(float(q @ w))
        for _ in range(2):
            w = w - basis[: j + 1].T @ (basis[: j + 1] @ w)
        beside.append(float(np.linalg.norm(w)))
        if beside[-1] < 1e-12:
            break
        q = w / beside[-1]
    values, vectors = sl.eigh_tridiagonal(diagonal, beside[: len(diagonal) - 1])
    return float(values[0] - abs(beside[-1] * vectors[-1, 0]))


def _centring(
    state: _State, ahead: _Direction, lengths: tuple[float, float], mu: float, nu: int, k: Bool[np.ndarray, " q"]
) -> float:
    primal, dual = lengths
    y = ahead.y[: len(state.y)]
    left = float(np.sum((state.X + primal * ahead.X) * (state.S + dual * ahead.S)))
    left += float((state.s + primal * ahead.s)[k] @ (state.y + dual * y)[k])
    ratio = min(1.0, max(left / nu / mu, 0.0))
    centring = max(ratio ** (2 if min(lengths) < 0.9 else 3), 1e-4)
    return max(centring, 0.3) if min(lengths) < 0.1 else centring


def _move_dual(program: Program, state: _State, direction: _Direction, length: float) -> bool:
    """The dual step, shortened until S is positive definite."""
    q = len(state.y)
    while length > 1e-8:
        y, t = state.y + length * direction.y[:q], state.t + length * float(direction.y[q])
        S = program.cost - program.adjoint(y)
        S[0, 0] -= t
        try:
            factor, inverse = _factor(S)
        except sl.LinAlgError:
            length *= 0.7
            continue
        state.y, state.t, state.S, state.factor, state.inverse = y, t, S, factor, inverse
        bound = t + 1.0 / float(inverse[0, 0])
        if bound > state.best:
            state.best, state.best_y = bound, y.copy()
        return True
    return False
