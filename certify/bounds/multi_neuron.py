"""Linear programs with inequalities over groups of neurons.

Pairs (or groups of k) of neurons of a layer get bounds on the sums and differences of their pre-activations,
and with these the convex hull of their joint behaviour (`certify.bounds.hulls`); the inequalities that the
current solution violates most are added, and the program is solved again.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, islice

import numpy as np
import torch
from jaxtyping import Float, Int

from certify.bounds.backward import Form, lower_bound, make_step
from certify.bounds.hulls import directions, facets, proved_limit
from certify.bounds.linear_model import Cut, LinearModel, Question, Relaxed, Solution
from certify.bounds.program import AbstractProgram, Objectives
from certify.ir.ops import ReLU

# Of a normal of unit length, in units of the pre-activations' size.
_VIOLATED = 1e-6


@dataclass(frozen=True)
class MultiNeuron(AbstractProgram):
    """The triangle programs with cuts over groups of neurons.

    Attributes:
        group: neurons in a group.
        rounds: times that cuts are added for every objective.
        cuts: at most so many a round.
        groups: at most so many in every layer.
    """

    group: int = 2
    rounds: int = 4
    cuts: int = 30
    groups: int = 1000

    @property
    def name(self) -> str:
        """What a user calls it."""
        return "multi-neuron"

    def solve(self, question: Question, model: LinearModel, objectives: Objectives) -> Sequence[Solution | None]:
        """Each program with its own rounds; cuts stay for the objectives that follow."""
        entries = () if self.stopped else model.relaxed
        layers = [layer for entry in entries if (layer := self._layer(question, entry)) is not None]
        return [self._refined(model, layers, objective) for objective in objectives]

    def _refined(
        self, model: LinearModel, layers: "list[_Layer]", objective: Float[np.ndarray, " n"]
    ) -> Solution | None:
        best = None if self.stopped else model.minimise(objective)
        for _ in range(self.rounds):
            if best is None or self.stopped:
                return best
            found = [(*v, layer) for layer in layers for v in layer.violated(model, best, self.cuts)]
            if not found:
                break
            for _, facet, layer in sorted(found, key=lambda v: -v[0])[: self.cuts]:
                model.add_cut(layer.cut(facet), layer.source)
            best = model.minimise(objective) or best
        return best

    def _layer(self, question: Question, entry: Relaxed) -> "_Layer | None":
        # The hulls are those of ReLUs: of other activations only their own lines hold.
        is_relu = isinstance(question.graph.nodes[entry.node].op, ReLU)
        count = min(self.group, len(entry.index))
        if not is_relu or count < 2:
            return None
        groups = np.array(list(islice(combinations(range(len(entry.index)), count), self.groups)))
        limits = _direction_limits(question, entry, entry.index[groups])
        return _Layer.of(question.graph.nodes[entry.node].inputs[0], entry, groups, limits)


def _direction_limits(
    question: Question, entry: Relaxed, groups: Int[np.ndarray, "groups k"]
) -> Float[np.ndarray, "groups directions"]:
    """Upper bounds of all directions of the groups' pre-activations, by substitution."""
    graph, bounds = question.graph, question.bounds
    (source,) = graph.nodes[entry.node].inputs
    ways = directions(groups.shape[1])
    rows = np.zeros((len(groups), len(ways), bounds.lower[source][0].numel()))
    np.put_along_axis(rows, np.broadcast_to(groups[:, None], (*rows.shape[:2], groups.shape[1])), -ways[None], axis=2)
    like = question.region.centre
    flat = torch.as_tensor(rows).to(like).reshape((1, -1, *graph.nodes[source].shape))
    zero = flat.new_zeros(flat.shape[:2])
    steps = {k: make_step(graph, graph.nodes[k], bounds) for k in range(1, source + 1)}
    low = lower_bound(graph, question.region.minimum, steps, Form(source, flat, zero, zero))
    limits = -low.reshape(rows.shape[:2]).cpu().numpy()
    return np.minimum(limits, _interval_limits(question, source, groups, ways))


def _interval_limits(
    question: Question, source: int, groups: Int[np.ndarray, "groups k"], ways: Float[np.ndarray, "directions k"]
) -> Float[np.ndarray, "groups directions"]:
    """Upper bounds of all directions from the bounds of the entries, rounded up."""
    lower, upper = (v[0].flatten().double().cpu().numpy()[groups] for v in question.bounds[source])
    up, down = np.maximum(ways, 0), np.minimum(ways, 0)
    size = np.abs(upper) @ up.T - np.abs(lower) @ down.T
    return upper @ up.T + lower @ down.T + 4 * groups.shape[1] * np.finfo(float).eps * size


@dataclass(frozen=True, eq=False)
class _Layer:
    """The facets of all groups of one layer."""

    source: int
    entry: Relaxed
    groups: Int[np.ndarray, "groups k"]
    limits: Float[np.ndarray, "groups directions"]
    owner: Int[np.ndarray, " facets"]
    normals: Float[np.ndarray, "facets two_k"]
    offsets: Float[np.ndarray, " facets"]

    @staticmethod
    def of(
        source: int,
        entry: Relaxed,
        groups: Int[np.ndarray, "groups k"],
        limits: Float[np.ndarray, "groups directions"],
    ) -> "_Layer":
        """With the hulls of all groups."""
        normals, offsets = zip(*(facets(row, groups.shape[1]) for row in limits), strict=True)
        owner = np.repeat(np.arange(len(groups)), [len(rows) for rows in normals])
        return _Layer(source, entry, groups, limits, owner, np.concatenate(normals), np.concatenate(offsets))

    def violated(self, model: LinearModel, solution: Solution, count: int) -> list[tuple[float, int]]:
        """The inequalities that the solution violates most, proved."""
        entry = self.entry
        before = model.expressions[self.source][entry.index] @ solution.point
        after = solution.point[entry.variable : entry.variable + len(entry.index)]
        members = self.groups[self.owner]
        values = np.concatenate([before[members], after[members]], 1)
        excess = (self.normals * values).sum(1) - self.offsets
        chosen = np.flatnonzero(excess > _VIOLATED)
        if len(chosen) > count:
            chosen = chosen[np.argpartition(-excess[chosen], count)[:count]]
        return [(float(excess[f]), int(f)) for f in chosen]

    def cut(self, f: int) -> Cut:
        """The inequality of a facet, with a proved limit."""
        normal, group = self.normals[f], self.owner[f]
        k = self.groups.shape[1]
        limit = proved_limit(normal, self.limits[group])
        return Cut(self.entry.node, self.entry.index[self.groups[group]], normal[k:], normal[:k], limit)
