"""The linear program of one input's relaxation, in HiGHS.

Variables are the network's inputs and one value for every undecided entry of a relaxed operation; every other
value of the network is an affine expression of these. An undecided entry obeys its two extreme lower lines
and its upper line: for ReLU the triangle (Ehlers, "Formal verification of piece-wise linear feed-forward
neural networks", ATVA 2017). A region that is not a box enters by tangents, added where a minimiser is outside;
deformed images by the vector fields that make them (`certify.bounds.flow_rows`).

What the solver returns is a hint, never a bound: `certify.bounds.hints` evaluates its multipliers.
"""

from dataclasses import dataclass, field
from math import prod
from typing import Any

import highspy
import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from certify.bounds.base import Bounds
from certify.bounds.flow_rows import add_flow_rows
from certify.errors import InvalidInputError
from certify.ir import Graph
from certify.ir.ops import AbstractAffine
from certify.regions import AbstractRegion
from certify.regions.spatial.deformations import Deformations
from certify.relaxations import relaxation_of

Vector = Float[np.ndarray, " _"]
Matrix = Float[np.ndarray, "_ _"]

# Entries of the largest expression: 1 GiB.
_LARGEST = 2**27
_TANGENTS = 50
# Relative distance from the region at which a minimiser counts as inside.
_NEAR = 1e-7


@dataclass(frozen=True, eq=False)
class Question:
    """The network, one input's region and what is known (batches of one)."""

    graph: Graph
    region: AbstractRegion
    bounds: Bounds


@dataclass(frozen=True, eq=False)
class Relaxed:
    """The undecided entries of one relaxed node: their variables and the rows of their lines.

    Attributes:
        node: id of the relaxed node.
        index: numbers of the undecided entries.
        variable: the variable of the first one; the others follow.
        row: the row of the first one's first line; in all, two lower lines and the upper line follow, each
            for all entries.
        slopes: of the two lower lines and the upper line.
    """

    node: int
    index: Int[np.ndarray, " undecided"]
    variable: int
    row: int
    slopes: Float[np.ndarray, "3 undecided"]


@dataclass(frozen=True, eq=False)
class Cut:
    """after.(entries of a relaxed node) + before.(the same entries of what it reads) <= limit."""

    node: int
    index: Int[np.ndarray, " group"]
    after: Float[np.ndarray, " group"]
    before: Float[np.ndarray, " group"]
    limit: float


@dataclass(frozen=True, eq=False)
class Solution:
    """A minimiser, with a 1 appended for constants, its value, and the multipliers of all rows."""

    value: float
    point: Float[np.ndarray, " variables_and_1"]
    row_dual: Float[np.ndarray, " rows"]


@dataclass(frozen=True, eq=False)
class LinearModel:
    """The relaxation of one input up to a node. Each objective starts from the basis of the one before.

    Attributes:
        region: the input's region (a batch of one).
        expressions: by node its entries, `(entries, variables + 1)`, the constant last.
        relaxed: the relaxed nodes in order.
        solver: holds the program; tangents and cuts are added to it.
        cuts: the cuts so far, with their rows.
    """

    region: AbstractRegion
    expressions: dict[int, Matrix]
    relaxed: tuple[Relaxed, ...]
    solver: highspy.Highs
    cuts: list[tuple[Cut, int]] = field(default_factory=list)

    def minimise(self, objective: Float[np.ndarray, " variables_and_1"]) -> Solution | None:
        """The minimiser of an expression; None where the solver gives up."""
        n = len(objective) - 1
        self.solver.changeColsCost(n, np.arange(n, dtype=np.int32), np.ascontiguousarray(objective[:-1]))
        for _ in range(_TANGENTS):
            if not self._solved():
                return None
            found = self.solver.getSolution()
            point = np.append(np.asarray(found.col_value)[:n], 1.0)
            if not self.add_tangent(point):
                break
        return Solution(float(objective @ point), point, np.asarray(found.row_dual))

    def _solved(self) -> bool:
        """From the last basis; where that fails, from scratch."""
        for _ in range(2):
            self.solver.run()
            if self.solver.getModelStatus() == highspy.HighsModelStatus.kOptimal:
                return True
            self.solver.clearSolver()
        return False

    @property
    def n_rows(self) -> int:
        """Rows of the program by now."""
        return int(self.solver.getNumRow())

    def add_tangent(self, point: Vector) -> bool:
        """Cut a point outside the region off; whether there was a need to."""
        centre = self.region.centre
        inside = torch.as_tensor(point[: centre.shape[1]])[None].to(centre)
        nearest = self.region.project(inside)
        normal = (inside - nearest)[0]
        if float(normal.norm()) <= _NEAR * (float((nearest - centre).norm()) + 1e-9):
            return False
        self.add_row(normal.cpu().numpy(), np.arange(len(normal)), float(normal @ nearest[0]))
        return True

    def add_row(self, coefficients: Vector, variables: Int[np.ndarray, " n"], limit: float) -> None:
        """coefficients.variables <= limit."""
        self.solver.addRow(-np.inf, limit, len(variables), variables.astype(np.int32), coefficients)

    def add_cut(self, cut: Cut, source: int) -> None:
        """One more valid inequality; `source` is the node that the relaxed node reads."""
        row = cut.after @ self.expressions[cut.node][cut.index] + cut.before @ self.expressions[source][cut.index]
        self.cuts.append((cut, self.n_rows))
        self.add_row(row[:-1], np.arange(len(row) - 1), cut.limit - row[-1])


def linear_model(question: Question, upto: int) -> LinearModel:
    """The program of the nodes up to and with `upto`.

    Raises:
        InvalidInputError: for a network too large to be written down densely.
    """
    graph, region, bounds = question.graph, question.region, question.bounds
    undecided = {k: _undecided(graph, bounds, k) for k in range(1, upto + 1) if _is_relaxed(graph, k)}
    n_inputs = region.centre.shape[1]
    width = n_inputs + sum(map(len, undecided.values())) + 1
    _check_size(graph, width, upto)
    program = _Program(width, region)
    expressions = {0: np.eye(n_inputs, width)}
    relaxed = []
    for k in range(1, upto + 1):
        if k in undecided:
            expressions[k], entry = program.relax(graph, bounds, k, undecided[k], expressions)
            relaxed.append(entry)
        else:
            expressions[k] = _affine(graph, k, expressions)
    solver = program.solver()
    if isinstance(region, Deformations):
        add_flow_rows(solver, region)
    return LinearModel(region, expressions, tuple(relaxed), solver)


def _is_relaxed(graph: Graph, k: int) -> bool:
    return not isinstance(graph.nodes[k].op, AbstractAffine)


def _undecided(graph: Graph, bounds: Bounds, k: int) -> Int[np.ndarray, " undecided"]:
    node = graph.nodes[k]
    mask = relaxation_of(node.op).undecided(*bounds[node.inputs[0]])
    return _numpy(mask[0].flatten().nonzero()[:, 0])


def _numpy(value: Tensor) -> np.ndarray:
    return value.cpu().numpy()


def _check_size(graph: Graph, width: int, upto: int) -> None:
    widest = max(prod(node.shape) for node in graph.nodes[: upto + 1])
    if widest * width > _LARGEST:
        raise InvalidInputError(
            f"the linear program would hold {widest} x {width} coefficients, more than {_LARGEST}; this network is"
            ' too large, or its bounds too loose, for "lp" and what builds on it: use "crown" or "alpha-crown"'
        )


def _affine(graph: Graph, k: int, expressions: dict[int, Matrix]) -> Matrix:
    """The operation applied to every column: the bias goes to the constant only."""
    node = graph.nodes[k]
    columns = [torch.as_tensor(expressions[i].T.reshape((-1, *graph.nodes[i].shape))) for i in node.inputs]
    like = next((v for v in vars(node.op).values() if isinstance(v, Tensor)), columns[0])
    moved = node.op.forward(*(c.to(like) for c in columns)).flatten(1)
    bias = node.op.forward(*(torch.zeros_like(c[:1]).to(like) for c in columns)).flatten(1)
    moved[:-1] -= bias
    return np.ascontiguousarray(_numpy(moved.double()).T)


class _Program:
    """Rows and limits on the way to HiGHS."""

    def __init__(self, width: int, region: AbstractRegion) -> None:
        lower, upper = (_numpy(v[0].double()) for v in region.bounding_box())
        self.next_variable = len(lower)
        self.lower, self.upper = np.full(width - 1, -np.inf), np.full(width - 1, np.inf)
        self.lower[: len(lower)], self.upper[: len(upper)] = lower, upper
        self.rows: list[Matrix] = []
        self.limits: list[tuple[Vector, Vector]] = []

    def relax(
        self, graph: Graph, bounds: Bounds, k: int, index: Int[np.ndarray, " undecided"], expressions: dict[int, Matrix]
    ) -> tuple[Matrix, Relaxed]:
        """Expressions of relaxed node k, its variables and its lines."""
        node = graph.nodes[k]
        (source,) = node.inputs
        record, (low, high) = relaxation_of(node.op), bounds[source]
        below = [record.pieces(low, high, torch.full_like(low, slope)) for slope in (0.0, 1.0)]
        above = below[0]
        slope, shift = _flat(above.upper_slope), _flat(above.upper_intercept)
        expression = slope[:, None] * expressions[source]
        expression[:, -1] += shift
        first, inner = self._add_variables(len(index)), expressions[source][index]
        expression[index] = 0.0
        expression[index, first + np.arange(len(index))] = 1.0
        entry = Relaxed(
            k,
            index,
            first,
            sum(map(len, self.rows)),
            np.stack([*(_flat(p.lower_slope)[index] for p in below), slope[index]]),
        )
        for pieces in below:
            start = 0.0 if pieces.lower_intercept is None else _flat(pieces.lower_intercept)[index]
            self._add_line(expression[index] - _flat(pieces.lower_slope)[index, None] * inner, start, np.inf)
        self._add_line(expression[index] - slope[index, None] * inner, -np.inf, shift[index])
        return expression, entry

    def _add_variables(self, count: int) -> int:
        """Free: their lines hold them, so that all multipliers are on rows."""
        first = self.next_variable
        self.next_variable += count
        return first

    def _add_line(self, row: Matrix, lower: Any, upper: Any) -> None:
        self.rows.append(row[:, :-1])
        self.limits.append((lower - row[:, -1], upper - row[:, -1]))

    def solver(self) -> highspy.Highs:
        """The program in a solver of its own."""
        rows = np.concatenate(self.rows) if self.rows else np.zeros((0, len(self.lower)))
        lp = highspy.HighsLp()
        lp.num_row_, lp.num_col_ = rows.shape
        lp.col_cost_ = np.zeros(len(self.lower))
        lp.col_lower_, lp.col_upper_ = self.lower, self.upper
        lp.row_lower_, lp.row_upper_ = self._row_limits()
        start, index = np.nonzero(rows)
        lp.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
        lp.a_matrix_.start_ = np.searchsorted(start, np.arange(len(rows) + 1)).astype(np.int32)
        lp.a_matrix_.index_ = index.astype(np.int32)
        lp.a_matrix_.value_ = rows[start, index]
        solver = _SilentHighs()
        solver.setOptionValue("threads", 1)
        # After a change of the objective, the dual simplex takes half the time of the primal one.
        solver.setOptionValue("simplex_strategy", 1)
        solver.passModel(lp)
        return solver

    def _row_limits(self) -> tuple[Vector, Vector]:
        if not self.limits:
            return np.zeros(0), np.zeros(0)
        lower, upper = zip(*self.limits, strict=True)
        return np.concatenate(lower), np.concatenate(upper)


class _SilentHighs(highspy.Highs):
    """Nothing on standard output, where pipelines read answers: HiGHS says its name when it takes up its callbacks."""

    def enableCallbacks(self) -> None:  # noqa: N802
        self.setOptionValue("output_flag", False)
        super().enableCallbacks()
        self.setOptionValue("output_flag", False)


def _flat(value: Tensor) -> Vector:
    return _numpy(value[0].double().flatten())
