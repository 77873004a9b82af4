"""Coordinates of the input in a relaxation, in which the region is within the unit ball or the unit box.

What the network sees of d are its first layer's rows, and what a constraint of the region sees. One ball sees the
length of d, so that the span of the rows is enough; so it is with one ellipsoid around a box,

    sum w_i (d_i - lower_i)(upper_i - d_i) >= 0 ,     w > 0 ,

which is implied by the box and has the box's strength once w are the optimal multipliers of its sides.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from certify.bounds.sdp.program import Matrix, Vector
from certify.bounds.sdp.target import Offsets, Target

_RANK = 1e-9
_LEAST_WIDTH = 1e-6


@dataclass(frozen=True, eq=False)
class Inputs:
    """Coordinates v with d = middle + map v, up to parts of d that matter neither to the network nor to the region.

    Attributes:
        middle: d at v = 0.
        map: `(n, r)`.
        radius: of the ball |v| <= 1 in d; None where v is in the unit box or in an ellipsoid.
        pixels: the inputs whose limits are constraints, each on its own or all of them in the ellipsoid.
        weights: w of the ellipsoid that is |v| <= 1; None for balls and boxes.
    """

    middle: Vector
    map: Matrix
    radius: float | None
    pixels: Int[np.ndarray, " pixels"]
    weights: Vector | None = None

    @staticmethod
    def of(target: Target, pixels: Int[np.ndarray, " pixels"]) -> "Inputs":
        """A box: all inputs, scaled. A ball: an orthonormal basis of the rows that matter and of the chosen pixels."""
        offsets, n = target.offsets, len(target.offsets.centre)
        if not offsets.has_ball:
            return Inputs(_middle(offsets), np.diag(half_widths(offsets)), None, np.arange(n))
        assert offsets.radius is not None
        useful = (offsets.lower[pixels] > -offsets.radius) | (offsets.upper[pixels] < offsets.radius)
        pixels = pixels[useful]
        basis = _basis(target.layers[0][0][target.needed], pixels)
        return Inputs(np.zeros(n), offsets.radius * basis.T, offsets.radius, pixels)

    @staticmethod
    def ellipsoid(target: Target, shares: Vector) -> "Inputs":
        """A box within sum shares_i ((d_i - middle_i) / half_i)^2 <= 1; the shares are positive and add up to 1."""
        half = half_widths(target.offsets)
        axes = half / np.sqrt(shares)
        basis = _basis(target.layers[0][0][target.needed] * axes, np.zeros(0, dtype=int))
        every = np.arange(len(half))
        return Inputs(_middle(target.offsets), axes[:, None] * basis.T, None, every, shares / half**2)

    @property
    def rank(self) -> int:
        """Number of coordinates."""
        return self.map.shape[1]

    @property
    def in_unit_ball(self) -> bool:
        """Whether |v| <= 1, rather than every |v_i| <= 1."""
        return self.radius is not None or self.weights is not None

    def squares(self, moments: Matrix) -> Vector:
        """The mean of (d_i - middle_i)^2 for moments of (1, v, ...)."""
        v = slice(1, 1 + self.rank)
        squares: Vector = np.einsum("ir,rs,is->i", self.map, moments[v, v] / moments[0, 0], self.map, optimize=True)
        return squares

    def sample(self, target: Target, count: int, generator: np.random.Generator) -> Float[np.ndarray, "count r"]:
        """Coordinates of random points of the region; of a ball and a box together, of points in the box."""
        if self.weights is not None:
            v = generator.uniform(-1, 1, (count, len(self.middle))) * half_widths(target.offsets)
            return v @ (self.weights[:, None] * self.map)
        if self.radius is None:
            return generator.uniform(-1, 1, (count, self.rank))
        v = generator.standard_normal((count, self.rank))
        v *= generator.uniform(0, 1, (count, 1)) ** (1 / 3) / np.linalg.norm(v, axis=1, keepdims=True)
        d = np.clip(v @ self.map.T, target.offsets.lower, target.offsets.upper)
        return d @ self.map / self.radius**2


def half_widths(offsets: Offsets) -> Vector:
    """Of the box, and a little where it has none."""
    half = (offsets.upper - offsets.lower) / 2
    return np.maximum(half, max(_LEAST_WIDTH * half.max(), np.finfo(float).tiny))


def _middle(offsets: Offsets) -> Vector:
    return (offsets.lower + offsets.upper) / 2


def _basis(rows: Matrix, pixels: Int[np.ndarray, " pixels"]) -> Matrix:
    """Orthonormal rows that span the given rows and the units of the pixels, these first."""
    n = rows.shape[1]
    if len(rows) + len(pixels) >= n:
        return np.eye(n)
    units = np.zeros((len(pixels), n))
    units[np.arange(len(pixels)), pixels] = 1
    rest = rows.copy()
    rest[:, pixels] = 0
    _, sizes, right = np.linalg.svd(rest, full_matrices=False)
    return np.concatenate([units, right[sizes > _RANK * max(sizes.max(initial=0.0), 1e-300)]])
