"""The parallel program as one writes it in cvxpy: slow, and independent of the other solver."""

import cvxpy as cp
import numpy as np
import torch

from convexnn.deep.judging import ParallelJudgement, judge_dual, judge_primal
from convexnn.deep.parallel import ParallelPoint, ParallelProgram
from convexnn.deep.working_set import ParallelAnswer
from convexnn.errors import SolverError
from convexnn.result import Status
from convexnn.solvers.answer import ProgramLimits
from convexnn.solvers.reference import loss_expression, solve_model, tied_dual_points


def solve_parallel_reference(
    program: ParallelProgram, limits: ProgramLimits, *, backend: str = "clarabel"
) -> ParallelAnswer:
    """Model the program in cvxpy, solve it, and judge the point and the multipliers that come back.

    Raises:
        SolverError: the solver ended without a point.
    """
    X, branches = program.problem.X.numpy(), program.branches
    (n, d), K = X.shape, program.n_outputs
    live = np.linalg.norm(X, axis=1) > 0
    bias = cp.Variable(K)
    columns, mass = [bias[k] * np.ones(n) if program.problem.output_bias else np.zeros(n) for k in range(K)], 0
    blocks, rows = [], []
    for l in range(program.n_blocks):  # noqa: E741
        sign, k, t = (float(part) for part in program.places(torch.tensor([l])))
        D1, D2 = branches.D1[int(t)].numpy(), branches.D2[int(t)].numpy()
        sigma = branches.sigma[int(t)].numpy()
        Z = cp.Variable((len(D1), d))
        T = Z @ X.T
        summed = sum(sigma[j] * cp.multiply(D1[j].astype(float), T[j]) for j in range(len(D1)))
        columns[int(k)] = columns[int(k)] + sign * cp.multiply(D2.astype(float), summed)
        mass = mass + cp.norm(Z, "fro")
        own = cp.multiply(2.0 * D1[:, live] - 1, T[:, live]) >= 0
        joint = cp.multiply(2.0 * D2[live] - 1, summed[live]) >= 0
        blocks.append(Z)
        rows.append((own, joint))
    F = cp.Variable((n, K))
    tie = cp.vstack(columns).T == F
    model = cp.Problem(
        cp.Minimize(loss_expression(program.problem.loss, F) + program.problem.weight_decay * mass),
        [tie, *(row for pair in rows for row in pair)],
    )
    solve_model(model, backend, limits)
    if blocks[0].value is None:
        raise SolverError(f"{backend} ended with status {model.status!r} and no point; try another backend.")
    U = torch.from_numpy(np.array([np.asarray(Z.value).reshape(-1) for Z in blocks]))
    b = torch.from_numpy(np.asarray(bias.value, dtype=float)) if program.problem.output_bias else U.new_zeros(K)
    multipliers = [np.concatenate([own.dual_value.reshape(-1), joint.dual_value]) for own, joint in rows]
    point = ParallelPoint(torch.arange(len(U)), U, b)
    duals = tied_dual_points(program.problem.loss, tie)
    return _judged(program, point, torch.from_numpy(np.array(multipliers)), duals, limits)


def _judged(
    program: ParallelProgram,
    point: ParallelPoint,
    multipliers: torch.Tensor,
    duals: list[torch.Tensor],
    limits: ProgramLimits,
) -> ParallelAnswer:
    """Where no hidden neuron is active cvxpy has a row of zeros in the place of one of the first neuron's."""
    idle = ~(program.branches.D1.any(1)[:, program.problem.X.norm(dim=1) > 0])
    count = idle.shape[1]
    multipliers[:, -count:][idle[program.places(point.index)[2]]] = 0.0
    feasible, objective = judge_primal(program, point)
    points = [program.problem.loss.negative_gradient(program.output(feasible)), *duals]
    found = [judge_dual(program, V, multipliers) for V in points]
    best = max(range(len(found)), key=lambda k: found[k].bound)
    judgement, V = ParallelJudgement(feasible, objective, found[best]), points[best]
    gap = judgement.gap(program.problem.floor())
    return ParallelAnswer(judgement, V, Status.CONVERGED if gap <= limits.tol else Status.STALLED)
