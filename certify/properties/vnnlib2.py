"""VNN-LIB 2.0, parsed by the package `vnnlib` of the standard's authors.

Demarchi et al., "Supporting standardization of neural networks verification with VNN-LIB and CoCoNet", and the
standard at https://www.vnnlib.org.
"""

import json
import re
from dataclasses import replace
from fractions import Fraction
from math import prod
from typing import Any

import numpy as np

from certify.errors import MissingDependencyError, QueryError
from certify.properties.linear import (
    MOST_CONSTRAINTS,
    Atom,
    Constraint,
    Sizes,
    Variable,
    as_bound,
    conjunction,
    fraction,
    number,
    query_of,
)
from certify.properties.query import Declared, Query
from certify.properties.sexpr import check_depth

Disjuncts = list[list[Constraint]]

_MOST_TEXT = 2**26  # the parser takes about 35 bytes for each
_TYPES = {"Real": "real", "Unknown": "real", "F16": "float16", "F32": "float32", "F64": "float64", "BF16": "bfloat16"}


def parse_vnnlib2(text: str) -> Query:
    """The cases of a VNN-LIB 2.0 text with one network of one input and one output.

    Raises:
        QueryError: with the line where it is known; see `read_vnnlib`.
        MissingDependencyError: where the package `vnnlib` is not installed.
    """
    try:
        import vnnlib
    except ImportError as error:
        raise MissingDependencyError(
            "reading VNN-LIB 2.0 needs the package vnnlib; install it with pip install 'convexnn[vnnlib]'"
        ) from error
    if len(text) > _MOST_TEXT:
        raise QueryError(f"the text has more than {_MOST_TEXT} characters, VNN-LIB 2.0's limit here; split the file")
    check_depth(text)
    try:
        parsed = vnnlib.parse_query_string(text)
    except vnnlib.VNNLibException as error:
        raise _explained(str(error)) from None
    except Exception as error:  # numbers that it cannot hold, reports that cut a character in two, ...
        raise _foreign(text, error) from None
    return _Reader(vnnlib, parsed).query()


def _explained(message: str) -> QueryError:
    """The parser's report, which is JSON for errors beyond syntax, in one sentence."""
    try:
        first = json.loads(message)["errors"][0]
        told = f"{first['message']}: {first['offendingSymbol']} ({first['hint']})"
        return QueryError(told, int(first["line"]))
    except (ValueError, KeyError, IndexError, TypeError):
        return QueryError(" ".join(message.split())[:300])


def _foreign(text: str, error: Exception) -> QueryError:
    """What the parser has no report for: often a character that no token has (comments may)."""
    plain = re.sub(r";[^\n]*", "", text)
    found = re.search(r"[^\x00-\x7f]", plain)
    if found is None:
        return QueryError(f"it cannot be parsed ({type(error).__name__}: {error}); expected VNN-LIB 2.0")
    line = plain.count("\n", 0, found.start()) + 1
    return QueryError(f"the character {found[0]!r} is no part of VNN-LIB; expected ASCII outside comments", line)


class _Reader:
    def __init__(self, vnnlib: Any, parsed: Any) -> None:
        self._kinds, self._parsed = vnnlib, parsed
        if len(parsed.networks) != 1:
            raise QueryError(f"the query declares {len(parsed.networks)} networks; supported is one")
        network = parsed.networks[0]
        if len(network.inputs) != 1 or len(network.outputs) != 1 or network.hidden:
            raise QueryError(
                f"network {network.name} has {len(network.inputs)} inputs, {len(network.outputs)} outputs and"
                f" {len(network.hidden)} hidden nodes; supported are one input, one output, no hidden nodes"
            )
        given, returned = network.inputs[0], network.outputs[0]
        self._declared = Declared(
            network.name,
            (given.name, returned.name),
            (_type(given.dtype), _type(returned.dtype)),
            (tuple(given.shape), tuple(returned.shape)),
        )
        self._letters = {given.name: "X", returned.name: "Y"}

    def query(self) -> Query:
        common: list[Constraint] = []
        choices: list[Disjuncts] = []
        for assertion in self._parsed.assertions:
            disjuncts = self._disjuncts(assertion.expr)
            if len(disjuncts) == 1:
                common += disjuncts[0]
            else:
                choices.append(disjuncts)
        sizes = Sizes(*(prod(shape) for shape in self._declared.shapes))
        return replace(query_of(common, choices, sizes), declared=self._declared)

    def _disjuncts(self, part: Any) -> Disjuncts:
        """A condition as a disjunction of conjunctions; its depth was checked."""
        kinds = self._kinds
        if isinstance(part, kinds.Or):
            return [option for child in part.args for option in self._disjuncts(child)]
        if isinstance(part, kinds.And):
            return conjunction([self._disjuncts(child) for child in part.args])
        terms, constant, line = self._difference(part)
        if isinstance(part, kinds.LessEqual | kinds.LessThan):
            return [[_atom(terms, constant, isinstance(part, kinds.LessThan), line)]]
        flipped = {v: -c for v, c in terms.items()}
        if isinstance(part, kinds.GreaterEqual | kinds.GreaterThan):
            return [[_atom(flipped, -constant, isinstance(part, kinds.GreaterThan), line)]]
        equal = isinstance(part, kinds.Equal)
        sides = [_atom(terms, constant, not equal, line), _atom(flipped, -constant, not equal, line)]
        return [sides] if equal else [[side] for side in sides]

    def _difference(self, part: Any) -> tuple[dict[Variable, Fraction], Fraction, int]:
        """Left side minus right side: coefficients, constant, line."""
        terms: dict[Variable, Fraction] = {}
        constant, line = Fraction(0), 0
        todo = [(part.lhs, Fraction(1)), (part.rhs, Fraction(-1))]
        while todo:
            item, scale = todo.pop()
            line = getattr(item, "line", line)
            if item is None:
                constant += scale
            elif isinstance(item, self._kinds.Var):
                variable = (self._letters[item.name], int(np.ravel_multi_index(item.indices, item.shape)))
                terms[variable] = terms.get(variable, Fraction(0)) + scale
            elif isinstance(item, self._kinds.Literal):
                constant += scale * self._literal(item)
            else:
                todo += self._summands(item, scale, line)
            if len(todo) > MOST_CONSTRAINTS:
                raise QueryError("a sum is too long", line)
        return {v: c for v, c in terms.items() if c}, constant, line

    def _literal(self, item: Any) -> Fraction:
        value = number(item.lexeme)
        if value is None:
            raise QueryError(f"{item.lexeme[:40]} is not a decimal number", item.line)
        return fraction(value)

    def _summands(self, item: Any, scale: Fraction, line: int) -> list[tuple[Any, Fraction]]:
        """The parts of an arithmetic expression with their factors; None stands for 1."""
        kinds = self._kinds
        if isinstance(item, kinds.Negate):
            return [(item.expr, -scale)]
        if isinstance(item, kinds.Plus):
            return [(child, scale) for child in item.args]
        if isinstance(item, kinds.Minus):
            return [(item.head, scale), *((child, -scale) for child in item.rest)]
        rest = []
        for child in item.args:
            value = self._constant(child)
            if value is None:
                rest.append(child)
            else:
                scale *= value
        if len(rest) > 1:
            raise QueryError("a product of variables is not linear; expected number * expression", line)
        return [(rest[0] if rest else None, scale)]

    def _constant(self, item: Any) -> Fraction | None:
        sign = 1
        while isinstance(item, self._kinds.Negate):
            sign, item = -sign, item.expr
        return sign * self._literal(item) if isinstance(item, self._kinds.Literal) else None


def _type(dtype: Any) -> str:
    if dtype.name not in _TYPES:
        raise QueryError(f"the element type {dtype.name} is not supported; expected a real or floating-point type")
    return _TYPES[dtype.name]


def _atom(terms: dict[Variable, Fraction], constant: Fraction, strict: bool, line: int) -> Constraint:
    return as_bound(Atom(tuple(terms.items()), -constant, strict, line))
