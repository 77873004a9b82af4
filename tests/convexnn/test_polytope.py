"""Polyhedra whose vertices and dimension are known, and linear programs by brute force."""

import cvxpy as cp
import numpy as np
import pytest

from convexnn.errors import InvalidInputError
from convexnn.solutions.polytope import Polytope


def simplex(m: int) -> Polytope:
    return Polytope(np.ones((1, m)), np.full(m, 1.0 / m))


def cube(q: int) -> Polytope:
    """Opposite faces as pairs of coordinates that sum to one."""
    return Polytope(np.concatenate([np.eye(q), np.eye(q)], 1), np.full(2 * q, 0.5))


def random_polytope(seed: int, rows: int = 3, m: int = 7) -> Polytope:
    """Bounded: the first row is positive."""
    rng = np.random.default_rng(seed)
    A = np.concatenate([rng.uniform(0.5, 1.5, (1, m)), rng.standard_normal((rows - 1, m))])
    x0 = rng.uniform(0, 1, m)
    x0[:2] = 0.0
    return Polytope(A, x0)


def test_simplex():
    vertices = simplex(5).vertices()
    assert simplex(5).dimension == 4
    np.testing.assert_allclose(vertices[np.argsort(vertices.argmax(1))], np.eye(5), atol=1e-12)
    np.testing.assert_allclose(simplex(5).minimum_norm(), np.full(5, 0.2), atol=1e-12)


def test_cube():
    vertices = cube(3).vertices()
    assert cube(3).dimension == 3
    assert len(vertices) == 8
    assert set(np.round(vertices, 9).ravel()) == {0.0, 1.0}
    np.testing.assert_allclose(cube(3).maximise(np.arange(6.0)), [0, 0, 0, 1, 1, 1], atol=1e-12)


def test_coordinates_that_have_to_vanish_do_not_count():
    """x_1 + x_2 = 0 leaves a simplex in the others."""
    A = np.array([[1.0, 1.0, 0, 0, 0], [0, 0, 1, 1, 1]])
    polytope = Polytope(A, np.array([0, 0, 0.2, 0.3, 0.5]))
    assert polytope.dimension == 2
    assert polytope.positive.tolist() == [False, False, True, True, True]
    assert len(polytope.vertices()) == 3


def test_single_points():
    polytope = Polytope(np.eye(3), np.array([1.0, 0.0, 2.0]))
    assert polytope.dimension == 0
    for x in (polytope.vertices()[0], polytope.minimum_norm(), polytope.maximise(np.ones(3)), polytope.centre):
        np.testing.assert_array_equal(x, polytope.x0)
    assert Polytope(np.zeros((4, 0)), np.zeros(0)).dimension == 0


@pytest.mark.parametrize("seed", range(6))
def test_random_polytopes_against_cvxpy(seed):
    """Every linear maximum is a listed vertex with cvxpy's value; the nearest point to zero is cvxpy's too."""
    polytope, rng = random_polytope(seed), np.random.default_rng(seed + 50)
    vertices = polytope.vertices()
    for x in vertices:
        np.testing.assert_allclose(polytope.A @ x, polytope.A @ polytope.x0, atol=1e-10)
        assert x.min() >= 0
        assert np.count_nonzero(x) <= 3
    variable = cp.Variable(7, nonneg=True)
    inside = [polytope.A @ variable == polytope.A @ polytope.x0]
    for _ in range(5):
        c = rng.standard_normal(7)
        best = cp.Problem(cp.Maximize(c @ variable), inside).solve(solver="CLARABEL")
        x = polytope.maximise(c)
        assert c @ x == pytest.approx(best, abs=1e-6)
        assert c @ x == pytest.approx((vertices @ c).max(), abs=1e-9)
        assert np.abs(vertices - x).max(1).min() < 1e-9
    cp.Problem(cp.Minimize(cp.sum_squares(variable)), inside).solve(solver="CLARABEL")
    np.testing.assert_allclose(polytope.minimum_norm(), variable.value, atol=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_maximin_against_cvxpy(seed):
    polytope, rng = random_polytope(seed), np.random.default_rng(seed + 90)
    M, shift = rng.standard_normal((4, 7)), rng.standard_normal(4)
    variable = cp.Variable(7, nonneg=True)
    inside = [polytope.A @ variable == polytope.A @ polytope.x0]
    best = cp.Problem(cp.Maximize(cp.min(M @ variable + shift)), inside).solve(solver="CLARABEL")
    x, value = polytope.maximin(M, shift)
    assert value == pytest.approx(best, abs=1e-6)
    assert value == pytest.approx((M @ x + shift).min(), abs=1e-12)
    np.testing.assert_allclose(polytope.A @ x, polytope.A @ polytope.x0, atol=1e-9)


def test_too_many_vertices_are_refused_with_their_number():
    with pytest.raises(InvalidInputError, match="184756"):
        cube(10).vertices(most=1000)
