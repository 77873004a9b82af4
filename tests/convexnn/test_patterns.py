"""Activation patterns: every one that is returned exists, none is missing, none is there twice."""

import numpy as np
import pytest
import torch
from convexnn_cases import normal, seeded
from convexnn_references import activation_patterns
from scipy.optimize import linprog

from convexnn.errors import InvalidInputError
from convexnn.patterns import (
    centred,
    enumerate_patterns,
    improvement_probability,
    of_directions,
    pattern_count,
    patterns_needed,
    patterns_of,
    sample_patterns,
)

general_position = pytest.mark.parametrize(
    ("n", "d"), [(1, 1), (6, 1), (9, 2), (7, 3), (12, 3), (9, 4), (6, 5), (3, 5)]
)


def has_interior(X: np.ndarray, pattern: np.ndarray) -> bool:
    """Whether a direction exists with all slacks at least one, by linear programming."""
    A = -np.where(pattern, 1.0, -1.0)[:, None] * X
    return linprog(np.zeros(X.shape[1]), A_ub=A, b_ub=-np.ones(len(X)), bounds=(None, None)).status == 0


def inside(X, patterns):
    return bool(((2.0 * patterns.D - 1) * (patterns.gates @ X.T) > 0).all())


def rows(D):
    return {tuple(row) for row in D.int().tolist()}


@general_position
def test_enumeration_counts_as_the_formula_says(n, d):
    X = normal(n, d, seed=n)
    patterns = enumerate_patterns(X)
    assert len(patterns) == len(rows(patterns.D)) == pattern_count(n, d)
    assert patterns.complete
    assert inside(X, patterns)


def test_enumeration_of_forty_samples():
    X = normal(40, 3, seed=1)
    patterns = enumerate_patterns(X)
    assert len(patterns) == 1562 == pattern_count(40, 3)
    assert inside(X, patterns)


@pytest.mark.parametrize(("n", "d"), [(6, 2), (6, 3), (5, 4)])
def test_enumeration_agrees_with_linear_programs_over_all_signs(n, d):
    X = normal(n, d, seed=3)
    signs = (np.arange(2**n)[:, None] >> np.arange(n)) & 1
    feasible = {tuple(pattern) for pattern in signs if has_interior(X.numpy(), pattern)}
    assert rows(enumerate_patterns(X).D) == feasible


def test_enumeration_agrees_with_rays():
    X = normal(9, 3, seed=5)
    assert rows(enumerate_patterns(X).D) == rows(torch.from_numpy(activation_patterns(X.numpy())))


@pytest.mark.parametrize("kind", ["duplicates", "opposite", "grid", "zero row", "rank", "constant column"])
def test_enumeration_of_samples_in_special_position(kind):
    X = normal(6, 3, seed=2)
    X = {
        "duplicates": torch.cat([X, 2 * X[:2]]),
        "opposite": torch.cat([X, -X[:2]]),
        "grid": torch.cartesian_prod(*[torch.arange(-1.0, 1.5).double()] * 2, torch.ones(1).double()),
        "zero row": torch.cat([X, torch.zeros(1, 3).double()]),
        "rank": X[:, :2] @ normal(2, 3, seed=4),
        "constant column": torch.cat([X, torch.ones(6, 1).double()], 1),
    }[kind]
    live = X[X.norm(dim=1) > 0].numpy()
    found = enumerate_patterns(X)
    of_live = found.D[:, X.norm(dim=1) > 0].numpy()
    assert len(np.unique(of_live, axis=0)) == len(of_live)
    signs = (np.arange(2 ** len(live))[:, None] >> np.arange(len(live))) & 1
    assert len(of_live) == sum(has_interior(live, pattern) for pattern in signs)
    assert len(of_live) <= pattern_count(len(X), int(torch.linalg.matrix_rank(X)))


@pytest.mark.parametrize("width", [1e-5, 1e-7, 1e-8, 1e-9, 1e-10])
def test_enumeration_of_samples_almost_in_special_position(width):
    """Every random direction away from kinks has its pattern in the list, and every listed cone is open."""
    for seed in range(6):
        grid, move = normal(8, 3, seed=seed).sign(), normal(8, 3, seed=seed + 100).round()
        X = grid + width * move
        patterns = enumerate_patterns(X)
        slack = (2.0 * patterns.D - 1) * (patterns.gates @ X.T) / X.norm(dim=1)
        assert float(slack.min()) > 1e-10
        U = normal(2000, 3, seed=seed)
        clear = (U @ X.T).abs().amin(1) > 1e-6
        assert rows(U[clear] @ X.T >= 0) <= rows(patterns.D)


def test_enumeration_announces_what_is_hopeless():
    with pytest.raises(InvalidInputError, match=r"activation patterns, which take .* GiB"):
        enumerate_patterns(normal(500, 20, seed=0))


def test_sampling_is_seeded_and_drops_duplicates():
    X = normal(30, 4, seed=0)
    first, again, other = (sample_patterns(X, 200, seeded(seed)) for seed in (0, 0, 1))
    assert torch.equal(first.D, again.D)
    assert torch.equal(first.gates, again.gates)
    assert not torch.equal(first.D, other.D)
    assert len(first) == len(rows(first.D)) == 200
    assert inside(X, first)
    assert first.n_duplicates == first.n_drawn - 200 > 0


def test_drawn_directions_are_those_up_to_the_last_that_was_needed():
    X = normal(12, 2, seed=0)
    patterns = sample_patterns(X, 15, seeded(3))
    generator = seeded(3)
    gates = [torch.randn((size, 2), generator=generator, dtype=torch.float64) for size in (15, 64, 64, 64)]
    D = (torch.cat(gates) @ X.T >= 0)[: patterns.n_drawn]
    assert len(rows(D)) == 15
    assert len(rows(D[:-1])) == 14


def test_sampling_that_stalls_returns_what_it_found():
    X = normal(5, 3, seed=0).repeat(2, 1)  # the formula for ten samples does not see the duplicates
    patterns = sample_patterns(X, 60, seeded(0))
    assert len(patterns) <= pattern_count(5, 3)
    assert patterns.n_drawn == 100 * 60


@pytest.mark.parametrize("count", [0, -1, 2.5, True, "ten"])
def test_impossible_counts_are_refused(count):
    with pytest.raises(InvalidInputError, match="at least 1"):
        sample_patterns(normal(5, 2, seed=0), count, seeded(0))


def test_more_patterns_than_exist_are_refused():
    with pytest.raises(InvalidInputError, match=r"at most 10; .*exact"):
        sample_patterns(normal(5, 2, seed=0), 11, seeded(0))


def test_centred_directions_keep_their_patterns_and_are_far_from_the_boundary():
    X = normal(40, 5, seed=0)
    before = sample_patterns(X, 50, seeded(0))
    after = centred(X, before)
    assert torch.equal(before.D, after.D)
    assert inside(X, after)
    barrier = [
        -((2.0 * p.D - 1) * (p.gates / p.gates.norm(dim=1, keepdim=True) @ X.T)).log().sum(1) for p in (before, after)
    ]
    assert bool((barrier[1] <= barrier[0] + 1e-6).all())
    signed = 2.0 * after.D - 1
    pull = (signed / (signed * (after.gates @ X.T))) @ X  # at an analytic centre it points along the direction
    assert float(((pull / pull.norm(dim=1, keepdim=True)) * after.gates).sum(1).min()) > 1 - 1e-6


@pytest.mark.parametrize("on_kinks", [0, 1, 2])
def test_patterns_of_a_network_hold_its_neurons(on_kinks):
    X, W = normal(20, 4, seed=0), normal(6, 4, seed=1)
    if on_kinks:  # neurons orthogonal to some samples
        basis = torch.linalg.qr(X[:on_kinks].T).Q
        W = W - W @ basis @ basis.T
    patterns = patterns_of(X, W, seeded(0), around=12)
    assert inside(X, patterns)
    slack = (2.0 * patterns.D[:, None] - 1) * (W @ X.T)[None]
    held = (slack > -1e-12).all(2).any(0)
    assert bool(held.all())
    # A neuron on k kinks lies in 2^k cones, and random moves find them.
    per_neuron = (slack > -1e-12).all(2).sum(0)
    assert int(per_neuron.max()) == 2**on_kinks


def test_joined_patterns_are_distinct():
    X = normal(10, 3, seed=0)
    a, b = sample_patterns(X, 30, seeded(0)), sample_patterns(X, 30, seeded(1))
    both = a.joined(b)
    assert rows(both.D) == rows(a.D) | rows(b.D)
    assert torch.equal(both.D[:30], a.D)
    assert both.n_drawn == a.n_drawn + b.n_drawn
    assert of_directions(X, both.gates).D.equal(both.D)


def test_scenario_count():
    """Both branches, and the converse."""
    assert patterns_needed(9, 0.5, 0.5) == 39  # 10 / 0.25 - 1, below (2 / 0.5)(10 + log 2)
    assert patterns_needed(500, 0.05, 0.1) == int(np.ceil(20 * (501 - np.log(0.05))))
    for n, psi, xi in [(10, 0.1, 0.2), (100, 0.01, 0.05), (1000, 0.4, 0.3), (9, 0.5, 0.5), (50, 0.9, 0.2)]:
        P = patterns_needed(n, psi, xi)
        assert improvement_probability(n, P, psi) <= xi * (1 + 1e-12)
        assert improvement_probability(n, P - 1, psi) > xi
    assert improvement_probability(1000, 10, 0.05) == 1.0


@pytest.mark.parametrize("value", [0.0, 1.0, -0.1, 2.0])
def test_probabilities_are_checked(value):
    with pytest.raises(InvalidInputError, match="between 0 and 1"):
        patterns_needed(10, value, 0.1)
    with pytest.raises(InvalidInputError, match="between 0 and 1"):
        patterns_needed(10, 0.1, value)
