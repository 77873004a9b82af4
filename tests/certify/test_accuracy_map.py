"""Monotone answers: gamma never costs a bound, and maps over many sets of fields contradict themselves nowhere."""

import inspect
import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from certify_cases import seeded
from torch import nn

import certify
from certify.errors import InvalidInputError, InvalidTypeError
from certify.maps import walk
from certify.regions.spatial import Deformation
from certify.setup import plan_of

INF = float("inf")
VERIFIED, FALSIFIED, UNKNOWN = certify.Status.VERIFIED, certify.Status.FALSIFIED, certify.Status.UNKNOWN
SETS = [Deformation(d, t, g) for d, t, g in itertools.product((0.1, 0.3, 0.5), (1, 2, INF), (None, 0.3, 0.05))]


def network_and_images(count=4):
    torch.manual_seed(5)
    network = nn.Sequential(nn.Flatten(), nn.Linear(36, 10), nn.ReLU(), nn.Linear(10, 3)).eval()
    images = torch.rand((count, 6, 6), generator=seeded(70)).double()
    with torch.no_grad():  # all classes near each other
        network[-1].bias -= network(images.float()).mean(0)
    return network, images, network(images.float()).argmax(1)


@pytest.mark.parametrize("method", ["ibp", "crown", "alpha-crown", "lp"])
def test_a_limit_of_differences_never_costs_a_bound(method):
    """Exactly: bounds of the box are among those of every smaller set. A limit of 2 delta is none."""
    network, images, labels = network_and_images()
    plan = replace(plan_of(method), attack=None)

    def bound(k, gamma):
        region = Deformation(0.3, 2, gamma)
        return certify.verify(network, images[k], label=int(labels[k]), region=region, method=plan).lower_bounds

    gained = 0
    for k in range(1 if method in ("alpha-crown", "lp") else 2):
        without = bound(k, None)
        for gamma in (0.3, 0.0):
            found = bound(k, gamma)
            assert all(found[rival] >= without[rival] for rival in without)
            gained += any(found[rival] > without[rival] for rival in without)
        for gamma in (0.6, INF):
            assert bound(k, gamma) == without
    assert method == "ibp" or gained


def test_sets_hold_each_other_as_their_fields_do():
    flows = [one.flows(torch.zeros((20, 1, 3, 3)).double()) for one in SETS]
    for other, own in zip(SETS, flows, strict=True):
        fields = own.sample(seeded(71))
        larger = [theirs for one, theirs in zip(SETS, flows, strict=True) if one.holds(other)]
        assert larger
        assert all(theirs.contains(fields, 1e-12).all() for theirs in larger)
    assert Deformation(0.3, 2).holds(Deformation(0.3, 1, 0.1))
    assert Deformation(0.3, 2, 0.7).holds(Deformation(0.3, 2))  # 0.7 says nothing
    for smaller in (Deformation(0.2, 2), Deformation(0.3, 1), Deformation(0.3, 2, 0.1)):
        assert not smaller.holds(Deformation(0.3, 2))


@pytest.mark.parametrize("seed", range(20))
def test_a_walk_finds_what_every_single_call_would(seed):
    """Tools that are monotone: bounds that prove below one threshold, attacks that find above another."""
    generator = np.random.default_rng(seed)
    size = np.array([s.delta * {1: 1, 2: 1.3, INF: 1.6}[s.norm] * (1 if s.coupled else 1.5) for s in SETS])
    low = generator.uniform(0, 1)
    high = low + generator.uniform(0, 0.5)
    calls = {"attack": 0, "bound": 0}

    def fooled(k):
        calls["attack"] += 1
        return bool(size[k] > high)

    def settled(k):
        calls["bound"] += 1
        return VERIFIED if size[k] < low else UNKNOWN

    wanted = [VERIFIED if s < low else FALSIFIED if s > high else UNKNOWN for s in size]
    assert walk(SETS, fooled, settled) == wanted
    assert max(calls.values()) < len(SETS)


@pytest.mark.parametrize("seed", range(20))
def test_a_walk_is_consistent_with_tools_that_are_not_monotone(seed):
    generator = np.random.default_rng(seed)
    kind = generator.integers(0, 3, len(SETS))
    proved, found = [], []

    def fooled(k):
        if kind[k] != 2 or any(SETS[p].holds(SETS[k]) for p in proved):
            return False
        found.append(k)
        return True

    def settled(k):
        if kind[k] != 1 or any(SETS[k].holds(SETS[f]) for f in found):
            return UNKNOWN
        proved.append(k)
        return VERIFIED

    answers = walk(SETS, fooled, settled)
    for i, j in itertools.product(range(len(SETS)), repeat=2):
        if SETS[i].holds(SETS[j]):
            assert not (answers[i] is VERIFIED and answers[j] is not VERIFIED)
            assert not (answers[j] is FALSIFIED and answers[i] is not FALSIFIED)
    for k, answer in enumerate(answers):
        assert (answer is VERIFIED) == any(SETS[p].holds(SETS[k]) for p in proved)
        assert (answer is FALSIFIED) == any(SETS[k].holds(SETS[f]) for f in found)


def test_a_map_is_monotone_and_agrees_with_single_answers(tmp_path):
    network, images, labels = network_and_images(3)
    labels[2] = (labels[2] + 1) % 3  # wrongly labelled
    regions = [Deformation(d, t, g) for d, t, g in itertools.product((0.1, 0.6), (2, INF), (None, 0.05))]
    plan = certify.Plan("crown", plan_of("crown").methods, attack=certify.PGD(10, 1))
    found = certify.accuracy_map(network, images, labels, regions=regions, method=plan, results=tmp_path / "a.jsonl")
    assert found.clean.tolist() == [True, True, False]
    assert (found.statuses[2] == FALSIFIED).all()
    assert (found.certified <= found.attacked).all()
    assert (found.attacked <= found.clean.mean()).all()
    seen = set()
    for k, region in itertools.product(range(2), range(len(regions))):
        single = certify.verify(network, images[k], label=int(labels[k]), region=regions[region], method=plan)
        seen.add(found.statuses[k, region])
        if single.status is not UNKNOWN:  # one answer may come from another set
            assert found.statuses[k, region] in (single.status, UNKNOWN)
    assert {VERIFIED, FALSIFIED} <= seen
    for i, j in itertools.product(range(len(regions)), repeat=2):
        if regions[i].holds(regions[j]):
            assert found.certified[i] <= found.certified[j]
            assert found.attacked[i] <= found.attacked[j]
    again = certify.accuracy_map(network, images, labels, regions=regions, method=plan, results=tmp_path / "a.jsonl")
    assert (again.statuses == found.statuses).all()
    np.testing.assert_array_equal(again.seconds, found.seconds)
    with pytest.raises(certify.ResultsFileError):
        certify.accuracy_map(network, images, labels, regions=regions[:2], method=plan, results=tmp_path / "a.jsonl")
    assert "crown" in str(found)
    assert len(str(found).splitlines()) == 1 + len(regions)


def test_bad_maps_are_named():
    network, images, labels = network_and_images()
    with pytest.raises(InvalidInputError, match="regions is empty"):
        certify.accuracy_map(network, images, labels, regions=[])
    with pytest.raises(InvalidTypeError, match="a region is a float"):
        inspect.unwrap(certify.accuracy_map)(network, images, labels, regions=[0.1])
    with pytest.raises(InvalidInputError, match="outside"):
        certify.accuracy_map(network, images, labels, regions=[Deformation(0.1)], domain=(0.4, 0.6))
    with pytest.raises(InvalidInputError, match="expected images"):
        certify.accuracy_map(network, images.flatten(1), labels, regions=[Deformation(0.1)])
