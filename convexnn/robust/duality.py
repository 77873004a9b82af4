"""The judge of the robust programs: objective and bound at given points, whoever found them.

With multipliers lambda+ of the lower and lambda- of the upper bound of each output, V = lambda+ - lambda-
and T = lambda+ + lambda-, the Lagrangian is linear in z_k but for T_k r(z_k) = max mu_k'z_k over mu_k in
T_k times the ball. Each block meets c_p = sign * sum_k D_pk (V_k x_k - mu_k), and for multipliers
a >= 0 of its slacks (hard cones), or of its excesses, then at most lambda- (sign +1) or lambda+ (-1),
wd ||u|| - c'u - a'slack(u) >= 0 for every u if dist(c + X'(2D - I) a, (1'a) * ball) <= wd. Everything is
homogeneous, so that a point that violates this is scaled down.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from convexnn.programs import ConvexPoint
from convexnn.result import relative_gap
from convexnn.robust.program import AbstractRobustProgram


@dataclass(frozen=True)
class RobustDual:
    """A point of the dual; see the module. ``worst`` is mu_k / T_k, a point of the ball for each sample."""

    below: Float[Tensor, " n"]  # lambda+
    above: Float[Tensor, " n"]  # lambda-
    worst: Float[Tensor, "n d"]
    multipliers: Float[Tensor, "2 P n"]  # a

    @property
    def net(self) -> Float[Tensor, " n"]:
        """Minus the derivative of the loss with respect to the output."""
        return self.below - self.above

    @property
    def total(self) -> Float[Tensor, " n"]:
        """The weight on the reach of the output."""
        return self.below + self.above

    def scaled(self, factor: float) -> "RobustDual":
        """The dual is homogeneous but for ``worst``."""
        return RobustDual(factor * self.below, factor * self.above, self.worst, factor * self.multipliers)


@dataclass(frozen=True)
class RobustJudgement:
    """What is known about a robust program at a point and a dual point."""

    point: ConvexPoint  # feasible
    objective: float
    dual: RobustDual  # feasible
    bound: float

    def gap(self, floor: float = 0.0) -> float:
        """Relative gap of the program."""
        return relative_gap(self.objective, self.bound, floor)


def judge_robust(program: AbstractRobustProgram, point: ConvexPoint, dual: RobustDual) -> RobustJudgement:
    """Objective at the feasible point near ``point``, and the bound of the feasible dual near ``dual``.

    Weak duality makes the bound valid for any dual point; poor ones give poor bounds.
    """
    feasible = program.feasible(point)
    best, bound = bound_of(program, dual)
    return RobustJudgement(feasible, program.objective(feasible), best, bound)


def bound_of(program: AbstractRobustProgram, dual: RobustDual) -> tuple[RobustDual, float]:
    """The dual point made feasible at its best scale, and its value: a lower bound of the program's optimum."""
    dual = admitted(program, dual)
    largest = float(block_norms(program, dual).max())
    limit = program.problem.weight_decay / largest if largest > 0 else 1e300
    return at_best_scale(program, dual, limit)


def admitted(program: AbstractRobustProgram, dual: RobustDual) -> RobustDual:
    """Inside the domain of the loss, with 1'V = 0 where an output bias is trained, and multipliers in their ranges."""
    below, above = dual.below.clamp(min=0.0), dual.above.clamp(min=0.0)
    problem = program.problem
    if program.margin_loss:
        up = program.targets > 0
        V = problem.admit(torch.where(up, below, -above)[:, None])[:, 0]
        below, above = torch.where(up, V, 0.0).clamp(min=0.0), torch.where(up, 0.0, -V).clamp(min=0.0)
    else:
        V = problem.admit((below - above)[:, None])[:, 0]
        T = torch.maximum(below + above, V.abs())
        below, above = 0.5 * (T + V), 0.5 * (T - V)
    multipliers = dual.multipliers.clamp(min=0.0)
    if program.soft:
        multipliers = torch.minimum(multipliers, torch.stack([above, below])[:, None])
    return RobustDual(below, above, program.ball.clipped(dual.worst), multipliers)


def correlations(program: AbstractRobustProgram, dual: RobustDual) -> Float[Tensor, "2 P d"]:
    """c_p = sign * sum_k D_pk (V_k x_k - T_k worst_k)."""
    rows = dual.net[:, None] * program.problem.X - dual.total[:, None] * dual.worst
    return program.signs * (program.mask @ rows)


def block_norms(program: AbstractRobustProgram, dual: RobustDual) -> Float[Tensor, "2 P"]:
    """dist(c + X'(2D - I) a, (1'a) * ball) of each block: the weight decay that the dual point needs there."""
    pulled = correlations(program, dual) + (program.sides * dual.multipliers) @ program.problem.X
    near = program.ball.project(pulled, dual.multipliers.sum(-1))
    return (pulled - near).norm(dim=-1)


def value(program: AbstractRobustProgram, dual: RobustDual) -> float:
    """The dual objective of a feasible dual point."""
    loss = program.problem.loss
    plain = float(loss.dual_value(dual.net[:, None]))
    if program.margin_loss:
        return plain
    return plain - 2 * float((dual.below * dual.above / loss.weights).sum())  # T^2 in the place of V^2


def at_best_scale(program: AbstractRobustProgram, dual: RobustDual, limit: float) -> tuple[RobustDual, float]:
    """The dual point times the best factor up to ``limit``, and its value."""
    loss = program.problem.loss
    if program.margin_loss:
        scale = loss.best_scale(dual.net[:, None], limit)
    else:
        curvature = float((dual.total**2 / loss.weights).sum())
        slope = float((dual.net * program.targets).sum())
        scale = min(limit, max(0.0, slope) / curvature) if curvature > 0 else 0.0
    best = replace(dual.scaled(scale), multipliers=scale * dual.multipliers)
    return best, value(program, best)
