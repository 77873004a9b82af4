"""Bounds of a batch of leaves."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor

from certify.bounds.ascent import Parameters, Rates, ascend
from certify.search.phases.branching import choose, scores, start_of
from certify.search.phases.leaves import Leaves
from certify.search.phases.root import Root

# An ascent ends where all bounds are above this: single precision leaves no doubt about the sign then.
_ENOUGH = 1e-4


@dataclass(frozen=True)
class Effort:
    """How much is spent where.

    Attributes:
        batch: leaves that are bounded together.
        first: leaves that are bounded before the search is cut into parts.
        narrow_steps: substitutions of every bound on a hidden entry where conditions hold.
        narrow_entries: such entries of a part.
        least: leaves of a part.
        root_steps: substitutions of every tree at its root.
        steps: substitutions of every leaf below.
        rates: of the ascents.
        restarts, descents: of the attack before the search, and its steps.
    """

    batch: int = 128
    first: int = 512
    narrow_steps: int = 12
    narrow_entries: int = 512
    least: int = 512
    root_steps: int = 40
    steps: int = 6
    rates: Rates = field(default_factory=Rates)
    restarts: int = 20
    descents: int = 40


@dataclass(frozen=True, eq=False)
class Bounded:
    """Leaves with better bounds, and the points where their linear bounds are least."""

    leaves: Leaves
    point: Float[Tensor, "batch n"]


def bound(root: Root, leaves: Leaves, steps: int, rates: Rates, stop: Callable[[], bool]) -> Bounded:
    """Ascend on every leaf in single precision, then prove what was found, and choose what to split next.

    When time is over nothing more is proved: that can take long.
    """
    trees, relaxed = root.trees, root.relaxed
    owner, form = leaves.owner, trees.form(leaves.tree)
    signs = root.spread(leaves.signs, relaxed.fast_region.centre.dtype)
    forms = relaxed.forms(form, owner, root.cut(relaxed.fast_bounds, owner, signs))
    ascent = ascend(forms, start_of(root, leaves, forms), steps, signs=signs, rates=rates, enough=_ENOUGH, stop=stop)
    if stop():
        return Bounded(leaves, ascent.point)
    best = ascent.parameters
    proved = relaxed.judge(form, owner, best, root.cut(relaxed.bounds, owner, signs))
    proved = torch.minimum(proved, root.ceiling[leaves.tree])
    found = _updated(root, leaves, best, torch.maximum(leaves.bound, proved))
    score = scores(forms, best)[:, root.columns].float().masked_fill_(leaves.signs != 0, 0.0)
    return Bounded(replace(found, branch=choose(root, found, score, stop)), ascent.point)


def _updated(root: Root, leaves: Leaves, best: Parameters, bound: Float[Tensor, " batch"]) -> Leaves:
    assert best.multipliers is not None
    return replace(
        leaves,
        slopes=best.slopes[:, root.columns].float(),
        multipliers=best.multipliers[:, root.columns].float(),
        weights=leaves.weights if best.weights is None else best.weights.float(),
        bound=bound,
    )
