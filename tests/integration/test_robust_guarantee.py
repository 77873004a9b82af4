"""What robust training promises of hard cones, confirmed by the other package: CROWN, linear programs, exact minima."""

import jaxtyping
import numpy as np
import pytest
import torch

import certify
from certify.bounds import METHODS
from certify.ir.from_torch import graph_from_torch
from certify.regions import LpBall
from certify.search.climb import Plan
from certify.search.milp.minimum import minimum
from convexnn import Robust, train

EPS = 0.03


@pytest.fixture
def unchecked():
    """As users run it: types are not checked against the annotations."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def clusters(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    centres, which = rng.uniform(0, 1, (6, 3)), rng.integers(0, 6, n)
    which[:6] = np.arange(6)
    return centres[which] + 0.03 * rng.standard_normal((n, 3)), np.where(which % 2 == 0, 1.0, -1.0)


def worst_margins(network: torch.nn.Sequential, X: torch.Tensor, order: float) -> tuple[torch.Tensor, torch.Tensor]:
    """|f(x)| - eps ||z(x)||_q with the slope z of the network at x; by how much a neuron could change sides."""
    first, last = network[0], network[2]
    activation = first(X)
    z = ((activation > 0) * last.weight[0]) @ first.weight
    reach = EPS * torch.linalg.vector_norm(z, order, dim=1)
    sides = EPS * torch.linalg.vector_norm(first.weight, order, dim=1) - activation.abs()
    return network(X)[:, 0].abs() - reach, sides


@pytest.mark.parametrize(("norm", "order"), [("linf", 1.0), ("l2", 2.0), ("l1", torch.inf)])
@pytest.mark.parametrize("loss", ["hinge", "squared", "logistic"])
@pytest.mark.usefixtures("unchecked")
@torch.no_grad()
def test_certificates_reproduce_the_worst_case_of_hard_cones(norm, order, loss):
    X, y = clusters(16, 0)
    result = train(
        X, y, loss=loss, weight_decay=1e-3, robust=Robust(EPS, norm, "hard"), n_patterns=30, tol=1e-6, random_state=0
    )
    network, inputs = result.network, torch.tensor(X)
    assert result.n_neurons >= 2
    expected, sides = worst_margins(network, inputs, order)
    assert float(sides.max()) <= 1e-9  # no neuron is unstable on the ball of any sample
    crown, lp = (Plan(name, (METHODS[name],), attack=None) for name in ("crown", "lp"))
    for k, x in enumerate(inputs):
        label = int(network(x[None]) > 0)
        plans = (crown, lp) if norm == "linf" and k < 4 else (crown,)
        for plan in plans:
            verdict = certify.verify(network, x, label=label, eps=EPS, norm=norm, method=plan)
            assert verdict.worst_margin == pytest.approx(float(expected[k]), abs=1e-6)
    if norm == "linf":
        graph = graph_from_torch(network, input_shape=(3,))
        for k in range(2):
            sign = 1.0 if network(inputs[k : k + 1]) > 0 else -1.0
            found = minimum(graph, LpBall(inputs[k : k + 1], EPS), torch.tensor([sign], dtype=torch.float64), gap=1e-9)
            assert found.lower == pytest.approx(float(expected[k]), abs=1e-6)
            assert found.upper == pytest.approx(float(expected[k]), abs=1e-6)
    # The certified objective is the mean loss at these margins, and the penalty of the weights.
    correct = torch.sign(network(inputs)[:, 0]) == torch.tensor(y)
    if loss == "hinge" and bool(correct.all()):
        first, last = network[0], network[2]
        weights = sum(float((part**2).sum()) for part in (first.weight, first.bias, last.weight))
        worst = float((1 - expected).clamp(min=0.0).mean())
        assert result.objective == pytest.approx(worst + 0.5 * 1e-3 * weights, rel=1e-9)


@torch.no_grad()
@pytest.mark.usefixtures("unchecked")
def test_soft_cones_certify_what_training_reports():
    X, y = clusters(40, 1)
    result = train(X, y, loss="hinge", weight_decay=1e-3, robust=Robust(0.08), n_patterns=20, random_state=0)
    assert result.robust.cones == "soft"
    assert result.bound <= result.objective <= result.robust.objective * (1 + 1e-6)
    report = certify.certified_accuracy(result.network, X, (y > 0).astype(int), eps=0.08, method="alpha-crown")
    assert report.certified > 0.6
    # A sample that is not certified loses more than one, in a mean hinge loss that training bounded.
    first, last = result.network[0], result.network[2]
    weights = sum(float((part**2).sum()) for part in (first.weight, first.bias, last.weight))
    assert 1 - report.attacked <= result.objective - 0.5 * 1e-3 * weights
