"""Solvers of robust programs: linear systems against dense ones, projections and optima against cvxpy."""

from dataclasses import replace

import cvxpy as cp
import numpy as np
import pytest
import torch
from convexnn_cases import normal, seeded
from convexnn_references import ACCURATE
from robust_cases import CASES, KINDS, SOLVED, narrow_program, random_dual, robust_problem, robust_program

from convexnn.patterns import Patterns
from convexnn.result import Status, TraceEntry
from convexnn.robust import charged, in_turn, working_set
from convexnn.robust.answer import RobustAnswer
from convexnn.robust.ball import NORMS, read_ball
from convexnn.robust.blocks import RobustBlocks, Variables
from convexnn.robust.duality import admitted, correlations, judge_robust
from convexnn.robust.interior import InteriorOptions, solve_blocks
from convexnn.robust.pricing import Cones, price
from convexnn.robust.program import LOSSES, SoftRobustProgram
from convexnn.robust.reference import solve_reference
from convexnn.robust.system import ReducedSystem, Weights
from convexnn.robust.working_set import solve_working_set
from convexnn.solvers.answer import ProgramLimits
from convexnn.solvers.cones import Scaling

every_case = pytest.mark.parametrize(("kind", "loss", "norm"), CASES)
every_solve = pytest.mark.parametrize(("kind", "loss", "norm"), SOLVED)


class Dense:
    """The maps of some blocks as matrices."""

    def __init__(self, blocks: RobustBlocks) -> None:
        self.blocks = blocks
        B, extra, like = len(blocks), blocks.reach.extra, blocks.X
        p = 0 if blocks.harmful is None else len(blocks.harmful)
        bias = int(blocks.program.problem.output_bias)
        shapes = [(B, like.shape[1]), (B, extra), (len(blocks.shared), extra), (bias,), (B,), (p,), (blocks.levels,)]
        self.like = Variables(*(like.new_zeros(shape) for shape in shapes))
        self.sizes = [part.numel() for part in self.like.parts()]
        unit = torch.eye(sum(self.sizes), dtype=torch.float64)
        self.rows = torch.stack([blocks.rows(self.read(e)).flat() for e in unit], 1)
        self.cones = torch.stack([blocks.cones(self.read(e)).reshape(-1) for e in unit], 1)
        self.margins = torch.stack([blocks.margins(self.read(e)).reshape(-1) for e in unit], 1)

    def read(self, flat: torch.Tensor) -> Variables:
        parts = zip(torch.split(flat, self.sizes), self.like.parts(), strict=True)
        return Variables(*(part.reshape(like.shape) for part, like in parts))

    @staticmethod
    def flat(x: Variables) -> torch.Tensor:
        return torch.cat([part.reshape(-1) for part in x.parts()])


def inside_cones(count: int, width: int, seed: int) -> torch.Tensor:
    points = normal(count, width, seed=seed)
    points[:, 0] = points[:, 1:].norm(dim=1) + 0.3 + points[:, 0].abs()
    return points


def blocks_of(kind, loss, norm, bias):
    program = robust_program(kind, loss, norm, n=9, m=2, P=3, bias=bias)
    return RobustBlocks.of(program, torch.tensor([0, 2, 1 + len(program.patterns)]))


@every_case
@pytest.mark.parametrize("bias", [False, True])
def test_reduced_system_is_the_full_one(kind, loss, norm, bias):
    """Adjoints, and the solution of (curvature + A'WA) x = r, against matrices made from unit vectors."""
    check_reduced_system(blocks_of(kind, loss, norm, bias))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("loss", LOSSES)
def test_reduced_systems_of_samples_that_share_no_slope(loss, norm):
    """Some groups have one sample, some have two."""
    problem = robust_problem(loss, 9, 2, 0)
    masks = torch.rand((4, 9), generator=seeded(3)) < 0.5
    masks[:, 1] = masks[:, 0]
    masks[:, 3] = ~masks[:, 0]
    patterns = Patterns(masks, normal(4, 3, seed=4), n_drawn=4, complete=False)
    blocks = RobustBlocks.of(
        SoftRobustProgram(problem, patterns, read_ball(0.05, norm, 2, hidden_bias=True)), torch.tensor([0, 2, 5, 7])
    )
    sizes = torch.bincount(blocks.group)
    assert int(sizes.min()) == 1
    assert int(sizes.max()) > 1
    check_reduced_system(blocks)


def check_reduced_system(blocks: RobustBlocks) -> None:
    loss, dense = blocks.program.problem.loss.name, Dense(blocks)
    n_cones = len(dense.cones) // 4
    flat, cones = 0.1 + normal(blocks.n_rows, seed=0).abs(), normal(n_cones, 4, seed=1)
    force = normal(*blocks.ends.shape, seed=2) if not blocks.levels else None
    expected = dense.rows.T @ flat + dense.cones.T @ cones.reshape(-1)
    expected = expected if force is None else expected + dense.margins.T @ force.reshape(-1)
    torch.testing.assert_close(dense.flat(blocks.pull(blocks.views(flat), cones, force)), expected)
    scaling = Scaling.of(inside_cones(n_cones, 4, 3), inside_cones(n_cones, 4, 4))
    unit = torch.eye(4 * n_cones, dtype=torch.float64)
    square = torch.stack([scaling.apply_inverse(scaling.apply_inverse(e.reshape(-1, 4))).reshape(-1) for e in unit], 1)
    curvature = 0.1 + normal(len(blocks.X), seed=5).abs()
    full = dense.rows.T @ (flat[:, None] * dense.rows) + dense.cones.T @ square @ dense.cones
    if not blocks.levels:
        full = full + dense.margins.T @ (curvature[:, None] * dense.margins)
    elif loss == "squared":
        full[-blocks.levels :, -blocks.levels :] += torch.diag(curvature)
    right = normal(len(full), seed=6)
    found = ReducedSystem.of(blocks, Weights(blocks.views(flat), scaling, curvature)).solve(dense.read(right))
    torch.testing.assert_close(dense.flat(found), torch.linalg.solve(full, right), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(("loss", "norm"), [("hinge", "linf"), ("squared", "l2")])
@pytest.mark.usefixtures("unchecked")
def test_factors_in_single_precision_reach_the_same_optimum(loss, norm, monkeypatch):
    """Whatever the factor loses, conjugate gradients on the parts of the matrix give back."""
    program = robust_program("soft", loss, norm, n=20, P=6)
    exact = solve_working_set(program, ProgramLimits(1e-6)).judgement
    monkeypatch.setattr(charged, "_SINGLE_FROM", 1)
    rough = solve_working_set(program, ProgramLimits(1e-4))
    assert rough.judgement.gap() <= 1e-4
    assert exact.bound <= rough.judgement.objective <= exact.objective * (1 + 2e-4)


@pytest.mark.parametrize("norm", NORMS)
def test_parts_of_the_charged_matrix_are_its_factor(norm, monkeypatch):
    """Products with the parts, the diagonal, and the factor in single precision agree."""
    blocks = blocks_of("soft", "squared", norm, bias=True)
    flat = 0.1 + normal(blocks.n_rows, seed=0).abs()
    n_cones = 2 * len(blocks) + len(blocks.shared) if blocks.reach.conic else len(blocks)
    scaling = Scaling.of(inside_cones(n_cones, 4, 3), inside_cones(n_cones, 4, 4))
    weights = Weights(blocks.views(flat), scaling, torch.ones(len(blocks.X), dtype=torch.float64))
    monkeypatch.setattr(charged, "_SINGLE_FROM", 1)
    factor = ReducedSystem.of(blocks, weights).factor
    assert not factor.exact
    dense = torch.stack([factor.matrix.apply(e) for e in torch.eye(factor.matrix.rows.shape[1], dtype=torch.float64)])
    torch.testing.assert_close(dense, dense.T)
    torch.testing.assert_close(factor.matrix.diagonal(), dense.diagonal())
    right = normal(len(dense), seed=1)
    solution = torch.linalg.solve(dense, right)
    torch.testing.assert_close(factor.inverse(right), solution, rtol=1e-3, atol=1e-4)
    coarse = replace(factor, inverse=lambda vector: vector / dense.diagonal())  # a poor guess takes more corrections
    torch.testing.assert_close(coarse._corrected(right, 1e-10), solution, rtol=1e-5, atol=1e-7)


@pytest.mark.usefixtures("unchecked")
def test_both_methods_in_turn_are_no_worse_than_either(monkeypatch):
    program = robust_program("soft", n=24, m=4, P=14, seed=3)
    first = in_turn.solve_first_order(program, ProgramLimits(1e-6, max_seconds=1e-3))
    plain = in_turn.solve_in_turn(program, ProgramLimits(1e-6))
    assert plain.n_steps == solve_working_set(program, ProgramLimits(1e-6)).n_steps  # small: the interior point alone
    monkeypatch.setattr(in_turn, "_LONG", 0.0)
    monkeypatch.setattr(in_turn, "_MOST_SECONDS", 1e-3)
    seen = []
    both = in_turn.solve_in_turn(program, ProgramLimits(1e-6), report=seen.append)
    assert both.judgement.gap() <= 1e-6
    assert both.status is Status.CONVERGED
    assert both.judgement.objective <= first.judgement.objective
    assert len(both.trace) > len(first.trace)
    assert [e.objective for e in both.trace] == sorted((e.objective for e in both.trace), reverse=True)
    assert [e.bound for e in both.trace] == sorted(e.bound for e in both.trace)
    assert [e.seconds for e in both.trace] == sorted(e.seconds for e in both.trace)
    assert tuple(seen) == both.trace
    short = in_turn.solve_in_turn(program, ProgramLimits(1e-9, max_seconds=1e-6))
    assert short.status is Status.MAX_SECONDS


@pytest.mark.usefixtures("unchecked")
def test_what_the_first_of_two_methods_found_is_kept(monkeypatch):
    """A first method with the better bound, or the better point."""
    program = robust_program("soft", n=16, P=6)
    exact, poor = solve_working_set(program, ProgramLimits(1e-8)).judgement, program.zero()
    monkeypatch.setattr(in_turn, "_LONG", 0.0)
    for point in (exact.point, poor):
        judged = judge_robust(program, point, exact.dual if point is poor else exact.dual.scaled(0.1))
        entry = TraceEntry(0.0, judged.objective, judged.bound, 1)
        first = RobustAnswer(judged, Status.STALLED, 1, (entry,))
        monkeypatch.setattr(in_turn, "solve_first_order", lambda *_, first=first, **__: first)
        both = in_turn.solve_in_turn(program, ProgramLimits(1e-3))
        assert both.judgement.objective <= judged.objective
        assert both.judgement.bound >= judged.bound
        assert all(e.objective <= judged.objective and e.bound >= judged.bound for e in both.trace)


@pytest.mark.usefixtures("unchecked")
def test_working_sets_have_no_more_blocks_than_there_is_room_for(monkeypatch):
    program = robust_program("hard", n=24, m=4, P=14, seed=3)
    for name, value in (("_SMALL", 0), ("FIRST", 2), ("_MOST_COLUMNS", 2 * (program.problem.n_inputs + 1))):
        monkeypatch.setattr(working_set, name, value)
    answer = solve_working_set(program, ProgramLimits(1e-9, max_seconds=20))
    assert max(entry.n_neurons for entry in answer.trace) <= 2
    assert answer.status is Status.STALLED
    assert answer.judgement.bound <= answer.judgement.objective


@every_case
def test_some_of_the_blocks_are_the_rows_of_these_blocks(kind, loss, norm):
    blocks = blocks_of(kind, loss, norm, bias=True)
    keep = torch.tensor([True, False, True])
    pairs = blocks.pairs(keep[:, None].expand_as(blocks.mask))
    dense = Dense(blocks)
    x = dense.read(normal(sum(dense.sizes), seed=0))
    excess = x.excess * blocks.pairs(keep[:, None].expand_as(blocks.mask)) if len(x.excess) else x.excess
    x = replace(x, u=x.u * keep[:, None], excess=excess)
    fewer, part = blocks.take(keep), x.take(keep, pairs)
    torch.testing.assert_close(fewer.rows(part).flat(), blocks.rows(x).take(keep, pairs).flat())
    torch.testing.assert_close(fewer.margins(part), blocks.margins(x))


@every_solve
@pytest.mark.usefixtures("unchecked")
def test_interior_point_and_cvxpy_agree_and_the_judge_confirms(kind, loss, norm):
    program = robust_program(kind, loss, norm, n=20, P=6, bias=norm != "l2")
    answer = solve_working_set(program, ProgramLimits(1e-7))
    assert answer.status is Status.CONVERGED
    judged = answer.judgement
    assert judged.gap() <= 1e-7
    assert program.violation(judged.point) <= 1e-12
    assert program.objective(judged.point) == judged.objective
    assert judge_robust(program, judged.point, judged.dual).bound == pytest.approx(judged.bound, rel=1e-9)
    reference = solve_reference(program, ProgramLimits(1e-6))
    assert judged.objective == pytest.approx(reference.judgement.objective, rel=1e-5)
    assert judged.bound <= reference.judgement.objective


@every_solve
@pytest.mark.usefixtures("unchecked")
def test_small_working_sets_reach_the_same_optimum(kind, loss, norm, monkeypatch):
    """Pricing has to bring in what the first working set lacks."""
    program = robust_program(kind, loss, norm, n=24, m=4, P=14, seed=3)
    every = solve_blocks(program, torch.arange(2 * len(program.patterns)), InteriorOptions(1e-8))
    monkeypatch.setattr(working_set, "_SMALL", 0)
    monkeypatch.setattr(working_set, "FIRST", 2)
    answer = solve_working_set(program, ProgramLimits(1e-6))
    assert answer.judgement.gap() <= 1e-6
    assert len(answer.trace) > 1
    assert answer.judgement.objective == pytest.approx(every.objective, rel=3e-6)
    start = solve_working_set(program, ProgramLimits(1e-6), start=answer.judgement.point)
    assert start.judgement.objective == pytest.approx(every.objective, rel=3e-6)


def support(ball, u):
    radii = ball.radii.numpy()
    if ball.norm == "linf":
        return radii @ cp.abs(u)
    return cp.norm(cp.multiply(radii, u), 2 if ball.norm == "l2" else "inf")


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.usefixtures("unchecked")
def test_prices_bracket_the_projections_of_cvxpy(kind, norm):
    program = robust_program(kind, "squared", norm, n=18, P=5)
    dual = admitted(program, random_dual(program, 0))
    spread = 10 ** (-6 * torch.rand(18, generator=seeded(1), dtype=torch.float64))  # most charges are next to nothing
    C, charge = correlations(program, dual)[0], dual.above * spread if kind == "soft" else None
    cones = Cones(program.problem.X, program.sides, program.patterns.gates, program.ball, charge)
    exact = []
    for p in range(len(C)):
        u = cp.Variable(C.shape[1])
        A = program.sides[p].numpy()[:, None] * program.problem.X.numpy()
        slack = A @ u - support(program.ball, u)
        cost = 0.5 * cp.sum_squares(u - C[p].numpy())
        cost = cost if charge is None else cost + charge.numpy() @ cp.pos(-slack)
        cp.Problem(cp.Minimize(cost), [slack >= 0] if charge is None else []).solve(solver=cp.CLARABEL, **ACCURATE)
        exact.append(np.linalg.norm(u.value))
    for limit in (1e-3, 0.05, 1.0):
        prices = price(cones, C, limit, accuracy=1e-8)
        assert (prices.lower.numpy() <= np.array(exact) + 1e-6).all()
        assert (prices.upper.numpy() >= np.array(exact) - 1e-6).all()
        torch.testing.assert_close(cones.upper(C, prices.multipliers), prices.upper)
        for size in (0.1, 1.0, 10.0):  # whatever the multipliers, beyond their ranges too
            trial = prices.multipliers + size * float(C.norm(dim=1).mean()) * normal(*cones.sides.shape, seed=2)
            assert (cones.upper(C, trial).numpy() >= np.array(exact) - 1e-6).all()
        decided = (prices.upper <= limit * (1 + 1e-12)) | (prices.lower > 0.9 * limit) | (prices.upper < 1e-3)
        assert bool(decided.all())


@pytest.mark.usefixtures("unchecked")
def test_narrow_cones_do_not_hold_the_interior_point_up():
    """Iterates that hug the cones, or steps that nothing corrects, take up to four times the steps, or stall."""
    program = narrow_program(300, 23, 40)
    every = solve_blocks(program, torch.arange(80), InteriorOptions(1e-6, max_steps=30))
    assert every.gap(0.0) <= 1e-6
    found, wd = solve_blocks(program, torch.arange(40), InteriorOptions(1e-6)), program.problem.weight_decay
    C = correlations(program, found.dual)[1]
    gates = program.patterns.gates / program.patterns.gates.norm(dim=1, keepdim=True)
    cones = Cones(program.problem.X, program.sides, gates, program.ball, None)
    prices = price(cones, C, wd, accuracy=1e-7, max_steps=14)
    undecided = (prices.upper > wd) & ((prices.lower <= wd) | (prices.upper - prices.lower > 0.05 * prices.upper))
    assert not bool(undecided.any())


@pytest.mark.usefixtures("unchecked")
def test_limits_and_interrupts(monkeypatch):
    program = robust_program("hard", n=24, m=4, P=14, seed=3)
    monkeypatch.setattr(working_set, "_SMALL", 0)
    monkeypatch.setattr(working_set, "FIRST", 2)
    late = solve_working_set(program, ProgramLimits(1e-9, max_seconds=1e-9))
    assert late.status is Status.MAX_SECONDS
    assert late.judgement.bound <= late.judgement.objective

    def interrupt(entry):
        raise KeyboardInterrupt

    stopped = solve_working_set(program, ProgramLimits(1e-9), report=interrupt)
    assert stopped.status is Status.INTERRUPTED
    assert np.isfinite(stopped.judgement.objective)


@pytest.mark.usefixtures("unchecked")
def test_weights_that_do_not_pay_are_zero():
    """At a large weight decay the constant network is optimal, and the bound says so."""
    program = robust_program("hard", "squared")
    heavy = type(program)(
        type(program.problem)(program.problem.X, program.problem.loss, 50.0), program.patterns, program.ball
    )
    answer = solve_working_set(heavy, ProgramLimits(1e-6))
    assert answer.judgement.gap() <= 1e-6
    assert answer.judgement.objective == pytest.approx(heavy.objective(heavy.zero()), rel=1e-5)
    assert float(answer.judgement.point.U.norm()) < 1e-4
