"""Balls and boxes of inputs, exactly: minima of linear forms, in offsets d from the centre."""

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from certify.proof.artefact import Dyadic, digest, dyadic, fields, require
from certify.proof.check.exact import Vector, root_up

NORMS = ("linf", "l2", "l1", "box")
_ROOT_BITS = 40  # beyond the scale of the number


def least(k: int, lam: int, z: int, low: int, high: int) -> int:
    """2 lam times the minimum of k s + lam/2 (s - z)^2 over low <= s <= high, lam > 0.

    With s and z at scale sz, lam at sl and k at sz + sl the result is at twice the scale of k.
    """
    free = lam * z - k
    if lam * low <= free <= lam * high:
        return k * (2 * lam * z - k)
    s = low if free < lam * low else high
    return lam * (2 * k * s + lam * (s - z) ** 2)


@dataclass(frozen=True)
class Region:
    """|d| <= radius in the norm, and lower <= d <= upper, for inputs x = centre + d; all at one scale.

    For a box the radius is 0 and does not count.
    """

    norm: str
    centre: Vector
    radius: int
    lower: Vector
    upper: Vector
    scale: int

    def same_as(self, other: "Region") -> bool:
        """Whether both are the same set, written with the same centre and radius."""
        if (self.norm, len(self.centre)) != (other.norm, len(other.centre)):
            return False
        common = max(self.scale, other.scale)
        ours, theirs = (
            [[v << common - r.scale for v in part] for part in (r.centre, [r.radius], r.lower, r.upper)]
            for r in (self, other)
        )
        return ours == theirs

    @property
    def squared_length(self) -> Fraction:
        """At least |d|_2^2 on the region."""
        corner = sum(max(a * a, b * b) for a, b in zip(self.lower, self.upper, strict=True))
        square = min(corner, self.radius**2) if self.norm in ("l2", "l1") else corner
        return Fraction(square, 1 << 2 * self.scale)

    def minimum(self, w: Vector, scale: int, hint: int, hint_scale: int) -> Fraction:
        """A lower bound of min w.d; `hint` is the multiplier of |d|^2/2 (l2), or of |d|_1 (l1), or 0."""
        corner = sum(v * (a if v > 0 else b) for v, a, b in zip(w, self.lower, self.upper, strict=True))
        best = Fraction(corner, 1 << scale + self.scale)
        if self.norm == "l2":
            length = root_up(sum(v * v for v in w) << 2 * _ROOT_BITS)
            best = max(best, Fraction(-length * self.radius, 1 << scale + self.scale + _ROOT_BITS))
            if hint > 0:
                best = max(best, self._l2_dual(w, scale, hint, hint_scale))
        if self.norm == "l1":
            common = max(scale, hint_scale)
            best = max(best, self._l1_dual([v << common - scale for v in w], hint << common - hint_scale, common))
        return best

    def _l2_dual(self, w: Vector, scale: int, lam: int, lam_scale: int) -> Fraction:
        """min w.d + lam/2 (|d|^2 - radius^2) over the box."""
        common = max(scale, self.scale + lam_scale)
        lam <<= common - self.scale - lam_scale
        shift = common - scale
        total = sum(least(v << shift, lam, 0, a, b) for v, a, b in zip(w, self.lower, self.upper, strict=True))
        # 2 lam times the minimum less lam^2 radius^2, at twice the common scale; lam is at scale common - self.scale.
        return Fraction(total - (lam * self.radius) ** 2, 2 * lam << common + self.scale)

    def _l1_dual(self, w: Vector, threshold: int, scale: int) -> Fraction:
        """-t radius - sum (|w_i| - t)_+ cap_i with caps on the side that w points away from, t >= 0."""
        most = max(map(abs, w), default=0)
        t = most if threshold == 0 else threshold
        caps = (-a if v > 0 else b for v, a, b in zip(w, self.lower, self.upper, strict=True))
        reach = t * self.radius + sum(max(abs(v) - t, 0) * cap for v, cap in zip(w, caps, strict=True))
        return Fraction(-max(reach, 0), 1 << scale + self.scale)


def read_region(value: Any, n: int) -> tuple[Region, str]:
    """The region of a claim, and its digest.

    A box has lower and upper only; a ball has a centre and a radius, and both or none of lower and upper.
    """
    held = fields(value, "the region", "norm", "centre", "radius", "lower", "upper")
    norm = held["norm"]
    require(norm in NORMS, f"the norm is none of {', '.join(NORMS)}")
    limits = [None if held[k] is None else dyadic(held[k], (n,), f"{k} of the region") for k in ("lower", "upper")]
    if norm == "box":
        require(held["centre"] is None and held["radius"] is None, "a box has a centre or a radius")
        return _box(limits), _digest(norm, *limits)
    centre = dyadic(held["centre"], (n,), "the centre")
    radius = dyadic(held["radius"], (), "the radius", sign=0)
    return _ball(norm, centre, radius, limits), _digest(norm, centre, radius, *limits)


def _digest(norm: str, *parts: Dyadic | None) -> str:
    return digest(norm, *("none" if p is None else p for p in parts))


def _box(limits: list[Dyadic | None]) -> Region:
    low, high = limits
    require(low is not None and high is not None, "a box lacks a limit")
    assert low is not None
    assert high is not None
    scale = max(low.scale, high.scale) + 1
    lower, upper = low.at(scale), high.at(scale)
    require(all(a <= b for a, b in zip(lower, upper, strict=True)), "the box is empty")
    centre = [(a + b) // 2 for a, b in zip(lower, upper, strict=True)]
    return _around("box", centre, 0, (lower, upper), scale)


def _ball(norm: str, centre: Dyadic, radius: Dyadic, limits: list[Dyadic | None]) -> Region:
    scale = max(p.scale for p in (centre, radius, *limits) if p is not None)
    x, rho = centre.at(scale), radius.at(scale)
    low, high = ([v + s * rho for v in x] if p is None else p.at(scale) for s, p in zip((-1, 1), limits, strict=True))
    require(all(a <= v <= b for a, v, b in zip(low, x, high, strict=True)), "the centre is outside the domain")
    cut = (
        [max(a, v - rho) for a, v in zip(low, x, strict=True)],
        [min(b, v + rho) for b, v in zip(high, x, strict=True)],
    )
    return _around(norm, x, rho, cut, scale)


def _around(norm: str, centre: Vector, radius: int, limits: tuple[Vector, Vector], scale: int) -> Region:
    lower, upper = ([v - c for v, c in zip(limit, centre, strict=True)] for limit in limits)
    return Region(norm, centre, radius, lower, upper, scale)
