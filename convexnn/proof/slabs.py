"""Regions of the sphere between parallel planes: ranges of x'u on them, and how to part a leaf."""

from dataclasses import replace

import numpy as np
from jaxtyping import Float

from convexnn.proof.leaf import Leaf

Array = np.ndarray

Cut = tuple[Array, float, float]  # unit omega, low, high: low <= omega'u <= high

# Exact ranges are a little wider than computed ones: everything here is moved outward by this much.
_OUTWARD = 1e-10


def highest(rows: Float[Array, "n d"], cut: Cut) -> Float[Array, " n"]:
    """max of x'u over unit vectors u of the slab, for unit rows x."""
    omega, low, high = cut
    c = np.clip(rows @ omega, -1, 1)
    sigma = np.clip(c, low, high)
    return c * sigma + np.sqrt((1 - c * c) * (1 - sigma * sigma)) + _OUTWARD


def ranges(rows: Float[Array, "n d"], cuts: tuple[Cut, ...]) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
    """low <= x'u <= high on the intersection of the slabs, for unit rows (zero rows: zeros)."""
    size = np.linalg.norm(rows, axis=1)
    high, low = size.copy(), -size
    for cut in cuts:
        high = np.minimum(high, highest(rows, cut))
        low = np.maximum(low, -highest(-rows, cut))
    return low, np.maximum(high, low)


def tilt(row: Float[Array, " d"], cuts: tuple[Cut, ...]) -> Float[Array, " c"]:
    """The k with |x - k omega| + max(k low, k high) the highest value of x'u: of the slab that bounds it best."""
    out = np.zeros(len(cuts))
    reach = [float(highest(row[None], cut)[0]) for cut in cuts]
    best = int(np.argmin(reach))
    omega, low, high = cuts[best]
    c = float(row @ omega)
    sigma = min(max(c, low), high)
    if reach[best] < 1 and sigma != c and abs(sigma) < 1:
        out[best] = c - sigma * np.sqrt(max(1 - c * c, 0.0)) / np.sqrt(1 - sigma * sigma)
    return out


def whole_sphere(sign: float, rows: Float[Array, "n d"], radii: Float[Array, " n"]) -> Leaf:
    """The root of one sign."""
    low, high = ranges(rows, ())
    return Leaf(sign, rows, radii, np.zeros((0, 0), dtype=np.int64), low, high)


def parts_of(leaf: Leaf, omega: Float[Array, " d"], at: float) -> tuple[Leaf, Leaf]:
    """The parts omega'u <= at and omega'u >= at, without groups."""
    none = np.zeros((0, 0), dtype=np.int64)
    out = []
    for cut in ((omega, -1.0, at), (omega, at, 1.0)):
        cuts = (*leaf.cuts, cut)
        low, high = ranges(leaf.rows, cuts)
        out.append(replace(leaf, cuts=cuts, low=low, high=high, groups=none))
    return out[0], out[1]


def widest(leaf: Leaf, x: Array) -> tuple[float, Float[Array, " d"], float]:
    """Variance times mass along the direction in which a leaf's moments spread most, that direction, and its mean."""
    g = leaf.split(x)[0]
    theta, u, U = g[0], g[leaf.u_index], g[leaf.square_index]
    values, vectors = np.linalg.eigh(U / theta - np.outer(u, u) / theta**2)
    omega = vectors[:, -1]
    return float(values[-1] * theta), omega, float(np.clip(omega @ u / theta, -0.8, 0.8))
