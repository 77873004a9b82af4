"""Bounds of all layers over a batch of boxes: a zonotope forwards, then CROWN for what it leaves undecided.

Every bound holds for the real network, whose weights are the doubles of the chain: rounding is accounted for.

*Forwards.* Values are x = c + G xi + r with xi in [-1, 1]^n and |r| <= e, all per box. With s and t such that
s z <= relu(z) <= s z + t on [L, U], relu(z) = s z + t/2 +- t/2. Rounding errors of the products are at most
`rounding` times the sum of absolute values, (|c| + sum |G|) |W|, and are added to e; so is what W and b are off
by where they were merged from several operations, at most `rounding` times the `Sizes`.

*Backwards.* Rows R with R z + c a lower bound go down layer by layer: with N = min(R, 0) and P = R - N,
R relu(z) >= P (a z) + N (s z + t), a in {0, 1}. The computed row and constant differ from the exact ones by at
most `rounding` times the sum S of all |R| (|W| |x| + |b|) + |N| t on the way: at every layer, the row and its
product with W are each off relatively to their absolute values, and what they multiply is at most the `Sizes`.
S is accumulated beside the constant, and the final bound is lowered by `rounding` S.

The relaxation itself is exact for the computed s, a and t: any s in [0, 1] is valid with a t that is rounded
up from max(-s L, (1 - s) U).

Singh et al., "Fast and effective robustness certification", NeurIPS 2018 (zonotopes); Zhang et al., "Efficient
neural network robustness certification with general activation functions", NeurIPS 2018 (CROWN).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from certify.search.inputs.chain import Chain, Sizes

_EPS = float(np.finfo(np.float64).eps)
_TINY = 1e-300

# Entries of the rows that are taken through the layers at once, and the most rows: a core's cache.
_ENTRIES = 2**18
_ROWS = 1024


@dataclass(frozen=True, eq=False)
class Boxes:
    """A batch of boxes.

    Attributes:
        lower, upper: (batch, n).
        centre, radius: centre + [-radius, radius] contains the box.
    """

    lower: np.ndarray
    upper: np.ndarray
    centre: np.ndarray
    radius: np.ndarray

    @staticmethod
    def of(lower: np.ndarray, upper: np.ndarray) -> "Boxes":
        """From the limits."""
        centre = 0.5 * lower + 0.5 * upper
        radius = np.maximum(upper - centre, centre - lower) * (1 + 2 * _EPS)
        return Boxes(lower, upper, centre, radius + np.where(radius > 0, _TINY, 0))

    def __len__(self) -> int:
        return len(self.lower)


@dataclass(frozen=True, eq=False)
class Relaxation:
    """Linear pieces of one ReLU layer over every box, (batch, n) each.

    Attributes:
        lower, upper: bounds of z.
        slope: s of the upper line; also the slope of both lines of the zonotope.
        offset: t of the upper line; 0 where the phase is known.
        keep: a, the slope of CROWN's lower line.
    """

    lower: np.ndarray
    upper: np.ndarray
    slope: np.ndarray
    offset: np.ndarray
    keep: np.ndarray

    @staticmethod
    def of(lower: np.ndarray, upper: np.ndarray) -> "Relaxation":
        """The lines of a layer whose pre-activations have these bounds."""
        active = lower >= 0
        unstable = (lower < 0) & (upper > 0)
        slope = np.where(unstable, upper / np.where(unstable, upper - lower, 1.0), active)
        gap = np.maximum(-slope * lower, (1 - slope) * upper) * (1 + 8 * _EPS) + _TINY
        keep = np.where(unstable, upper > -lower, active).astype(np.float64)
        return Relaxation(lower, upper, slope, np.where(unstable, gap, 0.0), keep)


@dataclass(frozen=True, eq=False)
class Layers:
    """What is known about a batch of boxes.

    Attributes:
        relaxations: of every ReLU layer.
        spreads: for every ReLU layer |G| of the pre-activations, (batch, free inputs, n): which moves what.
        forward: the zonotope's lower bounds of linear rows on the last hidden layer.
    """

    relaxations: tuple[Relaxation, ...]
    spreads: tuple[np.ndarray, ...]
    forward: "Zonotope"

    def bounds(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Lower and upper bounds of all pre-activations."""
        return [(r.lower, r.upper) for r in self.relaxations]


@dataclass(frozen=True, eq=False)
class Zonotope:
    """x = centre + generators xi + r, |r| <= error; `size` is at least |centre| + sum |generators|.

    Attributes:
        form: (batch, free inputs + 1, n), the generators, then the centre.
        error: (batch, n).
        size: (batch, n).
    """

    form: np.ndarray
    error: np.ndarray
    size: np.ndarray

    @staticmethod
    def start(boxes: Boxes, free: np.ndarray) -> "Zonotope":
        """The boxes themselves; their radius is 0 in all inputs but the free ones."""
        count, n = boxes.lower.shape
        form = np.zeros((count, len(free) + 1, n))
        form[:, np.arange(len(free)), free] = boxes.radius[:, free]
        form[:, -1] = boxes.centre
        return Zonotope(form, np.zeros((count, n)), np.abs(boxes.centre) + boxes.radius)

    def affine(self, layer: tuple[np.ndarray, np.ndarray], size: np.ndarray, rounding: float) -> "Zonotope":
        """W x + b; `size` is at least |W| |x| + |b|, with what W and b themselves are off by."""
        W, b = layer
        count, rows, n = self.form.shape
        form = (self.form.reshape(count * rows, n) @ W.T).reshape(count, rows, len(b))
        form[:, -1] += b
        spread = np.abs(form[:, :-1]).sum(1) + np.abs(form[:, -1])
        error = (self.error + rounding * self.size + _TINY) @ np.abs(W).T
        return Zonotope(form, (error + rounding * (spread + size)) * (1 + rounding) + _TINY, spread)

    def limits(self, rounding: float) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper bounds."""
        centre = self.form[:, -1]
        reach = (self.size - np.abs(centre) + self.error) * (1 + rounding) + rounding * self.size
        return centre - reach, centre + reach

    def relu(self, lines: Relaxation, rounding: float) -> "Zonotope":
        """Of the pre-activations, their ReLU."""
        half = 0.5 * lines.offset
        form = self.form * lines.slope[:, None]
        form[:, -1] += half
        size = lines.slope * self.size + half
        return Zonotope(form, (lines.slope * self.error + half + rounding * size) * (1 + rounding), size)


@dataclass(frozen=True, eq=False)
class Rows:
    """Linear lower bounds R x + c - rounding * size of targets, at some layer or at the inputs.

    Attributes:
        form: (..., n).
        constant: (...).
        size: (...), what the rounding error is proportional to.
    """

    form: np.ndarray
    constant: np.ndarray
    size: np.ndarray


# What `pull_back` reads of a relaxation: slope, offset and keep, broadcastable to the rows' form.
Lines = tuple[np.ndarray, np.ndarray, np.ndarray]


def pull_back(chain: Chain, sizes: Sizes, rows: Rows, lines: Sequence[Lines]) -> Rows:
    """Rows on the values of a ReLU layer as rows on the inputs, given the lines of that layer and all below."""
    form, constant, size = rows.form, rows.constant, rows.size
    for k in range(len(lines) - 1, -1, -1):
        slope, offset, keep = lines[k]
        negative = np.minimum(form, 0)
        drop = np.einsum("...n,...n->...", negative, offset)
        form = (form - negative) * keep
        form += np.multiply(negative, slope, out=negative)
        np.abs(form, out=negative)
        size = size + (negative @ sizes.layers[k] - drop + sizes.floors[k])
        constant = constant + drop + form @ chain.biases[k]
        form = (form.reshape(-1, form.shape[-1]) @ chain.weights[k]).reshape(*form.shape[:-1], -1)
    return Rows(form, constant, size)


def minimum(chain: Chain, sizes: Sizes, rows: Rows, centre: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """Lower bounds of rows on the inputs over boxes that broadcast to them, rounded down."""
    absolute = np.abs(rows.form)
    value = (
        rows.constant + np.einsum("...n,...n->...", rows.form, centre) - np.einsum("...n,...n->...", absolute, radius)
    )
    size = rows.size + absolute @ sizes.inputs + np.abs(rows.constant)
    return value - chain.rounding * size - sizes.floors[0]


def bound_layers(
    chain: Chain, sizes: Sizes, boxes: Boxes, known: Sequence[tuple[np.ndarray, np.ndarray]], tick: Callable[[], None]
) -> Layers:
    """Bounds and relaxations of every ReLU layer.

    Args:
        sizes: of the values over a box that contains these.
        known: bounds of the pre-activations that hold already (of the boxes these were cut from), or nothing.
        tick: called between pieces of work; may raise to stop.
    """
    zonotope = Zonotope.start(boxes, sizes.free)
    done: list[Relaxation] = []
    spreads = []
    for k in range(chain.hidden):
        zonotope = zonotope.affine((chain.weights[k], chain.biases[k]), sizes.layers[k], chain.rounding)
        lower, upper = zonotope.limits(chain.rounding)
        # fmax and fmin pass over NaN, which overflow leaves: then nothing is known.
        lower, upper = np.fmax(lower, -np.inf), np.fmin(upper, np.inf)
        if known:
            lower, upper = np.fmax(lower, known[k][0]), np.fmin(upper, known[k][1])
        if k > 0:
            _tighten(chain, sizes, boxes, done, (lower, upper), tick)
        done.append(Relaxation.of(lower, np.maximum(lower, upper)))
        spreads.append(np.abs(zonotope.form[:, :-1]))
        zonotope = zonotope.relu(done[-1], chain.rounding)
        tick()
    return Layers(tuple(done), tuple(spreads), zonotope)


def _tighten(
    chain: Chain,
    sizes: Sizes,
    boxes: Boxes,
    done: Sequence[Relaxation],
    limits: tuple[np.ndarray, np.ndarray],
    tick: Callable[[], None],
) -> None:
    """CROWN bounds, in place, of the neurons of the next layer whose phase is open: the pairs (box, neuron)."""
    lower, upper = limits
    box, neuron = np.nonzero((lower < 0) & (upper > 0))
    W, b = chain.weights[len(done)], chain.biases[len(done)]
    chunk = max(8, min(_ROWS, _ENTRIES // chain.widest) // 2)
    for start in range(0, len(box), chunk):
        i, j = box[start : start + chunk], neuron[start : start + chunk]
        lines = [(r.slope[i], r.offset[i], r.keep[i]) for r in done]
        weight, bias = W[j], b[j]
        rows = Rows(np.stack([weight, -weight]), np.stack([bias, -bias]), np.abs(bias))
        value = minimum(chain, sizes, pull_back(chain, sizes, rows, lines), boxes.centre[i], boxes.radius[i])
        lower[i, j] = np.fmax(lower[i, j], value[0])
        upper[i, j] = np.fmin(upper[i, j], -value[1])
        tick()
