"""The few array functions that numpy and torch do not share, chosen by the kind of the array.

torch is looked up only when a tensor comes in: then it has been imported already.
"""

import sys
from typing import Any

import numpy as np


def _torch() -> Any:
    return sys.modules["torch"]


def take(values: Any, index: np.ndarray, zero: np.ndarray | None = None) -> Any:
    """values[:, index], and 0 where the index is -1; `zero` are those places if they are known."""
    if zero is None:
        zero = np.flatnonzero(index < 0)
    if isinstance(values, np.ndarray):
        taken = values[:, index]
        taken[:, zero] = 0.0
        return taken
    torch = _torch()
    taken = values.index_select(1, torch.as_tensor(index.clip(0), device=values.device))
    return taken if not len(zero) else taken.index_fill(1, torch.as_tensor(zero, device=values.device), 0.0)


def add_at(rows: Any, index: Any, length: int) -> Any:
    """Columns added into a result of `length` columns at the places of the index; -1 is nowhere."""
    kept = np.flatnonzero(index >= 0)
    if isinstance(rows, np.ndarray):
        total = np.zeros((len(rows), length), dtype=rows.dtype)
        np.add.at(total.T, index[kept], rows[:, kept].T)
        return total
    torch = _torch()
    places, columns = (torch.as_tensor(v, device=rows.device) for v in (index[kept], kept))
    return rows.new_zeros((len(rows), length)).index_add(1, places, rows.index_select(1, columns))


def join(values: tuple[Any, ...], axis: int) -> Any:
    """The values one behind another along an axis."""
    if isinstance(values[0], np.ndarray):
        return np.concatenate(values, axis)
    return _torch().cat(values, axis)


def tanh(values: Any) -> Any:
    """Hyperbolic tangent."""
    return np.tanh(values) if isinstance(values, np.ndarray) else values.tanh()


def sigmoid(values: Any) -> Any:
    """1 / (1 + exp(-x)), without overflow."""
    return (1.0 + np.tanh(values / 2)) / 2 if isinstance(values, np.ndarray) else values.sigmoid()
