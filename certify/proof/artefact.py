"""Proof files: a strict reader of JSON with integers only, and dyadic rationals.

A number is an integer times 2^-scale. Nothing in a file is trusted: unknown and repeated keys, numbers that are no
integers, wrong lengths, huge numbers, deep nesting and large files are rejected before they cost memory or time.
"""

import gzip
import hashlib
import io
import json
import os
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FORMAT = "certify-proof"
VERSION = 1
LARGEST_FILE = 2**24  # bytes, unpacked
LARGEST_SCALE = 2400  # the smallest double is 2^-1074; a product of two has twice the scale
LARGEST_BITS = 4800
LARGEST_ARRAY = 2**31  # bits, of all its numbers at their scale
LARGEST_WORK = 2**36  # multiplications of one proof, about: minutes
DEEPEST = 1000  # splits on the way to a leaf
_GZIP = b"\x1f\x8b"


class ProofError(ValueError):
    """A proof file that was not accepted."""


class RejectedError(ProofError):
    """The content is no proof of what it claims, or no proof of what was asked; says why."""


class UnreadableError(ProofError):
    """The file could not be opened or read at all."""


def require(condition: bool, reason: str) -> None:
    """Reject unless the condition holds."""
    if not condition:
        raise RejectedError(reason)


def affordable(count: int, scale: int) -> None:
    """Reject arrays whose numbers, written out at their scale, would fill the memory."""
    require(count * (scale + 64) <= LARGEST_ARRAY, f"{count} numbers at scale {scale} are too much for this checker")


@dataclass
class Work:
    """Counts the multiplications of a check, before they are made."""

    done: int = 0

    def add(self, count: int) -> None:
        """Reject a proof that a small file makes long."""
        self.done += count
        require(self.done <= LARGEST_WORK, "the proof takes more work than this checker gives to one")


@dataclass(frozen=True)
class Dyadic:
    """values * 2^-scale: one integer, a vector as a list or a matrix as a list of rows.

    In JSON {"scale": s, "values": ...}.
    """

    values: Any
    scale: int

    def at(self, scale: int) -> Any:
        """The integers at another scale, not below the own one."""
        shift = scale - self.scale
        assert shift >= 0, "a coarser scale would round"
        return _mapped(lambda v: v << shift, self.values) if shift else self.values

    def reduced(self) -> "Dyadic":
        """The same numbers at the smallest scale: equal numbers have equal reduced forms."""
        bits = 0
        for v in _flat(self.values):
            bits |= v
        zeros = (bits & -bits).bit_length() - 1 if bits else self.scale
        shift = min(self.scale, zeros)
        return Dyadic(_mapped(lambda v: v >> shift, self.values), self.scale - shift)


def _mapped(f: Callable[[int], int], values: Any) -> Any:
    return [_mapped(f, v) for v in values] if isinstance(values, list) else f(values)


def _flat(values: Any) -> list[int]:
    if not isinstance(values, list):
        return [values]
    return [v for part in values for v in _flat(part)] if values and isinstance(values[0], list) else values


def fields(value: Any, where: str, *names: str) -> Mapping[str, Any]:
    """An object with exactly these keys."""
    require(type(value) is dict, f"{where} is no object")
    missing, unknown = set(names) - set(value), set(value) - set(names)
    require(not missing, f"{where} has no {', '.join(sorted(missing))}")
    require(not unknown, f"{where} has the unknown key {min(unknown, default='')[:40]!r}")
    return dict(value)


def items(value: Any, length: int | None, where: str) -> list[Any]:
    """A list of this length, of any length below a million for None."""
    require(type(value) is list, f"{where} is no list")
    require(len(value) < 10**6 if length is None else len(value) == length, f"{where} has {len(value)} entries")
    return list(value)


def integer(value: Any, where: str, low: int, high: int) -> int:
    """An integer of a range, both ends included."""
    require(type(value) is int and low <= value <= high, f"{where} is no integer from {low} to {high}")
    return int(value)


def integers(value: Any, length: int | None, where: str) -> list[int]:
    """A list of integers of a bounded number of bits."""
    values = items(value, length, where)
    require(all(type(v) is int for v in values), f"{where} has entries that are no integers")
    require(all(v.bit_length() <= LARGEST_BITS for v in values), f"{where} has integers above {LARGEST_BITS} bits")
    return values


def dyadic(value: Any, shape: tuple[int | None, ...], where: str, sign: int = -1) -> Dyadic:
    """A dyadic number (shape ()), vector or matrix of exactly this shape; None leaves the number of rows open.

    A `sign` of 0 rejects negative entries, of 1 also zeros.
    """
    held = fields(value, where, "scale", "values")
    scale = integer(held["scale"], f"the scale of {where}", 0, LARGEST_SCALE)
    if len(shape) == 2:
        values: Any = [integers(row, shape[1], where) for row in items(held["values"], shape[0], where)]
    else:
        values = integers(held["values"] if shape else [held["values"]], shape[0] if shape else 1, where)
        values = values if shape else values[0]
    affordable(len(_flat(values)), scale)
    require(sign < 0 or all(v >= sign for v in _flat(values)), f"{where} has an entry below {sign}")
    return Dyadic(values, scale)


def digest(*parts: Dyadic | str | int | Sequence[int]) -> str:
    """SHA-256 of a sequence of values: the same for the same numbers, whatever scale they are written at."""
    state = hashlib.sha256()
    for part in parts:
        plain = part.reduced() if isinstance(part, Dyadic) else part
        held: Any = ["dyadic", plain.scale, plain.values] if isinstance(plain, Dyadic) else plain
        state.update(json.dumps(held, separators=(",", ":")).encode() + b"\n")
    return state.hexdigest()


def load(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The document of a file, as JSON only.

    Raises:
        UnreadableError: the file is absent or cannot be read.
        RejectedError: it is truncated, too large, no JSON, or holds anything but objects, lists, strings, integers.
    """
    try:
        with Path(path).open("rb") as stream:
            content = stream.read(LARGEST_FILE + 1)
    except OSError as error:
        raise UnreadableError(f"cannot read {path}: {error.strerror or error}") from error
    return parse(content)


def parse(content: bytes) -> dict[str, Any]:
    """The document in some bytes; see `load`."""
    if content.startswith(_GZIP):
        try:
            with gzip.open(io.BytesIO(content)) as stream:
                content = stream.read(LARGEST_FILE + 1)
        except (OSError, EOFError, zlib.error) as error:
            raise RejectedError(f"the file is truncated or damaged: {error}") from error
    require(len(content) <= LARGEST_FILE, f"the file has more than {LARGEST_FILE} bytes")
    try:
        document = json.loads(
            content.decode("ascii"), parse_float=_no_float, parse_constant=_no_float, object_pairs_hook=_no_repeats
        )
    except RecursionError as error:
        raise RejectedError("the file is nested too deeply") from error
    except RejectedError:
        raise
    except ValueError as error:
        raise RejectedError(f"the file is truncated, or no JSON: {str(error)[:120]}") from error
    require(type(document) is dict, "the file holds no object")
    return dict(document)


def _no_float(text: str) -> Any:
    raise RejectedError(f"the file holds {text[:20]}, which is no integer")


def _no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    require(len({key for key, _ in pairs}) == len(pairs), "the file repeats a key")
    return dict(pairs)
