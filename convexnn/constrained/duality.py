"""The judge of constrained programs: what a point and multipliers are worth, by other code than the solvers'.

For V in the domain of the loss, mu >= 0 and W = (V, 0) - A'mu, with 1'W = 0 where an output bias is trained and
M = max ||W'(Xu)_+|| over unit neurons (of the program's blocks: in their cones), every network that meets A f <= b has

    J >= D(s V) - s b'mu    for every s in [0, weight_decay / M] with s V in the domain.

Derivation: add mu'(A f - b) <= 0 to the objective and take the Fenchel dual (MATH of the plain problem: Pilanci &
Ergen 2020). At the optimum mu is minus the derivative of the optimal value in b.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from convexnn.constrained.program import ConstrainedProgram
from convexnn.losses import AbstractLoss, AbstractMarginLoss, SquaredLoss
from convexnn.programs import ConvexPoint
from convexnn.result import relative_gap

_GOLDEN = (math.sqrt(5) - 1) / 2
_SECTIONS = 80
_BISECTIONS = 100


@dataclass(frozen=True)
class ConstrainedDual:
    """A dual point, scaled, and its bound."""

    V: Float[Tensor, "n 1"]
    mu: Float[Tensor, " m"]  # of rows of norm one
    bound: float


@dataclass(frozen=True)
class ConstrainedJudgement:
    """A point in its cones, by how much it violates the rows, and the best bound known."""

    point: ConvexPoint
    objective: float
    violation: float  # of rows of norm one, never negative
    dual: ConstrainedDual
    multipliers: Float[Tensor, "S K P m"] | None  # of the cones, that go with the dual point

    def gap(self, floor: float = 0.0) -> float:
        """Relative gap of the program."""
        return relative_gap(self.objective, self.dual.bound, floor)


def judge_constrained(
    program: ConstrainedProgram,
    point: ConvexPoint,
    V: Float[Tensor, "n 1"],
    mu: Float[Tensor, " m"],
    multipliers: Float[Tensor, "S K P m"] | None = None,
) -> ConstrainedJudgement:
    """Objective and violation at the point of the cones near ``point``, and the bound of any V, mu and multipliers."""
    feasible = program.wide.feasible(point)
    V, mu = admitted(program, V, mu)
    maximum = program.wide.maximum(program.pulled(V, mu), multipliers)
    violation = float((program.excess(feasible) / program.rows.scales).clamp(min=0.0).max())
    dual = scaled_dual(program, V, mu, maximum)
    return ConstrainedJudgement(feasible, program.objective(feasible), violation, dual, multipliers)


def admitted(program: ConstrainedProgram, V: Tensor, mu: Tensor) -> tuple[Float[Tensor, "n 1"], Float[Tensor, " m"]]:
    """V in the domain of the loss and mu >= 0, with 1'W = 0 where an output bias is trained."""
    loss = program.problem.loss
    V, mu = loss.within_domain(V), mu.clamp(min=0.0)
    if not program.problem.output_bias:
        return V, mu
    total = float(program.rows.totals @ mu)
    if isinstance(loss, SquaredLoss):
        return V + loss.weights[:, None] * (total - V.sum()), mu
    assert isinstance(loss, AbstractMarginLoss)
    least, most = (-loss.weights[loss.targets[:, 0] < 0].sum(), loss.weights[loss.targets[:, 0] > 0].sum())
    if not float(least) <= total <= float(most):  # the bias alone would gain by the rows: fewer of them
        share = float(most if total > 0 else least) / total
        mu, total = mu * share, total * share
    return _shifted(loss, V, total), mu


def _shifted(loss: AbstractMarginLoss, V: Float[Tensor, "n 1"], total: float) -> Float[Tensor, "n 1"]:
    """V moved along the weights, each entry until it meets its bounds, to this sum."""
    q, weights = loss.box_coordinates(V), loss.targets * loss.weights[:, None]

    def at(t: float) -> Tensor:
        return weights * (q + t * loss.targets).clamp(0.0, 1.0)

    low, high = -1.0, 1.0
    for _ in range(_BISECTIONS):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if float(at(middle).sum()) < total else (low, middle)
    return at(low if abs(float(at(low).sum()) - total) < abs(float(at(high).sum()) - total) else high)


def scaled_dual(program: ConstrainedProgram, V: Tensor, mu: Tensor, maximum: float) -> ConstrainedDual:
    """(s V, s mu) at the best s: D(s V) - s b'mu is concave in s."""
    problem, limit_value = program.problem, float(program.rows.b @ mu)
    limit = problem.weight_decay / maximum if maximum > 0 else 1e300
    limit = _within(problem.loss, V, limit)

    def value(s: float) -> float:
        return float(problem.loss.dual_value(s * V)) - s * limit_value

    s = _maximised(value, _squared_end(problem.loss, V, limit_value, limit))
    return ConstrainedDual(s * V, s * mu, value(s))


def _within(loss: AbstractLoss, V: Tensor, limit: float) -> float:
    if isinstance(loss, AbstractMarginLoss):
        return loss.domain_scale(V, limit) if float(loss.box_coordinates(V).max()) > 0 else min(limit, 1e6)
    return limit


def _squared_end(loss: AbstractLoss, V: Tensor, limit_value: float, limit: float) -> float:
    """An upper end of the search: of the squared loss its exact maximiser."""
    if not isinstance(loss, SquaredLoss):
        return limit
    curvature = float(((V * V).sum(1) / loss.weights).sum())
    slope = float((V * loss.targets).sum()) - limit_value
    return min(limit, max(0.0, slope / curvature)) if curvature > 0 else 0.0


def _maximised(value: Callable[[float], float], limit: float) -> float:
    """The best of [0, limit] by golden sections; the ends count."""
    low, high = 0.0, limit
    for _ in range(_SECTIONS):
        left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
        low, high = (left, high) if value(left) < value(right) else (low, right)
    return max((0.0, 0.5 * (low + high), limit), key=value)
