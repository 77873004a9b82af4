"""S-expressions: the surface of VNN-LIB files, read without recursion and with line numbers for errors."""

import re
from collections.abc import Iterator
from os import PathLike
from pathlib import Path

from certify.errors import InvalidInputError, QueryError
from certify.packed import unpacked

_TOKEN = re.compile(r";[^\n]*|[()]|[^\s();]+")

_DEEPEST = 100
_MOST_TOKENS = 2**25  # which take about 2 GiB; a file of a million inputs has 22 million

# A form is an atom or [index of its first token, form, form, ...].
Form = str | list


def read_text(path: str | PathLike[str], limit: int) -> str:
    """A text file, also gzipped (by content, not by name), of at most `limit` bytes once unpacked.

    Raises:
        QueryError: for a larger file, a broken archive or a file that is not text.
        OSError: for a file that cannot be opened.
    """
    with Path(path).open("rb") as stream:
        data = stream.read(limit + 1)
    if len(data) > limit:
        raise QueryError(f"{path} has more than {limit} bytes; expected a smaller file (raise max_bytes)")
    try:
        data = unpacked(data, limit)
    except InvalidInputError as error:
        raise QueryError(f"{path} is {error}") from None
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise QueryError(f"{path} is not a text file ({error.reason} at byte {error.start})") from None


class Tokens:
    """The tokens of a text; positions are only recovered when an error needs them."""

    def __init__(self, text: str) -> None:
        self._text = text
        # Spaces and parentheses tell about how many, before any is made.
        if sum(map(text.count, " \n\t()")) > _MOST_TOKENS:
            raise QueryError(f"the text has more than {_MOST_TOKENS} names, numbers and parentheses; split the file")
        self.items: list[str] = [t for t in _TOKEN.findall(text) if t[0] != ";"]

    def line(self, index: int) -> int:
        """The line (from 1) of a token; that of the last one for an index past the end."""
        found = 0
        for match in _TOKEN.finditer(self._text):
            if match[0][0] == ";":
                continue
            found = match.start()
            if index == 0:
                break
            index -= 1
        return self._text.count("\n", 0, found) + 1

    def error(self, message: str, index: int) -> QueryError:
        """An error at a token."""
        return QueryError(message, self.line(index))

    def forms(self) -> Iterator[list]:
        """The top-level forms, one after the other."""
        position = 0
        while position < len(self.items):
            form, position = self.form(position)
            yield form

    def form(self, start: int) -> tuple[list, int]:
        """The form that opens at a token, and the position behind it."""
        if self.items[start] != "(":
            raise self.error(f"'{short(self.items[start])}' stands outside parentheses; expected '('", start)
        open_forms: list[list] = []
        for position in range(start, len(self.items)):
            token = self.items[position]
            if token == "(":
                open_forms.append([position])
                if len(open_forms) > _DEEPEST:
                    raise self.error(f"parentheses are nested deeper than {_DEEPEST}", position)
            elif token == ")":
                done = open_forms.pop()
                if not open_forms:
                    return done, position + 1
                open_forms[-1].append(done)
            else:
                open_forms[-1].append(token)
        raise self.error("a parenthesis that opens here is never closed", open_forms[-1][0])


def check_depth(text: str) -> None:
    """Refuse parentheses nested so deep that a recursive parser could run out of stack.

    Raises:
        QueryError: with the line.
    """
    tokens = Tokens(text)
    depth = 0
    for position, token in enumerate(tokens.items):
        depth += (token == "(") - (token == ")")
        if depth > _DEEPEST:
            raise tokens.error(f"parentheses are nested deeper than {_DEEPEST}", position)


def short(form: Form) -> str:
    """A form for an error message."""
    if isinstance(form, list):
        return "(...)"
    return form if len(form) <= 40 else form[:37] + "..."
