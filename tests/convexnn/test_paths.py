"""Paths: every point is what a separate solve gives, and loss, penalty and value move as theory says."""

from functools import cache

import numpy as np
import pytest
import torch
from convexnn_cases import normal, targets_of

import convexnn
from convexnn.data import read_loss
from convexnn.errors import InvalidInputError
from convexnn.neurons import no_neurons, unit_rows
from convexnn.patterns import enumerate_patterns, sample_patterns
from convexnn.problem import Problem
from convexnn.programs import GatedProgram, ReLUProgram
from convexnn.result import Status
from convexnn.solutions.null_level import null_level, program_null_level
from convexnn.solutions.optima import optimal_set
from convexnn.solutions.paths import RegularisationPath, path
from convexnn.solvers.answer import ProgramLimits
from convexnn.solvers.loop import Limits, Pool, solve
from convexnn.solvers.reference import solve_reference
from convexnn.solvers.sliding import SlidingFrankWolfe
from convexnn.solvers.working_set import solve_working_set

KINDS = [
    ("squared", "global"),
    pytest.param("logistic", "global", marks=pytest.mark.slow),
    ("squared", "interior-point"),
    ("logistic", "gated"),
]


pytestmark = pytest.mark.usefixtures("unchecked")


def small(loss: str, kind: str, **more) -> RegularisationPath:
    X, y = normal(25, 2, seed=100), targets_of(loss, 25, 0)
    settings = {"n_points": 1, "tol": 1e-5, "n_patterns": 12, "random_state": 0}
    return path(X, y, **({"loss": loss, "method": kind} | settings | more))


@cache
def few_points(loss: str, method: str, hidden_bias: bool = True) -> RegularisationPath:
    """The null level and two points below it."""
    level = small(loss, method, hidden_bias=hidden_bias).null_level
    return small(loss, method, hidden_bias=hidden_bias, weight_decays=[level, 0.5 * level, 0.2 * level])


@pytest.mark.parametrize(("loss", "method"), KINDS)
def test_laws_along_a_path(loss, method):
    """Loss rises and penalty falls with weight decay; the value is concave, with the penalty as its slope."""
    found = few_points(loss, method)
    decays = found.weight_decays
    assert (np.diff(decays) < 0).all()
    values = [p.objective if method == "global" else p.program_objective for p in found.points]
    for point in found.points:
        assert point.gap <= 1e-5
        assert point.dimension == 0
    for (i, old), (j, new) in zip(list(enumerate(found.points))[:-1], list(enumerate(found.points))[1:], strict=True):
        step, noise = decays[i] - decays[j], 3e-5 * values[i]
        assert values[j] <= values[i] + noise
        # Concavity with its derivative: the tangent at either end is above the other.
        assert values[j] <= values[i] - step * old.penalty + noise
        assert values[i] <= values[j] + step * new.penalty + noise
        assert new.penalty >= old.penalty - noise / step
        if method != "gated":
            assert new.loss <= old.loss + 2 * noise
        if loss == "squared":
            assert new.fit_change**2 <= new.fit_limit**2 + 2 * noise
    assert found.points[-1].n_neurons > 0


@pytest.mark.parametrize("loss", ["squared", "logistic", pytest.param("softmax", marks=pytest.mark.slow)])
def test_null_level_of_all_networks(loss):
    """Just above it training ends with the constant network, just below it with a neuron."""
    X, y = normal(20, 2, seed=100), targets_of(loss, 20, 0)
    read = read_loss(loss, y, 20)
    level = null_level(Problem(torch.cat([X, torch.ones(20, 1)], 1), read, 1.0, True))
    settings = {"loss": loss, "tol": 1e-7, "random_state": 0, "max_seconds": 5.0}
    assert convexnn.train(X, y, weight_decay=1.001 * level, **settings).status is Status.NULL
    below = convexnn.train(X, y, weight_decay=0.95 * level, **settings)
    assert below.n_neurons > 0
    assert below.status is not Status.NULL


@pytest.mark.parametrize("kind", [ReLUProgram, GatedProgram])
def test_null_level_of_programs(kind):
    """The solution is zero above it and not below it; with all patterns the level is that of all networks."""
    X, y = normal(15, 2, seed=100), targets_of("squared", 15, 0)
    problem = Problem(X, read_loss("squared", y, 15), 1.0, True)
    program = kind(problem, sample_patterns(X, 5, torch.Generator().manual_seed(0)))
    level = program_null_level(program)
    norms = []
    for share in (1.001, 0.99):
        at = kind(Problem(X, problem.loss, share * level, True), program.patterns)
        answer = solve_working_set(at, ProgramLimits(1e-9))
        norms.append(float(answer.judgement.point.U.norm(dim=-1).sum()))
    assert norms[0] < 1e-6
    assert norms[1] > 1e-4
    if kind is ReLUProgram:
        assert program_null_level(ReLUProgram(problem, enumerate_patterns(X))) == pytest.approx(
            null_level(problem), rel=1e-6
        )


def test_points_are_what_separate_solves_give():
    found = few_points("squared", "global")
    X, y = normal(25, 2, seed=100), targets_of("squared", 25, 0)
    for point in found.points[1::2]:
        alone = convexnn.train(X, y, weight_decay=point.weight_decay, tol=1e-5, random_state=1)
        assert point.objective == pytest.approx(alone.objective, rel=2e-5)
        with torch.no_grad():
            f = point.network(X)[:, 0].numpy()
        squares = sum(float((w.detach() ** 2).sum()) for w in list(point.network.parameters())[:3])
        assert point.objective == pytest.approx(((f - y) ** 2).mean() / 2 + point.weight_decay / 2 * squares, rel=1e-9)
        assert point.loss == pytest.approx(((f - y) ** 2).mean() / 2, rel=1e-9)


@pytest.mark.parametrize("method", ["interior-point", "gated"])
def test_program_points_are_what_clarabel_gives(method):
    found = few_points("squared", method, hidden_bias=False)
    X = normal(25, 2, seed=100)
    patterns = sample_patterns(X, 12, torch.Generator().manual_seed(0))
    kind = GatedProgram if method == "gated" else ReLUProgram
    for point in found.points[1::2]:
        problem = Problem(X, read_loss("squared", targets_of("squared", 25, 0), 25), point.weight_decay, True)
        answer = solve_reference(kind(problem, patterns), ProgramLimits(1e-8))
        assert point.program_objective == pytest.approx(answer.judgement.objective, rel=3e-5)
        assert point.bound <= answer.judgement.objective * (1 + 1e-8)


@pytest.mark.parametrize("method", ["interior-point", "global"])
def test_dimension_is_that_of_the_optimal_set(method):
    """Opposite points with equal targets: pairs u and -u, whose odd parts are free. One on a kink is in two blocks."""
    angles = np.arange(12) * np.pi / 6
    X, y = np.stack([np.cos(angles), np.sin(angles)], 1), np.tile(np.random.default_rng(0).standard_normal(6), 2)
    settings = {"hidden_bias": False, "output_bias": False, "method": method, "random_state": 0}
    if method == "interior-point":
        settings |= {"n_patterns": 12}
    found = path(X, y, weight_decays=[0.05, 0.01], tol=1e-7, **settings)
    dimensions = [optimal_set(X, y, weight_decay=decay, **settings).dimension for decay in (0.05, 0.01)]
    assert dimensions == [0, 2]
    own = [point.dimension for point in found.points]
    assert own == dimensions if method == "interior-point" else own[0] == 0 <= own[1] <= 2  # of its own neurons only


def test_an_output_bias_makes_up_for_neurons_that_add_up_to_a_constant():
    """F = b + x_1 at 1, b - x_2 at -1: only x_1 + x_2 counts; without a bias both weights do."""
    X, y = np.array([[1.0], [-1.0]]), np.array([1.0, -1.0])
    settings = {"hidden_bias": False, "method": "interior-point", "n_patterns": 2, "random_state": 0}
    for bias, expected in ((True, 1), (False, 0)):
        (point,) = path(X, y, weight_decays=[0.1], output_bias=bias, tol=1e-7, **settings).points
        found = optimal_set(X, y, weight_decay=0.1, output_bias=bias, **settings)
        assert point.dimension == found.dimension == expected
        assert len(found.neurons) == 2


@pytest.mark.parametrize("known", ["directions of elsewhere", "none", "its own neurons"])
def test_a_bound_does_not_rest_on_a_pool(known):
    """Directions that are said to be all there are, and are not: objective and bound are what they are without."""
    X, y = normal(40, 3, seed=5), normal(40, seed=6)
    problem = Problem(X, read_loss("squared", y, 40), 0.02, True)
    solver, limits = SlidingFrankWolfe(), Limits(1e-6)
    alone = solve(problem, solver, start=None, limits=limits, seed=0)
    start = no_neurons(3, problem.constant()) if known != "its own neurons" else alone.neurons
    U = {"directions of elsewhere": normal(50, 3, seed=9), "none": X[:0], "its own neurons": alone.neurons.W}[known]
    found = solve(problem, solver, start=start, limits=limits, seed=1, pool=Pool(U, complete=True))
    assert found.status is Status.CONVERGED
    assert found.objective == pytest.approx(alone.objective, rel=2e-6)
    assert found.bound <= alone.objective * (1 + 1e-12)
    assert alone.bound <= found.objective * (1 + 1e-12)
    assert float((torch.relu(X @ unit_rows(found.pool.U).T).T @ found.V).abs().max()) <= 0.02 * (1 + 1e-9)


def test_given_weight_decays_and_held_out_samples():
    X, y = normal(30, 2, seed=7), targets_of("logistic", 30, 3)
    found = small("logistic", "global", weight_decays=[0.05, 0.2, 0.1], test=(X, y))
    assert found.weight_decays.tolist() == [0.2, 0.1, 0.05]
    for point in found.points:
        with torch.no_grad():
            f = point.network(X)[:, 0].numpy()
        assert point.test_loss == pytest.approx(np.log1p(np.exp(-y * f)).mean(), rel=1e-9)
        assert point.test_accuracy == pytest.approx(((f > 0) == (y > 0)).mean())
    losses = [point.test_loss for point in found.points]
    assert min(losses) < max(losses)
    assert found.best() is found.points[int(np.argmin(losses))]
    weights = np.where(np.arange(30) < 15, 2.0, 1.0)
    weighted = small("logistic", "global", weight_decays=[0.2], test=(X, y), test_weight=weights)
    with torch.no_grad():
        f = weighted.points[0].network(X)[:, 0].numpy()
    expected = np.average(np.log1p(np.exp(-y * f)), weights=weights)
    assert weighted.points[0].test_loss == pytest.approx(expected, rel=1e-9)


def test_one_point_at_the_null_level_is_the_constant():
    found = small("squared", "global", n_points=1)
    assert found.points[0].status is Status.NULL
    assert found.points[0].n_neurons == 0


def test_figures():
    plt = pytest.importorskip("matplotlib.pyplot")
    plt.switch_backend("Agg")
    X, y = normal(30, 2, seed=7), targets_of("squared", 30, 3)
    left, right = small("squared", "global", weight_decays=[0.3, 0.2], test=(X, y)).plot()
    assert len(left.get_lines()) == 2
    assert len(right.get_lines()) == 2
    plt.close("all")


def test_inputs_are_checked():
    for wrong in (
        {"method": "admm"},
        {"weight_decays": []},
        {"weight_decays": [0.1, -1.0]},
        {"n_points": 0},
        {"weight_decays": 0.1},
    ):
        with pytest.raises(InvalidInputError):
            small("squared", "global", **wrong)
    with pytest.raises(InvalidInputError, match="test"):
        small("squared", "global", n_points=1, test=(np.zeros((4, 9)), np.zeros(4)))
    with pytest.raises(InvalidInputError, match="test"):
        small("squared", "global", n_points=1).best()
