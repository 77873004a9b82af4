"""Cones, losses, networks and claims in the checker of training proofs: identities and closed forms."""

from decimal import Decimal, localcontext
from fractions import Fraction
from math import exp, floor, log, log1p

import numpy as np
import pytest

from certify.proof.artefact import RejectedError, Work
from certify.proof.check import losses, simplices, training
from certify.proof.check.elementary import entropy_below, exp_above, log_above, log_below, softplus_above
from certify.proof.check.given import Samples, compare_samples
from certify.proof.writing import exact


def number(value, scale):
    return Fraction(value, 1 << scale)


# ---- cones


def test_one_cone_is_accepted_up_to_its_maximum():
    """v'(Xu)_+ = u_1 - u_2 / 2 on the first quadrant: at most 1 there; 1/2 is the least weight at x = (1/2)."""
    X, v = exact(np.array([[1.0, 0.0], [0.0, 1.0]])), exact(np.array([1.0, -0.5]))
    parts = simplices.parts_of(X, v, 1)
    assert (parts.plus, parts.minus, parts.scale) == ([[2, 0]], [[0, 1]], 1)
    assert simplices.parts_of(X, v, -1).plus == [[0, 1]]
    for weight, accepted in ((1.0 + 1e-9, True), (1.0 - 1e-9, False)):
        for sign in (1, -1):
            cones = {"cones": [-1] * 4}
            if accepted or sign == -1:
                simplices.check_cones(X, v, sign, exact(np.array(weight)), cones, "it", Work())
            else:
                with pytest.raises(RejectedError, match="not proved"):
                    simplices.check_cones(X, v, sign, exact(np.array(weight)), cones, "it", Work())
    with pytest.raises(RejectedError, match="not proved"):
        simplices.check_cones(X, v, -1, exact(np.array(0.5 - 1e-9)), {"cones": [-1] * 4}, "it", Work())
    simplices.check_cones(X, v, -1, exact(np.array(0.5 + 1e-9)), {"cones": [-1] * 4}, "it", Work())


def test_cones_of_a_splitting_cover_the_plane():
    cones = list(simplices._leaves([1, -1, 1, -1, -1, -1, -1, -1], 2, "it"))
    assert len(cones) == 6
    angles = np.random.default_rng(0).uniform(0, 2 * np.pi, 300)
    for u in np.stack([np.cos(angles), np.sin(angles)], 1):
        inside = [(np.linalg.solve(np.array(cone, dtype=float).T, u) >= 0).all() for cone in cones]
        assert sum(inside) == 1
    assert simplices.between([4, 0], [0, 1]) == [4, 4]
    assert simplices.between([1, 0], [0, 4]) == [4, 4]
    for order in ([2, -1, -1, -1, -1, -1], [-1] * 3, [-1] * 5, [0, *[-1] * 5], [3, *[-1] * 5]):
        with pytest.raises(RejectedError):
            list(simplices._leaves(order, 2, "it"))


def test_rows_below_zero_at_a_ray_add_nothing_to_its_height():
    """(u_1 - u_2)_+ + (u_2 - u_1)_+ = |u_1 - u_2| is 1 at every ray: interpolated, h = (1, +-1) on every quadrant."""
    X, v = exact(np.array([[1.0, -1.0], [-1.0, 1.0]])), exact(np.array([1.0, 1.0]))
    simplices.check_cones(X, v, 1, exact(np.array(1.4143)), {"cones": [-1] * 4}, "it", Work())
    for weight in (1.414, 0.9, 0.1):
        with pytest.raises(RejectedError, match="not proved"):
            simplices.check_cones(X, v, 1, exact(np.array(weight)), {"cones": [-1] * 4}, "it", Work())


@pytest.mark.parametrize("sign", [1, -1])
def test_a_cone_needs_its_rays_and_its_length(sign):
    """The hint (h, shares) is all that is free: on the first quadrant, P = u_1 + u_2, N = (u_1 - u_2)_+."""
    del sign
    X, v = exact(np.array([[1.0, 1.0], [1.0, -1.0]])), exact(np.array([1.0, -1.0]))
    parts = simplices.parts_of(X, v, 1)
    cone = [[1, 0], [0, 1]]
    heights = [1, 1]

    def holds(h, share, weight, heights=heights):
        return simplices._cone_holds(cone, heights, (np.array(h), np.array([share])), parts, exact(np.array(weight)))

    assert holds([1.0, 1.0], 0.0, 1.4143)
    assert not holds([1.0, 1.0], 0.0, 1.4142)
    assert not holds([1.0, 0.999], 0.0, 2.0)
    assert not holds([0.999, 1.0], 0.0, 2.0)
    assert holds([0.5, 1.5], 0.5, 1.6)  # eta = (1/2, -1/2)
    assert not holds([0.5, 1.499], 0.5, 1.6)
    assert not holds([0.5, 1.5], 0.5, 1.58)
    assert not holds([0.0, 2.5], 1.5, 3.0)  # shares end at one
    assert not holds([1.5, 0.5], -0.5, 3.0)
    assert not holds([np.nan, 1.0], 0.0, 3.0)
    assert not holds([1.0, 1.0], 0.0, 1.5, [2, 1])


def test_the_weight_that_a_span_leaves():
    """B = 2 e_1 (norm 2), C = (1, 3): X - C B' is known, so is the weight (W - sum |v_i| |e_i|) / 2."""
    X, v = exact(np.array([[2.0, 0.25], [6.0, 0.0]])), exact(np.array([-0.5, 8.0]))
    span = simplices.Span(exact(np.array([[2.0], [0.0]])), exact(np.array([[1.0], [3.0]])))
    rows, left = simplices.within(X, v, exact(np.array(1.125)), span, "it")
    assert rows == span.rows
    assert 0 <= Fraction(1, 2) - number(left.values, left.scale) < Fraction(1, 1 << 60)
    with pytest.raises(RejectedError, match="too far"):
        simplices.within(X, v, exact(np.array(0.125)), span, "it")
    wide = simplices.Span(exact(np.array([[1.0, 1.0], [0.0, 0.0]])), exact(np.array([[1.0, 1.0], [3.0, 3.0]])))
    _, left = simplices.within(X, v, exact(np.array(1.125)), wide, "it")
    assert number(left.values, left.scale) <= Fraction(10**6, 1414213)  # |B| is the root of two
    nothing = simplices.Span(exact(np.zeros((2, 1))), exact(np.array([[1.0], [3.0]])))
    with pytest.raises(RejectedError):
        simplices.within(X, v, exact(np.array(100.0)), nothing, "it")


# ---- losses


SHARES = [Fraction(1, 4), Fraction(3, 4)]


def test_losses_of_outputs():
    f, y = [Fraction(1, 2), Fraction(-2)], [Fraction(1), Fraction(-1)]
    assert losses.loss_value("squared", f, y, SHARES) == Fraction(1, 4) * Fraction(1, 8) + Fraction(3, 4) * Fraction(
        1, 2
    )
    assert losses.loss_value("hinge", f, y, SHARES) == Fraction(1, 8)
    assert losses.loss_value("hinge", f, [Fraction(-1), Fraction(1)], SHARES) == Fraction(3, 8) + Fraction(9, 4)
    wanted = 0.25 * log1p(exp(-0.5)) + 0.75 * log1p(exp(-2))
    assert 0 <= float(losses.loss_value("logistic", f, y, SHARES)) - wanted < 1e-15


@pytest.mark.parametrize("loss", losses.LOSSES)
@pytest.mark.parametrize("seed", range(5))
def test_the_dual_value_is_the_least_lagrangian(loss, seed):
    """min over outputs of c l(f, y) + v f, on a fine grid: never below the dual value, and close to it."""
    rng = np.random.default_rng(seed)
    y = [Fraction(int(s)) for s in rng.choice([-1, 1], 2)]
    q = [Fraction(int(k), 64) for k in rng.integers(8, 57, 2)]
    v = [a * t * c for a, t, c in zip(q, y, SHARES, strict=True)]
    found = float(losses.dual_value(loss, v, y, SHARES))
    grid = np.linspace(-6, 6, 24_001)
    total = 0.0
    for a, t, c in zip(v, y, SHARES, strict=True):
        z = grid * float(t)
        values = {
            "squared": (grid - float(t)) ** 2 / 2,
            "hinge": np.maximum(0, 1 - z),
            "logistic": np.log1p(np.exp(-z)),
        }
        total += float((float(c) * values[loss] + float(a) * grid).min())
    assert found == pytest.approx(total, abs=1e-6)
    assert found <= total + 1e-12


@pytest.mark.parametrize("loss", losses.SIGN_LOSSES)
def test_the_domain_of_a_dual_point(loss):
    y = [Fraction(1), Fraction(-1)]
    for v in ((Fraction(1, 4), Fraction(-3, 4)), (Fraction(0), Fraction(0))):
        losses.dual_value(loss, v, y, SHARES)
    for v in ((Fraction(26, 100), Fraction(0)), (Fraction(0), Fraction(1, 100))):
        with pytest.raises(RejectedError, match="domain"):
            losses.dual_value(loss, v, y, SHARES)
    assert losses.dual_value("hinge", (Fraction(1, 4), Fraction(-3, 4)), y, SHARES) == 1


@pytest.mark.parametrize("x", [1e-9, 0.1, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 10.0, 1e9])
def test_logarithms_are_enclosed(x):
    exactly = Fraction(x)
    low, high = log_below(exactly), log_above(exactly)
    assert low <= high <= low + Fraction(1, 1 << 80)
    assert float(low) == pytest.approx(log(x), abs=1e-15, rel=1e-14)
    a = log_above(exactly * 2) - log_above(Fraction(2)) - log_below(exactly)
    assert abs(a) < Fraction(1, 1 << 80)


@pytest.mark.parametrize("x", [0.0, -1e-9, -0.1, -0.5, -1.0, -3.0, -10.0, -63.0, -64.5, -200.0])
def test_exponentials_are_above(x):
    found = exp_above(Fraction(x))
    assert float(found) >= exp(x) * (1 - 1e-15)
    assert float(found) == pytest.approx(exp(x), rel=1e-13, abs=2.0**-80)
    if x > -60:
        assert log_below(found) >= Fraction(x) - Fraction(1, 1 << 60) * 4
        assert log_above(found) >= Fraction(x)
    assert float(softplus_above(Fraction(x))) == pytest.approx(log1p(exp(x)), rel=1e-13, abs=2.0**-80)
    assert float(softplus_above(Fraction(-x))) == pytest.approx(-x + log1p(exp(x)), rel=1e-13)


@pytest.mark.parametrize("q", [0.0, 1e-9, 0.25, 0.5, 0.9, 1.0])
def test_entropies_are_below(q):
    wanted = 0.0 if q in (0, 1) else -q * log(q) - (1 - q) * log1p(-q)
    assert float(entropy_below(Fraction(q))) == pytest.approx(wanted, rel=1e-12)
    assert float(entropy_below(Fraction(q))) <= wanted + 1e-16


def decimal(x):
    return Decimal(x.numerator) / Decimal(x.denominator)


@pytest.mark.parametrize("seed", range(4))
def test_sixty_decimal_places_confirm_the_side(seed):
    """What floating point cannot see: logarithms, exponentials, softplus and entropy to the last bit they claim."""
    rng = np.random.default_rng(seed)
    with localcontext() as context:
        context.prec = 60
        for k in range(40):
            x = Fraction(int(rng.integers(1, 1 << 62)), 1 << int(rng.integers(1, 70)))
            x = Fraction(k + 1) if seed == 0 else x
            assert decimal(log_below(x)) <= decimal(x).ln() <= decimal(log_above(x))
            small = -Fraction(int(rng.integers(0, 1 << 50)), 1 << int(rng.integers(44, 60)))
            assert decimal(exp_above(small)) >= decimal(small).exp()
            for t in (small, -small):
                value = (1 + decimal(t).exp()).ln()
                assert decimal(softplus_above(t)) >= value
                one = losses.loss_value("logistic", [-t], [Fraction(1)], [Fraction(1)])
                assert value <= decimal(one) <= value + Decimal(2) ** -75
            q = Fraction(int(rng.integers(1, 1 << 50)), 1 << 50)
            entropy = -decimal(q) * decimal(q).ln() - decimal(1 - q) * decimal(1 - q).ln()
            assert decimal(entropy_below(q)) <= entropy
            dual = losses.dual_value("logistic", [q], [Fraction(1)], [Fraction(1)])
            assert entropy - Decimal(2) ** -75 <= decimal(dual) <= entropy


def test_coarse_numbers_keep_their_side():
    for value in (Fraction(1, 3), Fraction(-1, 3), Fraction(1, 1 << 95), Fraction(5)):
        low, high = losses._coarse_below(value), losses._coarse_above(value)
        assert low <= value <= high <= low + Fraction(1, 1 << 90)


# ---- networks and claims


def claim(loss="squared", bias=0, output_bias=1):
    data = {
        "X": {"scale": 0, "values": [[3, 4], [-1, 2]]},
        "targets": {"scale": 0, "values": [1, -1]},
        "weights": {"scale": 2, "values": [1, 3]},
        "loss": loss,
        "weight_decay": {"scale": 1, "values": 1},
        "output_bias": output_bias,
    }
    network = {
        "W": {"scale": 1, "values": [[2, 2], [-6, 8]]},
        "a": {"scale": 0, "values": [2, -1]},
        "bias": {"scale": 1, "values": bias},
    }
    return {
        "data": data,
        "bound": {"scale": 0, "values": 0},
        "network": network,
        "objective": {"scale": 0, "values": 999},
    }


def test_the_objective_of_a_network():
    """Neurons (1, 1; 2) and (-3, 4; -1): outputs 14 - 7 + 1/2 and 2 - 11 + 1/2, masses 2 sqrt 2 and 5."""
    held = training.read_claim(claim(bias=1))
    squared = Fraction(1, 4) * Fraction(13, 2) ** 2 / 2 + Fraction(3, 4) * Fraction(15, 2) ** 2 / 2
    wanted = float(squared) + 0.5 * (2 * 2**0.5 + 5)
    found = float(training.objective_above(held.data, held.network))
    assert found == pytest.approx(wanted, rel=1e-11)
    assert found >= wanted - 1e-12
    assert held.data.shares == SHARES
    for change in ({"bias": 1, "output_bias": 0},):
        with pytest.raises(RejectedError, match="output bias"):
            training.read_claim(claim(**change))


def test_targets_of_sign_losses():
    assert training.read_claim(claim("hinge"))
    wrong = claim("logistic")
    for values in ([1, 0], [2, -1], [-3, 1]):
        wrong["data"]["targets"]["values"] = values
        with pytest.raises(RejectedError, match="-1 and"):
            training.read_claim(wrong)
    wrong["data"]["loss"] = "squared"
    assert training.read_claim(wrong)


def cones_proof(v, scale=4):
    return {"v": {"scale": scale, "values": v}, "signs": [{"cones": [-1] * 4}, {"cones": [-1] * 4}]}


def small_claim(bound, objective=None, output_bias=0, decay=8):
    """Two samples on the axes: M(v) is the largest |v_i| or |v|, all of it known."""
    value = claim(output_bias=output_bias)
    value["data"]["X"]["values"] = [[1, 0], [0, 1]]
    value["data"]["weights"] = None
    value["data"]["weight_decay"] = {"scale": 4, "values": decay}
    value["bound"] = {"scale": 10, "values": bound}
    if objective is None:
        value["network"] = value["objective"] = None
    else:
        value["objective"] = objective
    return value


def test_a_bound_is_accepted_up_to_the_dual_value():
    """v = (1/4, -1/4), c = 1/2: D = 1/2 - 2/16 = 3/8, M = 1/4 at each axis."""
    best = 384
    for bound, accepted in ((best, True), (best + 1, False)):
        held = training.read_claim(small_claim(bound))
        if accepted:
            assert training.check(held, cones_proof([4, -4]))
        else:
            with pytest.raises(RejectedError, match="only"):
                training.check(held, cones_proof([4, -4]))
    tight = training.read_claim(small_claim(0, decay=4))
    with pytest.raises(RejectedError, match="cone"):
        training.check(training.read_claim(small_claim(0, decay=3)), cones_proof([4, -4]))
    assert training.check(tight, cones_proof([3, -3]))
    for v in ([6, 1], [-6, -1], [-1, 6]):  # either sign alone is too large
        with pytest.raises(RejectedError, match="cone"):
            training.check(tight, cones_proof(v))


def test_an_output_bias_wants_a_balanced_dual_point():
    held = training.read_claim(small_claim(0, output_bias=1))
    assert training.check(held, cones_proof([4, -4]))
    for v in ([4, -3], [4, 4], [-4, -4]):
        with pytest.raises(RejectedError, match="sum to zero"):
            training.check(held, cones_proof(v))
    assert training.check(training.read_claim(small_claim(-(1 << 20))), cones_proof([4, -3]))


def test_an_objective_is_accepted_from_its_value_on():
    """Outputs (2 - 0, 2 - 4): losses 1/2 each; masses 2 sqrt 2 and 5, half of them."""
    value = float(0.5 + 0.5 * (2 * 2**0.5 + 5))
    for offset, accepted in ((1e-9, True), (-1e-9, False)):
        objective = {"scale": 60, "values": floor((value + offset) * 2**60)}
        held = training.read_claim(small_claim(384, objective))
        if accepted:
            facts = training.check(held, cones_proof([4, -4]))
            assert f"{100 * (1 - 0.375 / value):.3f}"[:5] in facts[-1]
        else:
            with pytest.raises(RejectedError, match="objective"):
                training.check(held, cones_proof([4, -4]))


def test_zeros_are_labels_of_sign_losses_only():
    X, zeros, signs = exact(np.eye(2)), exact(np.array([0.0, 1.0])), exact(np.array([-1.0, 1.0]))
    given = Samples(X, zeros)
    assert compare_samples(given, X, zeros, None, labels=False)
    assert "label 0" in compare_samples(given, X, signs, None, labels=True)
    for targets, labels in ((signs, False), (zeros, True)):
        with pytest.raises(RejectedError, match="targets"):
            compare_samples(given, X, targets, None, labels=labels)


def test_the_digest_of_data_tells_every_part():
    value = claim()["data"]
    other = {
        "X": {"scale": 0, "values": [[3, 4], [-1, 3]]},
        "targets": {"scale": 1, "values": [2, -1]},
        "weights": {"scale": 2, "values": [1, 2]},
        "loss": "hinge",
        "weight_decay": {"scale": 2, "values": 1},
        "output_bias": 0,
    }
    held = claim()
    held["network"] = held["objective"] = None
    data = training.read_claim(held).data
    for name, part in other.items():
        changed = training.read_claim({**held, "data": {**value, name: part}}).data
        assert changed.digest != data.digest
        with pytest.raises(RejectedError, match="other data"):
            training.check(training.read_claim(held), cones_proof([0, 0]), data=changed)
    held["bound"]["values"] = -100
    assert training.check(training.read_claim(held), cones_proof([0, 0]), data=data)


def test_samples_with_equal_rows_count_as_one():
    """(3/16, -1/16) on one axis is 1/8, below a weight decay of 3/16; neither the first nor the moduli alone are."""
    X, v = exact(np.array([[0.5, 0.0], [0.0, 1.0], [0.5, -0.0]])), exact(np.array([3.0, -2.0, -1.0]))
    rows, sums = training.distinct(X, v)
    assert rows.values == [[1, 0], [0, 2]]
    assert rows.scale == 1
    assert sums.values == [2, -2]
    held = small_claim(0, decay=3)
    held["data"]["X"]["values"] = [[1, 0], [0, 1], [1, 0]]
    held["data"]["targets"]["values"] = [*held["data"]["targets"]["values"], 0]
    held["bound"]["values"] = -(1 << 20)
    assert training.check(training.read_claim(held), cones_proof([3, 0, -1]))
    for v in ([3, 0, 1], [-3, 0, -1], [4, 0, 0], [5, 0, -1], [3, 3, -1]):
        with pytest.raises(RejectedError, match="cone"):
            training.check(training.read_claim(held), cones_proof(v))


def test_slabs_are_about_the_distinct_rows_too():
    """The same bound from the other kind of proof: one quadratic for the axis with two samples, one for the other."""

    def file(v, weight):
        leaf = {
            "scale": 20, "tilts": [], "singles": [[1 << 17, 0], [0, 0]], "slabs": [], "groups": [], "delta": 3 << 15,
        }  # fmt: skip
        none = {**leaf, "singles": [[0, 0], [0, 0]], "delta": 1 << 12}
        part = [{"order": [-1], "splits": [], "leaves": [one]} for one in (leaf, none)]
        held = small_claim(-(1 << 20), decay=weight)
        held["data"]["X"]["values"] = [[1, 0], [0, 1], [1, 0]]
        held["data"]["targets"]["values"] = [*held["data"]["targets"]["values"], 0]
        return training.read_claim(held), {"v": {"scale": 4, "values": v}, "signs": part}

    assert training.check(*file([3, 0, -1], 3))
    for v in ([3, 0, 1], [5, 0, -1], [3, 1, -1]):
        with pytest.raises(RejectedError):
            training.check(*file(v, 3))
