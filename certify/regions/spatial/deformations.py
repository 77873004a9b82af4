"""The images that smooth vector fields make, as a region of inputs."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from certify.regions.base import AbstractRegion
from certify.regions.box import Box
from certify.regions.spatial.ball import Ball
from certify.regions.spatial.bilinear import deform, patches
from certify.regions.spatial.edges import OnEdges, saddle
from certify.regions.spatial.flows import Flows
from certify.regions.spatial.windows import Windows
from certify.rounding import cast_down, cast_up
from certify.rounding import gamma as rounding_of

# Rows are bounded in chunks of about this many numbers, which stay in a core's cache.
_CHUNK = 2**18
# Steps of the multipliers: this many, more where rows and pixels are few (steps times rows times pixels).
_FEWEST, _MOST, _WORK = 30, 400, 3_000_000
_ASCENT_STEPS = 15


@dataclass(frozen=True, eq=False)
class Deformations(AbstractRegion):
    """I(p + v(p)) for every field v of a set with neighbouring vectors close to each other.

    Linear forms are bounded by the Lagrangian dual of the differences' limits: with D the differences of neighbours,

        min row.I(p + v(p))  >=  sum_p min {row_p.I(p + u) + (D'f)_p.u : |u| <= delta}  -  gamma |f|_1

    for every f, and each of the small problems is solved exactly (`Ball.least`). f = 0 is the bound of the pixels'
    intervals. No linear relaxation of the interpolation is between the two sides.

    Attributes:
        images: what is deformed.
        ball: of a single vector.
        gamma: limit of the differences, finite.
        lower, upper: the pixels' ranges, flat, rounded outward.
        blur: every pixel may be off by this much besides; 0 in the precision that the images came in.
    """

    images: Float[Tensor, "batch channels height width"]
    ball: Ball
    gamma: float
    lower: Float[Tensor, "batch n"]
    upper: Float[Tensor, "batch n"]
    blur: float = 0.0

    @staticmethod
    def of(images: Float[Tensor, "batch channels height width"], ball: Ball, gamma: float) -> "Deformations":
        """With the intervals of the pixels."""
        box = pixel_box(images, ball)
        return Deformations(images, ball, gamma, box.lower, box.upper)

    @property
    def coupled(self) -> bool:
        """Neighbouring pixels move together."""
        return True

    @property
    def centre(self) -> Float[Tensor, "batch n"]:  # type: ignore[override]
        """The images as they are."""
        return self.images.flatten(1)

    @property
    def box(self) -> Box:
        """What fields with any differences make, and more where channels share them."""
        return Box(self.lower, self.upper)

    @cached_property
    def flows(self) -> Flows:
        """The fields."""
        batch, _, height, width = self.images.shape
        zeros = torch.zeros((batch, 2 * height * width), dtype=self.images.dtype, device=self.images.device)
        return Flows(self.ball, self.gamma, zeros, height, width)

    @cached_property
    def _patches(self) -> Float[Tensor, "batch channels height width n"]:
        return patches(self.images, self.ball.reach)

    @cached_property
    def _moving(self) -> Bool[Tensor, "batch 1 height width"]:
        """Pixels that a vector changes, in some channel: the others stay as they are, whatever the field."""
        return (self._patches.amax(-1) > self._patches.amin(-1)).any(1, keepdim=True)

    @cached_property
    def _hints(self) -> tuple[Float[Tensor, "n points"], Float[Tensor, "points 2"]]:
        """Weights of the points that multipliers are sought with, and the points, in single precision."""
        points = self.ball.hinted
        pair = (torch.as_tensor(v).to(self.images.device, torch.float32) for v in (self.ball.weights(points), points))
        weights, places = pair
        return weights, places

    def minimum(
        self, rows: Float[Tensor, "#chosen rows n"], inputs: Int[Tensor, " chosen"] | None = None
    ) -> Float[Tensor, "chosen rows"]:
        """By weak duality, rounded down; never below the bound of the intervals."""
        owner = torch.arange(len(self.images), device=rows.device) if inputs is None else inputs
        chosen, count = len(owner), rows.shape[1]
        floor = self.box.minimum(rows, inputs)
        shaped = rows.expand(chosen, -1, -1).reshape(-1, *self.images.shape[1:])
        found = self._dual(shaped, owner.repeat_interleave(count)).reshape(chosen, count)
        return torch.maximum(found - self.blur * (1 + 1e-6) * rows.abs().sum(2), floor)

    def _dual(
        self, rows: Float[Tensor, "all channels height width"], owner: Int[Tensor, " all"]
    ) -> Float[Tensor, " all"]:
        if len(rows) == 0:
            return rows.new_zeros(0)
        moving = self._moving[owner]
        rows, still = rows * moving, rows * ~moving * self.images[owner]
        windows = Windows.around(rows)
        per_row = windows.height * windows.width * len(self._hints[1])
        steps = min(_MOST, max(_FEWEST, _WORK // (len(rows) * windows.height * windows.width)))
        parts = torch.arange(len(rows), device=rows.device).split(max(1, _CHUNK // per_row))
        found = torch.cat([self._dual_of(windows.select(part), rows[part], owner[part], steps) for part in parts])
        rounding = rounding_of(still[0].numel() + 2, rows.dtype)
        return found + still.flatten(1).sum(1) - rounding * (still.abs().flatten(1).sum(1) + found.abs())

    def _dual_of(self, windows: Windows, rows: Tensor, owner: Tensor, steps: int) -> Float[Tensor, " rows"]:
        """The fields outside a window can follow its rim: they cost nothing."""
        local, around = windows.cut(rows), windows.cut_of(self._patches, owner)
        values = torch.einsum("rchw,rchwn->rhwn", local, around)
        sizes = torch.einsum("rchw,rchw->rhw", local.abs(), around.abs().amax(-1))
        weights, points = self._hints
        costs = (values.float() @ weights).permute(0, 3, 1, 2)
        found = saddle(costs, points, self.gamma, steps, wanted=False).multipliers
        return judged(self.ball, self.gamma, values, sizes, OnEdges(found.along.to(rows), found.down.to(rows)))

    def minimiser(self, rows: Float[Tensor, "batch n"]) -> Float[Tensor, "batch n"]:
        """A point of the relaxation: at every pixel a mean of values that it can take, where row.x is nearly least."""
        return self.mean_image(self.weights_at(rows))

    def weights_at(
        self, rows: Float[Tensor, "batch n"], steps: int = _ASCENT_STEPS
    ) -> Float[Tensor, "batch points h w"]:
        """Weights on the hinted points at every pixel: the primal part of the dual bound."""
        shaped, (weights, points) = rows.reshape(self.images.shape), self._hints
        per_row = shaped[0, 0].numel() * len(points)
        parts = torch.arange(len(rows), device=rows.device).split(max(1, _CHUNK // per_row))
        found = []
        for part in parts:
            values = torch.einsum("rchw,rchwn->rhwn", shaped[part], self._patches[part]).float()
            found.append(saddle((values @ weights).permute(0, 3, 1, 2), points, self.gamma, steps).weights)
        return torch.cat(found)

    def mean_image(self, weights: Float[Tensor, "batch points h w"]) -> Float[Tensor, "batch n"]:
        """The mean of the values at the hinted points."""
        kernels = torch.einsum("np,bphw->bhwn", self._hints[0], weights).to(self.images)
        return torch.einsum("bchwn,bhwn->bchw", self._patches, kernels).flatten(1)

    def mean_field(self, weights: Float[Tensor, "batch points h w"]) -> Float[Tensor, "batch n"]:
        """The mean of the hinted points, pulled into the set of fields."""
        means = torch.einsum("pc,bphw->bchw", self._hints[1], weights).to(self.images)
        return self.flows.project(means.flatten(1))

    def bounding_box(self) -> tuple[Float[Tensor, "batch n"], Float[Tensor, "batch n"]]:
        """The pixels' ranges: constant fields reach both ends."""
        return self.lower, self.upper

    def contains(self, points: Float[Tensor, "batch n"], tolerance: float = 0.0) -> Bool[Tensor, " batch"]:
        """Whether the pixels are in their ranges: necessary only. Fields are what can be told (`flows.contains`)."""
        return Box(self.lower.double(), self.upper.double()).contains(points.double(), tolerance)

    def project(self, points: Float[Tensor, "batch n"]) -> Float[Tensor, "batch n"]:
        """Into the pixels' ranges."""
        return points.clamp(self.lower, self.upper)

    def sample(self, generator: torch.Generator) -> Float[Tensor, "batch n"]:
        """The image of a random field."""
        flows = self.flows
        return deform(self.images, flows.fields(flows.sample(generator))).flatten(1)

    def ascent_direction(self, gradient: Float[Tensor, "batch n"]) -> Float[Tensor, "batch n"]:
        """From the image to where a linear function is nearly largest."""
        return self.minimiser(-gradient) - self.centre

    def select(self, index: Any) -> "Deformations":
        """Of some of the images."""
        return replace(self, images=self.images[index], lower=self.lower[index], upper=self.upper[index])

    def cpu(self) -> "Deformations":
        """The same in the memory of the CPU."""
        return replace(self, images=self.images.cpu(), lower=self.lower.cpu(), upper=self.upper.cpu())

    def to(self, dtype: torch.dtype) -> "Deformations":
        """Rounded images, and ranges and blur that cover the rounding."""
        if dtype == self.images.dtype:
            return self
        images = self.images.to(dtype)
        moved = float((images.double() - self.images.double()).abs().max())
        blur = self.blur + moved * (1 + 1e-6)
        return Deformations(
            images, self.ball, self.gamma, cast_down(self.lower, dtype), cast_up(self.upper, dtype), blur
        )


def pixel_box(images: Float[Tensor, "batch channels height width"], ball: Ball) -> Box:
    """The range of every pixel; the values in between are taken as well.

    Interpolation stays between the pixels of a patch, which undoes most of the outward rounding.
    """
    around = patches(images, ball.reach)
    lower, upper = ball.extremes(around)
    return Box(torch.maximum(lower, around.amin(-1)).flatten(1), torch.minimum(upper, around.amax(-1)).flatten(1))


def judged(
    ball: Ball,
    gamma: float,
    values: Float[Tensor, "rows height width n"],
    sizes: Float[Tensor, "rows height width"],
    edges: OnEdges,
) -> Float[Tensor, " rows"]:
    """The dual function at given multipliers, rounded down.

    Args:
        ball: of a single vector.
        gamma: limit of the differences.
        values: the row's product with the image around every pixel.
        sizes: the same with absolute values, the largest around a pixel.
        edges: the multipliers.
    """
    pull = edges.adjoint()
    grid = torch.as_tensor(ball.grid).to(values)
    tilted = values + torch.einsum("rchw,nc->rhwn", pull, grid)
    paid = gamma * edges.sizes()
    size = sizes.flatten(1).sum(1) + 8 * (1 + ball.delta) * edges.sizes() + paid
    # Sums over channels, corners and pixels of numbers that `size` holds; doubled for what it has to first order only.
    rounding = 2 * rounding_of(values[0].numel(), values.dtype) * size
    return ball.least(tilted).flatten(1).sum(1) - paid - rounding
