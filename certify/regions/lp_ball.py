"""Balls of the l_inf, l2 and l1 norm, intersected with a box of valid inputs."""

from dataclasses import dataclass, replace
from functools import cached_property
from math import isfinite
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from certify.errors import InvalidInputError
from certify.regions.base import AbstractRegion, dot
from certify.regions.box import Box
from certify.regions.multipliers import ball_scale, l1_shrinkage, l1_threshold
from certify.rounding import cast_down, cast_up, down, gamma, up

NORMS = ("linf", "l2", "l1")

# Rows that the whole batch shares become rows of every input in a domain: this many entries at a time.
_CHUNK = 2**20


@dataclass(frozen=True, eq=False)
class LpBall(AbstractRegion):
    """|x - centre| <= eps and, where a domain is given, lower <= x <= upper.

    Attributes:
        centre: the middles, inside the domain.
        eps: radius, the same for the whole batch.
        norm: "linf", "l2" or "l1".
        lower, upper: the domain; both or none. Infinite entries leave a side open.

    Raises:
        InvalidInputError: for NaN, a negative radius, an unknown norm, crossing limits, a centre outside.
    """

    centre: Float[Tensor, "batch n"]
    eps: float
    norm: str = "linf"
    lower: Float[Tensor, "batch n"] | None = None
    upper: Float[Tensor, "batch n"] | None = None

    def __post_init__(self) -> None:
        if self.norm not in NORMS:
            raise InvalidInputError(f"norm is {self.norm!r}; expected one of {', '.join(NORMS)}")
        if not (isfinite(self.eps) and self.eps >= 0):
            raise InvalidInputError(f"eps is {self.eps}; expected a finite radius >= 0")
        if not bool(torch.isfinite(self.centre).all()):
            raise InvalidInputError("the centre has NaN or infinite entries; expected finite numbers")
        if (self.lower is None) != (self.upper is None):
            raise InvalidInputError("a domain needs both limits; pass lower and upper, infinite where a side is open")
        if self.lower is not None and self.upper is not None:
            _check_domain(self.centre, self.lower, self.upper)

    @cached_property
    def _box(self) -> Box:
        dtype, centre = self.centre.dtype, self.centre.double()
        lower, upper = centre - self.eps, centre + self.eps
        if self.eps > 0:
            lower, upper = down(lower), up(upper)
        lower, upper = cast_down(lower, dtype), cast_up(upper, dtype)
        if self.lower is not None and self.upper is not None:
            lower, upper = torch.maximum(lower, self.lower), torch.minimum(upper, self.upper)
        return Box(lower, upper)

    def bounding_box(self) -> tuple[Float[Tensor, "batch n"], Float[Tensor, "batch n"]]:
        """centre -+ eps, cut by the domain."""
        return self._box.bounding_box()

    def minimum(
        self, rows: Float[Tensor, "#chosen rows n"], inputs: Int[Tensor, " chosen"] | None = None
    ) -> Float[Tensor, "chosen rows"]:
        """row.centre - sup{row.d}: the dual norm, or with a domain the dual function at a good multiplier.

        Any multiplier gives a valid bound (weak duality), so an inexact search costs tightness only.
        """
        if self.norm == "linf" or self.eps == 0:
            return self._box.minimum(rows, inputs)
        if inputs is not None:
            return self.select(inputs).minimum(rows)
        if self._clipped:
            size = max(1, _CHUNK // self.centre.numel())
            reach = torch.cat([self._reach_in_domain(part) for part in rows.split(size, 1)], 1)
        else:
            reach = self.eps * _dual_norm(rows, self.norm)
        return self._rounded(rows, reach)

    @cached_property
    def _clipped(self) -> bool:
        """Whether the domain cuts any ball of the batch."""
        if self.lower is None or self.upper is None:
            return False
        room = torch.minimum(self.centre - self.lower, self.upper - self.centre)
        return bool((room < self.eps).any())

    def _rounded(
        self, rows: Float[Tensor, "#batch rows n"], reach: Float[Tensor, "#batch rows"]
    ) -> Float[Tensor, "batch rows"]:
        rounding = gamma(3 * rows.shape[2], rows.dtype)
        products = torch.linalg.vector_norm(rows, dim=2) * torch.linalg.vector_norm(self.centre, dim=1)[:, None]
        return dot(rows, self.centre) - reach - rounding * (products + reach)

    def _reach_in_domain(self, rows: Float[Tensor, "#batch rows n"]) -> Float[Tensor, "batch rows"]:
        """sup{-row.d} over ball and domain: every d_i points against row_i, up to the wall of that side."""
        assert self.lower is not None
        assert self.upper is not None
        room_below = up(self.centre - self.lower)[:, None].clamp(max=up(self._eps))
        room_above = up(self.upper - self.centre)[:, None].clamp(max=up(self._eps))
        caps = torch.where(rows > 0, room_below, room_above)
        weights = rows.abs().expand_as(caps)
        dual = _l2_dual if self.norm == "l2" else _l1_dual
        # The corner of the box bounds the form too (multiplier zero).
        return torch.fmin(dual(weights, caps, self.eps), (weights * caps).sum(2))

    @property
    def _eps(self) -> Float[Tensor, ""]:
        return torch.as_tensor(self.eps, dtype=self.centre.dtype, device=self.centre.device)

    def minimiser(self, rows: Float[Tensor, "batch n"]) -> Float[Tensor, "batch n"]:
        """Where the dual multiplier puts the steps: shared in proportion (l2), the steepest entries first (l1)."""
        if self.norm == "linf" or self.eps == 0:
            return self._box.minimiser(rows)
        weights, caps = rows.abs(), self._caps(-rows)
        if self.norm == "l2":
            scale = ball_scale(weights, caps, self.eps)
            step = torch.minimum(torch.where(weights > 0, scale[:, None] * weights, 0.0), caps)
        else:
            order = weights.argsort(dim=1, descending=True)
            filled = caps.gather(1, order).cumsum(1)
            room = (self.eps - filled).clamp(max=0) + caps.gather(1, order)
            step = torch.zeros_like(weights).scatter(1, order, room.clamp(min=0))
        return self._in_domain(self.centre - rows.sign() * step)

    def contains(self, points: Float[Tensor, "batch n"], tolerance: float = 0.0) -> Bool[Tensor, " batch"]:
        """In float64, whatever the precision of the points."""
        points = points.double()
        order = {"linf": torch.inf, "l2": 2, "l1": 1}[self.norm]
        inside = torch.linalg.vector_norm(points - self.centre.double(), order, dim=1) <= self.eps + tolerance
        if self.lower is not None and self.upper is not None:
            inside &= (points >= self.lower.double() - tolerance).all(1)
            inside &= (points <= self.upper.double() + tolerance).all(1)
        return inside

    def project(self, points: Float[Tensor, "batch n"]) -> Float[Tensor, "batch n"]:
        """The nearest point of ball and domain together."""
        if self.norm == "linf" or self.eps == 0:
            return self._box.project(points)
        step = points - self.centre
        sizes, caps = step.abs(), self._caps(step)
        if self.norm == "l2":
            scale = ball_scale(sizes, caps, self.eps).clamp(max=1.0)
            scale = torch.where(sizes.amax(1) > 0, scale, 1.0)
            moved = torch.minimum(scale[:, None] * sizes, caps)
        else:
            shrinkage = l1_shrinkage(sizes, caps, self.eps)
            moved = torch.minimum((sizes - shrinkage[:, None]).clamp(min=0), caps)
        return self._in_domain(self.centre + step.sign() * moved)

    def _caps(self, step: Float[Tensor, "batch n"]) -> Float[Tensor, "batch n"]:
        """How far each entry may move in the direction of the step, at most eps."""
        if self.lower is None or self.upper is None:
            return torch.full_like(step, self.eps)
        return torch.where(step > 0, self.upper - self.centre, self.centre - self.lower).clamp(max=self.eps)

    def _in_domain(self, points: Float[Tensor, "batch n"]) -> Float[Tensor, "batch n"]:
        # The centre is in the domain, so clipping moves no entry away from it: the ball is kept.
        return points if self.lower is None else points.clamp(self.lower, self.upper)

    def sample(self, generator: torch.Generator) -> Float[Tensor, "batch n"]:
        """Uniform in the ball, then clipped to the domain."""
        shape, n = self.centre.shape, self.centre.shape[1]
        uniform = torch.rand(shape, generator=generator, dtype=torch.float64)
        if self.norm == "linf":
            step = 2 * uniform - 1
        else:
            step = torch.randn(shape, generator=generator, dtype=torch.float64)
            if self.norm == "l1":
                step = step.sign() * -torch.log1p(-uniform)  # Laplace: uniform direction for the l1 norm
            length = torch.linalg.vector_norm(step, 2 if self.norm == "l2" else 1, dim=1, keepdim=True)
            step = step / length * uniform[:, :1] ** (1 / n)
        return self._in_domain(self.centre + self.eps * step.to(self.centre))

    def ascent_direction(self, gradient: Float[Tensor, "batch n"]) -> Float[Tensor, "batch n"]:
        """Signs (l_inf), the normalised gradient (l2), the steepest entry that can still move (l1)."""
        if self.norm == "linf":
            return self.eps * gradient.sign()
        if self.norm == "l2":
            length = torch.linalg.vector_norm(gradient, dim=1, keepdim=True)
            return self.eps * gradient / length.clamp(min=torch.finfo(gradient.dtype).tiny)
        gain = gradient.abs() * (self._caps(gradient) > 0)
        step = torch.zeros_like(gradient)
        best = gain.argmax(1, keepdim=True)
        return step.scatter(1, best, self.eps * gradient.sign().gather(1, best))

    def select(self, index: Any) -> "LpBall":
        """The balls of some of the inputs."""
        lower = None if self.lower is None else self.lower[index]
        upper = None if self.upper is None else self.upper[index]
        return replace(self, centre=self.centre[index], lower=lower, upper=upper)

    def cpu(self) -> "LpBall":
        """The same balls in the memory of the CPU."""
        lower, upper = (None if v is None else v.cpu() for v in (self.lower, self.upper))
        return replace(self, centre=self.centre.cpu(), lower=lower, upper=upper)

    def representable(self, points: Float[Tensor, "batch n"], dtype: torch.dtype) -> Tensor:
        """Points of the region in another precision, near the given ones if the ball is large enough for it."""
        order = {"linf": torch.inf, "l2": 2, "l1": 1}[self.norm]
        # One rounding of each entry, and one more where a limit of the domain is not representable. Every point
        # moves towards its centre by as much, which keeps it in ball and domain.
        points = self.project(points)
        length = torch.linalg.vector_norm(points, order, dim=1, keepdim=True) + self.eps
        moved = 2 * torch.finfo(dtype).eps * length
        share = (1 - moved / self.eps).clamp(min=0) if self.eps > 0 else torch.zeros_like(moved)
        points = (self.centre + share * (points - self.centre)).to(dtype)
        if self.lower is None or self.upper is None:
            return points
        return points.clamp(cast_up(self.lower, dtype), cast_down(self.upper, dtype))

    def to(self, dtype: torch.dtype) -> "AbstractRegion":
        """A ball (a box for l_inf, or where the radius overflows) around this one in another precision."""
        if dtype == self.centre.dtype:
            return self
        if self.norm == "linf" or self.eps == 0 or self.eps > torch.finfo(dtype).max:
            return self._box.to(dtype)
        lower = None if self.lower is None else cast_down(self.lower, dtype)
        upper = None if self.upper is None else cast_up(self.upper, dtype)
        centre = self.centre.to(dtype)
        moved = (centre.double() - self.centre.double()).abs().sum(1).max()  # l1 is the largest of the norms
        eps = (self.eps + float(moved)) * (1 + gamma(self.centre.shape[1], torch.float64))
        return LpBall(centre, eps, self.norm, lower, upper)


def _check_domain(centre: Tensor, lower: Tensor, upper: Tensor) -> None:
    if lower.shape != centre.shape or upper.shape != centre.shape:
        raise InvalidInputError(
            f"the domain limits have shapes {tuple(lower.shape)} and {tuple(upper.shape)};"
            f" expected the shape of the centre, {tuple(centre.shape)}"
        )
    if bool((lower.isnan() | upper.isnan()).any()):
        raise InvalidInputError("a domain limit is NaN; expected numbers, infinite where a side is open")
    if bool((lower > upper).any()):
        raise InvalidInputError("a lower limit of the domain is above its upper limit; expected lower <= upper")
    outside = ((centre < lower) | (centre > upper)).any(1)
    if bool(outside.any()):
        which = int(outside.nonzero()[0])
        raise InvalidInputError(
            f"input {which} lies outside the domain; scale the inputs to the domain, or give the right domain"
        )


def _dual_norm(rows: Float[Tensor, "batch rows n"], norm: str) -> Float[Tensor, "batch rows"]:
    return torch.linalg.vector_norm(rows, 2 if norm == "l2" else torch.inf, dim=2)


def _l2_dual(
    weights: Float[Tensor, "batch rows n"], caps: Float[Tensor, "batch rows n"], eps: float
) -> Float[Tensor, "batch rows"]:
    """w.d - (|d|^2 - eps^2) / (2 s) at d = min(s w, cap): an upper bound of max w.d for every s > 0."""
    scale = ball_scale(weights, caps, eps)
    step = torch.minimum(scale.unsqueeze(2) * weights, caps)
    return (weights * step).sum(2) + (eps * eps - step.square().sum(2)) / (2 * scale)


def _l1_dual(
    weights: Float[Tensor, "batch rows n"], caps: Float[Tensor, "batch rows n"], eps: float
) -> Float[Tensor, "batch rows"]:
    """t eps + sum (w - t)_+ cap: an upper bound of max w.d for every t >= 0."""
    threshold = l1_threshold(weights, caps, eps)
    return eps * threshold + ((weights - threshold.unsqueeze(2)).clamp(min=0) * caps).sum(2)
