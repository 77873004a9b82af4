"""A question of a pipeline: a network, a property, and how long an answer may take."""

import csv
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, SupportsFloat

from certify.errors import InvalidInputError, InvalidTypeError
from certify.properties.query import Query
from certify.queries import as_timeout


@dataclass(frozen=True, eq=False)
class Instance:
    """One question.

    Attributes:
        network: path of an ONNX file, also gzipped, or its content; or a torch module in eval mode.
        query: a VNN-LIB file, also gzipped, or a `Query`.
        timeout: seconds; None takes the one of `verify_many`.
    """

    network: Any
    query: str | os.PathLike[str] | Query
    timeout: SupportsFloat | None = None

    @property
    def names(self) -> tuple[str, str]:
        """Of both files, as far as they are files."""
        return _name(self.network), _name(self.query)


def read_instances(path: str | os.PathLike[str]) -> list[Instance]:
    """The lines `network,query[,seconds]` of an `instances.csv`, as VNN-COMP has them.

    Args:
        path: the file, or the folder that has one. Names are relative to its folder; where a file is only there
            gzipped, that one is taken.

    Raises:
        InvalidInputError: with the line number, for lines that are no such thing, or files that are absent.
    """
    path = Path(path)
    path = path / "instances.csv" if path.is_dir() else path
    try:
        with path.open(newline="") as stream:
            rows = [(number, row) for number, row in enumerate(csv.reader(stream), 1) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InvalidInputError(f"cannot read {path}: {error}; expected lines network,query,seconds") from error
    return [_instance(path, number, row) for number, row in rows]


def _instance(path: Path, number: int, row: list[str]) -> Instance:
    where = f"line {number} of {path}"
    if len(row) not in (2, 3):
        raise InvalidInputError(f"{where} has {len(row)} fields; expected network,query or network,query,seconds")
    try:
        seconds = float(row[2]) if len(row) == 3 else None
    except ValueError:
        raise InvalidInputError(f"{where} has the time limit {row[2]!r}; expected seconds") from None
    network, query = (_existing(path.parent / name.strip(), where) for name in row[:2])
    return Instance(network, query, as_timeout(seconds))


def _existing(path: Path, where: str) -> Path:
    for found in (path, path.with_name(path.name + ".gz")):
        if found.is_file():
            return found
    raise InvalidInputError(f"{where} names {path}, which is absent; expected files beside instances.csv")


def as_instance(value: Any, timeout: float | None) -> Instance:
    """An instance, or a pair or triple that makes one, with the time limit of all where it has none."""
    if not isinstance(value, Instance):
        if isinstance(value, str) or not isinstance(value, Sequence) or len(value) not in (2, 3):
            raise InvalidTypeError(f"an instance is {value!r}; expected an Instance, or a pair (network, query)")
        value = Instance(*value)
    seconds = as_timeout(value.timeout)
    return Instance(value.network, value.query, timeout if seconds is None else seconds)


def _name(value: Any) -> str:
    return str(value) if isinstance(value, str | os.PathLike) else type(value).__name__
