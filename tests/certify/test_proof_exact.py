"""Exact arithmetic of the checker: against fractions, and with and without python-flint."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from certify.proof.artefact import Dyadic, RejectedError, digest, dyadic
from certify.proof.check import exact
from certify.proof.check.exact import at_most_norm, ceil_divide, gram, product, psd, root_up
from certify.proof.writing import as_float, rounded
from certify.proof.writing import exact as as_dyadic

big = st.integers(-(2**200), 2**200)


@pytest.fixture(params=["flint", "integers"])
def arithmetic(request, monkeypatch):
    if request.param == "integers":
        monkeypatch.setattr(exact, "fmpz_mat", None)
    elif exact.fmpz_mat is None:
        pytest.skip("python-flint is not installed")


def test_products_are_exact(arithmetic):
    rng = np.random.default_rng(0)
    A, B = ([[int(v) << 90 for v in row] for row in rng.integers(-(2**60), 2**60, (4, 4)).tolist()] for _ in range(2))
    A[0] = [0, 0, 0, 3]
    expected = [[sum(A[i][k] * B[k][j] for k in range(4)) for j in range(4)] for i in range(4)]
    assert product(A, B) == expected
    assert product(A, [[], [], [], []]) == [[]] * 4
    assert product([[]], []) == [[]]
    assert product([], [[1]]) == []


@given(st.integers(0, 2**300))
def test_roots_are_the_least_integers_above(n):
    root = root_up(n)
    assert root**2 >= n
    assert root == 0 or (root - 1) ** 2 < n


@given(big, st.integers(1, 2**80))
def test_division_rounds_as_it_says(a, b):
    assert ceil_divide(a, b) - 1 < Fraction(a, b) <= ceil_divide(a, b)


def random_gram(rng, n, rank, shift=0):
    L = [[int(v) << shift for v in row] for row in rng.integers(-1000, 1000, (n, rank)).tolist()]
    return gram(L)


@pytest.mark.parametrize("shift", [0, 300])
def test_definite_matrices_are_accepted(arithmetic, shift):
    rng = np.random.default_rng(1)
    for n in (1, 2, 5, 30):
        S = random_gram(rng, n, n + 3, shift)
        spread = [int(v) for v in rng.integers(0, 90, n)]
        assert psd([[v << (spread[i] + spread[j]) for j, v in enumerate(row)] for i, row in enumerate(S)])


def test_zero_rows_are_positive_semidefinite(arithmetic):
    assert psd([])
    assert psd([[0]])
    assert psd([[0, 0], [0, 1]])
    assert not psd([[0, 1], [1, 1 << 60]])


def test_what_is_not_semidefinite_is_never_accepted(arithmetic):
    rng = np.random.default_rng(2)
    for n in (1, 2, 4, 8):
        for _ in range(20):
            S = random_gram(rng, n, n + 2, 60)
            x = [int(v) for v in rng.integers(-5, 6, n)]
            x[0] = x[0] or 1
            size, value = sum(v * v for v in x), sum(S[i][j] * x[i] * x[j] for i in range(n) for j in range(n))
            # Down along x until the form at x is -1 there: just outside the cone.
            S = [[v * size**2 - (value + 1) * x[i] * x[j] for j, v in enumerate(row)] for i, row in enumerate(S)]
            assert sum(S[i][j] * x[i] * x[j] for i in range(n) for j in range(n)) == -(size**2)
            assert not psd(S)


def test_a_lopsided_matrix_is_not_accepted():
    assert not psd([[2, 1], [0, 2]])
    assert not psd([[2, 0], [1, 2]])


@pytest.mark.filterwarnings("error")
def test_huge_entries_warn_of_nothing(arithmetic):
    assert not psd([[1, 1 << 2000], [1 << 2000, 1]])
    assert psd([[1 << 4000, 0], [0, 1]])


def test_norms_need_room_only_for_rounding(arithmetic):
    rng = np.random.default_rng(3)
    for shape in ((6, 3), (3, 6)):
        W = rng.integers(-(2**20), 2**20, shape)
        square = float(np.linalg.norm(W.astype(float), 2) ** 2)
        assert at_most_norm(W.tolist(), int(square * (1 + 1e-7)))
        assert not at_most_norm(W.tolist(), int(square * (1 - 1e-12)))


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=5))
def test_doubles_are_dyadic_rationals(values):
    number = as_dyadic(values)
    assert [Fraction(v, 2**number.scale) for v in number.values] == [Fraction(v) for v in values]
    assert as_float(number).tolist() == values or any(v == 0 for v in values)
    # In a file they come back the same, and a scale that is too fine changes no digest.
    assert dyadic({"scale": number.scale, "values": number.values}, (len(values),), "it") == number
    finer = Dyadic(number.at(number.scale + 7), number.scale + 7)
    assert finer.reduced() == number.reduced()
    assert digest(finer) == digest(number)


@settings(max_examples=30)
@given(st.lists(st.integers(-50, 50), min_size=2, max_size=4), st.integers(0, 3), st.integers(1, 50))
def test_digests_tell_numbers_apart(values, position, change):
    number = Dyadic(values, 3)
    other = list(values)
    other[position % len(values)] += change
    assert digest(Dyadic(other, 3)) != digest(number)
    assert digest(Dyadic(values, 4)) != digest(number) or not any(values)
    assert digest(Dyadic([values], 3)) != digest(number)


def test_rounding_has_a_direction():
    assert rounded([0.3, -0.3], 2, np.floor).values == [1, -2]
    assert rounded([0.3, -0.3], 2, np.ceil).values == [2, -1]
    assert rounded([[0.3], [-0.3]], 2).values == [[1], [-1]]


@pytest.mark.parametrize(
    ("value", "shape", "told"),
    [
        ({"scale": 1}, (), "has no values"),
        ({"scale": 1, "values": 2, "more": 3}, (), "unknown key"),
        ({"scale": -1, "values": 2}, (), "scale"),
        ({"scale": True, "values": 2}, (), "scale"),
        ({"scale": 10**9, "values": 2}, (), "scale"),
        ({"scale": 1, "values": True}, (), "no integers"),
        ({"scale": 1, "values": "2"}, (), "no integers"),
        ({"scale": 1, "values": [1, 2]}, (3,), "has 2 entries"),
        ({"scale": 1, "values": [1, [2]]}, (2,), "no integers"),
        ({"scale": 1, "values": [[1, 2], [3]]}, (2, 2), "has 1 entries"),
        ({"scale": 1, "values": [1, 2]}, (2, 2), "no list"),
        ({"scale": 1, "values": 1 << 5000}, (), "bits"),
        ([1], (), "no object"),
    ],
)
def test_numbers_are_read_strictly(value, shape, told):
    with pytest.raises(RejectedError, match=told):
        dyadic(value, shape, "it")


def test_signs_are_checked():
    with pytest.raises(RejectedError, match="below 0"):
        dyadic({"scale": 1, "values": [1, -1]}, (2,), "it", sign=0)
    with pytest.raises(RejectedError, match="below 1"):
        dyadic({"scale": 1, "values": [1, 0]}, (2,), "it", sign=1)


def test_amplification_is_refused():
    """A few bytes a number, hundreds of bytes each once they are written out at their scale."""
    with pytest.raises(RejectedError, match="too much"):
        dyadic({"scale": 2400, "values": [1] * 999_999}, (None,), "it")
