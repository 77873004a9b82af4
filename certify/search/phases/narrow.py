"""Hidden bounds that hold where the conditions of a tree do.

Only points that meet all conditions matter. There, for any weights w >= 0, a hidden value z is at least
z + sum_c w_c condition_c, and the minimum of that over the region, bounded like any other form with its slopes,
multipliers and weights optimised, bounds z (Kotha et al., "Provably bounding neural network preimages", NeurIPS
2023). Conditions are relaxed to the root's ceiling.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from certify.bounds.alpha import Relaxed
from certify.bounds.ascent import Parameters, Rates, ascend
from certify.bounds.backward import Form
from certify.bounds.base import Bounds
from certify.bounds.crown import undecided
from certify.bounds.entries import plain_entries
from certify.search.phases.branching import scores, start_of
from certify.search.phases.leaves import Leaves
from certify.search.phases.root import Root

# Entries of the parameters that are optimised together: they stay in a core's cache.
_CHUNK = 2**16
_RATES = Rates(weights=1.0)
# The first weight of the conditions, relative to the one with which their range makes up for the hidden value's.
_FIRST = 0.3


def narrowed(root: Root, leaves: Leaves, steps: int, most: int, stop: Callable[[], bool]) -> tuple[Root, Leaves]:
    """The leaves with hidden bounds of their own, and the root that has these.

    Args:
        root: what the leaves refer to; its ceilings are finite.
        leaves: a few.
        steps: substitutions of every bound.
        most: entries that are bounded for each leaf: the ones that give away most.
        stop: asked between steps, whether time is over; the rest stays as it is.
    """
    signs = root.spread(leaves.signs, torch.float64)
    bounds = root.cut(root.relaxed.bounds, leaves.owner, signs)
    own = replace(root, relaxed=root.relaxed.between(bounds, leaves.owner))
    leaves = replace(leaves, owner=torch.arange(len(leaves)))
    chosen, narrowing = _most_given_away(own, leaves, most), _Narrowing(own, leaves, signs, steps, stop)
    for slot in reversed(root.slots):
        wanted = slot.of(chosen).flatten(1)
        if slot.source in own.relaxed.steps and bool(wanted.any()):
            bounds = narrowing.layer(slot.source, bounds, wanted)
    return replace(own, relaxed=own.relaxed.between(bounds)), leaves


def are_empty(root: Root, leaves: Leaves) -> Bool[Tensor, " leaves"]:
    """Whether bounds cross: no point of the leaf meets the conditions."""
    bounds, crossed = root.relaxed.bounds, torch.zeros(len(leaves), dtype=torch.bool)
    for slot in root.slots:
        low, high = bounds[slot.source]
        crossed |= (low > high).flatten(1).any(1)[leaves.owner]
    return crossed


def _most_given_away(root: Root, leaves: Leaves, most: int) -> Bool[Tensor, "leaves n"]:
    """The entries with the highest scores."""
    forms = root.relaxed.forms(root.trees.form(leaves.tree), leaves.owner)
    score = scores(forms, start_of(root, leaves, forms))[:, root.columns]
    count = min(most, score.shape[1])
    value, index = score.topk(count, dim=1)
    mask = torch.zeros((len(leaves), root.width), dtype=torch.bool)
    return mask.scatter_(1, root.columns[index], value > 0)


@dataclass(frozen=True, eq=False)
class _Narrowing:
    """What stays the same from layer to layer."""

    root: Root
    leaves: Leaves
    signs: Float[Tensor, "leaves n"]
    steps: int
    stop: Callable[[], bool]

    def layer(self, k: int, bounds: Bounds, wanted: Bool[Tensor, "leaves n"]) -> Bounds:
        """Bounds on some entries of node k."""
        graph, relaxed = self.root.trees.graph, self.root.relaxed.between(bounds)
        widest = max(prod(node.shape) for node in graph.nodes)
        span = (bounds.upper[k] - bounds.lower[k]).flatten(1)
        entries = plain_entries(graph, relaxed.steps, k)
        for first in (0, span.shape[1]):
            found = torch.full_like(span, -torch.inf)
            todo = (wanted & undecided(graph, bounds, k).flatten(1)).nonzero()
            for part in todo.split(max(1, _CHUNK // widest)):
                if len(part) == 0 or self.stop():
                    break
                row, index = part.T
                found[row, index] = self._bound(relaxed, row, entries(row, first + index[:, None]), span[row, index])
            free = torch.full_like(found, torch.inf)
            ends = (-free, -found) if first else (found, free)
            low, high = (v.reshape(bounds.lower[k].shape) for v in ends)
            bounds = bounds.tightened(k, low, high)
        return bounds

    def _bound(
        self, relaxed: Relaxed, row: Int[Tensor, " batch"], entry: Form, span: Float[Tensor, " batch"]
    ) -> Float[Tensor, " batch"]:
        """Of one entry for each of the given leaves."""
        root, leaves = self.root, self.leaves.select(row)
        form = root.trees.form(leaves.tree)
        form = replace(form, constant=form.constant - root.ceiling[leaves.tree][:, None])
        forms = relaxed.forms(form, row, entry=entry)
        # The dual solution of the leaf, times a factor.
        first = (_FIRST * span / self._range[row]).to(forms.rows)[:, None]
        dtype = forms.rows.dtype
        slopes = root.spread(leaves.slopes, dtype).clamp_(*forms.limits)
        multipliers = root.spread(leaves.multipliers, dtype).mul_(first)
        start = Parameters(slopes, multipliers, leaves.weights.to(dtype) * first)
        signs = self.signs[row].to(dtype)
        best = ascend(forms, start, self.steps, signs=signs, rates=_RATES, stop=self.stop).parameters
        return relaxed.judge(form, row, best, entry=entry)

    @property
    def _range(self) -> Float[Tensor, " leaves"]:
        """How far the conditions reach, roughly."""
        return (self.root.slack_at_centre[self.leaves.tree] - self.leaves.bound).clamp(min=1e-300)
