"""One relaxation of a target, solved and judged: what the stages of `certify.bounds.sdp.solve` are made of."""

from collections.abc import Callable
from dataclasses import dataclass
from math import inf

import numpy as np
from jaxtyping import Bool, Int

from certify.bounds.sdp.interior import Iterate
from certify.bounds.sdp.interior import Settings as Stopping
from certify.bounds.sdp.interior import solve as interior_point
from certify.bounds.sdp.judge import proved_bound
from certify.bounds.sdp.program import Vector
from certify.bounds.sdp.relaxation import Relaxation
from certify.bounds.sdp.target import Cuts, Multipliers, Target
from certify.errors import InvalidInputError

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
        rounds: of ellipsoids, for boxes of many inputs: a stage each, the most of `cuts` in each but the first ones.
        enough: stop once the bound is above it; infinite to go on to the tolerance.
        hopeless: stop once the last stage's relaxation is clearly below it; minus infinity to go on.

    Raises:
        InvalidInputError: for numbers that make no sense.
    """

    iterations: int = 40
    tolerance: float = 1e-3
    pixels: tuple[int, ...] = (0, 80, 80)
    cuts: tuple[int, ...] = (0, 150, 150)
    rounds: int = 12
    enough: float = inf
    hopeless: float = -inf

    def __post_init__(self) -> None:
        if self.iterations < 0 or not self.tolerance > 0:
            raise InvalidInputError(
                f"{self.iterations} iterations to a gap of {self.tolerance}; expected at least 0 and a positive gap"
            )
        if not self.pixels or min(*self.pixels, *self.cuts, 0) < 0 or self.rounds < 1:
            raise InvalidInputError(
                f"pixels is {self.pixels}, cuts {self.cuts} and rounds {self.rounds}; expected at least one stage of 0"
                " or more pixels, 0 or more cuts in each, and at least one round"
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


def solved(relaxation: Relaxation, settings: Settings, stop: Callable[[], bool] | None) -> Iterate:
    """A relaxation by the interior-point method, from its own start."""
    stopping = Stopping(settings.iterations, settings.tolerance, _beyond(settings.enough), settings.hopeless)
    return interior_point(relaxation.program, relaxation.start(), relaxation.moments(), stopping, stop=stop)


def solution_of(relaxation: Relaxation, found: Iterate, iterations: int) -> Solution:
    """What a relaxation proves and suggests."""
    bound, multipliers = _judged(relaxation, found)
    point = relaxation.target.offsets.project(relaxation.offset_of(found.X[0, 1:] / found.X[0, 0]))
    proving = multipliers if bound > -inf else None
    return Solution(bound, proving, found.value, point, iterations, relaxation.doubtful(found.X))


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


def first_pairs(target: Target, known: Multipliers | None) -> Int[np.ndarray, "cuts 2"]:
    """What is known to matter, and the products of neurons that were split."""
    pairs = [split_pairs(target), *([_rows_of(target, known.cuts)] if known is not None else [])]
    return np.unique(np.concatenate(pairs), axis=0)


def _rows_of(target: Target, cuts: Cuts) -> Int[np.ndarray, "some 2"]:
    """The pairs of rows of `target.factors` in cuts that matter, where the target has both factors."""
    row = {tuple(factor): r for r, factor in enumerate(target.factors.tolist())}
    kept = matter(cuts.weights)
    sides = ([row.get(tuple(v), -1) for v in side[kept].tolist()] for side in (cuts.left, cuts.right))
    pairs = np.sort(np.array(list(sides), dtype=int).reshape(2, -1).T, axis=1)
    return pairs[pairs[:, 0] >= 0]


def matter(weights: Vector) -> Bool[np.ndarray, " _"]:
    """Which multipliers are worth a start with them."""
    return weights > _IDLE * weights.max(initial=0.0)


def split_pairs(target: Target) -> Int[np.ndarray, "cuts 2"]:
    """The product z - l, u - z of every neuron that was split."""
    first = len(target.factors) - 2 * len(target.split) + 2 * np.arange(len(target.split))
    return np.stack([first, first + 1], 1)
