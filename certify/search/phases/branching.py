"""Where to split a leaf: what its two lines give away names candidates, the children's bounds choose among them.

After Bunel et al., "Branch and bound for piecewise linear neural network verification", JMLR 2020, and De Palma
et al., "Improved branch and bound for neural network verification via Lagrangian decomposition", 2021.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from certify.bounds.ascent import Forms, Parameters
from certify.search.phases.leaves import Leaves
from certify.search.phases.root import Root

_CANDIDATES = 16
_FAINT, _LITTLE = 1e-20, 1e-6


def start_of(root: Root, leaves: Leaves, forms: Forms) -> Parameters:
    """What an ascent on the leaves starts from: what they inherited, within the limits that their phases leave."""
    dtype = forms.rows.dtype
    slopes = root.spread(leaves.slopes, dtype).clamp_(*forms.limits)
    weights = leaves.weights.to(dtype) if root.trees.real.shape[1] > 1 else None
    return Parameters(slopes, root.spread(leaves.multipliers, dtype), weights)


def scores(forms: Forms, parameters: Parameters) -> Float[Tensor, "batch n"]:
    """How much the bound can gain where an entry's phase is fixed: what its two lines give away.

    The upper line gives away at most its intercept, the lower one at most min(u, -l), each times its coefficient.
    """
    at, parts = forms.substitute(parameters), []
    for slot in forms.slots:
        lower, upper = forms.bounds[slot.source]
        room = torch.minimum(upper, -lower).clamp(min=0)
        given = at.positive[slot.node] * room - at.negative[slot.node] * forms.pieces[slot.node].upper_intercept
        # Where no coefficient is left (conditions that cancel each other) the widest entry is split.
        parts.append((given + _FAINT * room).mul_(room > 0).flatten(1))
    return torch.cat(parts, 1) if parts else at.value.new_zeros((len(at.value), 0))


def choose(
    root: Root, leaves: Leaves, score: Float[Tensor, "batch columns"], stop: Callable[[], bool]
) -> Int[Tensor, " batch"]:
    """The column that each open leaf is split at; -1 where there is none."""
    if score.shape[1] == 0:
        return torch.full((len(leaves),), -1)
    high, best = score.max(1)
    branch = torch.where(high > 0, best, -1)
    several = ((leaves.bound <= 0) & ((score > 0).sum(1) > 1)).nonzero().flatten()
    count = min(_CANDIDATES, score.shape[1])
    for part in several.split(max(1, root.together // (2 * count))):
        if len(part) == 0 or stop():
            break
        given, columns = score[part].topk(count, dim=1)
        value = _product_of_gains(root, leaves.select(part), columns).masked_fill_(given <= 0, -1.0)
        branch[part] = columns.gather(1, value.argmax(1, keepdim=True)).squeeze(1)
    return branch


def _product_of_gains(
    root: Root, leaves: Leaves, columns: Int[Tensor, "batch candidates"]
) -> Float[Tensor, "batch candidates"]:
    """Of the two children's bounds over their parent's, without an ascent; a closed child gains what closes it."""
    row = torch.arange(len(leaves)).repeat_interleave(columns.shape[1])
    parents = leaves.select(row)
    base = leaves.bound.float()[:, None]
    product = torch.ones_like(columns, dtype=torch.float32)
    for sign in (1, -1):
        signs = parents.signs.clone()
        signs[torch.arange(len(row)), columns.flatten()] = sign
        value = _quick_bound(root, parents, signs).float().reshape(columns.shape)
        product *= (value.clamp(max=0) - base).clamp(min=_LITTLE)
    return product


def _quick_bound(root: Root, leaves: Leaves, signs: Int[Tensor, "batch columns"]) -> Float[Tensor, " batch"]:
    relaxed, owner = root.relaxed, leaves.owner
    full = root.spread(signs, relaxed.fast_region.centre.dtype)
    forms = relaxed.forms(root.trees.form(leaves.tree), owner, root.cut(relaxed.fast_bounds, owner, full))
    return forms.substitute(start_of(root, leaves, forms)).value
