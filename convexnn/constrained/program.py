"""Convex programs over fixed activation patterns with linear constraints on predictions.

The points are the training samples and the extra points. Patterns, and the cones of ReLU programs, are of all of
them: a neuron keeps its side at the extra points too, so that the program's outputs are the network's everywhere a
constraint looks (Pilanci & Ergen 2020 for the program; Elenter et al. 2024 for constraints on predictions).
"""

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from convexnn.constraints import Constraints
from convexnn.errors import InvalidInputError
from convexnn.problem import Problem
from convexnn.programs import AbstractProgram, ConvexPoint


@dataclass(frozen=True)
class Rows:
    """A f <= b over all points, training samples first; every row that can bind is of norm one."""

    A: Float[Tensor, "m N"]
    b: Float[Tensor, " m"]
    scales: Float[Tensor, " m"]  # what the user's rows were divided by
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.b)

    @cached_property
    def totals(self) -> Float[Tensor, " m"]:
        """What an output bias of one does to each row."""
        return self.A.sum(1)

    def take(self, keep: Tensor) -> "Rows":
        """Some of the rows."""
        index = torch.arange(len(self))[keep]
        names = tuple(self.names[k] for k in index.tolist())
        return Rows(self.A[index], self.b[index], self.scales[index], names)

    def excess(self, F: Float[Tensor, "N 1"]) -> Float[Tensor, " m"]:
        """A f - b in the user's units; positive where a row is violated."""
        return (self.A @ F[:, 0] - self.b) * self.scales


@dataclass(frozen=True)
class ConstrainedProgram:
    """The problem of the training samples, a program over all points, and the rows.

    The loss of ``wide`` gives the extra points the weight zero.
    """

    problem: Problem
    wide: AbstractProgram
    rows: Rows

    @property
    def n(self) -> int:
        """Training samples; they are the first of the points."""
        return len(self.problem.X)

    def pulled(self, V: Float[Tensor, "n 1"], mu: Float[Tensor, " m"]) -> Float[Tensor, "N 1"]:
        """W = (V, 0) - A'mu: what the blocks see of a dual point."""
        W = -(self.rows.A.T @ mu)[:, None]
        W[: self.n] += V
        return W

    def objective(self, point: ConvexPoint) -> float:
        """The convex objective of the training samples."""
        loss = self.problem.loss.value(self.wide.output(point)[: self.n])
        return float(loss + self.problem.weight_decay * self.wide.penalty.value(point.U))

    def excess(self, point: ConvexPoint) -> Float[Tensor, " m"]:
        """A f - b."""
        return self.rows.excess(self.wide.output(point))


def read_rows(constraints: Constraints, X: Float[Tensor, "n c"]) -> tuple[Float[Tensor, "N c"], Rows]:
    """All points, and the rows over them; extra points that are there already share their column.

    ``X`` holds the user's features. Equal training samples keep their own columns.

    Raises:
        InvalidInputError: the constraints are on another number of samples or columns.
    """
    n, A = len(X), constraints.A
    if A is not None and A.shape[1] != n:
        raise InvalidInputError(f"the constraints weigh {A.shape[1]} training samples; X has {n}.")
    A = torch.zeros(len(constraints), n, dtype=torch.float64) if A is None else A
    points = X
    if constraints.X_extra is not None:
        extra = constraints.X_extra
        if extra.shape[1] != X.shape[1]:
            raise InvalidInputError(f"the extra points have {extra.shape[1]} columns; X has {X.shape[1]}.")
        points, place = _merged(X, extra)
        A = torch.cat([A, A.new_zeros(len(A), len(points) - n)], 1).index_add(1, place, constraints.A_extra)
    norms = A.norm(dim=1)
    scales = torch.where(norms > 0, norms, 1.0)
    return points, Rows(A / scales[:, None], constraints.b / scales, scales, tuple(constraints.names or ()))


def _merged(X: Float[Tensor, "n c"], extra: Float[Tensor, "e c"]) -> tuple[Tensor, Tensor]:
    """X and the extra points that are new, and the row of each extra point."""
    known = {row.tobytes(): k for k, row in reversed(list(enumerate((X + 0.0).numpy())))}
    place: list[int] = []
    fresh: list[int] = []
    for k, row in enumerate((extra + 0.0).numpy()):  # + 0.0: minus zero is zero
        at = known.setdefault(row.tobytes(), len(X) + len(fresh))
        if at == len(X) + len(fresh):
            fresh.append(k)
        place.append(at)
    return torch.cat([X, extra[fresh]]), torch.tensor(place)


def widened(problem: Problem, X: Float[Tensor, "N d"]) -> Problem:
    """The problem on all points, those beyond its samples with the weight zero."""
    loss, more = problem.loss, len(X) - len(problem.X)
    targets = torch.cat([loss.targets, loss.targets[:1].expand(more, -1)])
    return replace(
        problem, X=X, loss=replace(loss, targets=targets, weights=torch.cat([loss.weights, X.new_zeros(more)]))
    )
