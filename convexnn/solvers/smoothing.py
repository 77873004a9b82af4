"""What both slides share: smoothed activations, levels of smoothing, and the step's safeguards."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Levels:
    """Relative smoothing widths from ``start`` down to ``end``, by ``factor`` a level.

    An objective that is off by less than ``enough`` needs no finer level.
    """

    start: float
    end: float
    enough: float = 0.0
    factor: float = 0.1

    def next(self, level: float, error: float) -> float | None:
        """The next level, or None after the last."""
        if level <= self.end * 1.01 or error < self.enough:
            return None
        return max(level * self.factor, self.end)


@dataclass(frozen=True)
class Activations:
    """r(t) = (t + sqrt(t^2 + E^2)) / 2 at T = W X', neuron by neuron."""

    T: Float[Tensor, "k n"]
    E2: Float[Tensor, "k 1"]
    Q: Float[Tensor, "k n"]

    @staticmethod
    def at(T: Float[Tensor, "k n"], E2: Float[Tensor, "k 1"]) -> "Activations":
        """Activations of the smoothed ReLU."""
        return Activations(T, E2, torch.sqrt(T * T + E2))

    def doubled(self) -> Float[Tensor, "k n"]:
        """2 r(T), which saves a product."""
        return self.T + self.Q

    def smoothing_error(self) -> Float[Tensor, "k n"]:
        """r(T) - (T)_+, never negative."""
        return 0.5 * (self.Q - self.T.abs())


def squared_widths(
    T: Float[Tensor, "k n"], norms: Float[Tensor, " k"], level: float, typical: float, n_inputs: int
) -> Float[Tensor, "k 1"]:
    """E^2, relative to the typical size of x'w_j, or to its size on the data where that is smaller."""
    isotropic = (typical * torch.maximum(norms, 1e-3 * norms.max()))[:, None] ** 2
    squares = n_inputs * (T * T).mean(1, keepdim=True)
    return level**2 * torch.minimum(isotropic, torch.maximum(squares, 1e-6 * squares.max()))


def dual_slope(W: Float[Tensor, "k n"], R: Float[Tensor, "k n"], Q: Float[Tensor, "k n"]) -> Float[Tensor, "k n"]:
    """(1 - W R) / Q: the curvature that the dual variable W of a kink gives it.

    With W = R this is the curvature E^2 / Q^3 of the smoothed kink. Carrying W along as a variable
    of its own keeps Newton's method fast as E goes to zero (Chan, Golub & Mulet 1999).
    """
    return (1 - W * R).clamp(min=1e-12) / Q
