"""Semidefinite proofs by cases of signs and with products of two neurons: accepted where they follow, else rejected."""

import copy
from fractions import Fraction
from functools import cache

import numpy as np
import pytest
from exact_margins import Reading
from proof_cases import builder_of, layers_of, output_at, question_of
from test_proof_laws import accepts, changed

from certify.bounds.sdp import Settings, Target, solve_cases
from certify.bounds.sdp.target import Offsets
from certify.proof.artefact import Dyadic, RejectedError
from certify.proof.check.cases import cases_of
from certify.proof.check.rows import Hidden
from certify.proof.emit.sdp import sdp_part

CASES = [(2, "l2", 0.8), (2, "linf", 0.3)]


@cache
def by_cases(seed, norm, size, most=4):
    """The proof of every margin by a few cases; and what a single program of the same target proves."""
    question, points = question_of(seed, norm, size=size, domain=True, widths=(3, 6, 5, 3))
    builder, parts, single = builder_of(question), [], []
    chain, label = builder.chain, question.claim.label
    (W, b), (lower, upper) = chain.layers[-1], zip(*chain.hidden, strict=True)
    ball = chain.radius if norm == "l2" else None
    for t in question.claim.rivals:
        offsets = Offsets(chain.centre, ball, *chain.room)
        target = Target(chain.layers[:-1], lower, upper, W[label] - W[t], float(b[label] - b[t]), offsets)
        found = solve_cases(target, Settings(tolerance=1e-5), most=most)
        single.append(found.root.bound)
        parts.append(sdp_part(builder, t, found.order, found.multipliers, found.bound))
    return question, builder.document(None, parts), points, single


def first_split(document):
    """Number of a part with cases."""
    return next(k for k, part in enumerate(document["proof"]["sdp"]) if len(part["leaves"]) > 1)


@pytest.mark.parametrize("case", CASES)
def test_proofs_by_cases_hold_in_fractions_and_say_more(case):
    question, document, points, single = by_cases(*case)
    assert accepts(document) is None
    assert Reading(document, layers_of(question.network)).holds()
    parts = document["proof"]["sdp"]
    assert max(len(part["leaves"]) for part in parts) > 1
    assert any(leaf["cuts"]["left"] for part in parts for leaf in part["leaves"])
    bounds = [Fraction(part["bound"]["values"], 2 ** part["bound"]["scale"]) for part in parts]
    assert any(float(b) > s + 1e-2 for b, s in zip(bounds, single, strict=True))
    if case == CASES[0]:
        assert min(single) < 0 < min(bounds)
    for x in points:
        y = output_at(question.network, x)
        for bound, part in zip(bounds, parts, strict=True):
            assert y[question.claim.label] - y[part["rival"]] >= bound


@pytest.mark.parametrize("case", CASES)
def test_every_case_has_to_be_proved(case):
    _, document, _, _ = by_cases(*case)
    k = first_split(document)
    part = document["proof"]["sdp"][k]
    path = ("proof", "sdp", k)

    def told(name, value):
        return accepts(changed(document, (*path, name), lambda _: value))

    order, leaves = part["order"], part["leaves"]
    assert "more cases than proofs" in told("leaves", leaves[:-1])
    assert "do not cover" in told("leaves", [*leaves, leaves[-1]])
    assert "do not cover" in told("order", order[:-1])
    assert "belong to nothing" in told("order", [*order, []])
    assert "do not cover" in told("order", [])
    assert told("order", [[]]) is not None
    assert told("leaves", leaves[::-1]) is not None
    step = max(1, part["bound"]["values"] // 100)
    bad = changed(document, (*path, "bound", "values"), lambda v: v + step)
    assert "is not proved" in accepts(bad)
    for node in ([0], [0, 1, 2], [-1, 0], [2, 0], [0, -1], [0, 99], "x", [0, True]):
        assert told("order", [node, *order[1:]]) is not None


def test_one_wrong_case_among_right_ones_is_noticed():
    _, document, _, _ = by_cases(*CASES[0])
    k = first_split(document)
    for i in range(len(document["proof"]["sdp"][k]["leaves"])):
        path = ("proof", "sdp", k, "leaves", i, "tau", "values")
        assert "is not proved" in accepts(changed(document, path, lambda v: v + (1 << 70)))


@pytest.mark.parametrize("case", CASES)
def test_products_of_what_is_no_factor_are_rejected(case):
    _, document, _, _ = by_cases(*case)
    k, i = next(
        (k, i)
        for k, part in enumerate(document["proof"]["sdp"])
        for i, leaf in enumerate(part["leaves"])
        if leaf["cuts"]["left"]
    )
    path = ("proof", "sdp", k, "leaves", i, "cuts")
    for factor in ([0, 99, 4], [0, -1, 4], [0, 0, 6], [0, 0, -1], [2, 0, 4], [-1, 0, 4], [0, 99, 0], [0, 1]):
        assert accepts(changed(document, (*path, "left", 0), lambda _, factor=factor: factor)) is not None
    assert "partner" in accepts(changed(document, (*path, "left"), lambda v: v[1:]))
    assert "below 0" in accepts(changed(document, (*path, "kappa", "values", 0), lambda v: -1))
    assert "has no cuts" in accepts(changed(document, path[:-1], lambda v: {n: v[n] for n in v if n != "cuts"}))


def test_a_factor_that_is_none_in_its_case_is_rejected():
    """y of a neuron that the case makes inactive, with multiplier 0: nothing would change, but it is no factor."""
    _, document, _, _ = by_cases(*CASES[0])
    k = first_split(document)
    layer, neuron = document["proof"]["sdp"][k]["order"][0]
    bad = copy.deepcopy(document)
    cuts = bad["proof"]["sdp"][k]["leaves"][0]["cuts"]
    cuts["left"].append([layer, neuron, 0])
    cuts["right"].append([layer, neuron, 4])
    cuts["kappa"]["values"].append(0)
    assert "not unstable" in accepts(bad)


def bounds_of(lower, upper):
    return Hidden(Dyadic(lower, 1), Dyadic(upper, 1), Dyadic([0] * len(lower), 1), None)


def test_cases_cover_every_sign_pattern_once():
    """Of points inside the bounds: each is in exactly one case, but for those with a z of 0."""
    hidden = [bounds_of([-4, 2, -2], [6, 8, 4]), bounds_of([-8, -2], [2, 8])]
    order = [[0, 0], [1, 1], [], [0, 2], [], [], [1, 0], [], []]
    found = list(cases_of(order, list("abcde"), hidden))
    assert [leaf for _, leaf in found] == list("abcde")
    rng = np.random.default_rng(0)
    for _ in range(100):
        z = [[rng.uniform(a / 2, b / 2) for a, b in zip(h.lower.values, h.upper.values, strict=True)] for h in hidden]

        def inside(case, z=z):
            return all(
                a / 2 <= v <= b / 2
                for h, values in zip(case, z, strict=True)
                for a, v, b in zip(h.lower.values, values, h.upper.values, strict=True)
            )

        assert sum(inside(case) for case, _ in found) == 1

    assert found[0][0][0].upper.values[0] == 0 == found[0][0][1].upper.values[1]
    assert found[4][0][0].lower.values[0] == 0 == found[4][0][1].lower.values[0]
    assert hidden[0].upper.values == [6, 8, 4]


@pytest.mark.parametrize(
    ("order", "leaves", "told"),
    [
        ([[0, 0], []], "a", "do not cover"),  # as many cases as proofs, but the other half of the split is missing
        ([[0, 0], [1, 0], [], []], "ab", "do not cover"),
        ([[0, 0]], "", "do not cover"),
        ([], "", "do not cover"),
        ([[0, 0], [0, 0], [], [], []], "abc", "known sign"),
        ([[0, 0], [], [0, 0], [], []], "abc", "known sign"),
        ([[0, 1], [], []], "ab", "known sign"),
    ],
)
def test_cases_that_do_not_cover_are_rejected(order, leaves, told):
    hidden = [bounds_of([-4, 2, -2], [6, 8, 4]), bounds_of([-8, -2], [2, 8])]
    with pytest.raises(RejectedError, match=told):
        list(cases_of(order, list(leaves), hidden))
