"""What the convex programs share: their data, their points, and what is known at a point."""

import abc
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from convexnn.errors import InvalidInputError
from convexnn.neurons import Neurons
from convexnn.operators import ConeMap, GatedMap
from convexnn.patterns import Patterns
from convexnn.penalties import AbstractPenalty, GroupPenalty
from convexnn.problem import Problem


@dataclass(frozen=True)
class ConvexPoint:
    """Weights of a convex program: a block of d weights for each sign, output and pattern, and an output bias."""

    U: Float[Tensor, "S K P d"]
    bias: Float[Tensor, " K"]

    def to(self, target: torch.device | torch.dtype) -> "ConvexPoint":
        """The same point on another device or in another precision."""
        return ConvexPoint(self.U.to(target), self.bias.to(target))


@dataclass(frozen=True)
class AbstractProgram(abc.ABC):
    """min over blocks u of L(sum of signed D_p X u) + weight_decay * (sum of the norms of the blocks).

    Several outputs have a block each for every pattern: they share the loss, not the blocks.
    """

    problem: Problem
    patterns: Patterns
    penalty: AbstractPenalty = field(default_factory=GroupPenalty)

    name: ClassVar[str]
    signs: ClassVar[tuple[float, ...]]  # of the copies of each block

    def __post_init__(self) -> None:
        if len(self.patterns) == 0:
            raise InvalidInputError("a convex program needs at least one activation pattern, and there are none.")
        expected, given = tuple(self.problem.X.shape), (self.patterns.D.shape[1], self.patterns.gates.shape[1])
        if given != expected:
            raise InvalidInputError(
                f"the patterns are of {given[0]} samples with {given[1]} columns; the data have {expected}."
            )

    @cached_property
    def gated(self) -> GatedMap:
        """The linear map of the blocks of one sign and output."""
        return GatedMap(self.problem.X, self.patterns.D.to(self.problem.X.dtype))

    @cached_property
    def live(self) -> Bool[Tensor, " n"]:
        """Samples that are not zero, those that have slacks."""
        return self.problem.X.norm(dim=1) > 0

    @property
    @abc.abstractmethod
    def cone(self) -> ConeMap | None:
        """The constraints of each block, if there are any."""

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Signs, outputs, patterns, columns."""
        return len(self.signs), self.problem.loss.n_outputs, len(self.patterns), self.problem.n_inputs

    @cached_property
    def sign_column(self) -> Float[Tensor, "S 1 1 1"]:
        """The signs, to multiply blocks with."""
        return torch.tensor(self.signs).to(self.problem.X)[:, None, None, None]

    def zero(self) -> ConvexPoint:
        """No weights, and the best constant output."""
        return ConvexPoint(self.problem.X.new_zeros(self.shape), self.problem.constant())

    def output(self, point: ConvexPoint) -> Float[Tensor, "n K"]:
        """F = sum of signed D_p X u, plus the bias."""
        return self.gated.forward((self.sign_column * point.U).sum(0)).T + point.bias

    def correlations(self, V: Float[Tensor, "n K"]) -> Float[Tensor, "S K P d"]:
        """sign * X'D_p v_k: minus the gradient of the loss with respect to each block, for V = -grad L."""
        return self.sign_column * self.gated.adjoint(V.T)

    def objective(self, point: ConvexPoint) -> float:
        """The convex objective, whether or not the point is feasible."""
        loss = self.problem.loss.value(self.output(point))
        return float(loss + self.problem.weight_decay * self.penalty.value(point.U))

    def violation(self, point: ConvexPoint) -> float:
        """By how much the worst slack is negative; zero at feasible points."""
        if self.cone is None:
            return 0.0
        return float((-self.cone.forward(point.U)).amax().clamp(min=0.0)) if self.cone.X.shape[0] else 0.0

    def feasible(self, point: ConvexPoint) -> ConvexPoint:
        """A point of the program near this one."""
        return point if self.cone is None else replace(point, U=self.cone.repaired(point.U, self.patterns.gates))

    def maximum(self, V: Float[Tensor, "n K"], multipliers: Float[Tensor, "S K P m"] | None = None) -> float:
        """An upper bound of max c'u over blocks of norm one in their cones, c = :meth:`correlations` of V.

        For a block in the cone, c'u <= (c + G'a)'u <= dual norm of c + G'a for every a >= 0, so that
        any multipliers give a valid bound; negative entries count as zero.
        """
        C = self.correlations(V)
        if self.cone is not None and multipliers is not None:
            C = C + self.cone.adjoint(multipliers.clamp(min=0.0))
        return float(self.penalty.dual_norms(C).max())

    @abc.abstractmethod
    def network(self, point: ConvexPoint) -> Neurons:
        """A ReLU network with the outputs of a feasible point on the data."""

    def to(self, target: torch.device | torch.dtype) -> "AbstractProgram":
        """The same program on another device or in another precision."""
        return replace(self, problem=self.problem.to(target), patterns=self.patterns.to(target))


def neurons_of(
    U: Float[Tensor, "S K P d"], signs: tuple[float, ...], bias: Float[Tensor, " K"], tolerance: float = 0.0
) -> Neurons:
    """One neuron for each block u: first layer u, second layer its sign in its output, balanced.

    Blocks at or below ``tolerance`` times the largest norm are left out.
    """
    norms = U.norm(dim=-1)
    S, K, P = torch.nonzero(norms > tolerance * norms.max() if norms.numel() else norms > 0, as_tuple=True)
    A = U.new_zeros((len(K), U.shape[1]))
    A[torch.arange(len(K), device=A.device), K] = torch.tensor(signs).to(U)[S]
    return Neurons(U[S, K, P], A, bias).balanced()
