"""Mixed-integer programs: claims against enumeration of all phases, and what they may and may not decide."""

import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from certify_cases import NETWORKS, centres, graph_of, mlp, randomised, regions_around, seeded
from certify_laws import exact_minimum
from torch import nn

import certify
from certify.bounds import AlphaCROWN
from certify.bounds.linear_model import Question
from certify.ir.from_torch import graph_from_torch
from certify.properties import margins_of_labels
from certify.regions import Box
from certify.search import PLANS, Deadline
from certify.search.milp import Claim, MixedIntegerModel, minimum
from certify.verdict import Status

QUIET = replace(PLANS["milp"], attack=None)


def small(seed, widths=(3, 4, 3, 2)):
    graph = graph_from_torch(randomised(mlp(*widths).double(), seed), input_shape=(widths[0],))
    centre = centres(widths[0], 1, seed)
    return graph, Box(centre - 0.5, centre + 0.5)


def rows_of(graph, seed, count=2):
    return torch.randn((count, graph.output_shape[0]), generator=seeded(seed), dtype=torch.float64)


@pytest.mark.parametrize("seed", range(4))
def test_claims_and_both_sides_of_a_minimum_meet_enumeration(seed):
    graph, region = small(seed)
    for row in rows_of(graph, seed):
        exact = exact_minimum(graph, region.lower[0].numpy(), region.upper[0].numpy(), row.numpy()) + 0.25
        found = minimum(graph, region, row, constant=0.25, gap=1e-4)
        assert found.lower <= exact + 1e-9
        assert found.upper >= exact - 1e-9
        assert found.upper - found.lower <= 1e-4 * max(1.0, abs(exact)) + 1e-12
        assert found.claim == pytest.approx(exact, abs=1e-5)
        value = graph(torch.from_numpy(found.point)[None])[0] @ row + 0.25
        assert float(value) == found.upper
        assert bool(region.contains(torch.from_numpy(found.point)[None]))


def mostly_slow(fast, names):
    return [name if name in fast else pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.mark.parametrize("kind", ["l2", "l1", "l2 in domain", "linf in domain", "point"])
@pytest.mark.parametrize("name", mostly_slow(["two-layer"], ["two-layer", "batch-norm", "relu-last", "one-output"]))
def test_minima_on_every_region_are_below_samples_and_attained(name, kind):
    graph = graph_of(name)
    region = regions_around(centres(int(np.prod(graph.input_shape)), 1, 3), 0.4)[kind]
    row = rows_of(graph, 5, 1)[0]
    found = minimum(graph, region, row)
    assert found.lower <= found.upper
    assert found.upper - found.lower <= 1.1e-3 * max(1.0, abs(found.upper))
    assert bool(region.contains(torch.from_numpy(found.point)[None], 1e-9))
    generator = seeded(6)
    for _ in range(200):
        assert float(graph(region.sample(generator)).flatten() @ row) >= found.lower


def test_a_solver_that_lies_about_a_minimum_is_found_out(monkeypatch):
    """A point that is not the least, and a bound above the minimum: the search finds the better point."""
    graph, region = small(3)
    row = rows_of(graph, 3)[0]
    exact = exact_minimum(graph, region.lower[0].numpy(), region.upper[0].numpy(), row.numpy())
    lie = Claim(exact + 5.0, region.upper[0].numpy(), True)
    monkeypatch.setattr(MixedIntegerModel, "minimise", lambda *args, **options: lie)
    found = minimum(graph, region, row)
    assert found.lower <= exact + 1e-9 <= found.upper + 2e-9
    assert found.upper - found.lower <= 1.1e-3 * max(1.0, abs(exact))


def test_a_cutoff_claims_no_more_than_it_was_asked():
    graph, region = small(1)
    bounds = AlphaCROWN()(graph, region)
    model = MixedIntegerModel.of(Question(graph, region, bounds))
    row = rows_of(graph, 1)[0]
    objective = row.numpy() @ model.linear.expressions[graph.output]
    exact = exact_minimum(graph, region.lower[0].numpy(), region.upper[0].numpy(), row.numpy())
    for below in (exact - 1.0, exact + 1.0):
        claim = model.minimise(objective, Deadline(), below=below)
        assert claim.bound == pytest.approx(min(below, exact), abs=1e-5)
        assert (claim.point is None) == (below < exact)
    assert model.minimise(objective, Deadline()).bound == pytest.approx(exact, abs=1e-5)  # the cutoff is gone
    assert model.minimise(objective, Deadline(1e-9)).bound == -np.inf
    assert model.phases > 0


@pytest.mark.parametrize("name", mostly_slow(["two-layer", "relu-last"], NETWORKS))
def test_answers_are_those_of_the_complete_search(name):
    network, shape = NETWORKS[name]
    points = torch.rand((2, *shape), generator=seeded(8)).numpy()
    plain = {name: replace(plan, attack=None) for name, plan in PLANS.items()}
    for x in points:
        outputs = network(torch.as_tensor(x, dtype=next(network.parameters()).dtype)[None])[0]
        label = int(outputs.argmax()) if len(outputs) > 1 else int(outputs > 0)
        for eps, norm in ((0.05, "linf"), (0.3, "l2")):
            options = {"label": label, "eps": eps, "norm": norm}
            assert (
                certify.verify(network, x, method=plain["milp"], **options).status
                is certify.verify(network, x, method=plain["complete"], **options).status
            )


def test_a_counterexample_of_the_program_is_replayed():
    network = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 2)).eval()
    with torch.no_grad():
        network[0].weight.copy_(torch.tensor([[1.0], [1.0]]))
        network[0].bias.copy_(torch.tensor([-0.9, -0.95]))
        network[2].weight.copy_(torch.tensor([[0.0, 0.0], [1.0, 0.0]]))
        network[2].bias.copy_(torch.tensor([0.05, 0.0]))
    verdict = certify.verify(network, [0.0], label=0, eps=1.0, method=QUIET)
    assert verdict.status is Status.FALSIFIED
    assert int(network(torch.from_numpy(verdict.counterexample)[None]).argmax()) == 1


@pytest.fixture
def open_question():
    """A question that only a search answers: verified, and by no linear program."""
    network = randomised(mlp(3, 12, 12, 2), 4)
    x = np.full(3, 0.5, dtype=np.float32)
    with torch.no_grad():
        samples = network(torch.rand(4000, 3, generator=seeded(1)))
        network[-1].bias[0] -= (samples[:, 0] - samples[:, 1]).min() - 0.02
    options = {"label": 0, "eps": 0.45}
    lp = certify.verify(network, x, method="lp", **options)
    assert lp.status is Status.UNKNOWN
    return network, x, options


def test_a_claim_without_a_proof_is_no_answer(open_question, monkeypatch):
    """The programs claim that nothing can be lost, and the search never gets to prove it."""
    network, x, options = open_question
    unproved = replace(QUIET, complete=False)
    verdict = certify.verify(network, x, method=unproved, **options)
    assert verdict.status is Status.UNKNOWN
    assert dict(verdict.claims) == {1: 0.0}
    assert verdict.worst_margin < 0
    assert "HiGHS claims, without proof, that 1 of 1 open margins hold" in str(verdict)
    proved = certify.verify(network, x, method=QUIET, **options)
    assert proved.status is Status.VERIFIED
    assert proved.worst_margin > 0
    assert proved.method == "milp, then complete"


@pytest.mark.parametrize("truth", [True, False])
def test_a_lying_solver_changes_no_answer(open_question, monkeypatch, truth):
    network, x, options = open_question
    options = options if truth else options | {"eps": 3.0}
    lie = Claim(-50.0, x.astype(float), True) if truth else Claim(0.0, None, True)
    monkeypatch.setattr(MixedIntegerModel, "minimise", lambda *args, **rest: lie)
    verdict = certify.verify(network, x, method=QUIET, **options)
    assert verdict.status is (Status.VERIFIED if truth else Status.FALSIFIED)


def test_activations_that_are_not_piecewise_linear_are_named():
    network = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 3), nn.Sigmoid(), nn.Linear(3, 2)).eval()
    with pytest.raises(certify.UnsupportedOp, match=r"has Sigmoid, Tanh, .* use method="):
        certify.verify(network, [0.0, 0.0], label=0, eps=0.1, method="milp")
    with pytest.raises(certify.UnsupportedOp, match="Sigmoid, Tanh"):
        minimum(graph_from_torch(network), Box(*torch.zeros(2, 1, 2).double()), torch.ones(2).double())


def test_one_region_at_a_time():
    graph, region = small(0)
    with pytest.raises(certify.InvalidInputError, match="holds 2 inputs; expected one"):
        minimum(graph, region.select([0, 0]), torch.ones(2).double())


@pytest.mark.parametrize("seconds", [0.2, 2.0])
def test_the_time_limit_is_kept(seconds):
    network = randomised(mlp(10, 50, 50, 50, 3), 2)
    x = np.full(10, 0.5, dtype=np.float32)
    label = int(network(torch.from_numpy(x)[None]).argmax())
    start = time.perf_counter()
    verdict = certify.verify(network, x, label=label, eps=0.3, method=QUIET, timeout=seconds)
    assert time.perf_counter() - start < seconds + 2.0
    assert verdict.status in (Status.TIMEOUT, Status.FALSIFIED)


def test_a_data_set_goes_through_the_programs():
    network, shape = NETWORKS["two-layer"]
    X = torch.rand((6, *shape), generator=seeded(9)).numpy()
    y = network(torch.from_numpy(X)).argmax(1).numpy()
    options = {"eps": 0.1, "norm": "linf"}
    with_programs = certify.certified_accuracy(network, X, y, method="milp", **options)
    searched = certify.certified_accuracy(network, X, y, method="complete", **options)
    assert with_programs.certified == searched.certified
    assert with_programs.certified + 1 - with_programs.attacked == pytest.approx(1.0)


def test_the_program_has_the_phases_that_are_open(monkeypatch):
    graph, region = small(2)
    bounds = AlphaCROWN()(graph, region)
    undecided = sum(int(((bounds.lower[k] < 0) & (bounds.upper[k] > 0)).sum()) for k in graph.relaxed)
    assert MixedIntegerModel.of(Question(graph, region, bounds)).phases == undecided
    point = regions_around(region.centre, 0.1)["point"]
    decided = MixedIntegerModel.of(Question(graph, point, AlphaCROWN()(graph, point)))
    assert decided.phases == 0
    row = margins_of_labels(torch.tensor([0]), 2).rows[0, 0]
    claim = decided.minimise(row.numpy() @ decided.linear.expressions[graph.output], Deadline())
    assert claim.bound == pytest.approx(float(graph(point.centre)[0] @ row), abs=1e-9)
