"""One canonical form of weighted data, so that order and repetition of rows cannot change a result."""

import numpy as np
from jaxtyping import Bool, Float, Float64, Int

from convexnn.errors import InvalidInputError


def merge_rows(
    X: Float64[np.ndarray, "n d"], Y: Float64[np.ndarray, "n K"], weights: Float64[np.ndarray, " n"]
) -> tuple[Float64[np.ndarray, "m d"], Float64[np.ndarray, "m K"], Float64[np.ndarray, " m"]]:
    """The same weighted data in one canonical form: no zero weights, equal rows merged, rows sorted.

    The objective depends only on the weighted set of rows, and now the arithmetic does too: a
    reordered data set, or a repeated row instead of a weight of two, trains to the same bits.
    """
    keep = weights > 0
    if not keep.any():
        raise InvalidInputError("every sample_weight is zero; at least one must be positive")
    rows = np.ascontiguousarray(np.hstack([X, Y])[keep]) + 0.0  # + 0.0 turns -0.0 into 0.0
    order, is_repeat = _sorted_rows(rows, weights[keep])
    starts = np.flatnonzero(~is_repeat)
    rows = rows[order[starts]]
    merged = np.add.reduceat(weights[keep][order], starts)
    return rows[:, : X.shape[1]].copy(), rows[:, X.shape[1] :].copy(), merged


def _sorted_rows(
    rows: Float64[np.ndarray, "n p"], weights: Float64[np.ndarray, " n"]
) -> tuple[Int[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
    """An order that depends on the set of rows only, and which rows equal the one before.

    Sorts by one random projection, which is cheap, and by all columns only where two different
    rows happen to have the same projection.
    """
    direction = np.random.default_rng(0).standard_normal(rows.shape[1])
    with np.errstate(over="ignore", invalid="ignore"):
        key: Float[np.ndarray, " n"] = (rows * direction).sum(axis=1)
    order = np.lexsort((weights, key))
    is_repeat = _repeats(rows[order])
    if (np.diff(key[order]) == 0)[~is_repeat[1:]].any() or not np.isfinite(key).all():
        order = np.lexsort((weights, *rows.T[::-1]))
        is_repeat = _repeats(rows[order])
    return order, is_repeat


def _repeats(rows: Float64[np.ndarray, "n p"]) -> Bool[np.ndarray, " n"]:
    """Whether each row equals the one before it."""
    return np.concatenate([[False], (rows[1:] == rows[:-1]).all(axis=1)])
