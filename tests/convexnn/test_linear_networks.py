from itertools import pairwise

import cvxpy as cp
import numpy as np
import pytest
import torch
from convexnn_cases import normal

import convexnn
from convexnn.data import read_loss
from convexnn.deep.linear import read_depth
from convexnn.deep.modules import parallel_penalty, standard_penalty
from convexnn.deep.nuclear import Reduced, solve_nuclear
from convexnn.deep.spectral import power_minimiser, power_value, sum_power_minimum
from convexnn.deep.standard import dual_bound
from convexnn.errors import InvalidInputError, InvalidTypeError, UnsupportedNetworkError
from convexnn.problem import Problem


def data(n=40, d=6, K=4, *, white=False, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, d)) * np.geomspace(1, 0.2, d)
    if white:
        X = np.linalg.qr(X - X.mean(0))[0] * np.sqrt(n)
    return X, X @ rng.standard_normal((d, K)) + 0.3 * rng.standard_normal((n, K)) + 1.0


def problem(X, Y, wd, *, bias=True, weights=None):
    return Problem(torch.from_numpy(X), read_loss("squared", Y, len(X), weights), wd, bias)


def by_cvxpy(X, Y, wd, *, bias, weights):
    W, b = cp.Variable((X.shape[1], Y.shape[1])), cp.Variable((1, Y.shape[1]))
    F = X @ W + (np.ones((len(X), 1)) @ b if bias else 0)
    c = np.sqrt(weights / weights.sum())[:, None]
    value = 0.5 * cp.sum_squares(cp.multiply(c, F - Y)) + wd * cp.normNuc(W)
    model = cp.Problem(cp.Minimize(value))
    model.solve(solver="CLARABEL", tol_gap_abs=1e-10, tol_gap_rel=1e-10, tol_feas=1e-10)
    return model.value


@pytest.mark.parametrize("white", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("wd", [0.03, 0.3])
def test_the_parallel_network_of_every_depth_is_the_nuclear_norm_optimum(white, bias, wd):
    X, Y = data(white=white)
    weights = np.ones(len(X)) if white else np.random.default_rng(1).uniform(0.5, 2, len(X))
    expected = by_cvxpy(X, Y, wd, bias=bias, weights=weights)
    for depth in (2, 3, 5):
        found = convexnn.train_linear(X, Y, weight_decay=wd, depth=depth, output_bias=bias, sample_weight=weights)
        assert found.objective == pytest.approx(expected, rel=1e-7)
        assert found.bound == pytest.approx(expected, rel=1e-7)
        assert found.bound_kind == ("closed-form" if white else "duality")
        assert len(found.network) == depth


def test_more_columns_than_samples_are_white_where_samples_are_orthogonal():
    rng = np.random.default_rng(0)
    X = np.linalg.qr(rng.standard_normal((9, 5)))[0].T * 3.0
    Y = rng.standard_normal((5, 3))
    found = convexnn.train_linear(X, Y, weight_decay=0.05, output_bias=False)
    assert found.bound_kind == "closed-form"
    assert found.objective == pytest.approx(by_cvxpy(X, Y, 0.05, bias=False, weights=np.ones(5)), rel=1e-7)


def test_a_bound_of_any_dual_point_is_below_the_objective_of_any_weights():
    X, Y = data()
    of = Reduced.of(problem(X, Y, 0.1))
    best = solve_nuclear(of, 0.1)
    for seed in range(20):
        V = normal(*of.B.shape, seed=seed) + (best.V if seed % 2 else 0)
        W = best.W + 0.1 * normal(*of.B.shape, seed=100 + seed)
        assert of.bound(V, 0.1) <= best.objective + 1e-12
        assert best.bound <= of.loss(W) + 0.1 * float(torch.linalg.svdvals(W).sum())


@pytest.mark.parametrize("depth", [2, 3, 4, 7])
def test_the_scalar_problem_is_solved_globally(depth):
    grid = torch.linspace(0, 4, 400_001, dtype=torch.float64)
    for a, wd in ((1.0, 0.3), (0.4, 0.1), (2.0, 1.5)):
        q = torch.tensor([0.0, 0.1, 0.8, 1.1, 1.9, 3.7], dtype=torch.float64)
        found = power_minimiser(q, a, wd, depth)
        values = power_value(found, q, a, wd, depth)
        for value, one in zip(values, q, strict=True):
            least = float(power_value(grid, one.expand_as(grid), a, wd, depth).min())
            assert float(value) == pytest.approx(least, abs=1e-8)
            assert float(value) <= least + 1e-12


@pytest.mark.parametrize("depth", [2, 3, 4, 6])
def test_the_dual_of_white_data_is_solved_globally(depth):
    side = torch.linspace(0, 2.2, 1101, dtype=torch.float64)
    first, second = torch.meshgrid(side, side, indexing="ij")
    for wd in (0.05, 0.2, 0.5, 0.9):
        for q in (torch.tensor([2.0, 1.9]).double(), torch.tensor([2.0, 0.7]).double()):
            loss = 0.35 * ((first - q[0]) ** 2 + (second - q[1]) ** 2)
            least = float((loss + 0.5 * wd * depth * (first + second) ** (2 / depth)).min())
            found = sum_power_minimum(q, 0.7, wd, depth)
            assert found == pytest.approx(least, abs=2e-5)
            assert found <= least + 1e-12


@pytest.mark.parametrize("white", [False, True])
@pytest.mark.parametrize("depth", [2, 3, 4])
def test_factors_reproduce_outputs_and_objective(white, depth):
    X, Y = data(white=white)
    inputs, targets = torch.from_numpy(X), torch.from_numpy(Y)
    for architecture in ("parallel", "standard"):
        found = convexnn.train_linear(X, Y, weight_decay=0.02, depth=depth, architecture=architecture)
        F = found.network(inputs).detach()
        torch.testing.assert_close(F, inputs @ found.weights + found.bias, rtol=1e-10, atol=1e-10)
        loss = 0.5 * float(((F - targets) ** 2).sum()) / len(X)
        sigma = np.linalg.svd(found.weights.numpy(), compute_uv=False)
        sigma = sigma[sigma > 1e-9 * sigma.max()]
        assert found.rank == len(sigma)
        power = 1 if architecture == "parallel" else 2 / depth
        penalty = (1 if architecture == "parallel" else depth / 2) * (sigma**power).sum()
        assert found.objective == pytest.approx(loss + 0.02 * penalty, rel=1e-9)
        own = parallel_penalty if architecture == "parallel" else standard_penalty
        assert own(found.network) == pytest.approx(penalty, rel=1e-9)


def adam(X, Y, wd, depth, seed, width=5, steps=1500):
    torch.manual_seed(seed)
    sizes = [X.shape[1], *[width] * (depth - 1), Y.shape[1]]
    layers = [torch.nn.Linear(a, b, bias=False) for a, b in pairwise(sizes)]
    network = torch.nn.Sequential(*layers).double()
    optimiser = torch.optim.Adam(network.parameters(), lr=2e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        optimiser.zero_grad()
        penalty = sum((p**2).sum() for p in network.parameters())
        value = 0.5 * ((network(X) - Y) ** 2).sum() / len(X) + wd / 2 * penalty
        value.backward()
        optimiser.step()
        schedule.step()
    return float(value.detach())


@pytest.mark.parametrize("white", [pytest.param(False, marks=pytest.mark.slow), True])
def test_no_run_of_gradient_descent_beats_the_standard_optimum_and_the_best_reaches_it(white):
    X, Y = data(n=30, d=4, K=3, white=white)
    Y = Y - 1.0
    found = convexnn.train_linear(X, Y, weight_decay=0.1, depth=3, architecture="standard", output_bias=False)
    runs = [adam(torch.from_numpy(X), torch.from_numpy(Y), 0.1, 3, seed) for seed in range(2)]
    assert min(runs) >= found.objective * (1 - 1e-9)
    assert min(runs) == pytest.approx(found.objective, rel=1e-4)


def test_the_gap_is_zero_for_two_layers_and_for_rank_one_and_positive_beyond():
    X, Y = data(white=True)
    for wd in (0.02, 0.1):
        two, *more = convexnn.depth_gaps(X, Y, weight_decay=wd)
        assert two.gap < 1e-10
        assert all(one.closed_form and one.rank >= 2 and one.gap > 1e-3 for one in more)
    for single in convexnn.depth_gaps(X, Y[:, 0], weight_decay=0.02):
        assert single.rank == 1
        assert single.gap < 1e-12
    for nothing in convexnn.depth_gaps(X, Y, weight_decay=100.0):
        assert nothing.rank == 0
        assert nothing.gap < 1e-12


def test_the_dual_of_other_data_is_below_the_local_search_and_equal_to_it_at_rank_one():
    X, Y = data()
    for depth in (3, 4):
        many = convexnn.depth_gaps(X, Y, weight_decay=0.05, depths=(depth,))[0]
        single = convexnn.depth_gaps(X, Y[:, 0], weight_decay=0.05, depths=(depth,))[0]
        assert not many.closed_form
        assert many.gap > 1e-2
        assert single.dual <= single.objective
        assert single.gap < 1e-5


@pytest.mark.parametrize("depth", [3, 5])
@pytest.mark.parametrize("wd", [0.01, 0.1, 0.5])
def test_the_bound_of_the_dual_agrees_with_its_closed_form(depth, wd):
    X, Y = data(white=True)
    expected = convexnn.depth_gaps(X, Y, weight_decay=wd, depths=(depth,))[0].dual
    bound, _ = dual_bound(Reduced.of(problem(X, Y, wd)), wd, depth, 1e-7)
    assert bound <= expected + 1e-12
    assert bound == pytest.approx(expected, rel=1e-6)


def test_weight_decay_lowers_the_rank_and_depth_lowers_it_further():
    X, Y = data(white=True)
    ranks = [convexnn.train_linear(X, Y, weight_decay=wd).rank for wd in (0.01, 0.3, 0.6, 5.0)]
    assert ranks == sorted(ranks, reverse=True)
    assert ranks[0] == 4
    assert ranks[-1] == 0


def test_bad_input_is_named():
    X, Y = data()
    with pytest.raises(InvalidInputError, match="at least two"):
        convexnn.train_linear(X, Y, weight_decay=0.1, depth=1)
    with pytest.raises(InvalidTypeError, match="integer"):
        read_depth(2.5)
    with pytest.raises(InvalidInputError, match="not known"):
        convexnn.train_linear(X, Y, weight_decay=0.1, architecture="residual")
    with pytest.raises(InvalidInputError, match="weight_decay"):
        convexnn.train_linear(X, Y, weight_decay=0.0)
    square = torch.nn.Linear(3, 3, bias=False)
    with pytest.raises(UnsupportedNetworkError, match="diagonal"):
        parallel_penalty(torch.nn.Sequential(torch.nn.Linear(5, 3), square, torch.nn.Linear(3, 2)))
    with pytest.raises(UnsupportedNetworkError, match="Linear"):
        standard_penalty(torch.nn.Sequential(torch.nn.Linear(5, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2)))


def test_data_of_zeros_and_constant_targets_give_the_constant_network():
    for X, Y in ((np.zeros((6, 2)), np.arange(6.0)), (data()[0], np.full(40, 2.0))):
        for architecture in ("parallel", "standard"):
            found = convexnn.train_linear(X, Y, weight_decay=0.1, depth=3, architecture=architecture)
            assert found.rank == 0
            assert found.gap < 1e-9
