"""The search for a proof: its bound never falls, it can be resumed for any network, and it plans with its time."""

from dataclasses import replace
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
import torch
from convexnn_cases import problem_of

from certify.proof.artefact import load
from certify.proof.check import check_file
from certify.proof.writing import save
from convexnn.errors import InvalidInputError
from convexnn.gap import optimality_gap
from convexnn.proof.copies import Copies
from convexnn.proof.interior import Relaxation, iterates
from convexnn.proof.plan import FIRST, LARGER, SLABS, Clock, Lift, memory, operations
from convexnn.proof.resume import tried
from convexnn.proof.slabs import parts_of, whole_sphere
from convexnn.training import train

pytestmark = pytest.mark.usefixtures("unchecked")

OPTIONS = {"weight_decay": 0.02, "random_state": 0}


def data(n=25, d=7):
    rng = np.random.default_rng(1)
    X = rng.standard_normal((n, d))
    return X, np.maximum(X[:, 0], 0) - np.maximum(X[:, 1], 0) + 0.3 * rng.standard_normal(n)


def leaves_of(n, d):
    X = problem_of("squared", n, d, 0.05).X.numpy()
    radii = np.linalg.norm(X, axis=1)
    return tuple(whole_sphere(sign, X / radii[:, None], radii) for sign in (1.0, -1.0))


def grouped_leaves(n, d, count, m):
    groups = np.arange(count * m).reshape(count, m)
    return tuple(replace(leaf, groups=groups) for leaf in leaves_of(n, d))


@pytest.fixture
def trained(unchecked):
    return _trained()


@cache
def _trained():
    X, y = data()
    return train(X, y, hidden_bias=False, tol=1e-4, max_seconds=5, **OPTIONS).network


def gap_of(network, **options):
    X, y = data()
    return optimality_gap(network, X, y, max_seconds=0.2, **OPTIONS, **options)


def bounds_of(gap):
    return [bound for _, _, bound in gap.proof.stages]


def test_more_time_is_never_worse_and_a_tree_parts_regions(trained, tmp_path, monkeypatch):
    monkeypatch.setitem(FIRST, "tree", (Lift(0, 20, 4), Lift(0, 20, 4, True), Lift(0, 20, 4)))
    monkeypatch.setitem(LARGER, "tree", ())
    monkeypatch.setitem(SLABS, "tree", (Lift(1, 30, 4),))
    first = gap_of(trained, proof="tree", timeout=None, tol=1e-9, out=tmp_path / "a.json", workers=2)
    bounds = bounds_of(first)
    assert all(a <= b for a, b in pairwise(bounds))
    assert first.bound == bounds[-1] > bounds[0]
    assert any("slabs" in name for name, _, _ in first.proof.stages)
    alone = gap_of(trained, proof="tree", timeout=None, tol=1e-9)
    assert alone.bound == pytest.approx(first.bound, rel=1e-4)
    assert check_file(tmp_path / "a.json")


def test_a_search_is_resumed_for_another_network(trained, tmp_path):
    hurried = gap_of(trained, proof="fast", timeout=1e-9, out=tmp_path / "a.json.gz")
    again = gap_of(trained, proof="fast", timeout=1e-9, resume=tmp_path / "a.json.gz", out=tmp_path / "b.json")
    assert again.bound >= hurried.bound
    longer = gap_of(trained, proof="fast", timeout=60, tol=1e-9, resume=tmp_path / "a.json.gz", out=tmp_path / "c.json")
    assert longer.bound > hurried.bound
    assert longer.proof.stages[0][0] == "resumed"
    assert tried(load(tmp_path / "c.json")["proof"]["signs"]) >= (0, 10, 20)
    other = torch.nn.Sequential(torch.nn.Linear(7, 3, bias=False), torch.nn.ReLU(), torch.nn.Linear(3, 1))
    taken = gap_of(other, proof="fast", timeout=1e-9, resume=tmp_path / "c.json", out=tmp_path / "d.json")
    assert taken.bound == longer.bound
    assert taken.objective > longer.objective
    assert taken.gap > longer.gap
    assert any("3 neurons" in fact for fact in check_file(tmp_path / "d.json").facts)


def test_what_cannot_be_resumed_is_refused(trained, tmp_path):
    gap_of(trained, proof="fast", timeout=1e-9, out=tmp_path / "a.json")
    X, y = data()
    with pytest.raises(InvalidInputError, match="other data or settings"):
        optimality_gap(
            trained, X, y + 1e-9, proof="fast", resume=tmp_path / "a.json", max_seconds=0.2, **OPTIONS
        )  # fmt: skip
    with pytest.raises(InvalidInputError, match="other data or settings"):
        optimality_gap(
            trained, X, y, proof="fast", resume=tmp_path / "a.json", max_seconds=0.2,
            **{**OPTIONS, "weight_decay": 0.03},
        )  # fmt: skip
    with pytest.raises(InvalidInputError, match="cannot be resumed"):
        gap_of(trained, proof="fast", resume=tmp_path / "absent")
    document = load(tmp_path / "a.json")
    document["proof"]["v"]["values"][0] += 1 << (document["proof"]["v"]["scale"] - 1)
    save(document, tmp_path / "bad.json")
    with pytest.raises(InvalidInputError, match="cannot be resumed"):
        gap_of(trained, proof="fast", resume=tmp_path / "bad.json")
    with pytest.raises(InvalidInputError, match="workers"):
        gap_of(trained, proof="fast", workers=0)


def test_a_relaxation_costs_more_than_one_with_less_in_it():
    root = leaves_of(40, 3)
    small, larger, wider = (grouped_leaves(40, 3, *size) for size in ((2, 4), (4, 4), (2, 8)))
    parted = tuple(part for leaf in root for part in parts_of(leaf, np.eye(3)[0], 0.1))
    for cheap, dear in ((root, small), (small, larger), (small, wider), (root, parted)):
        assert operations(cheap) < operations(dear)
        assert memory(cheap) < memory(dear)


def test_the_clock_passes_over_what_would_be_late():
    clock = Clock(deadline=0.0)
    assert clock.allows(1e30) == (clock.left() > 0)  # nothing is known: the deadline alone decides
    clock = Clock(deadline=clock.begun + 100.0)
    clock.begun -= 1.0
    clock.end(1e9)  # a second for a billion
    assert clock.allows(5e10)
    assert not clock.allows(2e11)


def test_threads_change_nothing():
    problem = replace(problem_of("squared", 20, 3, 0.05), output_bias=False)
    leaves, copies = grouped_leaves(20, 3, 2, 4), Copies.of(problem.X.numpy())
    points = [
        list(iterates(Relaxation(problem.loss, 0.05, False, leaves, copies, workers), 1.0, 5))[-1].x
        for workers in (1, 2)
    ]
    for one, two in zip(*points, strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-9, atol=1e-12)


def test_cones_go_on_to_smaller_margins_where_the_time_allows():
    """The first margin leaves half a per cent; the second fits easily, whatever the first one's time suggests."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((200, 5))
    X /= np.linalg.norm(X, axis=0)
    y = np.maximum(X @ rng.standard_normal((5, 5)), 0) @ np.array([1, -1, 1, -1, 1.0])
    options = {"weight_decay": 1e-2 * float(np.abs(y).mean()), "random_state": 0}
    network = train(X, y, hidden_bias=False, output_bias=False, tol=1e-4, max_seconds=5, **options).network
    gap = optimality_gap(network, X, y, proof="tree", timeout=120, tol=1e-3, max_seconds=0.2, **options)
    assert gap.gap <= 1e-3
