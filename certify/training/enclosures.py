"""Boxes of values, and how they were made from others."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Float
from torch import Tensor

Interval = tuple[Tensor, Tensor]
Rule = Callable[..., Any]


@dataclass(frozen=True, eq=False)
class Step:
    """How a value was made.

    Attributes:
        kind: "affine", "relu", or "interval" where only its box is known.
        function: what makes the value from the parents' values, with everything else fixed.
        parents: the values it was made from.
        layer: weight and bias of a `linear`, whose rows can be merged with others'.
    """

    kind: str
    function: Callable[..., Tensor]
    parents: tuple["Enclosure", ...]
    layer: tuple[Tensor, Tensor | None] | None = None


@dataclass(frozen=True, eq=False)
class Enclosure:
    """centre - radius <= value <= centre + radius for a batch of boxes; and the value at some points.

    Attributes:
        centre, radius: `(batch, ...)`; radius >= 0.
        points: `(batch, ...)`, or None where no points run along.
        step: how it was made; None for inputs.
    """

    centre: Float[Tensor, "batch *shape"]
    radius: Float[Tensor, "batch *shape"]
    points: Float[Tensor, "batch *shape"] | None
    step: Step | None = field(default=None, repr=False)

    @property
    def lower(self) -> Float[Tensor, "batch *shape"]:
        """The lower ends."""
        return self.centre - self.radius

    @property
    def upper(self) -> Float[Tensor, "batch *shape"]:
        """The upper ends."""
        return self.centre + self.radius

    def walk(self) -> Iterator["Enclosure"]:
        """This value and all that it was made from, each before its parents."""
        order: list[Enclosure] = []
        seen: set[int] = set()
        stack = [(self, False)]
        while stack:
            value, done = stack.pop()
            if done:
                order.append(value)
            elif id(value) not in seen:
                seen.add(id(value))
                stack.append((value, True))
                stack += [(p, False) for p in (value.step.parents if value.step else ())]
        return reversed(order)


def affine(
    function: Callable[..., Tensor],
    spread: Callable[..., Tensor],
    *parents: Enclosure,
    layer: tuple[Tensor, Tensor | None] | None = None,
) -> Enclosure:
    """A x + b, with |A| r as `spread`."""
    points = None if any(p.points is None for p in parents) else function(*(p.points for p in parents))
    return Enclosure(
        function(*(p.centre for p in parents)),
        spread(*(p.radius for p in parents)),
        points,
        Step("affine", function, parents, layer),
    )


def rising(function: Callable[..., Tensor], *parents: Enclosure, kind: str = "interval") -> Enclosure:
    """A function that grows with every entry of its arguments: its ends are its values at theirs."""
    ends = function(*(p.lower for p in parents)), function(*(p.upper for p in parents))
    return between(ends, function, *parents, kind=kind)


def between(ends: Interval, function: Callable[..., Tensor], *parents: Enclosure, kind: str = "interval") -> Enclosure:
    """A function of which the ends are known."""
    points = None if any(p.points is None for p in parents) else function(*(p.points for p in parents))
    lower, upper = ends
    return Enclosure((lower + upper) / 2, (upper - lower) / 2, points, Step(kind, function, parents))
