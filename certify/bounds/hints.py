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
from dataclasses import dataclass, replace
from math import prod

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from certify.bounds.backward import Form, Step, lower_bound, make_step, output_form, relaxed_step
from certify.bounds.entries import plain_entries
from certify.bounds.linear_model import Cut, LinearModel, Question, Solution
from certify.ir.ops import AbstractAffine
from certify.rounding import gamma


@dataclass(frozen=True, eq=False)
class Hints:
    """For several rows of one input: lower slopes by relaxed node, and multipliers of cuts."""

    slopes: dict[int, Float[Tensor, "rows *shape"]]
    cuts: tuple[Cut, ...]
    multipliers: Float[Tensor, "rows cuts"]


def hints_of(question: Question, model: LinearModel, solutions: Sequence[Solution]) -> Hints:
    """What the solutions say about slopes and cuts."""
    graph, like = question.graph, question.region.centre
    duals = np.stack([_padded(s.row_dual, model.n_rows) for s in solutions])
    slopes = {}
    for entry in model.relaxed:
        first, second = np.maximum(_lines(duals, entry.row, len(entry.index)), 0.0)
        total = first + second
        # Without a multiplier the coefficient is negative, and the lower slope does not matter.
        mean = (first * entry.slopes[0] + second * entry.slopes[1]) / np.where(total > 0, total, 1.0)
        flat = torch.zeros((len(solutions), *graph.nodes[entry.node].shape)).to(like).flatten(1)
        flat[:, torch.as_tensor(entry.index)] = torch.as_tensor(mean).to(like)
        slopes[entry.node] = flat.reshape((-1, *graph.nodes[entry.node].shape))
    rows = [row for _, row in model.cuts]
    multipliers = torch.as_tensor(np.maximum(-duals[:, rows], 0.0)).to(like)
    return Hints(slopes, tuple(cut for cut, _ in model.cuts), multipliers)


def _padded(dual: np.ndarray, n_rows: int) -> np.ndarray:
    """Rows that came after this solution had no multiplier."""
    return np.pad(dual, (0, n_rows - len(dual)))


def _lines(duals: np.ndarray, row: int, count: int) -> np.ndarray:
    return np.stack([duals[:, row + i * count : row + (i + 1) * count] for i in range(2)])


def entries_bound(
    question: Question, k: int, index: Int[Tensor, " rows"], below: Bool[Tensor, " rows"], hints: Hints
) -> Float[Tensor, " rows"]:
    """Lower bounds of entries of node k, or of their negatives where `below` is false."""
    many = _repeat(question, len(index))
    steps = _steps(many, hints, k)
    mask = below[:, None].expand(-1, prod(many.graph.nodes[k].shape))
    form = plain_entries(many.graph, steps, k, mask)(torch.arange(len(index), device=index.device), index[:, None])
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
        steps[k] = make_step(graph, node, bounds) if affine else relaxed_step(node, bounds, hints.slopes.get(k))
    return steps


def _bound(many: Question, steps: dict[int, Step], form: Form, hints: Hints) -> Float[Tensor, " rows"]:
    return lower_bound(many.graph, many.region.minimum, steps, _with_cuts(many, form, hints))[:, 0]


def _with_cuts(many: Question, form: Form, hints: Hints) -> Form:
    """The form plus the multiples of the cuts, the rounding of these sums included in its error."""
    if not hints.cuts:
        return form
    graph, bounds = many.graph, many.bounds
    others: dict[int, Tensor] = {}
    constant, error = form.constant, form.error
    for which, cut in enumerate(hints.cuts):
        share = hints.multipliers[:, which : which + 1]
        (source,) = graph.nodes[cut.node].inputs
        size = share * abs(cut.limit)
        for node, coefficients in ((cut.node, cut.after), (source, cut.before)):
            row = share * torch.as_tensor(coefficients).to(share)
            others.setdefault(node, torch.zeros_like(bounds.lower[node]).flatten(1))
            others[node][:, torch.as_tensor(cut.index)] += row
            size = size + (row.abs() * bounds.size(node).flatten(1)[:, torch.as_tensor(cut.index)]).sum(1, keepdim=True)
        constant = constant - share * cut.limit
        error = error + gamma(len(hints.cuts), size.dtype) * size
    shaped = {k: v.reshape((-1, 1, *graph.nodes[k].shape)) for k, v in others.items()}
    rows = form.rows + shaped.pop(form.node, 0.0)
    return replace(form, rows=rows, constant=constant, error=error, length=None, others=shaped)
