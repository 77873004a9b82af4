"""VNN-LIB 1.0: `X_0, X_1, ...` and `Y_0, Y_1, ...` are reals, assertions describe what is unsafe.

Demarchi, Guidotti, Pulina, Tacchella, "Supporting standardization of neural networks verification with VNN-LIB
and CoCoNet", FoMLAS 2023.
"""

import re
from decimal import Decimal
from fractions import Fraction

from certify.errors import QueryError
from certify.properties.linear import Atom, Constraint, Sizes, Variable, bound, conjunction, fraction, number, query_of
from certify.properties.query import Query
from certify.properties.sexpr import Form, Tokens, short

_NAME = re.compile(r"([XY])_(0|[1-9]\d{0,8})", re.ASCII)
_STRICT = {"<=": False, ">=": False, "<": True, ">": True}
_IGNORED = frozenset({"set-logic", "set-info", "set-option", "check-sat", "get-model", "exit"})

Disjuncts = list[list[Constraint]]


def parse_vnnlib1(text: str) -> Query:
    """The cases of a VNN-LIB 1.0 text.

    Raises:
        QueryError: with the line; see `read_vnnlib`.
    """
    return _Reader(text).query()


class _Reader:
    def __init__(self, text: str) -> None:
        self._tokens = Tokens(text)
        self._declared: dict[str, Variable] = {}

    def query(self) -> Query:
        common: list[Constraint] = []
        choices: list[Disjuncts] = []
        items, position = self._tokens.items, 0
        while position < len(items):
            simple = self._simple(position)
            if simple is not None:
                common.append(simple)
                position += 8
                continue
            form, position = self._tokens.form(position)
            disjuncts = self._command(form)
            if disjuncts is not None and len(disjuncts) == 1:
                common += disjuncts[0]
            elif disjuncts is not None:
                choices.append(disjuncts)
        try:
            return query_of(common, choices, self._sizes())
        except QueryError as error:
            raise self._located(error) from None

    def _located(self, error: QueryError) -> QueryError:
        """Constraints are marked by their token; errors tell the line."""
        return error if error.line is None else type(error)(error.message, self._tokens.line(error.line))

    def _sizes(self) -> Sizes:
        counts = []
        for kind, what in (("X", "inputs"), ("Y", "outputs")):
            numbers = {j for k, j in self._declared.values() if k == kind}
            if not numbers:
                raise QueryError(f"no {what} are declared; expected (declare-const {kind}_0 Real) and so on")
            missing = next(j for j in range(len(numbers) + 1) if j not in numbers)
            if missing < len(numbers):
                raise QueryError(f"{kind}_{missing} is not declared although {kind}_{max(numbers)} is")
            counts.append(len(numbers))
        return Sizes(*counts)

    def _simple(self, at: int) -> Constraint | None:
        """The constraint of `(assert (<= X_0 0.5))`, nearly all of a large file."""
        part = self._tokens.items[at : at + 8]
        if len(part) < 8 or part[1] != "assert" or part[6] != ")" or part[7] != ")" or part[2] != "(":
            return None
        if part[0] != "(" or part[3] not in _STRICT or part[4] in "()" or part[5] in "()":
            return None
        return self._comparison([at + 2, *part[3:6]])

    def _command(self, form: list) -> Disjuncts | None:
        at, head = form[0], form[1] if len(form) > 1 else ""
        if isinstance(head, list):
            raise self._tokens.error("a command has no name; expected declare-const, declare-fun or assert", at)
        if head == "assert" and len(form) == 3:
            return self._disjuncts(form[2], at)
        if head == "declare-const" and len(form) == 4:
            self._declare(form[2], form[3], at)
        elif head == "declare-fun" and len(form) == 5 and isinstance(form[3], list) and len(form[3]) == 1:
            self._declare(form[2], form[4], at)
        elif head not in _IGNORED:
            raise self._tokens.error(
                f"'{short(head)}' with {len(form) - 1} parts is not understood; expected (declare-const NAME Real)"
                " or (assert CONDITION)",
                at,
            )
        return None

    def _declare(self, name: Form, sort: Form, at: int) -> None:
        match = _NAME.fullmatch(name) if isinstance(name, str) else None
        if match is None:
            raise self._tokens.error("a declared name is not of the form X_0, X_1, ... or Y_0, Y_1, ...", at)
        if sort != "Real":
            raise self._tokens.error(f"{match[0]} is declared as {short(sort)}; expected Real", at)
        if match[0] in self._declared:
            raise self._tokens.error(f"{match[0]} is declared twice", at)
        self._declared[match[0]] = (match[1], int(match[2]))

    def _disjuncts(self, form: Form, at: int) -> Disjuncts:
        """A condition as a disjunction of conjunctions, without recursion."""
        done: list[Disjuncts] = []
        todo: list[tuple[Form, int, bool]] = [(form, at, False)]
        while todo:
            part, where, combined = todo.pop()
            if not isinstance(part, list) or len(part) < 2 or not isinstance(part[1], str):
                raise self._tokens.error("a condition is missing; expected (<= A B), (and ...) or (or ...)", where)
            head, size = part[1], len(part) - 2
            if head not in ("and", "or"):
                done.append(self._atoms(part))
            elif not combined:
                todo.append((part, part[0], True))
                todo += [(child, part[0], False) for child in reversed(part[2:])]
            elif size == 0:
                raise self._tokens.error(f"({head}) has no conditions", part[0])
            else:
                done[-size:] = [self._combined(head, done[-size:], part[0])]
        return done[0]

    def _combined(self, head: str, parts: list[Disjuncts], at: int) -> Disjuncts:
        if head == "or":
            return [option for part in parts for option in part]
        try:
            return conjunction(parts)
        except QueryError as error:
            raise self._tokens.error(error.message, at) from None

    def _atoms(self, form: list) -> Disjuncts:
        """One comparison; an equality is two."""
        if form[1] == "=" and len(form) == 4:
            at = form[0]
            return [[self._comparison([at, "<=", *form[2:]]), self._comparison([at, ">=", *form[2:]])]]
        return [[self._comparison(form)]]

    def _comparison(self, form: list) -> Constraint:
        at, head = form[0], form[1]
        if head not in _STRICT or len(form) != 4:
            raise self._tokens.error(
                f"'{short(head)}' with {len(form) - 2} arguments is not understood;"
                " expected <=, >=, <, > or = with two arguments, and, or",
                at,
            )
        small, large = (form[2], form[3]) if head[0] == "<" else (form[3], form[2])
        if isinstance(small, str) and isinstance(large, str):
            simple = self._bound(small, large, _STRICT[head], at)
            if simple is not None:
                return simple
        terms = _Sum()
        self._collect(small, Fraction(1), terms, at)
        self._collect(large, Fraction(-1), terms, at)
        coefficients = tuple((v, c) for v, c in terms.coefficients.items() if c)
        return Atom(coefficients, -terms.constant, _STRICT[head], at)

    def _bound(self, small: str, large: str, strict: bool, at: int) -> Constraint | None:
        """A bound where one side is a variable and the other a number."""
        left, right = self._declared.get(small), self._declared.get(large)
        if (left is None) == (right is None):
            return None
        if left is not None:
            return bound(left, self._number(large, at), upper=True, strict=strict, at=at)
        assert right is not None
        return bound(right, self._number(small, at), upper=False, strict=strict, at=at)

    def _number(self, token: str, at: int) -> Decimal:
        try:
            value = number(token)
        except QueryError as error:
            raise self._tokens.error(error.message, at) from None
        if value is None:
            hint = "is not declared" if _NAME.fullmatch(token) else "is neither a declared name nor a number"
            raise self._tokens.error(f"'{short(token)}' {hint}", at)
        return value

    def _collect(self, form: Form, factor: Fraction, terms: "_Sum", at: int) -> None:
        """Add factor * form to the terms, without recursion."""
        todo: list[tuple[Form, Fraction]] = [(form, factor)]
        while todo:
            part, scale = todo.pop()
            if isinstance(part, str):
                variable = self._declared.get(part)
                if variable is None:
                    terms.constant += scale * fraction(self._number(part, at))
                else:
                    terms.coefficients[variable] = terms.coefficients.get(variable, Fraction(0)) + scale
                continue
            todo += self._parts(part, scale)

    def _parts(self, form: list, scale: Fraction) -> list[tuple[Form, Fraction]]:
        """The summands of an arithmetic expression."""
        at, head, arguments = form[0], form[1] if len(form) > 1 else "", form[2:]
        if head == "+" and arguments:
            return [(part, scale) for part in arguments]
        if head == "-" and arguments:
            first = -scale if len(arguments) == 1 else scale
            return [(arguments[0], first), *((part, -scale) for part in arguments[1:])]
        if head == "*" and arguments:
            return [self._product(arguments, scale, at)]
        raise self._tokens.error(f"'{short(head)}' is not understood in a sum; expected +, - or *", at)

    def _product(self, arguments: list, scale: Fraction, at: int) -> tuple[Form, Fraction]:
        rest: list[Form] = []
        for part in arguments:
            value = self._constant(part, at)
            if value is None:
                rest.append(part)
            else:
                scale *= value
        if len(rest) > 1:
            raise self._tokens.error("a product of variables is not linear; expected number * expression", at)
        return (rest[0], scale) if rest else ("1", scale)

    def _constant(self, form: Form, at: int) -> Fraction | None:
        """The value of a number or a negated number; None for anything with a variable."""
        sign = 1
        while isinstance(form, list) and len(form) == 3 and form[1] == "-":
            sign, form = -sign, form[2]
        if isinstance(form, list) or form in self._declared:
            return None
        return sign * fraction(self._number(form, at))


class _Sum:
    """A linear expression while it is collected."""

    def __init__(self) -> None:
        self.coefficients: dict[Variable, Fraction] = {}
        self.constant = Fraction(0)
