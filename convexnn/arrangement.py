"""Cells of a hyperplane arrangement: one interior point for every sign pattern of X u.

The cells that a new hyperplane cuts are the cells of the old arrangement restricted to that
hyperplane, which has one dimension less. Down to dimension two, where sorting the angles is
enough, this needs no linear program and visits no sign vector that does not exist.
"""

import numpy as np
from jaxtyping import Bool, Float

_PARALLEL = 1e-10  # sine of the angle below which two rows count as one hyperplane


def cells(X: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "C d"]:
    """Unit directions, one in the interior of each cell of {u : x_i'u = 0 for no i}; zero rows are left out.

    Cells narrower than about 1e-10 are not told apart.
    """
    rows = _unit(X)
    if len(rows) == 0:
        return np.eye(1, X.shape[1])
    _, singular, basis = np.linalg.svd(rows, full_matrices=False)
    basis = basis[singular > _PARALLEL * singular[0]]
    points = _spanning_cells(rows @ basis.T) @ basis
    return points / np.linalg.norm(points, axis=1, keepdims=True)


def _unit(X: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "m d"]:
    norms = np.linalg.norm(X, axis=1)
    live = norms > _PARALLEL * max(norms.max(initial=0.0), np.finfo(float).tiny)
    return X[live] / norms[live, None]


def _spanning_cells(rows: Float[np.ndarray, "n r"]) -> Float[np.ndarray, "C r"]:
    """Cells of unit rows that span the space."""
    dimension = rows.shape[1]
    if dimension == 1:
        return np.array([[1.0], [-1.0]])
    return _arcs(rows) if dimension == 2 else _extend(rows)


def _arcs(rows: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "C 2"]:
    """Middles of the arcs between neighbouring kinks."""
    kinks = np.sort(np.mod(np.arctan2(rows[:, 1], rows[:, 0]) + np.pi / 2, np.pi))
    kinks = kinks[np.concatenate([[True], np.diff(kinks) > _PARALLEL])]
    if len(kinks) > 1 and kinks[0] + np.pi - kinks[-1] <= _PARALLEL:
        kinks = kinks[:-1]
    middles = 0.5 * (kinks + np.append(kinks[1:], kinks[0] + np.pi))
    half = np.stack([np.cos(middles), np.sin(middles)], 1)
    return np.concatenate([half, -half])


def _extend(rows: Float[np.ndarray, "n r"]) -> Float[np.ndarray, "C r"]:
    """Add one hyperplane after the other; each splits the cells that it meets in two."""
    kept, points = rows[:0], rows[:1]
    for row in rows:
        if _is_known(kept, row):
            continue
        on_plane = _restricted_cells(kept, row)
        split = np.isin(signatures(kept, points), signatures(kept, on_plane))
        step = _inward(kept, on_plane, row)
        points = np.concatenate([points[~split], on_plane + step, on_plane - step])
        points /= np.linalg.norm(points, axis=1, keepdims=True)
        kept = np.concatenate([kept, row[None]])
    return points


def _is_known(kept: Float[np.ndarray, "m r"], row: Float[np.ndarray, " r"]) -> bool:
    if len(kept) == 0:
        return False
    across = kept - (kept @ row)[:, None] * row
    return bool((np.linalg.norm(across, axis=1) < _PARALLEL).any())


def _restricted_cells(kept: Float[np.ndarray, "m r"], row: Float[np.ndarray, " r"]) -> Float[np.ndarray, "C r"]:
    """Points on the hyperplane of ``row``, one in each cell of ``kept`` that it meets."""
    plane = np.linalg.svd(row[None])[2][1:]
    return cells(kept @ plane.T) @ plane


def _inward(
    kept: Float[np.ndarray, "m r"], points: Float[np.ndarray, "C r"], row: Float[np.ndarray, " r"]
) -> Float[np.ndarray, "C r"]:
    """A step along ``row`` that crosses none of the other hyperplanes."""
    if len(kept) == 0:
        return np.broadcast_to(row, points.shape)
    reach = np.abs(points @ kept.T) / np.maximum(np.abs(kept @ row), np.finfo(float).tiny)
    return np.minimum(0.5 * reach.min(axis=1), 1.0)[:, None] * row


def signatures(rows: Float[np.ndarray, "m r"], points: Float[np.ndarray, "C r"]) -> np.ndarray:
    """A sortable key for the signs of each point against the rows."""
    return packed(points @ rows.T >= 0)


def packed(D: Bool[np.ndarray, "C m"]) -> np.ndarray:
    """Rows of booleans as byte strings, equal where the rows are."""
    if D.shape[1] == 0:
        return np.zeros(len(D), dtype="V1")
    bytes_ = np.ascontiguousarray(np.packbits(D, axis=1))
    return bytes_.view(np.dtype((np.void, bytes_.shape[1]))).ravel()
