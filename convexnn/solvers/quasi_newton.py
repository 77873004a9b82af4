"""Limited-memory BFGS for smooth functions of one flat vector (Nocedal 1980), on any device."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Valued:
    """What the function returns, or more."""

    value: Float[Tensor, ""]
    gradient: Float[Tensor, " N"]


_T = TypeVar("_T", bound=Valued)

_MEMORY = 20
_FIRST_MOVE = 1e-2  # length of the first step, relative to the point, or absolute near zero
_ARMIJO = 1e-4
_CURVATURE = 0.9
_TRIALS = 25
_CURVED = 1e-12  # share of what the change of the gradient could be along the move


@dataclass(frozen=True)
class Minimised(Generic[_T]):
    """Where a run ended, what the function returned there, and how often it was called."""

    x: Float[Tensor, " N"]
    at: _T
    n_calls: int


def minimise(
    function: Callable[[Tensor], _T],
    x: Float[Tensor, " N"],
    *,
    max_calls: int,
    metric: Callable[[Tensor], Tensor] = lambda gradient: gradient,
) -> Minimised[_T]:
    """Descend until the number of calls is spent, or no step along the direction goes down any further.

    ``metric`` applies a first guess of the inverse Hessian, up to a factor: symmetric, positive definite.
    """
    pairs: deque[tuple[Tensor, Tensor, float]] = deque(maxlen=_MEMORY)
    at, calls = function(x), 1
    while calls < max_calls:
        direction = _direction(at.gradient, pairs, metric)
        if not pairs:
            direction = direction * (
                _FIRST_MOVE * max(1.0, float(x.norm())) / float(direction.norm().clamp(min=1e-300))
            )
        slope = float(at.gradient @ direction)
        if not slope < 0:
            break
        step, new, used = _search(function, x, at, direction, slope)
        calls += used
        if new is None:
            break
        move, change = step * direction, new.gradient - at.gradient
        product = float(move @ change)
        if product > _CURVED * float(change.norm() * move.norm()):
            pairs.append((move, change, product))
        x, at = x + move, new
    return Minimised(x, at, calls)


def _direction(
    gradient: Tensor, pairs: "deque[tuple[Tensor, Tensor, float]]", metric: Callable[[Tensor], Tensor]
) -> Tensor:
    """Minus the inverse Hessian estimate times the gradient, by two loops."""
    q, shares = gradient.clone(), []
    for move, change, product in reversed(pairs):
        shares.append(float(move @ q) / product)
        q = q - shares[-1] * change
    q = metric(q)
    if pairs:
        _, change, product = pairs[-1]
        q = q * (product / float(change @ metric(change)))
    for (move, change, product), share in zip(pairs, reversed(shares), strict=True):
        q = q + (share - float(change @ q) / product) * move
    return -q


def _search(
    function: Callable[[Tensor], _T], x: Tensor, at: _T, direction: Tensor, slope: float
) -> tuple[float, _T | None, int]:
    """A step that meets the weak conditions of Wolfe, by doubling and bisection; the best that went down otherwise."""
    low, high, step = 0.0, float("inf"), 1.0
    best: tuple[float, _T | None] = (0.0, None)
    used = 0
    while used < _TRIALS:
        new = function(x + step * direction)
        used += 1
        if not float(new.value) <= float(at.value) + _ARMIJO * step * slope:
            high = step
        else:
            best = step, new
            if float(new.gradient @ direction) >= _CURVATURE * slope:
                break
            low = step
        step = 2 * low if high == float("inf") else 0.5 * (low + high)
    return *best, used
