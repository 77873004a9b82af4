"""What a checker of proofs must do whatever is in the file: agree with fractions, and reject what does not follow."""

import copy
import json
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from exact_margins import Reading, Region
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from proof_cases import builder_of, layers_of, output_at, question_of, sdp_multipliers

from certify.proof.artefact import Dyadic, RejectedError, digest
from certify.proof.check import check
from certify.proof.check.margins import both_signs, margin_forms, read_claim
from certify.proof.check.network import Network
from certify.proof.check.region import read_region
from certify.proof.check.rows import forms_minimum, read_rows
from certify.proof.emit.hints import RowHints, crown
from certify.proof.emit.margins import Question, slopes_json
from certify.proof.emit.sdp import sdp_part
from certify.proof.emit.slopes import programmed
from certify.proof.writing import as_json

CASES = [("linf", True), ("l2", False), ("l2", True), ("l1", True), ("box", False)]
CLOSE = Fraction(1, 2**45)


def balls(chain, forms):
    """Slopes of CROWN that are moved at random, at active entries too, with multipliers of balls."""
    rng = np.random.default_rng(len(chain.hidden))
    g = [v + 0.03 * rng.standard_normal(v.shape) for v in crown(chain, forms).g]
    lam = [rng.random(len(forms)) * (rng.random(len(forms)) > 0.3) for _ in g]
    return RowHints(tuple(g), tuple(lam), live=True)


def norms_of(network):
    floats = [np.array(W.values, dtype=float) / 2.0**W.scale for W, _ in network.layers[:-1]]
    return [float(np.linalg.norm(W, 2) ** 2 * (1 + 1e-6)) for W in floats]


def document_of(seed, norm, domain, suggest=crown, size=0.03, widths=(3, 5, 4, 3)):
    question, points = question_of(seed, norm, size=size, domain=domain, widths=widths)
    builder = builder_of(question, suggest, norms_of(question.network) if suggest is balls else None)
    rivals = question.claim.rivals
    return question, builder.document(slopes_json(rivals, *builder.margins(rivals, suggest))), points


@pytest.mark.parametrize(("norm", "domain"), CASES)
@pytest.mark.parametrize("suggest", [crown, balls, programmed])
def test_the_checker_computes_what_fractions_do(norm, domain, suggest):
    """Row by row: the same numbers, up to roots that are rounded up."""
    for seed in range(2):
        question, document, points = document_of(seed, norm, domain, suggest, size=0.1)
        network, builder = (
            question.network,
            builder_of(question, suggest, norms_of(question.network) if suggest is balls else None),
        )
        reading = Reading(document, layers_of(network))
        for k, part in enumerate(document["proof"]["hidden"], 1):
            below = builder.proved[: k - 1]
            rows = read_rows(part["rows"], 2 * len(part["lower"]["values"]), below, "rows")
            found = forms_minimum(network, question.claim.region, below, both_signs(network, k - 1), rows)
            expected = reading.hidden_minima(k)
            assert all(v - CLOSE <= f <= v + CLOSE for f, v in zip(found, expected, strict=True))
        rivals = document["proof"]["slopes"]["rivals"]
        rows = read_rows(document["proof"]["slopes"]["rows"], len(rivals), builder.proved, "rows")
        found = forms_minimum(
            network, question.claim.region, builder.proved, margin_forms(question.claim, network, rivals), rows
        )
        expected = reading.margin_minima()
        assert all(abs(f - expected[t]) <= CLOSE for f, t in zip(found, rivals, strict=True))
        assert reading.holds() == (accepts(document) is None)
        for x in points[:20]:
            y = output_at(network, x)
            assert all(y[question.claim.label] - y[t] >= v for t, v in expected.items())


def accepts(document, **given):
    """None, or the reason of the rejection."""
    try:
        check(document, **given)
    except RejectedError as error:
        return str(error)
    return None


def sdp_document(seed, norm, domain):
    """Every margin by the semidefinite relaxation, solved by cvxpy."""
    question, points = question_of(seed, norm, size=0.1, domain=domain, widths=(3, 4, 3, 3))
    builder = builder_of(question)
    parts = []
    for t in question.claim.rivals:
        value, multipliers = sdp_multipliers(builder, t)
        parts.append(sdp_part(builder, t, (None,), (multipliers,), value))
    return question, builder.document(None, [p for p in parts if p is not None]), points, all(parts)


# The second one has no unstable neuron.
SDP = [(1, "linf", True), (2, "l2", True), (1, "l2", False), (3, "box", False)]


@pytest.mark.parametrize(("seed", "norm", "domain"), SDP)
def test_semidefinite_proofs_hold_in_fractions(seed, norm, domain):
    question, document, points, whole = sdp_document(seed, norm, domain)
    assert whole
    assert accepts(document) is None
    assert Reading(document, layers_of(question.network)).holds()
    for x in points:
        y = output_at(question.network, x)
        for part in document["proof"]["sdp"]:
            bound = Fraction(part["bound"]["values"], 2 ** part["bound"]["scale"])
            assert y[question.claim.label] - y[part["rival"]] >= bound


def leaves(value, path=()):
    """Paths to all integers."""
    if isinstance(value, dict):
        return [p for k in sorted(value) for p in leaves(value[k], (*path, k))]
    if isinstance(value, list):
        return [p for k, v in enumerate(value) for p in leaves(v, (*path, k))]
    return [path] if type(value) is int else []


def changed(document, path, change):
    copied = copy.deepcopy(document)
    inner = copied
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = change(inner[path[-1]])
    return copied


DOCUMENTS = {
    "crown": document_of(0, "linf", True),
    "balls": document_of(3, "l2", True, balls, size=0.01),
    "sdp": sdp_document(1, "l2", True)[:2],
}


def test_the_documents_are_good():
    assert [accepts(d[1]) for d in DOCUMENTS.values()] == [None] * 3


quick = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
changes = st.one_of(
    st.integers(-3, 3).filter(bool).map(lambda k: lambda v: v + k),
    st.integers(1, 40).map(lambda k: lambda v: v + (1 << k)),
    st.integers(1, 40).map(lambda k: lambda v: v - (1 << k)),
    st.sampled_from([lambda v: -v - 1, lambda v: 2 * v + 1, lambda v: v // 2 - 1]),
)


@quick
@given(st.sampled_from(sorted(DOCUMENTS)), st.data(), changes)
def test_any_change_of_the_claim_is_rejected(name, data, change):
    """Weights, input, radius, domain, label, widths: all are in the digest."""
    question, document = DOCUMENTS[name][:2]
    path = data.draw(st.sampled_from(leaves(document["claim"])))
    bad = changed(document, ("claim", *path), change)
    if accepts(bad) is None:  # zeros are zeros at every scale
        assert read_claim(bad["claim"]).digest == document["digest"]
        return
    # With the digests made anew it is another claim, and not that of the caller.
    try:
        layers = bad["claim"]["network"]["layers"]
        parts = [_dyadic(layer[k]) for layer in layers for k in ("weight", "bias")]
        bad["claim"]["network"]["digest"] = digest(*parts)
        bad["digest"] = read_claim(bad["claim"]).digest
    except RejectedError:
        return
    told = accepts(bad, network=question.network, region=question.claim.region, label=question.claim.label)
    if told is None:  # limits of the domain may move where no point of the ball is
        ours, theirs = (vars(Region(d["claim"]["region"])) for d in (document, bad))
        assert ours == theirs


def _dyadic(held):
    return Dyadic(held["values"], held["scale"] % 2400)


@quick
@given(st.sampled_from(sorted(DOCUMENTS)), st.data(), changes)
def test_what_is_accepted_after_a_change_still_follows(name, data, change):
    """A change that leaves a valid proof may be accepted; fractions say whether it is one."""
    question, document = DOCUMENTS[name][:2]
    path = data.draw(st.sampled_from(leaves(document["proof"])))
    bad = changed(document, ("proof", *path), change)
    if accepts(bad) is None:
        assert Reading(bad, layers_of(question.network)).holds()


@pytest.mark.parametrize("name", ["crown", "balls"])
def test_every_bound_is_the_last_that_follows(name):
    """The claims are rounded down to their grid: one step more, and each of them is rejected."""
    document = DOCUMENTS[name][1]
    for k in range(2):
        for side, step in (("lower", 1), ("upper", -1)):
            for i in range(len(document["proof"]["hidden"][k][side]["values"])):
                path = ("proof", "hidden", k, side, "values", i)
                told = accepts(changed(document, path, lambda v, step=step: v + step))
                assert told is not None
                assert "is not proved" in told
    for i in range(2):
        told = accepts(changed(document, ("proof", "slopes", "bounds", "values", i), lambda v: v + 1))
        assert "margin over class" in told


def test_a_semidefinite_bound_that_does_not_follow_is_rejected():
    document = DOCUMENTS["sdp"][1]
    for k, part in enumerate(document["proof"]["sdp"]):
        step = max(1, part["bound"]["values"] // 1000)
        path = ("proof", "sdp", k, "bound", "values")
        assert "is not proved" in accepts(changed(document, path, lambda v, step=step: v + step))
        for name in ("beta", "gamma"):
            for j, layer in enumerate(part["leaves"][0][name]):
                for i, v in enumerate(layer["values"]):
                    told = accepts(changed(document, (*path[:3], "leaves", 0, name, j, "values", i), lambda v: -v - 1))
                    assert "below 0" in told


def test_missing_repeated_and_foreign_margins_are_rejected():
    _, document, _ = DOCUMENTS["crown"]
    for rivals, told in (([1, 1], "other classes"), ([0, 3], "other classes"), ([-1, 1], "other classes")):
        label = document["claim"]["label"]
        rivals = [t if t != label else 9 for t in rivals]
        bad = changed(document, ("proof", "slopes", "rivals"), lambda _, rivals=rivals: rivals)
        assert told in accepts(bad)
    less = copy.deepcopy(document)
    slopes = less["proof"]["slopes"]
    slopes["rivals"].pop()
    slopes["bounds"]["values"].pop()
    slopes["rows"]["end"]["values"].pop()
    for part in (*slopes["rows"]["slopes"], *slopes["rows"]["lam"]):
        part["values"].pop()
    assert "every other class" in accepts(less)


def test_embedded_weights_have_the_digest_that_is_written():
    other = changed(DOCUMENTS["crown"][1], ("claim", "network", "digest"), lambda digest: digest[::-1])
    assert "not those that the digest is of" in accepts(other)


def test_a_margin_of_nothing_is_no_proof():
    """A tie keeps no label: a bound may be claimed lower than it is, but not zero."""
    where = ("proof", "slopes", "bounds", "values")
    document = DOCUMENTS["crown"][1]
    assert accepts(changed(document, where, lambda v: [1, *v[1:]])) is None
    for value in (0, -1):
        assert "not positive" in accepts(changed(document, where, lambda v, value=value: [value, *v[1:]]))


def test_negative_multipliers_of_balls_are_rejected():
    """lam (|z - zh|^2 - R^2) is only known to be at most zero: a negative lam would add what is not there."""
    document = DOCUMENTS["balls"][1]
    slopes = ("proof", "slopes", "rows", "lam", 0, "values", 0)
    for where in (slopes, ("proof", "hidden", 1, "rows", "lam", 0, "values", 0)):
        assert "lam of" in accepts(changed(document, where, lambda _: -1))


def test_regions_without_a_point_are_rejected():
    """Everything holds on an empty set, and nobody asks about one."""
    one, zero = Dyadic([1, 1], 0), Dyadic([0, 0], 0)
    for region, told in (
        ({"norm": "box", "centre": None, "radius": None, "lower": one, "upper": zero}, "box is empty"),
        ({"norm": "linf", "centre": one, "radius": Dyadic(1, 0), "lower": zero, "upper": zero}, "centre is outside"),
        ({"norm": "l2", "centre": zero, "radius": Dyadic(2, 0), "lower": one, "upper": one}, "centre is outside"),
    ):
        read = {k: as_json(v) if isinstance(v, Dyadic) else v for k, v in region.items()}
        with pytest.raises(RejectedError, match=told):
            read_region(read, 2)


def test_a_proof_for_a_part_of_the_region_is_told_apart():
    """The same ball, cut by another domain."""
    question, document, _ = DOCUMENTS["crown"]
    asked = question.claim.region
    assert accepts(document, region=asked) is None
    for side in ("lower", "upper"):
        limits = [v - 1 if side == "lower" else v + 1 for v in getattr(asked, side)]
        assert "another region" in accepts(document, region=replace(asked, **{side: limits}))


def test_the_norms_of_the_weights_are_proved_or_rejected():
    document = DOCUMENTS["balls"][1]
    for k, value in enumerate(document["proof"]["squared_norms"]):
        low = int(value["values"] * (1 - 1e-5))
        assert "norm of layer" in accepts(
            changed(document, ("proof", "squared_norms", k, "values"), lambda _, low=low: low)
        )
    assert "needs norms" in accepts(changed(document, ("proof", "squared_norms"), lambda _: None))


def test_documents_survive_json():
    for _, document, *_ in DOCUMENTS.values():
        assert json.loads(json.dumps(document)) == document


def test_a_layer_without_live_neurons_leaves_a_constant():
    question, _ = question_of(0, "l2", size=0.1, widths=(3, 4, 3, 3))
    W, b = question.network.layers[0]
    sunk = Network(((W, Dyadic([v - (50 << b.scale) for v in b.values], b.scale)), *question.network.layers[1:]))
    scores = output_at(sunk, [Fraction(0)] * 3)
    label = max(range(3), key=scores.__getitem__)
    builder = builder_of(Question.of(sunk, question.region, label))
    parts = []
    for t in builder.question.claim.rivals:
        value, multipliers = sdp_multipliers(builder, t)
        assert abs(value - float(scores[label] - scores[t])) < 1e-5
        parts.append(sdp_part(builder, t, (None,), (multipliers,), value))
    assert accepts(builder.document(None, parts)) is None
