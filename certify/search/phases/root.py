"""The relaxation that all leaves start from."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice, takewhile
from math import prod

import torch
from jaxtyping import Float, Int
from torch import Tensor

from certify.bounds.alpha import AlphaCROWN, Relaxed
from certify.bounds.ascent import Slot, slots_below
from certify.bounds.backward import make_step
from certify.bounds.base import Bounds, last
from certify.bounds.crown import CROWN
from certify.bounds.ibp import IBP
from certify.ir.ops import AbstractAffine, ReLU
from certify.relaxations import relaxation_of
from certify.search.deadline import Deadline
from certify.search.phases.trees import Trees

# Of the time limit, for the bounds of hidden entries: the leaves inherit them.
_SHARE = 0.3
# Parameters and multiplications of the leaves that are bounded together, and how many leaves at most: a step stays
# short, and the time limit is looked at between steps.
_ENTRIES, _PRODUCTS, _TOGETHER = 2**21, 2**28, 512


@dataclass(frozen=True, eq=False)
class Root:
    """Bounds on all nodes, and where the phases are that can be fixed.

    Attributes:
        relaxed: the network between its bounds.
        slots: of the relaxed nodes, in the flat vector of parameters.
        columns: positions of the ReLU entries that are unstable in some region.
        exact: whether the network is affine once all of these are fixed.
        ceiling: the bounds on hidden nodes hold where no condition of a tree is above this value of the tree's:
            no bound on its largest condition that is above follows from them.
    """

    trees: Trees
    relaxed: Relaxed
    slots: tuple[Slot, ...]
    columns: Int[Tensor, " columns"]
    exact: bool
    ceiling: Float[Tensor, " trees"]

    @property
    def width(self) -> int:
        """Length of the flat vector of parameters."""
        return max((slot.stop for slot in self.slots), default=0)

    @cached_property
    def together(self) -> int:
        """How many leaves can be bounded at once."""
        nodes = self.trees.graph.nodes
        products = sum(n.op.terms * prod(n.shape) for n in nodes if isinstance(n.op, AbstractAffine))
        return max(2, min(_TOGETHER, _ENTRIES // max(1, self.width), _PRODUCTS // max(1, products)))

    @cached_property
    def slack_at_centre(self) -> Float[Tensor, " trees"]:
        """The largest condition of each tree at the centre of its region."""
        outputs = self.trees.graph(self.trees.region.centre)
        return self.trees.slack(outputs[self.trees.owner], torch.arange(len(self.trees)))

    def spread(self, values: Tensor, dtype: torch.dtype) -> Float[Tensor, "batch n"]:
        """From the columns back to all positions, 0 elsewhere."""
        full = torch.zeros((len(values), self.width), dtype=dtype)
        return full.index_copy_(1, self.columns, values.to(dtype))

    def cut(self, bounds: Bounds, owner: Int[Tensor, " batch"], signs: Float[Tensor, "batch n"]) -> Bounds:
        """The bounds of each leaf's region, cut by its fixed phases."""
        lower = {k: v[owner] for k, v in bounds.lower.items()}
        upper = {k: v[owner] for k, v in bounds.upper.items()}
        for slot in self.slots:
            sign, low, high = slot.of(signs), lower[slot.source], upper[slot.source]
            lower[slot.source] = torch.where(sign > 0, low.clamp(min=0), low)
            upper[slot.source] = torch.where(sign < 0, high.clamp(max=0), high)
        return Bounds(lower, upper)


def roots_of(trees: Trees, known: Bounds | None, deadline: Deadline) -> Iterator[Root]:
    """From CROWN's hidden bounds, then from alpha-CROWN's, as much of them as a share of the time allows.

    Known bounds are taken as they are where they are on all nodes below the output. Ends when time is over.
    """
    if known is not None and all(k in known for k in range(trees.graph.output)):
        yield _root(trees, known)
        return
    share = deadline.within(None if deadline.seconds is None else _SHARE * (deadline.seconds - deadline.elapsed))
    bounds = known or Bounds()
    for method in (CROWN(stop=lambda: deadline.expired), AlphaCROWN(stop=lambda: share.expired)):
        below_output = islice(method.steps(trees.graph, trees.region, bounds), trees.graph.output)
        bounds = last(takewhile(lambda _: not deadline.expired, below_output), bounds)
        if deadline.expired:
            return
        yield _root(trees, bounds)


def _root(trees: Trees, bounds: Bounds) -> Root:
    graph = trees.graph
    # Intervals suffice for the output: only the rounding of weighted conditions reads them.
    bounds = IBP()(graph, trees.region, bounds)
    steps = {k: make_step(graph, graph.nodes[k], bounds) for k in range(1, len(graph.nodes))}
    slots = slots_below(graph, graph.output)
    masks = []
    for slot in slots:
        op = graph.nodes[slot.node].op
        unstable = relaxation_of(op).undecided(*bounds[slot.source]).flatten(1).any(0)
        masks.append(unstable & isinstance(op, ReLU))
    columns = torch.cat(masks).nonzero().flatten() if masks else torch.zeros(0, dtype=torch.long)
    exact = all(isinstance(node.op, ReLU | AbstractAffine) for node in graph.nodes[1:])
    relaxed = Relaxed.of(graph, trees.region, bounds, steps)
    return Root(trees, relaxed, slots, columns, exact, torch.full((len(trees),), torch.inf, dtype=torch.float64))
