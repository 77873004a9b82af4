"""Proofs that v'(Xu)_+ <= weight |u| on simplicial cones that cover the space: for few columns, and as tight as wanted.

With P the part of v'(Xu)_+ with v_i > 0 and N the rest, P - N: on a cone with rays w_1, ..., w_d, P(u) is at most the
linear function that has its values at the rays (P is convex and positively homogeneous), and N(u) >= eta'u for every
eta = sum_i kappa_i |v_i| x_i with 0 <= kappa <= 1. So if (h + eta)'w_k >= P(w_k) for all rays, then
P(u) - N(u) <= h'u <= |h| |u| on the cone. The cones start from the orthants; a split replaces the rays i and j in
turn by a positive combination of both.

Data whose rows are nearly x_i = B c_i with a narrow B are proved in the columns of B: (x_i'u)_+ differs from
(c_i'B'u)_+ by at most |x_i - B c_i| |u|, and |B'u| <= |B| |u|, so that v'(C y)_+ <= (weight - sum |v_i| |x_i - B c_i|)
/ |B| for unit vectors y is enough.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from certify.proof.artefact import DEEPEST, Dyadic, Work, affordable, dyadic, fields, integer, items, require
from certify.proof.check.exact import Matrix, Vector, ceil_divide, dot, product, root_up, times, transposed

_BATCH = 2000
_BATCH_NUMBERS = 2**24  # of all rows at all rays of a batch
_PLAIN = 16  # the work of a multiplication in Python, in those of matrix products
_SHARE_BITS = 50  # of the rows of N in a subgradient
_STRADDLING = 16  # rows whose shares are chosen
_MOST_COLUMNS = 10
_NORM_BITS = 80  # of the norm of a basis


@dataclass(frozen=True)
class Parts:
    """v'(Xu)_+ as P - N: rows |v_i| x_i of either, integers at a scale and in floating point."""

    plus: Matrix
    minus: Matrix
    scale: int
    plus_floats: np.ndarray
    minus_floats: np.ndarray


def parts_of(X: Dyadic, v: Dyadic, sign: int) -> Parts:
    """P and N for sign v."""
    rows = [[sign * a * x for x in row] for a, row in zip(v.values, X.values, strict=True)]
    scale = X.scale + v.scale
    plus = [row for a, row in zip(v.values, rows, strict=True) if sign * a > 0]
    minus = [[-x for x in row] for a, row in zip(v.values, rows, strict=True) if sign * a < 0]
    d = len(X.values[0])
    return Parts(plus, minus, scale, _floats(plus, d, scale), _floats(minus, d, scale))


def _floats(rows: Matrix, d: int, scale: int) -> np.ndarray:
    return np.array([[x / (1 << scale) for x in row] for row in rows], dtype=float).reshape(len(rows), d)


def orthants(d: int) -> list[Matrix]:
    """The rays of the 2^d orthants."""
    return [[[(-1 if s >> k & 1 else 1) if i == k else 0 for i in range(d)] for k in range(d)] for s in range(1 << d)]


def between(a: Vector, b: Vector) -> Vector:
    """A positive combination of two rays, both taken at about the same length."""
    longer = (sum(v * v for v in a).bit_length() - sum(v * v for v in b).bit_length()) // 2
    p, q = (0, longer) if longer >= 0 else (-longer, 0)
    return [(x << p) + (y << q) for x, y in zip(a, b, strict=True)]


def check_cones(X: Dyadic, v: Dyadic, sign: int, weight: Dyadic, value: Any, where: str, work: Work) -> None:
    """Reject unless sign v'(Xu)_+ <= weight |u| is proved on every cone."""
    reduced = type(value) is dict and "span" in value
    held = fields(value, where, "cones", *(("span",) if reduced else ()))
    if reduced:
        X, weight = within(X, v, weight, _read_span(held["span"], X, where), where)
    d = len(X.values[0])
    require(d <= _MOST_COLUMNS, f"{where}: cones are for at most {_MOST_COLUMNS} columns")
    parts = parts_of(X, v, sign)
    size = max(1, min(_BATCH, _BATCH_NUMBERS // (d * len(X.values))))
    batch: list[Matrix] = []
    for cone in _leaves(items(held["cones"], None, where), d, where):
        batch.append(cone)
        work.add(_PLAIN * d * (d + len(X.values)))
        if len(batch) == size:
            _check_batch(batch, parts, weight, where)
            batch = []
    if batch:
        _check_batch(batch, parts, weight, where)


@dataclass(frozen=True)
class Span:
    """B (d x r) and C (n x r) with X nearly C B'."""

    basis: Dyadic
    rows: Dyadic


def _read_span(value: Any, X: Dyadic, where: str) -> Span:
    held = fields(value, f"the span of {where}", "basis", "rows")
    first = items(fields(held["basis"], where, "scale", "values")["values"], len(X.values[0]), where)[0]
    r = len(items(first, None, where))
    require(0 < r <= _MOST_COLUMNS, f"{where}: a span has from 1 to {_MOST_COLUMNS} columns")
    basis = dyadic(held["basis"], (len(X.values[0]), r), f"the basis of {where}")
    return Span(basis, dyadic(held["rows"], (len(X.values), r), f"the rows of {where}"))


def within(X: Dyadic, v: Dyadic, weight: Dyadic, span: Span, where: str) -> tuple[Dyadic, Dyadic]:
    """C, and the weight that is left for the cones in its columns, rounded down."""
    near = times(span.rows, Dyadic(transposed(span.basis.values), span.basis.scale))
    scale = max(near.scale, X.scale)
    affordable(len(X.values) * len(X.values[0]), scale)
    rest = [[a - b for a, b in zip(*pair, strict=True)] for pair in zip(X.at(scale), near.at(scale), strict=True)]
    error = sum(abs(a) * root_up(dot(row, row)) for a, row in zip(v.values, rest, strict=True))
    common = max(scale + v.scale, weight.scale, 2 * _NORM_BITS)
    left = weight.at(common) - (error << (common - scale - v.scale))
    columns = transposed(span.basis.values)
    square = _norm_square(columns, span.basis.scale, where)
    require(left > 0, f"{where}: the rows of the span are too far from the data")
    root = root_up(square << _NORM_BITS)  # of the norm, at _NORM_BITS
    return span.rows, Dyadic((left << _NORM_BITS) // root, common)


def _norm_square(columns: Matrix, scale: int, where: str) -> int:
    """An upper bound of |B|^2 at _NORM_BITS: Gershgorin's for B'B, whose columns are nearly orthonormal."""
    gram = product(columns, transposed(columns))
    largest = max(sum(abs(a) for a in row) for row in gram)
    require(largest > 0, f"{where}: the basis of a span is zero")
    return ceil_divide(largest << _NORM_BITS, 1 << 2 * scale)


def _leaves(order: list[Any], d: int, where: str) -> Iterator[Matrix]:
    """Nodes depth first, for each orthant in turn: -1 a leaf, i d + j a split of the edge between rays i < j."""
    open_ = orthants(d)[::-1]
    for node in order:
        require(bool(open_), f"{where} has cones that belong to nothing")
        cone = open_.pop()
        k = integer(node, f"a cone of {where}", -1, d * d - 1)
        if k < 0:
            yield cone
            continue
        i, j = divmod(k, d)
        require(i < j, f"{where} splits an edge between a ray and itself")
        ray = between(cone[i], cone[j])
        require(max(map(int.bit_length, ray)) <= DEEPEST, f"a cone of {where} is split too often")
        open_ += [[*cone[:j], ray, *cone[j + 1 :]], [*cone[:i], ray, *cone[i + 1 :]]]
    require(not open_, f"the cones of {where} do not cover the space")


def _check_batch(cones: list[Matrix], parts: Parts, weight: Dyadic, where: str) -> None:
    rays = sorted({tuple(ray) for cone in cones for ray in cone})
    columns = transposed([list(ray) for ray in rays])
    heights = [0] * len(rays)
    if parts.plus:
        for row in product(parts.plus, columns):
            heights = [a + b if b > 0 else a for a, b in zip(heights, row, strict=True)]
    at_ray = dict(zip(rays, heights, strict=True))
    exact_heights = [[at_ray[tuple(ray)] for ray in cone] for cone in cones]
    unit = [[_length(ray) for ray in cone] for cone in cones]
    W = np.array(
        [[[x / r for x in ray] for ray, r in zip(c, rs, strict=True)] for c, rs in zip(cones, unit, strict=True)]
    )
    p = np.array(
        [
            [(y / (1 << parts.scale)) / r for y, r in zip(ys, rs, strict=True)]
            for ys, rs in zip(exact_heights, unit, strict=True)
        ]
    )
    hints = suggested(W, p, parts.minus_floats)
    for k, (cone, height) in enumerate(zip(cones, exact_heights, strict=True)):
        ok = _cone_holds(cone, height, (hints.h[k], hints.shares[k]), parts, weight)
        require(ok, f"{where}: a cone is not proved")


def _length(ray: Vector) -> float:
    return float(sum(v * v for v in ray)) ** 0.5


@dataclass(frozen=True)
class Hints:
    """h (B, d), the share of every row of N in the subgradient (B, rows of N), and |h| (B,)."""

    h: np.ndarray
    shares: np.ndarray
    size: np.ndarray


def suggested(W: np.ndarray, p: np.ndarray, minus: np.ndarray, rounds: int = 4) -> Hints:
    """Good h and eta for cones with unit rays W (B, d, d) and heights p (B, d), in floating point.

    The subgradient takes rows of N by their sign at the mean ray; the shares of those that the cone straddles most are
    then chosen in turn so that h gets short.
    """
    inverse = np.linalg.inv(W)
    p = p + 1e-12 * (np.abs(p) + np.abs(minus).sum())
    g = (inverse @ p[..., None])[..., 0]
    at_rays = W @ minus.T  # B, d, rows
    shares = (at_rays.sum(1) > 0).astype(float)
    g = g - shares @ minus
    straddle = np.minimum(at_rays.max(1), -at_rays.min(1))
    chosen = np.argsort(-straddle, axis=1)[:, :_STRADDLING]
    live = np.take_along_axis(straddle, chosen, 1) > 0
    for _ in range(rounds if len(minus) else 0):
        for k in range(int(live.sum(1).max(initial=0))):
            rows = minus[chosen[:, k]]
            old = shares[np.arange(len(W)), chosen[:, k]]
            best = old + (g * rows).sum(1) / np.maximum((rows**2).sum(1), 1e-300)
            new = np.where(live[:, k], np.clip(best, 0.0, 1.0), old)
            shares[np.arange(len(W)), chosen[:, k]] = new
            g = g - (new - old)[:, None] * rows
    h = _projected(g, W, inverse)
    return Hints(h, shares, np.linalg.norm(h, axis=1))


def _projected(g: np.ndarray, W: np.ndarray, inverse: np.ndarray) -> np.ndarray:
    """A short g + W^-1 mu with mu >= 0: the projection of g on the cone, which lies on one of its faces."""
    best, size = g.copy(), np.linalg.norm(g, axis=1)
    d = g.shape[1]
    for mask in range(1, (1 << d) - 1):
        face = W[:, [k for k in range(d) if mask >> k & 1]]
        gram = face @ np.swapaxes(face, 1, 2)
        gram += 1e-14 * np.eye(gram.shape[1])
        h = np.swapaxes(face, 1, 2) @ np.linalg.solve(gram, face @ g[..., None])
        mu = np.maximum(W @ (h - g[..., None]), 0.0)
        h = g + (inverse @ mu)[..., 0]
        shorter = (length := np.linalg.norm(h, axis=1)) < size
        best[shorter], size[shorter] = h[shorter], length[shorter]
    return best


def _cone_holds(
    cone: Matrix, heights: Vector, hint: tuple[np.ndarray, np.ndarray], parts: Parts, weight: Dyadic
) -> bool:
    """(h + eta)'w_k >= P(w_k) for every ray, and |h| <= weight."""
    h_floats, shares = hint
    if not (np.isfinite(h_floats).all() and (shares >= 0).all() and (shares <= 1).all()):
        return False
    scale = parts.scale + _SHARE_BITS
    total = h = [_rounded(float(v), scale) for v in h_floats]
    for i in np.flatnonzero(shares).tolist():
        share = _rounded(float(shares[i]), _SHARE_BITS)
        total = [a + share * x for a, x in zip(total, parts.minus[i], strict=True)]
    above = all(dot(total, ray) >= height << _SHARE_BITS for ray, height in zip(cone, heights, strict=True))
    common = max(scale, weight.scale)
    size = sum(v * v for v in h) << 2 * (common - scale)
    return above and size <= weight.at(common) ** 2


def _rounded(v: float, scale: int) -> int:
    numerator, denominator = v.as_integer_ratio()
    return (numerator << scale) // denominator
