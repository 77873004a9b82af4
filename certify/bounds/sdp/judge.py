"""What multipliers prove: a lower bound that holds in real arithmetic, in float64 and rounded down.

For any multipliers of the right sign the Lagrangian is at most the objective on the feasible set, so its minimum over
all d and y is a bound. It is a quadratic form S in (1, d, y_1, ..., y_L), and S - t E_00 positive definite proves t.
Nothing of the solver is used here, neither its coordinates nor its value: S is assembled from the network's own
weights, every entry with a bound of its rounding error (the same sums with absolute values), and definiteness is
proved by `certify.bounds.definite`.
"""

from dataclasses import dataclass
from math import inf

import numpy as np
from jaxtyping import Int

from certify.bounds.definite import is_definite
from certify.bounds.sdp.interior import best_t
from certify.bounds.sdp.program import Matrix, Vector
from certify.bounds.sdp.target import Cuts, Factor, Multipliers, Target
from certify.rounding import gamma_of

# Tried one after the other below the computed bound, relative to it.
_MARGINS = (1e-9, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)


def proved_bound(target: Target, multipliers: Multipliers) -> float:
    """A lower bound of the target's objective; minus infinity where nothing is proved."""
    if not _signs_are_right(target, multipliers):
        return -inf
    S, radius = lagrangian(target, multipliers)
    if not np.isfinite(S).all():
        return -inf
    try:
        t = best_t(S)
    except np.linalg.LinAlgError:
        return -inf
    for margin in _MARGINS:
        claim = float(np.nextafter(t - margin * max(1.0, abs(t)) - target.slack, -inf))
        # (claim + slack) is subtracted; its rounding, and that of the entry, is within the radius.
        lowered, slack = S.copy(), radius.copy()
        lowered[0, 0] -= claim + target.slack
        slack[0, 0] += 4 * np.finfo(float).eps * (abs(S[0, 0]) + abs(claim) + target.slack)
        if is_definite(lowered, slack):
            return claim
    return -inf


def _signs_are_right(target: Target, multipliers: Multipliers) -> bool:
    cuts = multipliers.cuts
    each = [*multipliers.beta, *multipliers.gamma, multipliers.nu, multipliers.above, multipliers.below, cuts.weights]
    if target.offsets.radius is None and multipliers.tau != 0:
        return False
    if not (_exist(target, cuts.left) and _exist(target, cuts.right)):
        return False
    finite = all(bool(np.isfinite(v).all()) for v in (*each, *multipliers.alpha))
    return finite and 0 <= multipliers.tau < inf and all(bool((v >= 0).all()) for v in each)


def _exist(target: Target, factors: Int[np.ndarray, "cuts 3"]) -> bool:
    """Whether all are factors: z - l and u - z of any neuron, the others of unstable ones."""
    unstable = [set(index.tolist()) for index in target.unstable]
    return all(
        0 <= k < len(unstable)
        and (i in unstable[k] or (kind >= Factor.Z_LOW and 0 <= i < len(target.lower[k])))
        and kind in tuple(Factor)
        for k, i, kind in factors.tolist()
    )


def lagrangian(target: Target, multipliers: Multipliers) -> tuple[Matrix, Matrix]:
    """S, and what every entry of it can be rounded off."""
    plain, size = (_assembled(target, multipliers, absolute=v) for v in (False, True))
    terms = sum(W.shape[1] + W.shape[0] for W, _ in target.layers) + 8 * len(target.layers)
    terms += len(multipliers.cuts.weights)
    return plain, gamma_of(terms) * size


@dataclass(frozen=True, eq=False)
class _Layer:
    """Of one hidden layer: where the columns of y start, its unstable neurons, z of all as forms, and bounds."""

    at: int
    unstable: Int[np.ndarray, " _"]
    z: Matrix
    lower: Vector
    upper: Vector


def _assembled(target: Target, multipliers: Multipliers, *, absolute: bool) -> Matrix:
    """S; with `absolute` every product counts with its absolute value."""
    layers, objective = _forms(target, absolute)
    sign = -1.0 if not absolute else 1.0
    S = np.zeros((len(objective), len(objective)))
    S[0] += objective / 2
    S[:, 0] += objective / 2
    for k, layer in enumerate(layers):
        alpha = np.abs(multipliers.alpha[k]) if absolute else multipliers.alpha[k]
        _add_neurons(S, layer, alpha, multipliers.beta[k], multipliers.gamma[k], sign)
    _add_cuts(S, layers, multipliers.cuts, absolute)
    _add_region(S, target, multipliers, absolute)
    return S


def _forms(target: Target, absolute: bool) -> tuple[list[_Layer], Vector]:
    n = len(target.offsets.centre)
    size = 1 + n + sum(map(len, target.unstable))
    magnitude = np.abs if absolute else (lambda v: v)
    at = 1 + n
    values, found = np.zeros((n, size)), []
    values[:, 0] = magnitude(target.offsets.centre)
    values[:, 1:at] = np.eye(n)
    for (W, b), index, active, low, high in zip(
        target.layers, target.unstable, target.active, target.lower, target.upper, strict=True
    ):
        # Earlier columns only: the rest is zero.
        z = np.zeros((len(W), size))
        z[:, :at] = magnitude(W) @ values[:, :at]
        z[:, 0] += magnitude(b)
        found.append(_Layer(at, index, z, low, high))
        values = np.where(active[:, None], z, 0.0)
        values[index, at + np.arange(len(index))] = 1.0
        at += len(index)
    objective = magnitude(target.objective) @ values
    objective[0] += abs(target.constant) if absolute else target.constant
    return found, objective


def _add_neurons(S: Matrix, layer: _Layer, alpha: Vector, beta: Vector, gamma: Vector, sign: float) -> None:
    """- alpha y (y - z) - beta y (u - y) - gamma (y - z) (-l - y + z) of all neurons; sign is -1 or, for sizes, 1."""
    z, y = layer.z[layer.unstable], layer.at + np.arange(len(layer.unstable))
    low, high = layer.lower[layer.unstable], layer.upper[layer.unstable]
    low = low if sign < 0 else np.abs(low)
    S += (z.T * gamma) @ z
    S[y, y] += beta + gamma + sign * alpha
    cross = ((alpha + 2 * sign * gamma) / 2)[:, None] * z
    S[y] += cross
    S[:, y] += cross.T
    on_y = (sign * beta * high + gamma * low) / 2
    S[0, y] += on_y
    S[y, 0] += on_y
    on_z = sign * (gamma * low / 2) @ z
    S[0] += on_z
    S[:, 0] += on_z


def _add_cuts(S: Matrix, layers: list[_Layer], cuts: Cuts, absolute: bool) -> None:
    """- weight left right of all products."""
    left, right = (
        np.array([_factor(layers[k], i, kind, len(S), absolute) for k, i, kind in part]).reshape(-1, len(S))
        for part in (cuts.left.tolist(), cuts.right.tolist())
    )
    half = (left.T * cuts.weights) @ right / (2.0 if absolute else -2.0)
    S += half + half.T


def _factor(layer: _Layer, i: int, kind: int, size: int, absolute: bool) -> Vector:
    """The factor as a form; with `absolute` every term counts with its absolute value."""
    z, low, high, minus = layer.z[i], float(layer.lower[i]), float(layer.upper[i]), -1.0
    if absolute:
        low, high, minus = -abs(low), abs(high), 1.0
    one, y = np.zeros(size), np.zeros(size)
    one[0] = 1.0
    if kind < Factor.Z_LOW:
        y[layer.at + int(np.searchsorted(layer.unstable, i))] = 1.0
    w = y + minus * z
    forms = (y, w, high * one + minus * y, -low * one + minus * w, z - low * one, high * one + minus * z)
    return forms[kind]


def _add_region(S: Matrix, target: Target, multipliers: Multipliers, absolute: bool) -> None:
    offsets, p = target.offsets, multipliers.pixels
    sign = 1.0 if absolute else -1.0
    low, high = offsets.lower[p], offsets.upper[p]
    if absolute:
        low, high = np.abs(low), np.abs(high)
    nu, above, below = multipliers.nu, multipliers.above, multipliers.below
    d = 1 + np.arange(len(offsets.centre))
    S[d, d] += multipliers.tau
    d = 1 + p
    S[d, d] += nu
    linear = (sign * nu * (low + high) + sign * above + below) / 2
    S[0, d] += linear
    S[d, 0] += linear
    radius = offsets.radius or 0.0
    S[0, 0] += float(nu * low @ high + above @ low + sign * (below @ high)) + sign * multipliers.tau * radius**2
