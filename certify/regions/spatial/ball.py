"""Where a bilinear interpolation is least on a disc, and how low it is.

F is bilinear on every unit cell between integer points. On the part of a cell that lies in the disc
`|v|_t <= delta`, F is least on the part's boundary: an inner critical point of a bilinear function is a saddle, or F
is affine there. On axis-parallel pieces of the boundary F is affine, so their ends suffice: integer points and the
points where grid lines cut the disc's rim. What is left are the slanted pieces of the rim:

* t = inf: there are none.
* t = 1: segments, on which F is a quadratic; its stationary point, clipped to the segment, suffices.
* t = 2: arcs. In the octant 0 <= y <= x, with tan = y / x in [0, 1] and F = alpha + beta x + gamma y + kappa x y, the
  derivative along the arc, over the cosine, is

      phi(tan) = delta (gamma - beta tan) + kappa delta^2 psi(tan) ,   psi(tan) = (1 - tan^2) / sqrt(1 + tan^2) ,

  and psi is concave on [0, 1]. So phi' is monotone: one bisection finds where phi turns, and one on either side finds
  each of its at most two roots.

`docs/spatial.md` has the proofs, of the rounding as well: an inexact point costs as much as rounding the values
does, times a small factor.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from math import ceil, sqrt

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

# The values are off by at most this many units of roundoff, relative to the largest entry and (1 + delta)^2.
_ROUNDINGS = 512
# Halvings of an arc: at a stationary point an error of 2^-28 costs its square.
_BISECTIONS = 28
# Points on every slanted piece that planes are fitted to.
_ON_RIM = 7

Points = Float[np.ndarray, "points 2"]


@dataclass(frozen=True, eq=False)
class _Rim:
    """Slanted pieces of the rim, each inside one cell, in the cell's own axes (mirrored and swapped: 0 <= y, x).

    Attributes:
        corners: positions of the cell's corners in a patch: (0, 0), (1, 0), (0, 1), (1, 1) in the axes (x, y).
        base: x and y of the corner (0, 0).
        ends: x at both ends for t = 1; tan = y / x for t = 2.
    """

    corners: Int[np.ndarray, "pieces 4"]
    base: Float[np.ndarray, "pieces 2"]
    ends: Float[np.ndarray, "pieces 2"]


@dataclass(frozen=True)
class Ball:
    """The disc `|v|_order <= delta` on the integer grid, delta > 0.

    Attributes:
        delta: radius, in pixels.
        order: 1, 2 or infinity.
    """

    delta: float
    order: float

    @property
    def reach(self) -> int:
        """Integer points up to here matter, in each direction."""
        return max(1, ceil(self.delta))

    def lengths(self, vectors: Float[Tensor, "batch 2 *shape"]) -> Float[Tensor, "batch *shape"]:
        """Their norms."""
        return torch.linalg.vector_norm(vectors, self.order, dim=1)

    def _half(self, offset: float) -> float:
        """Half the width of the disc at a distance from an axis."""
        if self.order == 1:
            return self.delta - abs(offset)
        return self.delta if self.order == np.inf else sqrt(max(self.delta**2 - offset**2, 0.0))

    @cached_property
    def grid(self) -> Points:
        """Integer points of a patch, row by row."""
        line = np.arange(-self.reach, self.reach + 1.0)
        return np.stack(np.meshgrid(line, line), axis=-1).reshape(-1, 2)

    @cached_property
    def points(self) -> Points:
        """Integer points inside, cuts of grid lines with the rim, corners of the rim (t = 2: between its octants)."""
        inside = self.grid[np.linalg.norm(self.grid, self.order, axis=1) <= self.delta]
        lines = [float(i) for i in range(-self.reach, self.reach + 1) if abs(i) <= self.delta]
        cuts = [(i, sign * self._half(i)) for i in lines for sign in (-1.0, 1.0)]
        far = self.delta if self.order == np.inf else self.delta / sqrt(2)
        corners = [] if self.order == 1 else [(x, y) for x in (-far, far) for y in (-far, far)]
        found = [*inside.tolist(), *cuts, *((y, x) for x, y in cuts), *corners]
        return np.unique(np.array(found), axis=0)

    @cached_property
    def hinted(self) -> Points:
        """These, and for t = 1 the middle of every slanted piece of the rim; for t = 2 they are dense enough."""
        if self.order == 2:
            return self.points
        middles = [_along(self, piece)[_ON_RIM // 2] for piece in range(len(self._rim.ends))]
        return np.concatenate([self.points, np.array(middles).reshape(-1, 2)])

    @cached_property
    def fitted(self) -> Points:
        """These, and some on every slanted piece of the rim."""
        return np.concatenate([self.points, *(_along(self, piece) for piece in range(len(self._rim.ends)))])

    def weights(self, points: Points) -> Float[np.ndarray, "n points"]:
        """The value at a point is the product of its column with a patch."""
        side = 2 * self.reach + 1
        cell = np.clip(np.floor(points), -self.reach, self.reach - 1)
        share = points - cell
        result = np.zeros((side * side, len(points)))
        for right in (0, 1):
            for down in (0, 1):
                weight = np.abs(1 - right - share[:, 0]) * np.abs(1 - down - share[:, 1])
                row, column = cell[:, 1] + self.reach + down, cell[:, 0] + self.reach + right
                result[(row * side + column).astype(int), np.arange(len(points))] += weight
        return result

    @cached_property
    def _rim(self) -> _Rim:
        pieces = (
            [] if self.order == np.inf else [_mirrored(self, cell, signs, swap) for cell, signs, swap in _cells(self)]
        )
        kept = [piece for piece in pieces if piece is not None]
        corners, base, ends = zip(*kept, strict=True) if kept else ((), (), ())
        return _Rim(
            np.array(corners, dtype=int).reshape(-1, 4),
            np.array(base, dtype=float).reshape(-1, 2),
            np.array(ends, dtype=float).reshape(-1, 2),
        )

    def least(self, values: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch"]:
        """A lower bound of F on the disc, below the minimum by rounding only; `values` are patches."""
        weights = torch.as_tensor(self.weights(self.points)).to(values)
        found = (values @ weights).amin(-1)
        if len(self._rim.ends):
            found = _on_segments(self, values, found) if self.order == 1 else _on_arcs(self, values, found)
        return found - self._slack(values)

    def extremes(self, values: Float[Tensor, "*batch n"]) -> tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch"]]:
        """The range of F on the disc, rounded outward."""
        return self.least(values), -self.least(-values)

    def _slack(self, values: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch"]:
        return _ROUNDINGS * 2.0**-53 * (1 + self.delta) ** 2 * values.abs().amax(-1)


def _cells(ball: Ball) -> list[tuple[tuple[int, int], tuple[int, int], bool]]:
    """Cells of one quadrant, with the four mirror images; octants for arcs."""
    swaps = (False,) if ball.order == 1 else (False, True)
    signs = [(x, y) for x in (1, -1) for y in (1, -1)]
    cells = [(i, j) for i in range(ball.reach) for j in range(ball.reach)]
    return [(cell, sign, swap) for cell in cells for sign in signs for swap in swaps]


def _mirrored(
    ball: Ball, cell: tuple[int, int], signs: tuple[int, int], swap: bool
) -> tuple[list[int], tuple[int, int], tuple[float, float]] | None:
    """The piece of the rim in a cell, None where there is none."""
    ends = _segment(ball.delta, *cell) if ball.order == 1 else _arc(ball.delta, *cell)
    if ends is None:
        return None
    side, corners = 2 * ball.reach + 1, []
    for up in (0, 1):
        for right in (0, 1):
            x, y = signs[0] * (cell[0] + right), signs[1] * (cell[1] + up)
            x, y = (y, x) if swap else (x, y)
            corners.append((y + ball.reach) * side + x + ball.reach)
    return corners, cell, ends


def _segment(delta: float, i: int, j: int) -> tuple[float, float] | None:
    """x at both ends of x + y = delta in [i, i+1] x [j, j+1]."""
    first, last = max(float(i), delta - j - 1), min(i + 1.0, delta - j)
    return (first, last) if first < last else None


def _arc(delta: float, i: int, j: int) -> tuple[float, float] | None:
    """tan at both ends of x^2 + y^2 = delta^2 in [i, i+1] x [j, j+1] below the diagonal y = x."""
    inner, outer = sqrt(max(delta**2 - (j + 1) ** 2, 0.0)), sqrt(max(delta**2 - j**2, 0.0))
    x_first, x_last = max(float(i), inner, delta / sqrt(2)), min(i + 1.0, outer)
    if not 0 < x_first < x_last:
        return None
    low, high = (sqrt(max(delta**2 - x**2, 0.0)) / x for x in (x_last, x_first))
    return low, min(high, 1.0)


def _along(ball: Ball, piece: int) -> Points:
    """Some points on a piece of the rim, in the axes of the disc."""
    rim, shares = ball._rim, np.linspace(0, 1, _ON_RIM + 2)[1:-1]
    first, last = rim.ends[piece]
    along = first + shares * (last - first)
    if ball.order == 1:
        own = np.stack([along, ball.delta - along], 1)
    else:
        own = ball.delta * np.stack([np.ones_like(along), along], 1) / np.sqrt(1 + along**2)[:, None]
    origin, right, up = (ball.grid[corner] for corner in rim.corners[piece, :3])
    local = own - rim.base[piece]
    return origin + local[:, :1] * (right - origin) + local[:, 1:] * (up - origin)


def _pieces(ball: Ball, values: Float[Tensor, "*batch n"]) -> tuple[Tensor, ...]:
    """On every piece: the value at the cell's corner, the slopes from it, and the mixed coefficient."""
    corner = values[..., torch.as_tensor(ball._rim.corners, device=values.device)]
    origin, right, up, far = corner.unbind(-1)
    return origin, right - origin, up - origin, (far - right) - (up - origin)


def _at(parts: tuple[Tensor, ...], x: Tensor, y: Tensor) -> Tensor:
    """The value at local coordinates of the cells."""
    origin, slope_x, slope_y, mixed = parts
    return origin + slope_x * x + slope_y * y + mixed * (x * y)


def _on_segments(ball: Ball, values: Float[Tensor, "*batch n"], found: Float[Tensor, "*batch"]) -> Tensor:
    """The least value on the segments x + y = delta, where it is below what was found at their ends."""
    rim = ball._rim
    base, ends = (torch.as_tensor(v).to(values) for v in (rim.base, rim.ends))
    parts = _pieces(ball, values)
    total = ball.delta - base.sum(1)
    first, last = ends[:, 0] - base[:, 0], ends[:, 1] - base[:, 0]
    # Where the mixed coefficient is zero F is affine, and any point will do.
    turn = (total + (parts[1] - parts[2]) / parts[3]) / 2
    x = torch.nan_to_num(turn, nan=0.0).clamp(first, last)
    return torch.minimum(found, _at(parts, x, total - x).amin(-1))


def _on_arcs(ball: Ball, values: Float[Tensor, "*batch n"], found: Float[Tensor, "*batch"]) -> Tensor:
    """The least value at the stationary points of the arcs, where it is below what was found at their ends.

    Along an arc of angle w, F is above the lower of its ends by at least -M w^2 / 8, M a bound of its second
    derivative in the angle: few arcs matter.
    """
    base, ends = (torch.as_tensor(v).to(values) for v in (ball._rim.base, ball._rim.ends))
    parts = _pieces(ball, values)
    beta, gamma = parts[1] - parts[3] * base[:, 1], parts[2] - parts[3] * base[:, 0]
    most = ball.delta * (beta.abs() + gamma.abs() + 2 * ball.delta * parts[3].abs())
    lowest = torch.minimum(*(_at(parts, *_on_circle(ball.delta, end, base)) for end in ends.T))
    angle = (ends[:, 1].atan() - ends[:, 0].atan()) * 1.0001
    matters = lowest - most * angle.square() / 8 < found.unsqueeze(-1)
    index = matters.nonzero(as_tuple=True)
    if len(index[0]) == 0:
        return found
    own = tuple(part[index] for part in (*parts, beta, gamma))
    least = _on_chosen_arcs(ball.delta, own, base[index[-1]], ends[index[-1]])
    owner = matters.reshape(-1, matters.shape[-1]).nonzero()[:, 0]
    return found.flatten().scatter_reduce(0, owner, least, "amin").reshape(found.shape)


def _on_circle(delta: float, tan: Tensor, base: Float[Tensor, "*pieces 2"]) -> tuple[Tensor, Tensor]:
    """Local coordinates of the point with this y / x."""
    cosine = 1 / (1 + tan**2).sqrt()
    return delta * cosine - base[..., 0], delta * cosine * tan - base[..., 1]


def _on_chosen_arcs(
    delta: float, own: tuple[Tensor, ...], base: Float[Tensor, "arcs 2"], ends: Float[Tensor, "arcs 2"]
) -> Float[Tensor, " arcs"]:
    """The lower value of the at most two stationary points of each."""
    parts, mixed, (beta, gamma) = own[:4], own[3], own[4:]

    def along(tan: Tensor) -> Tensor:
        return gamma - beta * tan + mixed * delta * (1 - tan**2) / (1 + tan**2).sqrt()

    def turning(tan: Tensor) -> Tensor:
        return -beta - mixed * delta * tan * (3 + tan**2) / (1 + tan**2) ** 1.5

    first, last = ends.T
    turn = _root(turning, first, last)
    roots = (_root(along, first, turn), _root(along, turn, last))
    return torch.minimum(*(_at(parts, *_on_circle(delta, tan, base)) for tan in roots))


def _root(function: Callable[[Tensor], Tensor], low: Tensor, high: Tensor) -> Tensor:
    """Where a monotone function changes its sign, by bisection; an end where it does not."""
    rises = function(high) > function(low)
    for _ in range(_BISECTIONS):
        middle = low + (high - low) / 2
        before = (function(middle) < 0) == rises
        low, high = torch.where(before, middle, low), torch.where(before, high, middle)
    return low + (high - low) / 2
