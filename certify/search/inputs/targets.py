"""The constraints of the cases that share a box, as linear targets of the search.

A case (A y <= b) is empty on a box when one of its rows A_i y - b_i, or a combination of them with weights
lambda >= 0, is positive all over the box.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from certify.properties.query import Case
from certify.search.inputs.bounds import Boxes, Layers, Rows, minimum, pull_back
from certify.search.inputs.chain import Chain, Sizes

# Exponentiated-gradient steps on the weights of a combination, and how sharp the first weights are.
_STEPS = 10
_SHARPNESS = 4.0


@dataclass(frozen=True, eq=False)
class Targets:
    """All rows A_i y - b_i of K cases.

    Attributes:
        A: (m, outputs), the rows of all cases.
        b: (m,).
        starts: (K,), the first row of every case.
        rows: the same on the values of the last ReLU layer.
    """

    A: np.ndarray
    b: np.ndarray
    starts: np.ndarray
    rows: Rows

    @staticmethod
    def of(chain: Chain, sizes: Sizes, cases: Sequence[Case]) -> "Targets":
        """The rows of cases with at least one row each.

        The size, doubled, also covers the rounding of coefficients that no double holds.
        """
        A, b = np.concatenate([case.A for case in cases]), np.concatenate([case.b for case in cases])
        starts = np.cumsum([0, *(len(case.b) for case in cases[:-1])])
        size = np.abs(A) @ sizes.layers[-1] + np.abs(b) + sizes.floors[-1]
        rows = Rows(A @ chain.weights[-1], A @ chain.biases[-1] - b, 2 * size)
        return Targets(A, b, starts, rows)

    @property
    def owner(self) -> np.ndarray:
        """(m,), the case of every row."""
        return np.repeat(np.arange(len(self.starts)), self.lengths)

    @property
    def lengths(self) -> np.ndarray:
        """(K,), how many rows every case has."""
        return np.diff([*self.starts, len(self.b)])

    def margins(self, y: np.ndarray) -> np.ndarray:
        """(batch, K): at most 0 where the outputs y (batch, m) lie in a case (as floating point sees it)."""
        return np.maximum.reduceat(y @ self.A.T - self.b, self.starts, axis=1)

    def slopes(self, chain: Chain, x: np.ndarray, case: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The margin of a case (batch,) at each input x (batch, n), and its gradient (batch, n)."""
        active, value = [], x
        for W, b in zip(chain.weights[:-1], chain.biases[:-1], strict=True):
            value = value @ W.T + b
            active.append(value > 0)
            value = np.maximum(value, 0)
        rows = (value @ chain.weights[-1].T + chain.biases[-1]) @ self.A.T - self.b
        rows = np.where(self.owner == case[:, None], rows, -np.inf)
        gradient = self.A[rows.argmax(1)] @ chain.weights[-1]
        for W, on in zip(reversed(chain.weights[:-1]), reversed(active), strict=True):
            gradient = (gradient * on) @ W
        return rows.max(1), gradient


@dataclass(frozen=True, eq=False)
class Planes:
    """Lower bounds form x + constant - slack of targets over a batch of boxes.

    Attributes:
        tops: (batch or 1, M, n), the targets on the last ReLU layer.
        form: (batch, M, inputs).
        constant: (batch, M), rounded down.
        value: (batch, M), the least value of each over its box, rounded down.
        owner: (M,), the case each belongs to.
    """

    tops: np.ndarray
    form: np.ndarray
    constant: np.ndarray
    value: np.ndarray
    owner: np.ndarray

    def best(self, cases: int) -> np.ndarray:
        """(batch, K): the largest bound of every case; NaN counts as nothing known."""
        value = np.where(np.isnan(self.value), -np.inf, self.value)
        return np.stack([value[:, self.owner == k].max(1) for k in range(cases)], 1)

    def select(self, index: np.ndarray) -> "Planes":
        """Of some boxes."""
        tops = self.tops if len(self.tops) == 1 else self.tops[index]
        return Planes(tops, self.form[index], self.constant[index], self.value[index], self.owner)


def _planes(
    chain: Chain, sizes: Sizes, rows: Rows, layers: Layers, boxes: Boxes, index: np.ndarray | slice
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows (boxes, rows, n) at the inputs: form, constant rounded down, least value."""
    lines = [(r.slope[index][:, None], r.offset[index][:, None], r.keep[index][:, None]) for r in layers.relaxations]
    low = pull_back(chain, sizes, rows, lines)
    value = minimum(chain, sizes, low, boxes.centre[index][:, None], boxes.radius[index][:, None])
    slack = chain.rounding * (low.size + np.abs(low.constant)) + sizes.floors[0]
    return low.form, low.constant - slack, value


def bound_rows(chain: Chain, sizes: Sizes, targets: Targets, layers: Layers, boxes: Boxes) -> Planes:
    """Every row by CROWN, and by the zonotope where that is better."""
    count, rows = len(boxes), targets.rows
    spread = Rows(
        np.broadcast_to(rows.form, (count, *rows.form.shape)),
        np.broadcast_to(rows.constant, (count, len(targets.b))),
        np.broadcast_to(rows.size, (count, len(targets.b))),
    )
    form, constant, value = _planes(chain, sizes, spread, layers, boxes, slice(None))
    forward = layers.forward.affine((rows.form, rows.constant), rows.size, chain.rounding)
    value = np.fmax(value, forward.limits(chain.rounding)[0])
    return Planes(rows.form[None], form, constant, value, targets.owner)


def combine(chain: Chain, sizes: Sizes, targets: Targets, layers: Layers, boxes: Boxes, planes: Planes) -> Planes:
    """One more row for every case that has several and is open on some box: their best combination."""
    best = planes.best(len(targets.starts))
    found = [planes]
    for k in np.flatnonzero(targets.lengths > 1):
        index = np.flatnonzero(best[:, k] <= 0)
        if len(index):
            found.append(_combination(chain, sizes, targets, layers, boxes, planes, int(k), index))
    if len(found) == 1:
        return planes
    tops = [np.broadcast_to(p.tops, (len(boxes), *p.tops.shape[1:])) for p in found]
    parts = [(p.form, p.constant, p.value) for p in found]
    form, constant, value = (np.concatenate(arrays, 1) for arrays in zip(*parts, strict=True))
    return Planes(np.concatenate(tops, 1), form, constant, value, np.concatenate([p.owner for p in found]))


def _combination(
    chain: Chain,
    sizes: Sizes,
    targets: Targets,
    layers: Layers,
    boxes: Boxes,
    planes: Planes,
    case: int,
    index: np.ndarray,
) -> Planes:
    mine = slice(targets.starts[case], targets.starts[case] + targets.lengths[case])
    weights = _weights(planes.form[index, mine], planes.constant[index, mine], boxes, index, planes.value[index, mine])
    outputs = weights @ targets.A[mine]
    # The chain's rounding covers sums as long as its layers are wide; there may be more conditions than that.
    longer = max(1.0, weights.shape[1] / chain.widest)
    rows = Rows(
        (outputs @ chain.weights[-1])[:, None],
        (outputs @ chain.biases[-1] - weights @ targets.b[mine])[:, None],
        (2 * longer * weights @ targets.rows.size[mine])[:, None],
    )
    form, constant, value = _planes(chain, sizes, rows, layers, boxes, index)
    count, n = boxes.lower.shape
    full = Planes(
        np.zeros((count, 1, rows.form.shape[-1])),
        np.zeros((count, 1, n)),
        np.full((count, 1), -np.inf),
        np.full((count, 1), -np.inf),
        np.array([case]),
    )
    full.tops[index], full.form[index], full.constant[index], full.value[index] = rows.form, form, constant, value
    return full


def _weights(form: np.ndarray, constant: np.ndarray, boxes: Boxes, index: np.ndarray, value: np.ndarray) -> np.ndarray:
    """(boxes, rows): lambda >= 0, summing to about 1, that makes the least combined plane large.

    Exponentiated gradient ascent on lambda (c + A mid) - |lambda A| rad, a concave function.
    """
    middle = constant + np.einsum("brn,bn->br", form, boxes.centre[index])
    scaled = form * boxes.radius[index][:, None]
    scale = np.abs(scaled).sum(2).mean(1, keepdims=True) + 1e-300
    weights = _softmax(_SHARPNESS * value / scale)
    best, chosen = np.full(len(form), -np.inf), weights
    for step in range(_STEPS):
        slope = np.einsum("br,brn->bn", weights, scaled)
        reached = (weights * middle).sum(1) - np.abs(slope).sum(1)
        better = reached > best
        best, chosen = np.where(better, reached, best), np.where(better[:, None], weights, chosen)
        gradient = middle - np.einsum("bn,brn->br", np.sign(slope), scaled)
        gradient /= np.abs(gradient).max(1, keepdims=True) + 1e-300
        weights = _softmax(np.log(np.maximum(weights, 1e-12)) + 2 / (1 + 0.3 * step) * gradient)
    return chosen


def _softmax(value: np.ndarray) -> np.ndarray:
    power = np.exp(value - value.max(1, keepdims=True))
    return power / power.sum(1, keepdims=True)
