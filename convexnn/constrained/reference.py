"""The constrained program through cvxpy and Clarabel: slow, independent of the interior point, and its fallback."""

import cvxpy as cp
import numpy as np
import torch
from torch import Tensor

from convexnn.constrained.duality import ConstrainedJudgement, judge_constrained
from convexnn.constrained.program import ConstrainedProgram
from convexnn.errors import SolverError
from convexnn.programs import ConvexPoint
from convexnn.solvers.answer import ProgramLimits
from convexnn.solvers.reference import loss_expression, solve_model


def solve_reference(program: ConstrainedProgram, limits: ProgramLimits) -> ConstrainedJudgement:
    """Model the program in cvxpy, solve it, and judge the point and the multipliers that come back.

    Raises:
        SolverError: no point came back.
    """
    wide, problem, rows = program.wide, program.problem, program.rows
    S, K, P, d = wide.shape
    X, mask = wide.problem.X.numpy(), wide.gated.mask.T.numpy()
    blocks = [cp.Variable((P, d)) for _ in range(S)]
    bias, F = cp.Variable(), cp.Variable((len(X), 1))
    column, cones = bias * problem.output_bias, []
    for sign, block in zip(wide.signs, blocks, strict=True):
        Z = X @ block.T
        column = column + sign * cp.sum(cp.multiply(mask, Z), axis=1)
        if wide.cone is not None:
            cones.append(cp.multiply(wide.cone.signs.T.numpy(), Z[wide.live.numpy()]) >= 0)
    tie = cp.reshape(column, (len(X), 1), order="C") == F
    limit = rows.A.numpy() @ F[:, 0] <= rows.b.numpy()
    mass = sum(cp.sum(cp.norm(block, 2, axis=1)) for block in blocks)
    objective = cp.Minimize(loss_expression(problem.loss, F[: program.n]) + problem.weight_decay * mass)
    model = cp.Problem(objective, [tie, limit, *cones])
    solve_model(model, "clarabel", limits)
    if blocks[0].value is None:
        raise SolverError(f"Clarabel ended with status {model.status!r} and no point; use method='interior-point'.")
    U = torch.from_numpy(np.array([block.value for block in blocks])).reshape(S, K, P, d)
    b = torch.from_numpy(np.asarray(bias.value if problem.output_bias else 0.0, dtype=float)).reshape(1)
    multipliers = None
    if cones:
        found = np.array([cone.dual_value.T for cone in cones])
        multipliers = torch.from_numpy(found).reshape(S, K, P, -1).clamp(min=0.0)
    point, mu = ConvexPoint(U, b), torch.from_numpy(np.asarray(limit.dual_value, dtype=float))
    judged = [judge_constrained(program, point, V, mu, multipliers) for V in _dual_points(program, point, mu, tie)]
    return max(judged, key=lambda one: one.dual.bound)


def _dual_points(program: ConstrainedProgram, point: ConvexPoint, mu: Tensor, tie: cp.Constraint) -> list[Tensor]:
    """Minus the gradient at the point; of a loss with a kink also V = A'mu -+ w, w the multipliers of the outputs."""
    loss, n = program.problem.loss, program.n
    out = [loss.negative_gradient(program.wide.output(point)[:n])]
    if loss.name == "hinge":
        own = torch.from_numpy(np.asarray(tie.dual_value, dtype=float)).reshape(-1, 1)[:n]
        pull = (program.rows.A.T @ mu)[:n, None]
        out += [pull - own, pull + own]
    return out
