"""What is bounded: one margin of one input, with bounds on the hidden layers; and multipliers that bound it."""

from dataclasses import dataclass, field
from enum import IntEnum
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from certify.bounds.base import Bounds
from certify.bounds.dense import DenseNetwork
from certify.errors import InvalidInputError
from certify.ir.chain import Layer
from certify.regions import AbstractRegion, LpBall
from certify.rounding import down, up

Vector = Float[np.ndarray, " _"]
Matrix = Float[np.ndarray, "_ _"]


@dataclass(frozen=True, eq=False)
class Offsets:
    """The region of one input: x = centre + d with lower <= d <= upper and, where a radius is given, |d|_2 <= radius.

    l1 balls become the l2 balls and boxes around them.

    Attributes:
        centre: x_0.
        radius: of the ball; None where the region is a box.
        lower, upper: finite; at least as wide as the region, after rounding too.
    """

    centre: Vector
    radius: float | None
    lower: Vector
    upper: Vector

    @staticmethod
    def of(region: AbstractRegion, batch: int = 0) -> "Offsets":
        """Of one input of a batch."""
        one = region.select([batch]).to(torch.float64)
        radius = float(one.eps) if isinstance(one, LpBall) and one.norm != "linf" else None
        box = one.bounding_box()
        centre, low, high = (
            v[0].cpu().numpy() for v in (one.centre, down(box[0] - one.centre), up(box[1] - one.centre))
        )
        return Offsets(centre, radius, np.minimum(low, 0.0), np.maximum(high, 0.0))

    @property
    def has_ball(self) -> bool:
        """Whether the ball says more than the box."""
        return self.radius is not None and self.radius > 0

    def project(self, d: Vector) -> Vector:
        """A point of the region near x_0 + d, up to rounding."""
        d = np.clip(d, self.lower, self.upper)
        length = float(np.linalg.norm(d))
        if self.radius is not None and length > self.radius:
            d = d * (self.radius / length)
        return self.centre + d


class Factor(IntEnum):
    """What is at least 0 for every neuron: y = relu(z), w = y - z and their distances to the bounds, and those of z."""

    Y = 0
    W = 1
    BELOW_UPPER = 2  # u - y
    ABOVE_LOWER = 3  # -l - w
    Z_LOW = 4  # z - l
    Z_HIGH = 5  # u - z


@dataclass(frozen=True, eq=False)
class Target:
    """min objective.relu(z_L) + constant over z_1 = W_1 x + b_1, z_k = W_k relu(z_{k-1}) + b_k, x in the region.

    Attributes:
        layers: (W_1, b_1), ..., (W_L, b_L).
        lower, upper: bounds of z_1, ..., z_L, taken as given.
        objective, constant: of the last layer's relu; `slack` is what both together can be rounded off.
        offsets: the region.
        split: (layer, neuron) of neurons whose bounds do not follow from the rest, as they are those of one case.
    """

    layers: tuple[Layer, ...]
    lower: tuple[Vector, ...]
    upper: tuple[Vector, ...]
    objective: Vector
    constant: float
    offsets: Offsets
    slack: float = 0.0
    split: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        for k, ((W, b), low, high) in enumerate(zip(self.layers, self.lower, self.upper, strict=True), 1):
            if not (W.shape[0] == len(b) == len(low) == len(high)):
                raise InvalidInputError(
                    f"layer {k} has weights {W.shape} and {len(b)} biases, but {len(low)} lower and {len(high)} upper"
                    " bounds; expected one of each for every row"
                )
            if not (np.isfinite(low).all() and np.isfinite(high).all()):
                raise InvalidInputError(f"layer {k} has infinite or NaN bounds; the relaxation needs a bounded box")

    @cached_property
    def unstable(self) -> tuple[Int[np.ndarray, " _"], ...]:
        """Numbers of the neurons of unknown phase, layer by layer."""
        return tuple(np.flatnonzero((low < 0) & (high > 0)) for low, high in zip(self.lower, self.upper, strict=True))

    @cached_property
    def active(self) -> tuple[Bool[np.ndarray, " _"], ...]:
        """Which neurons are their own pre-activation."""
        return tuple((low >= 0) & (high > 0) for low, high in zip(self.lower, self.upper, strict=True))

    @cached_property
    def factors(self) -> Int[np.ndarray, "factors 3"]:
        """(layer, neuron, kind of `Factor`): y, w, u - y, -l - w of the unstable ones, z - l, u - z of those split."""
        free = [(k, i, kind) for k, index in enumerate(self.unstable) for i in index for kind in range(4)]
        fixed = [(k, i, kind) for k, i in self.split for kind in (Factor.Z_LOW, Factor.Z_HIGH)]
        return np.array(free + fixed, dtype=int).reshape(-1, 3)

    @property
    def at_centre(self) -> float:
        """The objective at the region's centre, not rounded: no bound needs to be above."""
        value = self.offsets.centre
        for W, b in self.layers:
            value = np.maximum(W @ value + b, 0)
        return float(self.objective @ value + self.constant)

    @cached_property
    def needed(self) -> Int[np.ndarray, " _"]:
        """Numbers of the first layer's neurons whose z matters: not dead, or split."""
        return np.union1d(np.flatnonzero(self.upper[0] > 0), [i for k, i in self.split if k == 0]).astype(int)


@dataclass(frozen=True, eq=False)
class Cuts:
    """Products of two factors, of one neuron or of two, each with a multiplier.

    Attributes:
        left, right: rows (layer, neuron, kind), see `Factor`. The first four kinds are of unstable neurons.
        weights: at least 0.
    """

    left: Int[np.ndarray, "cuts 3"]
    right: Int[np.ndarray, "cuts 3"]
    weights: Vector

    @staticmethod
    def none() -> "Cuts":
        """No products."""
        return Cuts(np.zeros((0, 3), int), np.zeros((0, 3), int), np.zeros(0))


@dataclass(frozen=True, eq=False)
class Multipliers:
    """Of the constraints of the relaxation; everything but alpha is at least 0.

    With w = y - z, for every unstable neuron: alpha of y w = 0, beta of y (u - y) >= 0, gamma of w (-l - w) >= 0.
    Of the region: tau of radius^2 - |d|^2 >= 0 and, for the chosen pixels, nu of (d - lower)(upper - d) >= 0, `above`
    of d - lower >= 0 and `below` of upper - d >= 0. Of two factors >= 0: `cuts` of their product.
    """

    alpha: tuple[Vector, ...]
    beta: tuple[Vector, ...]
    gamma: tuple[Vector, ...]
    tau: float
    pixels: Int[np.ndarray, " pixels"]
    nu: Vector
    above: Vector
    below: Vector
    cuts: Cuts = field(default_factory=Cuts.none)


def targets_of(
    network: DenseNetwork, region: AbstractRegion, bounds: Bounds, rows: Matrix, constants: Vector, batch: int = 0
) -> list[Target]:
    """The margins rows.y + constants of one input of a batch."""
    W, b = network.output
    lower, upper = network.hidden_bounds(bounds, batch)
    offsets = Offsets.of(region, batch)
    most = np.maximum(upper[-1], 0) if upper else np.abs(offsets.centre)
    unit = 2 * (W.shape[0] + 4) * np.finfo(np.float64).eps
    found = []
    for row, constant in zip(rows, constants, strict=True):
        slack = unit * (np.abs(row) @ (np.abs(W) @ most + np.abs(b)) + abs(constant))
        total = float(row @ b + constant)
        found.append(Target(network.hidden, tuple(lower), tuple(upper), row @ W, total, offsets, float(slack)))
    return found
