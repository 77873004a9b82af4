"""The judge of optimality: dual bounds at a given point, by other code than made the point."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from convexnn.neurons import Neurons
from convexnn.pricing import Candidates, ColumnPairs, Effort, evaluate, merge, search, starting_points
from convexnn.problem import Problem


@dataclass(frozen=True)
class Judgement:
    """A dual point, the neurons found for it and the bound that follows."""

    V: Float[Tensor, "n K"]
    candidates: Candidates
    bound: float


def dual_bound(problem: Problem, V: Float[Tensor, "n K"], maximum: float) -> float:
    """D(s V) at the best s <= weight_decay / maximum.

    This is a lower bound on the objective of every network where ``maximum`` is an upper bound of
    M(V) = max ||V'(Xu)_+|| over the unit ball; V must lie in the domain of the dual, with 1'V = 0
    where an output bias is trained.
    """
    limit = problem.weight_decay / maximum if maximum > 0 else 1e300
    scale = problem.loss.best_scale(V, limit)
    return float(problem.loss.dual_value(scale * V))


def bound_at(problem: Problem, V: Float[Tensor, "n K"], directions: Float[Tensor, "S d"]) -> float:
    """The dual bound at V where the best of the given directions stands for the maximum M(V)."""
    return dual_bound(problem, V, evaluate(problem.X, V, directions).best())


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
    return Judgement(V, candidates, dual_bound(problem, V, candidates.best()))
