"""Quadratic programs over non-negative variables, by an active set that starts from a known support."""

import numpy as np
from jaxtyping import Float
from scipy.linalg import LinAlgError, cho_factor, cho_solve

_TOLERANCE = 1e-10  # of a gradient entry, relative to the largest of the linear term


def nonnegative_minimiser(
    H: Float[np.ndarray, "k k"], g: Float[np.ndarray, " k"], start: Float[np.ndarray, " k"]
) -> Float[np.ndarray, " k"]:
    """The x that minimises x'Hx/2 + g'x over x >= 0; H is positive definite.

    Lawson & Hanson (Solving Least Squares Problems, 1974), chapter 23, with the support of ``start`` as first
    working set: each solve gives the minimiser on the set; what turns negative leaves, and the steepest
    entry joins. The value falls at every step, so that no set comes back.
    """
    x = np.maximum(start, 0.0)
    working = x > 0
    tolerance = _TOLERANCE * float(np.abs(g).max(initial=0.0))
    for _ in range(4 * len(g) + 4):
        x, working = _on_working_set(H, g, x, working)
        slope = np.where(working, np.inf, H @ x + g)
        steepest = int(slope.argmin()) if len(slope) else 0
        if not len(slope) or slope[steepest] >= -tolerance:
            break
        working[steepest] = True
    return x


def _on_working_set(H: np.ndarray, g: np.ndarray, x: np.ndarray, working: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The minimiser over a subset of the working set, from x downhill; the subset."""
    while working.any():
        index = np.flatnonzero(working)
        try:
            target = cho_solve(cho_factor(H[np.ix_(index, index)], lower=True, check_finite=False), -g[index])
        except LinAlgError:
            return x, working  # singular to rounding: the caller keeps what it has
        falling = target <= 0
        if not falling.any():
            x = np.zeros_like(x)
            x[index] = target
            return x, working
        # To the first bound on the way; an entry that starts at zero and wants to fall leaves at once.
        shares = np.full(len(index), np.inf)
        shares[falling] = x[index][falling] / np.maximum(x[index] - target, 1e-300)[falling]
        step = float(shares.min())
        moved = x[index] + step * (target - x[index])
        leaving = falling & (shares <= step)
        moved[leaving] = 0.0
        x = np.zeros_like(x)
        x[index] = moved
        working = working.copy()
        working[index[leaving]] = False
    return np.zeros_like(x), working
