"""Sloped objectives, their smoothing, the first-order method, and majorising: laws against enumeration and judges."""

import itertools

import numpy as np
import pytest
import torch
from convexnn_cases import normal, random_neurons, seeded
from robust_cases import clusters, extreme_points, random_point, robust_problem, robust_program

from convexnn import Robust, Status, lower_worst_case, train
from convexnn.data import read_loss
from convexnn.errors import InvalidInputError, InvalidTypeError
from convexnn.network import from_torch, to_torch
from convexnn.problem import Problem
from convexnn.programs import ConvexPoint
from convexnn.robust import majorise as majorise_module
from convexnn.robust.ball import NORMS, Ball, read_ball
from convexnn.robust.certified import Signed, certified_objective
from convexnn.robust.descent import descend
from convexnn.robust.duality import judge_robust
from convexnn.robust.first_order import as_sloped, dual_of, solve_first_order
from convexnn.robust.majorise import majorise, touching
from convexnn.robust.program import LOSSES
from convexnn.robust.sloped import SlopedProgram, ends_of
from convexnn.robust.smoothed import Smoothed
from convexnn.robust.working_set import solve_working_set
from convexnn.solvers.answer import ProgramLimits
from convexnn.solvers.quasi_newton import Valued, minimise

every_loss = pytest.mark.parametrize("loss", LOSSES)
every_norm = pytest.mark.parametrize("norm", NORMS)
every_solve = pytest.mark.parametrize(
    ("loss", "norm"),
    [
        (loss, norm) if "linf" in norm or loss == "hinge" else pytest.param(loss, norm, marks=pytest.mark.slow)
        for loss in LOSSES
        for norm in NORMS
    ],
)
pytestmark = pytest.mark.usefixtures("unchecked")


def sloped_program(loss, norm, seed=0, n=14, K=6):
    """Random signs and fractional slopes."""
    problem = robust_problem(loss, n, 3, seed)
    ball = read_ball([0.1, 0.25, 0.15], norm, 3, hidden_bias=True)
    slopes = torch.rand((len(ends_of(problem)), K, n), generator=seeded(seed), dtype=torch.float64)
    slopes[:, 0], slopes[:, 1] = 0.0, 1.0
    return SlopedProgram(problem, ball, torch.tensor([1.0, -1.0] * (K // 2)).double(), slopes)


def worst_loss(problem, ball, neurons, seed=0):
    """The weighted sum of the worst losses at the corners of every ball, and points inside."""
    shifts = torch.cat([extreme_points(ball, seed), ball.sample((200,), seeded(seed)), torch.zeros(1, len(ball.radii))])
    total = 0.0
    for k in range(len(problem.X)):
        f, y = neurons(problem.X[k] + shifts)[:, 0], problem.loss.targets[k, 0]
        if problem.loss.name == "squared":
            worst = 0.5 * (f - y).abs().max() ** 2
        else:
            margin = (y * f).min()
            worst = (1 - margin).clamp(min=0) if problem.loss.name == "hinge" else torch.log1p(torch.exp(-margin))
        total += float(problem.loss.weights[k] * worst)
    return total + problem.weight_decay * float(neurons.half_squared_norm())


@every_loss
@every_norm
def test_sloped_objectives_bound_the_worst_case_and_are_convex(loss, norm):
    """Whatever the slopes, no corner of any ball is worse than the objective says."""
    for seed in range(4):
        program = sloped_program(loss, norm, seed)
        U, V, b = 0.7 * normal(6, 4, seed=seed), 0.7 * normal(6, 4, seed=seed + 9), normal(1, seed=seed)
        value = program.objective(U, b)
        assert worst_loss(program.problem, program.ball, program.network(U, b)) <= value + 1e-12
        for share in (0.3, 0.8):
            chord = share * value + (1 - share) * program.objective(V, -b)
            assert program.objective(share * U + (1 - share) * V, (2 * share - 1) * b) <= chord + 1e-12


@every_loss
@every_norm
def test_soft_programs_are_slopes_of_zero_and_one(loss, norm):
    program = robust_program("soft", loss, norm)
    for seed in range(3):
        point = random_point(program, seed)
        value = as_sloped(program).objective(point.U.reshape(-1, 4), point.bias)
        assert value == pytest.approx(program.objective(point), rel=1e-12)


@every_loss
@every_norm
@pytest.mark.parametrize("width", [0.5, 1e-4])
def test_smoothed_objectives_are_below_by_a_multiple_of_the_width_and_their_gradients_are_right(loss, norm, width):
    program = sloped_program(loss, norm)
    smoothed = Smoothed(program, width)
    U, b = 0.7 * normal(6, 4, seed=3), normal(1, seed=3)
    x, exact = smoothed.joined(U, b), program.objective(U, b)
    centre = smoothed.evaluate(smoothed.joined(-U, b), smoothed.centre()).maximisers
    for some in (smoothed.centre(), centre):
        at = smoothed.evaluate(x, some)
        assert float(at.value) <= exact + 1e-12
        assert float(at.value) >= exact - 30 * width * (1 + exact)
        move = normal(len(x), seed=5)
        step = 1e-6 * min(1.0, width)
        up, down = (float(smoothed.evaluate(x + s * step * move, some).value) for s in (1, -1))
        assert float(at.gradient @ move) == pytest.approx((up - down) / (2 * step), rel=1e-4, abs=1e-7)
    # Centred at its own maximisers nothing is lost.
    own = smoothed.evaluate(x, Smoothed(program, 1e-9).evaluate(x, centre).maximisers)
    assert float(own.value) == pytest.approx(exact, rel=1e-6, abs=1e-6)


@every_loss
@every_norm
def test_maximisers_are_points_of_the_dual(loss, norm):
    """The judge's correlations of the dual point are minus the gradient of the smoothed loss, block by block."""
    program = robust_program("soft", loss, norm)
    sloped = as_sloped(program)
    smoothed = Smoothed(sloped, 0.1)
    U, b = 0.3 * normal(12, 4, seed=1), normal(1, seed=2)
    at = smoothed.evaluate(smoothed.joined(U, b), smoothed.centre())
    dual = dual_of(program, sloped, at)
    pulled = program.signs * (program.mask @ (dual.net[:, None] * program.problem.X - dual.total[:, None] * dual.worst))
    pulled = pulled + (program.sides * dual.multipliers) @ program.problem.X
    own = program.ball.radii * at.maximisers.own.reshape(2, 6, 4)
    pulled = pulled - dual.multipliers.sum(-1, keepdim=True) * own
    gradient, _ = smoothed.split(at.gradient)
    penalty = program.problem.weight_decay * at.maximisers.unit
    torch.testing.assert_close((gradient - penalty).reshape(2, 6, 4), -pulled)
    judged = judge_robust(program, ConvexPoint(U.reshape(2, 1, 6, 4), b), dual)
    assert judged.bound <= judged.objective


@pytest.mark.parametrize(
    ("loss", "norm"),
    [("hinge", "linf"), ("logistic", "l2"), pytest.param("squared", "l1", marks=pytest.mark.slow)],
)
def test_first_order_and_interior_point_agree(loss, norm):
    program = robust_program("soft", loss, norm, n=20, P=6)
    exact = solve_working_set(program, ProgramLimits(1e-6)).judgement
    answer = solve_first_order(program, ProgramLimits(1e-3))
    judged = answer.judgement
    assert exact.bound <= judged.objective <= exact.objective * (1 + 2e-2)
    assert judged.bound <= exact.objective
    again = judge_robust(program, judged.point, judged.dual)
    assert again.objective == pytest.approx(judged.objective, rel=1e-12)
    assert [e.objective for e in answer.trace] == sorted((e.objective for e in answer.trace), reverse=True)


def test_quasi_newton_finds_the_minimum_of_a_quadratic_and_uses_its_metric():
    def at(x):
        return Valued(0.5 * x @ (H * x) - x.sum(), H * x - 1)

    H = torch.logspace(0, 4, 30, dtype=torch.float64)
    plain = minimise(at, torch.zeros(30, dtype=torch.float64), max_calls=60)
    scaled = minimise(at, torch.zeros(30, dtype=torch.float64), max_calls=60, metric=lambda g: g / H)
    torch.testing.assert_close(scaled.x, 1 / H, rtol=1e-6, atol=0)
    assert scaled.n_calls < plain.n_calls or float((plain.x - 1 / H).norm()) > 1e-6
    assert plain.n_calls <= 60 + 25


def network_and_problem(loss, norm, seed=0, eps=0.12):
    problem = robust_problem(loss, 16, 3, seed)
    return problem, read_ball(eps, norm, 3, hidden_bias=True), random_neurons(7, 4, seed=seed)


@every_loss
@every_norm
def test_majorants_touch_the_certified_loss_and_are_above_it_elsewhere(loss, norm):
    problem, ball, neurons = network_and_problem(loss, norm)
    signed = Signed.of(neurons)
    program = touching(problem, ball, signed)
    balanced = neurons.balanced()
    assert program.objective(signed.u, signed.bias) == pytest.approx(
        certified_objective(problem, ball, balanced), rel=1e-12
    )
    known = program.slopes.mT.expand(2, -1, -1)
    for seed in range(5):
        U, b = signed.u + 0.3 * normal(7, 4, seed=seed), signed.bias + 0.1 * normal(1, seed=seed)
        value, moved = program.objective(U, b), program.network(U, b)
        assert certified_objective(problem, ball, moved, known) <= value + 1e-12
        assert worst_loss(problem, ball, moved) <= value + 1e-12


@every_solve
def test_certified_objectives_fall_and_stay_above_the_worst_case(loss, norm):
    problem, ball, neurons = network_and_problem(loss, norm, seed=1)
    found = majorise(problem, ball, neurons, ProgramLimits(1e-2, max_steps=2))
    before = certified_objective(problem, ball, neurons.balanced())
    assert found.history[0] == pytest.approx(before, rel=1e-12)
    assert list(found.history) == sorted(found.history, reverse=True)
    assert found.objective < 0.9 * before
    assert certified_objective(problem, ball, found.neurons, found.slopes) <= found.objective * (1 + 1e-8)
    assert worst_loss(problem, ball, found.neurons) <= found.objective + 1e-12


def data(seed=0):
    X, which = clusters(24, 3, seed)
    return X[:, :-1].numpy(), np.where(which.numpy() % 2 == 0, 1.0, -1.0)


def torch_network(seed=0, *, hidden_bias=True, output_bias=True):
    return to_torch(random_neurons(6, 3 + hidden_bias, seed=seed), hidden_bias=hidden_bias, output_bias=output_bias)


@pytest.mark.parametrize("biases", list(itertools.product([True, False], repeat=2)))
def test_any_network_can_be_lowered(biases):
    (X, y), hidden = data(), biases[0]
    network = torch_network(hidden_bias=hidden, output_bias=biases[1])
    found = lower_worst_case(network, X, y, robust=0.05, weight_decay=1e-3, max_rounds=2)
    assert found.objective < found.history[0]
    assert found.objective <= found.history[-1] * (1 + 1e-8)  # neurons that only cost are left out
    assert (found.network[0].bias is None, found.network[2].bias is None) == (not hidden, not biases[1])
    with torch.no_grad():  # the loss at the samples themselves is no more than at the worst points
        margin = torch.tensor(y) * found.network(torch.tensor(X))[:, 0]
    assert float((1 - margin).clamp(min=0).mean()) <= found.objective


def test_a_constant_network_comes_back():
    network = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 1)).double()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        network[2].bias.fill_(0.5)
    X, y = normal(12, 3, seed=0).numpy(), np.sign(np.arange(12) - 5.5)
    lowered = lower_worst_case(network, X, y, robust=0.1, weight_decay=1e-2)
    assert lowered.n_neurons == 0
    assert lowered.objective <= 1.0 + 1e-9  # the best constant has a mean hinge of one


def test_rounds_end_three_after_the_best_value_and_return_that_network():
    problem, ball = robust_problem("hinge", 24, 3, 0), read_ball(0.05, "linf", 3, hidden_bias=True)
    start, values, seen = random_neurons(6, 4, 1, seed=0), iter([3.0, 2.0, 2.5, 4.0, 2.1]), []

    def held_out(neurons):
        seen.append(neurons)
        return next(values, 2.0)

    found = majorise(problem, ball, start, ProgramLimits(1e-6, max_steps=9), held_out=held_out)
    assert found.validation == (3.0, 2.0, 2.5, 4.0, 2.1)
    assert found.status is Status.STALLED
    assert found.objective == found.history[1]
    assert certified_objective(problem, ball, found.neurons, found.slopes) <= found.history[1] * (1 + 1e-9)
    torch.testing.assert_close(found.neurons(problem.X), seen[1](problem.X), rtol=1e-2, atol=1e-3)


def test_held_out_samples_choose_the_round():
    """The network is that of the round with the least worst case on them, and rounds end three later at most."""
    (X, y), (X_other, y_other) = data(), data(5)
    settings = {"robust": 0.05, "weight_decay": 1e-3, "max_rounds": 7, "tol": 1e-4}
    network = torch_network()
    found = lower_worst_case(network, X, y, validation=(X_other, -y_other), **settings)  # what is learnt is wrong there
    best = found.validation.index(min(found.validation))
    assert len(found.validation) == len(found.history) <= best + 1 + 3  # or before, where rounds gain nothing
    assert found.objective == pytest.approx(found.history[best], rel=1e-3)  # neurons that only cost are left out
    loss = read_loss("hinge", -y_other, 24)
    samples = Problem(torch.cat([torch.tensor(X_other), torch.ones(24, 1).double()], 1), loss, 1e-3)
    ball, neurons = read_ball(0.05, "linf", 3, hidden_bias=True), from_torch(found.network)
    penalty = 1e-3 * float(neurons.half_squared_norm())
    held = certified_objective(samples, ball, neurons) - penalty
    assert held == pytest.approx(min(found.validation), rel=1e-3)
    assert held <= min(found.validation) * (1 + 1e-8)  # of the network that is handed out, not of one with more neurons
    assert worst_loss(samples, ball, neurons) - penalty <= min(found.validation) * (1 + 1e-8)
    plain = lower_worst_case(network, X, y, **settings)
    assert plain.validation == ()
    assert len(plain.history) >= len(found.history)


def test_refinement_by_majorising_certifies_no_less():
    X, y = data()
    settings = {"loss": "hinge", "weight_decay": 1e-3, "n_patterns": 6, "random_state": 0, "robust": 0.1}
    settings |= {"tol": 1e-2, "max_rounds": 2}
    plain = train(X, y, **settings)
    refined = train(X, y, refine="mm", **settings)
    assert refined.objective <= plain.objective
    assert refined.robust == plain.robust  # the program is the same
    other = torch_network(3)
    both = train(X, y, refine="mm", warm_start=other, **settings)
    alone = lower_worst_case(other, X, y, robust=0.1, weight_decay=1e-3, tol=1e-2, max_rounds=2)
    assert both.objective <= alone.objective * (1 + 1e-6)


def test_methods_can_be_chosen():
    X, y = data()
    result = train(
        X, y, loss="hinge", weight_decay=1e-3, robust=0.05, method="first-order", n_patterns=6, tol=1e-2, random_state=0
    )
    assert result.robust.bound <= result.robust.objective
    assert result.objective <= result.robust.objective * (1 + 1e-4)


def test_limits_and_interrupts(monkeypatch):
    X, y = data()
    short = lower_worst_case(torch_network(), X, y, robust=0.05, weight_decay=1e-3, max_seconds=1e-9)
    assert short.status is Status.MAX_SECONDS
    assert short.objective <= short.history[0]
    calls = []

    def second(*args, **settings):
        calls.append(1)
        if len(calls) > 1:
            raise KeyboardInterrupt
        return descend(*args, **settings)

    monkeypatch.setattr(majorise_module, "descend", second)
    stopped = lower_worst_case(torch_network(), X, y, robust=0.05, weight_decay=1e-3)
    assert stopped.status is Status.INTERRUPTED
    assert len(stopped.history) == 2
    assert stopped.objective == pytest.approx(stopped.history[1], rel=1e-8)
    program = robust_program("soft")

    def interrupt(entry):
        raise KeyboardInterrupt

    assert solve_first_order(program, ProgramLimits(1e-9), report=interrupt).status is Status.INTERRUPTED


@pytest.mark.parametrize(
    ("settings", "error", "match"),
    [
        ({"robust": -1.0}, InvalidInputError, "radius -1"),
        ({"robust": Robust(0.1, "l9")}, InvalidInputError, "expected one of linf"),
        ({"loss": "softmax"}, InvalidInputError, "has no worst case here"),
        ({"weight_decay": 0.0}, InvalidInputError, "weight_decay"),
        ({"max_rounds": 0}, InvalidInputError, "max_rounds"),
        ({"robust": "far"}, InvalidTypeError, "is not a radius"),
        ({"validation": np.ones((4, 3))}, InvalidTypeError, "no pair"),
        ({"validation": (np.ones((4, 2)), [0, 1, 0, 1])}, InvalidInputError, "validation has 2 features"),
    ],
)
def test_bad_settings_of_lowering_are_named(settings, error, match):
    X, y = data()
    with pytest.raises(error, match=match):
        lower_worst_case(torch_network(), X, y, **{"robust": 0.1, "weight_decay": 1e-3, **settings})


def test_bad_refinements_and_methods_are_named():
    X, y = data()
    settings = {"loss": "hinge", "weight_decay": 1e-3, "random_state": 0}
    with pytest.raises(InvalidInputError, match="refine='mm' is not known"):
        train(X, y, refine="mm", **settings)
    with pytest.raises(InvalidInputError, match="refine='more' is not known"):
        train(X, y, refine="more", robust=0.1, **settings)
    with pytest.raises(InvalidInputError, match="solves soft cones"):
        train(X, y, method="first-order", robust=Robust(0.02, cones="hard"), **settings)
    with pytest.raises(InvalidInputError, match="'first-order' is not known"):
        train(X, y, method="first-order", **settings)


def test_balls_without_reach_change_nothing():
    """With radius zero the majorant of the own sides is the plain loss."""
    problem, _, neurons = network_and_problem("logistic", "linf")
    ball = Ball(torch.zeros(4, dtype=torch.float64))
    program = touching(problem, ball, Signed.of(neurons))
    signed = Signed.of(neurons)
    assert program.objective(signed.u, signed.bias) == pytest.approx(problem.objective(neurons.balanced()), rel=1e-12)


@pytest.mark.parametrize("norm", NORMS)
def test_a_ball_that_is_a_point_leaves_the_loss_itself(norm):
    X, y = data()
    network = torch_network()
    found = lower_worst_case(network, X, y, robust=Robust(0.0, norm), weight_decay=1e-2, tol=1e-2, max_rounds=1)
    with torch.no_grad():
        f = found.network(torch.from_numpy(X))[:, 0].numpy()
        penalty = 0.5 * 1e-2 * sum(float((weights**2).sum()) for weights in list(found.network.parameters())[:3])
    assert found.objective == pytest.approx(np.maximum(0.0, 1 - y * f).mean() + penalty, rel=1e-9)
    assert found.objective < found.history[0]
