"""The pieces of the semidefinite part of the checker, each against its definition in fractions."""

from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from exact_margins import Reading, number

from certify.proof.artefact import Dyadic
from certify.proof.check.exact import _dominant_residual
from certify.proof.check.network import Network
from certify.proof.check.region import Region
from certify.proof.check.rows import Hidden
from certify.proof.check.sdp import Cuts, Multipliers, _inputs, _pixels, _rows_of_zeta, proves

SCALE = 8  # of everything random here


def integers(rng, shape, low=-200, high=201):
    return rng.integers(low, high, shape).tolist()


def fractions(held: Dyadic):
    return number({"scale": held.scale, "values": held.values})


def random_case(rng, n=3, hidden=(4, 2), norm="l2"):
    """A network, a region, hidden bounds (any: the algebra does not need them to be right) and multipliers."""
    widths = [n, *hidden, 2]
    network = Network(
        tuple((Dyadic(integers(rng, (b, a)), SCALE), Dyadic(integers(rng, b), SCALE)) for a, b in pairwise(widths))
    )
    lower, upper = integers(rng, n, -300, 0), integers(rng, n, 1, 300)
    region = Region(norm, integers(rng, n), 0 if norm == "box" else 250, lower, upper, SCALE)
    bounds, centre = [], fractions(Dyadic(region.centre, SCALE))
    for (W, b), width in zip(network.layers[:-1], hidden, strict=True):
        z = [
            sum(w * v for w, v in zip(row, centre, strict=True)) + c
            for row, c in zip(fractions(W), fractions(b), strict=True)
        ]
        middle = Dyadic([int(v * 2**60) for v in z], 60)
        low, high = integers(rng, width, -400, 0), integers(rng, width, 1, 400)
        low[0] = abs(low[0])  # the first neuron is active
        high[2:3] = [-v for v in high[2:3]]  # a third one is dead
        bounds.append(Hidden(Dyadic(low, SCALE), Dyadic(high, SCALE), middle, None))
        centre = [max(v, Fraction(0)) for v in z]
    pixels = sorted(rng.choice(n, 2, replace=False).tolist())
    count = [len(h.unstable) for h in bounds]
    multipliers = Multipliers(
        alpha=[Dyadic(integers(rng, k), SCALE) for k in count],
        beta=[Dyadic(integers(rng, k, 100, 300), SCALE) for k in count],
        gamma=[Dyadic(integers(rng, k, 100, 300), SCALE) for k in count],
        tau=Dyadic(int(rng.integers(2000, 4000)), SCALE),
        pixels=pixels,
        nu=Dyadic(integers(rng, 2, 100, 400), SCALE),
        above=Dyadic(integers(rng, 2, 100, 900), SCALE),
        below=Dyadic(integers(rng, 2, 100, 900), SCALE),
        cuts=random_cuts(rng, bounds),
    )
    return network, region, bounds, multipliers


def random_cuts(rng, bounds, count=6):
    """Products of factors of all kinds, of dead neurons too."""
    every = [[k, i, kind] for k, h in enumerate(bounds) for i in h.unstable for kind in range(4)]
    every += [[k, i, kind] for k, h in enumerate(bounds) for i in range(len(h.lower.values)) for kind in (4, 5)]
    left, right = ([every[j] for j in rng.integers(0, len(every), count)] for _ in range(2))
    return Cuts(left, right, Dyadic(integers(rng, count, 0, 30), SCALE))


def of_inputs(region, m, d):
    """p(d) as the module's docstring defines it."""
    low, high = (fractions(Dyadic(side, region.scale)) for side in (region.lower, region.upper))
    p = fractions(m.tau) * (sum(v * v for v in d) - region.squared_length)
    sides = (fractions(part) for part in (m.nu, m.above, m.below))
    for i, nu, above, below in zip(m.pixels, *sides, strict=True):
        p -= nu * (d[i] - low[i]) * (high[i] - d[i]) + above * (d[i] - low[i]) + below * (high[i] - d[i])
    return p


def random_point(rng, n):
    return [Fraction(int(v), 64) for v in rng.integers(-100, 101, n)]


@pytest.mark.parametrize("norm", ["l2", "linf", "box"])
def test_terms_of_the_inputs_are_the_multipliers_sums(norm):
    rng = np.random.default_rng(0)
    for _ in range(20):
        _, region, _, m = random_case(rng, norm=norm)
        E, e, k = _pixels(region, m)
        for d in (random_point(rng, 3) for _ in range(3)):
            exact = of_inputs(region, m, d)
            low = sum(v * v / q + v * w for v, q, w in zip(d, fractions(E), fractions(e), strict=True)) + k
            assert low <= exact <= low + Fraction(1, 2**40)


def test_the_form_over_zeta_is_below_that_of_the_inputs_and_touches_it():
    rng = np.random.default_rng(1)
    for _ in range(20):
        network, region, bounds, m = random_case(rng, n=4)
        zeta = _rows_of_zeta(bounds, m)
        T = next(_inputs(network, region, zeta, m, 100.0))
        W = [fractions(network.layers[0][0])[i] for i in zeta]
        rows = np.array(W, dtype=float)
        gaps = []
        for d in (random_point(rng, 4) for _ in range(3)):
            one_zeta = [Fraction(1), *(sum(w * v for w, v in zip(row, d, strict=True)) for row in W)]
            products = [sum(v * b for v, b in zip(row, one_zeta, strict=True)) for row in fractions(T)]
            form = sum(a * v for a, v in zip(one_zeta, products, strict=True))
            assert form / 2 <= of_inputs(region, m, d)
            # The least p with this zeta: what a form over zeta can be at most.
            D = 1 / np.array(fractions(_pixels(region, m)[0]), dtype=float)
            e = np.array(fractions(_pixels(region, m)[1]), dtype=float)
            K = np.block([[2 * np.diag(D), rows.T], [rows, np.zeros((len(rows),) * 2)]])
            best = np.linalg.solve(K, np.concatenate([-e, np.array(one_zeta[1:], dtype=float)]))[:4]
            least = of_inputs(region, m, [Fraction(v) for v in best])
            assert form / 2 <= least + Fraction(1, 10**9)
            gaps.append(float(least - form / 2))
        assert max(gaps) < 1e-6


def document(network, region, bounds, m, bound):
    def held(part):
        return {"scale": part.scale, "values": part.values}

    reading = object.__new__(Reading)
    reading.layers = [(fractions(W), fractions(b)) for W, b in network.layers]
    reading.label = 0
    reading.hidden = [(fractions(h.lower), fractions(h.upper)) for h in bounds]

    class Plain:
        centre = fractions(Dyadic(region.centre, region.scale))
        lower = fractions(Dyadic(region.lower, region.scale))
        upper = fractions(Dyadic(region.upper, region.scale))
        squared_length = staticmethod(lambda: region.squared_length)

    reading.region = Plain
    multipliers = {name: [held(v) for v in getattr(m, name)] for name in ("alpha", "beta", "gamma")}
    multipliers |= {name: held(getattr(m, name)) for name in ("tau", "nu", "above", "below")} | {"pixels": m.pixels}
    multipliers["cuts"] = {"left": m.cuts.left, "right": m.cuts.right, "kappa": held(m.cuts.kappa)}
    return reading, {"rival": 1, "leaves": [multipliers], "bound": {"scale": 0, "values": bound}}


def follows(case, t):
    """Whether the margin is at least t by the second reading, in the inputs instead of zeta."""
    reading, part = document(*case, 0)
    scale = max(t.denominator.bit_length() - 1, 0)
    part["bound"] = {"scale": scale, "values": t.numerator}
    return reading.semidefinite(part, part["leaves"][0], reading.hidden)


def accepted(case, t):
    network, region, bounds, m = case
    (W, b), label, rival = network.layers[-1], 0, 1
    c = Dyadic([[p - q for p, q in zip(W.values[label], W.values[rival], strict=True)]], W.scale)
    return proves(network, region, bounds, (c, Fraction(b.values[label] - b.values[rival], 2**b.scale)), m, t)


def last_that_follows(case):
    low, high = Fraction(-(2**20)), Fraction(2**20)
    assert not follows(case, high)
    if not follows(case, low):
        return None
    while high - low > Fraction(1, 2**44):
        middle = (low + high) / 2
        low, high = (middle, high) if follows(case, middle) else (low, middle)
    return low


@pytest.mark.parametrize("norm", ["l2", "box"])
def test_what_is_proved_is_what_the_multipliers_give(norm):
    """Neither above the last bound that follows nor, but for rounding, below it."""
    rng, seen = np.random.default_rng(2), 0
    for _ in range(12):
        case = random_case(rng, norm=norm)
        last = last_that_follows(case)
        if last is None:
            continue
        seen += 1
        assert not accepted(case, last + Fraction(1, 2**43))
        assert accepted(case, last - Fraction(1, 10**5))
    assert seen >= 4


def test_a_bound_is_not_rounded_up():
    """All neurons dead: the bound is c0 - tau |d|^2 to the last digit."""
    rng = np.random.default_rng(3)
    network, region, _, m = random_case(rng, hidden=(2,))
    nothing = Cuts([], [], Dyadic([], 0))
    m = Multipliers(*([Dyadic([], 0)] for _ in range(3)), m.tau, [], *(Dyadic([], 0) for _ in range(3)), nothing)
    dead = Hidden(Dyadic([-2, -3], 0), Dyadic([-1, -1], 0), Dyadic([-1, -2], 0), None)
    b = fractions(network.layers[-1][1])
    value = b[0] - b[1] - fractions(m.tau) * region.squared_length
    assert accepted((network, region, [dead], m), value)
    assert not accepted((network, region, [dead], m), value + Fraction(1, 2**500))


def test_residuals_have_to_be_diagonally_dominant():
    """With a factor that is rounded to zero the matrix itself is the residual."""

    def judged(S):
        return _dominant_residual(S, [0] * len(S), np.eye(len(S)) * 2.0**-110, 2000)

    assert judged([[2, -1, -1], [-1, 2, -1], [-1, -1, 2]])
    assert not judged([[1, -1, -1], [-1, 1, -1], [-1, -1, 1]])
    assert not judged([[2, -1, -2], [-1, 3, -1], [-2, -1, 3]])
    assert not judged([[-1, 0], [0, 1]])
