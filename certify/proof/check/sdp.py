"""A margin proved by the semidefinite relaxation: its Lagrangian, as a quadratic form, is positive semidefinite.

The variables are v = (zeta, y_1, ..., y_K): zeta = W d for the rows W of the first layer that are not dead or have a
factor below, and y for the unstable neurons of each layer. With z = z(v) affine and w = y - z, on the region y w = 0,
y (u - y) >= 0 and w (-l - w) >= 0, so that the margin is at least

    q(v) = margin(v) - sum [alpha y w + beta y (u - y) + gamma w (-l - w)] - sum kappa f g + p ,    beta, gamma >= 0,

where kappa >= 0 and f, g are any of y, w, u - y, -l - w of unstable neurons and z - l, u - z of any, all of which are
at least 0, and p = d'Dd + e'd + k, p <= 0 on the region, collects the multipliers of the ball (tau) and of pixels (nu
of (d - lo)(hi - d), above of d - lo, below of hi - d). For E >= D^-1, K = W E W', r = W E e, any symmetric G and any h,
completing the square in d gives, with s = G zeta + h,

    p >= 2 s'zeta - s'K s + s'r - e'E e / 4 + k .

G and h are floating-point guesses of K^-1 and G r / 2; what they are off enters squared. If [1 v]'S[1 v] is q with this
bound of p in it and S - t E_00 is positive semidefinite, the margin is at least t.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import ceil, floor
from typing import Any

import numpy as np

from certify.proof.artefact import Dyadic, affordable, dyadic, fields, integers, items, require
from certify.proof.check.exact import ceil_divide, column, plus, psd, scaled, stacked, times, turned, weighted
from certify.proof.check.network import Network
from certify.proof.check.region import Region
from certify.proof.check.rows import Hidden

_INVERSE_BITS = 60  # of E
_GUESS_BITS = 52  # of the largest entries of G and h
_FLAT = 1e-12  # of the largest eigenvalue of K: below it K counts as singular
OUTWEIGHED = (6, 12, 18, 24, 30, 36)  # where K is singular, G is one of 2 to these times the rest of the form


# Kinds of factors: y, w, u - y, -l - w, z - l, u - z. The first ones are of unstable neurons.
_KINDS, _UNSTABLE_KINDS = 6, 4


@dataclass(frozen=True)
class Cuts:
    """kappa, and f, g as (layer, neuron, kind), of every product."""

    left: list[list[int]]
    right: list[list[int]]
    kappa: Dyadic


@dataclass(frozen=True)
class Multipliers:
    """By layer, for its unstable neurons in order, alpha, beta, gamma; tau; for some pixels nu, above, below; cuts."""

    alpha: list[Dyadic]
    beta: list[Dyadic]
    gamma: list[Dyadic]
    tau: Dyadic
    pixels: list[int]
    nu: Dyadic
    above: Dyadic
    below: Dyadic
    cuts: Cuts


def read_multipliers(value: Any, hidden: Sequence[Hidden], n: int) -> Multipliers:
    """The multipliers of one target; `n` is the number of inputs."""
    held = fields(value, "multipliers", "alpha", "beta", "gamma", "tau", "pixels", "nu", "above", "below", "cuts")
    layers = {
        name: [
            dyadic(part, (len(layer.unstable),), name, sign=sign)
            for part, layer in zip(items(held[name], len(hidden), name), hidden, strict=True)
        ]
        for name, sign in (("alpha", -1), ("beta", 0), ("gamma", 0))
    }
    pixels = integers(held["pixels"], None, "pixels")
    require(pixels == sorted(set(pixels)) and all(0 <= i < n for i in pixels), "pixels are no inputs in rising order")
    nu, above, below = (dyadic(held[name], (len(pixels),), name, sign=0) for name in ("nu", "above", "below"))
    tau = dyadic(held["tau"], (), "tau", sign=0)
    cuts = _read_cuts(held["cuts"], hidden)
    return Multipliers(layers["alpha"], layers["beta"], layers["gamma"], tau, pixels, nu, above, below, cuts)


def _read_cuts(value: Any, hidden: Sequence[Hidden]) -> Cuts:
    held = fields(value, "cuts", "left", "right", "kappa")
    left, right = ([_factor(v, hidden) for v in items(held[side], None, side)] for side in ("left", "right"))
    require(len(left) == len(right), "the cuts have factors without a partner")
    return Cuts(left, right, dyadic(held["kappa"], (len(left),), "kappa", sign=0))


def _factor(value: Any, hidden: Sequence[Hidden]) -> list[int]:
    layer, neuron, kind = integers(value, 3, "a factor")
    require(0 <= layer < len(hidden) and 0 <= kind < _KINDS, "a factor is of no layer or no kind")
    bounds = hidden[layer]
    of_any = kind >= _UNSTABLE_KINDS and 0 <= neuron < len(bounds.lower.values)
    require(of_any or neuron in bounds.unstable, "a factor is of no neuron, or of one that is not unstable")
    return [layer, neuron, kind]


def form_size(hidden: Sequence[Hidden], m: Multipliers) -> int:
    """The number of rows of the quadratic form in (1, v)."""
    return 1 + sum(len(layer.unstable) for layer in hidden) + len(_rows_of_zeta(hidden, m))


def _rows_of_zeta(hidden: Sequence[Hidden], m: Multipliers) -> list[int]:
    with_factor = {i for k, i, kind in m.cuts.left + m.cuts.right if k == 0 and kind >= _UNSTABLE_KINDS}
    return sorted(with_factor.union(hidden[0].live))


def proves(
    network: Network,
    region: Region,
    hidden: Sequence[Hidden],
    margin: tuple[Dyadic, Fraction],
    m: Multipliers,
    t: Fraction,
) -> bool:
    """Whether the multipliers prove that c relu(z_K) + c0 >= t; the margin is c, a matrix of one row, and c0."""
    size, scales = form_size(hidden, m), [W.scale for W, _ in network.layers]
    affordable(size * max(size, len(m.cuts.left)), 2 * sum(scales) + m.tau.scale)
    half, last = _neurons(network, hidden, m)
    half = plus(half, _first_row(times(margin[0], last)))
    rest, zeta = plus(half, turned(half)), _rows_of_zeta(hidden, m)
    block = [row[1 : 1 + len(zeta)] for row in rest.values[1 : 1 + len(zeta)]]
    most = max((scaled(sum(map(abs, row)), -rest.scale) for row in block), default=0.0)
    for part in _inputs(network, region, zeta, m, most):
        T = plus(rest, _padded(part, size))
        T.values[0][0] -= ceil(2 * (t - margin[1]) * (1 << T.scale))
        if psd(T.values):
            return True
    return False


def _neurons(network: Network, hidden: Sequence[Hidden], m: Multipliers) -> tuple[Dyadic, Dyadic]:
    """A matrix P in (1, v) such that P + P' is twice that of the neurons' terms, and relu(z_K) as forms in (1, v).

    An active neuron is its z, a dead one 0, an unstable one its own variable y.
    """
    zeta, size = _rows_of_zeta(hidden, m), form_size(hidden, m)
    free = 1 + len(zeta)
    P = _units([], 0, size, size)
    z = plus(column(hidden[0].centre, size), _units(zeta, 1, len(hidden[0].centre.values), size))
    factors = []
    for k, layer in enumerate(hidden):
        if k > 0:
            W, b = network.layers[k]
            z = plus(times(W, z), column(b, size))
        some, active = layer.unstable, set(layer.active)
        relu = _units(some, free, len(z.values), size)
        factors.append(_factors(relu, z, layer, size))
        if some:
            y, w, below_u, above_l = (_rows(part, some) for part in factors[k][:_UNSTABLE_KINDS])
            of_y = plus(weighted(m.alpha[k], w), weighted(m.beta[k], below_u))
            P = plus(P, times(turned(_negative(y)), of_y), times(turned(_negative(w)), weighted(m.gamma[k], above_l)))
        kept = [row if i in active else [0] * size for i, row in enumerate(z.values)]
        z, free = plus(Dyadic(kept, z.scale), relu), free + len(some)
    if m.cuts.left:
        f, g = (stacked([_rows(factors[k][kind], [i]) for k, i, kind in side]) for side in (m.cuts.left, m.cuts.right))
        P = plus(P, times(turned(_negative(f)), weighted(m.cuts.kappa, g)))
    return P, z


def _factors(y: Dyadic, z: Dyadic, layer: Hidden, size: int) -> tuple[Dyadic, ...]:
    """Matrices of forms in (1, v), a row for every neuron of the layer, in the order of the kinds."""
    w, low, high = plus(y, _negative(z)), column(layer.lower, size), column(layer.upper, size)
    low_off, z_off = plus(low, w), plus(high, _negative(z))
    return y, w, plus(high, _negative(y)), _negative(low_off), plus(z, _negative(low)), z_off


def _rows(A: Dyadic, some: Sequence[int]) -> Dyadic:
    return Dyadic([A.values[i] for i in some], A.scale)


def _units(rows: Iterable[int], start: int, count: int, size: int) -> Dyadic:
    """A matrix of `count` rows: those given are unit vectors, from the variable `start` on; the others are 0."""
    A = [[0] * size for _ in range(count)]
    for k, i in enumerate(rows):
        A[i][start + k] = 1
    return Dyadic(A, 0)


def _negative(A: Dyadic) -> Dyadic:
    return Dyadic([[-v for v in row] for row in A.values], A.scale)


def _first_row(row: Dyadic) -> Dyadic:
    """A square matrix with this row on top of zeros."""
    return _padded(row, len(row.values[0]))


def _padded(A: Dyadic, size: int) -> Dyadic:
    """In the upper left corner of a square matrix of zeros."""
    rows = [row + [0] * (size - len(row)) for row in A.values]
    return Dyadic(rows + [[0] * size for _ in range(size - len(rows))], A.scale)


def _inputs(network: Network, region: Region, zeta: Sequence[int], m: Multipliers, rest: float) -> Iterator[Dyadic]:
    """Twice the matrix of a lower bound of p in (1, zeta), several; `rest` is the size of what it is added to."""
    E, e, k = _pixels(region, m)
    k -= Fraction(sum(v * v * q for v, q in zip(e.values, E.values, strict=True)), 4 << 2 * e.scale + E.scale)
    if not zeta:
        yield Dyadic([[floor(2 * k * (1 << _INVERSE_BITS))]], _INVERSE_BITS)
        return
    W = _rows(network.layers[0][0], zeta)
    EW = weighted(E, turned(W))
    K, r = times(W, EW), times(turned(EW), column(e))
    for H in _guesses(K, r, rest):
        twice = Dyadic([[0] * len(H.values[0]), *([2 * v for v in row] for row in H.values)], H.scale)
        half = plus(twice, _negative(times(turned(H), times(K, H))), _first_row(times(turned(r), H)))
        T = plus(half, turned(half))
        T.values[0][0] += floor(2 * k * (1 << T.scale))
        yield T


def _pixels(region: Region, m: Multipliers) -> tuple[Dyadic, Dyadic, Fraction]:
    """p = d'Dd + e'd + k: E >= D^-1, e and k."""
    scale = max(m.tau.scale, m.nu.scale, m.above.scale, m.below.scale)
    tau, n = m.tau.at(scale), len(region.centre)
    D, e, k = [tau] * n, [0] * n, 0
    for i, nu, above, below in zip(m.pixels, m.nu.at(scale), m.above.at(scale), m.below.at(scale), strict=True):
        low, high = region.lower[i], region.upper[i]
        D[i] += nu
        e[i] = -nu * (low + high) + (below - above << region.scale)
        k += nu * low * high + (above * low - below * high << region.scale)
    require(all(v > 0 for v in D), "an input has neither a multiplier of the ball nor of its pixel")
    constant = Fraction(k, 1 << scale + 2 * region.scale) - Fraction(tau, 1 << scale) * region.squared_length
    E = [ceil_divide(1 << _INVERSE_BITS + scale, v) for v in D]
    return Dyadic(E, _INVERSE_BITS), Dyadic(e, scale + region.scale), constant


def _guesses(K: Dyadic, r: Dyadic, rest: float) -> Iterator[Dyadic]:
    """The rows (h, G), guessed: G about K^-1, and large in directions where K is about 0, h about G r / 2."""
    near = np.array([[scaled(v, -K.scale) for v in row] for row in K.values])
    require(bool(np.isfinite(near).all()), "the form of the inputs is out of range")
    values, vectors = np.linalg.eigh(near)
    regular = values > _FLAT * max(values[-1], np.finfo(float).tiny)
    inverse = 1 / np.where(regular, values, 1.0)
    for power in OUTWEIGHED[:1] if regular.all() else OUTWEIGHED:
        G = vectors * np.where(regular, inverse, rest * 2.0**power) @ vectors.T
        h = G @ [scaled(row[0], -r.scale) for row in r.values] / 2
        most = max(float(np.abs(v).max()) for v in (G, h))
        require(0 < most < 2.0**1000, "the form of the inputs cannot be inverted")
        bits = int(np.clip(_GUESS_BITS - np.frexp(most)[1], 0, 2000))
        rounded = np.rint(np.ldexp(np.column_stack([h, (G + G.T) / 2]), bits))
        yield Dyadic([[int(v) for v in row] for row in rounded.tolist()], bits)
