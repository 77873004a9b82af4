"""Convex programs: operators, penalties, projections, weak duality, and networks with the same objective."""

import cvxpy as cp
import numpy as np
import pytest
import torch
from convexnn_cases import TARGETS, inside_domain, normal, problem_of, seeded
from convexnn_references import ACCURATE

from convexnn.duality import judge_program
from convexnn.errors import InvalidInputError
from convexnn.losses import LOSSES
from convexnn.operators import ConeMap, GatedMap
from convexnn.patterns import Patterns, of_directions, sample_patterns
from convexnn.penalties import PENALTIES
from convexnn.problem import Problem
from convexnn.programs import PROGRAMS, ConvexPoint, GatedProgram, ReLUProgram
from convexnn.projection import ColumnProducts, price, project
from convexnn.solvers.answer import ProgramLimits
from convexnn.solvers.working_set import solve_working_set

every_program = pytest.mark.parametrize("kind", list(PROGRAMS))
every_penalty = pytest.mark.parametrize("penalty", list(PENALTIES))
every_target = pytest.mark.parametrize(
    ("loss", "target"), [(name, k) for name in LOSSES for k in range(len(TARGETS[name]))]
)


def program_of(kind, loss="squared", target=0, penalty="group", *, n=20, d=3, P=8, wd=0.03, bias=True, seed=0):
    problem = problem_of(loss, n, d, wd, kind=target, output_bias=bias, seed=seed)
    return PROGRAMS[kind](problem, sample_patterns(problem.X, P, seeded(seed)), PENALTIES[penalty]())


def point_of(program, seed):
    scale = 0.1 * (1 + seed)
    bias = normal(program.problem.loss.n_outputs, seed=seed) * program.problem.output_bias
    return program.feasible(ConvexPoint(scale * normal(*program.shape, seed=seed), bias))


@every_program
def test_operators_are_adjoint_and_match_their_matrices(kind):
    program = program_of(kind, "squared", 1)
    X, D = program.problem.X, program.patterns.D.double()
    dense = torch.cat([D[p][:, None] * X for p in range(len(D))], 1)
    gated = GatedMap(X, D)
    U, v = normal(len(D), 3, seed=1), normal(len(X), seed=2)
    torch.testing.assert_close(gated.forward(U), dense @ U.reshape(-1))
    torch.testing.assert_close(gated.adjoint(v).reshape(-1), dense.T @ v)
    K = normal(len(X), len(X), seed=3)
    K = K + K.T
    expected = sum(D[p][:, None] * K * D[p] for p in range(len(D)))
    torch.testing.assert_close(gated.gram(K), expected)
    cone = ConeMap(X, 2 * D - 1)
    L = normal(len(D), len(X), seed=4)
    torch.testing.assert_close((cone.forward(U) * L).sum(), (U * cone.adjoint(L)).sum())


@every_program
def test_correlations_are_minus_the_gradient(kind):
    program = program_of(kind, "softmax")
    point, direction = point_of(program, 0), normal(*program.shape, seed=5)

    def value(step):
        return program.problem.loss.value(program.output(ConvexPoint(point.U + step * direction, point.bias)))

    C = program.correlations(program.problem.loss.negative_gradient(program.output(point)))
    slope = (value(1e-5) - value(-1e-5)) / 2e-5
    torch.testing.assert_close(-(C * direction).sum(), slope, rtol=1e-6, atol=1e-9)


@every_penalty
def test_prox_minimises_and_dual_norm_is_dual(penalty):
    member = PENALTIES[penalty]()
    U, C = normal(6, 4, seed=0), normal(6, 4, seed=1)
    Z = member.prox(U, 0.7)
    best = 0.7 * member.norms(Z) + 0.5 * ((Z - U) ** 2).sum(-1)
    for seed in range(30):
        other = Z + 0.3 * normal(6, 4, seed=seed)
        assert bool((0.7 * member.norms(other) + 0.5 * ((other - U) ** 2).sum(-1) >= best - 1e-12).all())
        W = normal(6, 4, seed=100 + seed)
        assert bool(((C * W).sum(-1) <= member.dual_norms(C) * member.norms(W) + 1e-12).all())
    # Moreau: U - prox is the projection of U on the ball of the dual norm.
    assert bool((member.dual_norms(U - Z) <= 0.7 + 1e-12).all())
    torch.testing.assert_close(member.value(U), member.norms(U).sum())


def test_projection_agrees_with_cvxpy_and_prices_bracket_it():
    X = normal(25, 5, seed=0)
    patterns = sample_patterns(X, 12, seeded(1))
    cone, C = ConeMap(X, 2.0 * patterns.D - 1), normal(12, 5, seed=2)
    found = project(cone, C, patterns.gates)
    exact = []
    for p in range(12):
        u = cp.Variable(5)
        A = cone.signs[p][:, None].numpy() * X.numpy()
        cp.Problem(cp.Minimize(cp.sum_squares(u - C[p].numpy())), [A @ u >= 0]).solve(solver=cp.CLARABEL, **ACCURATE)
        np.testing.assert_allclose(found[p].numpy(), u.value, atol=1e-6)
        exact.append(np.linalg.norm(u.value))
    for limit in (1e-3, 0.5, 2.0, 10.0):
        prices = price(cone, ColumnProducts.of(X), C, patterns.gates / patterns.gates.norm(dim=1, keepdim=True), limit)
        assert (prices.lower.numpy() <= np.array(exact) + 1e-7).all()
        assert (prices.upper.numpy() >= np.array(exact) - 1e-7).all()
        # The multipliers give the upper bound, whoever computes it.
        torch.testing.assert_close((C + cone.adjoint(prices.multipliers)).norm(dim=1), prices.upper)
        assert bool((prices.multipliers >= 0).all())
        decided = (prices.upper <= limit * (1 + 1e-12)) | (prices.lower > 0.9 * limit) | (prices.upper < 1e-3)
        assert bool(decided.all())


@every_program
@every_penalty
@every_target
@pytest.mark.parametrize("bias", [False, True])
def test_weak_duality_at_any_point_with_any_multipliers(kind, penalty, loss, target, bias):
    program = program_of(kind, loss, target, penalty, bias=bias)
    objectives = [program.objective(point_of(program, seed)) for seed in range(12)]
    objectives.append(program.objective(program.zero()))
    width = 0 if program.cone is None else program.cone.X.shape[0]
    for seed in range(6):
        V = inside_domain(program.problem.loss, seed)
        multipliers = 0.02 * seed * normal(*program.shape[:3], width, seed=seed)  # negative ones count as zero
        judged = judge_program(program, program.zero(), V, multipliers if width else None)
        assert judged.dual.bound <= min(objectives) + 1e-12


@pytest.mark.parametrize("loss", ["hinge", "logistic", "softmax"])
@pytest.mark.parametrize("step", [1e-3, 1e-2])
def test_bounds_of_points_outside_the_domain_are_bounds(loss, step):
    """A sample far beyond the margin with a dual variable of the wrong sign makes room for the others in M."""
    X = torch.tensor([[1.0], [30.0]], dtype=torch.float64)
    targets = torch.tensor([[1.0, 0.0]] * 2 if loss == "softmax" else [[1.0]] * 2).double()
    problem = Problem(X, LOSSES[loss](targets, torch.full((2,), 0.5).double()), 0.1, False)
    program = ReLUProgram(problem, of_directions(X, torch.tensor([[1.0], [-1.0]]).double()))
    best = solve_working_set(program, ProgramLimits(1e-9))
    along = torch.tensor([[1.0, -1.0]] if loss == "softmax" else [[1.0]]).double()
    V = best.V + step * torch.tensor([[15.0], [-0.5]]).double() * along
    judged = judge_program(program, program.zero(), V, best.multipliers)
    assert judged.dual.bound <= best.judgement.objective * (1 + 1e-12)


def test_negative_multipliers_count_as_zero():
    """With multipliers of any sign every correlation could be cancelled, and the largest would seem to be none."""
    program = program_of("relu", n=20, d=3)
    V = program.problem.dual_point(program.output(program.zero()))
    C, U = program.correlations(V), program.feasible(ConvexPoint(normal(*program.shape, seed=3), normal(1, seed=0))).U
    G = (program.cone.signs[..., None] * program.cone.X).expand(*program.shape[:2], -1, -1, -1)
    cancelling = -(torch.linalg.pinv(G.mT) @ C[..., None])[..., 0]
    assert float((C + program.cone.adjoint(cancelling)).abs().max()) < 1e-10
    within = ((C * U).sum(-1) / U.norm(dim=-1)).max()
    assert program.maximum(V, cancelling) >= float(within) > 0


@every_target
@pytest.mark.parametrize("bias", [False, True])
def test_network_of_a_relu_program_has_its_outputs_and_its_objective(loss, target, bias):
    program = program_of("relu", loss, target, bias=bias)
    for seed in range(4):
        point = point_of(program, seed)
        assert program.violation(point) <= 1e-12
        network = program.network(point)
        torch.testing.assert_close(network(program.problem.X), program.output(point), rtol=1e-10, atol=1e-10)
        assert program.problem.objective(network) == pytest.approx(program.objective(point), rel=1e-10)


@every_target
def test_network_of_a_gated_program_has_its_outputs(loss, target):
    program = program_of("gated", loss, target)
    point = point_of(program, 2)
    network = program.network(point)
    torch.testing.assert_close(network(program.problem.X), program.output(point), rtol=1e-8, atol=1e-8)
    assert program.problem.objective(network) >= program.objective(point) - 1e-10


def test_cone_decomposition_is_the_least_one():
    """Against cvxpy: v - w = u in the cone with the least ||v||^2 + ||w||^2."""
    from convexnn.programs.decomposition import decompose

    X = normal(4, 3, seed=0)  # few samples: wide cones, where not every optimum is a corner
    patterns, U = sample_patterns(X, 6, seeded(0)), normal(2, 6, 3, seed=1)
    V, W = decompose(X, patterns.D, patterns.gates, U)
    torch.testing.assert_close(V - W, U)
    signs = 2.0 * patterns.D - 1
    assert float((signs * (V @ X.T)).min()) > -1e-10
    assert float((signs * (W @ X.T)).min()) > -1e-10
    for k, p in [(0, 0), (0, 3), (1, 5)]:
        v, w = cp.Variable(3), cp.Variable(3)
        A = signs[p][:, None].numpy() * X.numpy()
        model = cp.Problem(
            cp.Minimize(cp.sum_squares(v) + cp.sum_squares(w)), [v - w == U[k, p].numpy(), A @ v >= 0, A @ w >= 0]
        )
        model.solve(solver=cp.CLARABEL, **ACCURATE)
        assert float((V[k, p] ** 2).sum() + (W[k, p] ** 2).sum()) == pytest.approx(model.value, rel=1e-6)


def test_samples_of_zeros_have_no_slack():
    problem = problem_of("squared", 10, 3, 0.03)
    problem.X[4] = 0.0
    program = ReLUProgram(problem, sample_patterns(problem.X, 5, seeded(0)))
    assert program.cone.X.shape[0] == 9
    point = point_of(program, 1)
    torch.testing.assert_close(program.network(point)(problem.X), program.output(point), rtol=1e-10, atol=1e-10)


def test_patterns_of_other_data_are_refused():
    problem = problem_of("squared", 10, 3, 0.03)
    with pytest.raises(InvalidInputError, match="patterns are of 9 samples"):
        ReLUProgram(problem, sample_patterns(problem.X[:9], 5, seeded(0)))
    none = Patterns(torch.zeros((0, 10), dtype=torch.bool), problem.X[:0], 0)
    with pytest.raises(InvalidInputError, match="at least one activation pattern"):
        GatedProgram(problem, none)
