"""Proofs in floating point that a symmetric matrix is positive definite, and norm bounds that rest on them.

If Cholesky's algorithm in floating point runs to its end on A - c I with c >= g / (1 - g) trace(A), g = (n + 1) u /
(1 - (n + 1) u) and u = 2^-53, then A is positive definite (Rump, "Verification of positive definiteness", BIT 46,
2006).
"""

import numpy as np
from jaxtyping import Float

from certify.rounding import UNIT, gamma_of

# Relative excess of a claimed norm over the computed one, doubled until the proof succeeds.
_EXCESS = 2.0**-40
_TINY = np.finfo(np.float64).tiny


def is_definite(matrix: Float[np.ndarray, "n n"], radius: Float[np.ndarray, "n n"]) -> bool:
    """Whether every symmetric matrix within `radius` of `matrix`, entry by entry, is proved positive definite.

    A negative answer says nothing. Only the lower triangles are read.
    """
    diagonal = np.diag(matrix)
    if len(matrix) == 0:
        return True
    if not (np.isfinite(matrix).all() and np.isfinite(radius).all() and (diagonal > 0).all()):
        return False
    # Powers of two: the scaling is exact, and a matrix of unit diagonal wastes least of the shift.
    scale = np.exp2(-np.round(np.log2(diagonal) / 2))
    scaled, slack = matrix * scale[:, None] * scale, radius * scale[:, None] * scale
    slack = np.tril(slack) + np.tril(slack, -1).T
    n = len(matrix)
    norm = float(slack.sum(1).max()) * (1 + 4 * n * UNIT)
    trace = float(np.trace(scaled)) * (1 + 4 * n * UNIT)
    shift = norm + 2 * (n + 2) * UNIT * trace + n * n * _TINY
    # The subtraction is rounded too, by at most one unit of the diagonal.
    shifted = scaled - np.diag(np.full(n, shift) + 4 * UNIT * np.diag(scaled))
    try:
        factor = np.linalg.cholesky(shifted)
    except np.linalg.LinAlgError:
        return False
    return bool(np.isfinite(factor).all())


def squared_norm(matrix: Float[np.ndarray, "m n"]) -> float:
    """A proved upper bound of the squared spectral norm |W|_2^2, within about 1e-10 of it.

    The largest eigenvalue of a Gram matrix that an eigenvalue routine returns is a guess; that s I - W W' is
    positive definite is the proof.
    """
    if matrix.size == 0 or not matrix.any():
        return 0.0
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    # Scaled so that nothing under- or overflows; by a power of two, exactly.
    unit = float(np.exp2(np.floor(np.log2(np.abs(wide).max()))))
    wide = wide / unit
    gram, size = wide @ wide.T, np.abs(wide) @ np.abs(wide).T
    radius = gamma_of(wide.shape[1]) * size
    guess, excess = float(np.linalg.eigvalsh(gram)[-1]), _EXCESS
    while True:
        claim = guess * (1 + excess)
        if is_definite(claim * np.eye(len(gram)) - gram, radius + 2 * UNIT * (claim * np.eye(len(gram)) + size)):
            return float(np.nextafter(claim * unit * unit, np.inf))
        excess *= 2
