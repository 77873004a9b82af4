"""Neurons as arrays: what rescaling, merging and pruning may change."""

import pytest
import torch
from convexnn_cases import normal, random_neurons
from convexnn_laws import same_function

from convexnn.neurons import Neurons, no_neurons, unit_rows

shapes = pytest.mark.parametrize(("k", "d", "K"), [(1, 1, 1), (6, 3, 1), (20, 4, 3), (5, 2, 7)])


def test_balancing_a_neuron_of_subnormal_size():
    """The quotient of the norms overflows; its root does not."""
    W, A = torch.tensor([[1e-320], [2.0]], dtype=torch.float64), torch.tensor([[1.0], [0.5]], dtype=torch.float64)
    balanced = Neurons(W, A, torch.zeros(1, dtype=torch.float64)).balanced()
    assert bool(torch.isfinite(balanced.W).all())
    torch.testing.assert_close(balanced.W, balanced.A, rtol=1e-4, atol=0)


@shapes
def test_balanced(k, d, K):
    """The same function, ||w_j|| = ||a_j||, and the least penalty among rescalings."""
    neurons, X = random_neurons(k, d, K, seed=k), normal(30, d, seed=1)
    balanced = neurons.balanced()
    same_function(neurons, balanced, X, 1e-12)
    torch.testing.assert_close(balanced.W.norm(dim=1), balanced.A.norm(dim=1), rtol=1e-12, atol=0)
    assert balanced.half_squared_norm() <= neurons.half_squared_norm()
    torch.testing.assert_close(balanced.half_squared_norm(), neurons.masses().sum(), rtol=1e-12, atol=0)
    again = balanced.balanced()
    torch.testing.assert_close(again.W, balanced.W, rtol=1e-12, atol=0)
    for seed in range(5):
        scale = torch.exp(normal(k, 1, seed=seed))
        other = Neurons(balanced.W * scale, balanced.A / scale, balanced.bias)
        assert other.half_squared_norm() >= balanced.half_squared_norm()


def test_balanced_drops_neurons_without_effect():
    neurons = random_neurons(6, 3, 2, seed=0)
    neurons.W[1], neurons.A[4] = 0.0, 0.0
    balanced = neurons.balanced()
    assert len(balanced) == 4
    same_function(neurons, balanced, normal(20, 3, seed=1), 1e-12)


@pytest.mark.parametrize("scale", [1e-120, 1e-8, 1e8, 1e120])
def test_balanced_of_extreme_scales(scale):
    neurons, X = random_neurons(4, 3, 1, seed=0), normal(20, 3, seed=1)
    extreme = Neurons(neurons.W * scale, neurons.A / scale, neurons.bias)
    same_function(neurons, extreme.balanced(), X, 1e-12)


def test_balanced_of_random_mixtures_never_raises_the_penalty():
    for seed in range(20):
        neurons = random_neurons(8, 3, 2, seed=seed)
        assert neurons.balanced().half_squared_norm() <= neurons.half_squared_norm() * (1 + 1e-15)


@shapes
def test_merged(k, d, K):
    """Parts of one neuron become that neuron again: function and penalty stay."""
    neurons, X = random_neurons(k, d, K, seed=k).balanced(), normal(30, d, seed=1)
    shares = torch.rand(3, k, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    roots = torch.sqrt(shares / shares.sum(0))
    split = Neurons((roots * neurons.W).reshape(-1, d), (roots * neurons.A).reshape(-1, K), neurons.bias)
    same_function(neurons, split, X, 1e-12)
    merged = split.merged()
    assert len(merged) == len(neurons.merged())
    same_function(neurons, merged, X, 1e-12)
    torch.testing.assert_close(merged.half_squared_norm(), split.half_squared_norm(), rtol=1e-12, atol=0)


def test_merged_of_nearly_parallel_neurons():
    neurons, X = random_neurons(1, 4, 1, seed=3).balanced(), normal(50, 4, seed=1)
    nearby = Neurons(
        torch.cat([neurons.W, neurons.W + 1e-5 * normal(1, 4, seed=4)]), neurons.A.repeat(2, 1), neurons.bias
    ).balanced()
    merged = nearby.merged()
    assert len(merged) == 1
    same_function(nearby, merged, X, 1e-6)
    assert merged.half_squared_norm() <= nearby.half_squared_norm() * (1 + 1e-12)


def test_merged_keeps_what_differs():
    """Opposite signs, opposite directions and different outputs are no duplicates."""
    W = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [1.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
    A = torch.tensor([[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    neurons = Neurons(W, A, torch.zeros(2, dtype=torch.float64))
    assert len(neurons.merged()) == 4


def test_merged_chain():
    """A chain in which neighbours are alike but the ends are not still gives the same function."""
    angles = torch.arange(8, dtype=torch.float64) * 3e-4
    W = torch.stack([torch.cos(angles), torch.sin(angles)], 1)
    neurons = Neurons(W, torch.ones(8, 1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)).balanced()
    merged = neurons.merged()
    assert 1 < len(merged) < 8
    same_function(neurons, merged, normal(50, 2, seed=0), 1e-6)


def test_pruned():
    neurons = random_neurons(6, 3, 2, seed=0)
    neurons.W[2] *= 1e-12
    pruned = neurons.pruned()
    assert len(pruned) == 5
    same_function(neurons, pruned, normal(20, 3, seed=1), 1e-10)
    assert len(neurons.pruned(1e-20)) == 6


def test_no_neurons_is_a_constant():
    bias = torch.tensor([2.0, -1.0], dtype=torch.float64)
    nothing = no_neurons(3, bias)
    for neurons in (nothing, nothing.balanced(), nothing.merged(), nothing.pruned()):
        assert len(neurons) == 0
        assert neurons.n_outputs == 2
        torch.testing.assert_close(neurons(normal(5, 3, seed=0)), bias.expand(5, 2))
        assert float(neurons.half_squared_norm()) == 0.0


def test_masses_and_unit_rows():
    neurons = random_neurons(5, 3, 2, seed=0)
    expected = torch.stack([w.norm() * a.norm() for w, a in zip(neurons.W, neurons.A, strict=True)])
    torch.testing.assert_close(neurons.masses(), expected)
    Z = torch.cat([normal(4, 3, seed=1), torch.zeros(1, 3, dtype=torch.float64)])
    torch.testing.assert_close(unit_rows(Z).norm(dim=1), torch.tensor([1.0, 1, 1, 1, 0], dtype=torch.float64))
    assert neurons.to(torch.float32).W.dtype == torch.float32
