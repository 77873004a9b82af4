"""Every solver of the convex programs finds the optimum that cvxpy finds, with a bound that meets it."""

import time
from dataclasses import replace
from itertools import pairwise

import cvxpy as cp
import numpy as np
import pytest
import torch
from convexnn_cases import TARGETS, cvxpy_loss, normal, problem_of, seeded
from convexnn_references import activation_patterns, clarabel

from convexnn.duality import judge_program
from convexnn.errors import InvalidInputError, MissingDependencyError
from convexnn.losses import LOSSES
from convexnn.patterns import enumerate_patterns, sample_patterns
from convexnn.penalties import PENALTIES
from convexnn.problem import Problem
from convexnn.programs import PROGRAMS, ConvexPoint, GatedProgram, ReLUProgram
from convexnn.result import Status
from convexnn.solvers import newton
from convexnn.solvers.admm import ADMM, ADMMOptions, first_rho
from convexnn.solvers.admm_rounds import solve_admm
from convexnn.solvers.answer import ProgramLimits
from convexnn.solvers.fista import _curvature, _Momentum, _step, solve_fista
from convexnn.solvers.interior import InteriorOptions, solve_blocks
from convexnn.solvers.reference import solve_reference
from convexnn.solvers.scp import sample_sphere, solve_scp
from convexnn.solvers.working_set import solve_working_set

pytestmark = pytest.mark.usefixtures("unchecked")

SOLVERS = {
    "interior": (lambda program: solve_working_set(program, ProgramLimits(1e-7)), 1e-7),
    "admm": (lambda program: solve_admm(program, ProgramLimits(1e-3, max_steps=5_000)), 1e-3),
    "reference": (lambda program: solve_reference(program, ProgramLimits(1e-6)), 1e-4),
}
CASES = [(kind, loss, k) for kind in PROGRAMS for loss in LOSSES for k in range(len(TARGETS[loss]))]


def program_of(kind, loss, target=0, *, penalty="group", bias=True, seed=0, n=14, d=3, P=7, wd=0.03):
    problem = problem_of(loss, n, d, wd, kind=target, output_bias=bias, seed=seed)
    return PROGRAMS[kind](problem, sample_patterns(problem.X, P, seeded(seed)), PENALTIES[penalty]())


def optimum(program):
    """By cvxpy, block by block, without any of the project's operators."""
    problem = program.problem
    X, K = problem.X.numpy(), problem.loss.n_outputs
    columns, mass, cones = [0] * K, 0, []
    for pattern in program.patterns.D.double().numpy():
        for sign in (1.0, -1.0)[: len(program.signs)]:
            for k in range(K):
                u = cp.Variable(X.shape[1])
                columns[k] = columns[k] + sign * (pattern[:, None] * X) @ u
                mass = mass + (cp.norm(u, 2) if program.penalty.name == "group" else cp.norm(u, 1))
                if program.name == "relu":
                    cones.append(((2 * pattern - 1)[:, None] * X) @ u >= 0)
    F = cp.hstack([cp.reshape(column, (len(X), 1), order="C") for column in columns])
    if problem.output_bias:
        F = F + np.ones((len(X), 1)) @ cp.Variable((1, K))
    return clarabel(cp.Problem(cp.Minimize(cvxpy_loss(problem.loss, F) + problem.weight_decay * mass), cones))


def check(program, answer, tol, expected=None):
    """The judgement is reproducible, the point feasible, and objective and bound are around the optimum."""
    again = judge_program(program, answer.judgement.point, answer.V, answer.multipliers)
    assert again.dual.bound == pytest.approx(answer.judgement.dual.bound, rel=1e-9)
    assert program.objective(answer.judgement.point) == pytest.approx(answer.judgement.objective, rel=1e-12)
    assert program.violation(answer.judgement.point) <= 1e-9
    assert answer.judgement.dual.bound <= answer.judgement.objective + 1e-12
    assert answer.judgement.gap(program.problem.floor()) <= tol
    if expected is not None:
        slack = 2e-6 * abs(expected)  # of cvxpy where there are exponential cones
        assert answer.judgement.dual.bound - slack <= expected <= answer.judgement.objective + slack


@pytest.mark.parametrize("solver", list(SOLVERS))
@pytest.mark.parametrize(("kind", "loss", "target"), CASES)
def test_solvers_agree_with_cvxpy(solver, kind, loss, target):
    for seed in range(2):
        program = program_of(kind, loss, target, bias=bool(seed), penalty="group" if seed else "l1", seed=seed)
        solve, tol = SOLVERS[solver]
        # Neither the loss nor the penalty has curvature anywhere there: the slowest tail of ADMM.
        loose = solver == "admm" and loss == "hinge" and kind == "relu" and program.penalty.name == "l1"
        check(program, solve(program), 1e-2 if loose else tol, optimum(program))


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "loss", "target"), CASES)
def test_admm_and_interior_point_equal_clarabel_on_thirty_instances(kind, loss, target):
    for seed in range(30):
        n, d = 8 + seed % 9, 2 + seed % 4
        wd = (0.01, 0.03, 0.1)[seed % 3]
        program = program_of(kind, loss, target, bias=bool(seed % 2), seed=seed, n=n, d=d, P=4 + seed % 5, wd=wd)
        expected = optimum(program)
        check(program, solve_admm(program, ProgramLimits(1e-4, max_steps=60_000)), 1e-4, expected)
        check(program, solve_working_set(program, ProgramLimits(1e-7)), 1e-7, expected)


@pytest.mark.parametrize("loss", sorted(set(LOSSES) - {"hinge"}))
@pytest.mark.parametrize("bias", [False, True])
def test_fista_reaches_the_gated_optimum(loss, bias):
    program = program_of("gated", loss, bias=bias, n=30, P=80, d=4)
    answer = solve_fista(program, ProgramLimits(1e-6))
    check(program, answer, 1e-6, solve_working_set(program, ProgramLimits(1e-8)).judgement.objective)
    assert answer.status is Status.CONVERGED


@pytest.mark.parametrize("loss", ["squared", "logistic", "softmax"])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("factor", [1e-3, 1.0, 1e3])
def test_fista_steps_stay_below_their_model(loss, bias, factor):
    """However long the first step is tried: L(F+) <= L(F) - <V, F+ - F> + ||step||^2 / (2 length)."""
    program = program_of("gated", loss, bias=bias, n=40, d=3, P=12)
    X, value = program.problem.X, program.problem.loss.value
    A = torch.cat([D[:, None] * X for D in program.patterns.D.double()] + [torch.ones(40, int(bias)).double()], 1)
    largest = float(torch.linalg.matrix_norm(program.problem.loss.weights.sqrt()[:, None] * A, 2)) ** 2
    assert 0.9 <= _curvature(program) / (program.problem.loss.largest_curvature * largest) <= 1 + 1e-9
    start = ConvexPoint(normal(*program.shape, seed=1), normal(program.shape[1], seed=2) * bias)
    F = program.output(start)
    at = _Momentum(start, start, F, F, 1.0, factor / _curvature(program))
    for _ in range(12):
        before, at = at, _step(program, at)
        V = program.problem.loss.negative_gradient(before.F_ahead)
        dF = at.F - before.F_ahead
        moved = ((at.point.U - before.ahead.U) ** 2).sum() + ((at.point.bias - before.ahead.bias) ** 2).sum()
        model = value(before.F_ahead) - (V * dF).sum() + moved / (2 * at.length)
        assert float(value(at.F) - model) <= 1e-12
        torch.testing.assert_close(at.F, program.output(at.point), rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(at.F_ahead, program.output(at.ahead), rtol=1e-10, atol=1e-10)
        assert at.length <= 1.1 * before.length * (1 + 1e-12)


def test_fista_refuses_cones_and_kinks():
    with pytest.raises(InvalidInputError, match="gated"):
        solve_fista(program_of("relu", "squared"), ProgramLimits())
    with pytest.raises(InvalidInputError, match="kink"):
        solve_fista(program_of("gated", "hinge"), ProgramLimits())


@pytest.mark.parametrize("loss", ["squared", "logistic"])
def test_working_set_finds_the_optimum_of_many_patterns(loss):
    """More blocks than the first working set holds: the priced bound is that of the program with all blocks."""
    program = program_of("relu", loss, n=40, d=4, P=220, wd=3e-3, bias=False)
    answer = solve_working_set(program, ProgramLimits(1e-7))
    every = solve_blocks(program, torch.arange(440), InteriorOptions(1e-8))
    check(program, answer, 1e-7, every.objective)
    assert answer.trace[0].n_neurons < 440


@pytest.mark.parametrize("loss", list(LOSSES))
def test_factors_in_single_precision_do_not_cost_accuracy(monkeypatch, loss):
    """They precondition: the answers are those of double precision, and the worst conditioned ones are not used."""
    program = program_of("relu", loss, n=40, d=4, P=30, wd=3e-3)
    expected = solve_working_set(program, ProgramLimits(1e-8)).judgement.objective
    monkeypatch.setattr(newton, "_SINGLE_FROM", 1)
    made, single = [], newton._single_precision
    monkeypatch.setattr(newton, "_single_precision", lambda *args: made.append(single(*args)) or made[-1])
    check(program, solve_working_set(program, ProgramLimits(1e-7)), 1e-7, expected)
    if loss != "softmax":  # whose outputs meet in one matrix, always in double precision
        kinds = {found is None or found.factors[0].dtype for found in made}
        assert torch.float32 in kinds
        assert kinds <= {True, torch.float32}


@pytest.mark.parametrize(
    ("seed", "n", "d", "P", "wd"), [(13, 12, 3, 7, 0.03), (19, 9, 5, 8, 0.03), (27, 8, 5, 6, 0.01)]
)
def test_blocks_that_come_back_to_the_working_set_stay(seed, n, d, P, wd):
    """A block that was given up and violates the dual again stays: rounds would go in circles."""
    program = program_of("relu", "hinge", bias=bool(seed % 2), seed=seed, n=n, d=d, P=P, wd=wd)
    answer = solve_working_set(program, ProgramLimits(1e-7))
    check(program, answer, 1e-7)
    assert answer.n_steps < 20


def test_admm_is_not_held_up_by_the_smoothing_of_a_kink():
    """The optimum is 0.036, so that a kink smoothed by 1e-2 throughout leaves a gap of percents."""
    program = program_of("gated", "hinge", bias=True, seed=3, n=11, d=5, P=7, wd=0.01)
    check(program, solve_admm(program, ProgramLimits(1e-3, max_steps=5_000)), 1e-3)


def test_start_is_in_the_first_working_set():
    program = program_of("relu", "squared", n=40, d=4, P=150, wd=3e-3)
    first = solve_working_set(program, ProgramLimits(1e-7))
    again = solve_working_set(program, ProgramLimits(1e-7), start=first.judgement.point)
    check(program, again, 1e-7, first.judgement.objective)


@pytest.mark.parametrize("kind", list(PROGRAMS))
@pytest.mark.parametrize("loss", list(LOSSES))
@pytest.mark.parametrize("bias", [False, True])
def test_conjugate_gradients_take_the_steps_of_the_factor(kind, loss, bias):
    program = program_of(kind, loss, bias=bias)
    rho = first_rho(program.problem, len(program.patterns))
    states = []
    for linear in ("factor", "cg"):
        solver = ADMM.of(program, rho, ADMMOptions(linear=linear))
        state = solver.init(program.zero(), rho)
        for _ in range(40):
            state = solver.step(state)
        states.append(state)
    torch.testing.assert_close(states[0].copies.A, states[1].copies.A, rtol=1e-4, atol=1e-6)
    assert states[0].rho == pytest.approx(states[1].rho, rel=1e-3)


@pytest.mark.parametrize("kind", list(PROGRAMS))
@pytest.mark.parametrize("bias", [False, True])
def test_admm_step_is_the_least_squares_solution(kind, bias):
    """The step in U and b against a dense solve of its normal equations."""
    program = program_of(kind, "squared", bias=bias)
    solver = ADMM.of(program, 0.1, ADMMOptions())
    state = solver.init(ConvexPoint(normal(*program.shape, seed=1), normal(1, seed=2) * bias), 0.1)
    target = replace(state.copies, A=normal(*state.copies.A.shape, seed=3), c=normal(*state.copies.c.shape, seed=4))
    U, b, _ = solver._solve(target, state)

    def loss(U, b):
        B, F = solver._maps(U, b)
        fit = solver.fit_weight**2 * ((F - target.c) ** 2).sum()
        return ((U - target.A) ** 2).sum() + solver.cone_weight**2 * ((B - target.B) ** 2).sum() + fit

    with torch.enable_grad():
        U, b = U.clone().requires_grad_(), b.clone().requires_grad_()
        loss(U, b).backward()
    assert float(U.grad.abs().max()) < 1e-10
    assert not bias or float(b.grad.abs().max()) < 1e-10


@pytest.mark.parametrize("kind", list(PROGRAMS))
@pytest.mark.parametrize("loss", list(LOSSES))
@pytest.mark.parametrize("bias", [False, True])
def test_block_descent_lowers_the_step_to_its_minimum(kind, loss, bias):
    """Against the closed form, on the same targets: visits only go down, and many of them end there."""
    program = program_of(kind, loss, bias=bias)
    K = program.shape[1]
    exact, blocks = (ADMM.of(program, 0.1, ADMMOptions(linear=linear)) for linear in ("factor", "blocks"))
    state = exact.init(ConvexPoint(normal(*program.shape, seed=1), normal(K, seed=2) * bias), 0.1)
    target = replace(state.copies, A=normal(*state.copies.A.shape, seed=3), c=normal(*state.copies.c.shape, seed=4))
    best = exact._solve(target, state)

    def value(U, b):
        B, F = exact._maps(U, b)
        fit = exact.fit_weight**2 * ((F - target.c) ** 2).sum()
        return float(((U - target.A) ** 2).sum() + exact.cone_weight**2 * ((B - target.B) ** 2).sum() + fit)

    values = [value(state.U, state.b)]
    for _ in range(200):
        U, b, _ = blocks._solve(target, state)
        state = replace(state, U=U, b=b, n_steps=state.n_steps + 1)
        values.append(value(U, b))
    assert all(later <= earlier * (1 + 1e-12) for earlier, later in pairwise(values))
    assert values[0] > 1.01 * values[-1]
    torch.testing.assert_close(state.U, best[0], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(state.b, best[1], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", list(PROGRAMS))
@pytest.mark.parametrize("loss", ["squared", "logistic"])
@pytest.mark.parametrize("bias", [False, True])
def test_block_descent_admm_finds_the_optimum(kind, loss, bias):
    program = program_of(kind, loss, bias=bias)
    answer = solve_admm(program, ProgramLimits(1e-3, max_steps=2000), options=ADMMOptions(linear="blocks"))
    check(program, answer, 1e-3, solve_working_set(program, ProgramLimits(1e-8)).judgement.objective)


def test_unknown_linear_solvers_are_refused():
    with pytest.raises(InvalidInputError, match="'blocks' is expected"):
        ADMMOptions(linear="lu")


def test_single_precision_admm_is_judged_in_double():
    program = program_of("relu", "squared", n=30, d=4, P=20)
    answer = solve_admm(program, ProgramLimits(1e-3, max_steps=5000), dtype=torch.float32)
    check(program, answer, 1e-3, solve_working_set(program, ProgramLimits(1e-8)).judgement.objective)
    assert answer.judgement.point.U.dtype is torch.float64


@pytest.mark.parametrize("loss", list(LOSSES))
def test_weight_decay_above_the_null_level_gives_zero(loss):
    program = program_of("relu", loss, wd=10.0)
    answer = solve_working_set(program, ProgramLimits(1e-7))
    constant = program.objective(program.zero())
    assert answer.judgement.objective == pytest.approx(constant, rel=1e-6)
    check(program, answer, 1e-6)


@pytest.mark.parametrize("shape", [(6, 6), (8, 3), (5, 1), (2, 2)])
def test_small_and_square_data(shape):
    n, d = shape
    program = program_of("relu", "squared", n=n, d=d, P=2, bias=False)
    check(program, solve_working_set(program, ProgramLimits(1e-7)), 1e-7, optimum(program))


@pytest.mark.parametrize("weight_decay", [1e-2, 1e-3, 1e-4, 1e-5])
@pytest.mark.parametrize("loss", list(LOSSES))
def test_no_weight_decay_is_too_small_for_the_interior_point(loss, weight_decay):
    """Solutions grow as the weight decay falls; runs that start far below their size jam with a gap near one."""
    program = program_of("relu", loss, n=60, d=5, P=20, wd=weight_decay)
    answer = solve_working_set(program, ProgramLimits(1e-6))
    assert answer.status is Status.CONVERGED
    assert answer.judgement.gap(program.problem.floor()) <= 1e-6
    assert answer.n_steps <= 2  # rounds: none was needed to recover from a bad start


@pytest.mark.parametrize("loss", ["logistic", "softmax"])
def test_the_interior_point_recovers_where_mu_fell_ahead_of_the_loss(loss, monkeypatch):
    """Few samples, large columns: a start of the wrong size jams, unless mu grows again."""
    monkeypatch.setattr("convexnn.solvers.working_set._SHARES", (1e-3,))
    for seed in range(3):
        program = program_of("relu", loss, seed=seed, n=26, d=3, P=6, wd=3e-5)
        answer = solve_working_set(program, ProgramLimits(1e-5))
        assert answer.judgement.gap(program.problem.floor()) <= 1e-5


def test_limits_are_respected():
    program = program_of("relu", "squared", n=60, d=6, P=60, wd=1e-4)
    answer = solve_admm(program, ProgramLimits(1e-12, max_steps=30))
    assert answer.status is Status.MAX_ROUNDS
    assert answer.n_steps == 30
    started = time.perf_counter()
    answer = solve_admm(program, ProgramLimits(1e-14, max_seconds=0.2))
    assert answer.status is Status.MAX_SECONDS
    assert time.perf_counter() - started < 3


@pytest.mark.parametrize(("loss", "target"), [(name, k) for name in LOSSES for k in range(len(TARGETS[name]))])
@pytest.mark.parametrize("bias", [False, True])
def test_scp_agrees_with_cvxpy(loss, target, bias):
    problem = problem_of(loss, 20, 3, 0.03, kind=target, output_bias=bias)
    U = sample_sphere(3, 40, seeded(0))
    answer = solve_scp(problem, U, ProgramLimits(1e-5, max_steps=200))
    features, K = np.maximum(problem.X.numpy() @ U.numpy().T, 0), problem.loss.n_outputs
    A, b = cp.Variable((40, K)), cp.Variable((1, K))
    F = features @ A + (np.ones((20, 1)) @ b if bias else 0)
    expected = clarabel(cp.Problem(cp.Minimize(cvxpy_loss(problem.loss, F) + 0.03 * cp.sum(cp.norm(A, 2, axis=1)))))
    assert answer.dual.bound - 2e-6 <= expected <= answer.objective + 2e-6
    assert answer.objective - answer.dual.bound <= 1e-4 * answer.objective
    assert problem.objective(answer.neurons) == pytest.approx(answer.objective, rel=1e-9)


def test_all_patterns_give_the_optimum_over_all_networks():
    X = normal(9, 2, seed=3)
    problem = replace(problem_of("squared", 9, 2, 0.02, output_bias=False), X=X)
    patterns = enumerate_patterns(X)
    assert len(patterns) == len(activation_patterns(X.numpy()))
    answer = solve_working_set(ReLUProgram(problem, patterns), ProgramLimits(1e-8))
    from convexnn_references import exact_optimum

    assert answer.judgement.objective == pytest.approx(exact_optimum(problem), rel=1e-6)


def test_unknown_and_absent_backends(monkeypatch):
    program = program_of("relu", "squared")
    with pytest.raises(InvalidInputError, match="clarabel"):
        solve_reference(program, ProgramLimits(), backend="gurobi")
    monkeypatch.setitem(__import__("sys").modules, "mosek", None)
    with pytest.raises(MissingDependencyError, match="mosek"):
        solve_reference(program, ProgramLimits(), backend="mosek")


def test_an_unlicensed_mosek_hands_over_to_clarabel(monkeypatch):
    import sys
    import types

    module = types.ModuleType("mosek")
    module.Error = type("Error", (Exception,), {})
    monkeypatch.setitem(sys.modules, "mosek", module)
    solve = cp.Problem.solve

    def unlicensed(self, *args, **options):
        if options.get("solver") == "MOSEK":
            raise module.Error("no licence")
        return solve(self, *args, **options)

    monkeypatch.setattr(cp.Problem, "solve", unlicensed)
    from convexnn.errors import SolverWarning

    with pytest.warns(SolverWarning, match="Clarabel takes over"):
        answer = solve_reference(program_of("relu", "squared"), ProgramLimits(), backend="mosek")
    assert answer.judgement.gap() < 1e-5


def test_gated_optimum_is_a_bound_of_the_relu_program():
    problem: Problem = problem_of("squared", 20, 3, 0.02)
    patterns = sample_patterns(problem.X, 10, seeded(0))
    gated = solve_working_set(GatedProgram(problem, patterns), ProgramLimits(1e-8))
    relu = solve_working_set(ReLUProgram(problem, patterns), ProgramLimits(1e-8))
    assert gated.judgement.objective <= relu.judgement.objective * (1 + 1e-7)
