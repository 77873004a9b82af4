"""The robust convex programs: weights for fixed activation patterns whose worst case over a ball is known.

Write z_k = sum of signed D_pk u_p for the slope of the network at sample k, r for the support function
of the ball. Where no pattern changes on the ball around x_k, the outputs there are
x_k'z_k + b -+ r(z_k) at the extremes, and the worst case of a loss that is convex in the output is at
one of them (Bai, Gautam, Gai & Sojoudi 2021; Bai, Gautam & Sojoudi 2022).
"""

import abc
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from convexnn.errors import InvalidInputError
from convexnn.losses import AbstractMarginLoss
from convexnn.neurons import Neurons
from convexnn.patterns import Patterns
from convexnn.problem import Problem
from convexnn.programs import ConvexPoint
from convexnn.programs.base import neurons_of
from convexnn.robust.ball import Ball

LOSSES = ("squared", "logistic", "hinge")
SIGNS = (1.0, -1.0)


@dataclass(frozen=True)
class Outputs:
    """Bounds of the network's output over the ball around each sample."""

    low: Float[Tensor, " n"]
    high: Float[Tensor, " n"]


def worst_outputs(targets: Float[Tensor, "n 1"], outputs: Outputs, *, margin: bool) -> Float[Tensor, "n 1"]:
    """The output between the bounds with the greatest loss.

    Losses of the margin y f fall with it; the squared loss grows with the distance to the target.
    """
    y, low, high = targets[:, 0], outputs.low, outputs.high
    downwards = y > 0 if margin else y - low > high - y
    return torch.where(downwards, low, high)[:, None]


@dataclass(frozen=True)
class AbstractRobustProgram(abc.ABC):
    """min over blocks u of (worst case of L over the ball) + weight_decay * sum of ||u||, one output.

    Blocks are (sign, pattern): u of shape (2, P, d), stored as a :class:`ConvexPoint` of shape (2, 1, P, d).
    """

    problem: Problem
    patterns: Patterns
    ball: Ball

    name: ClassVar[str]
    soft: ClassVar[bool]

    def __post_init__(self) -> None:
        n, d = self.problem.X.shape
        if self.problem.loss.name not in LOSSES:
            raise InvalidInputError(
                f"robust programs take the losses {', '.join(LOSSES)}; got {self.problem.loss.name!r}."
            )
        if self.problem.loss.n_outputs != 1:
            raise InvalidInputError(f"robust programs have one output; the targets have {self.problem.loss.n_outputs}.")
        if len(self.patterns) == 0:
            raise InvalidInputError("a convex program needs at least one activation pattern, and there are none.")
        if self.patterns.D.shape[1] != n or len(self.ball.radii) != d:
            raise InvalidInputError(
                f"the patterns are of {self.patterns.D.shape[1]} samples and the ball of {len(self.ball.radii)} "
                f"columns; the data have {n} and {d}."
            )

    @property
    def shape(self) -> tuple[int, int, int]:
        """Signs, patterns, columns."""
        return 2, len(self.patterns), self.problem.n_inputs

    @property
    def margin_loss(self) -> bool:
        """Whether the loss falls with y f; else it is the squared one."""
        return isinstance(self.problem.loss, AbstractMarginLoss)

    @cached_property
    def targets(self) -> Float[Tensor, " n"]:
        """The one column of targets."""
        return self.problem.loss.targets[:, 0]

    @cached_property
    def mask(self) -> Float[Tensor, "P n"]:
        """The patterns as numbers 0 and 1."""
        return self.patterns.D.to(self.problem.X.dtype)

    @cached_property
    def sides(self) -> Float[Tensor, "P n"]:
        """The patterns as numbers -1 and 1."""
        return 2.0 * self.mask - 1.0

    @cached_property
    def signs(self) -> Float[Tensor, "2 1 1"]:
        """The signs of the two copies of each pattern."""
        return torch.tensor(SIGNS).to(self.problem.X)[:, None, None]

    def zero(self) -> ConvexPoint:
        """No weights, and the best constant output."""
        S, P, d = self.shape
        return ConvexPoint(self.problem.X.new_zeros((S, 1, P, d)), self.problem.constant())

    def slopes(self, point: ConvexPoint) -> Float[Tensor, "n d"]:
        """z_k = sum of signed D_pk u_p."""
        return self.mask.T @ (self.signs * point.U[:, 0]).sum(0)

    def slack(self, U: Float[Tensor, "2 P d"]) -> Float[Tensor, "2 P n"]:
        """(2D - I) X u - r(u): non-negative where no point of the ball changes the pattern."""
        return self.sides * (U @ self.problem.X.T) - self.ball.support(U)[..., None]

    def output(self, point: ConvexPoint) -> Float[Tensor, "n 1"]:
        """The outputs at the samples themselves, patterns fixed."""
        return (self.problem.X * self.slopes(point)).sum(1, keepdim=True) + point.bias

    @abc.abstractmethod
    def bounds(self, point: ConvexPoint) -> Outputs:
        """Bounds of the output over the balls."""

    @abc.abstractmethod
    def feasible(self, point: ConvexPoint) -> ConvexPoint:
        """A point of the program near this one."""

    def violation(self, point: ConvexPoint) -> float:
        """By how much the worst slack is negative; zero at feasible points."""
        del point
        return 0.0

    def objective(self, point: ConvexPoint) -> float:
        """The convex objective, whether or not the point is feasible."""
        F = worst_outputs(self.problem.loss.targets, self.bounds(point), margin=self.margin_loss)
        return float(self.problem.loss.value(F) + self.problem.weight_decay * point.U.norm(dim=-1).sum())

    def network(self, point: ConvexPoint) -> Neurons:
        """One neuron for each block that is not zero, at a feasible point near this one."""
        feasible = self.feasible(point)
        return neurons_of(feasible.U, SIGNS, feasible.bias)

    def _linear(self, point: ConvexPoint) -> tuple[Tensor, Tensor]:
        Z = self.slopes(point)
        return (self.problem.X * Z).sum(1) + point.bias, self.ball.support(Z)


class HardRobustProgram(AbstractRobustProgram):
    """Blocks keep their pattern on the whole ball: (2D_p - I) X u >= r(u) for every sample.

    Source: Bai, Gautam & Sojoudi (2022). The worst case of the network is then exact. ``patterns.gates`` are
    directions strictly inside these cones.
    """

    name: ClassVar[str] = "robust-hard"
    soft: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        inside = self.slack(self.patterns.gates.expand(2, -1, -1))[0].amin(1)
        if bool((inside <= 0).any()):
            raise InvalidInputError(
                f"{int((inside <= 0).sum())} of {len(inside)} directions are not inside the robust cones of their "
                "patterns; keep the patterns that survive the radius: convexnn.robust.sampling.surviving."
            )

    @cached_property
    def inside(self) -> Float[Tensor, "P n"]:
        """The slacks of the directions."""
        return self.slack(self.patterns.gates.expand(2, -1, -1))[0]

    def bounds(self, point: ConvexPoint) -> Outputs:
        """x'z + b -+ r(z): exact at feasible points."""
        f, reach = self._linear(point)
        return Outputs(f - reach, f + reach)

    def violation(self, point: ConvexPoint) -> float:
        """By how much the worst slack is negative."""
        return float((-self.slack(point.U[:, 0])).amax().clamp(min=0.0))

    def feasible(self, point: ConvexPoint) -> ConvexPoint:
        """The nearest points u + t g, t >= 0, inside the cones: slacks add up at least, as r is subadditive."""
        U = point.U[:, 0]
        short = (-self.slack(U) / self.inside).amax(-1).clamp(min=0.0)
        return replace(point, U=(U + short[..., None] * self.patterns.gates)[:, None])


class SoftRobustProgram(AbstractRobustProgram):
    """No cones: what a change of pattern can cost is added to the loss.

    The output is at least x'z + b - r(z) - sum over blocks of sign -1 of (r(u) - (2D - I) x'u)_+, and at
    most the same with the other signs: (t)_+ >= D t on any interval, and (t)_+ <= D t + (r - (2D - 1) t)_+ where
    t is within r of its value at the sample. On the feasible set of the hard program both objectives are
    equal, so that the optimum is never above the hard one; everywhere it is at least the network's worst case.
    """

    name: ClassVar[str] = "robust-soft"
    soft: ClassVar[bool] = True

    def bounds(self, point: ConvexPoint) -> Outputs:
        """Bounds of the output over the balls, of any weights."""
        f, reach = self._linear(point)
        excess = (-self.slack(point.U[:, 0])).clamp(min=0.0).sum(1)
        return Outputs(f - reach - excess[1], f + reach + excess[0])

    def feasible(self, point: ConvexPoint) -> ConvexPoint:
        """Every point is."""
        return point

    @cached_property
    def harmful(self) -> Bool[Tensor, "2 1 n"]:
        """Whether a change of pattern of a block can cost anything: for losses of the margin, where y s < 0."""
        if not self.margin_loss:
            return torch.ones((2, 1, len(self.targets)), dtype=torch.bool, device=self.targets.device)
        return self.signs * self.targets < 0
