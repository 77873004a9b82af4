"""Proofs that w'(Xu)_+ <= weight for all unit vectors u of a region: quadratics for single samples, a matrix a group.

Rows x_i are scaled by powers of two so that their norms lie in [1/2, 1]; t_i = x_i'u, s_i = (t_i)_+, and
low_i <= t_i <= high_i on the region. A sample alone is bounded by a quadratic in t_i with a, b, h >= 0:

    w > 0:   w = h + p,  h s <= h' (t - low) with h' (high - low) >= h high,
             p s <= a t^2 + p t / 2 + g with 16 a g >= p^2
    w < 0:   w s <= -b t - a (t^2 - low t)   where  b + a (high - low) <= -w

A group is bounded by its Lagrangian with the products s_i s_j, s_i (s_j - t_j), (s_i - t_i)(s_j - t_j) >= 0,
s_i (l + e'u) and (s_i - t_i)(l + e'u) >= 0 for l >= |e|, and s_i (s_i - t_i) = 0: a quadratic in (1, u) and s, whose
maximum over s is at most (1, u)'C(1, u) where [[C, B], [B', S]] is positive semidefinite. What remains is one quadratic
Q, and weight - Q >= 0 on the unit sphere if [[weight - delta - Q00, -Q0u], [-Qu0, delta I - Quu]] is.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from certify.proof.artefact import Dyadic, Work, affordable, fields, integer, integers, items, require
from certify.proof.check.exact import Matrix, Vector, ceil_divide, product, psd, root_up, transposed
from certify.proof.check.groups import Scales, add, group_form, read_group

RADIUS_BITS = 40  # of ranges
_LARGEST = 1 << 4000


@dataclass(frozen=True)
class Rows:
    """Samples scaled to norms in [1/2, 1] (zero rows stay zero).

    Attributes:
        values: integers, n rows of d, at ``scale``.
        scale: of them.
        exponents: x_i of the data is 2^exponent times its row.
        radii: upper bounds of the norms at RADIUS_BITS.
    """

    values: Matrix
    scale: int
    exponents: Vector
    radii: Vector


def scaled_rows(X: Dyadic) -> Rows:
    """The rows of the data scaled by powers of two."""
    squares = [sum(v * v for v in row) for row in X.values]
    halves = [(q.bit_length() + 1) // 2 for q in squares]
    scale = max(halves)
    affordable(len(squares) * len(X.values[0]), scale)
    values = [[v << (scale - half) for v in row] for row, half in zip(X.values, halves, strict=True)]
    radii = [root_up(ceil_divide(sum(v * v for v in row) << 2 * RADIUS_BITS, 1 << 2 * scale)) for row in values]
    return Rows(values, scale, [half - X.scale for half in halves], radii)


@dataclass(frozen=True)
class Slab:
    """low <= omega'u <= high, integers at RADIUS_BITS."""

    omega: Vector
    low: int
    high: int


def scaled_dual(rows: Rows, v: Dyadic, sign: int) -> Dyadic:
    """w with w_i s_i = sign v_i (x_i'u)_+ for the scaled rows."""
    lowest = min(0, *rows.exponents)
    scale = max(0, v.scale - lowest)
    extra = scale - (v.scale - lowest)
    affordable(len(v.values), max(rows.exponents) - lowest + extra + max(map(int.bit_length, v.values)))
    return Dyadic([sign * a << (e - lowest + extra) for a, e in zip(v.values, rows.exponents, strict=True)], scale)


def check_region(
    rows: Rows, w: Dyadic, weight: Dyadic, leaf: tuple[Sequence[Slab], Any, str], work: Work | None = None
) -> None:
    """Reject unless w's <= weight is proved for every unit vector of the slabs; ``w`` belongs to the scaled rows.

    ``leaf``: slabs, proof and name.
    """
    slabs, value, where = leaf
    held = fields(value, where, "scale", "tilts", "singles", "slabs", "groups", "delta")
    own = integer(held["scale"], f"the scale of {where}", 0, 1200)
    n, d = len(rows.values), len(rows.values[0])
    base = max(own, w.scale, weight.scale)
    scales = Scales(own, base, rows.scale, base + 2 * max(rows.scale, RADIUS_BITS + 2) + 4)
    affordable((d + 1) ** 2, scales.whole)
    w = Dyadic(w.at(base), base)
    low, high = exact_ranges(rows, slabs, held["tilts"], where)
    groups = [read_group(part, (n, d), scales, where) for part in items(held["groups"], None, where)]
    lifted = [i for group in groups for i in group.indices]
    require(len(set(lifted)) == len(lifted), f"{where} lifts a sample twice")
    sizes = [d + 1, *(d + 1 + len(group.indices) for group in groups)]
    (work or Work()).add(n * d * d + sum(size**3 for size in sizes))
    alone = sorted(set(range(n)) - set(lifted))
    singles = [integers(pair, 2, where) for pair in items(held["singles"], len(alone), where)]
    Q = _singles(rows, w.values, (low, high), (alone, singles), scales, where)
    add(Q, _slabs(slabs, d, held["slabs"], scales, where))
    for group in groups:
        add(Q, group_form([rows.values[i] for i in group.indices], [w.values[i] for i in group.indices], group, scales))
    delta = integer(held["delta"], f"delta of {where}", -_LARGEST, _LARGEST) << (scales.whole - own)
    rest = [[(delta if i == j else 0) - v for j, v in enumerate(row)] for i, row in enumerate(Q)]
    rest[0][0] = weight.at(scales.whole) - delta - Q[0][0]
    require(psd(rest), f"{where}: the quadratic is not proved to be at most the weight decay")


def exact_ranges(rows: Rows, slabs: Sequence[Slab], tilts: Any, where: str) -> tuple[Vector, Vector]:
    """low and high of every x_i'u: x'u = (x - k'omega)'u + k'(omega'u) <= |x - k'omega| + sum max(k lo, k hi)."""
    if not slabs:
        require(tilts == [], f"{where} tilts ranges without slabs")
        return [-r for r in rows.radii], list(rows.radii)
    low, high = [], []
    for row, radius, pair in zip(rows.values, rows.radii, items(tilts, len(rows.values), where), strict=True):
        up, down = (integers(side, len(slabs), where) for side in items(pair, 2, where))
        high.append(min(radius, _reach(row, rows.scale, slabs, up)))
        low.append(max(-radius, -_reach([-v for v in row], rows.scale, slabs, down)))
    return low, high


def _reach(row: Vector, scale: int, slabs: Sequence[Slab], tilt: Vector) -> int:
    """An upper bound of x'u on the slabs at RADIUS_BITS; ``tilt`` at RADIUS_BITS."""
    common = max(scale, 2 * RADIUS_BITS)
    rest = [v << (common - scale) for v in row]
    free = 0
    for slab, k in zip(slabs, tilt, strict=True):
        rest = [v - (k * o << (common - 2 * RADIUS_BITS)) for v, o in zip(rest, slab.omega, strict=True)]
        free += max(k * slab.low, k * slab.high)
    length = root_up(ceil_divide(sum(v * v for v in rest) << 2 * RADIUS_BITS, 1 << 2 * common))
    return length + ceil_divide(free, 1 << RADIUS_BITS)


def _singles(
    rows: Rows, w: Vector, ranges: tuple[Vector, Vector], given: tuple[Vector, list[Vector]], scales: Scales, where: str
) -> Matrix:
    """The sum of the quadratics of the samples alone."""
    lift = scales.base - scales.own
    terms = []
    for i, (first, second) in zip(*given, strict=True):
        require(first >= 0 and second >= 0, f"{where}: a parameter of sample {i} is negative")
        terms.append(_single(w[i], (ranges[0][i], ranges[1][i]), first << lift, second << lift, f"{where}, sample {i}"))
    X = [rows.values[i] for i in given[0]]
    d = len(rows.values[0])
    if not X:
        return [[0] * (d + 1) for _ in range(d + 1)]
    columns = transposed(X)
    edge = [
        sum(v * term[1] for v, term in zip(column, terms, strict=True))
        << (scales.whole - scales.base - rows.scale - RADIUS_BITS - 2)
        for column in columns
    ]
    inner = product([[v * term[0] for v, term in zip(column, terms, strict=True)] for column in columns], X)
    shift = scales.whole - scales.base - 2 * rows.scale
    corner = sum(term[2] for term in terms) << (scales.whole - scales.base - RADIUS_BITS)
    return [[corner, *edge], *([e, *(v << shift for v in row)] for e, row in zip(edge, inner, strict=True))]


def _single(w: int, span: tuple[int, int], first: int, second: int, where: str) -> tuple[int, int, int]:
    """(alpha, beta, gamma) of one sample at scales base, base + RADIUS_BITS + 1 and base + RADIUS_BITS."""
    low, high = span
    if low >= 0 or high <= 0:
        return 0, (w << (RADIUS_BITS + 1)) if low >= 0 else 0, 0
    if w <= 0:
        require((second << RADIUS_BITS) + first * (high - low) <= -w << RADIUS_BITS, f"{where} takes more than it has")
        return -first, 2 * (first * low - (second << RADIUS_BITS)), 0
    rest = w - second
    require(rest >= 0 and (first > 0 or rest == 0), f"{where} takes more than it has")
    bend = ceil_divide(rest * rest, 16 * first) if rest else 0
    chord = ceil_divide(second * high, high - low)
    return first, (rest + 2 * chord) << RADIUS_BITS, (bend << RADIUS_BITS) - chord * low


def _slabs(slabs: Sequence[Slab], d: int, value: Any, scales: Scales, where: str) -> Matrix:
    """a (omega'u - low) + b (high - omega'u) + c (omega'u - low)(high - omega'u), all non-negative on the region."""
    Q = [[0] * (d + 1) for _ in range(d + 1)]
    lift = scales.whole - scales.own - 2 * RADIUS_BITS
    for slab, part in zip(slabs, items(value, len(slabs), where), strict=True):
        a, b, c = integers(part, 3, where)
        require(a >= 0 and b >= 0 and c >= 0, f"{where}: a multiplier of a slab is negative")
        Q[0][0] += ((b * slab.high - a * slab.low << RADIUS_BITS) - c * slab.low * slab.high) << lift
        for i, o in enumerate(slab.omega, 1):
            half = ((a - b << RADIUS_BITS) + c * (slab.low + slab.high)) * o << (lift - 1)
            Q[0][i] += half
            Q[i][0] += half
            for j, p in enumerate(slab.omega, 1):
                Q[i][j] -= c * o * p << lift
    return Q
