"""The convex program as one writes it in cvxpy: slow, and independent of the other solvers."""

import time
import warnings
from typing import Any

import cvxpy as cp
import numpy as np
import torch
from torch import Tensor

from convexnn.duality import judge_program
from convexnn.errors import InvalidInputError, MissingDependencyError, SolverError, SolverWarning
from convexnn.losses import AbstractLoss
from convexnn.programs import AbstractProgram, ConvexPoint
from convexnn.result import Status
from convexnn.solvers.answer import ProgramAnswer, ProgramLimits

BACKENDS = ("clarabel", "scs", "mosek")


def solve_reference(program: AbstractProgram, limits: ProgramLimits, *, backend: str = "clarabel") -> ProgramAnswer:
    """Model the program in cvxpy, solve it, and judge the point and the multipliers that come back.

    MOSEK without a licence raises ``mosek.Error``: Clarabel takes over, with a :class:`SolverWarning`.

    Raises:
        InvalidInputError: the backend is not known.
        MissingDependencyError: MOSEK was asked for and is not installed.
    """
    if backend not in BACKENDS:
        raise InvalidInputError(f"backend={backend!r} is not known; choose one of {', '.join(BACKENDS)}.")
    started, program = time.perf_counter(), program.to(torch.device("cpu"))
    model, blocks, bias, tie, cones = _model(program)
    solve_model(model, backend, limits)
    S, K, P, d = program.shape
    if blocks[0][0].value is None:
        raise InvalidInputError(f"{backend} ended with status {model.status!r} and no point; try another backend.")
    U = torch.from_numpy(np.array([[block.value for block in row] for row in blocks])).reshape(S, K, P, d)
    b = torch.from_numpy(np.asarray(bias.value, dtype=float)) if program.problem.output_bias else U.new_zeros(K)
    point = ConvexPoint(U, b)
    multipliers = _multipliers(cones, program)
    answers = []
    for V in _dual_points(program, point, tie):
        judged = judge_program(program, point, V, multipliers)
        answers.append(ProgramAnswer(judged, V, multipliers, Status.STALLED, 1))
    best = max(answers, key=lambda answer: answer.judgement.dual.bound)
    gap = best.judgement.gap(program.problem.floor())
    status = limits.status(gap, time.perf_counter() - started, 1) or Status.STALLED
    return ProgramAnswer(best.judgement, best.V, multipliers, status, 1)


def _model(program: AbstractProgram) -> tuple[cp.Problem, list[list[cp.Variable]], cp.Variable, cp.Constraint, list]:
    S, K, P, d = program.shape
    X, mask, loss = program.problem.X.numpy(), program.gated.mask.T.numpy(), program.problem.loss
    blocks = [[cp.Variable((P, d)) for _ in range(K)] for _ in range(S)]
    bias, F = cp.Variable(K), cp.Variable((len(X), K))
    columns, cones, mass = [], [], 0
    for k in range(K):
        column = bias[k] if program.problem.output_bias else 0
        for s, sign in enumerate(program.signs):
            Z = X @ blocks[s][k].T
            column = column + sign * cp.sum(cp.multiply(mask, Z), axis=1)
            mass = mass + _penalty(program, blocks[s][k])
            if program.cone is not None:
                live = program.live.numpy()
                cones.append(cp.multiply(program.cone.signs.T.numpy(), Z[live]) >= 0)
        columns.append(cp.reshape(column, (len(X), 1), order="C"))
    tie = (cp.hstack(columns) if K > 1 else columns[0]) == F
    objective = cp.Minimize(loss_expression(loss, F) + program.problem.weight_decay * mass)
    return cp.Problem(objective, [tie, *cones]), blocks, bias, tie, cones


def _penalty(program: AbstractProgram, U: cp.Variable) -> cp.Expression:
    return cp.sum(cp.norm(U, 2, axis=1)) if program.penalty.rotates else cp.sum(cp.abs(U))


def loss_expression(loss: AbstractLoss, F: cp.Expression) -> cp.Expression:
    """L(F) of an expression (n, K)."""
    Y, c = loss.targets.numpy(), loss.weights.numpy()
    if loss.name == "squared":
        return 0.5 * cp.sum_squares(cp.multiply(np.sqrt(c)[:, None], F - Y))
    if loss.name == "logistic":
        return c @ cp.logistic(-cp.multiply(Y, F))[:, 0]
    if loss.name == "hinge":
        return c @ cp.pos(1 - cp.multiply(Y, F))[:, 0]
    return c @ (cp.log_sum_exp(F, axis=1) - cp.sum(cp.multiply(F, Y), axis=1))


def solve_model(model: cp.Problem, backend: str, limits: ProgramLimits) -> None:
    """Solve a cvxpy model at a hundredth of the tolerance, between 1e-10 and 1e-7.

    Raises:
        SolverError: the solver ended without an answer.
    """
    accuracy = max(min(0.01 * limits.tol, 1e-7), 1e-10)
    options: dict[str, dict[str, Any]] = {
        "clarabel": {"tol_gap_abs": accuracy, "tol_gap_rel": accuracy, "tol_feas": accuracy},
        "scs": {"eps_abs": max(accuracy, 1e-9), "eps_rel": max(accuracy, 1e-9), "max_iters": 200_000},
    }
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Solution may be inaccurate")  # the judge says how inaccurate
        if backend == "mosek" and _solved_by_mosek(model):
            return
        chosen = "clarabel" if backend == "mosek" else backend
        try:
            model.solve(solver=chosen.upper(), **options[chosen])
        except cp.SolverError as error:
            raise SolverError(
                f'cvxpy with {chosen} ended without an answer ({error}); standardise the data or take "interior-point".'
            ) from error


def _solved_by_mosek(model: cp.Problem) -> bool:
    try:
        import mosek
    except ImportError as error:
        raise MissingDependencyError('MOSEK is not installed; pip install "convexnn[mosek]".') from error
    try:
        model.solve(solver="MOSEK")
    except mosek.Error as error:
        warnings.warn(f"MOSEK cannot be used ({error}); Clarabel takes over.", SolverWarning, stacklevel=5)
        return False
    return True


def _multipliers(cones: list, program: AbstractProgram) -> Tensor | None:
    if program.cone is None:
        return None
    S, K, P, _ = program.shape
    found = np.array([cone.dual_value.T for cone in cones])  # K S P m
    return torch.from_numpy(found).reshape(K, S, P, -1).transpose(0, 1).contiguous().clamp(min=0.0)


def _dual_points(program: AbstractProgram, point: ConvexPoint, tie: cp.Constraint) -> list[Tensor]:
    """Minus the gradient at the point, and for a loss with a kink the multipliers of the outputs, either sign."""
    loss = program.problem.loss
    return [loss.negative_gradient(program.output(program.feasible(point))), *tied_dual_points(loss, tie)]


def tied_dual_points(loss: AbstractLoss, tie: cp.Constraint) -> list[Tensor]:
    """The multipliers of outputs == F for a loss with a kink, either sign, in the domain of the dual."""
    if loss.name != "hinge" or tie.dual_value is None:
        return []
    found = torch.from_numpy(np.asarray(tie.dual_value, dtype=float)).reshape(loss.targets.shape)
    q = loss.targets * found / loss.weights[:, None]
    return [loss.targets * loss.weights[:, None] * (sign * q).clamp(0.0, 1.0) for sign in (1.0, -1.0)]
