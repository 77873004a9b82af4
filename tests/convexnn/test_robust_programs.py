"""Robust programs: balls, worst cases against enumeration, soft against hard cones, weak and strong duality."""

import numpy as np
import pytest
import torch
from convexnn_cases import normal, seeded
from robust_cases import (
    CASES,
    KINDS,
    SOLVED,
    clusters,
    extreme_points,
    random_dual,
    random_point,
    robust_problem,
    robust_program,
    sampled_worst_loss,
)

from convexnn.data import read_loss
from convexnn.errors import InvalidInputError, InvalidTypeError
from convexnn.patterns import of_directions, sample_patterns
from convexnn.problem import Problem
from convexnn.programs import ConvexPoint, ReLUProgram
from convexnn.robust.ball import NORMS, Ball, read_ball
from convexnn.robust.duality import RobustDual, admitted, at_best_scale, block_norms, correlations, judge_robust, value
from convexnn.robust.program import LOSSES, HardRobustProgram, Outputs, SoftRobustProgram, worst_outputs
from convexnn.robust.reference import solve_reference
from convexnn.robust.sampling import SOURCES, sample_robust
from convexnn.robust.survival import survival, surviving
from convexnn.solvers.answer import ProgramLimits
from convexnn.solvers.reference import solve_reference as solve_plain

every_norm = pytest.mark.parametrize("norm", NORMS)
every_case = pytest.mark.parametrize(("kind", "loss", "norm"), CASES)
every_solve = pytest.mark.parametrize(("kind", "loss", "norm"), SOLVED)


def ball_of(norm, d=5, seed=0):
    radii = 0.1 + normal(d, seed=seed).abs()
    radii[-1] = 0.0
    return Ball(radii, norm)


@every_norm
def test_support_is_the_largest_product_and_is_attained(norm):
    ball, W = ball_of(norm), normal(7, 5, seed=1)
    points = torch.cat([extreme_points(ball), ball.sample((500,), seeded(2))])
    assert bool((ball.gauge(points) <= 1 + 1e-12).all())
    assert bool(((W @ points.T).amax(1) <= ball.support(W) + 1e-12).all())
    worst = ball.worst(W)
    assert bool((ball.gauge(worst) <= 1 + 1e-12).all())
    torch.testing.assert_close((worst * W).sum(1), ball.support(W))
    if norm != "l2":  # the corners are all there
        torch.testing.assert_close((W @ points.T).amax(1), ball.support(W))


@every_norm
@pytest.mark.parametrize("size", [0.0, 0.05, 0.7, 50.0])
def test_projection_is_the_nearest_point(norm, size):
    """p is nearest to w in size * ball if and only if (w - p)'p = size * support(w - p)."""
    ball, W = ball_of(norm), normal(9, 5, seed=3)
    sizes = torch.full((9,), size, dtype=torch.float64)
    near = ball.project(W, sizes)
    assert bool((ball.gauge(near) <= size * (1 + 1e-12)).all())
    torch.testing.assert_close(((W - near) * near).sum(1), size * ball.support(W - near), rtol=1e-9, atol=1e-10)


@every_norm
def test_clipped_points_are_inside(norm):
    ball = ball_of(norm)
    inside = ball.sample((6,), seeded(0))
    torch.testing.assert_close(ball.clipped(inside), inside)
    assert bool((ball.gauge(ball.clipped(9 * normal(6, 5, seed=1))) <= 1 + 1e-12).all())


@pytest.mark.parametrize("loss", LOSSES)
@every_norm
@pytest.mark.parametrize("bias", [False, True])
def test_hard_objective_is_the_worst_case_of_the_network(loss, norm, bias):
    """Enumerated corners of every ball, the network run at each: the source's guarantee."""
    program = robust_program("hard", loss, norm, bias=bias)
    for seed in range(3):
        point = random_point(program, seed)
        assert program.violation(point) <= 1e-12
        penalty = program.problem.weight_decay * float(point.U.norm(dim=-1).sum())
        found = sampled_worst_loss(program, point, seed) + penalty
        assert found == pytest.approx(program.objective(point), rel=2e-2 if norm == "l2" else 1e-12)
        assert found <= program.objective(point) + 1e-12
        half = program.problem.weight_decay * float(program.network(point).half_squared_norm())
        assert half == pytest.approx(penalty, rel=1e-12)


@pytest.mark.parametrize("loss", LOSSES)
@every_norm
def test_soft_objective_is_at_least_the_worst_case_everywhere_and_equal_in_the_hard_cones(loss, norm):
    hard, soft = robust_program("hard", loss, norm), robust_program("soft", loss, norm)
    for seed in range(3):
        inside = random_point(hard, seed)
        assert soft.objective(inside) == pytest.approx(hard.objective(inside), rel=1e-12)
        anywhere = ConvexPoint(0.2 * (1 + seed) * normal(*inside.U.shape, seed=seed), inside.bias)
        penalty = soft.problem.weight_decay * float(anywhere.U.norm(dim=-1).sum())
        assert hard.violation(anywhere) > 0.01
        assert sampled_worst_loss(soft, anywhere, seed) + penalty <= soft.objective(anywhere) + 1e-12
        assert soft.objective(anywhere) > hard.objective(anywhere)  # which means nothing outside the cones


@every_case
def test_objectives_are_convex(kind, loss, norm):
    program = robust_program(kind, loss, norm)
    for seed in range(4):
        first, second = random_point(program, 2 * seed), random_point(program, 2 * seed + 1, scale=1.0)
        for share in (0.2, 0.5, 0.9):
            U, b = (share * p + (1 - share) * q for p, q in ((first.U, second.U), (first.bias, second.bias)))
            chord = share * program.objective(first) + (1 - share) * program.objective(second)
            assert program.objective(ConvexPoint(U, b)) <= chord + 1e-12


@every_case
@pytest.mark.parametrize("bias", [False, True])
def test_weak_duality_at_any_point_with_any_multipliers(kind, loss, norm, bias):
    program = robust_program(kind, loss, norm, bias=bias)
    objectives = [program.objective(random_point(program, seed, 0.02 * (1 + seed) ** 2)) for seed in range(6)]
    objectives.append(program.objective(program.zero()))
    for seed in range(8):
        judged = judge_robust(program, program.zero(), random_dual(program, seed, 0.2 * (1 + seed)))
        assert judged.bound <= min(objectives) + 1e-12


@every_case
def test_block_norms_bound_every_block(kind, loss, norm):
    """c'u <= what the multipliers say, for unit blocks in the cones; for soft ones less what they would cost."""
    program = robust_program(kind, loss, norm)
    for seed in range(3):
        dual = admitted(program, random_dual(program, seed))
        C, largest = correlations(program, dual), block_norms(program, dual)
        for other in range(5):
            U = random_point(program, 10 * seed + other).U[:, 0]
            U = U / U.norm(dim=-1, keepdim=True)
            reached = (C * U).sum(-1)
            if kind == "soft":
                sides = torch.stack([dual.above, dual.below])[:, None]
                reached = reached - (sides * (-program.slack(U)).clamp(min=0.0)).sum(-1)
            assert bool((reached <= largest + 1e-12).all())


@every_case
def test_block_norms_are_attained(kind, loss, norm):
    """w'u - (1'a) r(u) with w = c + X'(2D - I) a is largest, over unit blocks, at what projecting w leaves."""
    program = robust_program(kind, loss, norm)
    dual = admitted(program, random_dual(program, 1))
    pulled = correlations(program, dual) + (program.sides * dual.multipliers) @ program.problem.X
    rest = pulled - program.ball.project(pulled, dual.multipliers.sum(-1))
    U = rest / rest.norm(dim=-1, keepdim=True)
    reached = (pulled * U).sum(-1) - dual.multipliers.sum(-1) * program.ball.support(U)
    torch.testing.assert_close(reached, block_norms(program, dual), rtol=1e-8, atol=1e-10)


@every_case
def test_admitted_points_are_feasible_and_scaled_best(kind, loss, norm):
    program = robust_program(kind, loss, norm)
    for seed in range(3):
        dual = admitted(program, random_dual(program, seed))
        assert bool((program.ball.gauge(dual.worst) <= 1 + 1e-12).all())
        assert abs(float(dual.net.sum())) < 1e-12
        best, bound = at_best_scale(program, dual, 0.7)
        assert bound == pytest.approx(value(program, best), rel=1e-12)
        for factor in (0.0, 0.1, 0.35, 0.69):
            assert value(program, dual.scaled(factor)) <= bound + 1e-14


@pytest.mark.parametrize("loss", LOSSES)
def test_value_is_the_least_loss_and_weights_on_the_outputs(loss):
    """D = min over low <= high of L(worst output) + lambda+ low - lambda- high."""
    program = robust_program("soft", loss)
    y = program.targets
    for seed in range(4):
        dual = admitted(program, random_dual(program, seed))
        middle, half = 2 * normal(16, seed=seed), normal(16, seed=seed + 1).abs()

        def total(low, high, dual=dual):
            F = worst_outputs(program.problem.loss.targets, Outputs(low, high), margin=program.margin_loss)
            return float(program.problem.loss.value(F) + (dual.below * low - dual.above * high).sum())

        assert value(program, dual) <= total(middle - half, middle + half) + 1e-12
        if loss == "squared":  # attained where both ends are at the same distance T / c
            far = dual.total / program.problem.loss.weights
            assert value(program, dual) == pytest.approx(total(y - far, y + far), rel=1e-9, abs=1e-12)


@every_solve
def test_cvxpy_and_the_judge_agree(kind, loss, norm):
    """Strong duality: the judge's bound of cvxpy's multipliers meets its own objective of cvxpy's point."""
    program = robust_program(kind, loss, norm, P=4, bias=norm != "l1")
    answer = solve_reference(program, ProgramLimits(1e-6))
    assert answer.judgement.gap() < 5e-6
    for seed in range(4):
        assert program.objective(random_point(program, seed, 0.05)) >= answer.judgement.bound


@pytest.mark.parametrize("loss", LOSSES)
def test_soft_optimum_is_at_most_the_hard_one(loss):
    hard, soft = (solve_reference(robust_program(kind, loss, eps=0.04), ProgramLimits(1e-6)) for kind in KINDS)
    assert soft.judgement.objective <= hard.judgement.objective * (1 + 1e-6)


@pytest.mark.parametrize("loss", LOSSES)
def test_without_a_ball_hard_cones_are_those_of_the_plain_program(loss):
    problem = robust_problem(loss, 16, 3, 0)
    patterns = sample_patterns(problem.X, 5, seeded(0))
    ball = read_ball(0.0, "linf", 3, hidden_bias=True)
    plain = solve_plain(ReLUProgram(problem, patterns), ProgramLimits(1e-6))
    robust = solve_reference(HardRobustProgram(problem, patterns, ball), ProgramLimits(1e-6))
    assert robust.judgement.objective == pytest.approx(plain.judgement.objective, rel=1e-5)
    soft = SoftRobustProgram(problem, patterns, ball)
    assert soft.objective(robust.judgement.point) == pytest.approx(robust.judgement.objective, rel=1e-9)


@every_norm
def test_survival_against_directions_of_the_plane(norm):
    """The largest min_k (2D - I) x_k'u / r(u) by a fine grid of directions."""
    X = normal(8, 2, seed=4) + torch.tensor([0.5, 0.2], dtype=torch.float64)
    ball = Ball(torch.tensor([0.1, 0.25], dtype=torch.float64), norm)
    patterns = sample_patterns(X, 8, seeded(1))
    found = survival(X, patterns, ball)
    angle = torch.linspace(0, 2 * torch.pi, 200_001, dtype=torch.float64)
    grid = torch.stack([angle.cos(), angle.sin()], 1)
    ratio = (grid @ X.T) / ball.support(grid)[:, None]
    for p, factor in enumerate(found.factors.tolist()):
        side = 2.0 * patterns.D[p].double() - 1.0
        assert factor == pytest.approx(max(0.0, float((side * ratio).amin(1).max())), rel=1e-3, abs=1e-6)
        slack = side * (X @ found.directions[p]) - ball.scaled(0.999 * factor).support(found.directions[p])
        assert float(slack.min()) > 0


def test_factors_of_large_data_are_lower_bounds(monkeypatch):
    X, _ = clusters(24, 3, 1)
    ball = read_ball(0.03, "linf", 3, hidden_bias=True)
    patterns = sample_robust(X, ball, 12, seeded(0), soft=True).patterns
    exact = survival(X, patterns, ball)
    monkeypatch.setattr("convexnn.robust.survival._LARGE", 0)
    quick = survival(X, patterns, ball)
    assert bool((quick.factors <= exact.factors * (1 + 1e-6)).all())
    slack = (2.0 * patterns.D.double() - 1.0) * (quick.directions @ X.T) - ball.support(quick.directions)[:, None]
    assert bool((slack.amin(1) > 0)[quick.inside].all())


def test_survivors_and_the_largest_radius():
    X, _ = clusters(20, 3, 0)
    ball = read_ball(0.02, "linf", 3, hidden_bias=True)
    patterns = of_directions(X[:, :3], normal(10, 3, seed=0))  # through the origin: without a bias
    flat, moving = X[:, :3], Ball(ball.radii[:3])
    found = survival(flat, patterns, moving)
    largest = found.largest(moving)
    assert 0 < largest < torch.inf
    kept = surviving(patterns, survival(flat, patterns, moving.scaled(0.999 * largest / 0.02)), moving)
    assert len(kept) >= 1
    too_large = moving.scaled(1.01 * largest / 0.02)
    with pytest.raises(InvalidInputError, match=f"largest radius that one of them survives is {largest:.6g}"):
        surviving(patterns, survival(flat, patterns, too_large), too_large)


@pytest.mark.parametrize("source", SOURCES)
def test_sampled_patterns_are_distinct_and_survivors_have_directions_inside(source):
    X, _ = clusters(24, 3, 1)
    ball = read_ball(0.03, "linf", 3, hidden_bias=True)
    found = sample_robust(X, ball, 12, seeded(0), source=source)
    assert len(found.factors) == found.n_sampled <= 12
    assert found.n_surviving == len(found.patterns) == int((found.factors > 1).sum())
    program = HardRobustProgram(robust_problem("hinge", 24, 3, 1), found.patterns, ball)  # checks the directions
    assert float(program.inside.min()) > 0
    assert len(torch.unique(found.patterns.D, dim=0)) == len(found.patterns)
    assert bool(found.patterns.D.all(1).any())  # a linear function survives every ball
    soft = sample_robust(X, ball, 12, seeded(0), source=source, soft=True)
    assert len(soft.patterns) == soft.n_surviving == found.n_sampled


def test_gaps_survive_where_random_directions_do_not():
    X, _ = clusters(40, 4, 2)
    ball = read_ball(0.05, "linf", 4, hidden_bias=True)
    gaps, data = (sample_robust(X, ball, 20, seeded(0), source=source) for source in ("gap", "data"))
    assert gaps.n_cutting >= 5
    assert data.n_cutting < gaps.n_cutting


def test_bad_radii_and_norms_are_refused():
    for eps, match in [
        (-0.1, "radius -0.1"),
        ([0.1, 0.2], r"shape \(2,\).*3 features"),
        (np.nan, "radius nan"),
        ([0.1, -0.3, 0.1], "radius -0.3"),
        (np.ones((3, 1)), r"shape \(3, 1\)"),
    ]:
        with pytest.raises(InvalidInputError, match=match):
            read_ball(eps, "linf", 3, hidden_bias=True)
    for eps in ("large", True, object()):
        with pytest.raises(InvalidTypeError, match="is not a radius"):
            read_ball(eps, "linf", 3, hidden_bias=True)
    with pytest.raises(InvalidInputError, match="norm is 'l3'; expected one of linf, l2, l1"):
        read_ball(0.1, "l3", 3, hidden_bias=True)


def test_programs_of_the_wrong_kind_are_refused():
    program = robust_program("hard")
    several = Problem(program.problem.X, read_loss("squared", normal(16, 2, seed=0).numpy(), 16), 1e-2)
    with pytest.raises(InvalidInputError, match="have one output"):
        SoftRobustProgram(several, program.patterns, program.ball)
    softmax = Problem(program.problem.X, read_loss("softmax", np.arange(16) % 2, 16), 1e-2)
    with pytest.raises(InvalidInputError, match="take the losses squared, logistic, hinge"):
        SoftRobustProgram(softmax, program.patterns, program.ball)
    with pytest.raises(InvalidInputError, match="ball of 3 columns"):
        SoftRobustProgram(program.problem, program.patterns, Ball(program.ball.radii[:3]))
    with pytest.raises(InvalidInputError, match="not inside the robust cones"):
        HardRobustProgram(program.problem, program.patterns, program.ball.scaled(100.0))
    with pytest.raises(InvalidInputError, match="patterns from 'noise' are not known"):
        sample_robust(program.problem.X, program.ball, 4, seeded(0), source="noise")
    with pytest.raises(InvalidInputError, match="0 patterns"):
        sample_robust(program.problem.X, program.ball, 0, seeded(0))
    with pytest.raises(InvalidInputError, match="backend='ecos'"):
        solve_reference(program, ProgramLimits(), backend="ecos")


def test_multipliers_of_soft_cones_are_kept_in_their_range():
    """More than lambda would claim that an excess costs more than it does, and any bound could be had."""
    program = robust_program("soft")
    dual = random_dual(program, 0)
    huge = RobustDual(dual.below, dual.above, dual.worst, 1e6 * dual.multipliers.abs())
    kept = admitted(program, huge)
    assert bool((kept.multipliers[0] <= kept.above).all())
    assert bool((kept.multipliers[1] <= kept.below).all())
