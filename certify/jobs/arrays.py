"""Numbers in JSON, to the last bit."""

import base64
from math import isfinite
from typing import Any

import numpy as np


def array_to_json(array: np.ndarray) -> dict[str, Any]:
    """Type, shape and the bytes, little-endian and in row-major order."""
    plain = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    data = base64.b64encode(plain.tobytes()).decode()
    return {"dtype": array.dtype.name, "shape": list(array.shape), "base64": data}


def array_from_json(record: dict[str, Any]) -> np.ndarray:
    """The array that `array_to_json` wrote."""
    kind = np.dtype(record["dtype"])
    flat = np.frombuffer(base64.b64decode(record["base64"]), dtype=kind.newbyteorder("<"))
    return flat.astype(kind).reshape(record["shape"])


def bound_to_json(value: float) -> float | None:
    """A finite number as it is (JSON keeps every bit of a double), None for minus infinity: nothing known."""
    return float(value) if isfinite(value) else None


def bound_from_json(value: float | None) -> float:
    """The number that `bound_to_json` wrote."""
    return -np.inf if value is None else value
