"""Property files: VNN-LIB 1.0 and 2.0, plain or gzipped."""

import re
from os import PathLike

from certify.errors import QueryError
from certify.properties.query import Query
from certify.properties.sexpr import read_text
from certify.properties.vnnlib1 import parse_vnnlib1

_VERSION_2 = re.compile(r"(?:\s|;[^\n]*\n)*\(\s*(?:vnnlib-version|declare-network)\b")

# A file of a million inputs has about 100 MB.
MAX_BYTES = 1 << 28


def parse_vnnlib(text: str) -> Query:
    """The property that a text states; one of version 2.0 begins with `(vnnlib-version <2.0>)`."""
    if _VERSION_2.match(text):
        from certify.properties.vnnlib2 import parse_vnnlib2

        return parse_vnnlib2(text)
    return parse_vnnlib1(text)


def read_vnnlib(path: str | PathLike[str], *, max_bytes: int = MAX_BYTES) -> Query:
    """The property that a VNN-LIB file states: what it describes is unsafe.

    Args:
        path: a VNN-LIB file, also gzipped.
        max_bytes: the largest size, unpacked, that is read.

    Raises:
        QueryError: with the line number, for a file that is malformed, too large, uses names that are not
            declared, relates inputs to outputs, is not linear, or has an input without limits.
        EmptyQueryError: for a file whose boxes are all empty: nothing is unsafe, which is hardly what was meant.
        MissingDependencyError: for VNN-LIB 2.0 where the package `vnnlib` is not installed.
        OSError: for a file that cannot be opened.
    """
    text = read_text(path, max_bytes)
    try:
        return parse_vnnlib(text)
    except QueryError as error:
        raise type(error)(f"{path}: {error}") from None
