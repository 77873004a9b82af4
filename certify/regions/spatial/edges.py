"""Differences between neighbouring pixels, and multipliers of their limits.

Edges join every pixel to the next one in its row and in its column. A tensor on edges is a pair: along rows
`(..., height, width - 1)` and along columns `(..., height - 1, width)`.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad, softshrink

# Steps: of the weights, relative to the mean range of the costs; and the product of both, in units where it converges.
_WEIGHTS, _PRODUCT = 0.5, 1.8
# Every so many steps no point is left so far behind that its weight cannot come back soon.
_RECENTRED, _LEAST_LOGIT = 4, -5.0


@dataclass(frozen=True, eq=False)
class OnEdges:
    """One number for every edge and component."""

    along: Float[Tensor, "*batch height width_1"]
    down: Float[Tensor, "*batch height_1 width"]

    @staticmethod
    def of(field: Float[Tensor, "*batch height width"]) -> "OnEdges":
        """Differences: the next pixel less this one."""
        return OnEdges(field.diff(dim=-1), field.diff(dim=-2))

    def adjoint(self) -> Float[Tensor, "*batch height width"]:
        """The transpose of `of`: what comes in at a pixel less what goes out."""
        total = self.along.new_zeros((*self.along.shape[:-1], self.along.shape[-1] + 1))
        total[..., 1:] += self.along
        total[..., :-1] -= self.along
        total[..., 1:, :] += self.down
        total[..., :-1, :] -= self.down
        return total

    def sizes(self) -> Float[Tensor, " batch"]:
        """Sum of absolute values for each entry of the batch."""
        return self.along.abs().flatten(1).sum(1) + self.down.abs().flatten(1).sum(1)

    def largest(self) -> Float[Tensor, " batch"]:
        """Largest absolute value for each entry of the batch; 0 without edges."""
        parts = [v.abs().flatten(1) for v in (self.along, self.down) if v.numel()]
        zero = self.along.new_zeros((len(self.along), 1))
        return torch.cat([zero, *parts], 1).amax(1)


@dataclass(frozen=True, eq=False)
class Saddle:
    """A pair for the coupled minimum: multipliers of the edges, and weights on points of the disc at every pixel."""

    multipliers: OnEdges
    weights: Float[Tensor, "rows points height width"]


def saddle(
    costs: Float[Tensor, "rows points height width"],
    points: Float[Tensor, "points 2"],
    gamma: float,
    steps: int,
    *,
    wanted: bool = True,
) -> Saddle:
    """An approximate saddle point of

        min over weights w_p on the simplex, max over f    sum_p cost_p.w_p + f.D(sum_k w_k v_k) - gamma |f|_1 ,

    by a primal-dual method with entropic steps on the weights and the mean of the iterates (Chambolle & Pock, "On the
    ergodic convergence rates of a first-order primal-dual algorithm", Mathematical Programming 2016). Nothing here
    is rounded outward: any f gives a bound, which is judged elsewhere.

    Args:
        costs: of every point at every pixel.
        points: v_k.
        gamma: limit of the differences.
        steps: of the method.
        wanted: whether the weights are; if not, they are zeros.
    """
    height, width = costs.shape[2:]
    flat, reach = costs.flatten(2), max(float(points.square().sum(1).max()), 1e-30)
    scale = (flat.amax(1) - flat.amin(1)).mean(1).clamp(min=1e-30)[:, None, None]
    pull, places = flat * (_WEIGHTS / scale), points.T.expand(len(flat), -1, -1)
    size, tilt = _PRODUCT / (8 * reach * _WEIGHTS), _WEIGHTS * places.transpose(1, 2)
    logits, mean = torch.zeros_like(flat), torch.zeros_like(flat)
    field = ahead = (places @ torch.softmax(logits, 1)).unflatten(2, (height, width))
    along, down = torch.zeros_like(field.diff(dim=-1)), torch.zeros_like(field.diff(dim=-2))
    totals = torch.zeros_like(along), torch.zeros_like(down)
    for count in range(1, steps + 1):
        along = softshrink(along.add(ahead.diff(dim=-1), alpha=size), size * gamma)
        down = softshrink(down.add(ahead.diff(dim=-2), alpha=size), size * gamma)
        out = pad(along, (1, 1)).diff(dim=-1) + pad(down, (0, 0, 1, 1)).diff(dim=-2)  # less what comes in
        logits.sub_(pull).baddbmm_(tilt, out.flatten(2))
        if count % _RECENTRED == 0:
            logits.sub_(logits.amax(1, keepdim=True)).clamp_(min=_LEAST_LOGIT)
        weights = torch.softmax(logits, 1)
        moved = (places @ weights).unflatten(2, (height, width))
        ahead, field = moved.mul(2).sub_(field), moved
        # Later iterates count more: the mean converges like the last one, and does not oscillate.
        totals[0].add_(along, alpha=count)
        totals[1].add_(down, alpha=count)
        if wanted:
            mean.add_(weights, alpha=count)
    share = 2 / (steps * (steps + 1))
    back = share * scale.unsqueeze(3)
    return Saddle(OnEdges(totals[0] * back, totals[1] * back), (mean * share).unflatten(2, (height, width)))
