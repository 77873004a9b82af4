"""Quadratic programs over non-negative variables, against scipy and their optimality conditions."""

import numpy as np
import pytest
from scipy.optimize import nnls

from convexnn.nonnegative import nonnegative_minimiser


def instance(k, seed, rows=30):
    rng = np.random.default_rng(seed)
    A, b = rng.standard_normal((rows, k)) + 0.5, rng.standard_normal(rows) + 0.3
    return A, b, rng


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("k", [1, 7, 25])
def test_from_any_start_the_minimiser_of_scipy(k, seed):
    A, b, rng = instance(k, seed)
    expected, _ = nnls(A, b)
    for start in (
        np.zeros(k),
        np.abs(rng.standard_normal(k)),
        rng.standard_normal(k),
        np.where(expected > 0, 1.0, 0.0),
    ):
        x = nonnegative_minimiser(A.T @ A, -A.T @ b, start)
        np.testing.assert_allclose(x, expected, atol=1e-9)


def test_minimiser_at_zero():
    A, _, rng = instance(5, 0)
    x = nonnegative_minimiser(A.T @ A, np.abs(rng.standard_normal(5)), np.ones(5))
    np.testing.assert_array_equal(x, np.zeros(5))


def test_no_variables():
    assert nonnegative_minimiser(np.zeros((0, 0)), np.zeros(0), np.zeros(0)).shape == (0,)


def test_almost_equal_columns_end_in_an_optimum():
    A, b, rng = instance(6, 3)
    A = np.concatenate([A, A + 1e-7 * rng.standard_normal(A.shape)], 1)
    H = A.T @ A + 1e-9 * np.eye(12)
    x = nonnegative_minimiser(H, -A.T @ b, np.zeros(12))
    slope = H @ x - A.T @ b
    assert x.min() >= 0
    assert slope.min() >= -1e-6
    assert np.abs(slope[x > 0]).max() <= 1e-6
