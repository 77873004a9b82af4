"""Training on fixed activation patterns: every method, what its result says, refinement, and bad input."""

import importlib
import itertools
import json
from itertools import pairwise

import cvxpy
import numpy as np
import pytest
import torch
from convexnn_cases import TARGETS, normal, targets_of
from convexnn_references import exact_optimum

from convexnn import ConvexReLUClassifier, ConvexReLURegressor, Status, train
from convexnn.ascent import evaluate
from convexnn.data import read_loss
from convexnn.duality import dual_point
from convexnn.errors import DeviceError, InvalidInputError, SolverError
from convexnn.losses import LOSSES
from convexnn.neurons import Neurons, no_neurons
from convexnn.patterns import sample_patterns
from convexnn.problem import Problem
from convexnn.programs import ReLUProgram
from convexnn.restricted import METHODS, _bound_with, _Refinement
from convexnn.solvers.admm import ADMM
from convexnn.solvers.answer import ProgramLimits
from convexnn.solvers.working_set import solve_working_set

pytestmark = pytest.mark.usefixtures("unchecked")


def data(loss, n=24, d=3, kind=0, seed=0):
    return normal(n, d, seed=seed).numpy(), targets_of(loss, n, seed, kind)


def objective_of(result, X, y, loss, wd):
    """J from the weights of the module, by nothing but torch."""
    first, _, last = result.network
    with torch.no_grad():
        value = float(read_loss(loss, y, len(X)).value(result.network(torch.tensor(X))))
        squares = (
            (first.weight**2).sum() + (last.weight**2).sum() + (0 if first.bias is None else (first.bias**2).sum())
        )
    return value + 0.5 * wd * float(squares)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("loss", list(LOSSES))
def test_every_method_trains_every_loss(method, loss):
    if (method, loss) == ("fista", "hinge") or method == "reference-mosek":
        pytest.skip("covered by the tests of refusals")
    if (method, loss) == ("reference-scs", "hinge"):
        pytest.skip("SCS takes half a minute")
    X, y = data(loss, n=16 if method in ("exact", "reference-scs") else 24, d=2)
    tol = 1e-3 if method in ("scp", "reference-scs") else 1e-4
    options = {"weight_decay": 0.02, "n_patterns": 12, "tol": tol, "random_state": 0}
    result = train(X, y, loss=loss, method=method, **options)
    assert result.objective == pytest.approx(objective_of(result, X, y, loss, 0.02), rel=1e-10)
    assert result.method == method
    assert result.program is not None
    assert result.bound <= result.objective * (1 + 1e-12)
    complete = method == "exact" and result.program.complete and loss != "softmax"
    assert result.bound_kind == ("all-patterns" if complete else "sampled-program")
    if method != "reference-scs":
        assert result.program.gap <= (tol if method != "reference" else 1e-3)
        assert result.status is Status.SOLVED
    if method != "fista":
        assert result.gap <= 1.1 * max(tol, 1e-3)
    best = train(X, y, loss=loss, weight_decay=0.02, tol=1e-2, random_state=0)
    assert result.objective >= best.bound * (1 - 1e-6)
    json.loads(result.to_json())
    assert "patterns" in str(result)


def test_methods_on_the_same_patterns_agree():
    X, y = data("squared", 40, 4)
    options = {"weight_decay": 0.01, "n_patterns": 30, "tol": 1e-6, "random_state": 5}
    results = [train(X, y, method=method, **options) for method in ("interior-point", "admm", "reference", "auto")]
    for result in results[1:]:
        assert result.program.objective == pytest.approx(results[0].program.objective, rel=1e-5)


def test_same_seed_same_network():
    X, y = data("squared", 40, 4)
    first, again = (train(X, y, method="interior-point", weight_decay=0.01, random_state=3) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.network.parameters(), again.network.parameters(), strict=True))


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("output_bias", [False, True])
def test_exact_is_the_optimum_over_all_networks(seed, output_bias):
    X, y = normal(9, 2, seed=seed), targets_of("squared", 9, seed)
    options = {"weight_decay": 0.02, "hidden_bias": False, "output_bias": output_bias, "tol": 1e-7, "random_state": 0}
    result = train(X, y, method="exact", **options)
    problem = Problem(X, read_loss("squared", y, 9), 0.02, output_bias)
    assert result.objective == pytest.approx(exact_optimum(problem), rel=1e-6)
    assert result.status is Status.SOLVED
    assert result.program.complete


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_exact_equals_global_on_forty_samples(seed):
    X, y = normal(40, 3, seed=seed), targets_of("squared", 40, seed)
    options = {"weight_decay": 0.01, "hidden_bias": False, "output_bias": False, "random_state": 0}
    exact = train(X, y, method="exact", tol=1e-7, **options)
    assert exact.program.n_patterns == 1562
    best = train(X, y, method="global", tol=1e-7, max_seconds=60, **options)
    assert best.objective == pytest.approx(exact.objective, rel=1e-6)
    assert exact.bound <= best.objective * (1 + 1e-9)


@pytest.mark.parametrize("loss", ["squared", "logistic", "softmax"])
def test_refinement_reaches_the_optimum_over_all_patterns(loss):
    X, y = data(loss, 30, 3)
    options = {"loss": loss, "weight_decay": 0.02, "random_state": 0}
    sampled = train(X, y, method="interior-point", n_patterns=5, **options)
    refined = train(X, y, method="interior-point", n_patterns=5, refine=True, tol=1e-4, **options)
    best = train(X, y, tol=1e-5, **options)
    assert refined.bound_kind == "local-search"
    assert refined.objective <= sampled.objective * (1 + 1e-6)
    assert refined.objective >= best.bound * (1 - 1e-6)
    values = [entry.objective for entry in refined.trace]
    assert all(later <= earlier for earlier, later in pairwise(values))
    if loss != "softmax":  # whose neurons feed one output each in a program
        assert refined.objective <= best.objective * (1 + 2e-4)
        assert refined.status is Status.CONVERGED


def test_global_training_starts_from_a_sampled_network():
    X, y = data("squared", 40, 4)
    sampled = train(X, y, method="interior-point", n_patterns=10, weight_decay=0.01, random_state=0)
    result = train(X, y, weight_decay=0.01, warm_start=sampled.network, random_state=0)
    assert result.status is Status.CONVERGED
    assert result.objective <= sampled.objective


def test_a_sampled_program_with_the_patterns_of_a_network_is_no_worse_than_it():
    X, y = data("squared", 30, 3)
    best = train(X, y, weight_decay=0.02, tol=1e-5, random_state=0)
    options = {"weight_decay": 0.02, "n_patterns": 1, "tol": 1e-6, "random_state": 0}
    result = train(X, y, method="interior-point", warm_start=best.network, **options)
    assert result.objective <= best.objective * (1 + 1e-5)


@pytest.mark.parametrize("method", ["interior-point", "admm", "fista", "scp", "exact"])
def test_weight_decay_above_the_null_level_gives_the_constant_network(method):
    X, y = data("squared", 20, 2)
    result = train(X, y, method=method, weight_decay=100.0, random_state=0)
    assert result.status is Status.NULL
    assert result.n_neurons == 0
    assert result.objective == pytest.approx(0.5 * float(np.var(y)), rel=1e-9)


@pytest.mark.parametrize("method", ["interior-point", "admm", "fista", "scp", "exact"])
@pytest.mark.parametrize("change", ["duplicate rows", "constant column", "rank", "wide", "zero row"])
def test_degenerate_data(method, change):
    X, y = data("squared", 8, 3)
    X = {
        "duplicate rows": np.concatenate([X, X]),
        "constant column": np.concatenate([X, np.ones((8, 1))], 1),
        "rank": X[:, :2] @ normal(2, 4, seed=1).numpy(),
        "wide": normal(5, 9, seed=1).numpy(),
        "zero row": np.concatenate([X, np.zeros((1, 3))]),
    }[change]
    y = np.resize(y, len(X))
    hidden_bias = change != "zero row"
    result = train(X, y, method=method, weight_decay=0.05, n_patterns=6, hidden_bias=hidden_bias, random_state=0)
    assert result.program.gap <= 1e-4
    assert np.isfinite(result.objective)


def test_exact_bound_on_samples_almost_in_special_position():
    """Cones as narrow as rounding: no crash, and the bound stays below a network found without patterns."""
    for seed in range(3):
        X = (normal(7, 3, seed=seed).sign() + 1e-10 * normal(7, 3, seed=seed + 50).round()).numpy()
        y = targets_of("squared", 7, seed)
        options = {"weight_decay": 0.02, "hidden_bias": False, "output_bias": False, "random_state": 0, "tol": 1e-6}
        exact, best = train(X, y, method="exact", **options), train(X, y, **options)
        assert exact.bound <= best.objective * (1 + 1e-7)
        assert exact.objective >= best.bound * (1 - 1e-6)


@pytest.mark.parametrize("count", [0, -3, 1.5, "many"])
@pytest.mark.parametrize("method", ["interior-point", "scp"])
def test_bad_numbers_of_patterns(method, count):
    X, y = data("squared")
    with pytest.raises(InvalidInputError, match="at least 1"):
        train(X, y, method=method, weight_decay=0.1, n_patterns=count)


def test_more_patterns_than_exist():
    X, y = data("squared", 5, 1)
    with pytest.raises(InvalidInputError, match="at most 10"):
        train(X, y, method="interior-point", weight_decay=0.1, n_patterns=11)


def test_hopeless_enumeration_is_announced():
    X, y = data("squared", 200, 10)
    with pytest.raises(InvalidInputError, match=r"GiB.*global"):
        train(X, y, method="exact", weight_decay=0.1)


def test_refusals():
    X, y = data("hinge")
    with pytest.raises(InvalidInputError, match="kink"):
        train(X, y, loss="hinge", method="fista", weight_decay=0.1, n_patterns=5)
    with pytest.raises(InvalidInputError, match="refine"):
        train(X, y, loss="hinge", method="scp", weight_decay=0.1, refine=True)
    with pytest.raises(InvalidInputError, match="refine"):
        train(X, y, loss="hinge", method="global", weight_decay=0.1, refine=True)
    with pytest.raises(InvalidInputError, match="not known"):
        train(X, y, loss="hinge", method="frank-wolfe", weight_decay=0.1)


def test_a_solver_of_cvxpy_that_gives_up_is_named(monkeypatch):
    def give_up(self, **options):
        raise cvxpy.SolverError("numerical trouble")

    monkeypatch.setattr(cvxpy.Problem, "solve", give_up)
    X, y = data("squared")
    with pytest.raises(SolverError, match="clarabel.*numerical trouble"):
        train(X, y, method="reference", weight_decay=0.1, n_patterns=5)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_cuda_asked_for_and_absent():
    X, y = data("squared")
    with pytest.raises(DeviceError, match="CUDA"):
        train(X, y, method="admm", weight_decay=0.1, device="cuda")


def test_time_limit():
    X, y = data("squared", 150, 8)
    options = {"weight_decay": 1e-4, "n_patterns": 150, "tol": 1e-12, "random_state": 0}
    result = train(X, y, method="admm", max_seconds=0.3, **options)
    assert result.seconds < 10
    assert result.status is Status.MAX_SECONDS
    assert np.isfinite(result.objective)


def test_a_time_limit_between_admm_and_its_polish_is_no_solution(monkeypatch):
    """ADMM's own run ends well, at a rougher tolerance than was asked for: the status is about what was asked for."""
    X, y = data("squared", 150, 8)
    clock = iter(itertools.chain([0.0, 0.0], itertools.repeat(1e6)))
    monkeypatch.setattr("convexnn.restricted.time.perf_counter", lambda: next(clock))
    monkeypatch.setattr("convexnn.solvers.admm_rounds._Run.seconds", lambda run: 0.0)
    result = train(X, y, method="admm", weight_decay=1e-3, n_patterns=50, tol=1e-6, max_seconds=1e3, random_state=0)
    assert result.program.gap > 1e-6
    assert result.status is Status.MAX_SECONDS


INNER = {
    "interior-point": "convexnn.solvers.working_set.solve_blocks",
    "admm": "convexnn.solvers.admm.ADMM.step",
    "fista": "convexnn.solvers.fista._descend",
    "scp": "convexnn.solvers.scp._improve",
}


@pytest.mark.parametrize("refine", [False, True])
@pytest.mark.parametrize("method", list(INNER))
@pytest.mark.parametrize("late", [False, True])
def test_interrupt_keeps_the_best_network(monkeypatch, method, refine, late):
    if refine and method in ("fista", "scp"):
        pytest.skip("these are not refined")
    X, y = data("squared", 40, 4)
    # Of no solver the first call that comes after a judgement.
    at = {"interior-point": 2, "admm": 60, "fista": 2, "scp": 2}[method] if late else 1
    module, name = INNER[method].rsplit(".", 1)
    owner = ADMM if method == "admm" else importlib.import_module(module)
    original, calls = getattr(owner, name), []

    def interrupted(*args, **options):
        calls.append(1)
        if len(calls) == at:
            raise KeyboardInterrupt
        return original(*args, **options)

    monkeypatch.setattr(owner, name, interrupted)
    monkeypatch.setattr("convexnn.restricted._FISTA_STEPS", 10**6)  # the interior point does not take over
    options = {"weight_decay": 1e-3, "n_patterns": 250, "tol": 1e-9, "random_state": 0}
    result = train(X, y, method=method, refine=refine, **options)
    assert result.status is Status.INTERRUPTED
    assert result.bound <= result.objective * (1 + 1e-12)
    if late and not refine:
        assert result.bound > -np.inf
        assert result.objective < 0.5 * np.var(y)


@pytest.mark.parametrize("method", ["admm", "fista"])
def test_interrupted_polish_keeps_what_came_before(monkeypatch, method):
    def interrupted(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("convexnn.restricted._FISTA_STEPS", 100)
    monkeypatch.setattr("convexnn.solvers.working_set.solve_blocks", interrupted)
    X, y = data("squared", 40, 4)
    result = train(X, y, method=method, weight_decay=1e-3, n_patterns=150, tol=1e-9, random_state=0)
    assert result.status is Status.INTERRUPTED
    assert -np.inf < result.bound <= result.objective
    assert result.objective < 0.5 * np.var(y)


def test_network_outside_the_cones_gets_a_bound_that_covers_it():
    """ADMM's own point can go below the bound of the program: the bound that is returned is below it, and not equal."""
    X, y = data("squared", 30, 3)
    problem = Problem(torch.tensor(X), read_loss("squared", y, 30), 0.02, True)
    best = train(X, y, weight_decay=0.02, hidden_bias=False, tol=1e-3, random_state=0)
    first, _, last = best.network
    outside = Neurons(first.weight.detach(), last.weight.detach().T.contiguous(), last.bias.detach())
    for seed in range(4):
        program = ReLUProgram(problem, sample_patterns(problem.X, 4, torch.Generator().manual_seed(seed)))
        found = solve_working_set(program, ProgramLimits(1e-6))
        assert found.judgement.dual.bound > problem.objective(outside)
        bound, covered = _bound_with(program, found, outside)
        assert bound < problem.objective(outside) * (1 - 1e-6)
        assert not covered
        rescaled = Neurons(7 * outside.W, outside.A / 7, outside.bias)
        assert _bound_with(program, found, rescaled)[0] == pytest.approx(bound, rel=1e-12)


def test_refined_bound_that_a_later_network_disproves_is_dropped():
    """A search that sees nothing reports bounds above later objectives; the neurons of the best network lower them."""
    X, y = data("squared", 30, 3)
    problem = Problem(torch.tensor(X), read_loss("squared", y, 30), 0.02, True)
    best = train(X, y, weight_decay=0.02, hidden_bias=False, tol=1e-6, random_state=0)
    first, _, last = best.network
    neurons = Neurons(first.weight.detach(), last.weight.detach().T.contiguous(), last.bias.detach())
    V = problem.dual_point(no_neurons(3, problem.constant())(problem.X))
    run = _Refinement(problem, neurons, problem.objective(neurons), dual_point(problem, V, 0.02))
    assert run.bound > run.objective
    run.disprove(neurons.W)
    assert run.bound < run.objective * (1 - 1e-3)  # a bound, not the objective itself
    rescaled = evaluate(problem.X, run.dual.V, neurons.W)
    assert rescaled.best() <= 0.02 * (1 + 1e-12)


def test_round_limit_of_a_refinement():
    X, y = data("squared", 60, 5)
    options = {"weight_decay": 1e-3, "n_patterns": 2, "refine": True, "max_rounds": 2, "tol": 1e-9, "random_state": 0}
    result = train(X, y, method="interior-point", **options)
    assert result.status is Status.MAX_ROUNDS
    assert result.n_rounds == 2


def test_only_random_patterns_count_for_the_scenario_bound():
    X, y = data("squared", 20, 2)
    best = train(X, y, weight_decay=0.01, tol=1e-2, random_state=0)
    options = {"weight_decay": 0.01, "n_patterns": 60, "random_state": 0}
    plain = train(X, y, method="interior-point", **options)
    warm = train(X, y, method="interior-point", warm_start=best.network, **options)
    assert warm.program.n_patterns > plain.program.n_patterns == 60
    assert warm.program.improvement_probability == plain.program.improvement_probability < 1
    refined = train(X, y, method="interior-point", refine=True, tol=1e-2, max_rounds=2, **options)
    assert refined.program.improvement_probability == 1.0


def test_estimators_take_the_methods():
    X, y = data("squared", 40, 3)
    model = ConvexReLURegressor(method="interior-point", n_patterns=20, weight_decay=0.01, random_state=0).fit(X, y)
    assert model.result_.method == "interior-point"
    assert model.result_.program.n_patterns == 20
    labels = TARGETS["logistic"][0](40, np.random.default_rng(0))
    classifier = ConvexReLUClassifier(method="admm", n_patterns=20, weight_decay=0.01, random_state=0).fit(X, labels)
    assert classifier.predict(X).shape == (40,)
    assert sample_patterns(torch.tensor(X), 3, torch.Generator().manual_seed(0)).D.shape == (3, 40)


@pytest.mark.parametrize("method", ["interior-point", "fista", "admm", "scp"])
def test_data_of_few_patterns_need_no_number(method):
    """20 samples in the plane have 40 patterns: the usual hundred is for larger data."""
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((20, 2)), rng.standard_normal(20)
    result = train(X, y, method=method, weight_decay=0.1, hidden_bias=False, random_state=0)
    assert result.program.n_patterns == (100 if method == "scp" else 40)
