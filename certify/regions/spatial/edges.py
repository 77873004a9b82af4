"""Differences between neighbouring pixels, and multipliers of their limits.

Edges join every pixel to the next one in its row and in its column. A tensor on edges is a pair: along rows
`(..., height, width - 1)` and along columns `(..., height - 1, width)`.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

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

    def shrunk(self, step: "OnEdges", size: float, limit: float) -> "OnEdges":
        """self + size * step, then nearer to zero by size * limit."""
        return OnEdges(*(_soft(torch.add(f, d, alpha=size), size * limit) for f, d in self._with(step)))

    def plus(self, other: "OnEdges") -> "OnEdges":
        """The sum."""
        return OnEdges(*(a + b for a, b in self._with(other)))

    def add_(self, other: "OnEdges", factor: int) -> None:
        """Adds a multiple in place."""
        self.along.add_(other.along, alpha=factor)
        self.down.add_(other.down, alpha=factor)

    def times(self, factor: float | Tensor) -> "OnEdges":
        """A multiple."""
        return OnEdges(self.along * factor, self.down * factor)

    def _with(self, other: "OnEdges") -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        return (self.along, other.along), (self.down, other.down)


def _soft(value: Tensor, limit: float) -> Tensor:
    return torch.nn.functional.softshrink(value, limit)


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
    shape, reach = costs.shape[2:], float(points.square().sum(1).max())
    flat = costs.flatten(2)
    scale = (flat.amax(1) - flat.amin(1)).mean(1).clamp(min=1e-30)[:, None, None]
    pull, places = flat * (_WEIGHTS / scale), points.expand(len(flat), -1, -1)
    size, tilt = _PRODUCT / (8 * max(reach, 1e-30) * _WEIGHTS), places * -_WEIGHTS
    logits, mean = torch.zeros_like(flat), torch.zeros_like(flat)
    field = ahead = _means(places, torch.softmax(logits, 1), shape)
    edges = OnEdges.of(torch.zeros_like(field))
    total = edges.times(1.0)
    for count in range(1, steps + 1):
        edges = edges.shrunk(OnEdges.of(ahead), size, gamma)
        logits.sub_(pull).baddbmm_(tilt, edges.adjoint().flatten(2))
        if count % _RECENTRED == 0:
            logits.sub_(logits.amax(1, keepdim=True)).clamp_(min=_LEAST_LOGIT)
        weights = torch.softmax(logits, 1)
        moved = _means(places, weights, shape)
        ahead, field = torch.add(moved - field, moved), moved
        # Later iterates count more: the mean converges like the last one, and does not oscillate.
        total.add_(edges, count)
        if wanted:
            mean.add_(weights, alpha=count)
    share = 2 / (steps * (steps + 1))
    return Saddle(total.times(share * scale.unsqueeze(3)), (mean * share).unflatten(2, shape))


def _means(
    places: Float[Tensor, "rows points 2"], weights: Float[Tensor, "rows points n"], shape: torch.Size
) -> Tensor:
    return (places.transpose(1, 2) @ weights).unflatten(2, shape)
