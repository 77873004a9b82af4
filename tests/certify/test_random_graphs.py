"""Bounds of random networks of every operation against values at random and attacked inputs."""

import numpy as np
import pytest
import torch
from certify_cases import METHODS, OPERATIONS, PROGRAMS, SLOPES, centres, regions_around
from certify_laws import never_looser, samples_stay_inside
from random_graphs import random_graph

from certify import UnsupportedOp
from certify.ir.ops import AbstractAffine, ReLU
from certify.properties import Margins
from certify.search import Deadline
from certify.search.milp import minimum

EVERY = [*METHODS, *SLOPES, *PROGRAMS]
KINDS = ["box", "linf", "l2", "l1", "l2 in domain", "point"]


def check(seed, methods=METHODS):
    """Returns the operations that the network has."""
    graph = random_graph(seed)
    kind = KINDS[seed % len(KINDS)]
    centre = centres(int(np.prod(graph.input_shape)), 2, seed)
    region = regions_around(centre, (0.05, 0.3, 1.0)[seed % 3])[kind]
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn((2, 3, int(np.prod(graph.output_shape))), generator=generator, dtype=torch.float64)
    margins = Margins(rows, rows[..., 0], torch.zeros(2, 3, dtype=torch.long), torch.zeros(2, dtype=torch.bool))
    points = torch.cat([region.sample(generator) for _ in range(20)])
    values = graph(points).flatten(1)
    np.testing.assert_allclose(
        graph.map_arrays(lambda v: v.numpy())(points.numpy()).reshape(values.shape), values, rtol=1e-10, atol=1e-10
    )
    at = torch.stack([margins.of_outputs(part) for part in values.chunk(20)])
    corners = worst_points(graph, region, margins)
    found, best = {}, torch.full_like(corners, -torch.inf)
    for method in methods:
        bounds = found[method.name] = method(graph, region)
        samples_stay_inside(graph, region, bounds, seed, count=10)
        lower = method.margins(graph, region, bounds, margins)
        assert (at >= lower - 1e-12 * (1 + at.abs())).all(), (seed, method.name)
        assert (corners >= lower - 1e-12 * (1 + corners.abs())).all(), (seed, method.name)
        best = torch.maximum(best, lower)
    if {"ibp", "crown"} <= set(found):
        never_looser(found["crown"], found["ibp"], 1e-12)
    if methods is EVERY:
        exact_minima_are_not_crossed(graph, region, margins, best, corners)
    return {type(n.op) for n in graph.nodes}


def exact_minima_are_not_crossed(graph, region, margins, best, corners):
    """One margin between its proved and its attained minimum; a typed error where no program is exact."""
    one = region.select([0])
    row, constant = margins.rows[0, 0], float(margins.constants[0, 0])
    if not all(isinstance(n.op, AbstractAffine | ReLU) for n in graph.nodes[1:]):
        with pytest.raises(UnsupportedOp, match="mixed-integer"):
            minimum(graph, one, row, constant=constant)
        return
    found = minimum(graph, one, row, constant=constant, deadline=Deadline(5.0))
    slack = 1e-12 * (1 + abs(found.upper))
    assert found.lower <= found.upper
    assert best[0, 0] <= found.upper + slack
    assert found.lower <= corners[0, 0] + slack


def worst_points(graph, region, margins):
    """The margins after a few steps down each of them."""
    least = []
    for k in range(margins.rows.shape[1]):
        points = region.centre.clone()
        for _ in range(5):
            points.requires_grad_(True)
            value = margins.of_outputs(graph(points).flatten(1))[:, k].sum()
            (gradient,) = torch.autograd.grad(value, points)
            points = region.project(points.detach() - region.ascent_direction(gradient))
        least.append(margins.of_outputs(graph(points).flatten(1))[:, k])
    return torch.stack(least, 1)


def test_bounds_hold_on_random_networks():
    seen = set()
    for seed in range(24):
        # The ascent and the programs cost most of the time.
        seen |= check(seed, EVERY if seed % 12 == 0 else [*METHODS[:3], *SLOPES])
    assert seen >= set(OPERATIONS)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(20))
def test_substitutions_hold_on_two_thousand_random_networks(part):
    """About half a minute for each hundred."""
    for seed in range(1000 + 100 * part, 1100 + 100 * part):
        check(seed, [*METHODS, *SLOPES])


@pytest.mark.slow
@pytest.mark.parametrize("part", range(20))
def test_every_method_holds_on_two_thousand_random_networks(part, monkeypatch):
    """With linear and mixed-integer programs: about four minutes for each hundred."""
    # Balls in many dimensions would take nearly all of the time: fewer tangents, looser bounds.
    monkeypatch.setattr("certify.bounds.linear_model._TANGENTS", 6)
    for seed in range(1000 + 100 * part, 1100 + 100 * part):
        check(seed, EVERY)
