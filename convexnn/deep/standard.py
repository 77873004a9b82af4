"""Standard linear networks of depth three and more: a penalty that is not convex, and its dual.

    P = min over W of loss(W) + weight_decay (depth / 2) sum_i sigma_i(W)^(2 / depth)
    D = min over t of weight_decay (depth - 2) t^2 / 2 + max of the dual with the first depth - 2 layers of norm t
      = min over W of loss(W) + weight_decay (depth / 2) ||W||_*^(2 / depth)

D <= P, with equality where an optimum has rank one or zero, and in general not otherwise (Wang, Ergen & Pilanci, ICLR
2023). Where the data have equal singular values both are known in closed form.
"""

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from convexnn.deep.nuclear import NuclearAnswer, Reduced, solve_nuclear
from convexnn.deep.spectral import power_minimiser, schatten, sum_power_minimum

_STEPS = 20_000
_STILL = 1e-14  # relative decrease of a step that counts as none
_IDLE = 20
_STARTS = 4
_MOST_VALUES = 60  # nuclear-norm problems for one bound


@dataclass(frozen=True)
class SpectralPoint:
    """Weights in reduced coordinates, their objective in a standard network, and a bound on all."""

    W: Float[Tensor, "r K"]
    objective: float
    dual: float  # a lower bound of D, and with it of P
    closed_form: bool  # the objective is P and the dual is D, up to rounding


def solve_standard(of: Reduced, weight_decay: float, depth: int, tol: float) -> SpectralPoint:
    """P and D in closed form for white data; else local search from nuclear-norm solutions, and a bound of D."""
    if depth == 2:
        found = solve_nuclear(of, weight_decay, tol=tol)
        return SpectralPoint(found.W, found.objective, found.bound, of.white)
    if of.white:
        return _closed_form(of, weight_decay, depth)
    dual, starts = dual_bound(of, weight_decay, depth, tol)
    starts = sorted(starts, key=lambda W: standard_value(of, W, weight_decay, depth))[:_STARTS]
    points = [torch.zeros_like(of.B), *(_descend(of, start, weight_decay, depth) for start in starts)]
    values = [standard_value(of, W, weight_decay, depth) for W in points]
    best = min(range(len(values)), key=values.__getitem__)
    return SpectralPoint(points[best], values[best], dual, False)


def standard_value(of: Reduced, W: Float[Tensor, "r K"], weight_decay: float, depth: int) -> float:
    """The objective of balanced factors of these weights."""
    return of.loss(W) + weight_decay * schatten(torch.linalg.svdvals(W), depth)


def _closed_form(of: Reduced, weight_decay: float, depth: int) -> SpectralPoint:
    """All directions weigh the same: by von Neumann's inequality an optimum has the singular vectors of B."""
    size = float(of.s[0])
    P, q, Qh = torch.linalg.svd(of.B / size, full_matrices=False)
    W = (P * power_minimiser(q, size**2, weight_decay, depth)) @ Qh
    outside = of.loss(torch.zeros_like(W)) - 0.5 * size**2 * float((q**2).sum())
    dual = sum_power_minimum(q, size**2, weight_decay, depth) + outside
    value = standard_value(of, W, weight_decay, depth)
    return SpectralPoint(W, value, min(dual, value), True)


def _descend(of: Reduced, W: Float[Tensor, "r K"], weight_decay: float, depth: int) -> Float[Tensor, "r K"]:
    """Proximal gradient steps with momentum, which is dropped where the objective would rise.

    A step minimises the objective with the loss replaced by an upper bound of equal curvature: the scalar problem.
    """
    curvature = float(of.s[0]) ** 2
    s, value, ahead, push, idle = of.s[:, None], standard_value(of, W, weight_decay, depth), W, 1.0, 0
    for _ in range(_STEPS):
        new = _prox(ahead - s * (s * ahead - of.B) / curvature, curvature, weight_decay, depth)
        reached = standard_value(of, new, weight_decay, depth)
        if reached > value:
            ahead, push = W, 1.0
            idle += 1
        else:
            following = 0.5 * (1 + math.sqrt(1 + 4 * push * push))
            ahead, push = new + (push - 1) / following * (new - W), following
            idle = idle + 1 if value - reached <= _STILL * abs(value) else 0
            W, value = new, reached
        if idle >= _IDLE:
            break
    return W


def _prox(W: Float[Tensor, "r K"], curvature: float, weight_decay: float, depth: int) -> Float[Tensor, "r K"]:
    P, q, Qh = torch.linalg.svd(W, full_matrices=False)
    return (P * power_minimiser(q, curvature, weight_decay, depth)) @ Qh


@dataclass(frozen=True)
class _Value:
    """The nuclear-norm problem at one weight: bounds of its value, and its weights."""

    weight: float
    lower: float
    upper: float
    answer: NuclearAnswer


def dual_bound(of: Reduced, weight_decay: float, depth: int, tol: float) -> tuple[float, list[Tensor]]:
    """A lower bound of D, within about ``tol`` of it, and the weights of the nuclear-norm problems it looked at.

    With m = weight_decay t^-(depth - 2), D is the least of weight_decay (depth - 2) (weight_decay / m)^(2/(depth - 2))
    / 2 + N(m) over m > 0, N(m) the value of the nuclear-norm problem at weight m. N is concave: chords through lower
    bounds of it are below it, and the sum with a chord has its minimum in closed form.
    """
    nothing = of.loss(torch.zeros_like(of.B))
    most = math.sqrt(2 * nothing / ((depth - 2) * weight_decay)) if nothing > 0 else 0.0
    null = float(torch.linalg.matrix_norm(of.s[:, None] * of.B, 2))  # from here on N is the loss of no weights
    if most == 0.0 or weight_decay * most ** -(depth - 2) >= null:
        return nothing, []
    values = [_value(of, weight, tol, None) for weight in (weight_decay * most ** -(depth - 2), null)]
    while True:
        pieces = [_piece(*pair, weight_decay, depth) for pair in pairwise(values)]
        lowest = min(range(len(pieces)), key=lambda k: pieces[k][0])
        bound, weight = min(pieces[lowest][0], nothing), pieces[lowest][1]
        reached = min([nothing] + [_scale_cost(v.weight, weight_decay, depth) + v.upper for v in values])
        inside = values[lowest].weight < weight < values[lowest + 1].weight
        if reached - bound <= tol * abs(reached) or not inside or len(values) >= _MOST_VALUES:
            return bound, [value.answer.W for value in values]
        values.insert(lowest + 1, _value(of, weight, tol, values[lowest].answer))


def _value(of: Reduced, weight: float, tol: float, start: NuclearAnswer | None) -> _Value:
    answer = solve_nuclear(of, weight, tol=0.1 * tol, start=start)
    return _Value(weight, answer.bound, answer.objective, answer)


def _scale_cost(weight: float, weight_decay: float, depth: int) -> float:
    """weight_decay (depth - 2) t^2 / 2 at the size t of the first layers that goes with this weight."""
    return 0.5 * weight_decay * (depth - 2) * (weight_decay / weight) ** (2 / (depth - 2))


def _piece(left: _Value, right: _Value, weight_decay: float, depth: int) -> tuple[float, float]:
    """The least of the cost of the scale plus the chord between two weights, and where it is."""
    slope = (right.lower - left.lower) / (right.weight - left.weight)
    weight = right.weight if slope <= 0 else weight_decay * slope ** (-(depth - 2) / depth)
    weight = min(max(weight, left.weight), right.weight)
    return _scale_cost(weight, weight_decay, depth) + left.lower + slope * (weight - left.weight), weight
