"""The bound of one target: the relaxation in stages, each with more pixels' limits and cuts, judged after each."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import zip_longest
from math import inf

import numpy as np
from jaxtyping import Bool, Int

from certify.bounds.sdp.interior import Iterate
from certify.bounds.sdp.interior import Settings as Stopping
from certify.bounds.sdp.interior import solve as interior_point
from certify.bounds.sdp.judge import proved_bound
from certify.bounds.sdp.program import Vector
from certify.bounds.sdp.relaxation import Inputs, Relaxation
from certify.bounds.sdp.target import Cuts, Multipliers, Target
from certify.errors import InvalidInputError

# Networks with at most this many inputs take the limits of all of them at once.
_FEW_INPUTS = 128
# A pixel that is within its limits by more than this share of the radius at the dual's minimiser is left out.
_INSIDE = 0.02
# Multipliers below this share of the largest one are dropped when another target starts from them.
_IDLE = 1e-3
# What is added to multipliers, relative to the largest one, until they prove a bound; the loss that is accepted.
_RAISED, _LOST = (0.0, 1e-9, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4), 1e-4


@dataclass(frozen=True)
class Settings:
    """How a target is bounded.

    Attributes:
        iterations: of the interior-point method, in each stage.
        tolerance: relative gap between the relaxation's value and its bound at which a stage ends.
        pixels: how many pixels' limits each stage but the first adds, for balls in a domain; boxes take all at once.
        cuts: how many products of two neurons' factors each stage but the first adds.
        enough: stop once the bound is above it; infinite to go on to the tolerance.
        hopeless: stop once the last stage's relaxation is clearly below it; minus infinity to go on.

    Raises:
        InvalidInputError: for numbers that make no sense.
    """

    iterations: int = 40
    tolerance: float = 1e-3
    pixels: tuple[int, ...] = (0, 80, 80)
    cuts: tuple[int, ...] = (0, 150, 150)
    enough: float = inf
    hopeless: float = -inf

    def __post_init__(self) -> None:
        if self.iterations < 0 or not self.tolerance > 0:
            raise InvalidInputError(
                f"{self.iterations} iterations to a gap of {self.tolerance}; expected at least 0 and a positive gap"
            )
        if not self.pixels or min(*self.pixels, *self.cuts, 0) < 0:
            raise InvalidInputError(
                f"pixels is {self.pixels} and cuts {self.cuts}; expected at least one stage of 0 or more pixels, and"
                " 0 or more cuts in each"
            )


@dataclass(frozen=True, eq=False)
class Solution:
    """What is known about a target.

    Attributes:
        bound: proved, see `certify.bounds.sdp.judge`; minus infinity if nothing is.
        multipliers: that prove it; None if nothing is proved.
        value: of the last stage's relaxation at the last moment matrix: an estimate of what the bound can become.
        point: an input of the region where the objective may be small, from the moments.
        iterations: of all stages.
        doubtful: (layer, neuron) of the unstable neuron with the largest min(y, w) in the moments.
    """

    bound: float
    multipliers: Multipliers | None
    value: float
    point: Vector
    iterations: int
    doubtful: tuple[int, int] | None = None


def solve(
    target: Target,
    settings: Settings | None = None,
    *,
    known: Multipliers | None = None,
    stop: Callable[[], bool] | None = None,
) -> Solution:
    """The best bound of all stages.

    Args:
        target: what is bounded.
        settings: of the stages.
        known: multipliers of a similar target: the first stage starts with its pixels and cuts.
        stop: asked before every iteration, whether time is over.
    """
    settings = settings or Settings()
    best = Solution(-inf, None, inf, target.offsets.centre, 0)
    relaxation: Relaxation | None = _first(target, known)
    for more, cuts in zip_longest(settings.pixels[1:], settings.cuts[1:], fillvalue=0):
        assert relaxation is not None
        best, found = _stage(best, relaxation, settings, stop)
        if best.bound > settings.enough or (stop is not None and stop()):
            return best
        relaxation = _wider(relaxation, found, more, cuts)
        if relaxation is None:
            return best
    assert relaxation is not None
    return _stage(best, relaxation, settings, stop)[0]


def _first(target: Target, known: Multipliers | None) -> Relaxation:
    """With what is known to matter, and the products of neurons that were split."""
    every, pairs = all_pixels(target), [split_pairs(target)]
    if known is not None:
        pairs.append(_rows_of(target, known.cuts))
    pixels = np.zeros(0, dtype=int) if known is None else known.pixels[_matter(known.nu)]
    inputs = Inputs.of(target, pixels if every is None else every)
    return Relaxation(target, inputs, np.unique(np.concatenate(pairs), axis=0))


def _rows_of(target: Target, cuts: Cuts) -> Int[np.ndarray, "some 2"]:
    """The pairs of rows of `target.factors` in cuts that matter, where the target has both factors."""
    row = {tuple(factor): r for r, factor in enumerate(target.factors.tolist())}
    kept = _matter(cuts.weights)
    sides = ([row.get(tuple(v), -1) for v in side[kept].tolist()] for side in (cuts.left, cuts.right))
    pairs = np.sort(np.array(list(sides), dtype=int).reshape(2, -1).T, axis=1)
    return pairs[pairs[:, 0] >= 0]


def _matter(weights: Vector) -> Bool[np.ndarray, " _"]:
    return weights > _IDLE * weights.max(initial=0.0)


def _wider(relaxation: Relaxation, found: Iterate, more: int, cuts: int) -> Relaxation | None:
    """With the limits and products that are violated most; None if there are none."""
    target, inputs = relaxation.target, relaxation.inputs
    if all_pixels(target) is None:
        outside = relaxation.offset_of(_minimiser(relaxation, found))
        inputs = Inputs.of(target, np.union1d(inputs.pixels, most_violated(target, outside, more)))
    pairs = np.concatenate([relaxation.pairs, relaxation.violated(found.X, cuts)])
    if len(inputs.pixels) == len(relaxation.inputs.pixels) and len(pairs) == len(relaxation.pairs):
        return None
    return Relaxation(target, inputs, pairs)


def split_pairs(target: Target) -> Int[np.ndarray, "cuts 2"]:
    """The product z - l, u - z of every neuron that was split."""
    first = len(target.factors) - 2 * len(target.split) + 2 * np.arange(len(target.split))
    return np.stack([first, first + 1], 1)


def all_pixels(target: Target) -> Int[np.ndarray, " n"] | None:
    """All of them where the stages would make no difference, or little."""
    n = len(target.offsets.centre)
    return np.arange(n) if not target.offsets.has_ball or n <= _FEW_INPUTS else None


def most_violated(target: Target, d: Vector, count: int) -> Int[np.ndarray, " some"]:
    """The pixels that d leaves the limits of, or nearly, the worst first; of a ball in a domain."""
    offsets = target.offsets
    assert offsets.radius is not None
    by = np.maximum(offsets.lower - d, d - offsets.upper)
    order = np.argsort(-by, kind="stable")[:count]
    return order[by[order] > -_INSIDE * offsets.radius]


def _stage(
    best: Solution, relaxation: Relaxation, settings: Settings, stop: Callable[[], bool] | None
) -> tuple[Solution, Iterate]:
    """One relaxation."""
    target = relaxation.target
    stopping = Stopping(settings.iterations, settings.tolerance, _beyond(settings.enough), settings.hopeless)
    found = interior_point(relaxation.program, relaxation.start(), relaxation.moments(), stopping, stop=stop)
    bound, multipliers = _judged(relaxation, found)
    moments = relaxation.offset_of(found.X[0, 1:] / found.X[0, 0])
    solution = Solution(
        max(bound, best.bound),
        multipliers if bound > best.bound else best.multipliers,
        found.value,
        target.offsets.project(moments),
        best.iterations + found.iterations,
        relaxation.doubtful(found.X),
    )
    return solution, found


def _judged(relaxation: Relaxation, found: Iterate) -> tuple[float, Multipliers]:
    """What the multipliers prove; where S is too close to singular, those that bound variables are raised."""
    best = -inf, relaxation.multipliers(found.y)
    for share in _RAISED:
        y = found.y + share * np.abs(found.y).max(initial=1.0) * relaxation.bounding
        multipliers = relaxation.multipliers(y)
        bound = proved_bound(relaxation.target, multipliers)
        if bound > best[0]:
            best = bound, multipliers
        if bound > found.bound - _LOST * max(1.0, abs(found.bound)) - 100 * share:
            break
    return best


def _beyond(enough: float) -> float:
    """Far enough above for the judge, which takes a little off."""
    return enough + 1e-5 * max(1.0, abs(enough)) if np.isfinite(enough) else enough


def _minimiser(relaxation: Relaxation, found: Iterate) -> Vector:
    """Where the Lagrangian is least, which need not be in the region."""
    S = relaxation.program.cost - relaxation.program.adjoint(found.y)
    return -np.linalg.solve(S[1:, 1:], S[1:, 0])
