"""The reader of VNN-LIB files against a direct evaluation of the text, and against bad files."""

import contextlib
import gzip
import random
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest

from certify.errors import EmptyQueryError, QueryError
from certify.properties import read_vnnlib
from certify.properties.query import Declared
from certify.properties.vnnlib import parse_vnnlib
from certify.properties.vnnlib1 import parse_vnnlib1

N, M = 2, 3
DECLARED = "".join(f"(declare-const {kind}_{j} Real)\n" for kind, n in (("X", N), ("Y", M)) for j in range(n))
BOX = "(assert (<= X_0 1.5)) (assert (>= X_0 -1)) (assert (<= X_1 2)) (assert (>= X_1 -2))"


def random_number(rng):
    return rng.choice(["0", "1", "-1", "0.5", "-.5", "0.1", "-0.3", "2.", "1e-1", "-25e-2", "0.30000000000000004"])


def random_atom(rng):
    op = rng.choice(["<=", ">=", "<", ">", "="])
    left = f"{rng.choice('XY')}_{rng.randrange(2)}"
    if rng.random() < 0.5:
        return [op, left, random_number(rng)] if rng.random() < 0.5 else [op, random_number(rng), left]
    sides = [
        f"Y_{rng.randrange(M)}",
        ["-", f"Y_{rng.randrange(M)}", f"Y_{rng.randrange(M)}"],
        ["*", random_number(rng), f"Y_{rng.randrange(M)}"],
        ["+", ["*", "0.1", "Y_0"], ["-", "Y_1"], random_number(rng)],
    ]
    return [op, rng.choice(sides), rng.choice([*sides, random_number(rng)])]


def random_condition(rng, depth):
    if depth == 0 or rng.random() < 0.4:
        return random_atom(rng)
    return [rng.choice(["and", "or"])] + [random_condition(rng, depth - 1) for _ in range(rng.randrange(1, 4))]


def written(form):
    return form if isinstance(form, str) else "(" + " ".join(map(written, form)) + ")"


def value(form, point):
    """What a form means, from its text alone."""
    if isinstance(form, str):
        return point[form] if form in point else Fraction(form)
    head, parts = form[0], [value(part, point) for part in form[1:]]
    return {
        "and": lambda: all(parts),
        "or": lambda: any(parts),
        "<=": lambda: parts[0] <= parts[1],
        ">=": lambda: parts[0] >= parts[1],
        "<": lambda: parts[0] < parts[1],
        ">": lambda: parts[0] > parts[1],
        "=": lambda: parts[0] == parts[1],
        "+": lambda: sum(parts),
        "-": lambda: -parts[0] if len(parts) == 1 else parts[0] - parts[1],
        "*": lambda: parts[0] * parts[1],
    }[head]()


def written_holds(query, x, y):
    return any(case.excess(x) == 0 and case.holds_for(y) for case in query.cases)


def outer_holds(query, x, y):
    exact = [Fraction(float(v)) for v in y]
    if any(case.written_rows is not None for case in query.cases):
        return True  # its rows are rounded, and only a search makes up for it
    return any(
        (x >= case.lower).all()
        and (x <= case.upper).all()
        and all(
            sum(Fraction(float(a)) * v for a, v in zip(row, exact, strict=True)) <= Fraction(float(b))
            for row, b in zip(case.A, case.b, strict=True)
        )
        for case in query.cases
    )


@pytest.mark.parametrize("seed", range(150))
def test_cases_mean_what_the_text_says(seed):
    rng = random.Random(seed)
    conditions = [random_condition(rng, 3) for _ in range(rng.randrange(1, 4))]
    box = [["<=", "X_0", "1.5"], [">=", "X_0", "-1"], ["<=", "X_1", "2"], [">=", "X_1", "-2"]]
    text = DECLARED + "".join(f"(assert {written(c)}) ; comment\n" for c in [*box, *conditions])
    query = None
    with contextlib.suppress(EmptyQueryError):
        query = parse_vnnlib1(text)
    values = [0.0, 0.5, -0.5, 1.0, -1.0, 0.1, 0.3, 0.30000000000000004, -0.1, float(np.nextafter(0.1, 0)), 2.0, 10.0]
    for _ in range(60):
        x, y = (np.array([rng.choice(values) for _ in range(n)]) for n in (N, M))
        point = {f"X_{j}": Fraction(float(v)) for j, v in enumerate(x)}
        point |= {f"Y_{j}": Fraction(float(v)) for j, v in enumerate(y)}
        meant = all(value(c, point) for c in [*box, *conditions])
        assert meant == (query is not None and written_holds(query, x, y))
        assert not meant or outer_holds(query, x, y)


@pytest.mark.parametrize("shared", [0, 1, 2])
@pytest.mark.parametrize("low", ["(> X_0 0.1)", "(>= X_0 0.1)", "(>= X_0 0.10000000000000001)", "(< 0.2 (* 2 X_0))"])
@pytest.mark.parametrize("high", ["(< X_0 0.1)", "(<= X_0 0.1)", "(<= (+ X_0 0.9) 0.99999999999999999)"])
def test_limits_between_two_doubles_are_compared_as_written(low, high, shared):
    """No double is 0.1, nor between 0.1 and 0.10000000000000001; in each place of the file."""
    lowest = Fraction("0.10000000000000001") if "0001" in low else Fraction("0.1")
    most = Fraction("0.09999999999999999") if "0.9)" in high else Fraction("0.1")
    empty = lowest > most or (lowest == most and ("=" not in low or "=" not in high))
    parts = [low, high]
    choice = "(and " + " ".join(parts[shared:]) + ")" if shared < 2 else "(<= X_1 1)"
    text = DECLARED + BOX + "".join(f"(assert {part})" for part in parts[:shared])
    text += f"(assert (or (and (<= Y_0 0) {choice}) (and (<= Y_1 0) {choice})))"
    if empty:
        with pytest.raises(EmptyQueryError, match="the box is empty"):
            parse_vnnlib1(text)
    else:
        (first, _) = parse_vnnlib1(text).cases
        assert Fraction(float(first.lower[0])) <= lowest <= most <= Fraction(float(first.upper[0]))


def test_one_case_of_several_may_be_empty_between_two_doubles():
    text = DECLARED + BOX + "(assert (<= X_0 0.1)) (assert (or (>= X_0 0.1) (> X_0 0.1) (<= Y_0 0)))"
    assert len(parse_vnnlib1(text).cases) == 2


def test_box_contains_the_decimal_numbers():
    query = parse_vnnlib1(DECLARED + BOX + "(assert (<= X_0 0.1)) (assert (>= X_0 0.1)) (assert (<= Y_0 0.7))")
    (case,) = query.cases
    assert Fraction(case.lower[0]) < Fraction(1, 10) < Fraction(case.upper[0])
    assert case.upper[0] == np.nextafter(case.lower[0], 1)
    assert Fraction(case.b[0]) >= Fraction(7, 10) > Fraction(case.written_b[0])
    assert case.excess(np.array([0.1, 0.0])) > 0


def test_coefficients_are_exact_by_a_common_scale_or_kept_as_written():
    scaled = parse_vnnlib1(DECLARED + BOX + "(assert (<= (+ (* 0.1 Y_0) (* 0.3 Y_1)) 0.2))").cases[0]
    assert scaled.A.tolist() == [[1, 3, 0]]
    assert (scaled.b.tolist(), scaled.written_rows) == ([2], None)
    # No scale makes both doubles, and 1e-31 as a double is too large here.
    kept = parse_vnnlib1(DECLARED + BOX + "(assert (<= (* 1e-31 Y_0) Y_1))").cases[0]
    y = np.array([1e31, 1.0, 0.0])
    assert Fraction(kept.A[0, 0]) * Fraction(1e31) > 1
    assert kept.holds_for(y)


def test_cases_with_one_box_share_it():
    options = "(assert (or (<= Y_0 Y_1) (<= Y_0 Y_2) (and (<= X_0 0) (<= Y_1 Y_2))))"
    query = parse_vnnlib1(DECLARED + BOX + options)
    assert [len(group) for group in query.groups] == [2, 1]
    assert query.cases[0].lower is query.cases[1].lower
    assert (query.n_inputs, query.n_outputs) == (N, M)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no inputs are declared"),
        ("(declare-const X_0 Real)", "no outputs are declared"),
        (DECLARED + BOX + "\n(assert (<= X_7 1))", "line 7: 'X_7' is not declared"),
        (DECLARED + BOX + "\n\n(assert (<= Y_0 abc))", "line 8: 'abc' is neither"),
        (DECLARED + BOX + "\n(assert (<= Y_0 0x10))", "line 7"),
        (DECLARED + BOX + "\n(assert (<= Y_0 \u0663))", "line 7"),  # a digit, though not one of ours
        (DECLARED + BOX + "\n(declare-const X_2\u0663 Real)", "line 7: a declared name is not of the form"),
        (DECLARED + BOX + "\n(assert (<= Y_0 nan))", "line 7"),
        (DECLARED + BOX + "\n(assert (<= Y_0 1e999))", "line 7: the number 1e999 is out of range"),
        (DECLARED + BOX + "\n(assert (<= Y_0 1e99999999999999999999))", "out of range"),
        (DECLARED + BOX + "\n(assert (<= Y_0 " + "1" * 500 + "))", "500 characters"),
        (DECLARED + BOX + "\n(assert (<= X_0 -3))", "line 7: the box is empty: X_0 is at least -1.0 and at most -3.0"),
        (DECLARED + BOX + "\n(assert (<= Y_0 (* Y_1 Y_2)))", "line 7: a product of variables is not linear"),
        (DECLARED + BOX + "\n(assert (<= Y_0 (* 2 Y_9)))", "line 7: 'Y_9' is not declared"),
        (DECLARED + BOX + "\n(assert (< X_0 0.5)) (assert (>= X_0 0.5))", "line 7: the box is empty: X_0"),
        (DECLARED + BOX + "\n(assert (> X_0 0.5)) (assert (< X_0 0.5))", "line 7: the box is empty: X_0"),
        (DECLARED + BOX + "\n(assert (<= Y_0 (/ Y_1 2)))", "line 7: '/' is not understood"),
        (DECLARED + BOX + "\n(assert (<= Y_0 X_0))", "line 7: a constraint relates an input to outputs"),
        (DECLARED + BOX + "\n(assert (<= X_1 X_0))", "line 7: a constraint relates several inputs"),
        (DECLARED + BOX + "\n(assert (<= Y_0 1)", "line 7: a parenthesis that opens here is never closed"),
        (DECLARED + BOX + "\n)", "line 7: ')' stands outside"),
        (DECLARED + BOX + "\n(assert (not (<= Y_0 1)))", "line 7: 'not'"),
        (DECLARED + BOX + "\n(assert (or))", "line 7: (or) has no conditions"),
        (DECLARED + BOX + "\n(assert)", "line 7: 'assert' with 1 parts"),
        (DECLARED + BOX + "\n(assert ((<= Y_0 1)))", "line 7: a condition is missing"),
        (DECLARED + BOX + "\n(assert Y_0)", "line 7: a condition is missing"),
        (DECLARED + BOX + "\n(include other.vnnlib)", "line 7: 'include'"),
        (DECLARED + BOX + "\n(assert (<= 1 0))", "line 7: a constraint without variables"),
        (DECLARED + "(declare-const X_0 Real)", "line 6: X_0 is declared twice"),
        (DECLARED + "(declare-const X_9 Real)", "X_2 is not declared although X_9 is"),
        (DECLARED + "(declare-const X_0 Int)", "expected Real"),
        (DECLARED + "(declare-const ((a)) Real)", "not of the form"),
        (DECLARED + "(assert (<= X_0 1)) (assert (>= X_0 0)) (assert (<= X_1 1))", "X_1 has no lower limit"),
        ("(" * 200_000, "nested deeper"),
        (DECLARED + BOX + "(assert (or " + "(and " * 150 + ")" * 152, "nested deeper"),
        (DECLARED + BOX + "(assert (or (<= Y_0 1) (<= Y_1 1)))" * 40, "expands to"),
        (DECLARED + BOX + "(assert (and " + "(or (<= Y_0 1) (<= Y_1 1))" * 40 + "))", "expands to"),
        (DECLARED + BOX + "(assert (<= (+ (* 1e-300 Y_0) (* 1e300 Y_1)) 1))", "too large or too small"),
        (DECLARED + BOX + "(assert (<= (* 1e-300 X_0) 1e300))", "beyond the range"),
    ],
)
def test_bad_text_is_refused_with_its_line(text, message):
    with pytest.raises(QueryError) as caught:
        parse_vnnlib1(text)
    assert message in str(caught.value)


HEAD = """(vnnlib-version <2.0>)
(declare-network N (declare-input In float32 [1,2]) (declare-output Out float32 [3]))
"""


def as_version_2(form):
    """The same condition in VNN-LIB 2.0, whose floating-point constants need a point."""
    if not isinstance(form, str):
        if form[0] == "*":
            return ["*", as_version_2(form[1]), as_version_2(form[2])]
        return [{"=": "=="}.get(form[0], form[0]), *map(as_version_2, form[1:])]
    if form[0] in "XY":
        return f"In[0,{form[2]}]" if form[0] == "X" else f"Out[{form[2]}]"
    return f"{float(form):.20f}".rstrip("0") + "0" if form in ("0.5", "-.5", "2.", "-25e-2") else str(float(form))


@pytest.mark.parametrize("seed", range(60))
def test_both_versions_give_the_same_cases(seed):
    pytest.importorskip("vnnlib")
    rng = random.Random(seed)
    box = [["<=", "X_0", "1.5"], [">=", "X_0", "-1"], ["<=", "X_1", "2"], [">=", "X_1", "-2"]]
    conditions = [*box, *(random_condition(rng, 3) for _ in range(2))]
    texts = (
        DECLARED + "".join(f"(assert {written(c)})\n" for c in conditions),
        HEAD + "".join(f"(assert {written(as_version_2(c))})\n" for c in conditions),
    )
    with contextlib.suppress(EmptyQueryError):
        first = parse_vnnlib(texts[0])
        second = parse_vnnlib(texts[1])
        assert second.declared == Declared("N", ("In", "Out"), ("float32", "float32"), ((1, 2), (3,)))
        assert len(first.cases) == len(second.cases)
        for one, two in zip(first.cases, second.cases, strict=True):
            for name in ("lower", "upper", "A", "b", "written_lower", "written_upper", "written_b"):
                np.testing.assert_array_equal(getattr(one, name), getattr(two, name))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEAD + "(assert (<= Z[0] 1.0))", "line 3: Undeclared variable: Z"),
        (HEAD + "(assert (<= In[0,2] 1.0))", "line 3: Index out of bounds"),
        (HEAD + "(assert (<= Out[0] 1))", "Type mismatch"),
        (HEAD + "(assert (<= (* Out[0] Out[1]) 1.0))", "line 3: a product of variables is not linear"),
        (HEAD + "(assert (<= (* 2.0 (* 0.5 Out[0])) In[0,0]))", "line 3: a constraint relates an input to outputs"),
        (HEAD + "(assert (<= In[0,0] 1.0))", "X_0 has no lower limit"),
        (HEAD + "(assert (<= In[0,0]", "Parse error"),
        (HEAD.replace("[1,2]", "[100000,100000]") + "(assert (<= In[0,0] 1.0))", "declares 10000000000 inputs"),
        (HEAD.replace("[3]", "[100000,100000]") + "(assert (<= In[0,0] 1.0))", "10000000000 outputs; expected"),
        (HEAD.replace("2.0", "3.0") + "(assert (<= In[0,0] 1.0))", "version"),
        (
            HEAD.replace("(declare-out", "(declare-input B float32 [1]) (declare-out") + "(assert (<= B[0] 1.0))",
            "2 inputs",
        ),
        (HEAD.replace("In float32", "In int32") + "(assert (<= In[0,0] 1))", "element type I32"),
        (HEAD + "(assert (<= In[0,0] " + "(+ 1.0 " * 5000, "nested deeper"),
    ],
)
def test_bad_text_of_version_2_is_refused(text, message):
    pytest.importorskip("vnnlib")
    with pytest.raises(QueryError) as caught:
        parse_vnnlib(text)
    assert message in str(caught.value)


def test_not_equal_is_either_side():
    pytest.importorskip("vnnlib")
    box = "(assert (and (<= In[0,0] 1.0) (>= In[0,0] 0.0) (<= In[0,1] 1.0) (>= In[0,1] 0.0)))"
    query = parse_vnnlib(HEAD + box + "(assert (!= (* 2.0 2.0 Out[0]) 2.0))")
    point = np.array([0.5, 0.5])
    outputs = (0.5, 0.25, 0.75)
    assert [written_holds(query, point, np.array([v, 0, 0])) for v in outputs] == [False, True, True]


def test_gzip_is_told_by_content_and_limits_hold(tmp_path):
    text = (DECLARED + BOX + "(assert (<= Y_0 0))").encode()
    plain, packed, broken, bomb = (tmp_path / name for name in ("a.vnnlib", "b.vnnlib", "c.vnnlib.gz", "d.vnnlib"))
    plain.write_bytes(text)
    packed.write_bytes(gzip.compress(text))
    broken.write_bytes(gzip.compress(text)[:-20])
    bomb.write_bytes(gzip.compress(b" " * 10_000_000))
    assert read_vnnlib(plain).cases[0].b == read_vnnlib(packed).cases[0].b
    with pytest.raises(QueryError, match="broken gzip"):
        read_vnnlib(broken)
    for path in (bomb, plain):
        with pytest.raises(QueryError, match="more than 100 bytes"):
            read_vnnlib(path, max_bytes=100)
    plain.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(QueryError, match="not a text file"):
        read_vnnlib(plain)


def test_reading_a_property_does_not_import_torch():
    code = "import sys, certify.properties.vnnlib; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
