"""Exact pieces that every kind of proof shares: matrix products, positive semidefiniteness, square roots.

Matrices are lists of rows of Python integers. Floating point serves as a hint only: what it suggests is verified in
integers, and a wrong hint can cause a rejection, never an acceptance.
"""

from collections.abc import Sequence
from math import isqrt, ldexp
from operator import mul
from typing import Any

import numpy as np

from certify.proof.artefact import Dyadic

fmpz_mat: Any
try:
    from flint import fmpz_mat
except ImportError:  # plain integers do the same, several times slower
    fmpz_mat = None

Vector = list[int]
Matrix = list[list[int]]

_FACTOR_BITS = 52
# How far the factor's matrix is moved inside the cone, in bits: the first that succeeds.
_MARGINS = (28, 34, 40, 45)


def transposed(A: Matrix) -> Matrix:
    """A'."""
    return [list(column) for column in zip(*A, strict=True)]


def dot(a: Vector, b: Vector) -> int:
    """a.b for vectors of one length."""
    assert len(a) == len(b)
    return sum(map(mul, a, b))


def product(A: Matrix, B: Matrix) -> Matrix:
    """A B."""
    assert all(len(row) == len(B) for row in A)
    if not A or not B or not B[0]:
        return [[0] * (len(B[0]) if B else 0) for _ in A]
    if fmpz_mat is not None:
        return [[int(v) for v in row] for row in (fmpz_mat(A) * fmpz_mat(B)).tolist()]
    columns = transposed(B)
    return [_combination(row, columns) for row in A]


def _combination(row: Vector, columns: Matrix) -> Vector:
    """Rows of multipliers are often mostly zeros: those are skipped."""
    if 4 * sum(map(bool, row)) > len(row):
        return [sum(map(mul, row, column)) for column in columns]
    kept = [(i, v) for i, v in enumerate(row) if v]
    return [sum(v * column[i] for i, v in kept) for column in columns]


def gram(A: Matrix) -> Matrix:
    """A A'."""
    return product(A, transposed(A))


def turned(A: Dyadic) -> Dyadic:
    """A' of a dyadic matrix."""
    return Dyadic(transposed(A.values), A.scale)


def times(A: Dyadic, B: Dyadic) -> Dyadic:
    """A B of dyadic matrices."""
    return Dyadic(product(A.values, B.values), A.scale + B.scale)


def plus(*parts: Dyadic) -> Dyadic:
    """The sum of dyadic matrices of one shape."""
    scale = max(part.scale for part in parts)
    rows = zip(*(part.at(scale) for part in parts), strict=True)
    return Dyadic([[sum(entries) for entries in zip(*row, strict=True)] for row in rows], scale)


def stacked(parts: Sequence[Dyadic]) -> Dyadic:
    """Matrices of one width under each other."""
    scale = max(part.scale for part in parts)
    return Dyadic([row for part in parts for row in part.at(scale)], scale)


def weighted(w: Dyadic, A: Dyadic) -> Dyadic:
    """diag(w) A."""
    rows = [[v * a for a in row] for v, row in zip(w.values, A.values, strict=True)]
    return Dyadic(rows, w.scale + A.scale)


def column(w: Dyadic, width: int = 1) -> Dyadic:
    """The vector as the first column of a matrix of zeros."""
    return Dyadic([[v, *[0] * (width - 1)] for v in w.values], w.scale)


def ceil_divide(a: int, b: int) -> int:
    """a / b rounded up, b > 0."""
    assert b > 0
    return -(-a // b)


def root_up(n: int) -> int:
    """The square root of n >= 0, rounded up to an integer."""
    root = isqrt(n)
    return root if root * root == n else root + 1


def psd(S: Matrix) -> bool:
    """Whether the symmetric integer matrix is proved to be positive semidefinite; a failure proves nothing.

    S' = D S D with powers of two D has a diagonal near 1. L is the rounded Cholesky factor of S' - 2^-28 I (then
    less). Accepted if the exact residual S' - L L' is diagonally dominant with a diagonal >= 0: then it is positive
    semidefinite, and so are S' and S. A zero on the diagonal needs a zero row.
    """
    if any(S[i][j] != S[j][i] for i in range(len(S)) for j in range(i)):
        return False
    if any(S[i][i] < 0 or (S[i][i] == 0 and any(S[i])) for i in range(len(S))):
        return False
    kept = [i for i in range(len(S)) if S[i][i]]
    S = [[S[i][j] for j in kept] for i in kept]
    if any(S[i][j] ** 2 > S[i][i] * S[j][j] for i in range(len(S)) for j in range(i)):
        return False
    if not S:
        return True
    shifts = [-((S[i][i].bit_length() + 1) // 2) for i in range(len(S))]
    near = np.array(
        [[scaled(v, a + b) for v, b in zip(row, shifts, strict=True)] for row, a in zip(S, shifts, strict=True)]
    )
    return any(_dominant_residual(S, shifts, near, margin) for margin in _MARGINS)


def scaled(v: int, exponent: int) -> float:
    """v 2^exponent as a hint, whatever the size of v: infinite beyond the range."""
    excess = max(v.bit_length() - 60, 0)
    top = v >> excess
    return ldexp(float(top), exponent + excess) if exponent + excess < 900 else np.inf * top


def _dominant_residual(S: Matrix, shifts: list[int], near: np.ndarray, margin: int) -> bool:
    try:
        factor = np.linalg.cholesky(near - np.eye(len(near)) * 2.0**-margin)
    except np.linalg.LinAlgError:
        return False
    L = [[int(v) for v in row] for row in np.rint(np.ldexp(factor, _FACTOR_BITS)).tolist()]
    P = gram(L)
    extra = max(0, -2 * min(shifts) - 2 * _FACTOR_BITS)
    for i, row in enumerate(S):
        up = shifts[i] + 2 * _FACTOR_BITS + extra
        residual = [abs((v << (up + b)) - (p << extra)) for v, p, b in zip(row, P[i], shifts, strict=True)]
        own = (row[i] << (up + shifts[i])) - (P[i][i] << extra)
        if own < sum(residual) - residual[i]:
            return False
    return True


def at_most_norm(W: Matrix, square: int) -> bool:
    """Whether it is proved that |W|_2^2 <= square: square I - W W' (or W'W, the smaller) is positive semidefinite."""
    G = gram(W) if len(W) <= len(W[0]) else gram(transposed(W))
    return psd([[(square if i == j else 0) - v for j, v in enumerate(row)] for i, row in enumerate(G)])
