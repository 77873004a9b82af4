"""Low-rank factors: their value against bounds and Clarabel, their proofs, and what attacks make of them."""

from functools import partial

import numpy as np
import pytest
import torch
from certify_cases import centres, mlp, randomised
from sdp_cases import KINDS, by_cvxpy, case, target_of, tight
from shared_data import shared_files
from torch import nn

import certify
from certify import InvalidInputError
from certify.bounds import CROWN, SDP, SDPCROWN, TriangleLP
from certify.bounds.dense import DenseNetwork
from certify.bounds.sdp import Inputs, LowRankSettings, Relaxation, candidates, low_rank, solve, targets_of
from certify.bounds.sdp.candidates import inputs_of
from certify.bounds.sdp.factored import Penalised, constraints_at, minimise
from certify.bounds.sdp.factored import residual as largest_violation
from certify.bounds.sdp.interior import Settings as Stopping
from certify.bounds.sdp.interior import best_t
from certify.bounds.sdp.interior import solve as interior_point
from certify.bounds.sdp.low_rank import Status, _pataki, factor_of, turned
from certify.ir.from_torch import graph_from_torch
from certify.properties import margins_of_labels
from certify.regions import LpBall
from certify.search import PGD, Plan
from certify.search.climb import climb
from certify.search.deadline import Deadline

CASES = [
    (0, "l2", (3, 8, 6, 2)),
    (1, "linf in domain", (3, 8, 6, 2)),
    (2, "box", (2, 5, 4, 4, 2)),
    (3, "l2 in domain", (4, 12, 2)),
]


def relaxation_of(seed, kind, sizes=(), eps=0.8):
    target = target_of(*case(seed, kind, *sizes, eps=eps))
    return Relaxation(target, Inputs.of(target, np.arange(len(target.offsets.centre))))


def any_factor(program, rank, seed, size=0.4):
    U = size * np.random.default_rng(seed).standard_normal((program.size, rank))
    U[0] = np.eye(1, rank)
    return U


def any_multipliers(program, seed):
    g = np.random.default_rng(seed)
    return np.where(program.inequality, g.uniform(0.1, 2, len(program.inequality)), g.standard_normal())


# --- the function of the factor ---


@pytest.mark.parametrize("kind", KINDS[:4])
@pytest.mark.parametrize("weight", [0.05, 30.0])
def test_gradient_and_hessian_are_those_of_the_values(kind, weight):
    """The heavier weight bends penalties of violated constraints, the lighter one does not."""
    program = relaxation_of(0, kind).program
    function = Penalised(program, 3, any_multipliers(program, 1), weight)
    g = np.random.default_rng(2)
    v, d = any_factor(program, 3, 3)[1:].ravel(), g.standard_normal(3 * (program.size - 1))
    t = weight * constraints_at(program, function.factor(v))[program.inequality]
    assert ((t < -0.5).any()) == (weight > 1)
    h = 1e-6
    (up, slope_up), (down, slope_down) = function.at(v + h * d), function.at(v - h * d)
    gradient = function.at(v)[1]
    assert (up - down) / (2 * h) == pytest.approx(gradient @ d, rel=1e-6)
    H = function.hessian(v)
    assert pytest.approx(H.T) == H
    curved = (slope_up - slope_down) / (2 * h)
    assert H @ d == pytest.approx(curved, rel=1e-4, abs=1e-5 * np.abs(curved).max())


def test_values_of_the_function_and_of_constraints():
    """Term by term, at moments U U'."""
    program = relaxation_of(1, "linf in domain").program
    U, y = any_factor(program, 2, 5), any_multipliers(program, 6)
    values = constraints_at(program, U)
    assert values == pytest.approx(program.apply(U @ U.T))
    total = program.objective @ (U @ U.T)[:, 0]
    for a, k, own in zip(values, program.inequality, y, strict=True):
        t = 7.0 * a
        if not k:
            total += 3.5 * a * a - own * a
        elif t >= -0.5:
            total -= own / 7 * np.log(1 + t)
        else:
            total += own / 7 * (np.log(2) - 2 * (t + 0.5) + 2 * (t + 0.5) ** 2)
    assert Penalised(program, 2, y, 7.0).at(U[1:].ravel())[0] == pytest.approx(total)
    assert largest_violation(program, values) == max(
        max(-a, 0) if k else abs(a) for a, k in zip(values, program.inequality, strict=True)
    )


def test_newton_ends_at_second_order_points():
    program = relaxation_of(0, "l2").program
    function = Penalised(program, 2, any_multipliers(program, 8), 5.0)
    start = any_factor(program, 2, 9)[1:].ravel()
    v, _ = minimise(function, start, 1e-9, 200)
    value, gradient = function.at(v)
    assert value < function.at(start)[0]
    assert np.abs(gradient).max() <= 1e-9
    assert np.linalg.eigvalsh(function.hessian(v))[0] > -1e-6
    assert minimise(function, start, 1e-9, 0)[0] is start
    # The next multipliers are those at which the Lagrangian is stationary.
    S = program.cost - program.adjoint(function.next_multipliers(v))
    assert np.abs((S @ function.factor(v))[1:]).max() < 1e-8


def test_factors_are_turned_without_changing_their_moments():
    U = np.random.default_rng(0).standard_normal((5, 3))
    V = turned(U)
    assert V[0].tolist() == [1, 0, 0]
    X, nearest = V @ V.T, factor_of(4 * V @ V.T, 3)
    assert pytest.approx(U @ U.T / (U[0] @ U[0])) == X
    assert nearest @ nearest.T == pytest.approx(X)


def test_passes_are_feasible_and_so_is_their_mean():
    for seed, kind in enumerate(KINDS[:4]):  # of the l1 ball the relaxation only knows the l2 ball around it
        relaxation = relaxation_of(seed, kind)
        for V in (turned(relaxation.passes(3).T), relaxation.passes(1).T):
            assert largest_violation(relaxation.program, constraints_at(relaxation.program, V)) < 1e-12


# --- the value ---


@pytest.mark.parametrize(("seed", "kind", "sizes"), CASES)
def test_the_value_is_that_of_an_independent_formulation_and_proved(seed, kind, sizes):
    relaxation = relaxation_of(seed, kind, sizes)
    found, reference = low_rank(relaxation), by_cvxpy(relaxation.target)
    assert found.status is Status.CERTIFIED
    assert found.value == pytest.approx(reference, abs=1e-4 * (1 + abs(reference)))
    assert abs(found.gap) <= 1e-5 * max(1, abs(found.value))
    assert found.residual <= 1e-6
    assert found.rank <= _pataki(relaxation.program)
    assert found.value == relaxation.program.objective @ found.factor[:, 0]
    assert found.residual == largest_violation(relaxation.program, constraints_at(relaxation.program, found.factor))


@pytest.mark.parametrize("kind", KINDS)
def test_values_are_above_every_proved_bound(kind):
    """Weak duality at any factor, feasible or not, after any number of rounds: c.X >= bound - sum |y_k| violation_k."""
    relaxation = relaxation_of(4, kind)
    program = relaxation.program
    dual = interior_point(program, relaxation.start(), relaxation.moments(), Stopping())
    bound = best_t(program.cost - program.adjoint(dual.y))
    proved = solve(relaxation.target, tight).bound
    factors = [any_factor(program, 2, seed) for seed in range(5)]
    for rounds in (0, 1, 3, 30):
        found = low_rank(relaxation, LowRankSettings(rounds=rounds, largest=2))
        assert (found.status is Status.CERTIFIED) == (
            found.residual <= 1e-6 and found.gap <= 1e-5 * max(1, abs(found.value))
        )
        assert found.bound <= proved + 1e-5 * (1 + abs(proved))
        factors.append(found.factor)
    for U in factors:
        values = constraints_at(program, U)
        lacking = np.where(program.inequality, np.maximum(-values, 0), np.abs(values))
        assert program.objective @ U[:, 0] >= bound - np.abs(dual.y) @ lacking - 1e-9


def test_a_rank_that_is_too_low_is_left_along_the_slack():
    """Rank 1 is a nonconvex program of its own; its stationary points are not minima of the relaxation."""
    left = 0
    for seed, kind in [(s, KINDS[s % 4]) for s in range(4)]:
        relaxation = relaxation_of(seed, kind)
        low = low_rank(relaxation, LowRankSettings(rank=1, largest=1))
        free = low_rank(relaxation, LowRankSettings(rank=1))
        assert low.rank == 1
        assert low.value >= free.value - 1e-5
        assert free.status is Status.CERTIFIED, (seed, kind)
        left += low.status is Status.STATIONARY and free.rank > 1 and free.value < low.value - 1e-3
    assert left


def test_warm_starts_never_lose():
    relaxation = relaxation_of(3, "l2 in domain")
    full = low_rank(relaxation)
    again = low_rank(relaxation, start=full)
    assert (again.steps, again.value, again.status) == (0, full.value, full.status)
    now = low_rank(relaxation, LowRankSettings(rounds=0))  # a mean of forward passes
    assert now.residual <= 1e-6
    for rounds in (2, 4, 8, 12, 30):
        new = low_rank(relaxation, LowRankSettings(rounds=rounds, largest=2), start=now)
        assert new.residual <= 1e-6
        assert new.value <= now.value
        assert new.bound >= now.bound - 1e-9
        now = new
    assert now.value == pytest.approx(full.value, abs=1e-4)


def test_the_moments_of_the_dual_are_a_start():
    relaxation = relaxation_of(0, "l2")
    dual = interior_point(relaxation.program, relaxation.start(), relaxation.moments(), Stopping())
    found = low_rank(relaxation, LowRankSettings(rank=3), start=dual.X)
    assert found.status is Status.CERTIFIED
    assert found.value == pytest.approx(dual.value, abs=1e-4)


def test_another_radius_goes_on_from_the_last():
    small, large = (relaxation_of(0, "l2", eps=eps) for eps in (0.8, 0.81))
    if small.size != large.size:
        pytest.skip("other neurons are unstable")
    found = low_rank(large, start=low_rank(small))
    assert found.status is Status.CERTIFIED
    assert found.value == pytest.approx(low_rank(large).value, abs=1e-4)


def test_time_limits_leave_what_is_known():
    calls = iter(range(10**6))
    found = low_rank(relaxation_of(0, "l2"), stop=lambda: next(calls) > 5)
    assert found.status is Status.STOPPED
    assert np.isfinite(found.value)


def test_pataki_is_the_least_rank_beyond_the_constraints():
    for seed in range(6):
        program = relaxation_of(seed, KINDS[seed % 4]).program
        count, r = len(program.inequality) + 1, _pataki(program)
        assert r * (r + 1) // 2 > count
        assert r == 2 or r * (r - 1) // 2 <= count


@pytest.mark.parametrize(
    "make",
    [
        partial(LowRankSettings, rank=0),
        partial(LowRankSettings, rank=3, largest=2),
        partial(LowRankSettings, rounds=-1),
        partial(LowRankSettings, feasible=0.0),
        partial(LowRankSettings, gap=float("nan")),
    ],
)
def test_settings_without_sense_are_refused(make):
    with pytest.raises(InvalidInputError, match="expected"):
        make()


def test_starts_of_another_shape_are_refused():
    relaxation, other = relaxation_of(0, "l2"), relaxation_of(3, "l2 in domain", (4, 12, 2))
    with pytest.raises(InvalidInputError, match="rows"):
        low_rank(relaxation, start=low_rank(other))
    with pytest.raises(InvalidInputError, match="square"):
        low_rank(relaxation, start=np.ones((3, 2)))
    with pytest.raises(InvalidInputError, match="X_00"):
        turned(np.zeros((3, 2)))


# --- candidates ---


@pytest.mark.parametrize("kind", KINDS)
def test_candidates_are_in_the_region_and_not_below_the_bound(kind):
    graph, region, bounds, margins = case(6, kind, 4, 8, 6, 2, eps=0.8)
    target = target_of(graph, region, bounds, margins)
    bound = solve(target, tight).bound
    points = torch.as_tensor(candidates(target, 5))
    assert points.shape == (5, 4)
    values = (graph(points) @ margins.rows[0].T).flatten()
    assert values.min() >= bound
    if kind != "l1 in domain":  # candidates are in the l2 ball around it
        assert all(region.contains(p[None], tolerance=1e-9) for p in points)
    with torch.no_grad():
        middle = (graph(region.centre) @ margins.rows[0].T).item()
    assert values.min() < middle
    again = candidates(target, 5)
    assert (torch.as_tensor(again) == points).all()


def test_the_first_candidate_is_the_first_moment():
    relaxation = relaxation_of(0, "linf in domain")
    found = low_rank(relaxation, LowRankSettings(rank=3, largest=3))
    points = inputs_of(relaxation, found, 400)
    project = relaxation.target.offsets.project
    assert (points[0] == project(relaxation.offset_of(found.factor[1:, 0]))).all()
    # A random one is at U g with g = (1, standard normal), cut off at the region.
    spread = np.linalg.norm(found.factor[1 : 1 + relaxation.inputs.rank, 1:], axis=1)
    assert (points.std(0) > 0).tolist() == (spread > 1e-12).tolist()


WEAK = PGD(steps=1, restarts=1, step_size=1e-3)


def open_problem():
    """A radius at which a counterexample exists that one step of an attack does not find."""
    net, x = randomised(mlp(10, 20, 20, 3), 2), centres(10, 1, 3)[0]
    return net, x, int(net(x[None].float()).argmax())


def test_counterexamples_are_found_from_the_relaxation():
    net, x, label = open_problem()
    method = SDP(hidden=SDPCROWN(steps_margins=20, steps_hidden=4))
    verdict = certify.verify(net, x, label=label, eps=0.5, norm="l2", method=Plan("sdp", (method,), attack=WEAK))
    assert verdict.status.name == "FALSIFIED"
    assert verdict.method == "pgd from sdp"
    point = verdict.counterexample
    assert np.linalg.norm(np.asarray(point, dtype=float).ravel() - x.numpy()) <= 0.5 * (1 + 1e-6)
    assert int(net(torch.as_tensor(point)[None].float()).argmax()) != label
    # Without an attack of any kind none is looked for.
    verdict = certify.verify(net, x, label=label, eps=0.5, norm="l2", method=Plan("sdp", (method,), attack=None))
    assert verdict.status.name == "UNKNOWN"


class Misleading(SDPCROWN):
    """A method that suggests points outside the region, and no numbers."""

    def suggestions(self, graph, region, bounds, margins, lower):
        far = region.centre[:, None] + torch.tensor([50.0, -80.0, torch.nan])[:, None]
        return far.expand(-1, -1, region.centre.shape[1])


def test_suggestions_never_make_a_wrong_answer():
    """The same verdicts as without them, where nothing is to be found: far points are brought back, and replayed."""
    net, x, label = open_problem()
    plan = Plan("misled", (Misleading(steps_margins=2, steps_hidden=2),), attack=WEAK)
    verdict = certify.verify(net, x, label=label, eps=0.4, norm="l2", method=plan)
    assert verdict.status.name == "UNKNOWN"
    assert certify.verify(net, x, label=label, eps=0.4, norm="l2", method="sdp").status.name == "VERIFIED"
    verdict = certify.verify(net, x, label=label, eps=3.0, norm="l2", method=plan)
    assert verdict.status.name == "FALSIFIED"
    point = torch.as_tensor(verdict.counterexample).double()
    assert torch.linalg.vector_norm(point.flatten() - x.double()) <= 3.0 * (1 + 1e-6)
    assert int(net(point[None].float()).argmax()) != label


def test_batches_keep_apart_what_was_found():
    from certify.setup import Question

    net, x, label = open_problem()
    inputs = torch.stack([x, x + 0.001, x + 0.002])
    question = Question.of(net, (10,), eps=0.5, norm="l2", domain=None)
    problem = question.problem(inputs, torch.full((3,), label))
    plan = Plan("sdp", (SDP(hidden=SDPCROWN(steps_margins=20, steps_hidden=4)), SDPCROWN()), attack=WEAK)
    outcome = climb(problem, plan, Deadline(None))
    for k, point in outcome.witness.items():
        assert problem.select([k]).is_counterexample(point[None]).item()
    assert outcome.witness


# --- a trained network ---


def digits_relaxations(path, cases, hidden):
    from sklearn.datasets import load_digits

    stored, layers = np.load(path), []
    for k in range(3):
        layer = nn.Linear(stored[f"W{k}"].shape[1], stored[f"W{k}"].shape[0]).double()
        layer.load_state_dict({"weight": torch.tensor(stored[f"W{k}"]), "bias": torch.tensor(stored[f"b{k}"])})
        layers += [layer, nn.ReLU()]
    net = nn.Sequential(*layers[:-1]).eval()
    X, Y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(X))[1400:]
    X, Y = torch.tensor(X[order] / 16), torch.tensor(Y[order])
    right = (net(X).argmax(1) == Y).nonzero()[:2, 0].tolist()
    graph = graph_from_torch(net)
    for norm, eps, image in cases:
        i = right[image]
        x = X[i : i + 1]
        region = LpBall(x, eps, norm, torch.zeros_like(x), torch.ones_like(x))
        margins, bounds = margins_of_labels(Y[i : i + 1], 10), hidden(graph, region)
        t = margins.rivals[0].tolist().index(int(net(x)[0].argsort()[-2]))
        rows, constants = margins.rows[0].numpy(), margins.constants[0].numpy()
        target = targets_of(DenseNetwork.of(graph), region, bounds, rows, constants)[t]
        yield graph, margins.rows[0, t], Relaxation(target, Inputs.of(target, np.arange(64)))


IMAGES = [("linf", 0.1, 0), ("linf", 0.1, 1), ("l2", 0.6, 0), ("l2", 0.6, 1)]


@pytest.mark.parametrize("path", shared_files("nets/digits_64_20_20_10_adv.npz"))
def test_factors_of_the_digits_network_are_proved(path):
    """Second-order points at the least rank that the proof takes."""
    for graph, row, relaxation in digits_relaxations(path, IMAGES, CROWN()):
        found, dual = low_rank(relaxation), solve(relaxation.target, tight)
        size = max(1.0, abs(dual.value))
        assert found.status is Status.CERTIFIED
        assert abs(found.value - dual.value) <= 1e-4 * size
        assert found.value >= dual.bound - 2e-5 * size
        assert found.bound >= dual.bound - 1e-4 * size
        point = torch.as_tensor(candidates(relaxation.target, 1))
        assert (graph(point) @ row).item() >= max(found.bound, dual.bound)


@pytest.mark.slow
@pytest.mark.parametrize("path", shared_files("nets/digits_64_20_20_10_adv.npz"))
def test_figures_of_the_digits_network(path):
    """With hidden bounds by linear programs. The first one needs a column more than it starts with."""
    ranks = []
    values = (5.824673, 2.615141, 4.051399, 0.247330)
    for (_, _, relaxation), value in zip(digits_relaxations(path, IMAGES, TriangleLP()), values, strict=True):
        found = low_rank(relaxation)
        assert found.status is Status.CERTIFIED
        assert found.value == pytest.approx(value, rel=1e-4)
        assert found.bound == pytest.approx(value, rel=1e-4)
        ranks.append(found.rank)
    assert max(ranks) > 2
