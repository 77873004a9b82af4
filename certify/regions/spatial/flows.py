"""Smooth vector fields of limited length."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad, softshrink

from certify.regions.base import AbstractRegion
from certify.regions.spatial.ball import Ball
from certify.regions.spatial.edges import OnEdges, saddle
from certify.rounding import gamma as rounding_of

# Steps of the inner problems: rows of `minimum`, directions of an attack, projections.
_BOUND_STEPS, _DIRECTION_STEPS, _PROJECTION_STEPS = 200, 12, 30
# Shorter vectors move nothing: the images cannot be deformed.
_STILL = 1e-100


@dataclass(frozen=True, eq=False)
class Flows(AbstractRegion):
    """|v(p)|_t <= delta at every pixel, and every component of v(p) - v(q) within gamma at neighbours p, q.

    A field is flat: all horizontal components row by row, then all vertical ones. The region holds a batch of equal
    sets, one for each image.

    Attributes:
        ball: of a single vector.
        gamma: limit of differences; None for none.
        centre: zeros; its device and precision are those of the fields.
        height, width: of the images.
    """

    ball: Ball
    gamma: float | None
    centre: Float[Tensor, "batch n"]
    height: int
    width: int

    def fields(self, flat: Float[Tensor, "batch n"]) -> Float[Tensor, "batch 2 height width"]:
        """As fields."""
        return flat.reshape(-1, 2, self.height, self.width)

    def minimum(
        self, rows: Float[Tensor, "#chosen rows n"], inputs: Int[Tensor, " chosen"] | None = None
    ) -> Float[Tensor, "chosen rows"]:
        """By multipliers of the edges: `-delta |row + D'f|_dual - gamma |f|_1`, at any f, rounded down."""
        chosen = len(self.centre) if inputs is None else len(inputs)
        fields = self.fields(rows.flatten(0, 1))
        edges = OnEdges.of(torch.zeros_like(fields))
        bound = self._bound(fields, edges)
        if self.gamma is not None:
            found = self._saddle(fields, _BOUND_STEPS)[0]
            bound = torch.maximum(bound, self._bound(fields, found))
        return bound.reshape(rows.shape[:2]).expand(chosen, -1)

    def _bound(self, fields: Float[Tensor, "rows 2 height width"], edges: OnEdges) -> Float[Tensor, " rows"]:
        left = fields + edges.adjoint()
        dual = {1: torch.inf, 2: 2, torch.inf: 1}[self.ball.order]
        reach = self.ball.delta * torch.linalg.vector_norm(left, dual, dim=1).flatten(1).sum(1)
        paid = (self.gamma or 0.0) * edges.sizes()
        size = self.ball.delta * (fields.abs().flatten(1).sum(1) + 8 * edges.sizes()) + paid
        return -reach - paid - rounding_of(fields[0].numel(), fields.dtype) * size

    @cached_property
    def _vertices(self) -> Float[Tensor, "points 2"]:
        points = torch.as_tensor(self.ball.fitted, dtype=torch.float32, device=self.centre.device)
        at_rim = torch.linalg.vector_norm(points, self.ball.order, dim=1) > self.ball.delta * (1 - 1e-6)
        return points[at_rim]

    def _saddle(self, fields: Float[Tensor, "rows 2 height width"], steps: int) -> tuple[OnEdges, Tensor]:
        """Multipliers, and fields that are nearly least and nearly allowed."""
        points = self._vertices
        costs = torch.einsum("kc,rchw->rkhw", points, fields.float())
        if self.gamma is None:
            return OnEdges.of(torch.zeros_like(fields)), points[costs.argmin(1)].permute(0, 3, 1, 2).to(fields)
        found = saddle(costs, points, self.gamma, steps)
        means = torch.einsum("kc,rkhw->rchw", points, found.weights)
        edges = OnEdges(found.multipliers.along.to(fields), found.multipliers.down.to(fields))
        return edges, means.to(fields)

    def minimiser(self, rows: Float[Tensor, "batch n"]) -> Float[Tensor, "batch n"]:
        """A field of the set where row.v is nearly least."""
        if self.ball.delta < _STILL:
            return torch.zeros_like(rows)
        return self._pulled(self._saddle(self.fields(rows), _DIRECTION_STEPS)[1]).flatten(1)

    def bounding_box(self) -> tuple[Float[Tensor, "batch n"], Float[Tensor, "batch n"]]:
        """delta, in both directions: constant fields reach it."""
        return self.centre - self.ball.delta, self.centre + self.ball.delta

    def gauge(self, fields: Float[Tensor, "batch 2 height width"]) -> Float[Tensor, " batch"]:
        """The factor by which the set has to grow to hold a field."""
        length = self.ball.lengths(fields).flatten(1).amax(1) / self.ball.delta
        if self.gamma is None:
            return length
        steepest = OnEdges.of(fields).largest()
        # Without any room for differences only constant fields are in the set.
        ratio = steepest / self.gamma if self.gamma > 0 else torch.where(steepest > 0, torch.inf, 0.0).to(length)
        return torch.maximum(length, ratio)

    def contains(self, points: Float[Tensor, "batch n"], tolerance: float = 0.0) -> Bool[Tensor, " batch"]:
        """In float64."""
        fields = self.fields(points.double())
        inside = self.ball.lengths(fields).flatten(1).amax(1) <= self.ball.delta + tolerance
        if self.gamma is not None:
            inside &= OnEdges.of(fields).largest() <= self.gamma + tolerance
        return inside

    def project(self, points: Float[Tensor, "batch n"]) -> Float[Tensor, "batch n"]:
        """The nearest field, nearly: accelerated ascent on the multipliers of the differences, then pulled inside."""
        fields = self.fields(points)
        nearest = _clipped(fields, self.ball)
        if self.gamma is not None:
            steep = (OnEdges.of(nearest).largest() > self.gamma).nonzero().flatten()
            if len(steep):
                nearest = nearest.index_copy(0, steep, self._smoothed(fields[steep], self.gamma))
        return self._pulled(nearest).flatten(1)

    def _smoothed(self, fields: Float[Tensor, "batch 2 height width"], gamma: float) -> Tensor:
        if gamma == 0:
            return _clipped(fields.mean((2, 3), keepdim=True).expand_as(fields), self.ball)
        pair = last = (torch.zeros_like(fields.diff(dim=-1)), torch.zeros_like(fields.diff(dim=-2)))
        for count in range(_PROJECTION_STEPS):
            share = count / (count + 3)
            along, down = (new + share * (new - old) for new, old in zip(pair, last, strict=True))
            out = pad(along, (1, 1)).diff(dim=-1) + pad(down, (0, 0, 1, 1)).diff(dim=-2)
            nearest = _clipped(fields + out, self.ball)
            last = pair
            pair = (
                softshrink(along.add(nearest.diff(dim=-1), alpha=1 / 8), gamma / 8),
                softshrink(down.add(nearest.diff(dim=-2), alpha=1 / 8), gamma / 8),
            )
        return _clipped(fields - OnEdges(*pair).adjoint(), self.ball)

    def _pulled(self, fields: Float[Tensor, "batch 2 height width"]) -> Tensor:
        """Towards zero as far as it takes to be inside, rounding included."""
        if self.gamma == 0:
            fields = fields.mean((2, 3), keepdim=True).expand_as(fields)
        # A few roundoffs of room: the lengths of what comes out are computed with rounding too.
        factor = self.gauge(fields) * (1 + 16 * torch.finfo(fields.dtype).eps)
        return fields / factor.clamp(min=1.0)[:, None, None, None]

    def sample(self, generator: torch.Generator) -> Float[Tensor, "batch n"]:
        """Noise of a random size, smoothed at random, projected: reaches the whole set."""
        shape = (len(self.centre), 2, self.height, self.width)
        noise = torch.randn(shape, generator=generator, dtype=torch.float64).to(self.centre)
        for _ in range(int(torch.randint(0, 3, (), generator=generator))):
            noise = torch.nn.functional.avg_pool2d(noise, 5, 1, 2, count_include_pad=False) * 3
        shift = torch.randn((len(noise), 2, 1, 1), generator=generator, dtype=torch.float64).to(noise)
        size = torch.rand((len(noise), 1, 1, 1), generator=generator, dtype=torch.float64).to(noise) * 3
        return self.project(((noise + shift) * size * self.ball.delta).flatten(1))

    def ascent_direction(self, gradient: Float[Tensor, "batch n"]) -> Float[Tensor, "batch n"]:
        """The field of the set that a linear function is nearly largest at."""
        return self.minimiser(-gradient)

    def representable(self, points: Float[Tensor, "batch n"], dtype: torch.dtype) -> Float[Tensor, "batch n"]:
        """Fields inside, near the given ones; they are never read by a network and keep their precision."""
        return self._pulled(self.fields(self.project(points))).flatten(1)

    def select(self, index: Any) -> "Flows":
        """The sets of some of the images."""
        return Flows(self.ball, self.gamma, self.centre[index], self.height, self.width)

    def to(self, dtype: torch.dtype) -> "Flows":
        """The same set."""
        return Flows(self.ball, self.gamma, self.centre.to(dtype), self.height, self.width)


def _clipped(fields: Float[Tensor, "batch 2 height width"], ball: Ball) -> Float[Tensor, "batch 2 height width"]:
    """The nearest vectors of the disc, pixel by pixel."""
    if ball.order == torch.inf:
        return fields.clamp(-ball.delta, ball.delta)
    length = ball.lengths(fields).unsqueeze(1)
    if ball.order == 2:
        return fields * (ball.delta / length.clamp(min=ball.delta))
    size = fields.abs()
    excess = (length - ball.delta).clamp(min=0)
    # Both components lose half the excess, or the smaller one all of itself and the other one the rest.
    lost = torch.maximum(excess / 2, excess - size.flip(1)).clamp(min=0)
    return fields.sign() * (size - torch.where(excess > 0, lost, 0.0)).clamp(min=0)
