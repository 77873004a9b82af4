"""The network on one input's region as a mixed-integer program, in HiGHS.

The linear program of `certify.bounds.linear_model` with a binary phase d for every undecided ReLU entry:

    a <= u d ,     a <= z - l (1 - d) ,     beside a >= 0 and a >= z

(Tjeng, Xiao & Tedrake, "Evaluating robustness of neural networks with mixed integer programming", ICLR 2019). The
bounds l <= z <= u are the big-M constants: the tighter they are, the smaller the tree.

HiGHS works in floating point, accepts violations of 1e-7 to 1e-6, and hands out no tree that could be checked.
What it says is a `Claim`: a bound without a proof, and a point that is a candidate for a counterexample.
"""

from dataclasses import dataclass

import highspy
import numpy as np
from jaxtyping import Float, Int

from certify.bounds.linear_model import LinearModel, Question, Relaxed, Vector, linear_model
from certify.errors import UnsupportedOp
from certify.ir import Graph
from certify.ir.ops import AbstractAffine, ReLU
from certify.search.deadline import Deadline

# Programs in a row for a region that is not a box: its tangents are added where a minimiser is outside.
_TANGENTS = 20
_GAP = 1e-6
_ENDS = {
    highspy.HighsModelStatus.kOptimal: "optimal",
    highspy.HighsModelStatus.kInfeasible: "empty",
    highspy.HighsModelStatus.kUnboundedOrInfeasible: "empty",
}


@dataclass(frozen=True, eq=False)
class Claim:
    """What the solver says about a minimum, in floating point and without proof.

    Attributes:
        bound: of the minimum from below; minus infinity where it says nothing.
        point: the input of the best solution it found, flat; None where it found none.
        finished: whether it was not stopped by the time limit.
    """

    bound: float
    point: Vector | None
    finished: bool


def require_relu(graph: Graph) -> None:
    """Raises `UnsupportedOp` for a network with activations that are not piecewise linear."""
    others = {type(n.op).__name__ for n in graph.nodes[1:] if not isinstance(n.op, AbstractAffine | ReLU)}
    if others:
        raise UnsupportedOp(
            f"the network has {', '.join(sorted(others))}, which no mixed-integer linear program holds exactly;"
            ' use method="auto", "alpha-crown" or "lp"'
        )


@dataclass(frozen=True, eq=False)
class MixedIntegerModel:
    """The program of one input.

    Attributes:
        linear: its linear relaxation; the same solver holds the phases.
        phases: how many there are.
    """

    linear: LinearModel
    phases: int

    @staticmethod
    def of(question: Question) -> "MixedIntegerModel":
        """From bounds on all nodes below the output; raises `UnsupportedOp`, and `InvalidInputError` for size."""
        require_relu(question.graph)
        linear = linear_model(question, question.graph.output)
        linear.solver.setOptionValue("mip_rel_gap", _GAP)
        return MixedIntegerModel(linear, sum(_add_phases(question, linear, entry) for entry in linear.relaxed))

    def minimise(
        self,
        objective: Float[np.ndarray, " variables_and_1"],
        deadline: Deadline,
        *,
        below: float | None = None,
        goal: float = -np.inf,
    ) -> Claim:
        """What HiGHS says about the least value of an expression.

        Args:
            objective: coefficients on the variables of the linear program, and a constant.
            deadline: HiGHS gets what is left of it.
            below: larger values do not matter; without a smaller one the claim is this number.
            goal: the first solution with at most this value is good enough.
        """
        solver, n = self.linear.solver, len(objective) - 1
        columns, constant = np.arange(n), float(objective[-1])
        solver.changeColsCost(n, columns.astype(np.int32), np.ascontiguousarray(objective[:-1]))
        solver.setOptionValue("objective_target", goal - constant)
        cutoff = self.linear.n_rows
        if below is not None:
            self.linear.add_row(np.ascontiguousarray(objective[:-1]), columns, below - constant)
        claim = self._with_tangents(constant, deadline, below)
        if below is not None:
            solver.deleteRows(1, np.array([cutoff], dtype=np.int32))
        return claim

    def _with_tangents(self, constant: float, deadline: Deadline, below: float | None) -> Claim:
        claim = Claim(-np.inf, None, deadline.expired)
        for _ in range(_TANGENTS):
            if deadline.expired:
                return Claim(claim.bound, claim.point, False)
            claim = self._run(constant, deadline, below)
            if claim.point is None or not self.linear.add_tangent(np.append(claim.point, 1.0)):
                break
        return claim

    def _run(self, constant: float, deadline: Deadline, below: float | None) -> Claim:
        solver = self.linear.solver
        left = np.inf if deadline.seconds is None else max(deadline.seconds - deadline.elapsed, 0.0)
        solver.setOptionValue("time_limit", solver.getRunTime() + left)
        solver.run()
        status, info = solver.getModelStatus(), solver.getInfo()
        end = _ENDS.get(status, "stopped")
        if end == "empty":
            return Claim(-np.inf if below is None else below, None, True)
        has_point = info.primal_solution_status == highspy.SolutionStatus.kSolutionStatusFeasible
        values = np.asarray(solver.getSolution().col_value) if has_point else None
        point = None if values is None else values[: self.linear.region.centre.shape[1]]
        if self.phases == 0:
            bound = float(info.objective_function_value) if end == "optimal" else -np.inf
        else:
            bound = float(info.mip_dual_bound)
        finished = status != highspy.HighsModelStatus.kTimeLimit
        return Claim(min(bound + constant, np.inf if below is None else below), point, finished)


def _add_phases(question: Question, linear: LinearModel, entry: Relaxed) -> int:
    """Binary phases of the undecided entries of one relaxed node."""
    (source,) = question.graph.nodes[entry.node].inputs
    lower, upper = (v[0].flatten().double().cpu().numpy()[entry.index] for v in question.bounds[source])
    first, count = int(linear.solver.getNumCol()), len(entry.index)
    linear.solver.addVars(count, np.zeros(count), np.ones(count))
    columns = first + np.arange(count)
    kinds = np.full(count, highspy.HighsVarType.kInteger)
    linear.solver.changeColsIntegrality(count, columns.astype(np.int32), kinds)
    inner = linear.expressions[source][entry.index]
    for j in range(count):
        pair = np.array([entry.variable + j, first + j])
        linear.add_row(np.array([1.0, -upper[j]]), pair, 0.0)
        _add_upper(linear, inner[j], pair, float(lower[j]))
    return count


def _add_upper(linear: LinearModel, inner: Vector, pair: Int[np.ndarray, "2"], lower: float) -> None:
    """a - z - l d <= -l."""
    used = np.flatnonzero(inner[:-1])
    coefficients = np.concatenate([-inner[used], [1.0, -lower]])
    linear.add_row(coefficients, np.concatenate([used, pair]), float(inner[-1]) - lower)
