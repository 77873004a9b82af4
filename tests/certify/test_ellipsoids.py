"""Boxes of many inputs as ellipsoids: the same strength as the box's sides once the shares fit, and valid before."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sdp_cases import case, target_of, tight

from certify.bounds.sdp import Inputs, Relaxation, Settings, proved_bound, solve, solve_cases
from certify.bounds.sdp.inputs import half_widths
from certify.bounds.sdp.interior import Settings as Stopping
from certify.bounds.sdp.interior import solve as interior_point
from certify.bounds.sdp.rounds import Round
from certify.bounds.sdp.shares import Shares
from certify.search import Deadline
from certify.search.milp import minimum

BOXES = ["linf in domain", "box"]


def solved(target, inputs):
    relaxation = Relaxation(target, inputs)
    found = interior_point(relaxation.program, relaxation.start(), relaxation.moments(), Stopping(60, 1e-7))
    return relaxation, found


def by_sides(target):
    """Every side a constraint of its own."""
    return solved(target, Inputs.of(target, np.arange(len(target.offsets.centre))))


def shares_of(target, multipliers):
    values = multipliers.nu * half_widths(target.offsets) ** 2
    return values / values.sum()


@pytest.mark.parametrize("kind", BOXES)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_shares_of_the_sides_own_multipliers_lose_nothing(kind, seed):
    target = target_of(*case(seed, kind, 5, 8, 6, 2, eps=0.6))
    relaxation, sides = by_sides(target)
    _, found = solved(target, Inputs.ellipsoid(target, shares_of(target, relaxation.multipliers(sides.y))))
    assert found.bound == pytest.approx(sides.bound, abs=1e-4 * (1 + abs(sides.bound)))


@pytest.mark.parametrize("kind", BOXES)
def test_moments_are_one_where_shares_are_optimal(kind):
    """Where a side has a multiplier, the mean of ((d - middle) / half)^2 is 1; no mean is above."""
    target = target_of(*case(4, kind, 5, 8, 6, 2, eps=0.6))
    relaxation, sides = by_sides(target)
    shares = shares_of(target, relaxation.multipliers(sides.y))
    ellipsoid, found = solved(target, Inputs.ellipsoid(target, shares))
    squares = ellipsoid.inputs.squares(found.X) / half_widths(target.offsets) ** 2
    assert squares.max() <= 1.01
    assert np.abs(squares - 1)[shares > 1e-2].max() <= 1e-2


def test_optimal_shares_stay_what_they_are():
    """For sides of different widths, so that a moment in the wrong unit would move them."""
    target = target_of(*case(4, "box", 5, 8, 6, 2, eps=0.6))
    widths = np.array([0.1, 0.3, 1.0, 0.5, 0.2])
    target = replace(target, offsets=replace(target.offsets, lower=-widths, upper=widths))
    relaxation, sides = by_sides(target)
    shares = replace(Shares.of(target), values=shares_of(target, relaxation.multipliers(sides.y)))
    now = Round(shares, *solved(target, Inputs.ellipsoid(target, shares.values)))
    assert now.next_shares(now).values == pytest.approx(shares.values, abs=2e-3)


@pytest.mark.parametrize("seed", range(4))
def test_any_shares_give_bounds_below_those_of_the_sides(seed):
    target = target_of(*case(seed, "box", 5, 8, 6, 2, eps=0.6))
    values = np.random.default_rng(seed).uniform(0.01, 1, 5)
    relaxation, found = solved(target, Inputs.ellipsoid(target, values / values.sum()))
    _, sides = by_sides(target)
    proved = proved_bound(target, relaxation.multipliers(found.y))
    assert proved == pytest.approx(found.bound, abs=1e-5 * (1 + abs(found.bound)))
    assert proved <= sides.bound + 1e-6 * (1 + abs(sides.bound))


def test_coordinates_keep_what_the_network_sees():
    """Of every row that matters, and the squares of what the coordinates describe."""
    target = target_of(*case(2, "linf in domain", 40, 6, 5, 2, eps=0.6))
    values = np.random.default_rng(0).uniform(0.01, 1, 40)
    inputs = Inputs.ellipsoid(target, values / values.sum())
    assert inputs.rank <= 6
    v = inputs.sample(target, 7, np.random.default_rng(1))
    d = np.random.default_rng(1).uniform(-1, 1, (7, 40)) * half_widths(target.offsets)  # the offsets from the middle
    W = target.layers[0][0][target.needed]
    assert v @ inputs.map.T @ W.T == pytest.approx(d @ W.T, abs=1e-10)
    assert (np.linalg.norm(v, axis=1) <= 1).all()
    moments = np.concatenate([np.ones((7, 1)), v], 1)
    expected = np.mean((v @ inputs.map.T) ** 2, axis=0)
    assert inputs.squares(moments.T @ moments / 7) == pytest.approx(expected, rel=1e-9)


def test_shares_follow_the_moments():
    target = target_of(*case(2, "linf in domain", 40, 6, 5, 2, eps=0.6))
    first = Shares.of(target)
    assert first.values.min() > 0
    assert first.values.sum() == pytest.approx(1)
    assert first.after(np.ones(40)).values == pytest.approx(first.values)
    squares = np.where(np.arange(40) < 20, 2.0, 0.5)
    after = first.after(squares)
    grown = after.values / first.values
    assert grown[:20].min() > grown[20:].max()
    turned, same = after.after(1 / squares), after.after(squares)
    assert (turned.exponents < after.exponents).all()
    assert (same.exponents > after.exponents).all()
    assert Shares.of(target).after(np.zeros(40)).values.min() > 0


def large(seed, eps=0.15, sizes=(140, 10, 8, 2)):
    return case(seed, "linf in domain", *sizes, eps=eps)


@pytest.mark.parametrize("seed", [1, 3])
def test_rounds_end_near_the_sides(seed):
    target = target_of(*large(seed))
    assert sum(map(len, target.unstable)) > 4
    _, sides = by_sides(target)
    found = solve(target, Settings(tolerance=1e-4, cuts=(), rounds=25))
    assert found.bound <= sides.value + 1e-6
    assert found.bound >= sides.bound - 0.01 * (1 + abs(sides.bound))
    assert solve(target, Settings(cuts=(), rounds=1)).bound <= found.bound
    # Started from its own multipliers there is little left to gain.
    again = solve(target, Settings(tolerance=1e-4, cuts=(), rounds=1), known=found.multipliers)
    assert again.bound == pytest.approx(found.bound, abs=2e-3 * (1 + abs(found.bound)))


def test_cuts_and_cases_of_a_large_box_stay_below_the_exact_minimum():
    graph, region, bounds, margins = large(1, eps=0.3, sizes=(140, 6, 5, 2))
    target = target_of(graph, region, bounds, margins)
    exact = minimum(graph, region, margins.rows[0, 0], constant=0.0, deadline=Deadline(20.0)).upper
    plain = solve(target, Settings(cuts=()))
    cut, cases = solve(target, Settings()), solve_cases(target, Settings(), most=4)
    assert plain.bound + 0.05 <= cut.bound
    assert cut.bound + 0.005 <= cases.bound
    assert cases.bound <= exact + 1e-9 * (1 + abs(exact))
    assert len(cases.order) > 1
    for iterations in (0, 1, 3, 8):
        early = solve(target, Settings(iterations=iterations, rounds=3))
        assert early.bound <= exact + 1e-9 * (1 + abs(exact))
        assert np.isfinite(early.bound)
    point = torch.tensor(cases.points[0])[None]
    assert region.contains(point, tolerance=1e-9)


def test_rounds_stop_when_time_is_over_and_when_it_is_enough():
    target = target_of(*large(3))
    full = solve(target, Settings(cuts=()))
    stopped = solve(target, Settings(cuts=()), stop=lambda: True)
    assert stopped.iterations == 0
    assert np.isfinite(stopped.bound)
    enough = stopped.bound + 0.5 * (full.bound - stopped.bound)
    early = solve(target, Settings(cuts=(), enough=enough))
    assert enough < early.bound <= full.bound + 1e-6
    assert early.iterations < full.iterations
    hopeless = solve(target, Settings(cuts=(), hopeless=full.value + 10 * (1 + abs(full.value))))
    assert hopeless.iterations < full.iterations


def test_tight_settings_are_those_of_small_boxes_too():
    """A box of few inputs has its sides as constraints: rounds change nothing."""
    target = target_of(*case(1, "box", 5, 8, 6, 2, eps=0.6))
    assert solve(target, tight).bound == solve(target, Settings(60, 1e-6, cuts=(), rounds=1)).bound
