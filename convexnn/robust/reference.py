"""The robust programs as one writes them in cvxpy: slow, and independent of the other solvers."""

import time
from dataclasses import dataclass, replace
from typing import Any

import cvxpy as cp
import numpy as np
import torch
from torch import Tensor

from convexnn.errors import InvalidInputError, SolverError
from convexnn.programs import ConvexPoint
from convexnn.result import Status
from convexnn.robust.answer import RobustAnswer
from convexnn.robust.ball import Ball
from convexnn.robust.duality import RobustDual, judge_robust
from convexnn.robust.program import AbstractRobustProgram
from convexnn.solvers.answer import ProgramLimits
from convexnn.solvers.reference import solve_model

BACKENDS = ("clarabel", "scs")


@dataclass(frozen=True)
class _Model:
    """The cvxpy problem and what is read from it."""

    problem: cp.Problem
    blocks: list[cp.Variable]  # of each sign
    bias: cp.Variable | None
    tie: cp.Constraint  # slopes = their variable
    rows: list[cp.Constraint]  # slacks or excesses of each sign
    low: cp.Constraint
    high: cp.Constraint


def solve_reference(
    program: AbstractRobustProgram, limits: ProgramLimits, *, backend: str = "clarabel"
) -> RobustAnswer:
    """Model the program in cvxpy, solve it, and judge the point and the multipliers that come back.

    Raises:
        InvalidInputError: the backend is not known.
        SolverError: it ended without a point.
    """
    if backend not in BACKENDS:
        raise InvalidInputError(f"backend={backend!r} is not known; choose one of {', '.join(BACKENDS)}.")
    started = time.perf_counter()
    model = _model(program)
    solve_model(model.problem, backend, limits)
    if model.blocks[0].value is None:
        raise SolverError(f"{backend} ended with status {model.problem.status!r} and no point; try another backend.")
    point = _point(program, model)
    judged = max((judge_robust(program, point, dual) for dual in _duals(program, model)), key=lambda j: j.bound)
    gap = judged.gap(program.problem.floor())
    status = limits.status(gap, time.perf_counter() - started, 1) or Status.STALLED
    return RobustAnswer(judged, status, 1)


def _model(program: AbstractRobustProgram) -> _Model:
    problem = program.problem
    X, D, n = problem.X.numpy(), program.mask.T.numpy(), len(problem.X)
    blocks = [cp.Variable(program.shape[1:]) for _ in range(2)]
    bias = cp.Variable() if problem.output_bias else None
    Z = cp.Variable((n, X.shape[1]))
    tie = D @ (blocks[0] - blocks[1]) == Z
    rows, excesses = _rows(program, blocks)
    f = cp.sum(cp.multiply(X, Z), axis=1) + (0.0 if bias is None else bias)
    reach = _support(program.ball, Z)
    low, high = cp.Variable(n), cp.Variable(n)
    below = low <= f - reach - cp.sum(excesses[1], axis=1)
    above = f + reach + cp.sum(excesses[0], axis=1) <= high
    penalty = sum(cp.sum(cp.norm(block, 2, axis=1)) for block in blocks)
    objective = cp.Minimize(_loss(program, low, high) + problem.weight_decay * penalty)
    extra = [excess >= 0 for excess in excesses] if program.soft else []
    return _Model(cp.Problem(objective, [tie, below, above, *rows, *extra]), blocks, bias, tie, rows, below, above)


def _rows(program: AbstractRobustProgram, blocks: list[cp.Variable]) -> tuple[list[cp.Constraint], list[Any]]:
    """Slacks of each sign, and the excesses that soften them."""
    X, G, n = program.problem.X.numpy(), program.sides.T.numpy(), len(program.targets)
    rows, excesses = [], []
    for block in blocks:
        reach = cp.reshape(_support(program.ball, block), (1, block.shape[0]), order="C")
        excess = cp.Variable((n, block.shape[0])) if program.soft else np.zeros((n, block.shape[0]))
        rows.append(cp.multiply(G, X @ block.T) - np.ones((n, 1)) @ reach + excess >= 0)
        excesses.append(excess)
    return rows, excesses


def _support(ball: Ball, W: cp.Expression) -> cp.Expression:
    radii = ball.radii.numpy()
    if ball.norm == "linf":
        return cp.abs(W) @ radii
    scaled = cp.multiply(np.ones((W.shape[0], 1)) * radii, W)
    return cp.norm(scaled, 2, axis=1) if ball.norm == "l2" else cp.max(cp.abs(scaled), axis=1)


def _loss(program: AbstractRobustProgram, low: cp.Variable, high: cp.Variable) -> cp.Expression:
    y, c = program.targets.numpy(), program.problem.loss.weights.numpy()
    if program.problem.loss.name == "squared":
        return 0.5 * cp.sum(cp.multiply(c, cp.square(cp.maximum(high - y, y - low, 0))))
    margin = cp.multiply(y > 0, low) - cp.multiply(y < 0, high)
    return c @ (cp.pos(1 - margin) if program.problem.loss.name == "hinge" else cp.logistic(-margin))


def _point(program: AbstractRobustProgram, model: _Model) -> ConvexPoint:
    U = torch.from_numpy(np.stack([np.asarray(block.value) for block in model.blocks]))[:, None].to(program.problem.X)
    bias = 0.0 if model.bias is None else float(np.asarray(model.bias.value))
    return ConvexPoint(U, U.new_full((1,), bias))


def _duals(program: AbstractRobustProgram, model: _Model) -> list[RobustDual]:
    """The multipliers; those of the slopes give mu_k = V_k x_k - theirs, of either sign."""
    like = program.problem.X

    def read(constraint: cp.Constraint) -> Tensor:
        return torch.from_numpy(np.asarray(constraint.dual_value, dtype=float)).to(like)

    below, above, tie = read(model.low).clamp(min=0.0), read(model.high).clamp(min=0.0), read(model.tie)
    multipliers = torch.stack([read(row).T for row in model.rows])
    found = RobustDual(below, above, torch.zeros_like(like), multipliers)
    T = found.total[:, None].clamp(min=1e-300)
    return [replace(found, worst=(found.net[:, None] * like - sign * tie) / T) for sign in (1.0, -1.0)]
