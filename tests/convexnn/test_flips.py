"""Flips: starts across one kink of a local maximum, where the next maximum lies."""

import pytest
import torch
from convexnn_cases import normal, seeded

from convexnn.ascent import ColumnPairs, evaluate
from convexnn.flips import Tried, flips
from convexnn.neurons import no_neurons
from convexnn.pricing import Effort, search, starting_points

# Two samples at 120 degrees: each alone is a local maximum, and so is their sum.
X = torch.tensor([[1.0, 0.0], [-0.5, 0.75**0.5]], dtype=torch.float64)
V = torch.tensor([[0.4], [0.7]], dtype=torch.float64)


def made(X, V, U, number, tried=None, pairs=None):
    return flips(X, V, evaluate(X, V, U), number, scale=1.0, tried=tried or Tried.none(X), pairs=pairs)


def test_without_concave_kinks_a_flip_is_the_maximum_on_the_other_side():
    """z = v_1 x_1 becomes v_1 x_1 + v_2 x_2 as sample 2 turns active; without sample 1 nothing would be left."""
    starts, _ = made(X, V, X[:1], 2)
    assert len(starts) == 1
    torch.testing.assert_close(starts[0], 0.4 * X[0] + 0.7 * X[1])


def test_a_flip_to_the_inactive_side():
    both = 0.4 * X[0] + 0.7 * X[1]
    starts, _ = made(X, V, both[None], 2)
    torch.testing.assert_close(starts[0], 0.7 * X[1])
    torch.testing.assert_close(starts[1], 0.4 * X[0])


def test_the_flip_that_promises_most_comes_first():
    """Gains c^2 |x|^2 / 2 - c |x'z|: 0.7^2/2 - 0.7 * 0.2 > 0 for sample 2, -0.4^2/2 for sample 1."""
    starts, tried = made(X, V, X[:1], 1)
    torch.testing.assert_close(starts[0], 0.4 * X[0] + 0.7 * X[1])
    assert tried.kinks.tolist() == [[False, True]]


def test_no_flip_is_made_twice():
    tried = Tried.none(X)
    for expected in (1, 1, 0, 0):
        starts, tried = made(X, V, (0.4 * X[0] + 0.7 * X[1])[None], 1, tried)
        assert len(starts) == expected


def test_kinks_that_pull_back_are_not_flipped():
    starts, tried = made(X, torch.tensor([[0.4], [-0.7]], dtype=torch.float64), X[:1], 5)
    assert len(starts) == 0
    assert not tried.kinks.any()


@pytest.mark.parametrize("by_pairs", [True, False])
def test_a_flip_is_shortened_by_the_concave_kinks_it_pushes(by_pairs):
    """The step is c_i H^-1 x_i with H = I + c E^2/(2 (t^2 + E^2)^1.5) x x' of the sample that pulls back."""
    Xs = torch.cat([X, torch.tensor([[0.0, 1.0]], dtype=torch.float64)])
    Vs = torch.cat([V, torch.tensor([[-0.3]], dtype=torch.float64)])
    start = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    starts, _ = made(Xs, Vs, start, 1, pairs=ColumnPairs.fit(Xs) if by_pairs else None)
    z, width = 0.4 * start[0], 3e-3 * 0.4
    H = torch.eye(2, dtype=torch.float64)
    H[1, 1] += 0.3 / (2 * width)  # sample 3 sits on its kink: t = 0
    torch.testing.assert_close(starts[0], z + 0.7 * torch.linalg.solve(H, X[1]), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("weight", [0.0, 0.7])
def test_outputs_decide_which_kinks_pull(weight):
    """The weights of the kinks are V b with b the direction that the neuron wants, here the first output."""
    VK = torch.tensor([[0.4, 0.0], [weight, 0.7]], dtype=torch.float64)
    starts, _ = made(X, VK, X[:1], 5)
    assert len(starts) == (weight > 0)
    if weight:
        torch.testing.assert_close(starts[0], 0.4 * X[0] + weight * X[1])


def test_flips_climb_higher_than_the_climb_alone():
    """From one start in six dimensions, flips go on where the ascent ends."""

    def best(number, seed):
        effort = Effort(n_starts=1, hops=0, flips=number, generations=12, patience=12)
        data, dual = normal(60, 6, seed=seed), normal(60, 1, seed=seed + 1) / 60
        nothing = no_neurons(6, torch.zeros(1, dtype=torch.float64))
        start = starting_points(data, dual, nothing, 1, seeded(seed))[:1]
        return search(data, dual, start, effort=effort, scale=6**0.5, generator=seeded(seed)).best()

    gains = [best(64, seed) / best(0, seed) - 1 for seed in range(8)]
    assert min(gains) >= -1e-9
    assert sum(gain > 1e-3 for gain in gains) >= 4
