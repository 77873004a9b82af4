"""A user's CSV file as arrays, with errors that say which column and line to look at."""

import csv
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

import numpy as np
from jaxtyping import Float64

from convexnn.errors import InvalidInputError

MISSING = {"", "na", "n/a", "nan", "null", "none", "?"}
MAX_CLASSES_AUTO = 20  # whole-number targets with more values than this are a regression


@dataclass(frozen=True)
class Table:
    """Features and target of a CSV file."""

    X: Float64[np.ndarray, "n d"]
    y: np.ndarray  # (n,): float64 for numbers, str for labels
    features: tuple[str, ...]
    target: str

    @property
    def task(self) -> str:
        """``"classification"`` for labels and for few whole numbers, else ``"regression"``."""
        if self.y.dtype.kind != "f":
            return "classification"
        few = len(np.unique(self.y)) <= min(MAX_CLASSES_AUTO, len(self.y) // 2)
        return "classification" if few and (self.y == np.round(self.y)).all() else "regression"


def read_csv(path: str | Path, *, target: str, drop: tuple[str, ...] = (), delimiter: str = ",") -> Table:
    """Read a CSV file with a header line.

    Args:
        path: the file.
        target: name of the column to predict; numbers or labels.
        drop: names of columns to leave out.
        delimiter: character between the fields.

    Returns:
        All other columns as features, in the order of the file.

    Raises:
        InvalidInputError: no such file or column, ragged lines, missing values, features that are
            not numbers; the message names the column, the line and what to do.

    """
    header, lines = _read_lines(path, delimiter)
    _need_columns(header, (target, *drop), path)
    features = tuple(name for name in header if name not in {target, *drop})
    if not features:
        raise InvalidInputError(f"{path}: no feature columns are left beside the target {target!r}")
    columns = {name: [line[i] for line in lines] for i, name in enumerate(header)}
    for name in (*features, target):
        _need_no_missing(name, columns[name], path)
    return Table(_features(columns, features, path), _target(columns[target]), features, target)


def _read_lines(path: str | Path, delimiter: str) -> tuple[list[str], list[list[str]]]:
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = [[cell.strip() for cell in row] for row in csv.reader(file, delimiter=delimiter) if row]
    except FileNotFoundError:
        raise InvalidInputError(f"there is no file {str(path)!r}") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InvalidInputError(f"{path} cannot be read as UTF-8 CSV: {error}") from error
    if len(rows) < 2:
        raise InvalidInputError(f"{path}: expected a header line and at least one line of data")
    header, lines = rows[0], rows[1:]
    for number, line in enumerate(lines, start=1):
        if len(line) != len(header):
            raise InvalidInputError(
                f"{path}: data line {number} has {len(line)} fields, the header has {len(header)} "
                f"(delimiter {delimiter!r}; choose another with --delimiter)"
            )
    return header, lines


def _need_columns(header: list[str], wanted: tuple[str, ...], path: str | Path) -> None:
    repeated = sorted({name for name in header if header.count(name) > 1})
    if repeated:
        raise InvalidInputError(f"{path}: columns appear more than once in the header: {', '.join(repeated)}")
    absent = [name for name in wanted if name not in header]
    if absent:
        other = next((mark for mark in ";\t|" if len(header) == 1 and mark in header[0]), None)
        hint = f"; the fields seem to be separated by {other!r}: pass it as the delimiter" if other else ""
        raise InvalidInputError(
            f"{path} has no column {', '.join(map(repr, absent))}; its columns are: {', '.join(header)}{hint}"
        )


def _need_no_missing(name: str, cells: list[str], path: str | Path) -> None:
    missing = [number for number, cell in enumerate(cells, start=1) if cell.lower() in MISSING]
    if missing:
        raise InvalidInputError(
            f"{path}: column {name!r} has {len(missing)} missing values, the first in data line "
            f"{missing[0]}; fill them in, remove those lines, or leave the column out with --drop {quote(name)}"
        )


def _features(columns: dict[str, list[str]], names: tuple[str, ...], path: str | Path) -> Float64[np.ndarray, "n d"]:
    numbers = {name: _numbers(columns[name]) for name in names}
    wrong = [name for name, values in numbers.items() if values is None]
    if wrong:
        example = next(cell for cell in columns[wrong[0]] if _numbers([cell]) is None)
        raise InvalidInputError(
            f"{path}: feature columns that are not finite numbers: {', '.join(wrong)} (for instance "
            f"{example!r} in {wrong[0]!r}); encode them as numbers, one 0/1 column per category, or "
            f"leave them out with --drop {quote(','.join(wrong))}"
        )
    return np.column_stack([values for values in numbers.values() if values is not None])


def _target(cells: list[str]) -> np.ndarray:
    values = _numbers(cells)
    return np.array(cells) if values is None else values


def _numbers(cells: list[str]) -> Float64[np.ndarray, " n"] | None:
    """The cells as finite numbers, or None if one of them is not a finite number."""
    try:
        values = np.array([float(cell) for cell in cells])
    except ValueError:
        return None
    return values if np.isfinite(values).all() else None
