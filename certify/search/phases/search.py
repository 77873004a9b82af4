"""Branch and bound on the phases of ReLUs, with bounds optimised over slopes and multipliers.

Wang et al., "Beta-CROWN: efficient bound propagation with per-neuron split constraints for neural network
robustness verification", NeurIPS 2021. What is not decided soon goes on in parts. Whatever
closes a leaf is a substitution in float64, rounded down.
"""

from contextlib import closing
from dataclasses import dataclass, replace
from enum import Enum, unique

import torch
from jaxtyping import Float, Int
from torch import Tensor

from certify.bounds.base import Bounds
from certify.search.deadline import Deadline
from certify.search.phases.bounding import Effort
from certify.search.phases.growth import Growth, first_leaves
from certify.search.phases.leaves import Leaves
from certify.search.phases.parts import Part, Report, Shared
from certify.search.phases.root import Root, roots_of
from certify.search.phases.trees import Trees
from certify.search.phases.witness import Confirm, Hunter, Witness

# Of the range of a tree's largest condition: where bounds on hidden nodes only have to hold up to a ceiling.
_CEILING = 1e-6


@unique
class Finding(Enum):
    """How a search ended."""

    EMPTY = "no region has a point that meets all conditions of one of its trees"
    WITNESS = "a confirmed point meets all conditions of a tree"
    OPEN = "nothing is known: nothing is left to split, and the bounds are not tight enough"
    TIMEOUT = "nothing is known: time was over"


@dataclass(frozen=True, eq=False)
class PhaseOutcome:
    """What a search found.

    Attributes:
        finding: the answer.
        witness: the point, where there is one.
        bound: for every tree a proved lower bound of its largest condition over its region.
        leaves: how many parts of regions were bounded.
    """

    finding: Finding
    witness: Witness | None
    bound: Float[Tensor, " trees"]
    leaves: int


def search(
    trees: Trees,
    confirm: Confirm,
    *,
    deadline: Deadline,
    seed: int = 0,
    known: Bounds | None = None,
    effort: Effort | None = None,
    workers: int = 1,
) -> PhaseOutcome:
    """Attack, then bound and split until every tree is closed, a witness is confirmed, or time is over.

    Args:
        trees: what to answer.
        confirm: judges candidates; its word is final.
        deadline: looked at between the steps of every ascent.
        seed: of the attack's starts; the same seed gives the same answer, unless time runs out.
        known: bounds on the hidden nodes of every region.
        effort: how much is spent where.
        workers: processes for what is not decided soon; how many makes no difference to the answer.
    """
    effort, hunter = effort or Effort(), Hunter(trees, confirm, deadline)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(seed)
        witness = hunter.scatter(generator, restarts=effort.restarts, steps=effort.descents)
        growth: Growth | None = None
        if witness is None:
            growth = _first_growth(trees, hunter, known, deadline, effort)
        if growth is None:
            finding = Finding.TIMEOUT if witness is None else Finding.WITNESS
            return PhaseOutcome(finding, witness, torch.full((len(trees),), -torch.inf, dtype=torch.float64), 0)
        if growth.over:
            return _outcome(growth, growth.pool)
        return _in_parts(growth, workers)


def _first_growth(
    trees: Trees, hunter: Hunter, known: Bounds | None, deadline: Deadline, effort: Effort
) -> Growth | None:
    """All trees together, as far as that goes soon; None where time was over before they were bounded."""
    growth: Growth | None = None
    for root in roots_of(trees, known, deadline):
        growth = Growth.start(root, hunter, deadline, effort) if growth is None else _again(root, growth)
        growth.bound_all(effort.root_steps)
        if growth.over:
            return growth
    if growth is None:
        return None
    roots = growth.pool
    growth.retire()
    growth.witness = hunter.descend(*_corners(trees, growth.root), effort.descents)
    growth.grow(effort.first)
    if growth.over:
        return growth
    # What was split is forgotten: the parts start from the trees that are not closed.
    growth.pool = roots.select(torch.isin(roots.tree, growth.pool.tree))
    growth.stuck = [leaf for leaf in growth.stuck if not torch.isin(leaf.tree, growth.pool.tree).any()]
    return growth


def _again(root: Root, growth: Growth) -> Growth:
    """The trees still open, at a better root: nothing was split yet."""
    leaves = growth.pool
    fresh = replace(first_leaves(root).select(leaves.tree), bound=leaves.bound)
    return replace(growth, root=root, pool=fresh)


def _in_parts(growth: Growth, workers: int) -> PhaseOutcome:
    """Every open tree is a part."""
    roots = growth.pool
    root = replace(growth.root, ceiling=_ceiling(growth.root, roots))
    shared = Shared(root, growth.effort, growth.deadline, workers)
    for k in range(len(roots)):
        leaf = roots.select(torch.tensor([k]))
        shared.queue.append(Part(leaf, root.relaxed.bounds.select(leaf.owner)))
    with closing(shared.reports()) as reports:
        for report in reports:
            growth.bound = torch.minimum(growth.bound, report.bound)
            growth.visited += report.visited
            growth.stuck += report.stuck
            growth.witness = _first_confirmed(growth.hunter, report)
            if growth.witness is not None:
                break
    pool = roots.none
    for part in shared.queue:
        pool = pool.joined(part.leaf)
    return _outcome(growth, pool)


def _first_confirmed(hunter: Hunter, report: Report) -> Witness | None:
    for x, tree in report.candidates:
        confirmed = hunter.confirm(x, tree)
        if confirmed is not None:
            return Witness(confirmed, tree)
    return None


def _ceiling(root: Root, roots: Leaves) -> Float[Tensor, " trees"]:
    """A little of the range of each tree's largest condition."""
    ceiling = torch.ones(len(root.trees), dtype=torch.float64)
    reach = root.slack_at_centre[roots.tree].abs() + roots.bound.abs()
    ceiling[roots.tree] = (_CEILING * reach).clamp(min=torch.finfo(torch.float64).tiny)
    return ceiling


def _outcome(growth: Growth, pool: Leaves) -> PhaseOutcome:
    """The answer, as far as it is known."""
    bound = growth.bound.clone()
    for leaves in (*growth.stuck, pool):
        bound.scatter_reduce_(0, leaves.tree, leaves.bound, "amin")
    if growth.witness is not None:
        finding = Finding.WITNESS
    elif len(pool) or (growth.stuck and growth.deadline.expired):
        finding = Finding.TIMEOUT
    else:
        finding = Finding.OPEN if growth.stuck else Finding.EMPTY
    return PhaseOutcome(finding, growth.witness, bound, growth.visited)


def _corners(trees: Trees, root: Root) -> tuple[Float[Tensor, "batch n"], Int[Tensor, " batch"]]:
    """For every single condition the point where its linear bound is least, and its tree.

    Where the network is flat at random points these are starts of an attack that has a gradient.
    """
    tree, condition = trees.real.nonzero().T
    form = trees.form(tree)
    row = torch.arange(len(tree))
    form = replace(form, rows=form.rows[row, condition, None], constant=form.constant[row, condition, None])
    forms = root.relaxed.forms(form, trees.owner[tree])
    return forms.substitute(forms.least_area()).point, tree
