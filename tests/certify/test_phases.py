"""The search on phases against exact arithmetic and enumeration, and what it promises on the way."""

from dataclasses import replace
from fractions import Fraction
from time import perf_counter

import exact_phases
import numpy as np
import pytest
import torch
from certify_cases import centres, mlp, randomised, seeded
from certify_laws import exact_minimum
from torch import nn

import certify
from certify.bounds import CROWN
from certify.errors import InvalidInputError
from certify.ir.from_torch import graph_from_torch
from certify.ir.graph import Graph
from certify.ir.ops import Linear, ReLU
from certify.properties import margins_of_labels
from certify.properties.query import Case
from certify.regions import Box, LpBall
from certify.search import Deadline
from certify.search.phases import Effort, Finding, Trees, search, search_phases
from certify.search.phases.bounding import bound
from certify.search.phases.growth import first_leaves
from certify.search.phases.narrow import narrowed
from certify.search.phases.root import roots_of

NO_ATTACK = Effort(restarts=0)


def graph_from_layers(layers):
    graph = Graph.start((layers[0][0].shape[1],))
    for k, (weight, bias) in enumerate(layers):
        graph = graph.append(Linear(weight, bias))
        graph = graph.append(ReLU()) if k < len(layers) - 1 else graph
    return graph


def judge(seed, effort=None):
    """(answer of the search, exact answer): a witness needs an exactly unsafe point."""
    layers, lower, upper, polytopes = exact_phases.random_problem(seed)

    def confirm(x, case):
        y = exact_phases.evaluate(layers, x)
        rows = zip(case.A, case.b, strict=True)
        inside = bool((x >= lower).all() and (x <= upper).all())
        return inside and all(
            sum(Fraction(float(a)) * v for a, v in zip(row, y, strict=True)) <= Fraction(float(b)) for row, b in rows
        )

    cases = [Case(lower, upper, A, b) for A, b in polytopes]
    effort = effort or Effort(restarts=2, descents=10)
    outcome = search_phases(graph_from_layers(layers), cases, deadline=Deadline(200.0), confirm=confirm, effort=effort)
    truth = Finding.WITNESS if exact_phases.satisfiable(layers, lower, upper, polytopes) else Finding.EMPTY
    return outcome.finding, truth


def test_no_answer_contradicts_exact_arithmetic():
    """Half of these questions ask for the exact minimum or a neighbouring double; those may stay open."""
    answers = [judge(seed) for seed in range(1000, 1080)]
    wrong = [seed for seed, (answer, truth) in enumerate(answers, 1000) if answer not in (truth, Finding.OPEN)]
    assert not wrong
    assert sum(answer is not Finding.OPEN for answer, _ in answers) > 50
    assert {Finding.WITNESS, Finding.EMPTY} <= {answer for answer, _ in answers}


@pytest.mark.slow
def test_no_answer_contradicts_exact_arithmetic_at_length():
    answers = [judge(seed) for seed in range(2000, 4000)]
    assert not [seed for seed, (answer, truth) in enumerate(answers, 2000) if answer not in (truth, Finding.OPEN)]


def random_network(seed, *widths):
    return graph_from_torch(randomised(mlp(*widths).double(), seed), input_shape=(widths[0],))


def box_around(n, seed, eps):
    centre = centres(n, 1, seed)
    return (centre - eps)[0].numpy(), (centre + eps)[0].numpy()


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("gap", [1e-3, -1e-3, 0.05])
def test_thresholds_around_the_exact_minimum_are_told_apart(seed, gap):
    """y_0 - y_1 <= minimum - gap has no point, <= minimum + gap has one."""
    graph = random_network(seed, 3, 4, 3, 2)
    lower, upper = box_around(3, seed, 0.8)
    row = np.array([1.0, -1.0])
    least = exact_minimum(graph, lower, upper, row)
    case = Case(lower, upper, row[None], np.array([least - gap]))
    outcome = search_phases(graph, [case], deadline=Deadline(60.0))
    assert outcome.finding is (Finding.EMPTY if gap > 0 else Finding.WITNESS)
    if gap > 0:
        assert 0 < outcome.bound.item() <= gap + 1e-9
    else:
        assert outcome.witness is not None
        point = outcome.witness.point
        assert ((point >= lower) & (point <= upper)).all()
        assert row @ graph(torch.from_numpy(point)[None])[0].numpy() <= least - gap


@pytest.mark.parametrize("seed", range(6))
def test_conjunctions_with_no_single_empty_condition(seed):
    """Each condition alone has points; all together have none, or have some, as sampling and weights show."""
    graph = random_network(seed, 3, 4, 3, 3)
    lower, upper = box_around(3, seed, 0.7)
    A = np.array([[1.0, -1.0, 0.0], [-1.0, 0.0, 1.0], [0.0, 1.0, -1.0]])  # sums to 0: empty for any b < 0
    b = np.array([-0.05, -0.05, -0.05])
    outcome = search_phases(graph, [Case(lower, upper, A, b)], deadline=Deadline(60.0), effort=NO_ATTACK)
    assert outcome.finding is Finding.EMPTY
    roomy = Case(lower, upper, A[:1], np.array([exact_minimum(graph, lower, upper, A[0]) + 0.05]))
    assert search_phases(graph, [roomy], deadline=Deadline(60.0)).finding is Finding.WITNESS


@pytest.mark.parametrize("name", ["residual", "conv", "max-pool"])
@pytest.mark.parametrize("seed", range(2))
def test_other_graphs_agree_with_dense_sampling_and_close_below(name, seed):
    """What is reached by sampling is never excluded, and somewhat below the least sample there is nothing."""
    graph, n = SHAPES[name]
    lower, upper = box_around(n, seed, 0.15)
    box = Box(torch.from_numpy(lower)[None], torch.from_numpy(upper)[None])
    generator = seeded(seed)
    samples = torch.stack([graph(box.sample(generator)).flatten(1)[0] for _ in range(2000)])
    row = torch.zeros(samples.shape[1], dtype=torch.float64)
    row[0], row[1] = 1.0, -1.0
    least = float((samples @ row).min())
    reached = Case(lower, upper, row[None].numpy(), np.array([least + 1e-9]))
    outcome = search_phases(graph, [reached], deadline=Deadline(60.0))
    assert outcome.finding is Finding.WITNESS
    lowest = float(CROWN()(graph, box).lower[graph.output][0].min()) - 1.0
    beyond = Case(lower, upper, row[None].numpy(), np.array([2 * lowest - abs(least) - 10.0]))
    assert search_phases(graph, [beyond], deadline=Deadline(60.0)).finding is Finding.EMPTY


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(3, 6), nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x):
        h = self.first(x).relu()
        return self.last((h + self.second(h)).relu())


def _image_graph(*layers):
    torch.manual_seed(0)
    return graph_from_torch(nn.Sequential(*layers).double().eval(), input_shape=(1, 4, 4))


SHAPES = {
    "residual": (graph_from_torch(randomised(Residual().double(), 3), input_shape=(3,)), 3),
    "conv": (
        _image_graph(
            nn.Conv2d(1, 2, 2, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 2)
        ),
        16,
    ),
    "max-pool": (_image_graph(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(2, 2)), 16),
}


def test_bounds_of_leaves_hold_on_their_phases_and_only_rise():
    graph = random_network(5, 4, 8, 8, 3)
    region = Box(*(v[None] for v in map(torch.from_numpy, box_around(4, 5, 0.9))))
    trees = Trees.of_margins(graph, region, margins_of_labels(torch.tensor([1]), 3))
    *_, root = roots_of(trees, None, Deadline())
    leaves = first_leaves(root)
    for _ in range(6):
        done = bound(root, leaves, 12, Effort().rates, lambda: False).leaves
        assert (done.bound >= leaves.bound).all()
        leaves = done.select(done.branch >= 0).children()
    generator, met = seeded(6), 0
    for _ in range(2000):
        values = graph.values(region.sample(generator))
        z = torch.cat([values[s.source].flatten(1) for s in root.slots], 1)[:, root.columns]
        margin = trees.slack(values[-1].expand(len(leaves), -1), leaves.tree)
        obeys = (z * leaves.signs >= 0).all(1)
        assert (margin[obeys] >= leaves.bound[obeys]).all()
        met += int(obeys.sum())
    assert met > 100


def test_a_box_without_width_is_decided():
    graph = random_network(1, 3, 5, 2)
    x = centres(3, 1, 1)[0].numpy()
    y = graph(torch.from_numpy(x)[None])[0].numpy()
    row = np.array([[1.0, -1.0]])
    for gap, finding in ((1e-6, Finding.EMPTY), (0.0, Finding.WITNESS), (-1e-6, Finding.WITNESS)):
        case = Case(x, x, row, row @ y - gap)
        assert search_phases(graph, [case], deadline=Deadline(30.0)).finding is finding


def test_ties_at_zero_are_unsafe():
    """y = relu(x) - relu(x) + 0 on [-1, 1]: y <= 0 holds everywhere, y <= -1e-9 nowhere."""
    layers = [(np.array([[1.0], [1.0]]), np.zeros(2)), (np.array([[1.0, -1.0]]), np.zeros(1))]
    graph, box = graph_from_layers(layers), (np.array([-1.0]), np.array([1.0]))
    for b, finding in ((0.0, Finding.WITNESS), (-1e-9, Finding.EMPTY)):
        case = Case(*box, np.array([[1.0]]), np.array([b]))
        assert search_phases(graph, [case], deadline=Deadline(30.0)).finding is finding


def test_a_network_without_relus_is_searched_too():
    """Conditions that exclude each other, 3 : 1, on an affine network of more inputs than boxes are split for."""
    n = 30
    network = nn.Sequential(nn.Linear(n, 1)).double().eval()
    sides = {"UNSAT": 0.3, "SAT": -0.6}
    for answer, gap in sides.items():
        A, b = np.array([[1.0], [-3.0]]), np.array([-0.1, -gap])
        query = certify.Query((Case(-np.ones(n), np.ones(n), A, b),))
        assert certify.verify_vnnlib(network, query).answer.name == answer


@pytest.mark.parametrize("method", ["auto", "complete"])
def test_a_tie_of_an_affine_network_is_not_decided(method):
    network = nn.Sequential(nn.Linear(2, 2)).double().eval()
    with torch.no_grad():
        network[0].weight.copy_(torch.eye(2))
        network[0].bias.zero_()
    verdict = certify.verify(network, [0.5, -0.5], label=0, eps=0.5, method=method)
    assert verdict.status is not certify.Status.VERIFIED
    assert -1e-9 < verdict.worst_margin <= 0


@pytest.mark.parametrize("gap", [-100.0, 100.0])
@pytest.mark.parametrize("count", [2, 3, 5, 7])
def test_equal_conditions_have_the_bound_of_one(count, gap):
    """Of an affine map with exact arithmetic: however the weights were rounded, no bound is above the minimum."""
    graph = graph_from_layers([(torch.tensor([[1.0, 2.0, -3.0]]).double(), torch.tensor([0.5]).double())])
    case = Case(-np.ones(3), np.ones(3), np.ones((count, 1)), np.full(count, -5.5 - gap))
    outcome = search_phases(graph, [case], deadline=Deadline(), confirm=lambda x, case: False, effort=NO_ATTACK)
    assert gap - 1e-9 < float(outcome.bound) <= gap


def test_several_boxes_and_cases_are_one_search():
    graph = random_network(2, 3, 6, 2)
    first, second = box_around(3, 2, 0.2), box_around(3, 3, 0.2)
    row = np.array([[1.0, -1.0]])
    least = [exact_minimum(graph, *box, row[0]) for box in (first, second)]
    empty = [Case(*box, row, np.array([low - 0.01])) for box, low in zip((first, second), least, strict=True)]
    assert search_phases(graph, empty, deadline=Deadline(60.0)).finding is Finding.EMPTY
    outcome = search_phases(
        graph, [*empty, Case(*second, row, np.array([least[1] + 0.01]))], deadline=Deadline(60.0), effort=NO_ATTACK
    )
    assert outcome.finding is Finding.WITNESS
    assert outcome.witness.tree == 2


def hard_question():
    """Far too many unstable neurons for any search."""
    graph = random_network(7, 20, 120, 120, 120, 2)
    lower, upper = box_around(20, 7, 1.0)
    return graph, Case(lower, upper, np.array([[1.0, -1.0]]), np.array([-6.0]))


@pytest.mark.parametrize("limit", [0.02, 0.5, 1.5])
def test_the_time_limit_is_kept(limit):
    graph, case = hard_question()
    search_phases(graph, [case], deadline=Deadline(0.01))  # whatever loads on first use is loaded
    start = perf_counter()
    outcome = search_phases(graph, [case], deadline=Deadline(limit), confirm=lambda x, c: False)
    assert perf_counter() - start < limit + 3  # on a busy machine
    assert outcome.finding is Finding.TIMEOUT


def test_the_same_seed_gives_the_same_search():
    graph = random_network(3, 4, 9, 8, 2)
    lower, upper = box_around(4, 3, 0.8)
    least = exact_lower(graph, lower, upper)
    case = Case(lower, upper, np.array([[1.0, -1.0]]), np.array([least - 0.02]))
    one, two = (search_phases(graph, [case], deadline=Deadline(), seed=4) for _ in range(2))
    assert one.finding is two.finding is Finding.EMPTY
    assert one.leaves == two.leaves
    assert torch.equal(one.bound, two.bound)


IN_PARTS = Effort(restarts=2, descents=10, first=1, least=8)


def test_searches_in_parts_do_not_contradict_exact_arithmetic():
    """The same questions, with hidden bounds of parts: these hold where the conditions do only."""
    answers = [judge(seed, IN_PARTS) for seed in range(1000, 1030)]
    wrong = [seed for seed, (answer, truth) in enumerate(answers, 1000) if answer not in (truth, Finding.OPEN)]
    assert not wrong
    assert sum(answer is not Finding.OPEN for answer, _ in answers) > 18


@pytest.mark.parametrize(("seed", "finding"), [(3, Finding.EMPTY), (5, Finding.WITNESS)])
def test_the_answer_does_not_depend_on_the_number_of_processes(seed, finding):
    """Leaf by leaf; with several processes what comes after a witness is thrown away."""
    graph = random_network(seed, 4, 12, 12, 2)
    lower, upper = box_around(4, seed, 0.8)
    case = Case(lower, upper, np.array([[1.0, -1.0]]), np.array([exact_lower(graph, lower, upper) + 0.4]))
    effort = replace(IN_PARTS, restarts=0, descents=0)
    alone, two, three = (
        search_phases(graph, [case], deadline=Deadline(), effort=effort, workers=workers) for workers in (1, 2, 3)
    )
    assert alone.finding is finding
    assert alone.leaves > 10
    for shared in (two, three):
        assert shared.finding is finding
        assert shared.leaves == alone.leaves
        assert torch.equal(shared.bound, alone.bound)
        if alone.witness is not None:
            assert np.array_equal(shared.witness.point, alone.witness.point)


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_what_nobody_looked_at_when_a_witness_ended_the_search_is_not_bounded(workers):
    """Of four cases all have a point, and the first one decides: the bounds of the others are below their minima."""
    graph = random_network(5, 4, 12, 12, 2)
    lower, upper = box_around(4, 5, 0.8)
    low, row = exact_lower(graph, lower, upper), np.array([[1.0, -1.0]])
    limits = [low + 0.4, low + 0.45, low + 0.5, low + 0.35]
    cases = [Case(lower, upper, row, np.array([limit])) for limit in limits]
    effort = replace(IN_PARTS, restarts=0, descents=0)
    outcome = search_phases(graph, cases, deadline=Deadline(), effort=effort, workers=workers)
    assert outcome.finding is Finding.WITNESS
    for bound_, limit in zip(outcome.bound.tolist(), limits, strict=True):
        assert bound_ <= low + 0.5 - limit  # of the least sample


class Part:
    """One leaf of a network of three inputs, its outputs at many points, and how a ceiling narrows it."""

    def __init__(self, rows, thresholds):
        self.graph = random_network(4, 3, 10, 10, 2)
        box = Box(*(v[None] for v in map(torch.from_numpy, box_around(3, 4, 0.9))))
        share = torch.rand((50_000, 3), generator=seeded(7), dtype=torch.float64)
        self.points = box.lower + share * (box.upper - box.lower)
        self.values = self.graph(self.points) @ torch.tensor(rows, dtype=torch.float64).T
        limits = thresholds(self.values)
        case = Case(*(v[0].numpy() for v in box.bounding_box()), np.array(rows), limits.numpy())
        *_, self.root = roots_of(Trees.of_cases(self.graph, [[case]]), None, Deadline())
        self.slack = (self.values - limits).amax(1)
        self.leaves = bound(self.root, first_leaves(self.root), 12, Effort().rates, lambda: False).leaves

    def narrowed(self, ceiling, leaves=None):
        root = replace(self.root, ceiling=torch.full((1,), ceiling, dtype=torch.float64))
        return narrowed(root, self.leaves if leaves is None else leaves, 12, 1000, lambda: False)


CONDITIONS = {"one": [[1.0, -1.0]], "two": [[1.0, -1.0], [0.5, 0.2]]}


@pytest.mark.parametrize("ceiling", [1e-3, 0.5])
@pytest.mark.parametrize("conditions", CONDITIONS)
def test_hidden_bounds_of_a_part_hold_where_its_conditions_do_and_help(conditions, ceiling):
    """At sampled points of either phase of the first split, up to the ceiling; somewhere they are much tighter."""
    part = Part(CONDITIONS[conditions], lambda values: values.quantile(0.1 if conditions == "two" else 0.01, dim=0))
    gains, met = [], 0
    for leaves in (part.leaves, *(part.leaves.children().select(torch.tensor([k])) for k in range(2))):
        own, _ = part.narrowed(ceiling, leaves)
        values = part.graph.values(part.points[part.slack <= ceiling])
        z = torch.cat([values[s.source] for s in own.slots], 1)[:, own.columns]
        obeys = (z * leaves.signs >= 0).all(1)
        for slot in own.slots:
            (loose_low, loose_high), (low, high) = (r.relaxed.bounds[slot.source] for r in (part.root, own))
            assert ((low >= loose_low) & (high <= loose_high)).all()
            reached = values[slot.source][obeys]
            assert ((reached >= low) & (reached <= high)).all()
            gains.append(float(((low - loose_low + loose_high - high) / (loose_high - loose_low)).max()))
        met += int(obeys.sum())
    assert met >= 500
    assert max(gains) > 0.05


@pytest.mark.parametrize("gap", [0.2, 0.3])
def test_what_hidden_bounds_of_a_part_prove_is_at_most_their_ceiling(gap):
    """Nothing meets the conditions: whatever follows from that is no bound on the largest of them."""
    part = Part(CONDITIONS["one"], lambda values: values.amin(0) - gap)
    own, leaves = narrowed(*part.narrowed(1e-3), 12, 1000, lambda: False)
    leaves = bound(own, leaves, 12, Effort().rates, lambda: False).leaves
    assert 0 < float(leaves.bound) <= 1e-3 < float(part.slack.min())


def exact_lower(graph, lower, upper):
    """The least of many samples: above the minimum."""
    box = Box(torch.from_numpy(lower)[None], torch.from_numpy(upper)[None])
    generator = seeded(0)
    y = torch.cat([graph(box.sample(generator)) for _ in range(3000)])
    return float((y[:, 0] - y[:, 1]).min()) - 0.5


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_balls_are_searched_too(norm):
    """The margin's minimum over the ball, from dense sampling of it, lies between what is proved and reached."""
    network = randomised(mlp(2, 6, 5, 2).double(), 11)
    x = centres(2, 1, 4)
    label = int(network(x).argmax())
    graph = graph_from_torch(network, input_shape=(2,))
    region = LpBall(x, 0.4, norm)
    margins = margins_of_labels(torch.tensor([label]), 2)
    least = _least_on_grid(graph, region, margins)
    trees = Trees.of_margins(graph, region, margins)
    for gap, finding in ((0.01, Finding.EMPTY), (-0.01, Finding.WITNESS)):
        shifted = Trees(graph, region, trees.owner, trees.rows, trees.constants - least + gap, trees.real)
        outcome = search(shifted, lambda p, t: p, deadline=Deadline(60.0))
        assert outcome.finding is finding


def _least_on_grid(graph, region, margins):
    axis = torch.linspace(-region.eps, region.eps, 1001, dtype=torch.float64)
    points = region.centre + torch.cartesian_prod(axis, axis)
    order = {"l2": 2, "l1": 1}[region.norm]
    points = points[torch.linalg.vector_norm(points - region.centre, order, dim=1) <= region.eps]
    return float((graph(points) @ margins.rows[0, 0]).min())


def test_cases_that_do_not_fit_are_named():
    graph = random_network(2, 3, 6, 2)
    case = Case(np.zeros(4), np.ones(4), np.ones((1, 2)), np.zeros(1))
    with pytest.raises(InvalidInputError, match="4 inputs and 2 outputs, the network 3 and 2"):
        search_phases(graph, [case], deadline=Deadline())


@pytest.mark.parametrize("method", ["complete", "auto"])
@pytest.mark.parametrize("seed", [2, 3, 5, 8])  # of networks that lose the label within a distance of 4
def test_verify_decides_what_bounds_leave_open(seed, method):
    """The smallest radius at which the exact margin is lost: a little below it is verified, above falsified."""
    network = randomised(mlp(2, 6, 5, 2).double(), seed)
    x = centres(2, 1, seed)[0]
    label = int(network(x[None]).argmax())
    graph, row = graph_from_torch(network, input_shape=(2,)), np.array([1.0, -1.0]) * (1 - 2 * label)
    low, high = 0.0, 4.0
    for _ in range(12):
        eps = (low + high) / 2
        least = exact_minimum_of(graph, x.numpy(), eps, row)
        low, high = (eps, high) if least > 0 else (low, eps)
    assert high < 4.0
    below, above = (certify.verify(network, x, label=label, eps=e, method=method) for e in (low * 0.999, high * 1.01))
    assert below.status is certify.Status.VERIFIED
    assert above.status is certify.Status.FALSIFIED
    assert below.worst_margin > 0


def exact_minimum_of(graph, x, eps, row):
    grid = torch.cartesian_prod(*(torch.linspace(-eps, eps, 401, dtype=torch.float64),) * 2) + torch.from_numpy(x)
    return float((graph(grid) @ torch.from_numpy(row)).min())


def test_verify_keeps_the_time_limit_in_the_search():
    network = randomised(mlp(20, 120, 120, 120, 2), 7)
    start = perf_counter()
    x = centres(20, 1, 7)[0].float()
    label = int(network(x[None]).argmax())
    verdict = certify.verify(network, x, label=label, eps=0.5, method="complete", timeout=1.0)
    assert perf_counter() - start < 4
    assert verdict.status in (certify.Status.TIMEOUT, certify.Status.FALSIFIED)
