"""Bounds of a batch of leaves, and where to split them."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor

from certify.bounds.ascent import Forms, Parameters, Rates, ascend
from certify.search.phases.leaves import Leaves
from certify.search.phases.root import Root

# An ascent ends where all bounds are above this: single precision leaves no doubt about the sign then.
_ENOUGH = 1e-4
_FAINT = 1e-20


@dataclass(frozen=True)
class Effort:
    """How much is spent where.

    Attributes:
        batch: leaves that are bounded together.
        root_steps: substitutions of every tree at its root.
        steps: substitutions of every leaf below.
        rates: of the ascents.
        restarts, descents: of the attack before the search, and its steps.
    """

    batch: int = 64
    root_steps: int = 40
    steps: int = 12
    rates: Rates = field(default_factory=Rates)
    restarts: int = 20
    descents: int = 40


@dataclass(frozen=True, eq=False)
class Bounded:
    """Leaves with better bounds, and the points where their linear bounds are least."""

    leaves: Leaves
    point: Float[Tensor, "batch n"]


def bound(root: Root, leaves: Leaves, steps: int, rates: Rates, stop: Callable[[], bool]) -> Bounded:
    """Ascend on every leaf in single precision, then prove what was found, and choose what to split next."""
    trees, relaxed = root.trees, root.relaxed
    owner, form = trees.owner[leaves.tree], trees.form(leaves.tree)
    signs = root.spread(leaves.signs, relaxed.fast_region.centre.dtype)
    forms = relaxed.forms(form, owner, root.cut(relaxed.fast_bounds, owner, signs))
    ascent = ascend(forms, _start(root, leaves, forms), steps, signs=signs, rates=rates, enough=_ENOUGH, stop=stop)
    best = ascent.parameters
    proved = relaxed.judge(form, owner, best, root.cut(relaxed.bounds, owner, signs))
    score = _scores(forms, best)[:, root.columns].float().masked_fill_(leaves.signs != 0, 0.0)
    return Bounded(_updated(root, leaves, best, proved, score), ascent.point)


def _start(root: Root, leaves: Leaves, forms: Forms) -> Parameters:
    dtype = forms.rows.dtype
    slopes = root.spread(leaves.slopes, dtype).clamp_(*forms.limits)
    weights = leaves.weights.to(dtype) if root.trees.real.shape[1] > 1 else None
    return Parameters(slopes, root.spread(leaves.multipliers, dtype), weights)


def _updated(
    root: Root,
    leaves: Leaves,
    best: Parameters,
    proved: Float[Tensor, " batch"],
    score: Float[Tensor, "batch columns"],
) -> Leaves:
    assert best.multipliers is not None
    high, branch = score.max(1) if score.shape[1] else (torch.zeros(len(leaves)), torch.zeros(len(leaves)).long())
    return replace(
        leaves,
        slopes=best.slopes[:, root.columns].float(),
        multipliers=best.multipliers[:, root.columns].float(),
        weights=leaves.weights if best.weights is None else best.weights.float(),
        bound=torch.maximum(leaves.bound, proved),
        branch=torch.where(high > 0, branch, -1),
    )


def _scores(forms: Forms, parameters: Parameters) -> Float[Tensor, "batch n"]:
    """How much the bound can gain where an entry's phase is fixed: what its two lines give away.

    The upper line gives away at most its intercept, the lower one at most min(u, -l), each times its coefficient
    (after Bunel et al., "Branch and bound for piecewise linear neural network verification", JMLR 2020).
    """
    at, parts = forms.substitute(parameters), []
    for slot in forms.slots:
        lower, upper = forms.bounds[slot.source]
        room = torch.minimum(upper, -lower).clamp(min=0)
        given = at.positive[slot.node] * room - at.negative[slot.node] * forms.pieces[slot.node].upper_intercept
        # Where no coefficient is left (conditions that cancel each other) the widest entry is split.
        parts.append((given + _FAINT * room).mul_(room > 0).flatten(1))
    return torch.cat(parts, 1) if parts else at.value.new_zeros((len(at.value), 0))
