"""Training: what the result claims, limits and interrupts, and data at the edges."""

import json
import math
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import torch
from convexnn_cases import normal, targets_of
from convexnn_references import circle, correlations, sphere

from convexnn.losses import LOSSES
from convexnn.result import Status, relative_gap
from convexnn.solvers.sliding import SlidingFrankWolfe
from convexnn.training import train

# The parts that training is made of are tested with their shapes checked.
pytestmark = pytest.mark.usefixtures("unchecked")

# The kink of the hinge takes many rounds: one training is enough by default.
QUICK = [pytest.param(loss, marks=pytest.mark.slow) if loss == "hinge" else loss for loss in LOSSES]
TOL = {"squared": 1e-3, "logistic": 1e-3, "softmax": 1e-2, "hinge": 3e-2}  # what takes about a second
biases = pytest.mark.parametrize(("hidden_bias", "output_bias"), [(h, o) for h in (False, True) for o in (False, True)])


def data(loss, n=15, d=3, seed=0):
    return normal(n, d, seed=seed).numpy(), targets_of(loss, n, seed)


def objective_of(network, X, y, loss, weight_decay, weights=None):
    """J by numpy alone, from the weights of the module."""
    first, last = network[0], network[2]
    X = np.asarray(X, dtype=float)
    parts = [p.detach().double().numpy() for p in (first.weight, last.weight)]
    hidden = X @ parts[0].T + (0 if first.bias is None else first.bias.detach().numpy())
    F = np.maximum(hidden, 0) @ parts[1].T + (0 if last.bias is None else last.bias.detach().numpy())
    squares = sum((p**2).sum() for p in parts) + (0 if first.bias is None else float((first.bias.detach() ** 2).sum()))
    y = np.asarray(y)
    if loss == "squared":
        each = 0.5 * ((F - y.reshape(len(X), -1)) ** 2).sum(1)
    elif loss == "softmax":
        each = np.log(np.exp(F).sum(1)) - F[np.arange(len(X)), y]
    else:
        margin = np.where(y > 0, 1, -1) * F[:, 0]
        each = np.log1p(np.exp(-margin)) if loss == "logistic" else np.maximum(1 - margin, 0)
    weights = np.ones(len(X)) if weights is None else weights
    return float(weights @ each / weights.sum() + weight_decay / 2 * squares)


@biases
@pytest.mark.parametrize("loss", QUICK)
def test_result_keeps_its_promises(loss, hidden_bias, output_bias):
    X, y = data(loss)
    options = {"hidden_bias": hidden_bias, "output_bias": output_bias, "tol": TOL[loss], "random_state": 0}
    result = train(X, y, loss=loss, weight_decay=0.02, **options)
    assert result.objective == pytest.approx(objective_of(result.network, X, y, loss, 0.02), rel=1e-12)
    assert result.bound <= result.objective
    assert result.gap == pytest.approx((result.objective - result.bound) / result.objective)
    assert result.status is Status.CONVERGED
    assert result.gap <= TOL[loss]
    assert result.bound_kind == "local-search"
    assert result.n_neurons == result.network[0].out_features
    assert (result.network[0].bias is not None, result.network[2].bias is not None) == (hidden_bias, output_bias)
    assert (result.loss, result.method, result.weight_decay) == (loss, "global", 0.02)
    # Rounds: time goes on, the best network never gets worse, and the last entry is the answer.
    trace = result.trace
    assert len(trace) == result.n_rounds
    assert all(a.seconds <= b.seconds for a, b in pairwise(trace))
    assert all(a.objective >= b.objective for a, b in pairwise(trace))
    assert trace[-1].objective == pytest.approx(result.objective, rel=1e-12)
    assert trace[-1].bound == result.bound
    assert trace[-1].seconds <= result.seconds
    # Balanced: no rescaling of a neuron lowers the penalty.
    W = [result.network[0].weight] + ([result.network[0].bias[:, None]] if hidden_bias else [])
    torch.testing.assert_close(torch.cat(W, 1).norm(dim=1), result.network[2].weight.norm(dim=0), rtol=1e-6, atol=0)


def test_result_as_json_and_text():
    X, y = data("squared")
    result = train(X, y, weight_decay=0.02, tol=1e-2, random_state=0)
    read = json.loads(result.to_json())
    assert read["objective"] == result.objective
    assert read["status"] == "CONVERGED"
    assert len(read["trace"]) == result.n_rounds
    assert "local-search" in str(result)
    assert "CONVERGED" in str(result)


def test_relative_gap():
    assert relative_gap(2.0, 1.0) == 0.5
    assert relative_gap(1.0, 2.0) == 0.0
    assert relative_gap(0.0, -1.0) == math.inf
    assert relative_gap(1e-16, 0.0, floor=1e-13) == 0.0


def null_level(X, y, directions, hidden_bias, output_bias):
    """max |v'(Xu)_+| at the residual of the best constant network, squared loss."""
    columns = np.concatenate([X, np.ones_like(X[:, :1])], 1) if hidden_bias else X
    residual = (y - y.mean() * output_bias) / len(y)
    return correlations(columns, residual[:, None], directions).max()


@pytest.mark.parametrize(
    ("d", "hidden_bias", "directions"),
    [
        (1, False, np.array([[1.0], [-1.0]])),
        (1, True, circle(100_000)),
        (2, False, circle(100_000)),
        (2, True, sphere(200_000)),
    ],
)
@pytest.mark.parametrize("output_bias", [False, True])
def test_null_level(d, hidden_bias, directions, output_bias):
    """Just above it the constant network is optimal, just below it is not."""
    X, y = data("squared", 15, d, seed=3)
    level = null_level(X, y, directions, hidden_bias, output_bias)
    options = {"hidden_bias": hidden_bias, "output_bias": output_bias, "random_state": 0, "tol": 1e-8}
    above = train(X, y, weight_decay=1.001 * level, **options)
    assert above.status is Status.NULL
    assert above.n_neurons == 0
    assert above.gap <= 1e-8
    assert above.objective == pytest.approx(0.5 * np.mean((y - y.mean() * output_bias) ** 2), rel=1e-12)
    with torch.no_grad():
        assert float(above.network(torch.from_numpy(X)).std()) == 0.0
    below = train(X, y, weight_decay=0.97 * level, **options)
    assert below.status is not Status.NULL
    assert below.n_neurons >= 1
    assert below.objective < above.objective


@pytest.mark.parametrize("loss", LOSSES)
def test_huge_weight_decay_is_null(loss):
    X, y = data(loss)
    for weight_decay in (10.0, 1e6, 1e100):
        result = train(X, y, loss=loss, weight_decay=weight_decay, random_state=0)
        assert result.status is Status.NULL
        assert result.n_rounds == 1
        assert result.gap <= 1e-4


def test_tiny_weight_decay_interpolates():
    X, y = data("squared", 12, 4)
    result = train(X, y, weight_decay=1e-7, random_state=0, max_seconds=2.0)
    with torch.no_grad():
        F = result.network(torch.from_numpy(X))[:, 0].numpy()
    np.testing.assert_allclose(F, y, atol=1e-2)
    assert result.bound <= result.objective
    assert result.objective < 1e-4


@pytest.mark.parametrize("loss", QUICK)
def test_deterministic_for_a_seed(loss):
    X, y = data(loss)
    first, second = (train(X, y, loss=loss, weight_decay=0.02, tol=TOL[loss], random_state=3) for _ in range(2))
    assert (first.objective, first.bound, first.n_rounds) == (second.objective, second.bound, second.n_rounds)
    for p, q in zip(first.network.parameters(), second.network.parameters(), strict=True):
        assert torch.equal(p, q)


@pytest.mark.slow
def test_every_seed_finds_the_same_objective():
    X, y = data("squared")
    objectives = [train(X, y, weight_decay=0.02, tol=1e-4, random_state=seed).objective for seed in range(3)]
    assert max(objectives) - min(objectives) <= 1e-4 * max(objectives)


def test_seeds_of_every_kind():
    X, y = data("squared")
    for seed in (None, np.int64(5), np.random.default_rng(1), np.random.RandomState(1), 2**32 - 1):
        assert train(X, y, weight_decay=10.0, random_state=seed).gap <= 1e-4


def test_kinds_of_input_agree():
    X, y = data("squared")
    options = {"weight_decay": 0.05, "random_state": 0, "tol": 1e-1}
    expected = train(X, y, **options).objective
    frame = pd.DataFrame(X, columns=["a", "b", "c"])
    mixed = frame.astype({"a": object})
    noncontiguous = np.asfortranarray(np.repeat(X, 2, 1))[:, ::2]
    trainable = torch.from_numpy(X).requires_grad_()
    for given in (frame, mixed, torch.from_numpy(X), trainable, X.tolist(), noncontiguous, X[::-1][::-1]):
        assert train(given, y, **options).objective == expected
    for given in (pd.Series(y, index=np.arange(len(y)) + 7), torch.from_numpy(y), y.tolist(), y[:, None]):
        assert train(X, given, **options).objective == expected


def test_single_precision_inputs():
    X, y = data("squared")
    expected = train(X, y, weight_decay=0.05, random_state=0, tol=1e-4)
    for given in (X.astype(np.float32), torch.from_numpy(X).float(), X.astype(np.float16)):
        rough = 1.1e-4 if given.dtype != np.float16 else 1e-2
        result = train(given, y.astype(np.float32), weight_decay=0.05, random_state=0, tol=1e-4)
        assert result.objective == pytest.approx(expected.objective, rel=rough)
        assert result.network[0].weight.dtype == torch.float64


@pytest.mark.parametrize("loss", QUICK)
def test_solver_in_single_precision(loss):
    X, y = data(loss)
    options = {"loss": loss, "weight_decay": 0.02, "tol": 2e-2, "random_state": 0, "max_rounds": 20}
    result = train(X, y, dtype=torch.float32, **options)
    assert result.objective == pytest.approx(train(X, y, **options).objective, rel=3e-2)
    assert result.objective == pytest.approx(objective_of(result.network, X, y, loss, 0.02), rel=1e-12)
    assert result.bound <= result.objective


def test_integer_and_boolean_inputs():
    X = np.random.default_rng(0).integers(0, 5, (20, 3))
    y = X[:, 0] > X[:, 1]
    result = train(X, y, loss="logistic", weight_decay=0.02, random_state=0, tol=1e-3)
    assert result.objective == pytest.approx(objective_of(result.network, X, y, "logistic", 0.02), rel=1e-12)
    softmax = train(X.astype(np.uint8), y, loss="softmax", weight_decay=0.02, random_state=0, tol=1e-2)
    assert softmax.network[2].out_features == 2


@pytest.mark.parametrize("loss", ["logistic", pytest.param("hinge", marks=pytest.mark.slow)])
def test_zero_and_one_are_minus_one_and_one(loss):
    X, y = data(loss)
    options = {"loss": loss, "weight_decay": 0.05, "random_state": 0, "tol": 1e-3}
    assert train(X, y, **options).objective == train(X, (y + 1) / 2, **options).objective


@pytest.mark.parametrize("loss", QUICK)
def test_sample_weights_equal_repeated_rows(loss):
    X, y = data(loss, 12)
    times = np.array([1, 3, 1, 2, 1, 1, 4, 1, 2, 1, 1, 2])
    options = {"loss": loss, "weight_decay": 0.03, "random_state": 0, "tol": TOL[loss]}
    weighted = train(X, y, sample_weight=times, **options)
    repeated = train(np.repeat(X, times, 0), np.repeat(y, times, 0), **options)
    assert weighted.objective == pytest.approx(repeated.objective, rel=1.1 * options["tol"])
    assert weighted.objective == pytest.approx(objective_of(weighted.network, X, y, loss, 0.03, times), rel=1e-12)
    scaled = train(X, y, sample_weight=1e-9 * times, **options)
    assert scaled.objective == pytest.approx(weighted.objective, rel=1.1 * options["tol"])


@pytest.mark.parametrize("output_bias", [False, True])
@pytest.mark.parametrize(("n", "d"), [(1, 1), (1, 4), (2, 1), (3, 8)])
def test_few_samples(n, d, output_bias):
    X, y = data("squared", n, d)
    result = train(X, y, weight_decay=0.01, output_bias=output_bias, random_state=0)
    assert result.gap <= 1e-4
    assert result.objective == pytest.approx(objective_of(result.network, X, y, "squared", 0.01), rel=1e-12)


def test_one_sample_has_a_closed_form():
    """n = d = 1, no biases: min over m of (m|x| - |y|)^2 / 2 + wd m, so that m|x| = |y| - wd/|x|."""
    for x, y in ((2.0, 3.0), (-2.0, 3.0), (0.5, -1.0)):
        m = max(abs(y) - 0.1 / abs(x), 0) / abs(x)
        expected = 0.5 * (m * abs(x) - abs(y)) ** 2 + 0.1 * m
        result = train([[x]], [y], weight_decay=0.1, hidden_bias=False, output_bias=False, random_state=0, tol=1e-9)
        assert result.objective == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("value", [0.0, 3.0, -1e-3])
def test_constant_targets_cost_nothing(value):
    X, _ = data("squared")
    result = train(X, np.full(len(X), value), weight_decay=0.01, random_state=0)
    assert result.objective == pytest.approx(0.0, abs=1e-20)
    assert result.gap == 0.0
    assert result.n_neurons == 0
    assert result.status is Status.NULL


def test_zero_targets_without_output_bias():
    X, _ = data("squared")
    result = train(X, np.zeros(len(X)), weight_decay=0.01, output_bias=False, random_state=0)
    assert result.objective == 0.0
    assert result.status is Status.NULL


@biases
@pytest.mark.parametrize("loss", ["squared", "logistic"])
def test_columns_of_zeros(loss, hidden_bias, output_bias):
    """No feature says anything: the best constant is all there is."""
    _, y = data(loss, 10)
    result = train(
        np.zeros((10, 2)),
        y,
        loss=loss,
        weight_decay=0.01,
        hidden_bias=hidden_bias,
        output_bias=output_bias,
        random_state=0,
    )
    assert result.gap <= 1e-4
    assert np.isfinite(result.objective)


@pytest.mark.parametrize("change", ["duplicate rows", "duplicate columns", "constant column", "wide"])
def test_degenerate_data(change):
    X, y = data("squared", 10, 3)
    options = {"weight_decay": 0.02, "random_state": 0, "tol": 1e-3}
    expected = train(X, y, **options).objective
    if change == "duplicate rows":
        result = train(np.repeat(X, 3, 0), np.repeat(y, 3), **options)
        assert result.objective == pytest.approx(expected, rel=1.1e-3)
    elif change == "duplicate columns":  # [x, x] / sqrt(2) is x, seen from a larger space
        result = train(np.concatenate([X, X], 1) / 2**0.5, y, **options)
        assert result.objective == pytest.approx(expected, rel=1.1e-3)
    elif change == "constant column":  # another bias: its penalty is shared, so that it cannot be worse
        result = train(np.concatenate([X, np.ones((10, 1))], 1), y, **options)
        assert result.objective <= expected * (1 + 1.1e-3)
    else:
        result = train(normal(10, 50, seed=1), y, **options)
    assert result.gap <= 1e-3


def test_rotated_data_have_the_same_optimum():
    X, y = data("squared", 20, 4)
    Q = np.linalg.qr(normal(4, 4, seed=1).numpy())[0]
    options = {"weight_decay": 0.02, "random_state": 0, "tol": 1e-4}
    assert train(X @ Q, y, **options).objective == pytest.approx(train(X, y, **options).objective, rel=1.1e-4)


@pytest.mark.parametrize("scale", [1e-4, 1e-2, 1e3, 1e6])
def test_scaled_problems_are_equivalent(scale):
    """x -> s x, y -> t y and wd -> s t wd multiply the objective by t^2 (no hidden bias)."""
    X, y = data("squared", 15, 3)
    options = {"hidden_bias": False, "random_state": 0, "tol": 1e-3}
    expected = train(X, y, weight_decay=0.02, **options).objective
    assert train(scale * X, y, weight_decay=0.02 * scale, **options).objective == pytest.approx(expected, rel=1.1e-3)
    scaled = train(X, scale * y, weight_decay=0.02 * scale, **options)
    assert scaled.objective == pytest.approx(scale**2 * expected, rel=1.1e-3)


def test_more_weight_decay_costs_more():
    X, y = data("logistic")
    values = [
        train(X, y, loss="logistic", weight_decay=w, tol=1e-4, random_state=0).objective for w in (0.003, 0.01, 0.1)
    ]
    assert values == sorted(values)


def test_biases_never_hurt():
    X, y = data("squared")
    values = [
        train(X, y, weight_decay=0.02, hidden_bias=h, output_bias=o, tol=1e-3, random_state=0).objective
        for h, o in ((False, False), (True, False), (True, True))
    ]
    assert values[0] >= values[1] * (1 - 1e-3)
    assert values[1] >= values[2] * (1 - 1e-3)


def test_max_rounds():
    X, y = data("squared", 40, 5)
    for rounds in (1, 2, 3):
        result = train(X, y, weight_decay=1e-3, tol=1e-9, max_rounds=rounds, random_state=0)
        assert result.status is Status.MAX_ROUNDS
        assert result.n_rounds == rounds
        assert result.bound <= result.objective
        assert result.objective == pytest.approx(objective_of(result.network, X, y, "squared", 1e-3), rel=1e-12)


def test_max_seconds():
    """A problem far too large for the time: the answer comes soon after the limit, with its own gap."""
    X, y = data("squared", 3000, 60)
    result = train(X, y, weight_decay=1e-4, tol=1e-9, max_seconds=1.0, random_state=0)
    assert result.status is Status.MAX_SECONDS
    assert result.seconds < 10
    assert result.bound <= result.objective
    assert result.objective <= 0.5 * np.var(y)


@pytest.mark.parametrize("method", ["price", "improve"])
@pytest.mark.parametrize("at", [1, 3])
def test_interrupt_keeps_the_best_network(monkeypatch, method, at):
    X, y = data("squared", 40, 5)
    calls, original = [], getattr(SlidingFrankWolfe, method)

    def interrupted(*args, **kwargs):
        calls.append(1)
        if len(calls) == at:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    monkeypatch.setattr(SlidingFrankWolfe, method, interrupted)
    result = train(X, y, weight_decay=1e-3, tol=1e-9, random_state=0)
    assert result.status is Status.INTERRUPTED
    assert result.objective == pytest.approx(objective_of(result.network, X, y, "squared", 1e-3), rel=1e-12)
    assert result.bound <= result.objective
    assert not math.isnan(result.gap)
    if at == 3:
        assert result.objective < 0.5 * np.var(y)


def test_interrupt_of_a_slide(monkeypatch):
    X, y = data("squared", 40, 5)

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("convexnn.solvers.sliding.slide_scalar", interrupted)
    assert train(X, y, weight_decay=1e-3, random_state=0).status is Status.INTERRUPTED


@pytest.mark.parametrize("loss", QUICK)
@pytest.mark.parametrize(("hidden_bias", "output_bias"), [(False, False), (True, True)])
def test_warm_start(loss, hidden_bias, output_bias):
    """From its own answer training ends in no more rounds; from a poor network it still gets there."""
    X, y = data(loss)
    options = {
        "loss": loss,
        "weight_decay": 0.02,
        "hidden_bias": hidden_bias,
        "output_bias": output_bias,
        "tol": TOL[loss],
        "random_state": 0,
    }
    cold = train(X, y, **options)
    warm = train(X, y, warm_start=cold.network, **options)
    assert warm.objective <= cold.objective * (1 + 1e-12)
    assert warm.n_rounds <= cold.n_rounds
    torch.manual_seed(0)
    poor = torch.nn.Sequential(
        torch.nn.Linear(3, 7, bias=hidden_bias),
        torch.nn.ReLU(),
        torch.nn.Linear(7, 3 if loss == "softmax" else 1, bias=output_bias),
    )
    assert train(X, y, warm_start=poor, **options).gap <= TOL[loss]


def test_warm_start_leaves_the_given_network_alone():
    X, y = data("squared")
    network = train(X, y, weight_decay=0.02, tol=1e-2, random_state=0).network
    before = [p.clone() for p in network.parameters()]
    train(X, y, weight_decay=0.01, tol=1e-2, warm_start=network, random_state=0)
    assert all(torch.equal(p, q) for p, q in zip(before, network.parameters(), strict=True))


@pytest.mark.parametrize("output_bias", [False, True])
def test_warm_start_without_biases(output_bias):
    X, y = data("squared")
    last = torch.nn.Linear(4, 1, bias=output_bias)
    start = torch.nn.Sequential(torch.nn.Linear(3, 4, bias=False), torch.nn.ReLU(), last)
    assert train(X, y, weight_decay=0.02, warm_start=start, tol=1e-3, random_state=0).gap <= 1e-3


def test_inputs_are_left_alone():
    X, y = data("squared")
    copies = X.copy(), y.copy()
    train(X, y, weight_decay=0.05, tol=1e-2, random_state=0)
    np.testing.assert_array_equal(X, copies[0])
    np.testing.assert_array_equal(y, copies[1])


def test_global_random_state_is_left_alone():
    X, y = data("squared")
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002
    before = torch.random.get_rng_state().clone(), np.random.get_state()[1].copy()  # noqa: NPY002
    train(X, y, weight_decay=0.05, tol=1e-2, random_state=0)
    assert torch.equal(before[0], torch.random.get_rng_state())
    np.testing.assert_array_equal(before[1], np.random.get_state()[1])  # noqa: NPY002


def test_the_network_can_be_trained_further():
    X, y = data("squared")
    network = train(X, y, weight_decay=0.05, tol=1e-2, random_state=0).network
    network(torch.from_numpy(X)).sum().backward()
    assert all(p.grad is not None for p in network.parameters())


def test_progress_bar(capsys):
    X, y = data("squared")
    train(X, y, weight_decay=0.05, tol=1e-2, random_state=0, progress=True)
    assert "objective" in capsys.readouterr().err
    train(X, y, weight_decay=0.05, tol=1e-2, random_state=0)
    captured = capsys.readouterr()
    assert captured.err == captured.out == ""


def test_wide_networks_are_not_needed():
    """A teacher with three neurons is found with few."""
    X = normal(100, 4, seed=0)
    teacher = torch.relu(X @ normal(4, 3, seed=1)) @ normal(3, 1, seed=2)
    result = train(X, teacher, weight_decay=1e-2, tol=1e-4, random_state=0, hidden_bias=False, output_bias=False)
    assert result.gap <= 1e-4
    assert result.n_neurons <= 12
