"""Linear constraints in exact arithmetic, and disjunctions of them as the cases of a query."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from itertools import product
from math import gcd, inf, lcm, nextafter, prod
from typing import NamedTuple

import numpy as np

from certify.errors import EmptyQueryError, QueryError
from certify.properties.query import Case, Query, around, enclose

_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)
_LONGEST_NUMBER = 400  # characters
# What the disjunctions of one file may expand to.
MOST_CONSTRAINTS = 2_000_000
_LARGEST = Decimal("1e300")
_SMALLEST = Decimal("1e-330")

# Sizes of coefficients that round to doubles with a relative error of 2^-53.
_LEAST = Fraction(1, 10**280)

# A variable is a pair ("X" or "Y", number).
Variable = tuple[str, int]


class Atom(NamedTuple):
    """sum of coefficients * variables <= (or <, if strict) constant; `at` tells where it was written."""

    coefficients: tuple[tuple[Variable, Fraction], ...]
    constant: Fraction
    strict: bool
    at: int


class Bound(NamedTuple):
    """variable <= (or >=) a number that lies between two doubles: the common atom, without fractions.

    `value` is the number itself where no double is.
    """

    variable: Variable
    upper: bool
    below: float
    above: float
    strict: bool
    at: int
    value: Decimal | Fraction | None = None


Constraint = Atom | Bound


def number(text: str) -> Decimal | None:
    """The decimal number that a token writes; None where it writes none.

    Raises:
        QueryError: for a number of excessive length or size.
    """
    if len(text) > _LONGEST_NUMBER:
        raise QueryError(f"a number or name has {len(text)} characters; expected at most {_LONGEST_NUMBER}")
    if not _NUMBER.fullmatch(text):
        return None
    try:
        value = Decimal(text)
    except InvalidOperation:
        raise QueryError(f"the number {text[:40]} is out of range") from None
    if abs(value) > _LARGEST or 0 < abs(value) < _SMALLEST:
        raise QueryError(f"the number {text[:40]} is out of range; expected 0 or a size from 1e-330 to 1e300")
    return value


def fraction(value: Decimal) -> Fraction:
    """Exactly the same number."""
    return Fraction(value)


def bound(variable: Variable, value: Decimal, *, upper: bool, strict: bool, at: int) -> Bound:
    """variable <= value, or variable >= value."""
    near = float(value)
    below, above = around(near, (near > value) - (near < value))
    return Bound(variable, upper, below, above, strict, at, None if below == above else value)


@dataclass(frozen=True)
class Sizes:
    """How many inputs and outputs a query declares, and a limit on its size once disjunctions are expanded."""

    n_inputs: int
    n_outputs: int
    max_numbers: int = 10_000_000


class Box:
    """The limits of one box while it is read: outward and inward at once."""

    def __init__(self, size: int) -> None:
        # rows: lower, upper as bounds; lower, upper as written
        self.limits = np.tile(np.array([[-np.inf], [np.inf]]), (2, size))
        self.emptied: EmptyQueryError | None = None
        # Inputs with both limits between the same two doubles: only the numbers themselves tell which is larger.
        self.narrow: frozenset[int] = frozenset()

    def copy(self) -> "Box":
        """An independent copy."""
        twin = Box(0)
        twin.limits, twin.emptied, twin.narrow = self.limits.copy(), self.emptied, self.narrow
        return twin

    def add(self, item: Bound) -> None:
        """One more limit."""
        j, limits = item.variable[1], self.limits
        exact = item.below == item.above
        if item.upper:
            inner = nextafter(item.below, -inf) if item.strict and exact else item.below
            limits[1, j], limits[3, j] = min(limits[1, j], item.above), min(limits[3, j], inner)
        else:
            inner = nextafter(item.above, inf) if item.strict and exact else item.above
            limits[0, j], limits[2, j] = max(limits[0, j], item.below), max(limits[2, j], inner)
        least, most, inner_least, inner_most = limits[:, j]
        if least > most or (least == most and inner_least > inner_most):
            strictly = ", strictly" if least == most else ""
            self.emptied = EmptyQueryError(
                f"the box is empty: X_{j} is at least {least} and at most {most}{strictly}", item.at
            )
        elif inner_least > inner_most:
            self.narrow |= {j}

    def compare(self, constraints: Iterable[Constraint]) -> None:
        """Look at the narrow inputs again, with the numbers as written in all constraints of the box."""
        limits: dict[int, dict[bool, tuple[Fraction, bool]]] = {j: {} for j in self.narrow}
        for item in map(as_bound, constraints if self.narrow else ()):
            if isinstance(item, Bound) and item.variable[0] == "X" and item.variable[1] in limits:
                own = limits[item.variable[1]]
                sign = 1 if item.upper else -1
                # The least of upper limits, and of lower ones with the other sign; a strict one is the tighter.
                value = sign * Fraction(item.below if item.value is None else item.value)
                own[item.upper] = min(own.get(item.upper, (value, not item.strict)), (value, not item.strict))
        for j, own in limits.items():
            (most, open_above), (least, open_below) = own[True], own[False]
            if most + least < 0 or (most + least == 0 and not (open_above and open_below)):
                text = f"the box is empty: the limits of X_{j}, between two doubles, leave no number"
                self.emptied = EmptyQueryError(text)


def as_bound(item: Constraint) -> Constraint:
    """A constraint on a single variable as a bound."""
    if isinstance(item, Bound) or len(item.coefficients) != 1:
        return item
    ((variable, factor),) = item.coefficients
    value = item.constant / factor
    below, above = enclose(value)
    return Bound(variable, factor > 0, below, above, item.strict, item.at, None if below == above else value)


def conjunction(parts: Sequence[Sequence[Sequence[Constraint]]]) -> list[list[Constraint]]:
    """A conjunction of disjunctions of conjunctions, expanded.

    Raises:
        QueryError: if it is too large.
    """
    cases = prod(map(len, parts))
    total = sum(cases // max(len(part), 1) * sum(map(len, part)) for part in parts)
    if cases > 1 and cases + total > MOST_CONSTRAINTS:
        raise QueryError(
            f"a conjunction of disjunctions expands to {cases} cases of {total} constraints;"
            f" expected at most {MOST_CONSTRAINTS}: split the file"
        )
    return [[item for option in options for item in option] for options in product(*parts)]


def query_of(
    common: Sequence[Constraint], disjunctions: Iterable[Sequence[Sequence[Constraint]]], sizes: Sizes
) -> Query:
    """The cases of `common and (first or second or ...) and ...`.

    Raises:
        QueryError: for too many inputs, outputs or cases, inputs without both limits, boxes that are all empty,
            constraints that relate inputs to each other or to outputs, or coefficients beyond doubles. Its `line`
            is the `at` of the constraint.
    """
    if max(sizes.n_inputs, sizes.n_outputs) > sizes.max_numbers:
        raise QueryError(
            f"it declares {sizes.n_inputs} inputs and {sizes.n_outputs} outputs; expected at most {sizes.max_numbers}"
        )
    chosen: Sequence[Sequence[Constraint]] = [()]
    for options in disjunctions:
        chosen = conjunction([chosen, options])
    base = Box(sizes.n_inputs)
    shared_rows: list[Constraint] = []
    for item in common:
        _place(item, base, shared_rows)
    base.compare(common)
    return _cases(base, (common, shared_rows), chosen, sizes)


def _place(item: Constraint, box: Box, rows: list[Constraint]) -> None:
    item = as_bound(item)
    if isinstance(item, Bound):
        if item.variable[0] == "X":
            box.add(item)
        else:
            rows.append(item)
        return
    kinds = {variable[0] for variable, _ in item.coefficients}
    if kinds == {"Y"}:
        rows.append(item)
    elif "X" in kinds:
        what = "an input to outputs" if "Y" in kinds else "several inputs to each other"
        raise QueryError(
            f"a constraint relates {what}; supported are boxes of inputs and polytopes of outputs", item.at
        )
    elif item.constant < 0 or (item.constant == 0 and item.strict):
        box.emptied = EmptyQueryError("a constraint without variables is never true", item.at)


def _cases(
    base: Box,
    shared: tuple[Sequence[Constraint], Sequence[Constraint]],
    chosen: Sequence[Sequence[Constraint]],
    sizes: Sizes,
) -> Query:
    """`shared` are all constraints that all cases have, and those of them on outputs."""
    cases: list[Case] = []
    boxes: dict[bytes, tuple[np.ndarray, ...]] = {}
    numbers, emptied = 0, base.emptied
    for extra in chosen:
        rows = list(shared[1])
        box = base
        if any(_limits_input(item) for item in extra):
            box = base.copy()
        for item in extra:
            _place(item, box, rows)
        if box is not base:
            box.compare([*shared[0], *extra])
        if box.emptied is not None:
            emptied = box.emptied
            continue
        arrays = boxes.setdefault(box.limits.tobytes(), tuple(box.limits.copy()))
        numbers += len(rows) * sizes.n_outputs
        if numbers > sizes.max_numbers or len(boxes) * sizes.n_inputs > sizes.max_numbers:
            raise QueryError(f"its cases need more than {sizes.max_numbers} numbers; split the file")
        cases.append(_case(arrays, rows, sizes))
    if not cases:
        assert emptied is not None
        raise emptied
    return Query(tuple(cases))


def _limits_input(item: Constraint) -> bool:
    """Whether it can change the box (one without variables can empty it)."""
    variables = [item.variable] if isinstance(item, Bound) else [v for v, _ in item.coefficients]
    return not variables or any(kind == "X" for kind, _ in variables)


def _case(limits: tuple[np.ndarray, ...], rows: Sequence[Constraint], sizes: Sizes) -> Case:
    lower, upper, inner_lower, inner_upper = limits
    open_sides = np.flatnonzero(~(np.isfinite(lower) & np.isfinite(upper)))
    if len(open_sides):
        side = "lower" if not np.isfinite(lower[open_sides[0]]) else "upper"
        raise QueryError(f"X_{open_sides[0]} has no {side} limit; every input needs both")
    A = np.zeros((len(rows), sizes.n_outputs))
    b, inner_b = np.zeros(len(rows)), np.zeros(len(rows))
    exact = [_scaled(item) for item in rows]
    for k, (coefficients, constant, strict) in enumerate(exact):
        for j, coefficient in coefficients:
            A[k, j] = float(coefficient)
        below, b[k] = constant
        inner_b[k] = nextafter(below, -inf) if strict and below == b[k] else below
    written = tuple(coefficients for coefficients, _, _ in exact)
    rounded = any(not _is_double(c) for row in written for _, c in row)
    return Case(lower, upper, A, b, inner_lower, inner_upper, inner_b, written if rounded else None)


_Coefficients = tuple[tuple[int, Fraction], ...]


def _scaled(item: Constraint) -> tuple[_Coefficients, tuple[float, float], bool]:
    """Coefficients, which are doubles if a common scale makes them so; doubles around the constant; strictness."""
    if isinstance(item, Bound):
        sign, (below, above) = (1, (item.below, item.above)) if item.upper else (-1, (-item.above, -item.below))
        return ((item.variable[1], Fraction(sign)),), (below, above), item.strict
    factor = _scale([c for _, c in item.coefficients])
    coefficients = tuple((j, c * factor) for (_, j), c in item.coefficients)
    if not all(_LEAST <= abs(c) <= 1 / _LEAST for _, c in coefficients):
        raise QueryError("a constraint has coefficients that are too large or too small beside each other", item.at)
    return coefficients, enclose(item.constant * factor), item.strict


def _scale(coefficients: list[Fraction]) -> Fraction:
    """A positive factor that makes all coefficients doubles, exactly; 1 if there is none."""
    if all(_is_double(c) for c in coefficients):
        return Fraction(1)
    common = lcm(*(c.denominator for c in coefficients))
    factor = Fraction(common, gcd(*(c.numerator * (common // c.denominator) for c in coefficients)))
    return factor if all(_is_double(c * factor) for c in coefficients) else Fraction(1)


def _is_double(value: Fraction) -> bool:
    try:
        return Fraction(float(value)) == value
    except OverflowError:
        return False
