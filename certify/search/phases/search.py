"""Branch and bound on the phases of ReLUs, with bounds optimised over slopes and multipliers.

Wang et al., "Beta-CROWN: efficient bound propagation with per-neuron split constraints for neural network
robustness verification", NeurIPS 2021. A leaf closes only by a substitution in float64, rounded down.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from enum import Enum
from itertools import islice

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from certify.bounds.alpha import AlphaCROWN, Relaxed
from certify.bounds.ascent import Ascent, Forms, Parameters, Rates, Slot, Substituted, ascend, slots_below
from certify.bounds.backward import make_step
from certify.bounds.base import Bounds, last, place
from certify.relaxations import relaxation_of
from certify.search.deadline import Deadline
from certify.search.phases.leaves import Leaves
from certify.search.phases.trees import Trees
from certify.search.phases.witness import Hunter, Witness


class Finding(Enum):
    """How a search ended."""

    EMPTY = "no region has a point that meets the conditions of one of its trees"
    WITNESS = "a confirmed point"
    OPEN = "neither, when time was over or nothing was left to split"


@dataclass(frozen=True)
class Effort:
    """How much is spent where."""

    batch: int = 64
    root_steps: int = 40
    steps: int = 12
    rates: Rates = field(default_factory=Rates)


@dataclass(frozen=True, eq=False)
class PhaseOutcome:
    """The answer, the witness if there is one, a proved lower bound of every tree's weighted conditions."""

    finding: Finding
    witness: Witness | None
    bound: Float[Tensor, " trees"]
    leaves: int


@dataclass(frozen=True, eq=False)
class Root:
    """The relaxation at the root and where its unstable entries are."""

    trees: Trees
    relaxed: Relaxed
    slots: tuple[Slot, ...]
    columns: Int[Tensor, " columns"]

    @property
    def width(self) -> int:
        return self.slots[-1].stop if self.slots else 0

    def spread(self, values: Float[Tensor, "batch columns"]) -> Float[Tensor, "batch n"]:
        """Back from the unstable entries to all, 0 elsewhere."""
        full = torch.zeros((len(values), self.width), dtype=torch.float32)
        full[:, self.columns] = values.float()
        return full

    def bounds(self, bounds: Bounds, owner: Int[Tensor, " batch"], signs: Float[Tensor, "batch n"]) -> Bounds:
        """The root's bounds of each leaf's region, cut by the fixed phases."""
        lower = {k: v[owner] for k, v in bounds.lower.items()}
        upper = {k: v[owner] for k, v in bounds.upper.items()}
        for slot in self.slots:
            sign = slot.of(signs)
            lower[slot.source] = torch.where(sign > 0, lower[slot.source].clamp(min=0), lower[slot.source])
            upper[slot.source] = torch.where(sign < 0, upper[slot.source].clamp(max=0), upper[slot.source])
        return Bounds(lower, upper)


def root_of(trees: Trees, hidden: Bounds) -> Root:
    """From bounds on all nodes below the output."""
    graph = trees.graph
    steps = {k: make_step(graph, graph.nodes[k], hidden) for k in range(1, len(graph.nodes))}
    slots = slots_below(graph, graph.output)
    masks = [relaxation_of(graph.nodes[s.node].op).undecided(*hidden[s.source]).flatten(1).any(0) for s in slots]
    columns = torch.cat(masks).nonzero().flatten() if masks else torch.zeros(0, dtype=torch.long)
    return Root(trees, Relaxed.of(graph, trees.region, hidden, steps), slots, columns)


@dataclass(frozen=True, eq=False)
class Bounded:
    """What the bounds of a batch of leaves gave."""

    leaves: Leaves
    closed: Bool[Tensor, " batch"]
    point: Float[Tensor, "batch n"]
    splittable: Bool[Tensor, " batch"]


def bound(root: Root, leaves: Leaves, effort: Effort, steps: int) -> Bounded:
    """Ascend on every leaf, prove those that look closed, choose what to split in the others."""
    trees = root.trees
    owner, signs = trees.owner[leaves.tree], root.spread(leaves.signs)
    weighted = trees.real.shape[1] > 1
    form = trees.form(leaves.tree)
    forms = root.relaxed.forms(form, owner, root.bounds(root.relaxed.fast_bounds, owner, signs))
    start = Parameters(
        root.spread(leaves.slopes).clamp_(*forms.limits), root.spread(leaves.multipliers), leaves.weights if weighted else None
    )
    ascent = ascend(forms, start, steps, signs=signs, rates=effort.rates, enough=1e-4)
    closed = ascent.value > 0
    if bool(closed.any()):
        some = closed.nonzero().flatten()
        part = Form_select(form, some)
        bounds = root.bounds(root.relaxed.bounds, owner[some], signs[some].double())
        proved = root.relaxed.judge(part, owner[some], ascent.parameters.select(some), bounds)
        closed[some] = proved > 0
    best = ascent.parameters
    score = scores(forms, best, forms.substitute(best))[:, root.columns].masked_fill_(leaves.signs != 0, 0)
    high, branch = score.max(1)
    new = Leaves(
        leaves.tree,
        leaves.signs,
        best.slopes[:, root.columns],
        best.multipliers[:, root.columns],
        best.weights if weighted else leaves.weights,
        torch.maximum(leaves.bound, ascent.value),
        branch,
    )
    return Bounded(new, closed, ascent.point, high > 0)


def Form_select(form, index):
    return replace(form, rows=form.rows[index], constant=form.constant[index], error=form.error[index])


def scores(forms: Forms, parameters: Parameters, at: Substituted) -> Float[Tensor, "batch n"]:
    parts = []
    for slot in forms.slots:
        pieces = forms.pieces[slot.node]
        lower, upper = forms.bounds[slot.source]
        room = torch.minimum(upper.clamp(min=0), -lower.clamp(max=0))
        both = at.positive[slot.node] * room - at.negative[slot.node] * pieces.upper_intercept
        parts.append((both * ((lower < 0) & (upper > 0))).flatten(1))
    return torch.cat(parts, 1)


def search(trees: Trees, confirm, deadline: Deadline, *, seed: int = 0, effort: Effort | None = None, log=None) -> PhaseOutcome:
    effort = effort or Effort()
    generator = torch.Generator().manual_seed(seed)
    hunter = Hunter(trees, confirm)
    nothing = torch.full((len(trees),), -torch.inf)
    witness = hunter.scatter(generator, deadline, restarts=20, steps=40)
    if witness:
        return PhaseOutcome(Finding.WITNESS, witness, nothing, 0)
    graph = trees.graph
    hidden = last(islice(AlphaCROWN().steps(graph, trees.region), graph.output + 0), Bounds())
    hidden = last(islice(AlphaCROWN(0, 0).steps(graph, trees.region, hidden), graph.output + 1), Bounds())
    if deadline.expired:
        return PhaseOutcome(Finding.OPEN, None, nothing, 0)
    root = root_of(trees, hidden)
    if log: log(f'root hidden {deadline.elapsed:.2f} columns {len(root.columns)} of {root.width}')
    count, columns = len(trees), len(root.columns)
    weights = trees.even_weights()
    start = Leaves(
        torch.arange(count),
        torch.zeros((count, columns), dtype=torch.int8),
        torch.zeros((count, columns)),
        torch.zeros((count, columns)),
        torch.ones((count, 1)) if weights is None else weights.float(),
        nothing,
        torch.zeros(count, dtype=torch.long),
    )
    area = root.relaxed.forms(trees.form(start.tree), trees.owner).least_area().slopes[:, root.columns]
    start = replace(start, slopes=area)
    done = bound(root, start, effort, effort.root_steps)
    if log: log(f'root {deadline.elapsed:.2f} bounds {done.leaves.bound.tolist()}')
    pool = done.leaves.select(~done.closed)
    visited = count
    stuck = False
    rnd = 0
    while len(pool) and not deadline.expired:
        order = pool.bound.argsort(stable=True)
        take = order[: effort.batch // 2] if len(pool) < 2000 else order[-(effort.batch // 2):]
        keep = torch.ones(len(pool), dtype=torch.bool)
        keep[take] = False
        children = pool.select(take).children()
        pool = pool.select(keep)
        done = bound(root, children, effort, effort.steps)
        visited += len(children)
        rnd += 1
        slack = trees.slack(root.relaxed.fast_graph(done.point), children.tree)
        witness = hunter.check(done.point, children.tree, slack)
        if witness is not None:
            return PhaseOutcome(Finding.WITNESS, witness, nothing, visited)
        open_ = ~done.closed
        if bool((open_ & ~done.splittable).any()):
            stuck = True
            open_ &= done.splittable
        pool = pool.joined(done.leaves.select(open_))
        if log and rnd % 20 == 0:
            log(f'{deadline.elapsed:.1f} visited {visited} open {len(pool)} worst {float(pool.bound.min()) if len(pool) else 0:.4f} best {float(pool.bound.max()) if len(pool) else 0:.4f} depth {float((pool.signs!=0).sum(1).float().mean()):.1f}')
    finding = Finding.OPEN if len(pool) or stuck else Finding.EMPTY
    return PhaseOutcome(finding, None, nothing, visited)
