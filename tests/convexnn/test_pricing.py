"""Pricing: the search for the neuron with the largest correlation, against dense grids."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from convexnn_cases import normal, random_neurons, seeded
from convexnn_references import circle_maximum, correlations, sphere

from convexnn.ascent import Candidates, ColumnPairs, ascend, distinct, evaluate, merge
from convexnn.neurons import Neurons, no_neurons
from convexnn.pricing import Effort, search, starting_points
from convexnn.solvers.sliding import CONFIRMATION, EARLY, ROUND

EFFORTS = {"early": EARLY, "round": ROUND, "confirmation": CONFIRMATION}


def instance(n, d, K, seed=0):
    return normal(n, d, seed=seed), normal(n, K, seed=seed + 1) / n


def found(X, V, effort=ROUND, *, seed=0, pairs=True, known=None):
    neurons = no_neurons(X.shape[1], torch.zeros(V.shape[1], dtype=torch.float64))
    generator = seeded(seed)
    return search(
        X,
        V,
        starting_points(X, V, neurons, effort.n_starts, generator),
        effort=effort,
        scale=float((X**2).sum(1).mean().sqrt()),
        generator=generator,
        known=known,
        pairs=ColumnPairs.fit(X) if pairs else None,
    )


def holds_what_it_says(candidates: Candidates, X, V):
    """Unit directions; values recomputed; output directions; falling order."""
    torch.testing.assert_close(candidates.U.norm(dim=1), torch.ones(len(candidates), dtype=torch.float64))
    values = correlations(X.numpy(), V.numpy(), candidates.U.numpy())
    np.testing.assert_allclose(candidates.values.numpy(), values, rtol=1e-12, atol=1e-15)
    pulls = torch.relu(candidates.U @ X.T) @ V
    torch.testing.assert_close(candidates.B * candidates.values[:, None], pulls, rtol=1e-9, atol=1e-13)
    assert bool((candidates.values.diff() <= 0).all())


@pytest.mark.parametrize("K", [1, 3])
@pytest.mark.parametrize("effort", EFFORTS)
def test_finds_the_maximum_on_the_circle(K, effort):
    for seed in range(4):
        X, V = instance(15, 2, K, seed)
        candidates = found(X, V, EFFORTS[effort])
        holds_what_it_says(candidates, X, V)
        assert candidates.best() == pytest.approx(circle_maximum(X.numpy(), V.numpy()), rel=1e-8)


@pytest.mark.parametrize("K", [1, 2])
def test_finds_the_maximum_on_the_sphere(K):
    grid = sphere(200_000)
    for seed in range(3):
        X, V = instance(20, 3, K, seed)
        candidates = found(X, V)
        holds_what_it_says(candidates, X, V)
        best = correlations(X.numpy(), V.numpy(), grid).max()
        assert best <= candidates.best() <= best * (1 + 1e-3)


def test_one_column():
    X, V = instance(9, 1, 1)
    expected = correlations(X.numpy(), V.numpy(), np.array([[1.0], [-1.0]])).max()
    assert found(X, V).best() == pytest.approx(expected, rel=1e-14)


def test_without_pairs_the_same_maximum():
    """Conjugate gradients and factorised Hessians climb the same hills."""
    for K in (1, 3):
        X, V = instance(15, 2, K, 5)
        assert found(X, V, pairs=False).best() == pytest.approx(found(X, V).best(), rel=1e-8)


@pytest.mark.parametrize("d", [2, 5, 40])
@pytest.mark.parametrize("K", [1, 3])
def test_ascend_never_ends_below_its_start(d, K):
    X, V = instance(30, d, K)
    starts = normal(20, d, seed=3)
    before = evaluate(X, V, starts)
    after = ascend(X, V, starts, scale=d**0.5, levels=(3e-2, 1e-3, 1e-6), steps=5, pairs=ColumnPairs.fit(X))
    holds_what_it_says(after, X, V)
    assert after.best() >= before.best()


@pytest.mark.parametrize("K", [1, 2])
def test_ends_of_the_ascent_are_local_maxima(K):
    """No nearby direction on the circle is better than where a long ascent ends."""
    X, V = instance(12, 2, K)
    starts = evaluate(X, V, normal(20, 2, seed=3)).U
    ends = ascend(X, V, starts, scale=2**0.5, levels=(1e-2, 1e-4, 1e-6, 1e-8), steps=40, pairs=None)
    moved = (ends.U @ starts[0]) < 1 - 1e-12  # the best start is kept as well
    ends = ends.take(moved & (ends.values > 1e-3 * ends.best()))
    step = 1e-4
    turned = ends.U + step * torch.stack([-ends.U[:, 1], ends.U[:, 0]], 1)
    back = ends.U - step * torch.stack([-ends.U[:, 1], ends.U[:, 0]], 1)
    for U in (turned, back):
        values = torch.tensor(correlations(X.numpy(), V.numpy(), (U / U.norm(dim=1, keepdim=True)).numpy()))
        assert bool((values <= ends.values * (1 + 1e-6)).all())


def test_linear_region_has_a_closed_form():
    """Where every sample is positive along u and V is positive, the maximiser is X'V normalised."""
    X, V = normal(10, 3, seed=0).abs(), normal(10, 1, seed=1).abs()
    expected = (X.T @ V)[:, 0]
    candidates = found(X, V)
    assert candidates.best() == pytest.approx(float(expected.norm()), rel=1e-12)
    torch.testing.assert_close(candidates.U[0], expected / expected.norm(), rtol=0, atol=1e-6)


def test_scale_of_the_dual_point_does_not_matter():
    """Climbs are in single precision: values far below one must not underflow."""
    X, V = instance(15, 2, 1)
    best = found(X, V).best()
    for factor in (1e-60, 1e-30, 1e30):
        assert found(X, factor * V).best() == pytest.approx(factor * best, rel=1e-7)


def test_zero_dual_point():
    X, V = instance(15, 2, 1)
    assert found(X, 0 * V).best() == 0.0


def test_known_directions_are_kept():
    X, V = instance(30, 6, 1)
    strong = found(X, V, CONFIRMATION)
    weak = replace(EARLY, n_starts=5, hops=5)
    assert found(X, V, weak, known=strong.U[:3]).best() >= strong.best() * (1 - 1e-12)


def test_more_effort_finds_no_less():
    X, V = instance(60, 10, 1)
    early, confirmed = found(X, V, EARLY).best(), found(X, V, CONFIRMATION).best()
    assert early <= confirmed * (1 + 1e-5)


@pytest.mark.parametrize("K", [1, 3])
def test_deterministic_for_a_seed(K):
    X, V = instance(20, 4, K)
    first, second = found(X, V, seed=7), found(X, V, seed=7)
    assert torch.equal(first.U, second.U)
    assert torch.equal(first.values, second.values)


def test_distinct():
    U = torch.tensor([[1.0, 0], [1, 1e-4], [0, 1], [1, 0], [-1, 0]], dtype=torch.float64)
    U = U / U.norm(dim=1, keepdim=True)
    B = torch.tensor([[1.0], [1], [1], [-1], [1]], dtype=torch.float64)
    values = torch.tensor([5.0, 4, 3, 2, 1], dtype=torch.float64)
    kept = distinct(Candidates(U, B, values), 10)
    assert kept.values.tolist() == [5, 3, 2, 1]
    assert distinct(Candidates(U, B, values), 2).values.tolist() == [5, 3]
    assert len(distinct(Candidates(U[:0], B[:0], values[:0]), 5)) == 0


def test_merge_and_evaluate():
    X, V = instance(9, 3, 2)
    first, second = evaluate(X, V, normal(4, 3, seed=1)), evaluate(X, V, normal(5, 3, seed=2))
    both = merge(first, second)
    holds_what_it_says(both, X, V)
    assert len(both) == 9
    with_zero = torch.cat([normal(2, 3, seed=1), torch.zeros(1, 3, dtype=torch.float64)])
    assert len(evaluate(X, V, with_zero)) == 2
    assert evaluate(X, V, with_zero[2:]).best() == 0.0


@pytest.mark.parametrize("number", [1, 5, 192])
@pytest.mark.parametrize("k", [0, 1, 7])
def test_starting_points(number, k):
    X, V = instance(9, 3, 2)
    neurons = random_neurons(k, 3, 2, seed=1) if k else no_neurons(3, torch.zeros(2, dtype=torch.float64))
    starts = starting_points(X, V, neurons, number, seeded(0))
    assert starts.shape[1] == 3
    assert len(starts) >= number
    assert bool(torch.isfinite(starts).all())


def test_column_pairs_give_the_hessians():
    X, H = normal(11, 4, seed=0), normal(3, 11, seed=1)
    expected = torch.einsum("ia,si,ib->sab", X, H, X)
    torch.testing.assert_close(ColumnPairs(X).hessians(H), expected)
    assert ColumnPairs.fit(torch.zeros(1, 1, dtype=torch.float64).expand(100_000, 200)) is None


def test_settings_of_an_effort():
    assert Effort().levels[-1] >= 1e-7  # the climbs are in single precision
    assert isinstance(random_neurons(2, 2, seed=0), Neurons)
