"""Properties as pipelines ask them: is there an input in a box whose output lies in a polytope?

Everything here is numpy: reading a property must not wait for torch to load.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from math import inf, nextafter

import numpy as np

from certify.errors import InvalidInputError, QueryError
from certify.jobs.digests import digest_of


@dataclass(frozen=True, eq=False)
class Case:
    """One unsafe set: inputs x in [lower, upper] with outputs y such that A y <= b.

    The arrays contain what was written: decimal numbers that no double represents are rounded so that the set
    grows. A proof that this set is empty is a proof about the written one. A witness is judged by the
    `written_` arrays, rounded the other way: they hold for doubles exactly where the text does.

    Attributes:
        lower, upper: (n,) float64, finite, lower <= upper.
        A: (k, m) float64, the coefficients as written; where no double holds them the nearest ones, off by at most
            2^-53 of each, which a search has to count among its roundings.
        b: (k,) float64.
        written_lower, written_upper, written_b: as above, rounded so that the set shrinks, and one double
            further where the text has a strict inequality; by default the same arrays.
        written_rows: for every row the pairs (output, coefficient), where A is rounded.
    """

    lower: np.ndarray
    upper: np.ndarray
    A: np.ndarray
    b: np.ndarray
    written_lower: np.ndarray | None = None
    written_upper: np.ndarray | None = None
    written_b: np.ndarray | None = None
    written_rows: tuple[tuple[tuple[int, Fraction], ...], ...] | None = None

    def __post_init__(self) -> None:
        for name, array in (("lower", self.lower), ("upper", self.upper), ("b", self.b)):
            if array.ndim != 1 or array.dtype != np.float64:
                raise InvalidInputError(f"{name} has shape {array.shape} and type {array.dtype}; expected 1-D float64")
        if self.lower.shape != self.upper.shape or self.A.shape[:1] != self.b.shape or self.A.ndim != 2:
            raise InvalidInputError(
                f"a case has lower {self.lower.shape}, upper {self.upper.shape}, A {self.A.shape}, b {self.b.shape};"
                " expected (n,), (n,), (k, m), (k,)"
            )
        if not (np.isfinite(self.lower).all() and np.isfinite(self.upper).all()):
            raise InvalidInputError("a box has an infinite or NaN limit; expected a finite box")
        if (self.lower > self.upper).any():
            raise InvalidInputError("a box is empty: a lower limit is above its upper limit")
        for name in ("lower", "upper", "b"):
            if getattr(self, f"written_{name}") is None:
                object.__setattr__(self, f"written_{name}", getattr(self, name))

    def excess(self, x: np.ndarray) -> float:
        """How far x is outside the written box, in the worst coordinate; 0 inside."""
        assert self.written_lower is not None
        assert self.written_upper is not None
        inside = (x >= self.written_lower) & (x <= self.written_upper)
        gap = np.maximum(self.written_lower - x, x - self.written_upper)
        return float(np.where(inside, 0.0, np.maximum(gap, np.finfo(np.float64).tiny)).max(initial=0.0))

    def holds_for(self, y: np.ndarray) -> bool:
        """Whether the outputs y (m,) satisfy every constraint as written, in exact arithmetic."""
        if not np.isfinite(y).all():
            return False
        assert self.written_b is not None
        exact = [Fraction(float(v)) for v in y]
        return all(
            sum((c * exact[j] for j, c in row), Fraction(0)) <= Fraction(float(bound))
            for row, bound in zip(self._rows(), self.written_b, strict=True)
        )

    def _rows(self) -> Iterable[Iterable[tuple[int, Fraction]]]:
        if self.written_rows is not None:
            return self.written_rows
        return ([(int(j), Fraction(float(row[j]))) for j in np.flatnonzero(row)] for row in self.A)


@dataclass(frozen=True)
class Declared:
    """What a VNN-LIB 2.0 file calls the network, its input and its output, and their types and shapes."""

    network: str
    names: tuple[str, str]
    types: tuple[str, str]
    shapes: tuple[tuple[int, ...], tuple[int, ...]]


@dataclass(frozen=True, eq=False)
class Query:
    """Satisfiable iff some case has a point; unsatisfiable iff all are empty.

    Attributes:
        cases: at least one.
        declared: names, types and shapes where the file has them (VNN-LIB 2.0).
    """

    cases: tuple[Case, ...]
    declared: Declared | None = None

    def __post_init__(self) -> None:
        if not self.cases:
            raise InvalidInputError("a query has no cases; expected at least one")
        shapes = {(len(case.lower), case.A.shape[1]) for case in self.cases}
        if len(shapes) > 1:
            raise InvalidInputError(f"the cases have different (inputs, outputs): {sorted(shapes)}")

    @property
    def n_inputs(self) -> int:
        """Number of inputs of the network it asks about."""
        return len(self.cases[0].lower)

    @property
    def n_outputs(self) -> int:
        """Number of outputs of the network it asks about."""
        return int(self.cases[0].A.shape[1])

    @cached_property
    def digest(self) -> str:
        """Tells it from every other property."""
        arrays = ("lower", "upper", "A", "b", "written_lower", "written_upper", "written_b", "written_rows")
        return digest_of(self.declared, *(getattr(case, name) for case in self.cases for name in arrays))

    @cached_property
    def groups(self) -> tuple[tuple[Case, ...], ...]:
        """The cases that share a box, box by box in the order of the text."""
        found: dict[tuple[bytes, bytes], list[Case]] = {}
        for case in self.cases:
            found.setdefault((case.lower.tobytes(), case.upper.tobytes()), []).append(case)
        return tuple(map(tuple, found.values()))


def enclose(value: Fraction) -> tuple[float, float]:
    """The largest double below or at a rational number, and the smallest above or at it."""
    try:
        near = float(value)
    except OverflowError:
        raise QueryError("a constraint has a number beyond the range of doubles once it is solved for") from None
    return around(near, (Fraction(near) > value) - (Fraction(near) < value))


def around(near: float, side: int) -> tuple[float, float]:
    """The doubles around a number from the nearest one, which lies above (1), below (-1) or on it (0)."""
    if side == 0:
        return near, near
    if side > 0:
        return nextafter(near, -inf), near
    return near, nextafter(near, inf)
