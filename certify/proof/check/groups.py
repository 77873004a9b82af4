"""The Lagrangian of one group of samples in a proof about the sphere; see ``spheres``."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from certify.proof.artefact import fields, integer, integers, items, require
from certify.proof.check.exact import Matrix, Vector, product, psd, transposed

# The bound of a group is raised by this share of itself, in bits, so that its matrix is inside the cone.
_INSIDE = 30


@dataclass(frozen=True)
class Scales:
    """Scales of a region's numbers: as the file has them, of w and multipliers, of rows, and of the matrices."""

    own: int
    base: int
    rows: int
    whole: int


@dataclass(frozen=True)
class Group:
    """Multipliers of a group of m samples, integers at the base scale.

    Attributes:
        indices: of the samples.
        first: (l, e) of s_i (l + e'u), m rows of d + 1.
        second: (l, e) of (s_i - t_i)(l + e'u).
        both: of s_i s_j, symmetric m x m with a zero diagonal.
        mixed: of s_i (s_j - t_j).
        neither: of (s_i - t_i)(s_j - t_j), symmetric.
        pivot: of -s_i (s_i - t_i), any sign.
    """

    indices: Vector
    first: Matrix
    second: Matrix
    both: Matrix
    mixed: Matrix
    neither: Matrix
    pivot: Vector


def read_group(value: Any, size: tuple[int, int], scales: Scales, where: str) -> Group:
    """A group of the file, with the signs that make its products non-negative."""
    n, d = size
    where = f"a group of {where}"
    held = fields(value, where, "indices", "first", "second", "pairs", "pivot")
    indices = [integer(i, where, 0, n - 1) for i in items(held["indices"], None, where)]
    m, lift = len(indices), scales.base - scales.own
    require(0 < m == len(set(indices)), f"{where} repeats a sample or has none")
    first, second = (_cones(held[name], m, d, where) for name in ("first", "second"))
    both, mixed, neither = _pairs(held["pairs"], m, where)
    pivot = integers(held["pivot"], m, where)
    first, second, both, mixed, neither = (
        [[v << lift for v in row] for row in part] for part in (first, second, both, mixed, neither)
    )
    return Group(indices, first, second, both, mixed, neither, [v << lift for v in pivot])


def _cones(value: Any, m: int, d: int, where: str) -> Matrix:
    rows = [integers(row, d + 1, where) for row in items(value, m, where)]
    for head, *tail in rows:
        require(head >= 0 and head * head >= sum(v * v for v in tail), f"{where} has a multiplier outside its cone")
    return rows


def _pairs(value: Any, m: int, where: str) -> tuple[Matrix, Matrix, Matrix]:
    """Four numbers for each pair i > j: s_i s_j, s_i (s_j - t_j), s_j (s_i - t_i), (s_i - t_i)(s_j - t_j)."""
    both, mixed, neither = ([[0] * m for _ in range(m)] for _ in range(3))
    places = [(i, j) for i in range(m) for j in range(i)]
    for (i, j), part in zip(places, items(value, len(places), where), strict=True):
        a, b, c, e = integers(part, 4, where)
        require(min(a, b, c, e) >= 0, f"{where} has a negative multiplier")
        both[i][j] = both[j][i] = a
        mixed[i][j], mixed[j][i] = b, c
        neither[i][j] = neither[j][i] = e
    return both, mixed, neither


def add(A: Matrix, B: Matrix) -> None:
    """A += B."""
    for row, other in zip(A, B, strict=True):
        row[:] = [a + b for a, b in zip(row, other, strict=True)]


def group_form(X: Matrix, w: Vector, group: Group, scales: Scales) -> Matrix:
    """Q with (1, u)'Q(1, u) >= w's, at the scale of the matrices; rejects if its own bound cannot be proved."""
    F, B, S = lagrangian(X, w, group, scales)
    C = _suggested(B, S, scales.whole)
    arrow = [[*c, *b] for c, b in zip(C, B, strict=True)] + [[*b, *s] for b, s in zip(transposed(B), S, strict=True)]
    require(psd(arrow), "the bound of a group is not proved")
    add(F, C)
    return F


def lagrangian(X: Matrix, w: Vector, group: Group, scales: Scales) -> tuple[Matrix, Matrix, Matrix]:
    """F, B, S of (1, u)'F(1, u) + 2 (1, u)'B s - s'S s at the scale of the matrices."""
    m = len(X)
    half = scales.whole - scales.base - 1
    head = [(a + p[0] + q[0]) << half for a, p, q in zip(w, group.first, group.second, strict=True)]
    weights = [
        [(group.pivot[i] if i == j else 0) - group.mixed[i][j] - group.neither[i][j] for j in range(m)]
        for i in range(m)
    ]
    tail = product(weights, X)
    own, joint = half, half - scales.rows
    B_rows = [
        [h, *(((p + q) << own) + (t << joint) for p, q, t in zip(a[1:], b[1:], row, strict=True))]
        for h, a, b, row in zip(head, group.first, group.second, tail, strict=True)
    ]
    S = [
        [
            (
                (2 * group.pivot[i] if i == j else 0)
                - group.both[i][j]
                - group.mixed[i][j]
                - group.mixed[j][i]
                - group.neither[i][j]
            )
            << half
            for j in range(m)
        ]
        for i in range(m)
    ]
    return _outer(X, group, joint, scales), transposed(B_rows), S


def _outer(X: Matrix, group: Group, joint: int, scales: Scales) -> Matrix:
    """-l (t) of the second cones, -(e'u) t of them, and the t_i t_j of pairs."""
    columns, d = transposed(X), len(X[0])
    edge = [-sum(v * q[0] for v, q in zip(column, group.second, strict=True)) << joint for column in columns]
    cross = product(columns, [q[1:] for q in group.second])
    pairs = product(columns, product(group.neither, X))
    inner = [
        [(pairs[i][j] << (joint - scales.rows)) - ((cross[i][j] + cross[j][i]) << joint) for j in range(d)]
        for i in range(d)
    ]
    return [[0, *edge], *([e, *row] for e, row in zip(edge, inner, strict=True))]


def _suggested(B: Matrix, S: Matrix, scale: int) -> Matrix:
    """B S^-1 B' and a little more, in floating point: a hint."""
    b, s = _floats(B, scale), _floats(S, scale)
    try:
        C = b @ np.linalg.solve(s, b.T)
    except np.linalg.LinAlgError:
        C = np.zeros((len(B), len(B)))
    C = (C + C.T) / 2 + np.eye(len(C)) * float(np.trace(C)) * 2.0**-_INSIDE
    require(bool(np.isfinite(C).all()), "the bound of a group is not finite")
    bits = 80
    values = [
        [_integer(v, bits) << (scale - bits) if scale >= bits else _integer(v, scale) for v in row]
        for row in C.tolist()
    ]
    return [[values[max(i, j)][min(i, j)] for j in range(len(values))] for i in range(len(values))]


def _floats(A: Matrix, scale: int) -> np.ndarray:
    return np.array([[v / (1 << scale) for v in row] for row in A], dtype=float)


def _integer(v: float, bits: int) -> int:
    numerator, denominator = v.as_integer_ratio()
    return (numerator << bits) // denominator
