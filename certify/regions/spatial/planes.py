"""Planes below the interpolation of an image on a disc.

Of all planes a + b.v below F on the disc, the one with the least total gap is highest at v = 0: the disc is
symmetric, so the integral of the gap is that of F less a times the area. That plane supports the convex envelope of
F at 0. It is found for finitely many points by a simplex method over triangles of points around 0, for all pixels
together. This gives a hint for b only: F - b.v is bilinear on the same cells, so a is its least value on the disc,
by the same closed forms as the intervals.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from certify.regions.spatial.ball import Ball

_PIVOTS = 60
# Where the envelope is supported, in radii: off centre, so that no triangle has a point or an edge there.
_OFF = (1.1e-5, 0.7e-5)

Plane = tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch 2"]]


def planes_below(ball: Ball, values: Float[Tensor, "*batch n"]) -> Plane:
    """a and b with a + b.v <= F(v) on the disc; `values` are patches.

    The square around the disc has planes as well: where its own is higher at 0, that is taken.
    """
    choices = [_supported(ball, values, ball.fitted)]
    if ball.order != torch.inf:
        choices.append(_supported(ball, values, Ball(ball.delta, torch.inf).points))
    heights = torch.stack([_height(ball, values, slope) for slope in choices])
    height, best = heights.max(0)
    slopes = torch.stack(choices)
    return height, slopes.gather(0, best[None, ..., None].expand_as(slopes[:1])).squeeze(0)


def _height(ball: Ball, values: Tensor, slope: Float[Tensor, "*batch 2"]) -> Float[Tensor, "*batch"]:
    """The highest plane with a slope, rounded down."""
    tilt = slope @ torch.as_tensor(ball.grid.T).to(values)
    return ball.least(values - tilt) - 2.0**-50 * tilt.abs().amax(-1)


def _supported(ball: Ball, values: Tensor, points) -> Float[Tensor, "*batch 2"]:  # type: ignore[no-untyped-def]
    """The slope of the plane that supports the envelope over some points, up to rounding."""
    where = torch.as_tensor(points).to(values)
    heights = (values @ torch.as_tensor(ball.weights(points)).to(values)).flatten(0, -2)
    ends = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]]).to(where) * ball.delta
    first = torch.stack([(where - end).abs().amax(1).argmin() for end in ends])
    triangle = first.expand(len(heights), 3)
    slope = torch.zeros_like(heights[:, :2])
    left = torch.arange(len(heights), device=values.device)
    for _ in range(_PIVOTS):
        slope[left], triangle, violated = _pivot(heights[left], where, triangle, ball.delta)
        left, triangle = left[violated], triangle[violated]
        if len(left) == 0:
            break
    return slope.unflatten(0, values.shape[:-1])


def _pivot(
    heights: Float[Tensor, "pixels points"], where: Float[Tensor, "points 2"], triangle: Tensor, delta: float
) -> tuple[Float[Tensor, "pixels 2"], Tensor, Tensor]:
    """The slope through a triangle; the triangle with the point furthest below; whether there is such a point."""
    corner = where[triangle]
    sides = torch.linalg.inv(corner[:, 1:] - corner[:, :1])
    at = heights.gather(1, triangle)
    slope = (sides @ (at[:, 1:] - at[:, :1]).unsqueeze(2)).squeeze(2)
    below = heights - slope @ where.T
    new = below.argmin(1)
    base = at[:, 0] - (slope * corner[:, 0]).sum(1)
    violated = below.gather(1, new[:, None])[:, 0] < base - 1e-12 * (1e-9 + heights.abs().amax(1))
    centre = torch.tensor(_OFF).to(where) * delta
    share, change = (_barycentric(sides, corner, point) for point in (centre, where[new]))
    ratio = torch.where(change > 1e-12, share / change, torch.inf)
    leaves = ratio.argmin(1, keepdim=True)
    return slope, triangle.scatter(1, leaves, new[:, None]), violated


def _barycentric(sides: Tensor, corner: Tensor, point: Tensor) -> Float[Tensor, "pixels 3"]:
    rest = ((point - corner[:, 0]).unsqueeze(1) @ sides).squeeze(1)
    return torch.cat([1 - rest.sum(1, keepdim=True), rest], 1)
