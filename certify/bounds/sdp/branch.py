"""Case splits on the signs of neurons where one relaxation of a target is not enough; valid at every moment.

The worst case is split, on the unstable neuron with the largest min(y, w) in its moments: in one case z <= 0 and
y = 0, in the other z >= 0 and y = z. Both keep z - l, u - z >= 0 with the new bound as factors, and start with the
pixels and cuts of the case that they are halves of.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from certify.bounds.sdp.solve import solve
from certify.bounds.sdp.stage import Settings, Solution
from certify.bounds.sdp.target import Multipliers, Target, Vector


@dataclass(eq=False)
class _Case:
    """A case and what is known about it: open, closed for splits, or split in two."""

    target: Target
    solution: Solution
    neuron: tuple[int, int] | None = None
    halves: tuple["_Case", "_Case"] | None = None
    final: bool = False

    def leaves(self) -> Iterator["_Case"]:
        if self.halves is None:
            yield self
            return
        for half in self.halves:
            yield from half.leaves()

    def order(self) -> Iterator[tuple[int, int] | None]:
        if self.halves is None:
            yield None
            return
        yield self.neuron
        for half in self.halves:
            yield from half.order()


@dataclass(frozen=True, eq=False)
class Cases:
    """The bound of a target by cases.

    Attributes:
        bound: proved, the least of all cases.
        order: depth first the (layer, neuron) of a split, followed by its cases z <= 0 and z >= 0, or None for a case.
        multipliers: that prove the bound in every case, in that order; None in a case where nothing is proved.
        points: inputs of the region where the objective may be small, one for every case.
        root: what is known about the target itself.
    """

    bound: float
    order: tuple[tuple[int, int] | None, ...]
    multipliers: tuple[Multipliers | None, ...]
    points: tuple[Vector, ...]
    root: Solution


def solve_cases(
    target: Target,
    settings: Settings | None = None,
    *,
    known: Solution | None = None,
    most: int = 1,
    stop: Callable[[], bool] | None = None,
) -> Cases:
    """The bound of a target by at most `most` cases; with one it is that of `solve`.

    Args:
        target: what is bounded.
        settings: of every case. No case is split whose bound is above `enough`, or above the objective at the centre.
        known: what `solve` found for the target.
        most: cases in the end.
        stop: asked before every iteration, whether time is over.
    """
    settings = settings or Settings()
    settings = replace(settings, enough=min(settings.enough, target.at_centre + 1e-3 * (1 + abs(target.at_centre))))
    root = _Case(target, known or solve(target, settings, stop=stop))
    for _ in range(most - 1):
        worst = min((c for c in root.leaves()), key=lambda c: c.solution.bound)
        over = stop is not None and stop()
        if over or worst.final or worst.solution.bound > settings.enough or worst.solution.doubtful is None:
            break
        _split(worst, settings, stop)
    leaves = list(root.leaves())
    return Cases(
        min(c.solution.bound for c in leaves),
        tuple(root.order()),
        tuple(c.solution.multipliers for c in leaves),
        tuple(c.solution.point for c in leaves),
        root.solution,
    )


def _split(case: _Case, settings: Settings, stop: Callable[[], bool] | None) -> None:
    """In two, unless that is worse, as it is where time runs out."""
    neuron, held = case.solution.doubtful, case.solution.multipliers
    assert neuron is not None
    last = replace(settings, pixels=settings.pixels[-2:], cuts=settings.cuts[-2:])
    halves = [_Case(half, solve(half, last, known=held, stop=stop)) for half in _halves(case.target, *neuron)]
    if min(half.solution.bound for half in halves) < case.solution.bound:
        case.final = True
        return
    case.neuron, case.halves = neuron, (halves[0], halves[1])


def _halves(target: Target, layer: int, neuron: int) -> tuple[Target, Target]:
    """z <= 0 and z >= 0."""
    split = (*target.split, (layer, neuron))
    zeroed = [list(side) for side in (target.upper, target.lower)]
    for side in zeroed:
        side[layer] = np.where(np.arange(len(side[layer])) == neuron, 0.0, side[layer])
    upper, lower = map(tuple, zeroed)
    return replace(target, upper=upper, split=split), replace(target, lower=lower, split=split)
