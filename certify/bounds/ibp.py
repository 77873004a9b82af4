"""Interval bound propagation.

Gowal et al., "Scalable verified training for provably robust image classification", ICCV 2019; every affine
operation maps centre and radius, c -> A c + b, r -> |A| r. Radii are enlarged by the rounding errors, so the
intervals hold in real arithmetic.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial, reduce

import torch
from jaxtyping import Float
from torch import Tensor

from certify.bounds.backward import lower_bound, make_step, margin_form
from certify.bounds.base import AbstractMethod, Bounds, place
from certify.ir import Graph, Node
from certify.ir.ops import AbstractAffine, Linear
from certify.properties import Margins
from certify.regions import AbstractRegion, Box
from certify.regions.box import interval_minimum
from certify.relaxations import relaxation_of
from certify.rounding import gamma

Interval = tuple[Tensor, Tensor]


def interval_of(graph: Graph, node: int, bounds: Bounds, region: AbstractRegion) -> Interval:
    """Bounds of one node from the bounds of what it reads; the first linear layer is exact on the region."""
    if node == 0:
        shape = (-1, *graph.input_shape)
        lower, upper = region.bounding_box()
        return lower.reshape(shape), upper.reshape(shape)
    op = graph.nodes[node].op
    if not isinstance(op, AbstractAffine):
        return relaxation_of(op).interval(*bounds[graph.nodes[node].inputs[0]])
    # A coupled region's forms cost too much to bound all of them: substitution bounds those that matter.
    if isinstance(op, Linear) and not isinstance(region, Box) and not region.coupled and graph.reads_input(node):
        return _first_layer(op, region)
    return _hinted(graph.nodes[node], bounds, _affine(op, graph.nodes[node], bounds))


def _hinted(node: Node, bounds: Bounds, interval: Interval) -> Interval:
    """Of a node that is the largest of its hints: within the largest of their intervals' ends."""
    if not node.hints:
        return interval
    lower, upper = (reduce(torch.maximum, (ends[i] for i in node.hints)) for ends in (bounds.lower, bounds.upper))
    return torch.fmax(interval[0], lower), torch.fmin(interval[1], upper)


def _first_layer(op: Linear, region: AbstractRegion) -> Interval:
    rows = torch.stack([op.weight, -op.weight]).flatten(0, 1).unsqueeze(0)
    lower, upper = region.minimum(rows).chunk(2, dim=1)
    rounding = gamma(op.terms, op.weight.dtype) * (lower.abs() + upper.abs() + op.bias.abs())
    return lower + op.bias - rounding, op.bias - upper + rounding


def _affine(op: AbstractAffine, node: Node, bounds: Bounds) -> Interval:
    centres, radii = zip(*(_centred(*bounds[i]) for i in node.inputs), strict=True)
    rounding = gamma(2 * op.terms, centres[0].dtype)
    safe = [r + rounding * (c.abs() + r) for c, r in zip(centres, radii, strict=True)]
    centre, radius = op.forward(*centres), op.spread(*safe) + rounding * op.offset_size()
    # The two ends are rounded too, at the size of the result.
    radius = radius + rounding * (centre.abs() + radius)
    return centre - radius, centre + radius


def _centred(lower: Tensor, upper: Tensor) -> Interval:
    centre = lower + (upper - lower) / 2
    return centre, torch.maximum(upper - centre, centre - lower)


@dataclass(frozen=True)
class IBP(AbstractMethod):
    """Intervals, node by node: the cheapest and loosest method."""

    @property
    def name(self) -> str:
        """What a user calls it."""
        return "ibp"

    def steps(self, graph: Graph, region: AbstractRegion, known: Bounds | None = None) -> Iterator[Bounds]:
        """One node more each time."""
        bounds = known or Bounds()
        graph = place(graph, region.centre)
        for k in range(len(graph.nodes)):
            bounds = bounds.tightened(k, *interval_of(graph, k, bounds, region))
            yield bounds

    def margins(
        self, graph: Graph, region: AbstractRegion, bounds: Bounds, margins: Margins
    ) -> Float[Tensor, "batch targets"]:
        """The margin's rows are merged into the last affine operations, then meet the interval below."""
        graph = place(graph, region.centre)
        node, steps = graph.output, {}
        while isinstance(graph.nodes[node].op, AbstractAffine) and len(graph.nodes[node].inputs) == 1:
            steps[node] = make_step(graph, graph.nodes[node], bounds)
            (node,) = graph.nodes[node].inputs
        if node == 0:
            return lower_bound(graph, region.minimum, steps, margin_form(graph, margins, bounds))
        centre, radius = (v.flatten(1) for v in _centred(*bounds[node]))
        minimum = partial(interval_minimum, centre=centre, radius=radius)
        return lower_bound(graph, minimum, steps, margin_form(graph, margins, bounds), stop=node)
