"""Floating-point arrays as dyadic rationals, and proof files from documents."""

import gzip
import json
import os
from collections.abc import Callable, Mapping
from fractions import Fraction
from math import floor
from pathlib import Path
from typing import Any

import numpy as np

from certify.proof.artefact import FORMAT, VERSION, Dyadic


def document(kind: str, claim: Mapping[str, Any], digest: str, proof: Mapping[str, Any]) -> dict[str, Any]:
    """A proof file's content; `digest` is that of the claim as its kind reads it."""
    return {"format": FORMAT, "version": VERSION, "kind": kind, "claim": claim, "digest": digest, "proof": proof}


def as_json(number: Dyadic | None) -> dict[str, Any] | None:
    """As it stands in a file."""
    return None if number is None else {"scale": number.scale, "values": number.values}


def as_float(number: Dyadic) -> np.ndarray:
    """Rounded to doubles."""
    values = np.array(number.values, dtype=object)
    return np.array([v / (1 << number.scale) for v in values.ravel()], dtype=float).reshape(values.shape)


def below(numbers: list[Fraction], scale: int) -> Dyadic:
    """Rounded down to a scale."""
    return Dyadic([floor(v * (1 << scale)) for v in numbers], scale)


def exact(array: Any) -> Dyadic:
    """Floating-point numbers (or integers) as they are, at the smallest scale that holds them all."""
    pairs = [float(v).as_integer_ratio() for v in np.asarray(array, dtype=float).ravel()]
    scale = max((d.bit_length() - 1 for _, d in pairs), default=0)
    flat = [n << (scale - d.bit_length() + 1) for n, d in pairs]
    return Dyadic(_shaped(flat, np.shape(array)), scale)


def rounded(array: Any, scale: int, mode: Callable[[np.ndarray], np.ndarray] = np.rint) -> Dyadic:
    """Floating-point numbers at a given scale; `mode` is np.rint, np.floor or np.ceil."""
    scaled = mode(np.ldexp(np.asarray(array, dtype=float), scale))
    return Dyadic(_shaped([int(v) for v in scaled.ravel()], np.shape(array)), scale)


def _shaped(flat: list[int], shape: tuple[int, ...]) -> Any:
    if len(shape) < 2:
        return flat if shape else flat[0]
    return [flat[i * shape[1] : (i + 1) * shape[1]] for i in range(shape[0])]


def save(document: Mapping[str, Any], path: str | os.PathLike[str]) -> int:
    """Write a file, packed unless its name ends in .json; returns the number of bytes."""
    text = json.dumps(document, separators=(",", ":"), allow_nan=False).encode("ascii")
    content = text if Path(path).suffix == ".json" else gzip.compress(text, 9, mtime=0)
    Path(path).write_bytes(content)
    return len(content)
