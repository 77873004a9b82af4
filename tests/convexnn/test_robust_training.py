"""Robust training as users call it: certified objectives, reports, bad input."""

import json

import numpy as np
import pytest
import torch
from convexnn_cases import random_neurons, seeded
from robust_cases import clusters

from convexnn import ConvexReLUClassifier, ConvexReLURegressor, Robust, Status, train
from convexnn.data import read_loss
from convexnn.errors import InvalidInputError, InvalidTypeError
from convexnn.network import from_torch, to_torch
from convexnn.problem import Problem
from convexnn.robust import training
from convexnn.robust.ball import NORMS, read_ball
from convexnn.robust.certified import Signed, certified_objective, lower_bound, output_bounds

pytestmark = pytest.mark.usefixtures("unchecked")


def data(n=24, m=3, seed=0):
    X, which = clusters(n, m, seed)
    return X[:, :-1].numpy(), np.where(which.numpy() % 2 == 0, 1.0, -1.0)


@pytest.mark.parametrize("norm", NORMS)
def test_bounds_of_a_network_hold_on_the_ball_whatever_the_slopes(norm):
    X, _ = clusters(12, 3, 0)
    ball = read_ball([0.1, 0.3, 0.2], norm, 3, hidden_bias=True)
    neurons = random_neurons(9, 4, seed=1)
    bounds = output_bounds(neurons, X, ball)
    f = neurons(X[:, None, :] + ball.sample((400,), seeded(2)))[..., 0]
    assert bool((f.amin(1) >= bounds.low - 1e-12).all())
    assert bool((f.amax(1) <= bounds.high + 1e-12).all())
    for seed in range(5):
        slopes = torch.rand((12, 9), generator=seeded(seed), dtype=torch.float64)
        assert bool((lower_bound(Signed.of(neurons), X, ball, slopes) <= f.amin(1) + 1e-12).all())
    # Without a ball the bounds are the outputs.
    still = output_bounds(neurons, X, ball.scaled(0.0))
    torch.testing.assert_close(still.low, neurons(X)[:, 0])
    torch.testing.assert_close(still.high, neurons(X)[:, 0])


def test_certified_objective_is_at_least_the_plain_one_and_grows_with_the_ball():
    X, which = clusters(12, 3, 0)
    y = np.where(which.numpy() % 2 == 0, 1.0, -1.0)
    problem, neurons = Problem(X, read_loss("logistic", y, 12), 1e-2), random_neurons(5, 4, seed=0)
    ball = read_ball(0.1, "linf", 3, hidden_bias=True)
    values = [certified_objective(problem, ball.scaled(size), neurons) for size in (0.0, 0.5, 1.0, 2.0)]
    assert values[0] == pytest.approx(problem.objective(neurons), rel=1e-12)
    assert values == sorted(values)


@pytest.mark.parametrize("cones", ["hard", "soft"])
@pytest.mark.parametrize("loss", ["hinge", "logistic", "squared"])
def test_training_reaches_its_gap_and_says_what_it_is_worth(cones, loss):
    X, y = data()
    how = Robust(0.03, "linf", cones)
    result = train(X, y, loss=loss, weight_decay=1e-3, robust=how, n_patterns=15, random_state=0)
    assert result.status is Status.SOLVED
    assert result.bound_kind == "sampled-program"
    assert result.gap == result.robust.gap <= 1e-4
    assert result.bound <= result.objective <= result.robust.objective * (1 + 1e-6)
    if cones == "hard":
        assert result.objective == pytest.approx(result.robust.objective, rel=1e-5)
        assert len(result.robust.largest_eps) == result.robust.n_sampled == 15
        assert sum(eps > 0.03 for eps in result.robust.largest_eps) == result.robust.n_surviving
    assert json.loads(result.to_json())["robust"]["cones"] == cones
    assert f"{cones} cones" in str(result)
    if loss == "squared":  # the worst case is no better than the samples themselves
        plain = train(X, y, loss=loss, weight_decay=1e-3, tol=1e-2, random_state=0)
        assert plain.robust is None
        assert plain.bound <= result.objective


def test_a_radius_alone_means_soft_cones_and_methods_agree():
    X, y = data()
    own, reference = (
        train(X, y, loss="hinge", weight_decay=1e-3, robust=0.05, method=method, n_patterns=8, random_state=0)
        for method in ("auto", "reference")
    )
    assert own.robust.cones == "soft"
    assert own.robust.eps == (0.05,)
    assert own.robust.objective == pytest.approx(reference.robust.objective, rel=2e-4)


def test_patterns_of_a_start_can_only_help():
    X, y = data(m=4)
    settings = {"loss": "hinge", "weight_decay": 1e-3, "n_patterns": 6, "random_state": 0}
    first = train(X, y, robust=0.05, **settings)
    other = to_torch(random_neurons(5, 5, seed=0), hidden_bias=True, output_bias=True)
    for cones in ("soft", "hard"):
        alone = train(X, y, robust=Robust(0.05, cones=cones), **settings)
        joined = train(X, y, robust=Robust(0.05, cones=cones), warm_start=other, **settings)
        assert joined.robust.objective <= alone.robust.objective * (1 + 1e-4)
    assert first.robust.n_sampled == 6


def test_refinement_never_raises_the_objective_and_starts_from_any_network():
    X, y = data(m=4)
    settings = {"loss": "hinge", "weight_decay": 1e-3, "n_patterns": 6, "random_state": 0}
    plain = train(X, y, robust=0.1, **settings)
    refined = train(X, y, robust=0.1, refine=True, **settings)
    assert refined.robust.objective <= plain.robust.objective * (1 + 1e-4)
    assert refined.robust.n_surviving >= plain.robust.n_surviving
    # From a network that was not trained robustly: no worse than what its own sides certify.
    other = to_torch(random_neurons(5, 5, seed=0), hidden_bias=True, output_bias=True)
    neurons = from_torch(other).balanced()
    problem = Problem(torch.tensor(np.hstack([X, np.ones((24, 1))])), read_loss("hinge", y, 24), 1e-3)
    ball = read_ball(0.1, "linf", 4, hidden_bias=True)
    before = certified_objective(problem, ball, neurons)
    after = train(X, y, robust=0.1, refine=True, warm_start=other, **settings)
    assert after.robust.objective <= before


def test_estimators_train_robustly():
    X, y = data()
    model = ConvexReLUClassifier(loss="hinge", robust_eps=[0.02, 0.03, 0.02], robust_norm="l2", random_state=0)
    model.fit(X, np.where(y > 0, "yes", "no"))
    assert model.result_.robust.eps == (0.02, 0.03, 0.02, 0.0)[: len(model.result_.robust.eps)]
    assert model.score(X, np.where(y > 0, "yes", "no")) > 0.9
    hard = ConvexReLURegressor(robust_eps=0.02, robust_cones="hard", random_state=0).fit(X, X.sum(1))
    assert hard.result_.robust.cones == "hard"
    assert hard.score(X, X.sum(1)) > 0.8
    with pytest.raises(InvalidInputError, match="have one output"):
        ConvexReLURegressor(robust_eps=0.02).fit(X, X[:, :2])
    with pytest.raises(InvalidInputError, match="take the losses"):
        ConvexReLUClassifier(robust_eps=0.02).fit(X, np.arange(24) % 3)


@pytest.mark.parametrize("size", [1e-4, 1e4])
def test_scaled_targets_scale_the_objective(size):
    """Targets and weight decay times s: the objective times s^2, and no solver may depend on the unit."""
    X, _ = data()
    y, how = X.sum(1), Robust(0.02, "l2")
    one = train(X, y, weight_decay=1e-3, robust=how, n_patterns=8, tol=1e-6, random_state=0)
    many = train(X, size * y, weight_decay=1e-3 * size, robust=how, n_patterns=8, tol=1e-6, random_state=0)
    assert many.status is Status.SOLVED
    assert many.robust.objective == pytest.approx(size**2 * one.robust.objective, rel=3e-6)


def test_heavy_weight_decay_gives_the_constant_network():
    X, y = data()
    result = train(X, y, loss="hinge", weight_decay=30.0, robust=0.02, n_patterns=5, random_state=0)
    assert result.status is Status.NULL
    assert result.n_neurons == 0
    assert result.gap <= 1e-4


def test_an_interrupt_returns_the_constant_network(monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "solve_in_turn", interrupt)
    X, y = data()
    result = train(X, y, loss="hinge", weight_decay=1e-3, robust=0.02, n_patterns=5, random_state=0)
    assert result.status is Status.INTERRUPTED
    assert result.bound == -np.inf


def test_an_interrupted_refinement_keeps_what_came_before(monkeypatch):
    """Before it has judged a point of its own, or after: the first program's network and bound are not lost."""
    X, y = data()
    options = {"loss": "hinge", "weight_decay": 1e-3, "robust": 0.05, "n_patterns": 8, "random_state": 0}
    plain, calls = train(X, y, **options), []

    def interrupt(*_, **__):
        calls.append(1)
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "solve_working_set", interrupt)  # of the refinement
    stopped = train(X, y, refine=True, **options)
    assert len(calls) == 1
    assert stopped.status is Status.INTERRUPTED
    assert (stopped.objective, stopped.bound) == (plain.objective, plain.bound)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"robust": -1.0}, "radius -1"),
        ({"robust": [0.1, 0.2]}, "one for each of the 3 features"),
        ({"robust": 0.1, "method": "scp"}, "'scp' does not train robustly"),
        ({"robust": Robust(0.1, cones="hard"), "refine": True}, "leave refine=False"),
        ({"robust": 0.1, "refine": True, "method": "reference"}, "leave refine=False"),
        ({"robust": 0.1, "prove": "fast"}, "leave prove=None"),
        ({"robust": 0.1, "n_patterns": 0}, "0 patterns were asked for"),
        (
            {"robust": Robust(0.5, "linf", "hard"), "hidden_bias": False},
            "largest radius that one of them survives is 0",
        ),
    ],
)
def test_bad_settings_are_named(settings, match):
    X, y = data()
    with pytest.raises(InvalidInputError, match=match):
        train(X, y, **{"loss": "hinge", "weight_decay": 1e-3, "n_patterns": 20, "random_state": 0, **settings})


def test_bad_descriptions_are_named():
    for arguments, match in [
        ({"cones": "round"}, "cones='round' are not known"),
        ({"patterns": "noise"}, "patterns='noise' is not known"),
    ]:
        with pytest.raises(InvalidInputError, match=match):
            Robust(0.1, **arguments)
    X, y = data()
    with pytest.raises(InvalidInputError, match="expected one of linf, l2, l1"):
        train(X, y, loss="hinge", weight_decay=1e-3, robust=Robust(0.1, "l7"), random_state=0)
    with pytest.raises(InvalidTypeError, match="is not a radius"):
        train(X, y, loss="hinge", weight_decay=1e-3, robust="far", random_state=0)


@pytest.mark.parametrize("cones", ["hard", "soft"])
@pytest.mark.parametrize("loss", ["hinge", "squared"])
def test_a_run_that_is_cut_short_is_no_worse_than_a_constant(cones, loss):
    """The first points of the interior point can be far above the best constant."""
    X, y = data()
    y[:20], scale = 1.0, 1e3 if loss == "squared" else 1.0
    given = {"weight_decay": 1e-2, "n_patterns": 12, "random_state": 0, "robust": Robust(0.02, cones=cones)}
    result = train(X, scale * y, loss=loss, max_seconds=1e-6, **given)
    share = (y > 0).mean()
    constant = 2 * min(share, 1 - share) if loss == "hinge" else 0.5 * scale**2 * y.var()
    assert result.status is Status.MAX_SECONDS
    assert result.objective <= constant * (1 + 1e-9)
    assert result.bound <= result.objective
    assert result.robust.objective <= constant * (1 + 1e-9)


def test_radii_that_are_all_zero_are_no_ball_to_survive():
    X, y = data()
    result = train(
        X, y, loss="hinge", weight_decay=1e-2, n_patterns=6, robust=Robust(0.0, cones="hard"), random_state=0
    )
    assert result.robust.largest_eps == ()


def test_one_sample_is_fitted_by_a_constant():
    """One sample has no gaps to draw patterns from."""
    result = train(np.ones((1, 3)), [2.0], weight_decay=0.1, robust=0.1, random_state=0)
    assert result.status is Status.NULL
    assert result.objective == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize(
    "eps", [[True, False, True], np.array([0.1, 0.1j, 0.1]), ["0.1", "0.1", "0.1"], np.bool_(True), {}, 1j]
)
def test_radii_that_are_no_numbers_are_named(eps):
    X, y = data()
    with pytest.raises(InvalidTypeError, match="is not a radius"):
        train(X, y, loss="hinge", weight_decay=1e-2, robust=eps)


def test_masked_radii_and_norms_that_are_arrays_are_refused():
    X, y = data()
    masked = np.ma.masked_array([0.1, 5.0, 0.1], [0, 1, 0])
    for how, match in ((masked, "masked"), (Robust(0.1, np.array(["linf", "l2"])), "norm")):
        with pytest.raises(InvalidInputError, match=match):
            train(X, y, loss="hinge", weight_decay=1e-2, robust=how)
    with pytest.raises(InvalidInputError, match="cones"):
        Robust(0.1, cones=np.array(["soft", "hard"]))
