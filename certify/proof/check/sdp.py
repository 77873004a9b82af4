"""A margin proved by the semidefinite relaxation: its Lagrangian, as a quadratic form, is positive semidefinite.

The variables are v = (zeta, y_1, ..., y_K): zeta = W d for the rows W of the first layer that are not dead, and y for
the unstable neurons of each layer. With z = z(v) affine and w = y - z, on the region y w = 0, y (u - y) >= 0 and
w (-l - w) >= 0, so that the margin is at least

    q(v) = margin(v) - sum [alpha y w + beta y (u - y) + gamma w (-l - w)] + p ,    beta, gamma >= 0,

where p = d'Dd + e'd + k, p <= 0 on the region, collects the multipliers of the ball (tau) and of pixels (nu of
(d - lo)(hi - d), above of d - lo, below of hi - d). For E >= D^-1, K = W E W', r = W E e, any symmetric G and any h,
completing the square in d gives, with s = G zeta + h,

    p >= 2 s'zeta - s'K s + s'r - e'E e / 4 + k .

G and h are floating-point guesses of K^-1 and G r / 2; what they are off enters squared. If [1 v]'S[1 v] is q with this
bound of p in it and S - t E_00 is positive semidefinite, the margin is at least t.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import ceil, floor
from typing import Any

import numpy as np

from certify.proof.artefact import Dyadic, affordable, dyadic, fields, integers, items, require
from certify.proof.check.exact import ceil_divide, column, plus, psd, scaled, times, turned, weighted
from certify.proof.check.network import Network
from certify.proof.check.region import Region
from certify.proof.check.rows import Hidden

_INVERSE_BITS = 60  # of E
_GUESS_BITS = 48  # of the largest entries of G and h
_FLAT = 1e-9  # of the largest eigenvalue of K: below it K counts as singular


@dataclass(frozen=True)
class Multipliers:
    """By layer, for its unstable neurons in order, alpha, beta, gamma; tau; for some pixels nu, above, below."""

    alpha: list[Dyadic]
    beta: list[Dyadic]
    gamma: list[Dyadic]
    tau: Dyadic
    pixels: list[int]
    nu: Dyadic
    above: Dyadic
    below: Dyadic


def read_multipliers(value: Any, hidden: Sequence[Hidden], n: int) -> Multipliers:
    """The multipliers of one target; `n` is the number of inputs."""
    held = fields(value, "multipliers", "alpha", "beta", "gamma", "tau", "pixels", "nu", "above", "below")
    layers = {
        name: [
            dyadic(part, (len(layer.unstable),), name, sign=sign)
            for part, layer in zip(items(held[name], len(hidden), name), hidden, strict=True)
        ]
        for name, sign in (("alpha", -1), ("beta", 0), ("gamma", 0))
    }
    pixels = integers(held["pixels"], None, "pixels")
    require(pixels == sorted(set(pixels)) and all(0 <= i < n for i in pixels), "pixels are no inputs in rising order")
    sides = (dyadic(held[name], (len(pixels),), name, sign=0) for name in ("nu", "above", "below"))
    tau = dyadic(held["tau"], (), "tau", sign=0)
    return Multipliers(layers["alpha"], layers["beta"], layers["gamma"], tau, pixels, *sides)


def form_size(hidden: Sequence[Hidden]) -> int:
    """The number of rows of the quadratic form in (1, v)."""
    return 1 + sum(len(layer.unstable) for layer in hidden) + (len(hidden[0].live) if hidden else 0)


def proves(
    network: Network,
    region: Region,
    hidden: Sequence[Hidden],
    margin: tuple[Dyadic, Fraction],
    m: Multipliers,
    t: Fraction,
) -> bool:
    """Whether the multipliers prove that c relu(z_K) + c0 >= t; the margin is c, a matrix of one row, and c0."""
    size, scales = form_size(hidden), [W.scale for W, _ in network.layers]
    affordable(size * size, 2 * sum(scales) + m.tau.scale)
    half, last = _neurons(network, hidden, m)
    half = plus(half, _first_row(times(margin[0], last)))
    T = plus(half, turned(half), _padded(_inputs(network, region, hidden[0], m), len(half.values)))
    T.values[0][0] -= ceil(2 * (t - margin[1]) * (1 << T.scale))
    return psd(T.values)


def _neurons(network: Network, hidden: Sequence[Hidden], m: Multipliers) -> tuple[Dyadic, Dyadic]:
    """A matrix P in (1, v) such that P + P' is twice that of the neurons' terms, and relu(z_K) as forms in (1, v).

    An active neuron is its z, a dead one 0, an unstable one its own variable y.
    """
    live, free = hidden[0].live, 1 + len(hidden[0].live)
    size = free + sum(len(layer.unstable) for layer in hidden)
    P = _units([], 0, size, size)
    z = plus(column(hidden[0].centre, size), _units(live, 1, len(hidden[0].centre.values), size))
    for k, layer in enumerate(hidden):
        if k > 0:
            W, b = network.layers[k]
            z = plus(times(W, z), column(b, size))
        some, active = layer.unstable, set(layer.active)
        if some:
            minus_y = _negative(_units(range(len(some)), free, len(some), size))
            minus_w = plus(Dyadic([z.values[i] for i in some], z.scale), minus_y)
            upper = Dyadic([layer.upper.values[i] for i in some], layer.upper.scale)
            minus_lower = Dyadic([-layer.lower.values[i] for i in some], layer.lower.scale)
            of_y = plus(
                weighted(m.alpha[k], _negative(minus_w)), weighted(m.beta[k], plus(column(upper, size), minus_y))
            )
            of_w = weighted(m.gamma[k], plus(column(minus_lower, size), minus_w))
            P = plus(P, times(turned(minus_y), of_y), times(turned(minus_w), of_w))
        kept = [row if i in active else [0] * size for i, row in enumerate(z.values)]
        z, free = plus(Dyadic(kept, z.scale), _units(some, free, len(kept), size)), free + len(some)
    return P, z


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


def _inputs(network: Network, region: Region, first: Hidden, m: Multipliers) -> Dyadic:
    """Twice the matrix of the lower bound of p in (1, zeta)."""
    E, e, k = _pixels(region, m)
    k -= Fraction(sum(v * v * q for v, q in zip(e.values, E.values, strict=True)), 4 << 2 * e.scale + E.scale)
    T = Dyadic([[0]], _INVERSE_BITS)
    if first.live:
        W = Dyadic([network.layers[0][0].values[i] for i in first.live], network.layers[0][0].scale)
        EW = weighted(E, turned(W))
        K, r = times(W, EW), times(turned(EW), column(e))
        H = _guess(K, r)
        twice = Dyadic([[0] * len(H.values[0]), *([2 * v for v in row] for row in H.values)], H.scale)
        half = plus(twice, _negative(times(turned(H), times(K, H))), _first_row(times(turned(r), H)))
        T = plus(half, turned(half))
    T.values[0][0] += floor(2 * k * (1 << T.scale))
    return T


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


def _guess(K: Dyadic, r: Dyadic) -> Dyadic:
    """The rows (h, G), guessed: G about K^-1, and large where K is about singular, h about G r / 2."""
    near = np.array([[scaled(v, -K.scale) for v in row] for row in K.values])
    require(bool(np.isfinite(near).all()), "the form of the inputs is out of range")
    values, vectors = np.linalg.eigh(near)
    G = vectors / np.maximum(values, _FLAT * max(values[-1], np.finfo(float).tiny)) @ vectors.T
    h = G @ [scaled(row[0], -r.scale) for row in r.values] / 2
    most = max(float(np.abs(v).max()) for v in (G, h))
    require(0 < most < 2.0**1000, "the form of the inputs cannot be inverted")
    bits = int(np.clip(_GUESS_BITS - np.frexp(most)[1], 0, 2000))
    rounded = np.rint(np.ldexp(np.column_stack([h, (G + G.T) / 2]), bits))
    return Dyadic([[int(v) for v in row] for row in rounded.tolist()], bits)
