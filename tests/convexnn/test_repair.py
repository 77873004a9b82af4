"""ADMM's rounds: feasible points, dual points and restarts, against cvxpy and the optimum."""

from dataclasses import replace

import cvxpy as cp
import numpy as np
import pytest
import torch
from convexnn_cases import TARGETS, cvxpy_loss, normal, problem_of, seeded
from convexnn_references import clarabel

from convexnn.duality import judge_program
from convexnn.losses import LOSSES
from convexnn.patterns import sample_patterns
from convexnn.penalties import PENALTIES
from convexnn.programs import PROGRAMS, ConvexPoint
from convexnn.solvers.admm import ADMM, ADMMOptions, ADMMState
from convexnn.solvers.admm_rounds import solve_admm
from convexnn.solvers.answer import ProgramLimits
from convexnn.solvers.repair import Dual, best_mixture, own_dual, priced, repaired
from convexnn.solvers.screening import Screen, first_scores
from convexnn.solvers.working_set import solve_working_set

pytestmark = pytest.mark.usefixtures("unchecked")

CASES = [(kind, loss, k) for kind in PROGRAMS for loss in LOSSES for k in range(len(TARGETS[loss]))]
SMOOTH = [case for case in CASES if case[1] != "hinge"]


def program_of(kind, loss, target=0, *, penalty="group", bias=True, seed=0, n=14, d=3, P=7, wd=0.03):
    problem = problem_of(loss, n, d, wd, kind=target, output_bias=bias, seed=seed)
    return PROGRAMS[kind](problem, sample_patterns(problem.X, P, seeded(seed)), PENALTIES[penalty]())


def point_of(program, bias, seed=3):
    """Some blocks are zero, as in the sparse copy of ADMM."""
    U = 0.5 * normal(*program.shape, seed=seed)
    U[:, :, ::3] = 0.0
    return ConvexPoint(U, normal(program.shape[1], seed=seed + 1) * bias)


@pytest.mark.parametrize(("kind", "loss", "target"), SMOOTH)
@pytest.mark.parametrize("penalty", list(PENALTIES))
def test_repaired_points_have_the_best_amplitudes_of_directions_in_the_cones(kind, loss, target, penalty):
    """By cvxpy. A block whose projection is zero keeps a direction of rounding, so that the objective can be lower."""
    program = program_of(kind, loss, target, penalty=penalty, bias=penalty == "group")
    bias = program.problem.output_bias
    raw = point_of(program, bias)
    found = repaired(program, raw)
    assert program.violation(found) <= 1e-9
    X, patterns = program.problem.X.numpy(), program.patterns.D.double().numpy()
    S, K, P, d = program.shape
    columns, mass = [0] * K, 0
    for s, k, p in np.ndindex(S, K, P):
        c = raw.U[s, k, p].numpy()
        if not c.any():
            assert not found.U[s, k, p].any()
            continue
        u = cp.Variable(d)
        cone = [((2 * patterns[p] - 1)[:, None] * X) @ u >= 0] if kind == "relu" else []
        clarabel(cp.Problem(cp.Minimize(cp.sum_squares(u - c)), cone))
        nearest, mine = u.value, found.U[s, k, p].numpy()
        if np.linalg.norm(mine) > 1e-9 and np.linalg.norm(nearest) > 1e-6:
            assert mine @ nearest >= (1 - 1e-6) * np.linalg.norm(mine) * np.linalg.norm(nearest)
        a = cp.Variable(nonneg=True)
        columns[k] = columns[k] + a * ((-1.0) ** s * patterns[p] * (X @ nearest))
        mass = mass + a * np.linalg.norm(nearest, ord=2 if penalty == "group" else 1)
    F = cp.hstack([cp.reshape(column, (len(X), 1), order="C") for column in columns])
    if bias:
        F = F + np.ones((len(X), 1)) @ cp.Variable((1, K))
    expected = clarabel(cp.Problem(cp.Minimize(cvxpy_loss(program.problem.loss, F) + 0.03 * mass)))
    assert program.objective(found) <= expected * (1 + 2e-5)
    optimum = solve_working_set(program, ProgramLimits(1e-6)).judgement.dual.bound
    assert program.objective(found) >= optimum * (1 - 1e-9)


@pytest.mark.parametrize("kind", list(PROGRAMS))
def test_repaired_hinge_points_are_near_the_best_amplitudes(kind):
    """The kink is smoothed for the amplitudes: no worse than no network, and than the directions as they were."""
    program = program_of(kind, "hinge")
    found = repaired(program, point_of(program, True))
    assert program.violation(found) <= 1e-9
    assert program.objective(found) <= program.objective(program.zero()) + 1e-2
    assert program.objective(found) <= program.objective(replace(found, U=0.7 * found.U)) + 1e-2


@pytest.mark.parametrize("loss", list(LOSSES))
def test_priced_multipliers_bound_every_block_tightly(loss):
    """Between the largest c'u by cvxpy and one in a thousand above it, where that is above the weight decay."""
    program = program_of("relu", loss, wd=1e-3)
    V, X = own_dual(program, program.zero()), program.problem.X.numpy()
    screen = Screen.of(program)
    dual, lower = priced(program, V, screen, 1e-3, len(screen))
    C = program.correlations(V)
    upper = (C + program.cone.adjoint(dual.multipliers.reshape(*program.shape[:3], -1))).norm(dim=-1).reshape(-1)
    assert bool((dual.multipliers >= 0).all())
    for j, c in enumerate(C.reshape(-1, C.shape[3]).numpy()):
        pattern = program.patterns.D[j % len(program.patterns)].double().numpy()
        u = cp.Variable(len(c))
        largest = clarabel(
            cp.Problem(cp.Maximize(c @ u), [((2 * pattern - 1)[:, None] * X) @ u >= 0, cp.norm(u, 2) <= 1])
        )
        assert float(upper[j]) >= largest - 1e-7
        assert float(lower[j]) <= largest + 1e-7
        if largest > 1.01 * program.problem.weight_decay:
            assert float(upper[j]) <= 1.002 * largest + 1e-7
            assert float(lower[j]) > program.problem.weight_decay
        elif largest < program.problem.weight_decay:
            assert float(lower[j]) == 0.0


@pytest.mark.parametrize(("kind", "loss", "target"), CASES)
def test_a_mixture_is_no_worse_than_its_ends(kind, loss, target):
    program = program_of(kind, loss, target)
    ends = []
    for seed in (1, 2):
        V = own_dual(program, point_of(program, True, seed))
        ends.append(Dual(V, normal(*Screen.of(program).multipliers.shape, seed=seed).abs() * 1e-3))
    mixed = best_mixture(program, *ends)

    def bound(dual):
        held = None if program.cone is None else dual.multipliers.reshape(*program.shape[:3], -1)
        return judge_program(program, program.zero(), dual.V, held).dual.bound

    assert bound(mixed) >= max(bound(dual) for dual in ends) - 1e-12


@pytest.mark.parametrize(("kind", "loss", "target"), CASES)
def test_the_optimal_pair_is_a_fixed_point_of_a_restart(kind, loss, target):
    """Signs and scales of all three multipliers, and of the step itself."""
    program = program_of(kind, loss, target)
    best = solve_working_set(program, ProgramLimits(1e-10))
    solver = ADMM.of(program, 0.05, ADMMOptions())
    empty = solver.init(program.zero(), 0.05)
    cones = best.multipliers if best.multipliers is not None else empty.copies.B
    start = solver.restarted(best.judgement.point, best.V, cones, empty)
    after: ADMMState = solver.step(start)
    size = float(start.copies.A.norm())
    assert float((after.copies.A - start.copies.A).norm()) <= 2e-3 * size
    assert float((after.U - start.U).norm()) <= 2e-3 * size
    for mine, old in zip(
        (after.multipliers.A, after.multipliers.c), (start.multipliers.A, start.multipliers.c), strict=True
    ):
        assert float((mine - old).norm()) <= 2e-3 * float(old.norm())


def test_a_state_moves_to_other_patterns():
    program = program_of("relu", "squared")
    solver = ADMM.of(program, 0.1, ADMMOptions())
    state = solver.step(solver.init(point_of(program, True), 0.1))
    old, new = torch.tensor([0, 2, 5]), torch.tensor([1, 2, 3, 5])
    part = ADMMState.on(state, torch.arange(7), old)
    moved = part.on(old, new)
    for take in (lambda s: s.copies.A, lambda s: s.copies.B, lambda s: s.multipliers.A, lambda s: s.multipliers.B):
        torch.testing.assert_close(take(moved)[:, :, [1, 3]], take(state)[:, :, [2, 5]], rtol=0, atol=0)
        assert not take(moved)[:, :, [0, 2]].any()
    assert moved.rho == state.rho


@pytest.mark.parametrize(
    ("loss", "kind"), [("squared", "relu"), ("logistic", "relu"), ("softmax", "relu"), ("squared", "gated")]
)
def test_admm_finds_the_optimum_of_many_patterns(loss, kind):
    """More patterns than ADMM works on at a time: its bound is that of all of them."""
    program = program_of(kind, loss, n=24, d=3, P=130, wd=1e-2, bias=False)
    found = solve_admm(program, ProgramLimits(1e-3, max_steps=5000))
    best = solve_working_set(program, ProgramLimits(1e-7)).judgement
    assert found.judgement.gap() <= 1e-3
    assert found.judgement.dual.bound <= best.objective * (1 + 1e-9)
    assert best.dual.bound <= found.judgement.objective * (1 + 1e-9)
    assert program.violation(found.judgement.point) <= 1e-9
    assert found.raw is not None
    assert found.raw.U.shape == program.shape


def test_admm_restarts_from_a_given_point():
    program = program_of("relu", "squared", n=24, d=3, P=130, wd=1e-2)
    best = solve_working_set(program, ProgramLimits(1e-8))
    again = solve_admm(program, ProgramLimits(1e-4, max_steps=5000), start=best.judgement.point)
    cold = solve_admm(program, ProgramLimits(1e-4, max_steps=5000))
    assert again.judgement.gap() <= 1e-4
    assert again.n_steps <= cold.n_steps


def test_first_scores_are_correlations_with_the_constant_network():
    program = program_of("relu", "squared", bias=False)
    X, y, n = program.problem.X.numpy(), program.problem.loss.targets[:, 0].numpy(), len(program.problem.X)
    gates = program.patterns.gates.numpy()
    gates = gates / np.linalg.norm(gates, axis=1, keepdims=True)
    reach = (np.maximum(X @ gates.T, 0) * y[:, None]).sum(0) / n
    np.testing.assert_allclose(first_scores(program).numpy(), np.concatenate([reach, -reach]), rtol=1e-9, atol=1e-12)
