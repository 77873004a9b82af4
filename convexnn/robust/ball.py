"""Sets of perturbations of a sample: weighted l_inf, l2 and l1 balls."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from convexnn.errors import InvalidInputError, InvalidTypeError

NORMS = ("linf", "l2", "l1")

_BISECTIONS = 100


@dataclass(frozen=True)
class Ball:
    """{delta : ||delta / radii||_p <= 1}; a column of radius zero does not move (the column of ones of a bias).

    With equal radii eps this is the ball ||delta||_p <= eps. For "linf" each radius is the reach of its
    feature; for "l2" and "l1" they are the semi-axes of an ellipsoid and of a cross-polytope.
    """

    radii: Float[Tensor, " d"]
    norm: str = "linf"

    def scaled(self, factor: float) -> "Ball":
        """Every radius times a factor."""
        return Ball(factor * self.radii, self.norm)

    def support(self, W: Float[Tensor, "*lead d"]) -> Float[Tensor, "*lead"]:
        """max w'delta over the ball: the dual norm of radii * w."""
        order = {"linf": 1, "l2": 2, "l1": torch.inf}[self.norm]
        return torch.linalg.vector_norm(self.radii * W, order, dim=-1)

    def worst(self, W: Float[Tensor, "*lead d"]) -> Float[Tensor, "*lead d"]:
        """A delta of the ball with w'delta = support(w)."""
        scaled = self.radii * W
        if self.norm == "linf":
            return self.radii * torch.sign(W)
        if self.norm == "l2":
            return self.radii * scaled / scaled.norm(dim=-1, keepdim=True).clamp(min=torch.finfo(W.dtype).tiny)
        top = scaled.abs().argmax(-1, keepdim=True)
        return torch.zeros_like(W).scatter(-1, top, torch.sign(W.gather(-1, top)) * self.radii[top])

    def gauge(self, V: Float[Tensor, "*lead d"]) -> Float[Tensor, "*lead"]:
        """The least size of a ball with each row inside: ||v / radii||_p, infinite where a fixed column is not zero."""
        order = {"linf": torch.inf, "l2": 2, "l1": 1}[self.norm]
        moves = self.radii > 0
        if not bool(moves.any()):
            return torch.where((V != 0).any(-1), torch.inf, 0.0).to(V)
        inside = torch.linalg.vector_norm(V[..., moves] / self.radii[moves], order, dim=-1)
        return torch.where((V[..., ~moves] != 0).any(-1), torch.inf, inside)

    def clipped(self, V: Float[Tensor, "*lead d"]) -> Float[Tensor, "*lead d"]:
        """A point of the ball near each row: what cannot move is dropped, the rest shrunk where it is too long."""
        V = torch.where(self.radii > 0, V, 0.0)
        return V / self.gauge(V).clamp(min=1.0)[..., None]

    def project(self, W: Float[Tensor, "*lead d"], size: Float[Tensor, "*lead"]) -> Float[Tensor, "*lead d"]:
        """The nearest point of size * ball to each row; rounding never leaves it outside by more than itself."""
        if self.norm == "linf":
            reach = size[..., None] * self.radii
            return torch.minimum(torch.maximum(W, -reach), reach)
        near = self._project_l2(W, size) if self.norm == "l2" else self._project_l1(W, size)
        return near * (size / self.gauge(near).clamp(min=torch.finfo(W.dtype).tiny)).clamp(max=1.0)[..., None]

    def _project_l2(self, W: Tensor, size: Tensor) -> Tensor:
        """w e^2 / (e^2 + t), t >= 0 by bisection: the length of v / e falls with t. Equal radii only shorten w."""
        moving = self.radii[self.radii > 0]
        if len(moving) == 0 or bool((moving == moving[0]).all()):
            return torch.where(self.radii > 0, W, 0.0)
        e2, goal = self.radii**2, size[..., None] ** 2
        low, high = (
            torch.zeros_like(goal),
            (self.radii * W).norm(dim=-1, keepdim=True) / size[..., None].clamp(min=1e-300),
        )
        outside = (torch.where(self.radii > 0, W / self.radii, 0.0) ** 2).sum(-1, keepdim=True) > goal
        for _ in range(_BISECTIONS):
            middle = 0.5 * (low + high)
            long = ((self.radii * W / (e2 + middle).clamp(min=1e-300)) ** 2).sum(-1, keepdim=True) > goal
            low, high = torch.where(long, middle, low), torch.where(long, high, middle)
        t = torch.where(outside, high, 0.0)
        return torch.where(self.radii > 0, W * e2 / (e2 + t).clamp(min=1e-300), 0.0)

    def _project_l1(self, W: Tensor, size: Tensor) -> Tensor:
        """Each entry moved towards zero by t / radius, the t found by sorting."""
        moves, out = self.radii > 0, torch.zeros_like(W)
        if not bool(moves.any()):
            return out
        V, e = W[..., moves], self.radii[moves]
        knots, order = torch.sort(V.abs() * e, dim=-1, descending=True)
        length = torch.cumsum((V.abs() / e).gather(-1, order), -1) - size[..., None]
        t = (length / torch.cumsum((1 / e**2).expand_as(V).gather(-1, order), -1)).clamp(min=0.0)
        last = ((knots > t).sum(-1, keepdim=True) - 1).clamp(min=0)
        out[..., moves] = torch.sign(V) * (V.abs() - t.gather(-1, last) / e).clamp(min=0.0)
        return out

    def sample(self, shape: tuple[int, ...], generator: torch.Generator) -> Float[Tensor, "*lead d"]:
        """Random points of the ball, uniform in direction and length up to the weights; not uniform in volume."""
        step = torch.randn((*shape, len(self.radii)), generator=generator, dtype=torch.float64).to(self.radii)
        if self.norm == "linf":
            return self.radii * (2 * torch.special.ndtr(step) - 1)
        order = 2 if self.norm == "l2" else 1
        length = torch.linalg.vector_norm(step, order, dim=-1, keepdim=True)
        share = torch.rand((*shape, 1), generator=generator, dtype=torch.float64).to(self.radii)
        return self.radii * share * step / length

    def to(self, target: torch.device | torch.dtype) -> "Ball":
        """The same ball on another device or in another precision."""
        return Ball(self.radii.to(target), self.norm)


def read_ball(eps: Any, norm: Any, n_features: int, *, hidden_bias: bool) -> Ball:
    """The ball of a user's radius, or radii of each feature; the column of a bias does not move.

    Raises:
        InvalidInputError: an unknown norm, radii that are negative, not finite, or not one for each feature.
        InvalidTypeError: radii that are no numbers.
    """
    if not isinstance(norm, str) or norm not in NORMS:
        raise InvalidInputError(f"norm is {norm!r}; expected one of {', '.join(NORMS)}.")
    wrong = f"eps={eps!r} is not a radius; a number, or one for each feature, is expected."
    try:
        raw = np.asarray(eps.detach().cpu() if isinstance(eps, Tensor) else eps)
        if raw.dtype.kind not in "fiuO":  # strings that spell numbers, truth values and complex ones are no radii
            raise InvalidTypeError(wrong)
        given = raw.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise InvalidTypeError(wrong) from error
    if np.ma.is_masked(eps):  # numpy would hand out what lies under the mask
        raise InvalidInputError("eps has masked entries; one radius for each feature is expected.")
    if given.ndim > 1 or (given.ndim == 1 and len(given) != n_features):
        raise InvalidInputError(
            f"eps has shape {given.shape}; one radius, or one for each of the {n_features} features, is expected."
        )
    if not np.isfinite(given).all() or (given < 0).any():
        raise InvalidInputError(f"eps has the radius {_worst(given):g}; finite radii of at least zero are expected.")
    radii = torch.tensor(np.broadcast_to(given, (n_features,)).copy())
    return Ball(torch.cat([radii, radii.new_zeros(int(hidden_bias))]), norm)


def _worst(radii: np.ndarray) -> float:
    """A radius that is not finite, or else the smallest."""
    bad = radii[~np.isfinite(radii)]
    return float(bad.ravel()[0]) if bad.size else float(radii.min())
