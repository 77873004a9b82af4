"""The judge of optimality: dual bounds at a given point, by other code than made the point."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from convexnn.ascent import Candidates, ColumnPairs, evaluate, merge
from convexnn.neurons import Neurons
from convexnn.pricing import Effort, search, starting_points
from convexnn.problem import Problem
from convexnn.programs import AbstractProgram, ConvexPoint
from convexnn.result import relative_gap


@dataclass(frozen=True)
class DualPoint:
    """A point of the dual's domain, with M(V) <= weight_decay as far as the search could see."""

    V: Float[Tensor, "n K"]
    bound: float  # D(V)


@dataclass(frozen=True)
class Judgement:
    """A dual point, and the neurons found in the search for its maximum."""

    dual: DualPoint
    candidates: Candidates


def dual_point(problem: Problem, V: Float[Tensor, "n K"], maximum: float) -> DualPoint:
    """s V at the best s <= weight_decay / maximum, and D(s V).

    This is a lower bound on the objective of every network where ``maximum`` is an upper bound of
    M(V) = max ||V'(Xu)_+|| over the unit ball; V must lie in the domain of the dual, with 1'V = 0
    where an output bias is trained.
    """
    limit = problem.weight_decay / maximum if maximum > 0 else 1e300
    V = problem.loss.best_scale(V, limit) * V
    return DualPoint(V, float(problem.loss.dual_value(V)))


def dual_bound(problem: Problem, V: Float[Tensor, "n K"], maximum: float) -> float:
    """The bound of :func:`dual_point`."""
    return dual_point(problem, V, maximum).bound


def largest_maximum(problem: Problem, dual: DualPoint, target: float, steps: int = 40) -> float:
    """The M up to which the bound at V stays above ``target``: weight_decay / s with D(s V) = target."""
    low, high = 0.0, 1.0
    for _ in range(steps):
        middle = 0.5 * (low + high)
        above = float(problem.loss.dual_value(middle * dual.V)) >= target
        low, high = (low, middle) if above else (middle, high)
    return problem.weight_decay / high


def judge(
    problem: Problem,
    V: Float[Tensor, "n K"],
    neurons: Neurons,
    *,
    effort: Effort,
    generator: torch.Generator,
    known: Float[Tensor, "m d"] | None = None,
    pairs: ColumnPairs | None = None,
    enough: float = float("inf"),
) -> Judgement:
    """The local-search bound at V from fresh starts, the network's own neurons and known directions.

    A value above ``enough`` decides the case, and the search ends early.
    """
    found = search(
        problem.X,
        V,
        starting_points(problem.X, V, neurons, effort.n_starts, generator),
        effort=effort,
        scale=problem.typical_activation(),
        generator=generator,
        known=known,
        pairs=pairs,
        enough=enough,
    )
    candidates = merge(found, evaluate(problem.X, V, neurons.W))
    return Judgement(dual_point(problem, V, candidates.best()), candidates)


@dataclass(frozen=True)
class ProgramJudgement:
    """What is known about a convex program over given patterns at a point and a dual point."""

    point: ConvexPoint  # feasible
    objective: float  # convex objective at that point
    dual: DualPoint  # its bound holds for the program, and says nothing about other patterns

    def gap(self, floor: float = 0.0) -> float:
        """Relative gap of the program."""
        return relative_gap(self.objective, self.dual.bound, floor)


def judge_program(
    program: AbstractProgram,
    point: ConvexPoint,
    V: Float[Tensor, "n K"],
    multipliers: Float[Tensor, "S K P m"] | None = None,
) -> ProgramJudgement:
    """Objective at the feasible point near ``point``, and the bound of V with these cone multipliers.

    Weak duality makes the bound valid for any V, which is moved into the domain of the dual first, and any multipliers.
    """
    feasible = program.feasible(point)
    V = program.problem.admit(V)
    dual = dual_point(program.problem, V, program.maximum(V, multipliers))
    return ProgramJudgement(feasible, program.objective(feasible), dual)
