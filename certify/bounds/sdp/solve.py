"""The bound of one target: the relaxation in stages, each with more pixels' limits, judged after each."""

from collections.abc import Callable
from dataclasses import dataclass
from math import inf

import numpy as np
from jaxtyping import Int

from certify.bounds.sdp.interior import Iterate
from certify.bounds.sdp.interior import Settings as Stopping
from certify.bounds.sdp.interior import solve as interior_point
from certify.bounds.sdp.judge import proved_bound
from certify.bounds.sdp.program import Vector
from certify.bounds.sdp.relaxation import Inputs, Relaxation
from certify.bounds.sdp.target import Multipliers, Target
from certify.errors import InvalidInputError

# Networks with at most this many inputs take the limits of all of them at once.
_FEW_INPUTS = 128
# A pixel that is within its limits by more than this share of the radius at the dual's minimiser is left out.
_INSIDE = 0.02
# What is added to multipliers, relative to the largest one, until they prove a bound; the loss that is accepted.
_RAISED, _LOST = (0.0, 1e-9, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4), 1e-4


@dataclass(frozen=True)
class Settings:
    """How a target is bounded.

    Attributes:
        iterations: of the interior-point method, in each stage.
        tolerance: relative gap between the relaxation's value and its bound at which a stage ends.
        pixels: how many pixels' limits each stage adds, for balls in a domain; boxes take all at once.
        enough: stop once the bound is above it; infinite to go on to the tolerance.
        hopeless: stop once the last stage's relaxation is clearly below it; minus infinity to go on.

    Raises:
        InvalidInputError: for numbers that make no sense.
    """

    iterations: int = 40
    tolerance: float = 1e-3
    pixels: tuple[int, ...] = (0, 80, 80)
    enough: float = inf
    hopeless: float = -inf

    def __post_init__(self) -> None:
        if self.iterations < 0 or not self.tolerance > 0:
            raise InvalidInputError(
                f"{self.iterations} iterations to a gap of {self.tolerance}; expected at least 0 and a positive gap"
            )
        if not self.pixels or min(self.pixels) < 0:
            raise InvalidInputError(f"pixels is {self.pixels}; expected at least one stage, of 0 or more pixels each")


@dataclass(frozen=True, eq=False)
class Solution:
    """What is known about a target.

    Attributes:
        bound: proved, see `certify.bounds.sdp.judge`; minus infinity if nothing is.
        multipliers: that prove it; None if nothing is proved.
        value: of the last stage's relaxation at the last moment matrix: an estimate of what the bound can become.
        point: an input of the region where the objective may be small, from the moments.
        iterations: of all stages.
    """

    bound: float
    multipliers: Multipliers | None
    value: float
    point: Vector
    iterations: int


def solve(target: Target, settings: Settings | None = None, *, stop: Callable[[], bool] | None = None) -> Solution:
    """The best bound of all stages; `stop` is asked before every iteration whether time is over."""
    settings = settings or Settings()
    best = Solution(-inf, None, inf, target.offsets.centre, 0)
    chosen = all_pixels(target)
    stages = settings.pixels if chosen is None else (0,)
    chosen = np.zeros(0, dtype=int) if chosen is None else chosen
    outside: Vector | None = None
    for more in stages:
        if outside is not None:
            pixels = np.union1d(chosen, most_violated(target, outside, more))
            if len(pixels) == len(chosen):
                break
            chosen = pixels
        relaxation = Relaxation(target, Inputs.of(target, chosen))
        best, outside = _stage(best, relaxation, settings, stop)
        if best.bound > settings.enough or (stop is not None and stop()):
            break
    return best


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
) -> tuple[Solution, Vector]:
    """One relaxation; and d where its Lagrangian is least, which need not be in the region."""
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
    )
    return solution, relaxation.offset_of(_minimiser(relaxation, found))


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
    S = relaxation.program.cost - relaxation.program.adjoint(found.y)
    return -np.linalg.solve(S[1:, 1:], S[1:, 0])
