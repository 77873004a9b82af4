"""Lower bounds of margins from the boxes of all layers: by intervals, and by linear bounds carried back to the input.

The second, between interval bounds, is CROWN-IBP (Zhang et al., "Towards stable and efficient training of verifiably
robust neural networks", ICLR 2020). The adjoint of an affine step is its vector-Jacobian product at zero. ReLUs are
bounded by the lines of least area; of other steps that are not affine only the interval is used.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

from certify.training.enclosures import Enclosure, Step
from certify.training.margins import margins_of, rivals_of, sign_of

Rows = Float[Tensor, "rows batch *shape"]


def margin_bounds(output: Enclosure, labels: Int[Tensor, " batch"]) -> Float[Tensor, "batch rivals"]:
    """Interval lower bounds of the margins, whose rows are merged with the affine steps that end the network.

    A linear layer that ends it is merged by one product for each class, and what is before it is not.
    """
    centre, step = output.centre, output.step
    if step is None or step.layer is None or step.parents[0].centre.ndim != 2 or centre.shape[1] == 1:
        return _merged(output, labels)
    radius = _merged_radii(step.layer[0], step.parents[0].radius, labels)
    return margins_of(centre, labels) - radius.gather(1, rivals_of(labels, centre.shape[1]))


def _merged(output: Enclosure, labels: Int[Tensor, " batch"]) -> Float[Tensor, "batch rivals"]:
    rows, value = _margin_rows(output.centre, labels), output
    bound = rows.new_zeros(rows.shape[:2])
    while value.step is not None and value.step.kind == "affine" and len(value.step.parents) == 1:
        (rows,), offset = _through_affine(value.step, rows)
        bound, (value,) = bound + offset, value.step.parents
    return (bound + _least(rows, value.centre, value.radius)).T


def _merged_radii(
    weight: Float[Tensor, "classes n"], radius: Float[Tensor, "batch n"], labels: Int[Tensor, " batch"]
) -> Float[Tensor, "batch classes"]:
    """|W_y - W_j| r, class by class of the labels: never more than one table of differences at once."""
    result = radius.new_empty(len(radius), len(weight))
    parts = [(labels == k).nonzero().squeeze(1) for k in range(len(weight))]
    rows = [radius[part] @ (weight[k] - weight).abs().T for k, part in enumerate(parts) if len(part)]
    return result.index_put((torch.cat([part for part in parts if len(part)]),), torch.cat(rows))


def backward_margin_bounds(output: Enclosure, labels: Int[Tensor, " batch"]) -> Float[Tensor, "batch rivals"]:
    """Lower bounds of the margins, differentiable in the parameters."""
    rows: dict[int, Tensor] = {id(output): _margin_rows(output.centre, labels)}
    bound = output.centre.new_zeros(rows[id(output)].shape[:2])
    for value in output.walk():
        coefficients = rows.pop(id(value), None)
        if coefficients is None:  # only read by steps of which the interval was used
            continue
        if value.step is None or value.step.kind == "interval":
            bound = bound + _least(coefficients, value.centre, value.radius)
            continue
        carried, offset = (_through_relu if value.step.kind == "relu" else _through_affine)(value.step, coefficients)
        bound = bound + offset
        for parent, part in zip(value.step.parents, carried, strict=True):
            rows[id(parent)] = part if id(parent) not in rows else rows[id(parent)] + part
    return bound.T


def _margin_rows(scores: Float[Tensor, "batch *classes"], labels: Int[Tensor, " batch"]) -> Rows:
    if scores.ndim == 1 or scores.shape[1] == 1:
        return sign_of(labels).to(scores.dtype).reshape(1, *scores.shape)
    unit = torch.eye(scores.shape[1], dtype=scores.dtype, device=scores.device)
    return unit[labels] - unit[rivals_of(labels, scores.shape[1])].transpose(0, 1)


def _least(rows: Rows, centre: Tensor, radius: Tensor) -> Float[Tensor, "rows batch"]:
    return (rows * centre - rows.abs() * radius).flatten(2).sum(2)


def _through_affine(step: Step, rows: Rows) -> tuple[tuple[Tensor, ...], Float[Tensor, "rows batch"]]:
    """c'(A x + b): the rows c'A of every parent, and c'b."""
    with torch.enable_grad():
        zeros = [torch.zeros_like(p.centre).requires_grad_(True) for p in step.parents]
        at_zero = step.function(*zeros)
        carried = torch.autograd.grad(at_zero, zeros, rows, is_grads_batched=True, create_graph=True)
    return carried, (rows * at_zero).flatten(2).sum(2)


def _through_relu(step: Step, rows: Rows) -> tuple[tuple[Rows, ...], Float[Tensor, "rows batch"]]:
    (value,) = step.parents
    lower, upper = value.lower.clamp(max=0), value.upper.clamp(min=0)
    width = (upper - lower).clamp(min=torch.finfo(lower.dtype).tiny)
    above = upper / width  # 0 or 1 where the sign is known
    below = (value.centre > 0).to(rows.dtype)
    negative = rows.clamp(max=0)
    carried = (rows - negative) * below + negative * above
    return (carried,), (negative * (-lower * above)).flatten(2).sum(2)


def relu_inputs(output: Enclosure) -> Iterator[Enclosure]:
    """The values that ReLUs read, the ones nearest the output first."""
    for value in output.walk():
        if value.step is not None and value.step.kind == "relu":
            yield value.step.parents[0]
