"""Searches in parts: nothing is lost between parts, and what holds up to a ceiling proves no more than the ceiling.

The least of many samples, descended from where it is low, is above the true minimum: every bound has to be below it.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from certify_cases import seeded
from test_phases import CONDITIONS, IN_PARTS, Part, box_around, random_network

from certify.bounds.entries import plain_entries
from certify.properties.query import Case
from certify.search import Deadline
from certify.search.phases import Finding, search_phases
from certify.search.phases.branching import start_of
from certify.search.phases.corner import by_linear_program
from certify.search.phases.leaves import Leaves
from certify.search.phases.narrow import are_empty, narrowed
from certify.search.phases.parts import Part as OpenPart
from certify.search.phases.parts import run_part

ROW = np.array([[1.0, -1.0]])
QUIET = replace(IN_PARTS, restarts=0, descents=0)


def refuses(x, case):
    return False


def least_value(graph, lower, upper):
    """About the least y_0 - y_1, from above."""
    generator = seeded(1)
    low, high = torch.from_numpy(lower), torch.from_numpy(upper)
    x = low + torch.rand((20_000, len(low)), generator=generator, dtype=torch.float64) * (high - low)
    y = graph(x)
    x = x[(y[:, 0] - y[:, 1]).argsort()[:50]]
    for k in range(60):
        x.requires_grad_(True)
        y = graph(x)
        (gradient,) = torch.autograd.grad((y[:, 0] - y[:, 1]).sum(), x)
        x = (x.detach() - 0.9**k * 0.1 * (high - low) * gradient.sign()).clamp(low, high)
    y = graph(x)
    return float((y[:, 0] - y[:, 1]).min())


def asked(seeds, gap):
    """A network and one case for every box: y_0 - y_1 <= least - gap."""
    graph = random_network(5, 3, 8, 6, 2)
    boxes = [box_around(3, seed, 0.8) for seed in seeds]
    least = [least_value(graph, *box) for box in boxes]
    return graph, [Case(*box, ROW, np.array([low - gap])) for box, low in zip(boxes, least, strict=True)]


def test_every_tree_of_a_search_in_parts_has_a_bound_below_its_minimum():
    graph, cases = asked((3, 7, 11), 0.05)
    outcome = search_phases(graph, cases, deadline=Deadline(), effort=QUIET)
    assert outcome.leaves > 20
    assert outcome.finding is Finding.EMPTY
    assert (outcome.bound > 0).all()
    assert (outcome.bound <= 0.05 + 1e-9).all()


def test_what_has_a_point_stays_open_where_nobody_confirms_it():
    """Every leaf with a point of the case ends stuck; so do cases that were stuck before the search was cut up."""
    graph, (first, second) = asked((3, 7), 0.05)
    middle = (first.lower + first.upper) / 2
    values = graph(torch.from_numpy(middle)[None])[0].numpy()
    point = Case(middle, middle, ROW, ROW @ values)
    reached = replace(second, b=second.b + 0.1, written_b=None)
    for cases in ([first, reached], [point, first], [first, point]):
        outcome = search_phases(graph, cases, deadline=Deadline(60.0), effort=QUIET, confirm=refuses)
        assert outcome.finding is Finding.OPEN
        for case, bound in zip(cases, outcome.bound.tolist(), strict=True):
            assert bound > 0 if case is first else bound <= 0


@pytest.fixture(scope="module")
def reached():
    """A part with points that meet its condition, and a finite ceiling."""
    part = Part(CONDITIONS["one"], lambda values: values.quantile(0.01, dim=0))
    return part, replace(part.root, ceiling=torch.full((1,), 1e-3, dtype=torch.float64))


def leaf_holds(root, leaf, values):
    z = torch.cat([values[slot.source].flatten(1) for slot in root.slots], 1)[:, root.columns]
    return (z * leaf.signs[0] >= 0).all(1)


@pytest.mark.parametrize("least", [1, 8])
def test_a_point_that_meets_the_conditions_is_in_something_that_is_left(reached, least):
    part, root = reached
    effort = replace(QUIET, least=least, narrow_entries=2)
    report = run_part(root, OpenPart(part.leaves, root.relaxed.bounds), effort, Deadline())
    assert len(report.open) > 1
    values = part.graph.values(part.points[part.slack <= 0])
    left = torch.zeros(int((part.slack <= 0).sum()), dtype=torch.bool)
    for leaf in (*(p.leaf for p in report.open), *report.stuck):
        left |= leaf_holds(root, leaf, values)
    assert left.all()
    assert (report.bound <= root.ceiling).all() or torch.isinf(report.bound).all()


def without_points(gap):
    part = Part(CONDITIONS["one"], lambda values: values.amin(0) - gap)
    return part, replace(part.root, ceiling=torch.full((1,), 1e-3, dtype=torch.float64))


def test_a_part_whose_bounds_cross_is_proved_up_to_the_ceiling_only():
    part, root = without_points(0.3)
    low = {k: v.clone() for k, v in root.relaxed.bounds.lower.items()}
    node = root.slots[0].source
    low[node][..., 0] = root.relaxed.bounds.upper[node][..., 0] + 1.0
    crossed = replace(root, relaxed=root.relaxed.between(replace(root.relaxed.bounds, lower=low)))
    assert are_empty(crossed, part.leaves).all()
    report = run_part(root, OpenPart(part.leaves, crossed.relaxed.bounds), QUIET, Deadline())
    assert (len(report.open), len(report.stuck)) == (0, 0)
    assert 0 < float(report.bound) <= 1e-3


def test_a_linear_program_of_a_part_proves_at_most_the_ceiling():
    part, root = without_points(0.3)
    values = part.graph.values(part.points[:1])
    z = torch.cat([values[slot.source].flatten(1) for slot in root.slots], 1)[:, root.columns]
    leaf: Leaves = replace(part.leaves, signs=torch.where(z >= 0, 1, -1).to(torch.int8))
    free, _ = by_linear_program(part.root, leaf, 5.0)
    own, _ = by_linear_program(root, leaf, 5.0)
    assert float(free.bound) > 0.1
    assert float(own.bound) == 1e-3


def test_the_rounding_of_a_hidden_entry_counts_in_its_bound():
    part, root = without_points(0.3)
    relaxed, leaves = root.relaxed, part.leaves
    source = root.slots[-1].source
    entry = plain_entries(part.graph, relaxed.steps, source)(torch.tensor([0]), torch.tensor([[0]]))
    form = root.trees.form(leaves.tree)
    start = start_of(root, leaves, relaxed.forms(form, leaves.owner))
    plain, shaken = (
        relaxed.judge(form, leaves.owner, start, entry=replace(entry, error=entry.error + extra))
        for extra in (0.0, 0.5)
    )
    torch.testing.assert_close(shaken, plain - 0.5)


def test_weights_of_conditions_count_by_their_shares():
    """A sum of weights above one would raise a bound above the largest condition."""
    part = Part(CONDITIONS["two"], lambda values: values.amin(0) - 0.3)
    relaxed, leaves, form = part.root.relaxed, part.leaves, part.root.trees.form(part.leaves.tree)
    start = start_of(part.root, leaves, relaxed.forms(form, leaves.owner))
    plain, thrice = (
        relaxed.judge(form, leaves.owner, replace(start, weights=start.weights * factor, multipliers=None))
        for factor in (1.0, 3.0)
    )
    torch.testing.assert_close(thrice, plain)
    assert (plain <= part.slack.min()).all()
    assert plain.abs().max() > 1e-3


def test_fixed_phases_are_bounds_of_a_part(reached):
    part, root = reached
    twins = part.leaves.children()
    for k, sign in enumerate((1, -1)):
        leaf = twins.select(torch.tensor([k]))
        own, _ = narrowed(root, leaf, 2, 5, lambda: False)
        low, high = (
            torch.cat([own.relaxed.bounds[slot.source][side].flatten(1) for slot in own.slots], 1)[:, own.columns]
            for side in (0, 1)
        )
        fixed = leaf.signs == sign
        assert fixed.any()
        assert (low[fixed] >= 0).all() if sign == 1 else (high[fixed] <= 0).all()
