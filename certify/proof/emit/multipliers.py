"""Good multipliers of the ball where a domain cuts it, for several linear forms at once."""

import numpy as np
from jaxtyping import Float

from certify.proof.emit.hints import Chain

_BISECTIONS = 60


def end_multipliers(chain: Chain, forms: Float[np.ndarray, "m n"]) -> Float[np.ndarray, " m"]:
    """By form the multiplier of |d|^2/2 (l2) or of |d|_1 (l1) at the minimum of form.d; 0 where the ball is idle.

    0 also stands for a ball that no domain cuts, whose dual norm the checker knows.
    """
    low, high = chain.room
    cut = bool((np.minimum(-low, high) < chain.radius).any())
    if chain.norm not in ("l2", "l1") or not cut or chain.radius == 0:
        return np.zeros(len(forms))
    caps = np.where(forms > 0, -low, high)
    weights = np.abs(forms)
    return (_l2 if chain.norm == "l2" else _l1)(weights, caps, chain.radius)


def _l2(weights: np.ndarray, caps: np.ndarray, radius: float) -> np.ndarray:
    """|min(w / lam, cap)|_2 = radius, by bisection of log lam."""
    length = np.linalg.norm(weights, axis=1)
    right = np.where(length > 0, length / radius, 1.0)
    left = right * 1e-9
    for _ in range(_BISECTIONS):
        middle = np.sqrt(left * right)
        inside = np.linalg.norm(np.minimum(weights / middle[:, None], caps), axis=1) <= radius
        left, right = np.where(inside, left, middle), np.where(inside, middle, right)
    return np.where(length > 0, right, 0.0)


def _l1(weights: np.ndarray, caps: np.ndarray, radius: float) -> np.ndarray:
    """The weight at which the budget is used up, largest weights first."""
    order = np.argsort(-weights, axis=1)
    used = np.cumsum(np.take_along_axis(caps, order, 1), 1)
    stop = np.minimum((used < radius).sum(1), weights.shape[1] - 1)
    return np.take_along_axis(np.take_along_axis(weights, order, 1), stop[:, None], 1)[:, 0]
