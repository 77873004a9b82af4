"""Constrained programs: laws of the judge, the interior point against cvxpy, multipliers, conflicts, networks."""

from dataclasses import replace
from itertools import combinations, pairwise

import numpy as np
import pytest
import torch
from scipy.optimize import linprog

from convexnn import Constraints, InfeasibleConstraintsError, demographic_parity, monotone, output_caps, train
from convexnn.constrained.duality import judge_constrained
from convexnn.constrained.feasibility import examined
from convexnn.constrained.interior import InteriorLimits, better, solve_interior
from convexnn.constrained.program import ConstrainedProgram, read_rows, widened
from convexnn.constrained.reference import solve_reference
from convexnn.data import read_loss
from convexnn.errors import SolverWarning
from convexnn.patterns import sample_patterns
from convexnn.problem import Problem
from convexnn.programs import ConvexPoint, GatedProgram, ReLUProgram
from convexnn.result import Status
from convexnn.solvers.answer import ProgramLimits
from convexnn.solvers.working_set import solve_working_set

pytestmark = pytest.mark.usefixtures("unchecked")
LOSSES = ("squared", "logistic", "hinge")


def data(n=40, d=3, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, d))
    groups = np.where(X[:, 0] + 0.5 * rng.standard_normal(n) > 0, "a", "b")
    y = np.sin(2 * X[:, 0]) + np.abs(X[:, 1]) - 0.5 + 0.1 * rng.standard_normal(n)
    return X, groups, y


def program_of(constraints, loss="squared", *, kind=ReLUProgram, bias=True, wd=1e-2, P=12, seed=0):
    X, _, y = data(seed=seed)
    points, rows = read_rows(constraints, torch.from_numpy(X))
    points = torch.cat([points, torch.ones(len(points), 1, dtype=torch.float64)], 1)
    problem = Problem(points[: len(X)], read_loss(loss, y if loss == "squared" else np.sign(y), len(X)), wd, bias)
    patterns = sample_patterns(points, P, torch.Generator().manual_seed(seed))
    return ConstrainedProgram(problem, kind(widened(problem, points), patterns), rows)


def rows_of(gap=0.1, seed=0):
    X, groups, _ = data(seed=seed)
    return demographic_parity(groups, gap) + output_caps(X[:4] + 0.3, lower=-0.4, upper=0.5)


def optimum(constraints, loss, tol=1e-7, **options):
    program = program_of(constraints, loss, **options)
    return program, solve_interior(program, examined(program), InteriorLimits(tol))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", [ReLUProgram, GatedProgram])
@pytest.mark.parametrize("loss", LOSSES)
def test_interior_point_meets_cvxpy(loss, kind, bias):
    program, found = optimum(rows_of(), loss, kind=kind, bias=bias)
    other = solve_reference(program, ProgramLimits(1e-6))
    assert found.gap() < 1e-5
    assert found.violation < 1e-8
    assert found.objective == pytest.approx(other.objective, rel=1e-4)
    assert other.dual.bound <= found.objective + 1e-9
    assert found.dual.bound <= other.objective + 1e-6  # the reference may violate rows by its own tolerance
    np.testing.assert_allclose(found.dual.mu, other.dual.mu, atol=2e-3)


def test_points_that_keep_to_the_rows_come_before_better_ones_that_do_not():
    program, found = optimum(rows_of(), "squared", tol=1e-3)
    low = replace(found, objective=0.5 * found.objective, violation=1e-2)
    for pair in ((low, found), (found, low)):
        assert better(program, *pair).objective == found.objective
        assert better(program, *pair).violation == found.violation
    lower = replace(low, violation=found.violation)
    assert better(program, found, lower).objective == lower.objective
    assert better(program, low, replace(low, violation=1e-3)).violation == 1e-3


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", [ReLUProgram, GatedProgram])
@pytest.mark.parametrize("loss", LOSSES)
def test_no_multipliers_give_a_bound_above_a_feasible_point(loss, kind, bias):
    program, found = optimum(rows_of(), loss, kind=kind, bias=bias, tol=1e-4)
    n, m, generator = program.n, len(program.rows), torch.Generator().manual_seed(1)
    for scale in (1e-3, 1e-2, 0.1, 1.0, 10.0):
        V = scale * torch.randn(n, 1, generator=generator, dtype=torch.float64)
        mu = scale * torch.randn(m, generator=generator, dtype=torch.float64)
        cones = None
        if program.wide.cone is not None:
            cones = scale * torch.randn(found.multipliers.shape, generator=generator, dtype=torch.float64)
        for dual in ((V, mu), (found.dual.V + V / 100, found.dual.mu + mu / 100), (found.dual.V, mu)):
            judged = judge_constrained(program, found.point, *dual, cones)
            assert judged.dual.bound <= found.objective * (1 + 1e-12)
            assert bool((judged.dual.mu >= 0).all())
            if bias:  # else the output bias alone would make the Lagrangian unbounded
                assert abs(float(program.pulled(judged.dual.V, judged.dual.mu).sum())) < 1e-9 * max(1, scale)


@pytest.mark.parametrize(("loss", "kind"), [(loss, ReLUProgram) for loss in LOSSES] + [("squared", GatedProgram)])
def test_multipliers_are_the_slopes_of_the_optimal_value(loss, kind):
    limits, h = rows_of(), 2e-3
    _, at = optimum(limits, loss, kind=kind)
    program = program_of(limits, loss, kind=kind)
    mu = at.dual.mu / program.rows.scales
    tight = torch.argsort(mu, descending=True)[:2].tolist()
    loose = int(torch.argmin(mu))
    assert float(mu[tight[-1]]) > 1e-3
    for row in (*tight, loose):
        values = []
        for step in (h, -h):
            b = limits.b.clone()
            b[row] += step
            moved = Constraints(limits.A, b, limits.A_extra, limits.X_extra)
            values.append(optimum(moved, loss, kind=kind)[1].objective)
        assert (values[0] - values[1]) / (2 * h) == pytest.approx(-float(mu[row]), rel=3e-2, abs=1e-3)


@pytest.mark.parametrize("loss", LOSSES)
def test_loose_constraints_change_nothing(loss):
    _, groups, _ = data()
    program, found = optimum(demographic_parity(groups, 100.0), loss)
    plain = solve_working_set(ReLUProgram(program.problem, program.wide.patterns), ProgramLimits(1e-7))
    assert found.objective == pytest.approx(plain.judgement.objective, rel=1e-5)
    assert float(found.dual.mu.max()) < 1e-6


def test_the_optimal_value_is_convex_in_the_limit_and_lies_above_its_tangents():
    _, groups, _ = data()
    gaps = [0.0, 0.1, 0.2, 0.4, 0.8]
    runs = [optimum(demographic_parity(groups, gap), "squared") for gap in gaps]
    values, slopes = [run[1].objective for run in runs], []
    for program, found in runs:
        slopes.append(-float((found.dual.mu / program.rows.scales).sum()))
    assert all(later <= earlier + 1e-7 for earlier, later in pairwise(values))
    for gap, value, slope in zip(gaps, values, slopes, strict=True):
        for other, there in zip(gaps, values, strict=True):
            assert there >= value + slope * (other - gap) - 1e-6


def test_equalities_have_no_room_and_still_have_an_optimum():
    X, groups, _ = data()
    limits = demographic_parity(groups, 0.0) + output_caps(X[:2], lower=0.2, upper=0.2) + output_caps(X, upper=1.0)
    program, found = optimum(limits, "squared")
    split = examined(program)
    assert len(split.equal) == 3  # two means that are equal, two points that are given
    assert found.gap() < 1e-6
    assert found.violation < 1e-8
    other = solve_reference(program, ProgramLimits(1e-6))
    assert found.objective == pytest.approx(other.objective, rel=1e-4)


def test_rows_that_say_nothing_are_no_obstacle():
    X, groups, _ = data()
    empty = Constraints(np.zeros((2, len(X))), [0.0, 1.0])
    _, plain = optimum(demographic_parity(groups, 0.1), "squared")
    _, found = optimum(demographic_parity(groups, 0.1) + empty, "squared")
    assert found.objective == pytest.approx(plain.objective, rel=1e-6)


def in_conflict(program, which):
    """By a linear program over the blocks in their cones, as they stand."""
    wide, rows = program.wide, program.rows
    columns, cones = [], []
    X, mask = wide.problem.X.numpy(), wide.gated.mask.numpy()
    for sign in wide.signs:
        for p in range(len(mask)):
            columns.append(sign * (rows.A.numpy() * mask[p]) @ X)
            cones.append((2 * mask[p] - 1)[:, None] * X)
    A = np.hstack([*columns, rows.A.sum(1, keepdim=True).numpy() * program.problem.output_bias])[list(which)]
    G = np.zeros((sum(len(c) for c in cones), A.shape[1]))
    for k, cone in enumerate(cones):
        G[k * len(X) : (k + 1) * len(X), k * X.shape[1] : (k + 1) * X.shape[1]] = -cone
    b = np.concatenate([rows.b.numpy()[list(which)], np.zeros(len(G))])
    found = linprog(np.zeros(A.shape[1]), A_ub=np.vstack([A, G]), b_ub=b, bounds=(None, None), method="highs")
    return found.status == 2


@pytest.mark.parametrize("bias", [True, False])
def test_conflicts_are_named_and_none_of_them_can_be_left_out(bias):
    X, groups, _ = data(n=12)
    own = {a: X[groups == a] for a in "ab"}
    limits = (  # group b at least one above group a by its caps, at most 0.2 by parity
        output_caps(X[:2], upper=5.0)
        + output_caps(own["a"], upper=-0.5)
        + demographic_parity(groups, 0.2)
        + output_caps(own["b"], lower=0.5)
    )
    points, rows = read_rows(limits, torch.from_numpy(X))
    points = torch.cat([points, torch.ones(len(points), 1, dtype=torch.float64)], 1)
    problem = Problem(points[: len(X)], read_loss("squared", X[:, 0], len(X)), 1e-2, bias)
    patterns = sample_patterns(points, 6, torch.Generator().manual_seed(0))
    program = ConstrainedProgram(problem, ReLUProgram(widened(problem, points), patterns), rows)
    with pytest.raises(InfeasibleConstraintsError, match="constraints together") as caught:
        examined(program)
    named = caught.value.rows
    assert set(caught.value.names) == {limits.names[row] for row in named}
    assert in_conflict(program, named)
    assert not any(in_conflict(program, fewer) for fewer in combinations(named, len(named) - 1))
    weights = torch.tensor(caught.value.weights, dtype=torch.float64)
    assert bool((weights > 0).all())
    given = limits.b[list(named)]
    assert float(weights @ given) < 0
    total = (weights / 1.0) @ (rows.A * rows.scales[:, None])[list(named)]
    reach = torch.cat([(total * row) @ points for row in program.wide.gated.mask])
    assert float(reach.abs().max()) < 1e-6
    assert not bias or abs(float(total.sum())) < 1e-6


def test_raising_the_limits_by_what_the_error_says_makes_them_feasible():
    X, _, y = data()
    with pytest.raises(InfeasibleConstraintsError, match=r"No function meets .* by 0\.5 makes") as caught:
        train(X, y, weight_decay=1e-2, constraints=output_caps(X[:1], lower=1.0) + output_caps(X[:1], upper=0.0))
    assert caught.value.rows == (0, 1)
    limits = output_caps(X[:1], lower=0.5) + output_caps(X[:1], upper=0.5)
    result = train(X, y, weight_decay=1e-2, constraints=limits, method="interior-point", n_patterns=20)
    with torch.no_grad():
        assert float(result.network(torch.from_numpy(X[:1]))) == pytest.approx(0.5, abs=1e-7)


def test_what_few_patterns_cannot_do_is_said_so():
    X, _, y = data()
    wanted = np.where(np.random.default_rng(1).random(len(X)) > 0.5, 5.0, -5.0)
    rows = Constraints(np.vstack([np.eye(len(X)), -np.eye(len(X))]), np.concatenate([wanted + 0.1, 0.1 - wanted]))
    with pytest.raises(InfeasibleConstraintsError, match="3 activation patterns .* raise n_patterns"):
        train(X, y, weight_decay=1e-2, constraints=rows, method="interior-point", n_patterns=3, random_state=0)


@pytest.mark.parametrize("method", ["interior-point", "fista", "reference"])
@pytest.mark.parametrize("loss", LOSSES)
def test_the_network_itself_keeps_to_the_rows(loss, method):
    X, _, y = data()
    limits = rows_of()
    result = train(
        X,
        y if loss == "squared" else np.sign(y),
        loss=loss,
        weight_decay=1e-2,
        constraints=limits,
        method=method,
        n_patterns=20,
        random_state=0,
    )
    with torch.no_grad():
        f, extra = result.network(torch.from_numpy(X))[:, 0], result.network(limits.X_extra)[:, 0]
    values, about = limits.A @ f + limits.A_extra @ extra, result.constraints
    np.testing.assert_allclose(values, about.values, atol=1e-9)
    assert float((values - limits.b).max()) <= about.tolerance <= 1e-5
    assert about.violation == pytest.approx(max(0.0, float((values - limits.b).max())), abs=1e-12)
    assert result.status is Status.SOLVED
    assert result.bound <= result.objective
    assert result.program.gap < 1e-3
    assert min(about.multipliers) >= 0
    slack = limits.b - values
    assert float((slack * torch.tensor(about.multipliers, dtype=torch.float64)).max()) < 1e-3  # complementary
    if method != "fista":  # a ReLU program's point and its network have one objective
        assert result.objective == pytest.approx(result.program.objective, rel=1e-3)
    assert result.to_json()
    assert "per unit of" in str(result)


def test_monotone_on_the_grid():
    X, _, y = data()
    y = y - 2 * X[:, 1]
    grid, options = np.linspace(-2, 2, 7), {"weight_decay": 1e-2, "n_patterns": 30, "random_state": 0}
    limits = monotone(X[:5], 1, grid)
    free = train(X, y, method="interior-point", **options)
    held = train(X, y, method="interior-point", constraints=limits, **options)
    with torch.no_grad():
        rise = [network(limits.X_extra).reshape(5, 7).diff(dim=1) for network in (free.network, held.network)]
    assert float(rise[0].min()) < -0.1
    assert float(rise[1].min()) > -1e-7


def test_other_patterns_help_and_the_bound_then_covers_them():
    X, groups, y = data(n=30, d=2)
    options = {"weight_decay": 3e-2, "constraints": demographic_parity(groups, 0.1), "random_state": 0, "tol": 1e-3}
    sampled = train(X, y, method="interior-point", n_patterns=8, **options)
    found = train(X, y, n_patterns=8, **options)
    assert found.status is Status.CONVERGED
    assert found.bound_kind == "local-search"
    assert found.gap <= 1e-3
    assert found.objective <= sampled.objective * (1 + 1e-3)
    assert found.constraints.violation <= found.constraints.tolerance
    again = train(X, y, n_patterns=8, warm_start=found.network, method="interior-point", **options)
    assert again.objective <= found.objective * (1 + 2e-3)  # the network's patterns are among the sampled ones
    plain = train(X, y, weight_decay=3e-2, random_state=0)
    assert plain.bound <= found.objective  # constraints cannot help


def test_units_do_not_matter():
    X, groups, y = data()
    options = {"method": "interior-point", "n_patterns": 20, "random_state": 0, "tol": 1e-6}
    one = train(X, y, weight_decay=1e-2, constraints=demographic_parity(groups, 0.1), **options)
    # y -> 1000 y: outputs scale by 1000, the objective by 1000 * 1000 with weight decay 1000 * 1e-2
    big = train(X, 1e3 * y, weight_decay=10.0, constraints=demographic_parity(groups, 100.0), **options)
    assert big.objective == pytest.approx(1e6 * one.objective, rel=1e-4)
    np.testing.assert_allclose(big.constraints.multipliers, 1e3 * np.array(one.constraints.multipliers), atol=1.0)


def test_multipliers_are_in_the_users_units():
    X, groups, y = data()
    options = {"weight_decay": 1e-2, "method": "interior-point", "n_patterns": 20, "random_state": 0, "tol": 1e-6}
    limits = demographic_parity(groups, 0.1)
    one = train(X, y, constraints=limits, **options)
    tenfold = train(X, y, constraints=Constraints(10 * limits.A, 10 * limits.b), **options)
    price = max(one.constraints.multipliers)
    assert max(tenfold.constraints.multipliers) == pytest.approx(price / 10, rel=1e-3)
    wider = train(X, y, constraints=demographic_parity(groups, 0.105), **options)
    assert (one.objective - wider.objective) / 0.005 == pytest.approx(price, rel=3e-2)


def test_the_judge_repairs_cones_before_it_looks_at_the_rows():
    program, found = optimum(rows_of(), "squared", tol=1e-4)
    outside = ConvexPoint(-found.point.U, found.point.bias)
    judged = judge_constrained(program, outside, found.dual.V, found.dual.mu, found.multipliers)
    assert program.wide.violation(judged.point) < 1e-12
    assert judged.objective == program.objective(judged.point)
    F = program.wide.output(judged.point)
    assert judged.violation == pytest.approx(float((program.rows.A @ F[:, 0] - program.rows.b).clamp(min=0).max()))


@pytest.mark.parametrize("method", ["fista", "interior-point"])
def test_a_run_that_is_cut_short_is_no_worse_than_a_constant(method):
    """Gated points split into neurons of 1e16 before they converge; and what is allowed has not their scale."""
    rng = np.random.default_rng(844553864)
    X = 10 * rng.standard_normal((22, 4))
    y = np.where(X @ rng.standard_normal(4) + rng.standard_normal(22) > 0, 1, -1)
    limits = demographic_parity(rng.integers(0, 3, 22), 0.5)
    result = train(
        X, y, loss="logistic", weight_decay=5e-3, method=method, constraints=limits, max_seconds=1e-3, random_state=0
    )
    share = np.mean(y == 1)
    assert result.objective <= -share * np.log(share) - (1 - share) * np.log(1 - share) + 1e-9
    assert result.constraints.violation <= result.constraints.tolerance <= 1e-7


def test_a_network_that_violates_a_row_is_handed_out_with_a_warning():
    """Nothing of a run is lost, and nobody takes it for feasible: the cap keeps even the constants out."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((30, 3))
    limits = output_caps(X[:1], lower=5.0) + output_caps(X[1:2], upper=-5.0)
    with pytest.warns(SolverWarning, match="violates a constraint"):
        result = train(
            X, X[:, 0], weight_decay=1e-2, constraints=limits, method="interior-point", max_seconds=1e-6, random_state=0
        )
    assert result.constraints.violation > result.constraints.tolerance


def capped(X, most):
    return output_caps(X[5:8], upper=-0.5) + output_caps(X[:5], upper=most)


@pytest.mark.slow
def test_a_limit_that_limits_nothing_gives_the_others_no_room():
    """What counts as feasible was relative to the largest limit: beside one of 1e9 others were violated."""
    X, _, y = data(n=25)
    settings = {"loss": "hinge", "weight_decay": 1e-2, "method": "interior-point", "n_patterns": 10, "random_state": 0}
    near, far = (train(X, np.sign(y), constraints=capped(X, most), **settings) for most in (1e2, 1e9))
    assert far.status is Status.SOLVED
    assert far.constraints.violation <= far.constraints.tolerance <= 1e-7
    assert far.objective == pytest.approx(near.objective, rel=1e-4)


def test_a_conflict_is_seen_beside_a_limit_that_limits_nothing():
    X, _, y = data(n=25)
    torn = capped(X, 1e9) + output_caps(X[5:6], lower=-0.4)
    with pytest.raises(InfeasibleConstraintsError) as error:
        train(X, y, weight_decay=1e-2, method="interior-point", n_patterns=10, constraints=torn, random_state=0)
    assert error.value.rows == (0, 8)


def test_a_small_row_is_held_beside_one_of_large_weights():
    X, _, y = data(n=25)
    limits = Constraints(np.vstack([1e8 * np.eye(25)[0], np.eye(25)[1]]), [1e8, -2.0])
    settings = {"weight_decay": 1e-2, "constraints": limits, "method": "interior-point", "random_state": 0}
    with pytest.warns(SolverWarning, match="row 1"):  # by more than its own tolerance, and less than the other row's
        result = train(X, y, max_seconds=1e-6, **settings)
    assert result.constraints.values[1] > -2.0 + 1e-7


def test_rows_that_are_all_equalities_go_with_losses_without_kinks():
    """The gated program of a logistic loss has then no pair of slack and multiplier at all."""
    X, _, y = data(n=12)
    row = np.linspace(-1.0, 2.0, 12)[None]
    limits = Constraints(np.vstack([row, -row]), [0.3, -0.3])
    result = train(
        X,
        np.sign(y),
        loss="logistic",
        weight_decay=1e-2,
        method="fista",
        n_patterns=8,
        constraints=limits,
        random_state=0,
    )
    assert result.constraints.values[0] == pytest.approx(0.3, abs=1e-6)
