"""Rows, samples, slabs, groups and regions in the checker of training proofs: identities in exact arithmetic."""

from fractions import Fraction
from math import floor

import numpy as np
import pytest

from certify.proof.artefact import Dyadic, RejectedError
from certify.proof.check import groups, spheres, trees
from certify.proof.writing import exact, rounded

BITS = spheres.RADIUS_BITS


def number(value, scale):
    return Fraction(value, 1 << scale)


def at(rng, scale, size, low=-1.0, high=1.0):
    """Random integers at a scale."""
    return rounded(rng.uniform(low, high, size), scale).values


def value_of(Q, point, scale):
    """(1, u)'Q(1, u) for a point of fractions."""
    return sum(
        number(q, scale) * a * b for row, a in zip(Q, point, strict=True) for q, b in zip(row, point, strict=True)
    )


def fractions_of(rng, size):
    return [Fraction(int(v), 64) for v in rng.integers(-64, 65, size)]


# ---- rows and the dual point


def test_scaled_rows_have_norms_between_a_half_and_one_and_keep_the_data():
    X = exact(np.array([[3.0, 4.0], [0.01, -0.02], [0.0, 0.0], [1.0, 0.0], [-2.0, 0.0]]))
    rows = spheres.scaled_rows(X)
    for own, row, e, r in zip(X.values, rows.values, rows.exponents, rows.radii, strict=True):
        assert [number(v, X.scale) for v in own] == [number(v, rows.scale) * Fraction(2) ** e for v in row]
        norm = sum(number(v, rows.scale) ** 2 for v in row)
        assert norm == 0 or Fraction(1, 4) <= norm <= 1
        assert number(r - 1, BITS) ** 2 < norm <= number(r, BITS) ** 2 or norm == r == 0


@pytest.mark.parametrize("sign", [1, -1])
def test_the_scaled_dual_point_gives_the_same_sums(sign):
    X, v = exact(np.array([[3.0, 4.0], [0.01, -0.02], [0.25, 0.0]])), exact(np.array([0.5, -7.25, 2.0**-30]))
    rows = spheres.scaled_rows(X)
    w = spheres.scaled_dual(rows, v, sign)
    for k, a in enumerate(v.values):
        x = sign * number(a, v.scale) * number(X.values[k][0], X.scale)
        assert x == number(w.values[k], w.scale) * number(rows.values[k][0], rows.scale)


# ---- single samples


@pytest.mark.parametrize("seed", range(40))
def test_the_quadratic_of_a_sample_is_above_it_and_touches(seed):
    rng = np.random.default_rng(seed)
    low, high = -floor(rng.uniform(0.01, 1) * 2**BITS), floor(rng.uniform(0.01, 1) * 2**BITS)
    base, w = 50, floor(rng.uniform(0.1, 1) * 2**50) * (1 if seed % 2 else -1)
    share = floor(rng.uniform(0, 1) * abs(w))
    if w > 0:
        first, second = floor(rng.uniform(0.05, 2) * 2**base), share * (seed % 3 > 0)
    else:
        first = floor(share * 2.0**BITS / (high - low))
        second = -w - (first * (high - low) >> BITS) - 1
    alpha, beta, gamma = spheres._single(w, (low, high), first, second, "it")
    grid = [Fraction(low) + Fraction(high - low) * k / 400 for k in range(401)] + [Fraction(0)]
    gaps = []
    for t in (g / (1 << BITS) for g in grid):
        above = number(alpha, base) * t * t + number(beta, base + BITS + 1) * t + number(gamma, base + BITS)
        gaps.append(above - number(w, base) * max(t, 0))
    assert min(gaps) >= 0
    if w < 0:
        assert gaps[-1] == 0  # at t = 0 nothing is lost
        assert number(alpha, base) == -number(first, base)
        slack = number(second, base) + number(first, base) * number(high - low, BITS) - number(-w, base)
        assert gaps[-2] == abs(slack) * number(high, BITS)
    else:
        assert number(alpha, base) == number(first, base)
        rest, chord = number(w - second, base), number(second, base) * number(high, BITS) / number(high - low, BITS)
        assert abs(number(beta, base + BITS + 1) - rest / 2 - chord) < Fraction(1, 1 << 45)
        corner = rest**2 / (16 * number(first, base)) - chord * number(low, BITS)
        assert 0 <= number(gamma, base + BITS) - corner < Fraction(1, 1 << 45)


@pytest.mark.parametrize(("w", "first", "second"), [(8, 1, 9), (8, 0, 7), (-8, 0, 9), (-8, 1, 7)])
def test_a_sample_gives_no_more_than_it_has(w, first, second):
    span = (-(1 << BITS), 1 << BITS)
    with pytest.raises(RejectedError, match="more than it has"):
        spheres._single(w, span, first, second, "it")
    assert spheres._single(8, span, 0, 8, "it")
    assert spheres._single(-8, span, 0, 8, "it")
    assert spheres._single(-8, span, 1, 6, "it")


def test_stable_samples_are_linear():
    assert spheres._single(5, (0, 7), 3, 3, "it") == (0, 5 << (BITS + 1), 0)
    assert spheres._single(5, (-7, 0), 3, 3, "it") == (0, 0, 0)
    assert spheres._single(5, (2, 7), 3, 3, "it") == (0, 5 << (BITS + 1), 0)
    assert spheres._single(-5, (-7, -1), 3, 3, "it") == (0, 0, 0)


@pytest.mark.parametrize("seed", range(4))
def test_the_sum_over_samples_alone(seed):
    """The matrix against the sum of the scalar quadratics at random points."""
    rng = np.random.default_rng(seed)
    rows = spheres.scaled_rows(exact(rng.standard_normal((5, 2))))
    base, own = 60, 50
    scales = groups.Scales(own, base, rows.scale, base + 2 * max(rows.scale, BITS + 2) + 4)
    w = at(rng, base, 5)
    low, high = (
        [floor(f * r) for f, r in zip(rng.uniform(a, b, 5), rows.radii, strict=True)] for a, b in ((-1, 0), (0, 1))
    )
    given, singles = [0, 2, 3], []
    for i in given:
        if w[i] > 0:
            singles.append([1 << own, (w[i] >> 1) >> (base - own)])
        else:
            first = (-w[i] << BITS) // (high[i] - low[i]) >> (base - own + 2)
            singles.append([first, (-w[i] >> 1) >> (base - own)])
    Q = spheres._singles(rows, w, (low, high), (given, singles), scales, "it")
    u = fractions_of(rng, 2)
    total = Fraction(0)
    for i, (first, second) in zip(given, singles, strict=True):
        lift = base - own
        alpha, beta, gamma = spheres._single(w[i], (low[i], high[i]), first << lift, second << lift, "it")
        t = sum(number(x, rows.scale) * a for x, a in zip(rows.values[i], u, strict=True))
        total += number(alpha, base) * t * t + number(beta, base + BITS + 1) * t + number(gamma, base + BITS)
    assert value_of(Q, [Fraction(1), *u], scales.whole) == total
    negative = [list(pair) for pair in singles]
    for place in (0, 1):
        negative[1] = [-1 if k == place else v for k, v in enumerate(singles[1])]
        with pytest.raises(RejectedError, match="negative"):
            spheres._singles(rows, w, (low, high), (given, negative), scales, "it")


# ---- slabs


def slab(rng, d):
    omega = rng.standard_normal(d)
    low, high = sorted(rng.uniform(-0.9, 0.9, 2))
    return spheres.Slab(
        rounded(omega / np.linalg.norm(omega), BITS).values, floor(low * 2**BITS), floor(high * 2**BITS)
    )


def test_the_terms_of_slabs():
    rng = np.random.default_rng(0)
    slabs = [slab(rng, 3), slab(rng, 3)]
    scales = groups.Scales(30, 40, 50, 40 + 2 * (BITS + 12) + 4)
    given = [[3, 5, 7], [11, 2, 13]]
    Q = spheres._slabs(slabs, 3, given, scales, "it")
    u = fractions_of(rng, 3)
    total = Fraction(0)
    for part, (a, b, c) in zip(slabs, given, strict=True):
        t = sum(number(o, BITS) * x for o, x in zip(part.omega, u, strict=True))
        up, down = number(part.high, BITS) - t, t - number(part.low, BITS)
        total += number(a, 30) * down + number(b, 30) * up + number(c, 30) * up * down
    assert value_of(Q, [Fraction(1), *u], scales.whole) == total
    for place in range(3):
        wrong = [list(row) for row in given]
        wrong[1][place] = -1
        with pytest.raises(RejectedError, match="negative"):
            spheres._slabs(slabs, 3, wrong, scales, "it")


@pytest.mark.parametrize("seed", range(6))
def test_ranges_hold_on_the_slabs(seed):
    rng = np.random.default_rng(seed)
    rows = spheres.scaled_rows(exact(rng.standard_normal((4, 3))))
    slabs = [slab(rng, 3), slab(rng, 3)][: 1 + seed % 2]
    tilts = [[at(rng, BITS, len(slabs), -0.7, 0.7), at(rng, BITS, len(slabs), -0.7, 0.7)] for _ in range(4)]
    low, high = spheres.exact_ranges(rows, slabs, tilts, "it")
    U = rng.standard_normal((20_000, 3))
    U /= np.linalg.norm(U, axis=1, keepdims=True)
    for part in slabs:
        t = U @ (np.array(part.omega) / 2.0**BITS)
        U = U[(t >= part.low / 2.0**BITS) & (t <= part.high / 2.0**BITS)]
    T = U @ (np.array(rows.values, dtype=float).T / 2.0**rows.scale)
    assert (T.max(0) <= np.array(high) / 2.0**BITS + 1e-9).all()
    assert (T.min(0) >= np.array(low) / 2.0**BITS - 1e-9).all()
    for k, (row, (up, down)) in enumerate(zip(rows.values, tilts, strict=True)):
        for side, tilt, found in ((1, up, high[k]), (-1, down, -low[k])):
            rest = side * np.array(row, dtype=float) / 2.0**rows.scale
            free = 0.0
            for part, q in zip(slabs, tilt, strict=True):
                rest = rest - q / 2.0**BITS * np.array(part.omega) / 2.0**BITS
                free += max(q * part.low, q * part.high) / 2.0 ** (2 * BITS)
            wanted = min(np.linalg.norm(rest) + free, rows.radii[k] / 2.0**BITS)
            assert found / 2.0**BITS == pytest.approx(wanted, abs=1e-9)


def test_ranges_without_slabs_are_the_radii():
    rows = spheres.scaled_rows(exact(np.array([[3.0, 4.0], [1.0, 0.0]])))
    assert spheres.exact_ranges(rows, [], [], "it") == ([-r for r in rows.radii], list(rows.radii))
    with pytest.raises(RejectedError, match="tilts"):
        spheres.exact_ranges(rows, [], [[[0], [0]]] * 2, "it")


def test_slabs_that_cut_nothing_leave_the_radii():
    rows = spheres.scaled_rows(exact(np.array([[3.0, 4.0], [-1.0, 0.0], [0.0, 0.0]])))
    whole = [spheres.Slab([1 << BITS, 0], -(1 << BITS), 1 << BITS)]
    low, high = spheres.exact_ranges(rows, whole, [[[0], [0]]] * 3, "it")
    assert high == rows.radii
    assert low == [-r for r in rows.radii]


def test_trees_give_each_leaf_its_slabs():
    split = {"omega": {"scale": 1, "values": [2, 0]}, "at": {"scale": 2, "values": 1}}
    other = {"omega": {"scale": 0, "values": [3, 4]}, "at": {"scale": 0, "values": -2}}
    tree = {"order": [0, -1, 1, -1, -1], "splits": [split, other], "leaves": ["a", "b", "c"]}
    found = {leaf: slabs for slabs, leaf, _ in trees.leaves_of(tree, 2, "it")}
    one, at_, five, two = 1 << BITS, 1 << (BITS - 2), 5 << BITS, -(2 << BITS)
    assert [(s.low, s.high) for s in found["a"]] == [(-one, at_)]
    assert [(s.low, s.high) for s in found["b"]] == [(at_, one), (-five, two)]
    assert [(s.low, s.high) for s in found["c"]] == [(at_, one), (two, five)]
    assert found["c"][1].omega == [3 << BITS, 4 << BITS]
    for order in ([0, -1, 1, -1], [0, -1, 1, -1, -1, -1], [-1, -1, -1], [0, -1, -1], [2, -1, -1]):
        with pytest.raises(RejectedError):
            list(trees.leaves_of({**tree, "order": order}, 2, "it"))
    for order, leaves in (([0, -1], ["a"]), ([0, -1, 1, -1], ["a", "b"]), ([], [])):  # as many leaves as proofs
        with pytest.raises(RejectedError, match="cover"):
            list(trees.leaves_of({**tree, "order": order, "leaves": leaves}, 2, "it"))


# ---- groups


def random_group(rng, m, d, own):
    def cone():
        e = at(rng, own, d)
        return [floor(sum(v * v for v in e) ** 0.5) + 2, *e]

    pairs = [at(rng, own, 4, 0.0, 1.0) for _ in range(m * (m - 1) // 2)]
    return {
        "indices": list(range(m)),
        "first": [cone() for _ in range(m)],
        "second": [cone() for _ in range(m)],
        "pairs": pairs,
        "pivot": at(rng, own, m, 4.0, 5.0),
    }


def group_setting(seed, m=3, d=2):
    rng = np.random.default_rng(seed)
    rows = spheres.scaled_rows(exact(rng.standard_normal((m, d))))
    own, base = 30, 34
    scales = groups.Scales(own, base, rows.scale, base + 2 * max(rows.scale, BITS + 2) + 4)
    return rng, rows, scales, random_group(rng, m, d, own), at(rng, base, m)


@pytest.mark.parametrize("seed", range(5))
def test_the_lagrangian_of_a_group_is_its_definition(seed):
    rng, rows, scales, given, w = group_setting(seed)
    m, d = 3, 2
    F, B, S = groups.lagrangian(rows.values, w, groups.read_group(given, (m, d), scales, "it"), scales)
    u, s = fractions_of(rng, d), fractions_of(rng, m)
    t = [sum(number(x, rows.scale) * a for x, a in zip(row, u, strict=True)) for row in rows.values]

    def cone(row):
        return number(row[0], scales.own) + sum(number(e, scales.own) * a for e, a in zip(row[1:], u, strict=True))

    wanted = sum(number(a, scales.base) * b for a, b in zip(w, s, strict=True))
    for i in range(m):
        wanted += s[i] * cone(given["first"][i]) + (s[i] - t[i]) * cone(given["second"][i])
        wanted -= number(given["pivot"][i], scales.own) * s[i] * (s[i] - t[i])
    places = [(i, j) for i in range(m) for j in range(i)]
    for (i, j), part in zip(places, given["pairs"], strict=True):
        a, b, c, e = (number(v, scales.own) for v in part)
        wanted += a * s[i] * s[j] + b * s[i] * (s[j] - t[j]) + c * s[j] * (s[i] - t[i])
        wanted += e * (s[i] - t[i]) * (s[j] - t[j])
    point = [Fraction(1), *u]
    found = value_of(F, point, scales.whole) - value_of(S, s, scales.whole)
    found += 2 * sum(
        number(b, scales.whole) * p * x for row, p in zip(B, point, strict=True) for b, x in zip(row, s, strict=True)
    )
    assert found == wanted


@pytest.mark.parametrize("seed", range(3))
def test_the_bound_of_a_group_is_the_maximum_over_s(seed):
    rng, rows, scales, given, w = group_setting(seed)
    group = groups.read_group(given, (3, 2), scales, "it")
    F, B, S = groups.lagrangian(rows.values, w, group, scales)
    Q = groups.group_form(rows.values, w, group, scales)
    unit = 2.0**scales.whole
    f, b, s, q = (np.array([[v / unit for v in row] for row in A]) for A in (F, B, S, Q))
    best = f + b @ np.linalg.solve(s, b.T)
    for _ in range(10):
        p = np.r_[1.0, rng.standard_normal(2)]
        assert 0 <= p @ q @ p - p @ best @ p < 1e-6 * (1 + abs(p @ q @ p))
    with pytest.raises(RejectedError, match="not proved"):
        groups.group_form(
            rows.values,
            w,
            groups.read_group({**given, "pivot": [-v for v in given["pivot"]]}, (3, 2), scales, "it"),
            scales,
        )


@pytest.mark.parametrize("name", ["first", "second"])
def test_multipliers_outside_their_cones_are_rejected(name):
    _, _, scales, given, _ = group_setting(0)

    def reading(rows):
        return groups.read_group({**given, name: rows}, (3, 2), scales, "it")

    for head, accepted in ((5, True), (4, False), (-5, False)):
        rows = [[head, 3, -4], *given[name][1:]]
        if accepted:
            assert reading(rows)
        else:
            with pytest.raises(RejectedError, match="outside its cone"):
                reading(rows)
    for place in range(4):
        pairs = [list(row) for row in given["pairs"]]
        pairs[1][place] = -1
        with pytest.raises(RejectedError, match="negative"):
            groups.read_group({**given, "pairs": pairs}, (3, 2), scales, "it")
    nothing = {"indices": [], "first": [], "second": [], "pairs": [], "pivot": []}
    with pytest.raises(RejectedError, match="none"):
        groups.read_group(nothing, (3, 2), scales, "it")
    zeros = {**given, name: [[0, 0, 0]] * 3, "pairs": [[0] * 4] * 3}
    assert groups.read_group(zeros, (3, 2), scales, "it")
    for indices in ([0, 1, 1], [0, 1, 3], [0, 1, -1]):
        with pytest.raises(RejectedError):
            groups.read_group({**given, "indices": indices}, (3, 2), scales, "it")


# ---- regions


def region(w, delta, weight, X=((3.0, 4.0),)):
    """One sample alone with a / bend 1/2: w > 0."""
    rows = spheres.scaled_rows(exact(np.array(X)))
    leaf = {"scale": 20, "tilts": [], "singles": [[1 << 19, 0]], "slabs": [], "groups": [], "delta": delta}
    spheres.check_region(rows, Dyadic([w], 20), exact(np.array(weight)), ([], leaf, "it"))


def test_a_region_is_accepted_up_to_the_maximum_of_its_quadratic():
    """Row (3/8, 4/8) of norm 5/8, w = 1, a = 1/2: t^2/2 + t/2 + 1/8 at t = 5/8 is 81/128; delta = 145/256 or so."""
    r, weight = 0.625, 81 / 128
    delta = 0.5 * r * r + 0.25 * r  # stationarity of (1, u)'Q(1, u) - delta |u|^2 at u = x / |x|
    for slack, accepted in ((1e-4, True), (-1e-4, False)):
        attempt = (1 << 20, round((delta + max(slack, 0) / 2) * 2**20), weight + slack)
        if accepted:
            region(*attempt)
        else:
            with pytest.raises(RejectedError, match="not proved to be at most"):
                region(*attempt)
    with pytest.raises(RejectedError):
        region(1 << 20, round((delta + 1e-2) * 2**20), weight + 1e-4)
    with pytest.raises(RejectedError):
        region(1 << 20, round((delta - 1e-2) * 2**20), weight + 1e-4)


def test_a_region_lifts_no_sample_twice():
    _, rows, _, given, w = group_setting(0)
    leaf = {"scale": 30, "tilts": [], "singles": [], "slabs": [], "groups": [given, given], "delta": 0}
    with pytest.raises(RejectedError, match="twice"):
        spheres.check_region(rows, Dyadic(w, 34), exact(np.array(100.0)), ([], leaf, "it"))
    big = {**leaf, "groups": [given], "delta": 50 << 30}
    spheres.check_region(rows, Dyadic(w, 34), exact(np.array(100.0)), ([], big, "it"))
