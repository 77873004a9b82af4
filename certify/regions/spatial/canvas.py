"""Images that vector fields are drawn on: between the fields of an attack and the inputs of a network."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from certify.regions.box import Box
from certify.regions.spatial.ball import Ball
from certify.regions.spatial.bilinear import deform, patches
from certify.regions.spatial.deformations import Deformations

_HALVINGS = 50


@dataclass(frozen=True, eq=False)
class Canvas:
    """The images, and a region that holds everything that allowed fields make of them.

    Attributes:
        images: in float64.
        outer: a box where neighbouring vectors may differ at will.
        ball: of a single vector; None where the images cannot move.
    """

    images: Float[Tensor, "batch channels height width"]
    outer: Box | Deformations
    ball: Ball | None

    def draw(self, fields: Float[Tensor, "batch n"]) -> Float[Tensor, "batch pixels"]:
        """The deformed images, flat."""
        shape = (-1, 2, *self.images.shape[2:])
        return deform(self.images, fields.to(self.images.dtype).reshape(shape)).flatten(1)

    def fields_near(self, points: Float[Tensor, "batch pixels"]) -> Float[Tensor, "batch n"]:
        """Fields whose images may be near given points of the outer region: candidates for counterexamples.

        Of a box of grey images it hits every point: on the way from where a pixel is least to where it is largest it
        takes all values in between. Channels that want different vectors get one that suits their sum.
        """
        if isinstance(self.outer, Deformations):
            return self.outer.mean_field(self.outer.weights_at(self.outer.centre - points))
        if self.ball is None:
            return self.images.new_zeros((len(points), 2 * self.images[0, 0].numel()))
        wanted = points.reshape(self.images.shape).sum(1, keepdim=True)
        single = self.images.sum(1, keepdim=True)
        low, high = _ends(single, self.ball)
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            below = deform(single, middle) < wanted
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return low.flatten(1)

    def select(self, index: Any) -> "Canvas":
        """Some of the images."""
        return Canvas(self.images[index], self.outer.select(index), self.ball)


def _ends(images: Float[Tensor, "batch 1 height width"], ball: Ball) -> tuple[Tensor, Tensor]:
    """Fields that make every pixel nearly as small, and as large, as it can be."""
    points = torch.as_tensor(ball.fitted).to(images)
    values = patches(images, ball.reach)[:, 0] @ torch.as_tensor(ball.weights(ball.fitted)).to(images)
    low, high = (points[chosen].permute(0, 3, 1, 2) for chosen in (values.argmin(-1), values.argmax(-1)))
    return low, high
