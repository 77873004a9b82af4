"""Caratheodory's theorem as an algorithm: a non-negative combination of few of the given vectors.

Where vectors p_j are dependent, sum b_j p_j = 0, the weights x - t b give the same sum for every t. Up to
the first weight that vanishes they stay non-negative, and one vector fewer is in use. An orthonormal basis
of all dependencies is kept throughout: each step turns it by one Householder reflection so that all of
its vectors but one leave the vanished weight alone, and that one is dropped.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy import linalg

_NEGLIGIBLE = 1e-12  # entry of a dependency, relative to its largest, that does not limit a step
_REFINEMENTS = 2


@dataclass(frozen=True)
class Combination:
    """Non-negative weights, and what is known of the vectors."""

    weights: Float[np.ndarray, " k"]
    rank: int  # of all vectors, to the tolerance asked for
    change: float  # of the sum, in the largest entry


def fewest(
    P: Float[np.ndarray, "N k"],
    costs: Float[np.ndarray, " k"],
    tolerance: float,
    target: Float[np.ndarray, " N"] | None = None,
) -> Combination:
    """Weights x >= 0 with P x = ``target`` (default: the sum of the columns), at most rank(P) of them positive.

    Starts from x = 1 and never raises ``costs`` @ x, up to rounding. Singular values below ``tolerance`` times
    the largest, of the columns scaled to norm one, count as zero.
    """
    target = P.sum(1) if target is None else target
    sizes = np.linalg.norm(P, axis=0)
    live = sizes > np.finfo(float).eps * sizes.max(initial=0.0)
    if not live.any():
        return Combination(np.zeros(len(sizes)), 0, float(np.abs(target).max(initial=0.0)))
    unit = P[:, live] / sizes[live]
    basis = _dependencies(unit, tolerance)
    rank = unit.shape[1] - basis.shape[1]
    x = _eliminate(sizes[live].copy(), basis, costs[live] / sizes[live])
    x = _refined(unit, x, target, tolerance)
    weights = np.zeros(len(sizes))
    weights[live] = x / sizes[live]
    return Combination(weights, rank, float(np.abs(P @ weights - target).max()))


def rank(P: Float[np.ndarray, "N k"], tolerance: float = 1e-8) -> int:
    """Of the columns, scaled to norm one: singular values below ``tolerance`` times the largest count as zero."""
    sizes = np.linalg.norm(P, axis=0)
    live = sizes > np.finfo(float).eps * sizes.max(initial=0.0)
    unit = P[:, live] / sizes[live]
    return unit.shape[1] - _dependencies(unit, tolerance).shape[1] if live.any() else 0


def _dependencies(unit: Float[np.ndarray, "N k"], tolerance: float) -> Float[np.ndarray, "k q"]:
    """An orthonormal basis of {b: unit b = 0}, up to the tolerance."""
    square = linalg.qr(unit, mode="r", check_finite=False)[0] if len(unit) > unit.shape[1] else unit
    square = square[: unit.shape[1]]
    _, values, right = linalg.svd(square, full_matrices=True, check_finite=False)
    rank = int((values > tolerance * values[0]).sum())
    return np.asfortranarray(right[rank:].T)


def _eliminate(
    x: Float[np.ndarray, " k"], basis: Float[np.ndarray, "k q"], costs: Float[np.ndarray, " k"]
) -> Float[np.ndarray, " k"]:
    while basis.shape[1]:
        b = _direction(x, basis, costs)
        hit = _first_to_vanish(x, b)
        if hit < 0:  # only rounding is left of this basis
            break
        x = np.maximum(x - x[hit] / b[hit] * b, 0.0)
        x[hit] = 0.0
        basis = _without(basis, hit)
    return x


def _direction(x: np.ndarray, basis: np.ndarray, costs: np.ndarray) -> np.ndarray:
    """The dependency along which sum log x falls fastest, so that small weights vanish first, and costs do not rise."""
    wanted = np.where(x > 0, 1.0 / np.maximum(x, 1e-9 * x.max(initial=0.0) + 1e-300), 0.0)
    b = basis @ (basis.T @ wanted)
    largest = np.abs(b).max(initial=0.0)
    b = basis[:, -1] if largest == 0.0 else b / largest
    return b if costs @ b >= 0 else -b


def _first_to_vanish(x: np.ndarray, b: np.ndarray) -> int:
    limits = np.where(b > _NEGLIGIBLE * np.abs(b).max(), x, np.inf) / np.where(b > 0, b, 1.0)
    hit = int(np.argmin(limits))
    return hit if np.isfinite(limits[hit]) else -1


def _without(basis: np.ndarray, row: int) -> np.ndarray:
    """The part of the span that is zero in this row."""
    v = basis[row].copy()
    v[-1] += np.copysign(np.linalg.norm(v), v[-1])
    basis -= np.outer(basis @ v, v * (2.0 / (v @ v)))
    basis[row] = 0.0
    return basis[:, :-1]


def _refined(unit: np.ndarray, x: np.ndarray, target: np.ndarray, tolerance: float) -> np.ndarray:
    """With the drift of many steps taken out by least squares, where that leaves the weights non-negative."""
    used = np.flatnonzero(x > 0)
    for _ in range(_REFINEMENTS):
        left = target - unit[:, used] @ x[used]
        step = linalg.lstsq(unit[:, used], left, cond=tolerance, check_finite=False)[0]
        moved = x.copy()
        moved[used] += step
        if (moved < 0).any() or np.linalg.norm(target - unit @ moved) >= np.linalg.norm(left):
            break
        x = moved
    return x
