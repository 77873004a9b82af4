"""Proved bounds: never above the true optimum, valid for any multipliers, refused once a file is changed."""

import copy
from dataclasses import fields, replace
from functools import cache

import numpy as np
import pytest
import torch
from convexnn_cases import problem_of
from convexnn_references import exact_optimum
from scipy.linalg import block_diag
from torch import nn

from certify.proof.artefact import RejectedError
from certify.proof.check import check
from certify.proof.writing import exact
from convexnn.data import read_loss
from convexnn.errors import InvalidInputError, SolverError, SolverWarning
from convexnn.gap import optimality_gap
from convexnn.problem import Problem, reduce_to_rank
from convexnn.proof import search as searching
from convexnn.proof.artefact import written, written_cones
from convexnn.proof.bound import NOTHING, bound_at
from convexnn.proof.certificate import (
    PIVOTS,
    Multipliers,
    Region,
    best_settled,
    region_bound,
    sphere_maximum,
)
from convexnn.proof.copies import Copies
from convexnn.proof.coupling import MomentCoupling, SampleCoupling
from convexnn.proof.factor import factorise
from convexnn.proof.groups import grouped, lifted
from convexnn.proof.hints import multipliers_of, region_of
from convexnn.proof.interior import Relaxation, iterates, start
from convexnn.proof.search import ProofSearch, check_size, dual_point_of
from convexnn.proof.simplicial import covering
from convexnn.proof.slabs import parts_of, ranges, whole_sphere
from convexnn.training import train

pytestmark = pytest.mark.usefixtures("unchecked")

LOSSES = ("squared", "logistic", "hinge")


def random_problem(seed, loss, n=None, d=None):
    rng = np.random.default_rng(seed)
    n, d = n or int(rng.integers(5, 11)), d or int(rng.integers(1, 4))
    X = rng.standard_normal((n, d))
    if rng.integers(2) and d > 1:
        X[:, -1] = 1.0  # a first-layer bias
    if seed % 4 == 2:
        X[1], X[3] = X[0], X[2]  # measured twice
    y = rng.standard_normal(n)
    if loss != "squared":
        y = np.where(y > 0, 1.0, -1.0)
        y[:2] = 1, -1
    weights = rng.uniform(0.3, 3.0, n) if rng.integers(2) else None
    return Problem(
        torch.from_numpy(X), read_loss(loss, y, n, weights), 10 ** rng.uniform(-2.5, -1), bool(rng.integers(2))
    )


def copies_of(problem):
    return Copies.of(problem.X.numpy())


def leaves_of(problem):
    X = problem.X.numpy()[copies_of(problem).first]
    radii = np.linalg.norm(X, axis=1)
    return tuple(whole_sphere(sign, X / radii[:, None], radii) for sign in (1.0, -1.0))


def relaxed(problem, leaves):
    """All iterates with their bounds."""
    relaxation = Relaxation(problem.loss, problem.weight_decay, problem.output_bias, leaves, copies_of(problem))
    found = []
    for point in iterates(relaxation, 1.0, 40):
        found.append((point, bound_at(problem, relaxation, point)))
        if point.mu < 1e-8:
            break
    return found


def best_of(pairs):
    return max((proof for _, proof in pairs), key=lambda proof: proof.value)


def with_groups(leaves, pairs, n_lifted, m):
    point = pairs[-1][0]
    groups = lifted(leaves, point.x, np.ones(len(leaves[0].rows)), n_lifted, m)
    return tuple(replace(leaf, groups=part) for leaf, part in zip(leaves, groups, strict=True))


@pytest.mark.parametrize("seed", [*range(3), *(pytest.param(s, marks=pytest.mark.slow) for s in range(3, 70))])
@pytest.mark.parametrize("loss", LOSSES)
def test_no_bound_is_above_the_optimum(loss, seed):
    """Brute force over all patterns; every iterate's bound, lifted, in slabs, and as the exact checker accepts it."""
    problem = random_problem(seed, loss)
    optimum = exact_optimum(problem) + 1e-7
    leaves = leaves_of(problem)
    root = relaxed(problem, leaves)
    lifts = relaxed(problem, with_groups(leaves, root, 2 * len(problem.X), min(4, len(problem.X))))
    omega = np.eye(problem.n_inputs)[0]
    slabs = relaxed(problem, tuple(part for leaf in leaves for part in parts_of(leaf, omega, 0.1)))
    assert all(proof.value <= optimum for _, proof in root + lifts + slabs)
    assert best_of(lifts).value >= best_of(root).value - 1e-4 * optimum
    for proof in (best_of(root), best_of(lifts), best_of(slabs)):
        file = written(problem, proof, None)
        assert file.bound <= min(optimum, proof.value)
        assert file.bound >= proof.value - 2e-4 * abs(optimum)
        assert check(file.document)


@pytest.mark.parametrize("loss", ["squared", "logistic"])
def test_cones_come_as_close_as_asked(loss):
    problem = problem_of(loss, 9, 3, 0.05, output_bias=False)
    result = train(
        problem.X, problem.loss.targets[:, 0], loss=loss, weight_decay=0.05, hidden_bias=False, output_bias=False,
        method="exact", tol=1e-7,
    )  # fmt: skip
    from convexnn.network import from_torch

    v = dual_point_of(problem, from_torch(result.network))
    proof = written_cones(problem, v / 1.06, None, float("inf"))
    optimum = exact_optimum(problem)
    assert proof is not None
    assert optimum * 0.92 <= proof.bound <= optimum + 1e-7
    signs = proof.document["proof"]["signs"]
    for damaged in (signs[0]["cones"][:-1], [*signs[0]["cones"], -1], [-1] * 8):
        with pytest.raises(RejectedError):
            check(changed(proof, lambda doc, c=damaged: doc["proof"]["signs"][0].update(cones=c)))
    assert written_cones(problem, 3 * v, None, -1.0) is None


def sampled_maximum(X, w, keep, n=20000):
    U = np.random.default_rng(0).standard_normal((n, X.shape[1]))
    U /= np.linalg.norm(U, axis=1, keepdims=True)
    values = np.maximum(U @ X.T, 0) @ w
    return float(values[keep(U)].max())


def random_multipliers(rng, n, groups, d, cuts):
    J, m = groups.shape
    draw = rng.standard_normal
    symmetric = [a + np.swapaxes(a, 1, 2) for a in (draw((J, m, m)), draw((J, m, m)))]
    return Multipliers(
        draw(n), draw(n), draw(n), draw(n), draw((J, m, d + 1)), draw((J, m, d + 1)),
        symmetric[0], draw((J, m, m)), symmetric[1], draw((J, m)), draw((cuts, 3)),
    )  # fmt: skip


@pytest.mark.parametrize("seed", range(20))
def test_any_multipliers_bound_the_maximum(seed):
    """Random parameters, wrong signs included, on the sphere and on slabs."""
    rng = np.random.default_rng(seed)
    n, d = 9, 3
    X = rng.standard_normal((n, d))
    X /= np.linalg.norm(X, axis=1, keepdims=True)
    w = rng.standard_normal(n)
    omega = np.eye(d)[0]
    cuts = ((omega, -0.3, 0.5),) if seed % 2 else ()
    low, high = ranges(X, cuts)
    groups = np.array([[0, 3, 5], [1, 2, 8]])
    region = Region(X, low, high, groups, cuts)
    bound = region_bound(region, w, random_multipliers(rng, n, groups, d, len(cuts)))
    assert bound >= sampled_maximum(X, w, lambda U: (U[:, 0] <= 0.5) & (U[:, 0] >= -0.3) if cuts else U[:, 0] < 2)


def test_ranges_of_slabs_are_met_and_never_passed():
    rng = np.random.default_rng(0)
    U = rng.standard_normal((200_000, 3))
    U /= np.linalg.norm(U, axis=1, keepdims=True)
    X = rng.standard_normal((6, 3))
    X /= np.linalg.norm(X, axis=1, keepdims=True)
    cut = (np.array([0.6, 0.8, 0.0]), -0.2, 0.4)
    inside = U[(U @ cut[0] >= -0.2) & (U @ cut[0] <= 0.4)] @ X.T
    low, high = ranges(X, (cut,))
    assert (inside.max(0) <= high).all()
    assert (inside.min(0) >= low).all()
    np.testing.assert_allclose(inside.max(0), high, atol=0.02)
    np.testing.assert_allclose(inside.min(0), low, atol=0.02)


@pytest.mark.parametrize("seed", range(5))
def test_the_maximum_on_the_sphere_is_exact(seed):
    rng = np.random.default_rng(seed)
    Q = rng.standard_normal((3, 3))
    Q = Q + Q.T
    angle = np.linspace(0, 2 * np.pi, 100_001)
    points = np.stack([np.ones_like(angle), np.cos(angle), np.sin(angle)])
    value, delta = sphere_maximum(Q)
    assert value == pytest.approx((points * (Q @ points)).sum(0).max(), abs=1e-6)
    rest = delta * np.diag([-1.0, 1, 1]) - Q
    rest[0, 0] += value
    assert np.linalg.eigvalsh(rest)[0] > -1e-9


@cache
def _lifted_leaf():
    """A leaf with free samples, groups and a cut, at a generic interior point."""
    problem = random_problem(3, "squared", n=12, d=3)
    leaf, _ = parts_of(leaves_of(problem)[0], np.array([1.0, 0, 0]), 0.6)
    open_ = np.flatnonzero((leaf.low < 0) & (leaf.high > 0))
    leaf = replace(leaf, groups=grouped(leaf.rows, open_, 3)[:2])
    point = start(Relaxation(problem.loss, 0.1, False, (leaf,), copies_of(problem)), 1.0)
    return leaf, point.s[0], point.lam[0]


@pytest.fixture
def lifted_leaf(unchecked):
    return _lifted_leaf()


def test_the_map_to_the_cones_and_its_adjoint(lifted_leaf):
    leaf, s, _ = lifted_leaf
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal(leaf.size), [rng.standard_normal(part.shape) for part in s]
    y[3] = y[3] + np.swapaxes(y[3], 1, 2)
    left = sum(float((a * b).sum()) for a, b in zip(leaf.forward(x), y, strict=True))
    assert left == pytest.approx(float(x @ leaf.adjoint(y)))
    z = rng.standard_normal(len(leaf.rows))
    assert float(leaf.outputs(x) @ z) == pytest.approx(float(x @ leaf.outputs_adjoint(z)))


@pytest.mark.parametrize("kind", [MomentCoupling, SampleCoupling])
@pytest.mark.parametrize("output_bias", [False, True])
def test_the_newton_system_is_solved(unchecked, kind, output_bias):
    """Against the matrix assembled column by column from the map and the scalings alone."""
    leaves = _two_leaves()
    rng, n = np.random.default_rng(1), len(leaves[0].rows)
    relaxation = Relaxation(
        read_loss("squared", rng.standard_normal(n), n), 0.1, output_bias, leaves, Copies.of(leaves[0].rows)
    )
    point = start(relaxation, 1.0)
    lam = [[part * rng.uniform(0.5, 2.0) for part in cones] for cones in point.lam]
    scalings = [leaf.scale_at(s, part) for leaf, s, part in zip(leaves, point.s, lam, strict=True)]
    curvature, offset = rng.uniform(0.5, 2.0, n), rng.standard_normal(n)
    right = [rng.standard_normal(leaf.size) for leaf in leaves]
    matrix = newton_matrix(leaves, scalings, curvature, output_bias)
    wanted = np.linalg.solve(matrix, np.concatenate([*right, -offset, [0.3 * output_bias]]))
    factors = [factorise(leaf, part) for leaf, part in zip(leaves, scalings, strict=True)]
    reduced = [factor.reduce(r) for factor, r in zip(factors, right, strict=True)]
    found = kind(factors, 1 / curvature, output_bias).solve(
        [part.g for part in reduced], offset + sum(part.outputs for part in reduced), 0.3
    )
    x = [f.expand(r, p, g, found.y) for f, r, p, g in zip(factors, right, reduced, found.g, strict=True)]
    np.testing.assert_allclose(np.concatenate([*x, found.y, [found.bias]]), wanted, rtol=1e-6, atol=1e-8)


def _two_leaves():
    """One with a cut, both with groups that share samples, all kinds of samples in the first."""
    problem = random_problem(3, "squared", n=14, d=3)
    plus, minus = leaves_of(problem)
    plus, _ = parts_of(plus, np.array([1.0, 0, 0]), 0.6)
    plus = replace(plus, low=np.where(np.arange(14) == 13, 0.01, plus.low))  # one that is on
    open_ = np.flatnonzero((plus.low < 0) & (plus.high > 0))
    groups = open_[:6].reshape(2, 3)
    return replace(plus, groups=groups), replace(minus, groups=np.array([[groups[0, 1], open_[7], open_[8]]]))


def newton_matrix(leaves, scalings, curvature, output_bias):
    """Of (x of all leaves, y, bias): [H, B', 0; B, -1/curvature, 1; 0, 1', 0]."""

    def hessian(leaf, parts):
        def apply(x):
            return leaf.adjoint([k.unscale(k.primal(part)) for k, part in zip(parts, leaf.forward(x), strict=True)])

        return np.stack([apply(e) for e in np.eye(leaf.size)], 1)

    B = np.concatenate([np.stack([leaf.outputs(e) for e in np.eye(leaf.size)], 1) for leaf in leaves], 1)
    n, size = B.shape
    out = np.zeros((size + n + 1, size + n + 1))
    out[:size, :size] = block_diag(*(hessian(leaf, parts) for leaf, parts in zip(leaves, scalings, strict=True)))
    out[:size, size:-1], out[size:-1, :size] = B.T, B
    out[size:-1, size:-1] = -np.diag(1 / curvature)
    out[size:-1, -1] = out[-1, size:-1] = float(output_bias)
    out[-1, -1] = 1.0 - output_bias
    return out


@pytest.mark.parametrize("groups", [False, True])
def test_scalings_map_both_variables_to_one_point(lifted_leaf, groups):
    leaf, s, lam = lifted_leaf
    if groups:
        rng = np.random.default_rng(0)
        lam = [part * rng.uniform(0.5, 2.0) for part in lam]
    for scaling, a, b in zip(leaf.scale_at(s, lam), s, lam, strict=True):
        np.testing.assert_allclose(scaling.primal(a), scaling.dual(b), atol=1e-9)
        np.testing.assert_allclose(scaling.divide(scaling.square()), scaling.dual(b), atol=1e-9)
        np.testing.assert_allclose(scaling.unscale(scaling.dual(b)), b, rtol=1e-8, atol=1e-9)


def test_the_relaxation_is_that_of_cvxpy():
    """The root value against an independent model and solver."""
    import cvxpy as cp

    problem = random_problem(1, "squared", n=15, d=3)
    problem = replace(problem, output_bias=False)
    X, wd = problem.X.numpy(), problem.weight_decay
    y, c = problem.loss.targets.numpy()[:, 0], problem.loss.weights.numpy()
    n, d = X.shape
    r = np.linalg.norm(X, axis=1)
    Xh = X / r[:, None]
    outputs, mass, constraints = 0, 0, []
    for sign in (1, -1):
        G, z = cp.Variable((d + 1, d + 1), PSD=True), cp.Variable(n)
        constraints.append(cp.trace(G[1:, 1:]) <= G[0, 0])
        for i in range(n):
            t, q = Xh[i] @ G[0, 1:], Xh[i] @ G[1:, 1:] @ Xh[i]
            constraints += [z[i] >= 0, z[i] >= t, z[i] >= (t + q) / 2]
            constraints.append(cp.norm(cp.hstack([2 * (2 * z[i] - t), G[0, 0] - q])) <= G[0, 0] + q)
        outputs, mass = outputs + sign * cp.multiply(r, z), mass + G[0, 0]
    objective = 0.5 * cp.sum_squares(cp.multiply(np.sqrt(c), outputs - y)) + wd * mass
    value = cp.Problem(cp.Minimize(objective), constraints).solve(solver=cp.CLARABEL)
    assert best_of(relaxed(problem, leaves_of(problem))).value == pytest.approx(value, rel=1e-4)


def test_early_multipliers_need_more_room():
    """Far from the optimum the forms of groups are inconsistent: pivots raised more bound far better."""
    problem = replace(problem_of("squared", 30, 4, 0.002), output_bias=False)
    leaves = leaves_of(problem)
    lifts = with_groups(leaves, relaxed(problem, leaves), 60, 6)
    pairs, gains = relaxed(problem, lifts), []
    for point, proof in pairs:
        for leaf, lam in zip(lifts, point.lam, strict=True):
            w, region = leaf.sign * leaf.radii * point.dual_point(), region_of(leaf)
            raw = multipliers_of(leaf, lam, w)
            every = [region_bound(region, w, raw.settled(least)) for least in PIVOTS]
            settled, bound = best_settled(region, w, raw)
            assert bound == min(every) == region_bound(region, w, settled)
            gains.append(every[0] / bound)
        for part in proof.regions:
            w = part.sign * np.linalg.norm(problem.X.numpy(), axis=1) * proof.v
            assert region_bound(part.region, w, part.multipliers) <= problem.weight_decay * (1 + 1e-6)
    assert max(gains) > 100
    best = best_of(pairs)
    assert written(problem, best, None).bound == pytest.approx(best.value, rel=1e-3)


def test_repeated_rows_are_one_sample_with_the_mean_target():
    """Squared loss: c1 (f - y1)^2 + c2 (f - y2)^2 = (c1 + c2) (f - mean)^2 + what no network changes."""
    rng = np.random.default_rng(2)
    X, y, c = rng.standard_normal((6, 2)), rng.standard_normal(8), rng.uniform(0.5, 1.5, 8)
    copies = Copies.of(X[[0, 1, 2, 0, 3, 4, 5, 2]])
    assert copies.row.tolist() == [0, 1, 2, 0, 3, 4, 5, 2]
    assert copies.first.tolist() == [0, 1, 2, 4, 5, 6]
    twice = Problem(torch.from_numpy(X[copies.row]), read_loss("squared", y, 8, c), 0.03, True)
    weight = copies.gather(c)
    mean = copies.gather(c * y) / weight
    once = Problem(torch.from_numpy(X), read_loss("squared", mean, 6, weight), 0.03, True)
    rest = 0.5 * (c / c.sum()) @ (y - copies.spread(mean)) ** 2
    both = [best_of(relaxed(problem, leaves_of(problem))) for problem in (twice, once)]
    assert both[0].value == pytest.approx(both[1].value + rest, rel=1e-5)
    np.testing.assert_allclose(copies.gather(both[0].v), both[1].v, atol=1e-3)
    file = written(twice, both[0], None)
    assert file.bound == pytest.approx(both[0].value, rel=1e-5)
    v = both[0].v / 1.05
    cones = written_cones(twice, v, None, 10.0)
    assert cones is not None
    assert cones.bound <= exact_optimum(twice) + 1e-7


# ---- files


def changed(file, change):
    document = copy.deepcopy(file.document)
    change(document)
    return document


def the_gap(tmp_path, **options):
    problem = random_problem(5, "squared", n=12, d=2)
    X, y = problem.X.numpy(), problem.loss.targets.numpy()[:, 0]
    result = train(X, y, weight_decay=0.05, hidden_bias=False, random_state=0)
    return optimality_gap(
        result.network, X, y, weight_decay=0.05, random_state=0, proof="fast", out=tmp_path / "p.json", **options
    ), (X, y, result)


def test_the_gap_of_a_trained_network_is_proved(tmp_path):
    gap, (X, y, result) = the_gap(tmp_path, timeout=20)
    assert gap.bound_kind == "proved"
    assert gap.bound <= gap.local_search_bound + 1e-6
    assert gap.objective == pytest.approx(result.objective, rel=1e-9)
    assert gap.gap < 0.01
    assert "local-search" in str(gap)
    bounds = [bound for _, _, bound in gap.proof.stages]
    assert bounds == sorted(bounds)
    trained = train(X, y, weight_decay=0.05, hidden_bias=False, random_state=0, prove="fast", proof_seconds=20)
    assert trained.bound_kind == "proved"
    assert trained.bound == pytest.approx(gap.bound, rel=1e-3)


def bump(number, by=1):
    number["values"] = number["values"] + by


def first_entry(number):
    row = number["values"]
    while isinstance(row[0], list):
        row = row[0]
    row[0] += 1 << max(number["scale"] - 3, 0)


TAMPERINGS = {
    "bound": lambda doc: bump(doc["claim"]["bound"], 1 << 50),
    "objective": lambda doc: bump(doc["claim"]["objective"], -(1 << 50)),
    "weight decay": lambda doc: bump(doc["claim"]["data"]["weight_decay"]),
    "data": lambda doc: first_entry(doc["claim"]["data"]["X"]),
    "targets": lambda doc: first_entry(doc["claim"]["data"]["targets"]),
    "network": lambda doc: first_entry(doc["claim"]["network"]["W"]),
    "loss": lambda doc: doc["claim"]["data"].update(loss="hinge"),
    "bias": lambda doc: doc["claim"]["data"].update(output_bias=1 - doc["claim"]["data"]["output_bias"]),
    "digest": lambda doc: doc.update(digest="0" * 64),
    "dual point": lambda doc: first_entry(doc["proof"]["v"]),
    "a sign is missing": lambda doc: doc["proof"]["signs"].pop(),
    "a leaf is missing": lambda doc: doc["proof"]["signs"][0]["leaves"].pop(),
    "unknown key": lambda doc: doc["proof"].update(extra=1),
    "negative product": lambda doc: doc["proof"]["signs"][0]["leaves"][0]["groups"][0]["pairs"][0].__setitem__(0, -1),
    "outside a cone": lambda doc: doc["proof"]["signs"][0]["leaves"][0]["groups"][0]["first"][0].__setitem__(0, -1),
    "a sample twice": lambda doc: doc["proof"]["signs"][0]["leaves"][0]["groups"][0]["indices"].__setitem__(0, 10**6),
    "a single": lambda doc: doc["proof"]["signs"][0]["leaves"][0]["singles"].__setitem__(0, [-1, 0]),
    "delta": lambda doc: doc["proof"]["signs"][0]["leaves"][0].update(delta=-(1 << 70)),
}


@cache
def _file():
    problem = problem_of("squared", 12, 3, 0.05)
    network = train(problem.X, problem.loss.targets[:, 0], weight_decay=0.05, hidden_bias=False, random_state=0).network
    from convexnn.network import from_torch

    leaves = leaves_of(problem)
    root = relaxed(problem, leaves)
    leaves = tuple(replace(leaf, groups=np.array([[0, 1, 2, 3], [4, 5, 6, 7]])) for leaf in leaves)
    assert root
    return written(problem, best_of(relaxed(problem, leaves)), from_torch(network))


@pytest.fixture
def file(unchecked):
    return _file()


def test_the_file_is_accepted(file):
    facts = check(file.document).facts
    assert any("any width" in fact for fact in facts)
    assert any("global optimum" in fact for fact in facts)


@pytest.mark.parametrize("name", TAMPERINGS)
def test_tampered_files_are_rejected(file, name):
    with pytest.raises(RejectedError):
        check(changed(file, TAMPERINGS[name]))


def test_rank_deficient_data_are_proved_in_the_users_columns():
    problem = problem_of("squared", 10, 2, 0.05)
    X = torch.cat([problem.X, problem.X @ torch.tensor([[1.0], [2.0]], dtype=torch.float64)], 1)
    full = replace(problem, X=X)
    reduced, reduction = reduce_to_rank(full)
    assert reduction.basis is not None
    proof = best_of(relaxed(reduced, leaves_of(reduced)))
    file = written(full, proof, None, reduction.basis.numpy())
    assert file.bound == pytest.approx(proof.value, rel=1e-4)


def test_the_search_never_gets_worse_and_survives_interrupts(monkeypatch):
    problem = problem_of("squared", 20, 3, 0.02)
    network = train(problem.X, problem.loss.targets[:, 0], weight_decay=0.02, hidden_bias=False, random_state=0).network
    from convexnn.network import from_torch

    neurons = from_torch(network)

    def interrupted(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(searching, "written_cones", interrupted)
    found = ProofSearch(problem, problem, None, neurons, problem.objective(neurons), float("inf"), 1e-6)
    searching.run(found, dual_point_of(problem, neurons), "tree")
    assert found.interrupted
    assert found.best is not None
    assert check(found.best.document)


@pytest.mark.parametrize("seed", [8, 9, 11])
def test_kinks_of_the_loss_are_no_reason_for_weak_proofs(seed):
    """Hinge loss: the residual of a network can be far outside the feasible set, the dual of the evidence is not."""
    problem = replace(random_problem(seed, "hinge", n=8, d=2), weight_decay=0.01)
    network = nn.Sequential(nn.Linear(2, 3, bias=False), nn.ReLU(), nn.Linear(3, 1, bias=problem.output_bias)).double()
    found = optimality_gap(
        network, problem.X, problem.loss.targets[:, 0], sample_weight=problem.loss.weights.numpy(), loss="hinge",
        weight_decay=0.01, proof="fast", timeout=5, random_state=0, max_seconds=2, tol=1e-3,
    )  # fmt: skip
    optimum = exact_optimum(problem)
    assert optimum * (1 - 3e-3) <= found.bound <= optimum * (1 + 1e-6)


@pytest.mark.parametrize("d", [1, 3])
def test_a_ray_ends_a_search_that_cannot_succeed(d):
    """Where v'(Xu)_+ is above the limit at some ray, no cones prove the opposite: not a second is spent on them."""
    X, v = np.ones((1, d)), np.ones(1)
    args = exact(X), exact(v), 1
    assert covering(*args, 1.01 * np.sqrt(d), seconds=60) is not None
    assert covering(*args, 0.99 * np.sqrt(d), seconds=float("inf"), max_cones=10**9) is None


def test_bad_input_is_refused():
    X, y = np.random.default_rng(0).standard_normal((12, 2)), np.arange(12.0)
    one = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU(), torch.nn.Linear(2, 1))
    two = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU(), torch.nn.Linear(2, 2))
    with pytest.raises(InvalidInputError, match="one output"):
        optimality_gap(two, X, np.stack([y, y], 1), weight_decay=0.1, proof="fast")
    with pytest.raises(InvalidInputError, match="proof="):
        optimality_gap(one, X, y, weight_decay=0.1, proof="slow")
    with pytest.raises(InvalidInputError, match="GiB"):
        check_size(10_000, 300, "fast", available=2.0**30)
    with pytest.raises(InvalidInputError, match="timeout"):
        optimality_gap(one, X, y, weight_decay=0.1, proof="fast", timeout=-1, max_seconds=0.1)
    hurried = optimality_gap(one, X, y, weight_decay=0.1, proof="fast", timeout=1e-9, max_seconds=0.1)
    assert hurried.bound_kind == "proved"


def test_a_proof_that_does_not_come_loses_no_training(tmp_path, monkeypatch):
    X, y = np.random.default_rng(0).standard_normal((12, 2)), np.arange(12.0)

    def trained(**settings):
        return train(X, y, weight_decay=0.1, max_seconds=2, random_state=0, prove="fast", **settings)

    with monkeypatch.context() as patched:
        patched.setattr("convexnn.training.solve", lambda *_, **__: pytest.fail("trained before it looked"))
        for bad in ({"proof_seconds": -1}, {"proof_file": tmp_path / "absent" / "a.proof"}, {"proof_file": tmp_path}):
            with pytest.raises(InvalidInputError, match="timeout|no such folder"):
                trained(**bad)

    def fails(*given):
        assert given[3].tol == 3e-3  # proofs end at the tolerance of the training
        raise SolverError("none in time.")

    monkeypatch.setattr("convexnn.training.prove_bound", fails)
    with pytest.warns(SolverWarning, match="none in time"):
        result = trained(tol=3e-3)
    assert result.bound_kind == "local-search"
    assert result.bound <= result.objective
    assert result.proof is None


def test_nothing_is_no_bound():
    assert NOTHING.value == -np.inf
    assert {field.name for field in fields(NOTHING)} == {"value", "v", "regions"}


def test_a_slab_tree_is_tampered_with():
    """Two levels of slabs: a split that moves, a leaf that moves to another place, a multiplier of a wrong sign."""
    problem = random_problem(3, "squared", n=12, d=3)
    omega = np.array([0.6, 0.8, 0.0])
    first = [part for leaf in leaves_of(problem) for part in parts_of(leaf, omega, 0.1)]
    leaves = (*parts_of(first[0], np.array([0.0, 0.6, 0.8]), -0.2), *first[1:])
    proof = best_of(relaxed(problem, leaves))
    file = written(problem, proof, None)
    plus = file.document["proof"]["signs"][0]
    assert plus["order"] == [0, 1, -1, -1, -1]
    assert proof.value >= file.bound >= proof.value * (1 - 1e-5)

    def tampered(change):
        with pytest.raises(RejectedError):
            check(changed(file, lambda doc: change(doc["proof"]["signs"][0])))

    tampered(lambda sign: sign["splits"][0]["at"].update(values=sign["splits"][0]["at"]["values"] + (1 << 35)))
    tampered(lambda sign: sign["splits"][1]["omega"]["values"].reverse())
    tampered(lambda sign: sign["leaves"].reverse())
    tampered(lambda sign: sign.update(order=[0, -1, 1, -1, -1]))
    tampered(lambda sign: sign.update(order=[0, 1, -1, -1], leaves=sign["leaves"][:3]))
    for k in range(3):
        tampered(lambda sign, k=k: sign["leaves"][0]["slabs"][0].__setitem__(k, -(1 << 40)))


def dependent(problem):
    """The same problem in more columns than its rank."""
    mix = torch.tensor([[1.0, 0.5, 2.0, 0.25], [0.0, 1.0, -1.0, 3.0]], dtype=torch.float64)
    return replace(problem, X=problem.X @ mix)


def shifted(span):
    for part, by in (("basis", -1), ("rows", 1)):
        span[part]["scale"] += by


def test_cones_in_the_rank_of_the_data():
    """Four columns of rank two: cones of two columns, and what is lost by the rounded span counts."""
    problem = dependent(problem_of("squared", 12, 2, 0.05, output_bias=False))
    reduced, reduction = reduce_to_rank(problem)
    basis = reduction.basis.numpy()
    trained = train(
        problem.X, problem.loss.targets[:, 0], weight_decay=0.05, hidden_bias=False, output_bias=False, tol=1e-7,
        random_state=0,
    )  # fmt: skip
    from convexnn.network import from_torch

    neurons = from_torch(trained.network)
    v = dual_point_of(problem, neurons) / 1.01
    file = written_cones(problem, v, neurons, 20.0, basis=basis, workers=2)
    assert file is not None
    assert trained.objective * 0.98 <= file.bound <= exact_optimum(reduced) + 1e-7
    span = file.document["proof"]["signs"][0]["span"]
    assert len(span["basis"]["values"][0]) == reduced.n_inputs == 2

    def tampered(change):
        with pytest.raises(RejectedError):
            check(changed(file, lambda doc: change(doc["proof"]["signs"][0]["span"])))

    tampered(lambda span: span["basis"].update(scale=span["basis"]["scale"] - 1))  # twice as wide
    # The same product with another share of the scale in the basis is the same proof.
    assert check(changed(file, lambda doc: [shifted(part["span"]) for part in doc["proof"]["signs"]]))
    for part in ("rows", "basis"):
        tampered(lambda span, part=part: span[part]["values"][0].__setitem__(0, 8 << span[part]["scale"]))
    tampered(lambda span: span["rows"]["values"].reverse())


@pytest.mark.parametrize("least", PIVOTS)
def test_settled_groups_have_the_room_that_was_asked_for(least):
    """Forms in s, scaled to a diagonal of ones: at least this eigenvalue, however bad they were."""
    rng = np.random.default_rng(0)
    J, m, k = 20, 5, 3
    pairs = [rng.uniform(0, 1, (J, m, m)) * 10.0 ** rng.uniform(-2, 2, (J, 1, 1)) for _ in range(3)]
    both, mixed, neither = pairs[0] + pairs[0].swapaxes(1, 2), pairs[1], pairs[2] + pairs[2].swapaxes(1, 2)
    ones, cones = np.ones(7), np.zeros((J, m, k))
    pivot = 10.0 ** rng.uniform(-3, 3, (J, m))
    given = Multipliers(ones, ones, ones, ones, cones, cones, both, mixed, neither, pivot, np.zeros((0, 3)))
    fit = given.settled(least)
    assert np.all(fit.pivot >= pivot)
    off = (fit.both + fit.mixed + fit.mixed.swapaxes(1, 2) + fit.neither) / 2
    root = 1 / np.sqrt(fit.pivot)
    scaled = np.eye(m) - root[:, :, None] * off * root[:, None, :]
    lowest = np.linalg.eigvalsh(scaled)[:, 0]
    assert np.all(lowest >= least * (1 - 1e-6))
    np.testing.assert_array_equal(fit.settled(least).pivot, fit.pivot)  # once is enough
