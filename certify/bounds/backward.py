"""Backward substitution of linear forms from any node to the input, rounded to the safe side.

A linear form on a node's value is replaced, node by node towards the input, by one on the values that the
node reads: exactly at affine operations, by the linear piece of the right side at others (Zhang et al.,
"Efficient neural network robustness certification with general activation functions", NeurIPS 2018). All
forms of all inputs go together as rows `(batch or 1, rows, *shape)`.

Rounding: a row c arriving at a node whose value is at most m in absolute value contributes an error of at
most gamma |c|.m <= gamma |c|_2 |m|_2, so one norm per row and node pays for a bound that holds in real
arithmetic.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from certify.bounds.base import Bounds
from certify.ir import Graph, Node
from certify.ir.ops import AbstractAffine
from certify.properties import Margins
from certify.regions.base import dot
from certify.relaxations import Pieces, relaxation_of
from certify.rounding import down, gamma

Minimum = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Step:
    """What substitution needs at one node.

    Attributes:
        error: rounding error per unit of a row's l2 norm.
        steepness: the most that the row's l2 norm can grow; None where it has to be taken anew.
        pieces: the linear pieces; None at an affine operation.
    """

    error: Float[Tensor, "batch 1"]
    steepness: Float[Tensor, "batch 1"] | None = None
    pieces: Pieces | None = None

    def select(self, index: Any) -> "Step":
        """The step of some of the inputs."""
        steepness = None if self.steepness is None else self.steepness[index]
        pieces = None if self.pieces is None else self.pieces.select(index)
        return Step(self.error[index], steepness, pieces)


def make_step(graph: Graph, node: Node, bounds: Bounds, slope: float | None = None) -> Step:
    """The step through one node, given bounds on what it reads; `slope` sets all lower slopes that are free."""
    if isinstance(node.op, AbstractAffine):
        return _affine_step(graph, node, bounds)
    same = None if slope is None else torch.full_like(bounds.lower[node.inputs[0]], slope)
    return relaxed_step(graph, node, bounds, same)


def _affine_step(graph: Graph, node: Node, bounds: Bounds) -> Step:
    assert isinstance(node.op, AbstractAffine)
    size = node.op.spread(*(bounds.size(i) for i in node.inputs)) + node.op.offset_size()
    # `terms` holds for both directions; a coefficient that several nodes read is a sum over them, too, and the
    # constant is one over all nodes.
    return Step(gamma(node.op.terms + len(graph.nodes), size.dtype) * flat_length(size.unsqueeze(1)))


def relaxed_step(graph: Graph, node: Node, bounds: Bounds, slope: Float[Tensor, "batch *shape"] | None = None) -> Step:
    """The step through the linear pieces of a node, with given lower slopes where these are free."""
    (source,) = node.inputs
    pieces = relaxation_of(node.op).pieces(*bounds[source], slope)
    steep = torch.maximum(pieces.lower_slope.abs(), pieces.upper_slope.abs()).flatten(1).amax(1, keepdim=True)
    shift = pieces.upper_intercept.abs()
    if pieces.lower_intercept is not None:
        shift = torch.maximum(shift, pieces.lower_intercept.abs())
    size = bounds.size(source)
    moved = steep * flat_length(size.unsqueeze(1)) + flat_length(shift.unsqueeze(1))
    return Step(gamma(size[0].numel() + len(graph.nodes), size.dtype) * moved, steep, pieces)


def flat_length(rows: Float[Tensor, "batch rows *shape"]) -> Float[Tensor, "batch rows"]:
    """l2 norm of every row."""
    return torch.linalg.vector_norm(rows.flatten(2), dim=2)


def _flat_dot(
    rows: Float[Tensor, "#batch rows *shape"], vectors: Float[Tensor, "batch *shape"]
) -> Float[Tensor, "batch rows"]:
    return dot(rows.flatten(2), vectors.flatten(1))


def _through_pieces(
    rows: Float[Tensor, "#batch rows *shape"], pieces: Pieces
) -> tuple[Float[Tensor, "batch rows *shape"], Float[Tensor, "batch rows"]]:
    """Positive coefficients take the lower line, negative ones the upper line."""
    negative = rows.clamp(max=0)
    constant = _flat_dot(negative, pieces.upper_intercept)
    if pieces.lower_intercept is not None:
        constant = constant + _flat_dot(rows.clamp(min=0), pieces.lower_intercept)
    below, above = pieces.lower_slope.unsqueeze(1), pieces.upper_slope.unsqueeze(1)
    return (rows * below).addcmul_(negative, above - below), constant


@dataclass(frozen=True, eq=False)
class Form:
    """rows.(value of a node) + constant - error, to be bounded below; `length` are the rows' l2 norms.

    `others` are further rows, on nodes below.
    """

    node: int
    rows: Float[Tensor, "batch_or_1 rows *shape"]
    constant: Float[Tensor, "batch_or_1 rows"]
    error: Float[Tensor, "batch rows_or_1"]
    length: Float[Tensor, "batch rows"] | None = None
    others: Mapping[int, Tensor] = field(default_factory=dict)


def margin_form(graph: Graph, margins: Margins, bounds: Bounds) -> Form:
    """The margins as forms on the output."""
    return output_form(graph, margins.rows, margins.constants, bounds)


def output_form(
    graph: Graph, rows: Float[Tensor, "batch rows outputs"], constants: Float[Tensor, "batch rows"], bounds: Bounds
) -> Form:
    """rows.(flattened output) + constants."""
    like, size = bounds.lower[0], (*rows.shape[:2], *graph.output_shape)
    rows, constant = rows.to(like).reshape(size), constants.to(like)
    return Form(graph.output, rows, constant, gamma(len(graph.nodes), like.dtype) * constant.abs())


def lower_bound(
    graph: Graph,
    minimum: Minimum,
    steps: Mapping[int, Step],
    form: Form,
    *,
    stop: int = 0,
    inputs: Int[Tensor, " chosen"] | None = None,
    multipliers: Mapping[int, Tensor] | None = None,
) -> Float[Tensor, "batch rows"]:
    """The form's minimum over the linear relaxation, rounded down; NaN becomes minus infinity.

    Args:
        graph: the network.
        minimum: a lower bound of `min row.x` over the values x of node `stop`.
        steps: for every node between.
        form: what to bound.
        stop: node at which substitution ends, the input by default; all paths have to lead there.
        inputs: the inputs of the batch that the form is about; by default all.
        multipliers: by relaxed node, for every row a combination of what the node reads, `(batch, rows, *shape)`,
            that is known to be at least 0 wherever the bound has to hold: it is subtracted.
    """
    multipliers = multipliers or {}
    constant, error = form.constant, form.error
    rows: dict[int, Tensor] = {form.node: form.rows, **form.others}
    lengths: dict[int, Tensor] = {} if form.length is None else {form.node: form.length}
    for k in range(form.node, stop, -1):
        if k not in rows:
            continue
        current, node = rows.pop(k), graph.nodes[k]
        step = steps[k] if inputs is None else steps[k].select(inputs)
        length = lengths.pop(k) if k in lengths else flat_length(current)
        error = error + length * step.error
        if step.pieces is not None:
            passed, shift = _through_pieces(current, step.pieces)
            parts: tuple[Tensor, ...] = (passed,)
        else:
            assert isinstance(node.op, AbstractAffine)
            parts, shift = node.op.adjoint(current), node.op.offset(current)
        constant = constant + shift
        if k in multipliers:
            parts = (parts[0] - multipliers[k],)
        for source, part in zip(node.inputs, parts, strict=True):
            if step.steepness is not None and source not in rows and k not in multipliers:
                lengths[source] = length * step.steepness
            else:
                lengths.pop(source, None)
            rows[source] = rows[source] + part if source in rows else part
    reach = minimum(rows[stop].flatten(2))
    return torch.nan_to_num(down(reach + constant - error), nan=-torch.inf, posinf=-torch.inf, neginf=-torch.inf)
