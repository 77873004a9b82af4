"""Branch and bound on the phases of ReLUs, with bounds optimised over slopes and multipliers.

Wang et al., "Beta-CROWN: efficient bound propagation with per-neuron split constraints for neural network
robustness verification", NeurIPS 2021. Whatever closes a leaf is a substitution in float64, rounded down.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from enum import Enum, unique

import torch
from jaxtyping import Float, Int
from torch import Tensor

from certify.bounds.base import Bounds
from certify.search.deadline import Deadline
from certify.search.phases.bounding import Bounded, Effort, bound
from certify.search.phases.corner import by_linear_program
from certify.search.phases.leaves import Leaves
from certify.search.phases.root import Root, roots_of
from certify.search.phases.trees import Trees
from certify.search.phases.witness import Confirm, Hunter, Witness

_log = logging.getLogger(__name__)

# Open leaves from which on the search goes deep instead of raising the worst bound: memory.
_MANY = 4000


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
) -> PhaseOutcome:
    """Attack, then bound and split until every tree is closed, a witness is confirmed, or time is over.

    Args:
        trees: what to answer.
        confirm: judges candidates; its word is final.
        deadline: looked at between the steps of every ascent.
        seed: of the attack's starts; the same seed gives the same answer, unless time runs out.
        known: bounds on the hidden nodes of every region.
        effort: how much is spent where.
    """
    effort, hunter = effort or Effort(), Hunter(trees, confirm, deadline)
    state = _State(trees, hunter, deadline, effort)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(seed)
        state.found(hunter.scatter(generator, restarts=effort.restarts, steps=effort.descents))
        if state.witness is None and not deadline.expired:
            state.grow(roots_of(trees, known, deadline))
    return state.outcome()


@dataclass
class _State:
    """What is known so far; `bound` and `pool` change with every batch, the rest at most once."""

    trees: Trees
    hunter: Hunter
    deadline: Deadline
    effort: Effort
    witness: Witness | None = None
    pool: Leaves | None = None
    stuck: list[Leaves] = field(default_factory=list)
    visited: int = 0

    def __post_init__(self) -> None:
        # Of the closed leaves of each tree; where all are closed, this is the tree's bound.
        self.bound = torch.full((len(self.trees),), torch.inf, dtype=torch.float64)

    def found(self, witness: Witness | None) -> None:
        """A witness ends the search."""
        self.witness = self.witness or witness

    @property
    def over(self) -> bool:
        """Whether there is nothing left to do, or no time to do it."""
        return self.witness is not None or self.pool is None or len(self.pool) == 0 or self.deadline.expired

    def grow(self, roots: Iterator[Root]) -> None:
        """From the roots to the leaves."""
        for root in roots:
            leaves = _roots(self.trees, root) if self.pool is None else self._again(root, self.pool)
            nothing = leaves.select(torch.zeros(0, dtype=torch.long))
            self._settle(root, self._bounded(root, leaves, self.effort.root_steps), nothing)
            if self.over:
                return
        if self.pool is None:
            return
        self._retire(root)
        self.found(self.hunter.descend(*_corners(self.trees, root), self.effort.descents))
        rounds = 0
        while not self.over:
            assert self.pool is not None
            chosen, rest = _divide(self.pool, min(self.effort.batch, root.together) // 2)
            self._settle(root, self._bounded(root, chosen.children(), self.effort.steps), rest)
            self._retire(root)
            rounds += 1
            if rounds % 20 == 0:
                _log.debug("%.1f s: %d leaves, %d open", self.deadline.elapsed, self.visited, len(self.pool))

    def _again(self, root: Root, leaves: Leaves) -> Leaves:
        """The trees still open, at a better root: nothing was split yet."""
        fresh = _roots(self.trees, root).select(leaves.tree)
        return replace(fresh, bound=leaves.bound)

    def _bounded(self, root: Root, leaves: Leaves, steps: int) -> Bounded:
        return bound(root, leaves, steps, self.effort.rates, lambda: self.deadline.expired)

    def _settle(self, root: Root, done: Bounded, rest: Leaves) -> None:
        """Close what is proved, look for a witness, keep what is open."""
        leaves = done.leaves
        self.visited += len(leaves)
        outputs = root.relaxed.fast_graph(done.point)
        self.found(self.hunter.check(done.point, leaves.tree, self.trees.slack(outputs, leaves.tree)))
        self.pool = rest.joined(self._close(leaves))

    def _close(self, leaves: Leaves) -> Leaves:
        """The ones that are not closed."""
        closed = leaves.bound > 0
        self.bound.scatter_reduce_(0, leaves.tree[closed], leaves.bound[closed], "amin")
        return leaves.select(~closed)

    def _retire(self, root: Root) -> None:
        """Leaves with nothing left to split: a linear program, or they stay open for ever."""
        assert self.pool is not None
        last = self.pool.branch < 0
        for k in last.nonzero().flatten().tolist():
            if self.witness is not None or self.deadline.expired:
                return
            leaf, point = by_linear_program(root, self.pool.select(torch.tensor([k])))
            if point is not None:
                self.found(self.hunter.check(point, leaf.tree, self.trees.slack(self.trees.graph(point), leaf.tree)))
            open_leaf = self._close(leaf)
            self.stuck += [open_leaf] if len(open_leaf) else []
        self.pool = self.pool.select(~last)

    def outcome(self) -> PhaseOutcome:
        """The answer, as far as it is known."""
        bound = self.bound.clone()
        open_leaves = [*self.stuck, *([] if self.pool is None else [self.pool])]
        for leaves in open_leaves:
            bound.scatter_reduce_(0, leaves.tree, leaves.bound, "amin")
        if self.pool is None:
            bound.fill_(-torch.inf)
        if self.witness is not None:
            finding = Finding.WITNESS
        elif self.pool is None or len(self.pool):
            finding = Finding.TIMEOUT
        else:
            finding = Finding.OPEN if self.stuck else Finding.EMPTY
        return PhaseOutcome(finding, self.witness, bound, self.visited)


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


def _roots(trees: Trees, root: Root) -> Leaves:
    """A leaf for every tree, with CROWN's slopes."""
    every, columns = torch.arange(len(trees)), len(root.columns)
    form = trees.form(every)
    slopes = root.relaxed.forms(form, trees.owner).least_area().slopes if root.slots else torch.zeros(len(trees), 0)
    return Leaves(
        tree=every,
        signs=torch.zeros((len(trees), columns), dtype=torch.int8),
        slopes=slopes[:, root.columns].float(),
        multipliers=torch.zeros((len(trees), columns)),
        weights=trees.even_weights(),
        bound=torch.full((len(trees),), -torch.inf, dtype=torch.float64),
        branch=torch.full((len(trees),), -1),
    )


def _divide(pool: Leaves, count: int) -> tuple[Leaves, Leaves]:
    """The leaves to split next, and the rest."""
    order = pool.bound.argsort(stable=True)
    chosen = order[:count] if len(pool) < _MANY else order[-count:]
    keep = torch.ones(len(pool), dtype=torch.bool)
    keep[chosen] = False
    return pool.select(chosen), pool.select(keep)
