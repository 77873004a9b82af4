"""The bound of a target on a box of many inputs: rounds of small programs, each in an ellipsoid around the box.

After every round the ellipsoid's axes follow the moments (`certify.bounds.sdp.shares`) and, once the first rounds have
found its shape, cuts that the moments violate are added and those without a multiplier dropped. The bound is concave
in the axes' multipliers but rises only by and by; a round that loses goes half the way back to the best one.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import inf

import numpy as np
from jaxtyping import Int

from certify.bounds.sdp.inputs import Inputs, half_widths
from certify.bounds.sdp.interior import Iterate
from certify.bounds.sdp.relaxation import Relaxation
from certify.bounds.sdp.shares import Shares
from certify.bounds.sdp.stage import Settings, Solution, first_pairs, solution_of, solved, split_pairs
from certify.bounds.sdp.target import Multipliers, Target

# Ellipsoids are first fitted without cuts; rounds end after some in a row without gain.
_WITHOUT_CUTS, _WITHOUT_GAIN = 2, 4
# A target is given up if its value stays hopeless even if this many more rounds gained as much as the last one.
_AHEAD = 5
# Cuts with multipliers below this share of the largest one are dropped.
_IDLE = 1e-5
# A program that ends with a gap above this share has not arrived: its moments say little.
_GAP = 0.05


@dataclass(frozen=True, eq=False)
class Round:
    """A relaxation with its solution, and the shares of its ellipsoid."""

    shares: Shares
    relaxation: Relaxation
    found: Iterate

    @property
    def bound(self) -> float:
        """In floating point."""
        return self.found.bound

    @property
    def arrived(self) -> bool:
        """Whether the program was solved to an end."""
        return self.found.value - self.bound <= _GAP * max(1.0, abs(self.bound))

    def next_shares(self, best: "Round") -> Shares:
        """For the round after this one, towards the best one if that was another."""
        if self is not best:
            return self.shares.towards(best.shares)
        squares = self.relaxation.inputs.squares(self.found.X)
        return self.shares.after(squares / half_widths(self.relaxation.target.offsets) ** 2)


def by_rounds(
    target: Target, settings: Settings, known: Multipliers | None, stop: Callable[[], bool] | None
) -> Solution:
    """The best bound of all rounds; only that is judged."""
    shares, pairs = Shares.of(target, known), first_pairs(target, known)
    best: Round | None = None
    before, idle, iterations = inf, 0, 0
    for count in range(settings.rounds):
        now = _round(target, shares, pairs, settings, stop)
        iterations += now.found.iterations
        idle = 0 if best is None or now.bound > best.bound + _least_gain(settings, now) else idle + 1
        best = now if best is None or now.bound > best.bound else best
        hopeless = count >= _WITHOUT_CUTS and _expected(now, before) < settings.hopeless
        over = now.bound > settings.enough or idle >= _WITHOUT_GAIN or (stop is not None and stop())
        if over or (hopeless and now.arrived):
            break
        shares, before = now.next_shares(best), now.bound
        if count >= _WITHOUT_CUTS or known is not None:
            pairs = _next_pairs(now if now.arrived else best, max(settings.cuts, default=0))
    assert best is not None
    return solution_of(best.relaxation, best.found, iterations)


def _round(
    target: Target,
    shares: Shares,
    pairs: Int[np.ndarray, "cuts 2"],
    settings: Settings,
    stop: Callable[[], bool] | None,
) -> Round:
    relaxation = Relaxation(target, Inputs.ellipsoid(target, shares.values), pairs)
    return Round(shares, relaxation, solved(relaxation, replace(settings, hopeless=-inf), stop))


def _least_gain(settings: Settings, now: Round) -> float:
    return settings.tolerance * max(1.0, abs(now.bound))


def _expected(now: Round, before: float) -> float:
    """What the value becomes if some rounds gain as much as the last one did."""
    return now.found.value + _AHEAD * max(now.bound - before, 0.0)


def _next_pairs(now: Round, most: int) -> Int[np.ndarray, "cuts 2"]:
    """The cuts that matter, and at most as many new ones."""
    relaxation, y = now.relaxation, now.found.y
    kept = relaxation.pairs[relaxation.cut_multipliers(y) > _IDLE * np.abs(y).max(initial=0.0)]
    new = relaxation.violated(now.found.X, most)
    return np.unique(np.concatenate([split_pairs(relaxation.target), kept, new]), axis=0)
