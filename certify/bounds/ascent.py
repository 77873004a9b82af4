"""Ascent on what a backward substitution leaves free, many linear forms at a time.

For every form (one entry of the batch each) the lower slopes of unstable entries are free in an interval, an
entry whose phase was fixed has a multiplier beta >= 0 (Wang et al., "Beta-CROWN: efficient bound propagation
with per-neuron split constraints", NeurIPS 2021), and a conjunction of output conditions has weights on the
simplex. With the signs of the coefficients fixed a substitution is the transpose of an affine network, so one
pass of that network from the region's minimiser to the form gives the whole gradient: coefficient times value
at every relaxed entry. No autograd graph is built.

Nothing here is rounded outward: an ascent finds parameters, and `certify.bounds.backward` judges them.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import Any

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from certify.bounds.base import Bounds
from certify.ir import Graph
from certify.ir.ops import AbstractAffine
from certify.regions import AbstractRegion
from certify.relaxations import Pieces, relaxation_of

_MOMENTUM, _MEMORY, _DECAY, _TINY = 0.9, 0.99, 0.97, 1e-12


@dataclass(frozen=True)
class Slot:
    """Where the parameters of one relaxed node are in the flat vector of all."""

    node: int
    source: int
    start: int
    shape: tuple[int, ...]

    @property
    def stop(self) -> int:
        """The first position after it."""
        return self.start + prod(self.shape)

    def of(self, flat: Shaped[Tensor, "batch n"]) -> Shaped[Tensor, "batch *shape"]:
        """This node's part."""
        return flat[:, self.start : self.stop].unflatten(1, self.shape)


def slots_below(graph: Graph, start: int) -> tuple[Slot, ...]:
    """A place for every relaxed node that a form on node `start` passes, the nearest first."""
    reached, position = {start}, 0
    slots: list[Slot] = []
    for k in range(start, 0, -1):
        if k not in reached:
            continue
        node = graph.nodes[k]
        reached |= set(node.inputs)
        if not isinstance(node.op, AbstractAffine):
            slots.append(Slot(k, node.inputs[0], position, node.shape))
            position = slots[-1].stop
    return tuple(slots)


@dataclass(frozen=True, eq=False)
class Parameters:
    """What is free, flat over the slots.

    Attributes:
        slopes: lower slopes, also of the entries whose slope is not free.
        multipliers: beta, times -1 where the fixed phase is the negative one; None where no phase is fixed.
        weights: of the conditions of a conjunction; None where every form has one.
    """

    slopes: Float[Tensor, "batch n"]
    multipliers: Float[Tensor, "batch n"] | None = None
    weights: Float[Tensor, "batch conditions"] | None = None

    @property
    def each(self) -> tuple[Tensor | None, ...]:
        """Slopes, multipliers, weights."""
        return self.slopes, self.multipliers, self.weights

    def where(self, mask: Bool[Tensor, " batch"], other: "Parameters") -> "Parameters":
        """These where the mask is true, the other ones elsewhere."""
        pairs = zip(self.each, other.each, strict=True)
        chosen = (None if a is None or b is None else torch.where(mask[:, None], a, b) for a, b in pairs)
        return Parameters(*chosen)  # type: ignore[arg-type]

    def select(self, index: Tensor) -> "Parameters":
        """Of some of the forms."""
        return Parameters(*(None if v is None else v[index] for v in self.each))  # type: ignore[arg-type]

    def to(self, dtype: torch.dtype) -> "Parameters":
        """In another precision."""
        return Parameters(*(None if v is None else v.to(dtype) for v in self.each))  # type: ignore[arg-type]


@dataclass(frozen=True, eq=False)
class Substituted:
    """A substitution with given parameters.

    Attributes:
        value: the lower bound of every form, not rounded outward.
        point: the point of the region where the linear bound is least.
        positive, negative: the two parts of the coefficients at every relaxed node, by node.
    """

    value: Float[Tensor, " batch"]
    point: Float[Tensor, "batch n"]
    positive: Mapping[int, Tensor]
    negative: Mapping[int, Tensor]


@dataclass(frozen=True, eq=False)
class Forms:
    """rows.(value of node `start`) + constants, weighted and summed over the conditions, to be bounded below.

    Attributes:
        graph: the network, in the precision of the ascent.
        region: one region for every form.
        bounds: on the sources of all relaxed nodes, for every form; fixed phases are in them.
        start: the node that the forms are on.
        others: by node below, rows that are added with weight 1. The weights of the conditions then say how much
            of each is added to these: they need not sum to 1.
    """

    graph: Graph
    region: AbstractRegion
    bounds: Bounds
    start: int
    rows: Float[Tensor, "batch conditions *shape"]
    constants: Float[Tensor, "batch conditions"]
    others: Mapping[int, Tensor] = field(default_factory=dict)

    @cached_property
    def slots(self) -> tuple[Slot, ...]:
        """Where the parameters of each relaxed node are."""
        return slots_below(self.graph, self.start)

    @cached_property
    def pieces(self) -> dict[int, Pieces]:
        """The linear pieces, with the lower slopes of least area."""
        return {s.node: relaxation_of(self.graph.nodes[s.node].op).pieces(*self.bounds[s.source]) for s in self.slots}

    @cached_property
    def limits(self) -> tuple[Float[Tensor, "batch n"], Float[Tensor, "batch n"]]:
        """The intervals that the lower slopes are free in; a single point where they are not."""
        ends = []
        for slot in self.slots:
            record, own = relaxation_of(self.graph.nodes[slot.node].op), self.pieces[slot.node].lower_slope
            ends.append(record.free_slopes(*self.bounds[slot.source]) or (own, own))
        return self._joined(least for least, _ in ends), self._joined(most for _, most in ends)

    def _joined(self, parts: Iterable[Float[Tensor, "batch *shape"]]) -> Float[Tensor, "batch n"]:
        """One part for every slot, flat; of width 0 where nothing is relaxed."""
        return torch.cat([self.constants[:, :0], *(part.flatten(1) for part in parts)], 1)

    def least_area(self) -> Parameters:
        """The parameters of CROWN: no multipliers, equal weights."""
        slopes = self._joined(self.pieces[s.node].lower_slope for s in self.slots)
        count = self.constants.shape[1]
        weights = None if count == 1 else torch.full_like(self.constants, 1 / count)
        return Parameters(slopes, None, weights)

    def substitute(self, parameters: Parameters) -> Substituted:
        """Down to the input, with the minimum there."""
        rows, constant = self._weighted(parameters.weights)
        arrived, slots = {self.start: rows, **self.others}, {s.node: s for s in self.slots}
        positive: dict[int, Tensor] = {}
        negative: dict[int, Tensor] = {}
        for k in range(self.start, 0, -1):
            if k not in arrived:
                continue
            node, current = self.graph.nodes[k], arrived.pop(k)
            if k in slots:
                positive[k], negative[k] = current.clamp(min=0), current.clamp(max=0)
                part, shift = self._relaxed(slots[k], positive[k], negative[k], parameters)
                parts: tuple[Tensor, ...] = (part,)
            else:
                assert isinstance(node.op, AbstractAffine)
                single = current.unsqueeze(1)
                parts = tuple(p.squeeze(1) for p in node.op.adjoint(single))
                shift = _column(node.op.offset(single), constant)
            constant = constant + shift
            for source, part in zip(node.inputs, parts, strict=True):
                arrived[source] = arrived[source] + part if source in arrived else part
        final = arrived[0].flatten(1)
        point = self.region.minimiser(final)
        return Substituted(constant + _dots(final, point), point, positive, negative)

    def _weighted(self, weights: Tensor | None) -> tuple[Tensor, Tensor]:
        if weights is None:
            return self.rows[:, 0], self.constants[:, 0]
        rows = torch.einsum("bc,bcn->bn", weights, self.rows.flatten(2)).unflatten(1, self.rows.shape[2:])
        return rows, _dots(weights, self.constants)

    def _relaxed(
        self, slot: Slot, positive: Tensor, negative: Tensor, parameters: Parameters
    ) -> tuple[Tensor, Float[Tensor, " batch"]]:
        pieces = self.pieces[slot.node]
        part = torch.addcmul(positive * slot.of(parameters.slopes), negative, pieces.upper_slope)
        if parameters.multipliers is not None:
            part -= slot.of(parameters.multipliers)
        shift = _dots(negative.flatten(1), pieces.upper_intercept.flatten(1))
        if pieces.lower_intercept is not None:
            shift = shift + _dots(positive.flatten(1), pieces.lower_intercept.flatten(1))
        return part, shift

    def relaxed_values(self, at: Substituted, parameters: Parameters) -> dict[int, Tensor]:
        """The value of every node at the minimiser when every relaxed entry follows the line that was used."""
        slots = {s.node: s for s in self.slots}
        needed = self.start if parameters.weights is not None else max((s.source for s in self.slots), default=0)
        values = {0: at.point.unflatten(1, self.graph.input_shape)}
        for k, node in enumerate(self.graph.nodes[1 : needed + 1], start=1):
            if any(i not in values for i in node.inputs):
                continue  # only forms on other nodes pass it
            if k not in slots:
                values[k] = node.op.forward(*(values[i] for i in node.inputs))
                continue
            pieces, z = self.pieces[k], values[node.inputs[0]]
            below = slots[k].of(parameters.slopes) * z
            if pieces.lower_intercept is not None:
                below = below + pieces.lower_intercept
            above = torch.addcmul(pieces.upper_intercept, pieces.upper_slope, z)
            values[k] = torch.where(at.negative[k] < 0, above, below)
        return values

    def gradient(self, at: Substituted, parameters: Parameters) -> Parameters:
        """Of the bounds with respect to the parameters."""
        values = self.relaxed_values(at, parameters)
        slopes = self._joined(at.positive[s.node] * values[s.source] for s in self.slots)
        multipliers = weights = None
        if parameters.multipliers is not None:
            multipliers = -self._joined(values[s.source] for s in self.slots)
        if parameters.weights is not None:
            outputs = values[self.start].flatten(1)
            weights = torch.einsum("bcn,bn->bc", self.rows.flatten(2), outputs) + self.constants
        return Parameters(slopes, multipliers, weights)

    def mean_coefficients(self, at: Substituted) -> Float[Tensor, "batch n"]:
        """By slot: the size that multipliers have to be compared with."""
        sizes = ((at.positive[s.node] - at.negative[s.node]).flatten(1) for s in self.slots)
        return self._joined(size.mean(1, keepdim=True).expand_as(size) for size in sizes)


def _dots(left: Float[Tensor, "batch n"], right: Float[Tensor, "batch n"]) -> Float[Tensor, " batch"]:
    return (left * right).sum(1)


def _column(offset: Any, like: Float[Tensor, " batch"]) -> Float[Tensor, " batch"]:
    return offset.squeeze(1) if isinstance(offset, Tensor) else torch.full_like(like, offset)


@dataclass
class Adam:
    """Kingma & Ba's step upward, in place; `mean` and `square` are updated at every step."""

    mean: Tensor
    square: Tensor

    @staticmethod
    def like(value: Tensor) -> "Adam":
        """Before the first step."""
        return Adam(torch.zeros_like(value), torch.zeros_like(value))

    def step(self, gradient: Tensor, count: int, rate: Tensor | float) -> Tensor:
        """What to add to the parameter at step `count` = 1, 2, ..."""
        self.mean.mul_(_MOMENTUM).add_(gradient, alpha=1 - _MOMENTUM)
        self.square.mul_(_MEMORY).addcmul_(gradient, gradient, value=1 - _MEMORY)
        size = (self.square / (1 - _MEMORY**count)).sqrt_().add_(_TINY)
        return (self.mean / size).mul_(rate * (_DECAY ** (count - 1) / (1 - _MOMENTUM**count)))


@dataclass(frozen=True, eq=False)
class Ascent:
    """The best bounds on the way, and the parameters that gave them."""

    value: Float[Tensor, " batch"]
    parameters: Parameters
    point: Float[Tensor, "batch n"]


@dataclass(frozen=True)
class Rates:
    """Lengths of the first steps; of multipliers relative to the mean coefficient on the node's values."""

    slopes: float = 0.4
    multipliers: float = 1.0
    weights: float = 0.5


@dataclass(frozen=True, eq=False)
class _Mover:
    """Takes parameters uphill and back into their limits."""

    forms: Forms
    rates: Rates
    signs: Float[Tensor, "batch n"] | None
    states: tuple[Adam | None, ...]
    scale: Float[Tensor, "batch n"] | float

    def step(self, now: Parameters, gradient: Parameters, count: int) -> Parameters:
        """One step each."""
        slopes = self._move(0, gradient.slopes, count).add_(now.slopes).clamp_(*self.forms.limits)
        multipliers = weights = None
        if now.multipliers is not None and gradient.multipliers is not None and self.signs is not None:
            multipliers = self._move(1, gradient.multipliers, count).mul_(self.scale).add_(now.multipliers)
            multipliers = multipliers.mul_(self.signs).clamp_(min=0).mul_(self.signs)
        if now.weights is not None and gradient.weights is not None:
            weights = self._weights(now.weights, gradient.weights, count)
        return Parameters(slopes, multipliers, weights)

    def _weights(self, now: Tensor, gradient: Tensor, count: int) -> Float[Tensor, "batch conditions"]:
        """A factor keeps a weight positive."""
        if self.forms.others:
            return now * self._move(2, gradient, count).exp_()
        # On the simplex only differences matter.
        uneven = gradient - gradient.mean(1, keepdim=True)
        weights = now * self._move(2, uneven, count).exp_()
        return weights / weights.sum(1, keepdim=True)

    def _move(self, which: int, gradient: Tensor, count: int) -> Tensor:
        state = self.states[which]
        assert state is not None
        return state.step(gradient, count, (self.rates.slopes, self.rates.multipliers, self.rates.weights)[which])


def ascend(
    forms: Forms,
    start: Parameters,
    steps: int,
    *,
    signs: Float[Tensor, "batch n"] | None = None,
    rates: Rates | None = None,
    enough: float = torch.inf,
    stop: Callable[[], bool] | None = None,
) -> Ascent:
    """Raise every form's bound; never below where it started.

    Args:
        forms: what to bound.
        start: initial parameters.
        steps: substitutions, the one at the start included.
        signs: of the fixed phases, 0 where the phase is free; wanted where `start` has multipliers.
        rates: lengths of the first steps.
        enough: stop as soon as all bounds are above.
        stop: asked before every step, whether time is over.
    """
    states = tuple(None if v is None else Adam.like(v) for v in start.each)
    now = start
    best: Ascent | None = None
    mover: _Mover | None = None
    for count in range(1, steps + 1):
        at = forms.substitute(now)
        best = _best(best, Ascent(at.value, now, at.point))
        if count == steps or bool((best.value > enough).all()) or (stop is not None and stop()):
            break
        if mover is None:
            scale = 1.0 if start.multipliers is None else forms.mean_coefficients(at)
            mover = _Mover(forms, rates or Rates(), signs, states, scale)
        now = mover.step(now, forms.gradient(at, now), count)
    assert best is not None
    return best


def _best(best: Ascent | None, new: Ascent) -> Ascent:
    if best is None:
        return new
    better = new.value > best.value
    point = torch.where(better[:, None], new.point, best.point)
    return Ascent(torch.where(better, new.value, best.value), new.parameters.where(better, best.parameters), point)
