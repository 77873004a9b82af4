"""From the interior point's multipliers to the parameters of a bound."""

import numpy as np
from jaxtyping import Float

from convexnn.proof.certificate import Multipliers, Region
from convexnn.proof.leaf import Cones, Leaf

Array = np.ndarray


def region_of(leaf: Leaf) -> Region:
    """The region of a leaf, in unit rows."""
    return Region(leaf.rows, leaf.low, leaf.high, leaf.groups, leaf.cuts)


def multipliers_of(leaf: Leaf, lam: Cones, w: Float[Array, " n"]) -> Multipliers:
    """The parameters that the multipliers stand for, in unit rows; w = sign r v."""
    rows, linear, cone, moments, lorentz, pairs = lam
    n, free = len(leaf.rows), leaf.free
    bend, chord, slope, curve = np.ones(n), np.zeros(n), np.zeros(n), np.zeros(n)
    theta, q = cone[:, 0] + cone[:, 2], np.maximum(cone[:, 0] - cone[:, 2], 1e-300)
    bend[free] = np.clip(np.sqrt(np.maximum(theta / q, 0.0)), 1e-4, 10.0)
    size = np.maximum(np.abs(w[free]), 1e-300)
    width = leaf.high[free] - leaf.low[free]
    slope[free], curve[free] = linear[:, 1] / size, linear[:, 2] * width / size
    if leaf.cuts:
        chord[free] = linear[:, 3] * width / size
    first, second, both, mixed, neither, pivot = _groups(leaf, moments, lorentz, pairs)
    cuts = rows[1:].reshape(-1, 3)
    return Multipliers(bend, chord, slope, curve, first, second, both, mixed, neither, pivot, cuts)


def _groups(leaf: Leaf, moments: Array, lorentz: Array, pairs: Array) -> tuple[Array, ...]:
    J, m, k = leaf.n_groups, leaf.m, leaf.d + 1
    if J == 0:
        empty = np.zeros((0, m, m))
        return np.zeros((0, m, k)), np.zeros((0, m, k)), empty, empty, empty, np.zeros((0, m))
    i, j = leaf.pairs
    both, mixed, neither = (np.zeros((J, m, m)) for _ in range(3))
    both[:, i, j] = both[:, j, i] = pairs[..., 0]
    mixed[:, i, j], mixed[:, j, i] = pairs[..., 1], pairs[..., 2]
    neither[:, i, j] = neither[:, j, i] = pairs[..., 3]
    diagonal = k + np.arange(m)
    first, second = lorentz[:, 0], lorentz[:, 1].copy()
    second[..., 1:] *= -1  # the cone holds (z - t, U xh - W), which is E[(s - t)(1, -u)]
    return first, second, both, mixed, neither, moments[:, diagonal, diagonal]
