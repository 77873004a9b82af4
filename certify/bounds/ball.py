"""A linear lower bound of c.relu(z) over a ball and a box together, and its composition through a network.

For any g, any lam > 0, and z with |z - m|_2 <= R and l <= z <= u,

    c.relu(z) >= g.z + sum_i min over s in [l_i, u_i] of { c_i relu(s) - g_i s + lam (s - m_i)^2 / 2 } - lam R^2 / 2 ,

because lam (|z - m|^2 - R^2) / 2 <= 0 there. Each minimum is over two intervals, on each of which the function is a
convex quadratic. Without the box this is the lemma of Chiu, Chen, Zhang et al., "SDP-CROWN" (ICML 2025), which couples
all neurons of a layer by one semidefinite constraint; with it, neurons that are stable cost nothing. For lam = 0 only
the box is left.

Everything is batched, `(batch, rows, n)`: rows are linear forms on the values of the last layer.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from certify.bounds.definite import squared_norm
from certify.bounds.dense import DenseNetwork
from certify.regions import AbstractRegion, LpBall
from certify.rounding import down, gamma, up

_EPS = torch.finfo(torch.float64).eps


@dataclass(frozen=True, eq=False)
class Layer:
    """One hidden layer on the regions of a batch: z = W a + b, |z - middle|_2 <= radius, lower <= z <= upper.

    Attributes:
        weight, bias: W and b.
        middle: the centre of the ball, `(batch, 1, n)`.
        radius: `(batch, 1, 1)`, infinite where no ball is used.
        lower, upper: the box, `(batch, 1, n)`; infinite where none is used.
    """

    weight: Float[Tensor, "n m"]
    bias: Float[Tensor, " n"]
    middle: Float[Tensor, "batch 1 n"]
    radius: Float[Tensor, "batch 1 1"]
    lower: Float[Tensor, "batch 1 n"]
    upper: Float[Tensor, "batch 1 n"]

    @property
    def size(self) -> Float[Tensor, "batch 1 n"]:
        """The most that |relu(z)| can be."""
        return torch.minimum(self.upper.clamp(min=0), self.middle.clamp(min=0) + self.radius)


@dataclass(frozen=True, eq=False)
class Balls:
    """The hidden layers below some layer, on the regions of a batch."""

    layers: tuple[Layer, ...]
    region: AbstractRegion

    @cached_property
    def gram(self) -> Float[Tensor, "n n"]:
        """W_1 W_1'."""
        return self.layers[0].weight @ self.layers[0].weight.T

    def to(self, dtype: torch.dtype) -> "Balls":
        """In another precision, rounded to the nearest: for searches, not for proofs."""
        parts = (
            Layer(*(w.to(dtype) for w in (v.weight, v.bias, v.middle, v.radius, v.lower, v.upper))) for v in self.layers
        )
        return Balls(tuple(parts), self.region.to(dtype))


@dataclass(frozen=True, eq=False)
class Choice:
    """What the lemma leaves free, for every row, from the first layer to the last.

    Attributes:
        slopes: g, `(batch, rows, n_k)`.
        weights: lam, `(batch, rows, 1)`; 0 uses the box alone.
    """

    slopes: tuple[Float[Tensor, "batch rows _"], ...]
    weights: tuple[Float[Tensor, "batch rows 1"], ...]


def input_radius(region: AbstractRegion) -> Float[Tensor, " batch"]:
    """Of an l2 ball around the centres that holds the region, rounded up."""
    if isinstance(region, LpBall) and region.norm != "linf":
        return torch.full_like(region.centre[:, 0], region.eps)
    lower, upper = region.bounding_box()
    half = up(torch.maximum(upper - region.centre, region.centre - lower))
    return torch.linalg.vector_norm(half, dim=1) * (1 + gamma(half.shape[1], half.dtype))


class Ball(NamedTuple):
    """|z - middle|_2 <= radius, and what each entry of the middle is rounded off at most."""

    middle: Float[Tensor, "batch n"]
    radius: Float[Tensor, " batch"]
    off: Float[Tensor, "batch n"]


def balls_of(network: DenseNetwork, region: AbstractRegion) -> list[Ball]:
    """Balls around z_1, ..., z_L: centres are the values at the region's centre, in floating point.

    ReLU does not increase distances, so R_k = |W_k|_2 R_{k-1}, with proved bounds of the norms, and what the centres
    are rounded off is added.
    """
    value, radius = region.centre, input_radius(region)
    found = []
    for W, b in network.hidden:
        weight, bias = torch.as_tensor(W).to(value), torch.as_tensor(b).to(value)
        norm = squared_norm(W) ** 0.5 * (1 + 4 * _EPS)
        off = gamma(W.shape[1], torch.float64) * (value.abs() @ weight.abs().T + bias.abs())
        radius = (radius * norm + torch.linalg.vector_norm(off, dim=1)) * (1 + gamma(W.shape[0], torch.float64))
        middle = value @ weight.T + bias
        found.append(Ball(middle, radius, off))
        value = middle.clamp(min=0)
    return found


def evaluate(balls: Balls, rows: Float[Tensor, "batch rows n"], choice: Choice) -> Float[Tensor, "batch rows"]:
    """The bound of rows.relu(z) of the last layer at given parameters; differentiable, not rounded."""
    total: Tensor | float = 0.0
    for k in range(len(balls.layers) - 1, -1, -1):
        layer, g, lam = balls.layers[k], choice.slopes[k], choice.weights[k]
        total = total + least(layer, rows, g, lam).sum(2) - _payment(lam, layer.radius)
        if k > 0:
            total, rows = total + g @ layer.bias, g @ layer.weight
    return total + reach(balls, choice.slopes[0])


def reach(balls: Balls, g: Float[Tensor, "batch rows n"]) -> Float[Tensor, "batch rows"]:
    """min g.z_1 over the region, differentiable: its gradient is z_1 at the minimiser."""
    first, region = balls.layers[0], balls.region
    if isinstance(region, LpBall) and region.norm == "l2":
        # Without the domain: never above the minimum with it, and far cheaper to differentiate.
        tiny = torch.finfo(g.dtype).tiny
        length = ((g @ balls.gram) * g).sum(2).clamp(min=tiny).sqrt()
        return (g * first.middle).sum(2) - region.eps * length
    rows = g @ first.weight
    owners = torch.arange(len(rows), device=rows.device).repeat_interleave(rows.shape[1])
    points = region.select(owners).minimiser(rows.detach().flatten(0, 1)).reshape(rows.shape)
    return (rows * points).sum(2) + g @ first.bias


def _payment(lam: Tensor, radius: Tensor) -> Tensor:
    return torch.where(lam > 0, lam * radius.square() / 2, 0.0).squeeze(2)


def least(layer: Layer, c: Tensor, g: Tensor, lam: Tensor) -> Float[Tensor, "batch rows n"]:
    """The minimum of c relu(s) - g s + lam (s - m)^2 / 2 over [l, u], entry by entry; not rounded."""
    above = _quadratic(c - g, lam, layer.middle, layer.lower.clamp(min=0), layer.upper.clamp(min=0))
    below = _quadratic(-g, lam, layer.middle, layer.lower.clamp(max=0), layer.upper.clamp(max=0))
    return _on_live_sides(layer, above, below)


def _on_live_sides(layer: Layer, above: Tensor, below: Tensor) -> Tensor:
    return torch.where(layer.lower >= 0, above, torch.where(layer.upper <= 0, below, torch.minimum(above, below)))


def _quadratic(a: Tensor, lam: Tensor, middle: Tensor, low: Tensor, high: Tensor) -> Tensor:
    point = _minimiser(a, lam, middle, low, high)
    return a * point + lam / 2 * (point - middle).square()


def _minimiser(a: Tensor, lam: Tensor, middle: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Where a s + lam (s - m)^2 / 2 is least in [low, high]."""
    vertex = middle - a / lam.clamp(min=torch.finfo(lam.dtype).tiny)
    return torch.where(lam > 0, vertex, torch.where(a > 0, low, high)).clamp(low, high)


def proved(balls: Balls, rows: Float[Tensor, "batch rows n"], choice: Choice) -> Float[Tensor, "batch rows"]:
    """The same bound, rounded down: it holds in real arithmetic. NaN becomes minus infinity.

    What is paid for: every sum and product; coefficients c = g W that are off by a rounded product, at the size of
    relu(z); and minimisers that are not exactly where the quadratic is least.
    """
    total = torch.zeros_like(rows[..., 0])
    error = torch.zeros_like(total)
    off = torch.zeros_like(rows)
    for layer, g, lam in reversed(list(zip(balls.layers, choice.slopes, choice.weights, strict=True))):
        values, lost = _least_rounded(layer, rows, g, lam)
        payment, shift = _payment(lam, layer.radius), g @ layer.bias
        rounding = gamma(values.shape[2], torch.float64)
        total = total + values.sum(2) - payment + shift
        error = error + lost.sum(2) + (off * layer.size).nan_to_num(posinf=torch.inf).sum(2)
        error = error + rounding * (values.abs().sum(2) + payment + g.abs() @ layer.bias.abs() + total.abs())
        rows = g @ layer.weight
        off = gamma(g.shape[2], torch.float64) * (g.abs() @ layer.weight.abs())
    region = balls.region
    lower, upper = region.bounding_box()
    error = error + (off * torch.maximum(lower.abs(), upper.abs()).unsqueeze(1)).sum(2)
    end = region.minimum(rows)
    error = (error + 4 * _EPS * (end.abs() + total.abs())) * (1 + gamma(64 + 8 * len(balls.layers), torch.float64))
    return torch.nan_to_num(down(total + end - error), nan=-torch.inf, posinf=-torch.inf, neginf=-torch.inf)


def _least_rounded(layer: Layer, c: Tensor, g: Tensor, lam: Tensor) -> tuple[Tensor, Tensor]:
    """The minima and, entry by entry, how far above the truth rounding can have put them."""
    size = c.abs() + g.abs()
    above, lost_above = _rounded(c - g, size, lam, layer.middle, layer.lower.clamp(min=0), layer.upper.clamp(min=0))
    below, lost_below = _rounded(-g, size, lam, layer.middle, layer.lower.clamp(max=0), layer.upper.clamp(max=0))
    return _on_live_sides(layer, above, below), torch.maximum(lost_above, lost_below)


def _rounded(a: Tensor, size: Tensor, lam: Tensor, middle: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """q(s) = a s + lam (s - m)^2 / 2 at a computed s, and a bound of q(s) - min q over [low, high] and its rounding.

    q(t) >= q(s) + q'(s) (t - s) + lam (t - s)^2 / 2, so that min q >= q(s) - d^2 / (2 lam) and, with d the size of
    q'(s) towards where t can lie, min q >= q(s) - d (high - low).
    """
    point = _minimiser(a, lam, middle, low, high)
    step = point - middle
    value = a * point + lam / 2 * step.square()
    slope, off = a + lam * step, 8 * _EPS * (size + lam * (point.abs() + middle.abs()))
    right = torch.where(point < high, off - slope, 0.0)
    left = torch.where(point > low, off + slope, 0.0)
    drop = torch.maximum(right, left).clamp(min=0)
    width = torch.where(drop > 0, drop * (high - low), 0.0)
    lost = torch.where(lam > 0, torch.fmin(drop.square() / (2 * lam), width), width)
    rounding = 8 * _EPS * (size * point.abs() + lam * (point.abs() + middle.abs()).square())
    return value, lost * (1 + 16 * _EPS) + rounding
