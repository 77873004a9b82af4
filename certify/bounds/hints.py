"""From the multipliers of a linear program to a bound that holds in real arithmetic.

Weak duality: for any lower slopes that a relaxation allows, and any multipliers mu >= 0 of valid cuts,

    min form  >=  min of the backward substitution of  form + sum of mu (after.a + before.z - limit) ,

and at the multipliers of the linear program's solution both sides are equal (Salman et al., "A convex
relaxation barrier to tight robustness verification of neural networks", NeurIPS 2019; with cuts: Zhang et al.,
"General cutting planes for bound-propagation-based neural network verification", NeurIPS 2022). So a solution
gives slopes and mu, and the substitution, rounded to the safe side, gives the bound: an inexact solution costs
tightness only.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import prod

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from certify.bounds.backward import Form, Step, lower_bound, make_step, output_form, relaxed_step
from certify.bounds.base import Bounds
from certify.bounds.entries import plain_entries
from certify.bounds.linear_model import Cut, LinearModel, Question, Relaxed, Solution
from certify.ir import Graph
from certify.ir.ops import AbstractAffine
from certify.rounding import gamma


@dataclass(frozen=True, eq=False)
class Walls:
    """Multipliers of lower <= z <= upper for entries `index` of what a relaxed node reads."""

    index: Int[Tensor, " undecided"]
    lower: Float[Tensor, "rows undecided"]
    upper: Float[Tensor, "rows undecided"]


@dataclass(frozen=True, eq=False)
class Hints:
    """For several rows of one input: by relaxed node lower slopes and walls, and multipliers of cuts."""

    slopes: dict[int, Float[Tensor, "rows *shape"]]
    walls: dict[int, Walls]
    cuts: tuple[Cut, ...]
    multipliers: Float[Tensor, "rows cuts"]


def hints_of(question: Question, model: LinearModel, solutions: Sequence[Solution]) -> Hints:
    """What the solutions say about slopes, walls and cuts."""
    graph, like = question.graph, question.region.centre
    duals = np.stack([np.pad(s.row_dual, (0, model.n_rows - len(s.row_dual))) for s in solutions])
    slopes, walls = {}, {}
    for entry in model.relaxed:
        mean, low, high = _of_lines(duals, entry)
        index = torch.as_tensor(entry.index)
        shape = graph.nodes[entry.node].shape
        flat = torch.zeros((len(solutions), prod(shape))).to(like)
        flat[:, index] = torch.as_tensor(mean).to(like)
        slopes[entry.node] = flat.reshape((-1, *shape))
        walls[entry.node] = Walls(index, torch.as_tensor(low).to(like), torch.as_tensor(high).to(like))
    rows = [row for _, row in model.cuts]
    multipliers = torch.as_tensor(np.maximum(-duals[:, rows], 0.0)).to(like)
    return Hints(slopes, walls, tuple(cut for cut, _ in model.cuts), multipliers)


def _of_lines(
    duals: Float[np.ndarray, "rows constraints"], entry: Relaxed
) -> tuple[Float[np.ndarray, "rows undecided"], ...]:
    """The lower slope that the two lower lines make, and multipliers of the walls.

    A multiplier of the upper line beside one of a lower line is one of the wall where these lines meet.
    """
    count = len(entry.index)
    first, second, above = (duals[:, entry.row + i * count : entry.row + (i + 1) * count] for i in range(3))
    first, second, above = np.maximum(first, 0.0), np.maximum(second, 0.0), np.maximum(-above, 0.0)
    at_upper = np.minimum(second, above)
    at_lower = np.minimum(first, above - at_upper)
    first, second = first - at_lower, second - at_upper
    total = first + second
    # Without a multiplier the coefficient is negative, and the lower slope does not matter.
    mean = (first * entry.slopes[0] + second * entry.slopes[1]) / np.where(total > 0, total, 1.0)
    low = at_lower * np.maximum(entry.slopes[2] - entry.slopes[0], 0.0)
    return mean, low, at_upper * np.maximum(entry.slopes[1] - entry.slopes[2], 0.0)


def entries_bound(
    question: Question, k: int, index: Int[Tensor, " rows"], below: Bool[Tensor, " rows"], hints: Hints
) -> Float[Tensor, " rows"]:
    """Lower bounds of entries of node k, or of their negatives where `below` is false."""
    many = _repeat(question, len(index))
    steps = _steps(many, hints, k)
    numbers = index + prod(many.graph.nodes[k].shape) * ~below
    form = plain_entries(many.graph, steps, k)(torch.arange(len(index), device=index.device), numbers[:, None])
    return _bound(many, steps, form, hints)


def margins_bound(
    question: Question,
    rows: Float[Tensor, "rows outputs"],
    constants: Float[Tensor, " rows"],
    hints: Hints,
) -> Float[Tensor, " rows"]:
    """Lower bounds of rows.y + constants on the outputs y."""
    many = _repeat(question, len(rows))
    steps = _steps(many, hints, many.graph.output)
    return _bound(many, steps, output_form(many.graph, rows[:, None], constants[:, None], many.bounds), hints)


def _repeat(question: Question, count: int) -> Question:
    """The rows take the place of the batch, as each has slopes of its own."""
    return replace(question, region=question.region.select([0] * count), bounds=question.bounds.select([0] * count))


def _steps(many: Question, hints: Hints, upto: int) -> dict[int, Step]:
    graph, bounds, steps = many.graph, many.bounds, {}
    for k in range(1, upto + 1):
        node = graph.nodes[k]
        affine = isinstance(node.op, AbstractAffine)
        steps[k] = make_step(graph, node, bounds) if affine else relaxed_step(graph, node, bounds, hints.slopes.get(k))
    return steps


def _bound(many: Question, steps: dict[int, Step], form: Form, hints: Hints) -> Float[Tensor, " rows"]:
    return lower_bound(many.graph, many.region.minimum, steps, _with_cuts(many, form, hints))[:, 0]


def _with_cuts(many: Question, form: Form, hints: Hints) -> Form:
    """The form plus multiples of walls and cuts, the rounding of these sums included in its error."""
    total = _Sum(many.graph, many.bounds, form.constant, torch.zeros_like(form.constant))
    for node, wall in hints.walls.items():
        (source,) = many.graph.nodes[node].inputs
        lower, upper = (v.flatten(1)[:, wall.index] for v in many.bounds[source])
        total.add(source, wall.index, wall.upper - wall.lower)
        total.shift(wall.lower * lower - wall.upper * upper, wall.lower * lower.abs() + wall.upper * upper.abs())
    for cut, share in zip(hints.cuts, hints.multipliers.T[:, :, None], strict=True):
        (source,) = many.graph.nodes[cut.node].inputs
        total.add(cut.node, torch.as_tensor(cut.index), share * torch.as_tensor(cut.after).to(share))
        total.add(source, torch.as_tensor(cut.index), share * torch.as_tensor(cut.before).to(share))
        total.shift(-share * cut.limit, share * abs(cut.limit))
    return total.joined(form, len(hints.cuts) + len(many.bounds.lower))


@dataclass(eq=False)
class _Sum:
    """Rows on several nodes and a constant, with the sizes of all that was added up."""

    graph: Graph
    bounds: Bounds
    constant: Float[Tensor, "rows 1"]
    size: Float[Tensor, "rows 1"]
    rows: dict[int, Float[Tensor, "rows n"]] = field(default_factory=dict)

    def add(self, node: int, index: Int[Tensor, " some"], row: Float[Tensor, "rows some"]) -> None:
        """row . (entries of a node)."""
        if node not in self.rows:
            self.rows[node] = torch.zeros_like(self.bounds.lower[node]).flatten(1)
        self.rows[node][:, index] += row
        self.shift(torch.zeros_like(row), row.abs() * self.bounds.size(node).flatten(1)[:, index])

    def shift(self, values: Float[Tensor, "rows some"], sizes: Float[Tensor, "rows some"]) -> None:
        """The sum of some values."""
        self.constant = self.constant + values.sum(1, keepdim=True)
        self.size = self.size + sizes.sum(1, keepdim=True)

    def joined(self, form: Form, terms: int) -> Form:
        """The form plus these rows, starting at the highest node among them."""
        shaped = {k: v.reshape((-1, 1, *self.graph.nodes[k].shape)) for k, v in self.rows.items()}
        shaped[form.node] = form.rows + shaped.pop(form.node, 0.0)
        top, entries = max(shaped), max(v.shape[1] for v in self.rows.values()) if self.rows else 0
        error = form.error + 2 * gamma(terms + entries, self.size.dtype) * (self.size + form.constant.abs())
        return Form(top, shaped.pop(top), self.constant, error, None, shaped)
