"""The bound of one target: the relaxation in stages, each with more of the region and more cuts, judged at their end.

Balls in a domain gain pixels' limits, those first that matter most. Boxes of many inputs are ellipsoids whose axes
change from stage to stage. Everything else has all of its region at once.
"""

from collections.abc import Callable
from dataclasses import replace
from itertools import zip_longest
from math import inf

import numpy as np
from jaxtyping import Int

from certify.bounds.sdp.inputs import Inputs
from certify.bounds.sdp.interior import Iterate
from certify.bounds.sdp.program import Vector
from certify.bounds.sdp.relaxation import Relaxation
from certify.bounds.sdp.rounds import by_rounds
from certify.bounds.sdp.stage import Settings, Solution, first_pairs, matter, solution_of, solved
from certify.bounds.sdp.target import Multipliers, Target

# Networks with at most this many inputs take the limits of all of them at once, each as a constraint of its own.
_FEW_INPUTS = 128
# A pixel that is within its limits by more than this share of the radius at the dual's minimiser is left out.
_INSIDE = 0.02


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
    by = by_rounds if is_large_box(target) else _by_pixels
    return by(target, settings, known, stop)


def is_large_box(target: Target) -> bool:
    """Whether it becomes an ellipsoid."""
    return not target.offsets.has_ball and len(target.offsets.centre) > _FEW_INPUTS


def _by_pixels(
    target: Target, settings: Settings, known: Multipliers | None, stop: Callable[[], bool] | None
) -> Solution:
    best = Solution(-inf, None, inf, target.offsets.centre, 0)
    every = all_pixels(target)
    pixels = np.zeros(0, dtype=int) if known is None else known.pixels[matter(known.nu)]
    relaxation: Relaxation | None = Relaxation(
        target, Inputs.of(target, pixels if every is None else every), first_pairs(target, known)
    )
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
    """One relaxation, with the best bound so far."""
    found = solved(relaxation, settings, stop)
    solution = solution_of(relaxation, found, best.iterations + found.iterations)
    if solution.bound <= best.bound:
        solution = replace(solution, bound=best.bound, multipliers=best.multipliers)
    return solution, found


def _minimiser(relaxation: Relaxation, found: Iterate) -> Vector:
    """Where the Lagrangian is least, which need not be in the region."""
    S = relaxation.program.cost - relaxation.program.adjoint(found.y)
    return -np.linalg.solve(S[1:, 1:], S[1:, 0])
