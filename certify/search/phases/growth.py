"""Growing search trees: close leaves, split the others."""

import logging
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from certify.search.deadline import Deadline
from certify.search.phases.bounding import Bounded, Effort, bound
from certify.search.phases.corner import by_linear_program
from certify.search.phases.leaves import Leaves
from certify.search.phases.root import Root
from certify.search.phases.witness import Hunter, Witness

_log = logging.getLogger(__name__)

# Open leaves from which on the search goes deep instead of raising the worst bound: memory.
_MANY = 4000


@dataclass
class Growth:
    """A branch and bound; `bound` and `pool` change with every batch, `witness` at most once.

    Attributes:
        root: what the leaves refer to.
        pool: the open leaves.
        stuck: leaves with nothing left to split that are not proved.
        bound: of the closed leaves of each tree; where all are closed, this is the tree's bound.
        visited: how many leaves were bounded.
    """

    root: Root
    hunter: Hunter
    deadline: Deadline
    effort: Effort
    pool: Leaves
    bound: Float[Tensor, " trees"]
    witness: Witness | None = None
    stuck: list[Leaves] = field(default_factory=list)
    visited: int = 0

    @staticmethod
    def start(root: Root, hunter: Hunter, deadline: Deadline, effort: Effort, leaves: Leaves | None = None) -> "Growth":
        """From some leaves, by default one for every tree."""
        bound = torch.full((len(root.trees),), torch.inf, dtype=torch.float64)
        return Growth(root, hunter, deadline, effort, first_leaves(root) if leaves is None else leaves, bound)

    @property
    def over(self) -> bool:
        """Whether there is nothing left to do, or no time to do it."""
        return self.witness is not None or len(self.pool) == 0 or self.deadline.expired

    def bound_all(self, steps: int) -> None:
        """Bound the open leaves as they are."""
        self._settle(self._bounded(self.pool, steps), self.pool.none)

    def split(self) -> None:
        """Split the leaves with the lowest bounds."""
        chosen, rest = _divide(self.pool, max(1, min(self.effort.batch, self.root.together) // 2))
        self._settle(self._bounded(chosen.children(), self.effort.steps), rest)
        self.retire()

    def grow(self, visits: int | None) -> None:
        """Split until nothing is open or, after so many leaves, anyway."""
        rounds = 0
        while not (self.over or (visits is not None and self.visited >= visits)):
            self.split()
            rounds += 1
            if rounds % 20 == 0:
                _log.debug("%.1f s: %d leaves, %d open", self.deadline.elapsed, self.visited, len(self.pool))

    def _bounded(self, leaves: Leaves, steps: int) -> Bounded:
        return bound(self.root, leaves, steps, self.effort.rates, lambda: self.deadline.expired)

    def _settle(self, done: Bounded, rest: Leaves) -> None:
        """Close what is proved, look for a witness, keep what is open."""
        leaves = done.leaves
        self.visited += len(leaves)
        outputs = self.root.relaxed.fast_graph(done.point)
        slack = self.root.trees.slack(outputs, leaves.tree)
        self.witness = self.witness or self.hunter.check(done.point, leaves.tree, slack)
        self.pool = rest.joined(self.close(leaves))

    def close(self, leaves: Leaves) -> Leaves:
        """The ones that are not closed."""
        closed = leaves.bound > 0
        self.bound.scatter_reduce_(0, leaves.tree[closed], leaves.bound[closed], "amin")
        return leaves.select(~closed)

    def retire(self) -> None:
        """Leaves with nothing left to split: a linear program, or they stay open for ever."""
        last = self.pool.branch < 0
        for k in last.nonzero().flatten().tolist():
            if self.witness is not None or self.deadline.expired:
                return
            leaf, point = by_linear_program(self.root, self.pool.select(torch.tensor([k])), self.deadline.left)
            if point is not None:
                slack = self.root.trees.slack(self.root.trees.graph(point), leaf.tree)
                self.witness = self.hunter.check(point, leaf.tree, slack)
            open_leaf = self.close(leaf)
            self.stuck += [open_leaf] if len(open_leaf) else []
        self.pool = self.pool.select(~last)


def first_leaves(root: Root) -> Leaves:
    """A leaf for every tree, with CROWN's slopes."""
    trees = root.trees
    every, columns = torch.arange(len(trees)), len(root.columns)
    form = trees.form(every)
    slopes = root.relaxed.forms(form, trees.owner).least_area().slopes if root.slots else torch.zeros(len(trees), 0)
    return Leaves(
        tree=every,
        owner=trees.owner,
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
