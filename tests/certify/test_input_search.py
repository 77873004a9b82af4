"""The search over inputs against exact arithmetic, and what it promises on the way."""

import os
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise

import exact_phases
import numpy as np
import pytest

from certify.ir.graph import Graph
from certify.ir.ops import Linear, ReLU
from certify.properties.query import Case, enclose
from certify.search.deadline import Deadline
from certify.search.inputs.attack import descend_box, sample_box
from certify.search.inputs.bounds import Boxes, bound_layers
from certify.search.inputs.chain import Chain
from certify.search.inputs.cut import _cut
from certify.search.inputs.network import chain_of
from certify.search.inputs.search import InputSearch
from certify.search.inputs.targets import bound_rows, combine
from certify.search.inputs.workers import run_shared


def judge(seed, boxes=300):
    """(answer of the search, exact answer): 'sat' needs an exactly unsafe point."""
    layers, lower, upper, polytopes = exact_phases.random_problem(seed)
    cases = [Case(lower, upper, A, b) for A, b in polytopes]
    search = InputSearch.of(Chain.of(layers), cases, seed)

    def replay(x, k):
        y = exact_phases.evaluate(layers, x)
        rows = zip(cases[k].A, cases[k].b, strict=True)
        inside = bool((x >= lower).all() and (x <= upper).all())
        return inside and all(
            sum(Fraction(float(a)) * v for a, v in zip(row, y, strict=True)) <= Fraction(float(b)) for row, b in rows
        )

    progress = search.run(search.start(), replay, Deadline(20.0), most=boxes)
    answer = "sat" if progress.found else "unsat" if progress.proved else "unknown"
    return answer, "sat" if exact_phases.satisfiable(layers, lower, upper, polytopes) else "unsat"


def test_no_answer_contradicts_exact_arithmetic():
    answers = [judge(seed) for seed in range(150)]
    wrong = [seed for seed, (answer, truth) in enumerate(answers) if answer not in (truth, "unknown")]
    assert not wrong
    assert sum(answer != "unknown" for answer, _ in answers) > 100
    assert {"sat", "unsat"} <= {answer for answer, _ in answers}


def hard_search(seed=0):
    """A problem of four inputs that takes some thousand boxes."""
    generator = np.random.default_rng(seed)
    sizes = [4, 30, 30, 1]
    layers = [(generator.normal(size=(m, n)) / np.sqrt(n) * 2, generator.normal(size=m)) for n, m in pairwise(sizes)]
    chain = Chain.of(layers)
    lower, upper = np.full(4, -2.0), np.full(4, 2.0)
    # The least output is 0.353.
    return InputSearch.of(chain, [Case(lower, upper, np.ones((1, 1)), np.array([0.34]))])


def never(point, case):
    return False


def test_the_bound_never_falls_and_interrupting_changes_nothing():
    search = hard_search()
    whole = search.run(search.start(), never, Deadline(60.0))
    assert whole.proved
    assert whole.bound == 0
    progress, bounds = search.start(), []
    while not progress.over:
        progress = search.run(progress, never, Deadline(60.0), most=1)
        bounds.append(progress.bound)
    assert all(a <= b for a, b in pairwise(bounds))
    assert progress.boxes == whole.boxes > 1000
    assert progress.proved


def test_the_bound_is_below_a_witness():
    """Unsafe in one corner of ten dimensions, which samples miss: a box's own corner is the witness."""
    n = 10
    layers = [(np.ones((1, n)), np.array([0.125 - n])), (-np.ones((1, 1)), np.zeros(1))]
    case = Case(-np.ones(n), np.ones(n), np.ones((1, 1)), np.array([-0.0625]))
    search = InputSearch.of(Chain.of(layers), [case])
    found = []

    def replay(x, k):
        found.append(float(search.chain.values(x[None])[0, 0]) + 0.0625)
        return found[-1] <= 0

    progress = search.run(search.start(), replay, Deadline(20.0))
    assert progress.found
    assert progress.boxes > 0
    assert progress.bound <= found[-1]


def test_descent_follows_the_gradient_of_the_case_it_pursues():
    """Central differences of the largest row of each case, where no ReLU and no maximum has its kink."""
    generator = np.random.default_rng(1)
    sizes = [4, 12, 9, 3]
    chain = Chain.of([(generator.normal(size=(m, n)), generator.normal(size=m)) for n, m in pairwise(sizes)])
    lower, upper = -np.ones(4), np.ones(4)
    cases = [Case(lower, upper, generator.normal(size=(rows, 3)), generator.normal(size=rows)) for rows in (2, 3)]
    targets = InputSearch.of(chain, cases).targets
    x, case, h = generator.uniform(-1, 1, (200, 4)), np.arange(200) % 2, 1e-6
    value, gradient = targets.slopes(chain, x, case)
    assert np.array_equal(value, targets.margins(chain.values(x))[np.arange(200), case])
    moved = [[targets.slopes(chain, x + sign * h * unit, case)[0] for sign in (1, -1)] for unit in np.eye(4)]
    slope = np.stack([(up - down) / (2 * h) for up, down in moved], 1)
    smooth = np.abs(np.stack([up + down for up, down in moved], 1) - 2 * value[:, None]).max(1) < 1e-9
    assert smooth.sum() > 150
    assert np.abs(slope - gradient)[smooth].max() < 1e-6


def test_descent_finds_what_is_unsafe_near_a_corner_of_a_flat_network():
    """min(0.125 + x_1 + ... + x_n + n, 1) on [-1, 1]^n, 1 in all but a corner, is at most 0.126 nowhere else."""
    n = 6
    layers = [(-np.ones((1, n)), np.array([0.875 - n])), (-np.ones((1, 1)), np.ones(1))]
    search = InputSearch.of(Chain.of(layers), [Case(-np.ones(n), np.ones(n), np.ones((1, 1)), np.array([0.126]))])
    found = []

    def replay(x, k):
        found.append(x)
        return bool(search.chain.values(x[None])[0, 0] <= 0.126)

    box = (search.cases[0].lower, search.cases[0].upper)
    assert not sample_box(search.chain, search.targets, box, replay, 0, lambda: None)
    assert all(descend_box(search.chain, search.targets, box, replay, (seed, 0), lambda: None) for seed in range(5))
    assert np.abs(found[-1] + 1).sum() <= 1e-3 + 1e-12


def test_processes_prove_the_same():
    search = hard_search()
    progress = run_shared(search, search.start(), never, Deadline(60.0), 2, 10**9)
    assert progress.proved
    assert progress.boxes > 1000


def test_processes_find_witnesses_that_this_one_replays():
    search = hard_search()
    case = search.cases[0]
    easy = InputSearch.of(search.chain, [Case(case.lower, case.upper, case.A, np.array([0.4]))])
    half = replace(easy.start(), boxes=1)  # nothing was sampled
    asked = []

    def judge(point, k):
        asked.append(point)
        return bool(easy.targets.margins(easy.chain.values(point[None]))[0, k] <= 0)

    assert run_shared(easy, half, judge, Deadline(60.0), 2, 10**9).found
    assert asked


@pytest.mark.parametrize("seed", range(20))
def test_bounds_are_below_exact_values(seed):
    """Planes and pre-activation bounds against exact evaluation at points of the box, corners included."""
    layers, lower, upper, polytopes = exact_phases.random_problem(seed)
    chain = Chain.of(layers)
    search = InputSearch.of(chain, [Case(lower, upper, A, b) for A, b in polytopes])
    boxes = Boxes.of(lower[None], upper[None])
    with np.errstate(all="ignore"):
        known = bound_layers(chain, search.sizes, boxes, (), lambda: None)
        planes = bound_rows(chain, search.sizes, search.targets, known, boxes)
        planes = combine(chain, search.sizes, search.targets, known, boxes, planes)
    generator = np.random.default_rng(seed)
    corners = np.where(generator.integers(0, 2, (8, len(lower))) == 1, upper, lower)
    inner = np.clip(lower + generator.uniform(size=(8, len(lower))) * (upper - lower), lower, upper)
    for x in np.concatenate([corners, inner]):
        values = exact_phases.exact(x)
        forms = [([], v) for v in values]
        for k, (W, b) in enumerate(layers[:-1]):
            z = [v for _, v in exact_phases.affine(W, b, forms)]
            low, high = known.bounds()[k]
            assert all(Fraction(a) <= v <= Fraction(c) for a, v, c in zip(low[0], z, high[0], strict=True))
            forms = [([], max(v, Fraction(0))) for v in z]
        y = exact_phases.evaluate(layers, x)
        for row, (A, b) in enumerate(zip(search.targets.A, search.targets.b, strict=True)):
            true = sum(Fraction(float(a)) * v for a, v in zip(A, y, strict=True)) - Fraction(float(b))
            plane = sum(Fraction(a) * v for a, v in zip(planes.form[0, row], values, strict=True))
            assert plane + Fraction(planes.constant[0, row]) <= true
            assert Fraction(planes.value[0, row]) <= true


def test_a_cut_keeps_an_unsafe_corner_that_no_room_is_left_for():
    """The plane is at most 0 at one corner only, where it is least: in rational arithmetic, the rounding is all."""
    generator = np.random.default_rng(0)
    for _ in range(300):
        lower = generator.normal(size=5)
        upper = lower + generator.random(5)
        form = generator.normal(size=5)
        corner = np.where(form > 0, lower, upper)
        value = sum(Fraction(a) * Fraction(x) for a, x in zip(form.tolist(), corner.tolist(), strict=True))
        constant = np.array([[enclose(-value)[0]]])
        low, high = _cut(lower[None], upper[None], form[None, None], constant)
        assert ((low[0] <= corner) & (corner <= high[0])).all()


def test_merged_operations_count_their_rounding():
    """0.1 (0.3 x) merged is not the product in real numbers; the sizes must cover the difference."""
    generator = np.random.default_rng(0)
    first, second = generator.normal(size=(4, 3)), generator.normal(size=(5, 4))
    graph = Graph.start((3,)).append(Linear(first, np.ones(4))).append(Linear(second, np.ones(5))).append(ReLU())
    chain = chain_of(graph.append(Linear(np.ones((1, 5)), np.zeros(1))))
    np.testing.assert_allclose(chain.weights[0], second @ first, rtol=1e-12)
    np.testing.assert_allclose(chain.absolute[0][0], np.abs(second) @ np.abs(first))
    np.testing.assert_allclose(chain.absolute[0][1], np.abs(second) @ np.ones(4) + 1)
    for i in range(5):
        for j in range(3):
            true = sum(Fraction(second[i, k]) * Fraction(first[k, j]) for k in range(4))
            error = abs(true - Fraction(chain.weights[0][i, j]))
            assert error <= Fraction(chain.rounding * chain.absolute[0][0][i, j]) / 2


def test_values_beyond_doubles_are_no_proof():
    layers = [(np.full((2, 1), 1e200), np.zeros(2)), (np.full((1, 2), 1e200), np.zeros(1))]
    case = Case(np.zeros(1), np.ones(1), np.ones((1, 1)), np.array([-1.0]))
    search = InputSearch.of(Chain.of(layers), [case])
    progress = search.run(search.start(), never, Deadline(5.0))
    assert progress.over
    assert not progress.proved


@pytest.mark.slow
def test_no_answer_of_many_contradicts_exact_arithmetic():
    """CERTIFY_FUZZ says how many problems (100,000 takes half an hour)."""
    count = int(os.environ.get("CERTIFY_FUZZ", "3000"))
    wrong = [seed for seed in range(1000, 1000 + count) if len({*judge(seed), "unknown"}) == 3]
    assert not wrong
