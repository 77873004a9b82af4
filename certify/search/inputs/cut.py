"""Making boxes smaller without losing an unsafe point, and choosing where to split them."""

import numpy as np

from certify.search.inputs.bounds import Boxes, Layers
from certify.search.inputs.chain import Chain
from certify.search.inputs.targets import Planes

_EPS = float(np.finfo(np.float64).eps)
_ROUNDS = 2
# Share of the plane's own slope in the score of a dimension, beside the relaxation's gap.
_SLOPE = 0.5


def clip(boxes: Boxes, planes: Planes, open_cases: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The hull, over the open cases, of the part of each box where all planes of the case are at most 0.

    An unsafe point of case k satisfies form x + constant <= 0 for every plane of k (the planes bound from below
    what is at most 0 there). So form_j x_j <= -constant - sum of the other minima: a limit on x_j. The sums are
    rounded up by their own error bound, the quotient by two units.

    Args:
        open_cases: (batch, K), the cases that are not yet proved empty on the box.

    Returns:
        lower, upper (batch, n): crossing in some coordinate where no unsafe point is left.
    """
    count, n = boxes.lower.shape
    lower, upper = np.full((count, n), np.inf), np.full((count, n), -np.inf)
    for k in range(open_cases.shape[1]):
        index = np.flatnonzero(open_cases[:, k])
        mine = np.flatnonzero(planes.owner == k)
        if not len(index):
            continue
        low, high = boxes.lower[index], boxes.upper[index]
        form, constant = planes.form[np.ix_(index, mine)], planes.constant[np.ix_(index, mine)]
        for _ in range(_ROUNDS):
            low, high = _cut(low, high, form, constant)
        kept = (low <= high).all(1)
        index, low, high = index[kept], low[kept], high[kept]
        lower[index], upper[index] = np.minimum(lower[index], low), np.maximum(upper[index], high)
    return lower, upper


def _cut(low: np.ndarray, high: np.ndarray, form: np.ndarray, constant: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One round of limits from all planes (boxes, rows, n) of one case."""
    least = np.minimum(form * low[:, None], form * high[:, None])
    error = (form.shape[2] + 8) * _EPS * (np.abs(least).sum(2) + np.abs(constant)) + 1e-290
    slack = -(constant + least.sum(2)) + error
    room = slack[..., None] + least
    room += 4 * _EPS * np.abs(room)
    limit = room / form
    limit_up, limit_down = limit + 4 * _EPS * np.abs(limit) + 1e-290, limit - 4 * _EPS * np.abs(limit) - 1e-290
    # A coefficient whose quotient overflows says nothing; NaN is passed over.
    high = np.fmin(high, np.where(form > 0, limit_up, np.inf).min(1, initial=np.inf))
    low = np.fmax(low, np.where(form < 0, limit_down, -np.inf).max(1, initial=-np.inf))
    return low, high


def split_scores(chain: Chain, layers: Layers, tops: np.ndarray, slope: np.ndarray, index: np.ndarray) -> np.ndarray:
    """(len(index), free inputs): how much of a plane's looseness each causes.

    The target's row is walked back; at every ReLU it loses up to G = P min(U, -L) + |N| t, which is charged to
    the inputs in the proportion in which they spread the pre-activation.

    Args:
        tops: (len(index), n), the target of each box on the last ReLU layer.
        slope: (len(index), free inputs), how far its plane falls from the centre along each.
    """
    score = _SLOPE * slope
    row = tops
    for k in range(chain.hidden - 1, -1, -1):
        lines = layers.relaxations[k]
        lower, upper, line, offset, keep = (
            a[index] for a in (lines.lower, lines.upper, lines.slope, lines.offset, lines.keep)
        )
        negative = np.minimum(row, 0)
        positive = row - negative
        gap = np.where(offset > 0, positive * np.minimum(upper, -lower) - negative * offset, 0.0)
        share = 2 * gap / np.maximum(upper - lower, 1e-300)
        score += np.einsum("bdn,bn->bd", layers.spreads[k][index], share)
        row = (positive * keep + negative * line) @ chain.weights[k]
    return score
