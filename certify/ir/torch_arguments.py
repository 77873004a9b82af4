"""Arguments of torch functions: tensors as float64 constants, one number or many as a tuple, axes."""

from typing import Any

import numpy as np
from torch import Tensor

from certify.errors import UnsupportedOp
from certify.ir.build import Value
from certify.ir.ops import Shape


def numbers(item: Any, what: str) -> np.ndarray:
    """A constant as float64."""
    if isinstance(item, Value):
        raise UnsupportedOp(f"{what} depends on the input: products of two such values are not supported")
    if isinstance(item, Tensor):
        return item.detach().cpu().double().numpy()
    return np.asarray(item, dtype=np.float64)


def optional_numbers(item: Any, what: str) -> np.ndarray | None:
    """A constant as float64, where there is one."""
    return None if item is None else numbers(item, what)


def one_for_each_axis(item: Any, axes: int) -> Shape:
    """One number for each axis."""
    values = tuple(item) if isinstance(item, list | tuple) else (item,)
    return tuple(int(v) for v in (values * axes if len(values) == 1 else values))


def axes_of(dim: Any, value: Value) -> tuple[int, ...]:
    """The axes that `dim` names: all of them for None and ()."""
    if dim is None or dim == ():
        return tuple(range(len(value.shape)))
    return tuple(dim) if isinstance(dim, list | tuple) else (int(dim),)
