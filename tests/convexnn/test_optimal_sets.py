"""Optimal sets: every element is optimal, every optimum that another solver finds is an element."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from convexnn_cases import normal

import convexnn
from convexnn.ascent import evaluate
from convexnn.duality import Judgement, dual_point
from convexnn.errors import InvalidInputError, SolverError
from convexnn.network import from_torch
from convexnn.neurons import Neurons, unit_rows
from convexnn.patterns import enumerate_patterns
from convexnn.programs import ReLUProgram
from convexnn.solutions import optima
from convexnn.solutions.active_set import stationary
from convexnn.solutions.optima import optimal_set, set_of
from convexnn.solutions.optimal_sets import OptimalSet
from convexnn.solvers.answer import ProgramLimits
from convexnn.solvers.reference import solve_reference


def circle() -> tuple[np.ndarray, np.ndarray]:
    """Twelve points in opposite pairs with equal targets: neurons u and -u come in pairs, whose odd parts are free."""
    angles = np.arange(12) * np.pi / 6
    even = np.random.default_rng(0).standard_normal(6)
    return np.stack([np.cos(angles), np.sin(angles)], 1), np.concatenate([even, even])


def circle_set(weight_decay: float = 1e-2, loss: str = "squared", method: str = "exact") -> OptimalSet:
    X, y = circle()
    y = np.where(y > 0, 1.0, -1.0) if loss == "logistic" else y
    return optimal_set(
        X, y, weight_decay=weight_decay, loss=loss, method=method, hidden_bias=False, output_bias=False, random_state=0
    )


def objective_of(network: torch.nn.Module, X, y, weight_decay: float, loss: str) -> float:
    """From the formula of the documentation."""
    with torch.no_grad():
        f = network(torch.as_tensor(X)).numpy().reshape(len(X), -1)
        squares = sum(float((layer.weight**2).sum()) for layer in (network[0], network[2]))
        squares += float((network[0].bias ** 2).sum()) if network[0].bias is not None else 0.0
    y = np.asarray(y).reshape(len(X), -1)
    value = ((f - y) ** 2).sum(1).mean() / 2 if loss == "squared" else np.log1p(np.exp(-y * f)).mean()
    return value + weight_decay / 2 * squares


@pytest.mark.parametrize("loss", ["squared", "logistic"])
@pytest.mark.parametrize("method", ["exact", "global"])
def test_pairs_of_opposite_neurons_leave_their_odd_parts_free(loss, method):
    """m pairs, even parts independent, odd parts of rank two: dimension m - 2, however the set was found."""
    found = circle_set(loss=loss, method=method)
    U = found.neurons.W
    pairs = int((U @ U.T < -1 + 1e-8).any(1).sum())
    assert pairs == len(U)
    assert found.dimension == len(U) // 2 - 2 > 0
    assert found.kind == {"exact": "all-patterns", "global": "local-search"}[method]
    assert found.gap < 1e-12


@pytest.mark.parametrize("loss", ["squared", "logistic"])
def test_convex_combinations_of_optimal_networks_are_optimal(loss):
    """Outputs to 1e-8 and the objective, from the torch modules; the bound of training says that it is the least."""
    X, y = circle()
    y = np.where(y > 0, 1.0, -1.0) if loss == "logistic" else y
    found, rng = circle_set(loss=loss), np.random.default_rng(1)
    vertices = found.vertices()
    assert len(vertices) >= 4
    outputs = []
    for _ in range(10):
        shares = rng.dirichlet(np.ones(len(vertices)))
        element = found.element(sum(s * vertex.weights for s, vertex in zip(shares, vertices, strict=True)))
        with torch.no_grad():
            outputs.append(element.network(torch.from_numpy(X)))
        assert objective_of(element.network, X, y, 1e-2, loss) == pytest.approx(found.objective, rel=1e-10)
        assert element.objective == pytest.approx(found.objective, rel=1e-10)
    for output in outputs:
        torch.testing.assert_close(output, outputs[0], rtol=1e-8, atol=1e-8)
    settings = {"weight_decay": 1e-2, "loss": loss, "hidden_bias": False, "output_bias": False, "tol": 1e-7}
    trained = convexnn.train(X, y, random_state=0, **settings)
    assert trained.bound <= found.objective * (1 + 1e-9)
    assert found.objective <= trained.objective * (1 + 1e-9)


def bowl_set() -> OptimalSet:
    """|x|^2 on a symmetric grid: optima that are different functions."""
    g = np.linspace(-1, 1, 5)
    X = np.stack(np.meshgrid(g, g), -1).reshape(-1, 2)
    return optimal_set(X, (X**2).sum(1), weight_decay=1e-3, method="exact", random_state=0)


def test_odd_parts_of_pairs_cancel_everywhere():
    """Without biases they are linear: what cancels on the data cancels; one function, many weights."""
    found = circle_set()
    assert found.function_dimension == 0 < found.dimension
    M, shift = found.outputs_at(np.random.default_rng(0).standard_normal((50, 2)))
    for vertex in found.vertices():
        np.testing.assert_allclose(M @ vertex.weights + shift, M @ found.reference + shift, atol=1e-10)


def test_optimal_networks_can_differ_off_the_data():
    """And then choices among them matter: by the loss on other samples, and by their margin there."""
    found, rng = bowl_set(), np.random.default_rng(0)
    assert 0 < found.function_dimension < found.dimension
    costs, l1 = rng.standard_normal(len(found.neurons)), found.task.reduction.lift(found.neurons).W.abs().sum(1).numpy()
    X_new, y_new = rng.uniform(-2, 2, (30, 2)), rng.standard_normal(30)
    signs = np.where(rng.standard_normal(30) > 0, 1.0, -1.0)
    M, shift = found.outputs_at(X_new)
    vertices = [found.random_vertex(seed) for seed in range(10)]
    off = np.stack([M @ vertex.weights + shift for vertex in vertices])
    assert (off.max(0) - off.min(0)).max() > 1e-2
    validated, margin = found.validated(X_new, y_new), found.largest_margin(X_new, signs)
    losses = ((off - y_new) ** 2).mean(1) / 2
    assert validated.value < losses.min() + 1e-10
    assert validated.value < losses.max() - 1e-4
    assert margin.value >= (signs * off).min(1).max() - 1e-9
    cheapest, sparse = found.least(costs), found.least_l1()
    assert cheapest.value == pytest.approx(float(costs @ cheapest.weights), rel=1e-12)
    assert cheapest.value < min(float(costs @ vertex.weights) for vertex in vertices) + 1e-9
    assert cheapest.value < max(float(costs @ vertex.weights) for vertex in vertices) - 1e-4
    assert sparse.value == pytest.approx(float(l1 @ sparse.weights), rel=1e-12)
    assert sparse.value == pytest.approx(found.least(l1).value, rel=1e-12)
    on = found.task.full.X[:, :2]
    with torch.no_grad():
        for element in (validated, margin, *vertices):
            torch.testing.assert_close(element.network(on), found.output, rtol=1e-8, atol=1e-8)


def test_what_another_solver_finds_is_in_the_set():
    """Clarabel's optimum of the program over all patterns: its neurons are neurons of the set."""
    found = circle_set()
    problem = found.task.reduced
    program = ReLUProgram(problem, enumerate_patterns(problem.X))
    answer = solve_reference(program, ProgramLimits(1e-8))
    neurons = program.network(answer.judgement.point).pruned(1e-4)
    assert answer.judgement.objective == pytest.approx(found.objective, rel=1e-6)
    alike = unit_rows(neurons.W) @ found.neurons.W.T
    same_sign = torch.sign(neurons.A) * torch.sign(found.neurons.A.T) > 0
    assert float(torch.where(same_sign, alike, -1.0).amax(1).min()) > 1 - 1e-5


def arcs_of_the_circle(found: OptimalSet, X: np.ndarray) -> list[tuple[float, np.ndarray]]:
    """For both signs and every arc between kinks of neurons in the plane: largest correlation, and where."""
    V = found.task.reduced.loss.negative_gradient(found.output)[:, 0].numpy()
    kinks = np.sort(
        np.concatenate([np.arctan2(X[:, 1], X[:, 0]) + turn for turn in (np.pi / 2, -np.pi / 2)]) % (2 * np.pi)
    )
    kinks = kinks[np.append(True, np.diff(kinks) > 1e-9)]
    out = []
    for low, high in zip(kinks, np.append(kinks[1:], kinks[0] + 2 * np.pi), strict=True):
        middle = np.array([np.cos((low + high) / 2), np.sin((low + high) / 2)])
        c = (X[X @ middle > 0] * V[X @ middle > 0, None]).sum(0)
        for sign in (1, -1):
            peak = np.arctan2(sign * c[1], sign * c[0])
            peak += 2 * np.pi * np.ceil((low - peak) / (2 * np.pi))
            for angle in (peak, low, high):
                u = np.array([np.cos(angle), np.sin(angle)])
                if low <= angle <= high:
                    out.append((sign * float(c @ u), u))
    return out


def test_separation_is_the_distance_to_the_next_correlation():
    """In the plane the largest correlation of every arc has a closed form."""
    rng, seen = np.random.default_rng(0), 0
    for _ in range(6):
        X, y = rng.standard_normal((12, 2)), rng.standard_normal(12)
        settings = {"weight_decay": 0.02, "hidden_bias": False, "output_bias": False, "random_state": 0}
        found = optimal_set(X, y, method="exact", **settings)
        U = found.task.reduction.lift(found.neurons).W.numpy()
        rest = [value for value, u in arcs_of_the_circle(found, X) if (U @ u).max(initial=-1.0) < 1 - 1e-6]
        expected = 1 - max(rest) / 0.02
        if expected < 0.09:
            assert found.separation == pytest.approx(expected, abs=1e-7)
            seen += 1
        elif expected > 0.11:
            assert found.separation == np.inf
    assert seen >= 2


def test_patterns_nearby_find_what_a_search_misses(monkeypatch):
    """A search that sees the network's own neurons only, and one of them gone: it is back."""

    def blind(problem, V, neurons, **_):
        found = evaluate(problem.X, V, neurons.W)
        return Judgement(dual_point(problem, V, found.best()), found)

    rng = np.random.default_rng(2)
    X, y = rng.standard_normal((6, 2)), rng.standard_normal(6)
    settings = {"weight_decay": 0.01, "hidden_bias": False, "output_bias": False, "random_state": 0}
    best = optimal_set(X, y, method="exact", **settings)
    neurons = best.task.reduction.lift(from_torch(best.element(best.reference).network))
    monkeypatch.setattr(optima, "judge", blind)
    for gone in (0, 4):  # neurons in the cones on both sides of a kink that another one is on
        keep = torch.arange(len(neurons)) != gone
        less = replace(neurons, W=neurons.W[keep], A=neurons.A[keep])
        network = convexnn.network.to_torch(less, hidden_bias=False, output_bias=False)
        found = optimal_set(X, y, method="global", network=network, **settings)
        assert found.objective == pytest.approx(best.objective, rel=1e-10)


@pytest.mark.slow
def test_generic_data_have_one_optimal_network():
    """And training from two seeds finds it."""
    X, y = normal(30, 3, seed=1), normal(30, seed=2)
    found = optimal_set(X, y, weight_decay=0.05, method="global", random_state=0)
    assert found.unique
    assert found.separation > 0
    for seed in (1, 2):
        other = from_torch(convexnn.train(X, y, weight_decay=0.05, tol=1e-7, random_state=seed).network)
        cosines = unit_rows(other.W) @ unit_rows(found.task.reduction.lift(found.neurons).W).T
        assert float(cosines.amax(1).min()) > 0.99


@pytest.mark.slow
def test_a_network_far_from_optimal_is_improved_until_nothing_is_left():
    """From a gap of 0.1: the optimum to rounding. At this weight decay linear parts of pairs are free, for any data."""
    X, y = normal(40, 3, seed=1), normal(40, seed=2)
    coarse = convexnn.train(X, y, weight_decay=0.02, tol=0.1, random_state=3)
    found = optimal_set(X, y, weight_decay=0.02, method="global", network=coarse.network, random_state=0)
    best = convexnn.train(X, y, weight_decay=0.02, tol=1e-7, random_state=1)
    assert coarse.objective > found.objective * (1 + 1e-3)
    assert best.bound <= found.objective <= best.objective
    assert found.gap < 1e-12
    U = found.neurons.W
    pairs = int((U @ U.T < -1 + 1e-8).any(1).sum()) // 2
    assert found.dimension == pairs - 3 > 0
    assert found.function_dimension == 0


def test_choices_are_the_best_of_the_set():
    """Against all vertices and random elements, each by its own criterion."""
    found, rng = circle_set(), np.random.default_rng(3)
    X_new, y_new = rng.standard_normal((15, 2)), rng.standard_normal(15)
    signs = np.where(rng.standard_normal(15) > 0, 1.0, -1.0)
    vertices = found.vertices()
    others = [v.weights for v in vertices]
    others += [rng.dirichlet(np.ones(len(vertices))) @ np.stack(others) for _ in range(20)]
    M, shift = found.outputs_at(X_new)
    np.testing.assert_allclose(
        M @ vertices[0].weights + shift,
        vertices[0].network(torch.from_numpy(X_new))[:, 0].detach().numpy(),
        atol=1e-10,
    )
    validated, margin = found.validated(X_new, y_new), found.largest_margin(X_new, signs)
    norm, l1, sparsest = found.minimum_norm(), found.least_l1(), found.sparsest()
    costs = found.neurons.W.abs().sum(1).numpy()
    for x in others:
        assert validated.value <= ((M @ x + shift - y_new) ** 2).mean() / 2 + 1e-9
        assert margin.value >= (signs * (M @ x + shift)).min() - 1e-8
        assert norm.value <= x @ x + 1e-10
        assert l1.value <= costs @ x + 1e-8
    assert sparsest.n_neurons == min(vertex.n_neurons for vertex in vertices) < norm.n_neurons
    random = found.random_vertex(0)
    assert min(np.abs(random.weights - vertex.weights).max() for vertex in vertices) < 1e-8


def test_validated_is_a_minimum_for_the_logistic_loss():
    found, rng = circle_set(loss="logistic"), np.random.default_rng(3)
    X_new, y_new = rng.standard_normal((15, 2)), np.where(rng.standard_normal(15) > 0, 1.0, -1.0)
    M, shift = found.outputs_at(X_new)
    validated = found.validated(X_new, y_new)
    for vertex in found.vertices():
        for share in (1e-3, 0.1, 1.0):
            x = (1 - share) * validated.weights + share * vertex.weights
            assert validated.value <= np.log1p(np.exp(-y_new * (M @ x + shift))).mean() + 1e-9


def test_two_outputs_with_biases():
    """Of the program, each neuron feeding one output; an output bias takes what is constant."""
    X, y = circle()
    X, Y = X + 0.5, np.stack([y, np.roll(y, 1)], 1)
    found = optimal_set(X, Y, weight_decay=0.02, method="exact", random_state=0)
    assert found.kind == "sampled-program"
    assert found.neurons.n_outputs == 2
    assert found.gap < 1e-9
    element = found.element(found.polytope.centre)
    assert objective_of(element.network, X, Y, 0.02, "squared") == pytest.approx(found.objective, rel=1e-9)
    M, shift = found.outputs_at(X)
    with torch.no_grad():
        outputs = element.network(torch.from_numpy(X)).numpy()
    np.testing.assert_allclose((M @ element.weights + shift).reshape(12, 2), outputs, atol=1e-9)


def test_sampled_programs():
    """Of few random patterns: no better than all patterns, and checked against the bound of the program itself."""
    X, y = normal(40, 3, seed=5), normal(40, seed=6)
    sampled = optimal_set(X, y, weight_decay=0.02, n_patterns=5, random_state=0)
    best = convexnn.train(X, y, weight_decay=0.02, random_state=0)
    assert sampled.kind == "sampled-program"
    assert sampled.gap < 1e-9
    assert sampled.objective > best.objective
    assert sampled.element(sampled.reference).fit_change < 1e-12


@pytest.mark.usefixtures("unchecked")
def test_weights_outside_are_refused():
    found = circle_set()
    assert found.element(found.reference.tolist()).fit_change < 1e-10
    slightly = (1 + 1e-6) * found.reference  # to first order the objective is the same
    for weights in (slightly, 2 * found.reference, found.reference - 1.0, np.ones(3), np.nan * found.reference):
        with pytest.raises(InvalidInputError):
            found.element(weights)


def test_a_stationary_point_that_is_no_optimum_has_no_optimal_set():
    """Without one of its neurons, all others at rest: that neuron's correlation is above the weight decay."""
    found = circle_set()
    problem = found.task.reduced
    program = ReLUProgram(problem, enumerate_patterns(problem.X))
    lame = replace(found.neurons, W=found.neurons.W[:1], A=found.neurons.A[:1])
    at = stationary(problem, lame)
    assert at.residual < 1e-9
    with pytest.raises(SolverError, match="above the weight decay"):
        set_of(found.task, program, at, "all-patterns", 1e-6)


@pytest.mark.parametrize("method", ["exact", "global"])
def test_no_neuron_pays_for_its_weights(method):
    found = circle_set(weight_decay=10.0, method=method)
    assert found.dimension == 0
    assert found.element(found.reference).n_neurons == 0


@pytest.mark.usefixtures("unchecked")
def test_inputs_are_checked():
    X, y = circle()
    for wrong in ({"loss": "hinge"}, {"method": "admm"}, {"network": torch.nn.Linear(2, 1)}, {"tol": 0.0}):
        with pytest.raises(InvalidInputError):
            optimal_set(X, y, **({"weight_decay": 0.1} | wrong))
    for network in (torch.nn.Linear(3, 4), torch.nn.Linear(2, 4, bias=False)):
        module = torch.nn.Sequential(network, torch.nn.ReLU(), torch.nn.Linear(4, 1)).double()
        with pytest.raises(InvalidInputError, match="inputs"):
            optimal_set(X, y, weight_decay=0.1, method="global", network=module)
    with pytest.raises(InvalidInputError, match="tol"):
        optimal_set(X, y, weight_decay=0.1, tol=0.5)
    with pytest.raises(InvalidInputError, match="columns"):
        circle_set().outputs_at(np.zeros((3, 5)))
    for costs in ([1.0], np.full(len(circle_set().reference), np.nan)):
        with pytest.raises(InvalidInputError, match="costs"):
            circle_set().least(costs)


def test_a_network_that_is_given_is_taken_as_the_optimum():
    """Split into copies: the set is the same."""
    X, y = circle()
    settings = {"weight_decay": 1e-2, "hidden_bias": False, "output_bias": False}
    result = convexnn.train(X, y, tol=1e-6, random_state=0, **settings)
    neurons = from_torch(result.network)
    split = Neurons(neurons.W.repeat(2, 1) / 2**0.5, neurons.A.repeat(2, 1) / 2**0.5, neurons.bias)
    network = convexnn.network.to_torch(split, hidden_bias=False, output_bias=False)
    found = optimal_set(X, y, method="global", network=network, random_state=0, **settings)
    assert found.dimension == circle_set().dimension
    assert found.objective == pytest.approx(circle_set().objective, rel=1e-10)
