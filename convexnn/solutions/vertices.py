"""Vertices of a bounded polyhedron {t: b + A t >= 0} by a walk along its edges.

A vertex is where q independent rows vanish, a basis. Where more of them do, b + delta w with an infinitesimal delta and
a generic w > 0 tells bases apart: each is a vertex of its own then, with q edges to one other vertex each; all are
connected, and every vertex of the polyhedron itself is the limit of at least one as delta goes to zero (the idea of
lexicographic pivots; Avis & Fukuda, 1992). Numbers s + delta w are compared by s first and by w where s is a tie.
"""

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import linprog

from convexnn.errors import SolverError

_TIE = 1e-9  # of the largest b, below which slacks are zero and ratios equal
_PIVOT = 1e-9  # of a unit row's rate along an edge, below which it does not meet it
_CHUNK = 512


def bases(A: Float[np.ndarray, "m q"], b: Float[np.ndarray, " m"], most: int) -> tuple[Int[np.ndarray, "v q"], bool]:
    """Rows that vanish, for every vertex at least one basis; and whether these are all, which ``most`` can prevent.

    The polyhedron is bounded, has an interior, and t = 0 is in it.

    Raises:
        SolverError: HiGHS found no vertex to start from.
    """
    sizes = np.linalg.norm(A, axis=1)
    rows = np.flatnonzero(sizes > 1e-12 * sizes.max())  # others are the same everywhere
    A, b = A[rows] / sizes[rows, None], b[rows] / sizes[rows]
    b = b / b.max()
    shifts = np.random.default_rng(0).uniform(1.0, 2.0, len(b))
    start = tuple(_start(A, b, shifts).tolist())
    seen, frontier = {start}, [start]
    while frontier and len(seen) <= most:
        here, frontier = frontier[:_CHUNK], frontier[_CHUNK:]
        for row in _neighbours(A, b, shifts, np.array(here)).tolist():
            basis = tuple(row)
            if basis not in seen:
                seen.add(basis)
                frontier.append(basis)
    return rows[np.array(list(seen))], not frontier


def _start(A: np.ndarray, b: np.ndarray, shifts: np.ndarray) -> Int[np.ndarray, " q"]:
    """A basis of the shifted polyhedron: at a vertex, and among the rows that vanish there where these are too many."""
    q = A.shape[1]
    t = _vertex(A, b, np.random.default_rng(1).standard_normal((q,)))
    tight = np.flatnonzero(b + A @ t <= _TIE)
    if len(tight) == q:
        return tight
    near = _vertex(A[tight], shifts[tight], A[tight].sum(axis=0))
    return np.sort(tight[np.argsort(shifts[tight] + A[tight] @ near)[:q]])


def _vertex(A: np.ndarray, b: np.ndarray, cost: np.ndarray) -> Float[np.ndarray, " q"]:
    for method in ("highs-ds", "highs-ipm"):  # the simplex method gives up on some degenerate ones
        found = linprog(cost / np.abs(cost).max(), A_ub=-A, b_ub=b, bounds=(None, None), method=method)
        if found.x is not None:
            return found.x
    raise SolverError(f"HiGHS found no vertex of an optimal set: {found.message}")


def _neighbours(
    A: Float[np.ndarray, "m q"], b: Float[np.ndarray, " m"], shifts: Float[np.ndarray, " m"], Z: Int[np.ndarray, "v q"]
) -> Int[np.ndarray, "e q"]:
    """The bases at the other ends of all edges; an edge leaves one of the rows of a basis."""
    inverse = np.linalg.inv(A[Z])
    rates = A @ inverse  # of every row, as one of the basis grows
    slack = b - (rates @ b[Z][:, :, None])[:, :, 0]
    slack[np.abs(slack) <= _TIE] = 0.0
    shifted = shifts - (rates @ shifts[Z][:, :, None])[:, :, 0]
    np.put_along_axis(rates, Z[:, :, None], 0.0, axis=1)
    meets = rates < -_PIVOT
    speed = np.where(meets, -rates, 1.0)
    first = np.where(meets, slack[:, :, None] / speed, np.inf)
    tied = first <= first.min(axis=1, keepdims=True) + _TIE
    entering = np.where(tied & meets, shifted[:, :, None] / speed, np.inf).argmin(axis=1)
    ends = np.repeat(Z[:, None, :], Z.shape[1], axis=1)
    leaving = np.arange(Z.shape[1])
    ends[:, leaving, leaving] = entering
    return np.sort(ends[meets.any(axis=1)], axis=1)
