"""Polyhedra whose vertices and dimension are known, and linear programs by brute force."""

import itertools

import cvxpy as cp
import numpy as np
import pytest
from scipy.linalg import null_space

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


def by_trying_all(polytope: Polytope) -> np.ndarray:
    """Every set of coordinates that can vanish together."""
    B, used = polytope.basis, np.flatnonzero(polytope.positive)
    found = []
    for zero in map(list, itertools.combinations(used, B.shape[1])):
        if np.linalg.cond(B[zero]) < 1e9:
            x = polytope.x0 - B @ np.linalg.solve(B[zero], polytope.x0[zero])
            if x.min() > -1e-9:
                found.append(np.round(x, 7) + 0.0)
    return np.unique(np.array(found), axis=0)


def pyramids(q: int) -> Polytope:
    """A cross-polytope, |y|_1 <= 1 in q dimensions: 2^q facets s'y <= 1 as coordinates, half of them at each vertex."""
    signs = np.array(list(itertools.product([1.0, -1.0], repeat=q)))
    return Polytope(null_space(signs.T).T, np.ones(2**q))


@pytest.mark.parametrize(
    "polytope",
    [pyramids(3), pyramids(4), cube(4), simplex(4), *(random_polytope(seed, rows=4, m=10) for seed in range(4))],
)
def test_vertices_are_those_that_trying_all_sets_finds(polytope):
    found = np.unique(np.round(polytope.vertices(), 7) + 0.0, axis=0)
    np.testing.assert_allclose(found, by_trying_all(polytope), atol=2e-7)


def test_counts_of_vertices():
    """2^q of a cube, 2q of a cross-polytope, C(n, k) of a hypersimplex, n! of doubly stochastic matrices."""
    assert len(cube(9).vertices()) == 512
    assert len(pyramids(4).vertices()) == 8
    slices = Polytope(np.block([[np.eye(7), np.eye(7)], [np.ones((1, 7)), np.zeros((1, 7))]]), np.repeat([3, 4], 7) / 7)
    assert len(slices.vertices()) == 35
    sums = np.concatenate([np.kron(np.eye(4), np.ones((1, 4))), np.kron(np.ones((1, 4)), np.eye(4))])
    matrices = Polytope(sums, np.full(16, 0.25))
    assert matrices.dimension == 9
    assert len(matrices.vertices()) == 24


def test_too_many_vertices_are_refused_and_some_of_them_are_given():
    with pytest.raises(InvalidInputError, match="more than 200"):
        cube(10).vertices(most=200)
    found, complete = cube(10).some_vertices(200)
    assert not complete
    assert 200 <= len(found) < 1024
    assert set(np.round(found, 9).ravel()) == {0.0, 1.0}
