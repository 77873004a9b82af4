from itertools import pairwise

import numpy as np
import pytest
import torch

import convexnn
from convexnn.deep.rank_one import penalty_of
from convexnn.errors import InvalidInputError

# slopes of the targets on both sides of zero: one sign, two signs, one side only
TARGETS = {
    "same": (1.5, 0.9),
    "negative": (-1.0, -2.0),
    "opposite": (1.2, -0.8),
    "uneven": (2.0, 0.05),
    "one": (1.0, 0.0),
}


def data(kind, n=25, seed=0):
    rng = np.random.default_rng(seed)
    c, (up, down) = rng.standard_normal(n), TARGETS[kind]
    if kind == "one":
        c = np.abs(c)
    X = np.outer(c, rng.standard_normal(3))
    return X, up * np.maximum(c, 0) + down * np.maximum(-c, 0) + 0.1 * rng.standard_normal(n)


def value(found, X, y, A, B, wd):
    c = X @ found.direction.numpy()
    fit = np.multiply.outer(A, np.maximum(c, 0)) + np.multiply.outer(B, np.maximum(-c, 0))
    one, two = (np.abs(A) + np.abs(B)) ** (2 / 3), np.abs(A) ** (2 / 3) + np.abs(B) ** (2 / 3)
    return 0.5 * ((fit - y) ** 2).mean(-1) + 1.5 * wd * np.where(A * B > 0, one, two)


@pytest.mark.parametrize("wd", [0.003, 0.05, 0.2, 3.0])
@pytest.mark.parametrize("kind", TARGETS)
def test_no_outputs_on_a_fine_grid_are_better(kind, wd):
    X, y = data(kind)
    found = convexnn.train_rank_one(X, y, weight_decay=wd)
    side = np.linspace(-2.5, 2.5, 501)
    A, B = np.meshgrid(side, side, indexing="ij")
    values = value(found, X, y, A, B, wd)
    assert found.objective <= values.min() + 1e-12
    a, b = (grid.flat[values.argmin()] for grid in (A, B))
    fine = np.linspace(-0.01, 0.01, 201)
    closest = value(found, X, y, *np.meshgrid(a + fine, b + fine, indexing="ij"), wd).min()
    assert found.objective == pytest.approx(closest, rel=1e-5)


@pytest.mark.parametrize("kind", TARGETS)
def test_the_module_has_these_outputs_and_this_objective(kind):
    X, y = data(kind)
    found = convexnn.train_rank_one(X, y, weight_decay=0.02)
    F = found.network(torch.from_numpy(X))[:, 0].detach().numpy()
    c = X @ found.direction.numpy()
    np.testing.assert_allclose(
        F, found.on_positive * np.maximum(c, 0) + found.on_negative * np.maximum(-c, 0), atol=1e-12
    )
    weights = sum(float((p.detach() ** 2).sum()) for p in found.network.parameters())
    assert found.objective == pytest.approx(0.5 * ((F - y) ** 2).mean() + 0.01 * weights, rel=1e-12)
    assert 0.5 * weights == pytest.approx(penalty_of(found.on_positive, found.on_negative), rel=1e-9)


def test_no_random_network_has_its_outputs_for_less():
    generator = torch.Generator().manual_seed(0)
    for k in range(3000):
        widths = (1 + k % 4, 1 + k % 3)
        W1 = torch.randn(1, widths[0], generator=generator, dtype=torch.float64)
        W2 = torch.randn(*widths, generator=generator, dtype=torch.float64)
        w3 = torch.randn(widths[1], generator=generator, dtype=torch.float64)
        A, B = (float(torch.relu(torch.relu(side * W1) @ W2) @ w3) for side in (1.0, -1.0))
        penalty = 0.5 * float((W1**2).sum() + (W2**2).sum() + (w3**2).sum())
        assert penalty >= penalty_of(A, B) * (1 - 1e-12)


def adam(X, y, wd, seed, width=4, steps=1500):
    torch.manual_seed(seed)
    sizes, parts = [X.shape[1], width, width, 1], []
    for before, after in pairwise(sizes):
        parts += [torch.nn.Linear(before, after, bias=False), torch.nn.ReLU()]
    network = torch.nn.Sequential(*parts[:-1]).double()
    optimiser = torch.optim.Adam(network.parameters(), lr=2e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        optimiser.zero_grad()
        objective = 0.5 * ((network(X)[:, 0] - y) ** 2).mean() + wd / 2 * sum(
            (p**2).sum() for p in network.parameters()
        )
        objective.backward()
        optimiser.step()
        schedule.step()
    return float(objective.detach())


@pytest.mark.slow
@pytest.mark.parametrize("kind", TARGETS)
def test_no_run_of_gradient_descent_is_better_and_the_best_of_many_is_as_good(kind):
    X, y = data(kind)
    found = convexnn.train_rank_one(X, y, weight_decay=0.02)
    runs = [adam(torch.from_numpy(X), torch.from_numpy(y), 0.02, seed) for seed in range(12)]
    assert min(runs) >= found.objective * (1 - 1e-9)
    assert min(runs) == pytest.approx(found.objective, rel=1e-4)


def test_sample_weights_count_as_repetitions():
    X, y = data("same")
    twice = convexnn.train_rank_one(np.concatenate([X, X[:5]]), np.concatenate([y, y[:5]]), weight_decay=0.02)
    weights = np.where(np.arange(len(X)) < 5, 2.0, 1.0)
    weighted = convexnn.train_rank_one(X, y, weight_decay=0.02, sample_weight=weights)
    assert weighted.objective == pytest.approx(twice.objective, rel=1e-10)


def test_other_data_are_refused():
    X, y = data("same")
    with pytest.raises(InvalidInputError, match="rank 3"):
        convexnn.train_rank_one(np.random.default_rng(0).standard_normal((25, 3)), y, weight_decay=0.1)
    with pytest.raises(InvalidInputError, match="rank 0"):
        convexnn.train_rank_one(np.zeros((25, 3)), y, weight_decay=0.1)
    with pytest.raises(InvalidInputError, match="one output"):
        convexnn.train_rank_one(X, np.stack([y, y], 1), weight_decay=0.1)
