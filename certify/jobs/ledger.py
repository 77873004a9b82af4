"""Answers in a file, one line each, that a run which was stopped goes on from.

The first line says what is asked; the file answers no other question. Every further line is one answer with its key.
A line counts once it is whole: it is written, flushed and synced to the disk in one go, and what is left of a line
that was being written when the machine went down is cut off.
"""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from certify.errors import InvalidInputError, ResultsFileError

try:
    import fcntl
except ImportError:  # on Windows nothing keeps two runs off one file
    fcntl = None  # type: ignore[assignment]

_FORMAT = "certify results 1"

Record = dict[str, Any]


class Ledger:
    """The answers so far by key; open while a run writes to it.

    `known` grows with every `add`; `stream` is None for a run that keeps no file.
    """

    def __init__(self, stream: IO[bytes] | None, known: dict[str, Record]) -> None:
        self._stream, self.known = stream, known

    @staticmethod
    @contextmanager
    def open(path: str | os.PathLike[str] | None, question: Mapping[str, Any]) -> Iterator["Ledger"]:
        """The file, new or with answers to the same question; None for no file.

        Raises:
            ResultsFileError: for a file that is something else, is damaged, answers another question, or belongs
                to a run that is still going on.
        """
        if path is None:
            yield Ledger(None, {})
            return
        path = Path(path)
        try:
            stream = path.open("a+b")
        except OSError as error:
            raise ResultsFileError(f"cannot write {path}: {error.strerror}; choose another results file") from error
        with stream:
            _lock(stream, path)
            stream.seek(0)
            known = _restored(stream, path, json.loads(_line({"format": _FORMAT, **question})))
            yield Ledger(stream, known)

    def add(self, key: str, record: Mapping[str, Any]) -> None:
        """One answer: on the disk when this returns."""
        if key in self.known:
            raise InvalidInputError(f"the answer {key} is there already; expected every question once")
        # First here: an interrupt in between leaves an answer that the run reports and the next one repeats, not
        # one in the file that this run does not know.
        self.known[key] = {"key": key, **record}
        if self._stream is not None:
            _write(self._stream, _line(self.known[key]))


def _lock(stream: IO[bytes], path: Path) -> None:
    if fcntl is not None:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ResultsFileError(
                f"{path} is being written by another run; wait for it, or choose another file"
            ) from None


def _line(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record, allow_nan=False, sort_keys=True).encode() + b"\n"


def _write(stream: IO[bytes], line: bytes) -> None:
    stream.write(line)
    stream.flush()
    os.fsync(stream.fileno())


def _restored(stream: IO[bytes], path: Path, question: Record) -> dict[str, Record]:
    """The whole lines of the file, which is left ready for the next one."""
    header = _line(question)
    lines = stream.read().splitlines(keepends=True)
    if not lines or (len(lines) == 1 and header.startswith(lines[0]) and lines[0] != header):
        stream.truncate(0)
        _write(stream, header)
        return {}
    _require_same(_parsed(lines[0]), question, path)
    if not _is_whole(lines[-1]):
        stream.truncate(sum(map(len, lines[:-1])))
        del lines[-1]
    known: dict[str, Record] = {}
    for number, line in enumerate(lines[1:], 2):
        record = _parsed(line)
        if record is None or not isinstance(record.get("key"), str):
            raise ResultsFileError(f"line {number} of {path} is damaged; delete that line, and it is computed again")
        known.setdefault(record["key"], record)
    return known


def _is_whole(line: bytes) -> bool:
    return line.endswith(b"\n") and _parsed(line) is not None


def _parsed(line: bytes) -> Record | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


def _require_same(found: Record | None, question: Record, path: Path) -> None:
    if found is None or found.get("format") != _FORMAT:
        raise ResultsFileError(f"{path} is no results file of this program; it is left as it is: choose another name")
    names = sorted(k for k in {*found, *question} if found.get(k) != question.get(k))
    if names:
        told = "; ".join(f"{k} was {found.get(k)!r} and is {question.get(k)!r}" for k in names)
        raise ResultsFileError(f"{path} has the answers to another question ({told}); choose another results file")
