"""The search over inputs against exact arithmetic, and what it promises on the way."""

from fractions import Fraction

import exact_phases

from certify.properties.query import Case
from certify.search.deadline import Deadline
from certify.search.inputs.chain import Chain
from certify.search.inputs.search import InputSearch


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
    answers = [judge(seed) for seed in range(250)]
    wrong = [seed for seed, (answer, truth) in enumerate(answers) if answer not in (truth, "unknown")]
    assert not wrong
    assert sum(answer != "unknown" for answer, _ in answers) > 180
    assert {"sat", "unsat"} <= {answer for answer, _ in answers}
