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

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import ceil, floor
from typing import Any

import numpy as np

from certify.proof.artefact import Dyadic, dyadic, fields, integers, items, require
from certify.proof.check.exact import Matrix, Vector, ceil_divide, dot, product, psd, scaled, transposed
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


def proves(
    network: Network,
    region: Region,
    hidden: Sequence[Hidden],
    margin: tuple[Vector, Fraction, int],
    m: Multipliers,
    t: Fraction,
) -> bool:
    """Whether the multipliers prove that c.relu(z_K) + c0 >= t; the margin is c, c0 and the scale of c."""
    forms = _forms(network, hidden)
    at = max(forms.scale, *(max(h.lower.scale, h.upper.scale) for h in hidden))
    fine = max(part.scale for group in (m.alpha, m.beta, m.gamma) for part in group)
    weights, left, right = _products(forms, hidden, m, at, fine)
    weighted = [[w * v for v in row] for w, row in zip(weights, left, strict=True)]
    half = product(transposed(weighted), right)
    c, c0, scale = margin
    linear = [dot(c, column) for column in transposed(forms.last)]
    block, block_scale = _input_block(network, region, hidden[0], m)
    S = max(2 * at + fine, forms.scale + scale, block_scale)
    T = [[0] * len(linear) for _ in linear]
    for part in (half, transposed(half)):
        _add(T, part, S - 2 * at - fine, -1)
    for part in ([linear], [[v] for v in linear]):
        _add(T, part, S - forms.scale - scale)
    _add(T, block, S - block_scale)
    T[0][0] -= ceil(2 * (t - c0) * (1 << S))
    return psd(T)


def _add(T: Matrix, part: Matrix, shift: int, sign: int = 1) -> None:
    """Onto the upper left of T."""
    for own, row in zip(T, part, strict=False):
        for j, v in enumerate(row):
            own[j] += sign * v << shift


@dataclass(frozen=True)
class _Forms:
    """Affine forms in (1, v), all at one scale: z and the places of y of each layer's unstable neurons, relu(z_K)."""

    z: list[Matrix]
    places: list[list[int]]
    last: Matrix
    scale: int


def _forms(network: Network, hidden: Sequence[Hidden]) -> _Forms:
    """The forms layer by layer: an active neuron is its z, a dead one 0, an unstable one its own variable y."""
    live = hidden[0].live
    size = 1 + len(live) + sum(len(h.unstable) for h in hidden)
    scale, free = hidden[0].centre.scale, 1 + len(live)
    z = [[0] * size for _ in hidden[0].lower.values]
    for k, i in enumerate(live):
        z[i][0], z[i][1 + k] = hidden[0].centre.values[i], 1 << scale
    found, places = [], []
    for k, layer in enumerate(hidden):
        if k > 0:
            W, b = network.layers[k]
            common = max(scale + W.scale, b.scale)
            z = [[v << common - scale - W.scale for v in row] for row in product(W.values, z)]
            for row, v in zip(z, b.at(common), strict=True):
                row[0] += v
            scale = common
        found.append((scale, [z[i] for i in layer.unstable]))
        places.append(list(range(free, free + len(layer.unstable))))
        free += len(layer.unstable)
        own = dict(zip(layer.unstable, places[-1], strict=True))
        z = [
            _unit(own[i], size, scale) if i in own else row if i in layer.live else [0] * size
            for i, row in enumerate(z)
        ]
    return _Forms([[[v << scale - s for v in row] for row in rows] for s, rows in found], places, z, scale)


def _unit(place: int, size: int, scale: int) -> Vector:
    return [1 << scale if j == place else 0 for j in range(size)]


def _products(
    forms: _Forms, hidden: Sequence[Hidden], m: Multipliers, at: int, fine: int
) -> tuple[Vector, Matrix, Matrix]:
    """The terms alpha y w, beta y (u - y), gamma w (-l - w): weights at scale `fine`, pairs of forms at scale `at`."""
    weights: Vector = []
    left: Matrix = []
    right: Matrix = []
    for k, layer in enumerate(hidden):
        multipliers = zip(*(part[k].at(fine) for part in (m.alpha, m.beta, m.gamma)), strict=True)
        lower, upper = layer.lower.at(at), layer.upper.at(at)
        for i, place, z, triple in zip(layer.unstable, forms.places[k], forms.z[k], multipliers, strict=True):
            y = _unit(place, len(z), at)
            w = [p - (q << at - forms.scale) for p, q in zip(y, z, strict=True)]
            under_y, under_w = [-v for v in y], [-v for v in w]
            under_y[0] += upper[i]
            under_w[0] -= lower[i]
            weights += triple
            left += [y, y, w]
            right += [w, under_y, under_w]
    return weights, left, right


def _input_block(network: Network, region: Region, first: Hidden, m: Multipliers) -> tuple[Matrix, int]:
    """Twice the matrix of the lower bound of p in (1, zeta), and its scale."""
    W = [network.layers[0][0].values[i] for i in first.live]
    at, scale = network.layers[0][0].scale, max(m.tau.scale, m.nu.scale, m.above.scale, m.below.scale)
    E, e, k = _pixels(region, m, scale)
    e_scale = scale + region.scale
    scaled_rows = [[v * q for v, q in zip(row, E, strict=True)] for row in W]
    K, k_scale = product(scaled_rows, transposed(W)), 2 * at + _INVERSE_BITS
    r, r_scale = [dot(row, e) for row in scaled_rows], at + _INVERSE_BITS + e_scale
    H, h_scale = _guess(K, k_scale, r, r_scale)
    columns = [[row[i] for row in H] for i in range(1 + len(W))]
    quadratic, linear = product(columns, product(K, H)), [dot(column, r) for column in columns]
    k -= Fraction(sum(v * v * q for v, q in zip(e, E, strict=True)), 1 << 2 * e_scale + _INVERSE_BITS + 2)
    S = max(2 * h_scale + k_scale, h_scale + r_scale)
    T = [[0] * len(columns) for _ in columns]
    _add(T, quadratic, S - 2 * h_scale - k_scale + 1, -1)
    for part in ([linear], [[v] for v in linear]):
        _add(T, part, S - h_scale - r_scale)
    for part in ([[0] * len(columns), *H], [[0, *column] for column in columns]):
        _add(T, part, S - h_scale + 1)
    T[0][0] += floor(2 * k * (1 << S))
    return T, S


def _pixels(region: Region, m: Multipliers, scale: int) -> tuple[Vector, Vector, Fraction]:
    """p = d'Dd + e'd + k with multipliers at one scale: E >= D^-1, e at that scale and the region's, k."""
    tau, n = m.tau.at(scale), len(region.centre)
    D, e, k = [tau] * n, [0] * n, 0
    for i, nu, above, below in zip(m.pixels, m.nu.at(scale), m.above.at(scale), m.below.at(scale), strict=True):
        low, high = region.lower[i], region.upper[i]
        D[i] += nu
        e[i] = -nu * (low + high) + (below - above << region.scale)
        k += nu * low * high + (above * low - below * high << region.scale)
    require(all(v > 0 for v in D), "an input has neither a multiplier of the ball nor of its pixel")
    exact = Fraction(k, 1 << scale + 2 * region.scale) - Fraction(tau, 1 << scale) * region.squared_length
    return [ceil_divide(1 << _INVERSE_BITS + scale, v) for v in D], e, exact


def _guess(K: Matrix, k_scale: int, r: Vector, r_scale: int) -> tuple[Matrix, int]:
    """The rows (h, G), guessed: G about K^-1, and large where K is about singular, h about G r / 2."""
    if not K:
        return [], 0
    values, vectors = np.linalg.eigh(np.array([[scaled(v, -k_scale) for v in row] for row in K]))
    least = _FLAT * max(values[-1], np.finfo(float).tiny)
    G = vectors / np.maximum(values, least) @ vectors.T
    h = G @ [scaled(v, -r_scale) for v in r] / 2
    most = max(float(np.abs(v).max()) for v in (G, h))
    require(0 < most < 2.0**1000, "the form of the inputs cannot be inverted")
    bits = int(np.clip(_GUESS_BITS - np.frexp(most)[1], 0, 2000))
    rounded = np.rint(np.ldexp(np.column_stack([h, (G + G.T) / 2]), bits))
    return [[int(v) for v in row] for row in rounded.tolist()], bits
