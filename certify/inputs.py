"""Users' arrays (numpy, torch, pandas, lists) to float64 tensors, with the errors that bad ones deserve."""

from numbers import Integral
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from certify.errors import InvalidInputError, InvalidTypeError
from certify.ir.ops import Shape

_LOWEST, _HIGHEST = -(2**62), 2**62  # labels beyond it would overflow before they are compared with the outputs


def _as_array(value: Any, name: str) -> np.ndarray:
    if isinstance(value, Tensor):
        if value.is_meta or value.is_quantized or value.layout != torch.strided:
            raise InvalidTypeError(
                f"{name} is a tensor of layout {value.layout}, type {value.dtype}, on {value.device.type!r};"
                " expected a dense one of real numbers, such as to_dense() gives"
            )
        value = value.detach().cpu()
        value = value.float() if value.dtype == torch.bfloat16 else value
    if np.ma.is_masked(value):  # numpy would hand out what lies under the mask
        raise InvalidInputError(f"{name} has masked entries; expected finite numbers: fill or drop them")
    try:
        array: np.ndarray = value.to_numpy() if hasattr(value, "to_numpy") else np.asarray(value)
    except ValueError as error:
        raise InvalidInputError(f"{name} cannot be read as an array: {error}") from error
    if array.dtype.kind not in "fiub":
        raise InvalidTypeError(
            f"{name} has entries of type {array.dtype}; expected real numbers:"
            " encode text or categories, and drop complex parts, first"
        )
    return array


def as_inputs(value: Any, name: str) -> Float[Tensor, "*shape"]:
    """A float64 copy of an array of real, finite numbers.

    Raises:
        InvalidTypeError: for text, complex numbers or objects.
        InvalidInputError: for NaN, infinite or no entries.
    """
    tensor = torch.from_numpy(np.array(_as_array(value, name), dtype=np.float64, order="C"))
    if tensor.numel() == 0:
        raise InvalidInputError(f"{name} is empty (shape {tuple(tensor.shape)}); expected at least one input")
    if not bool(torch.isfinite(tensor).all()):
        count = int((~torch.isfinite(tensor)).sum())
        raise InvalidInputError(
            f"{name} has {count} NaN or infinite entries; expected finite numbers: fill or drop them"
        )
    return tensor


def as_labels(value: Any, count: int) -> Int[Tensor, " batch"]:
    """Class numbers, one per input.

    Raises:
        InvalidTypeError: for text.
        InvalidInputError: for another number of labels than of inputs, or labels that are no whole numbers.
    """
    array = _as_array(value, "y")
    if array.shape != (count,):
        raise InvalidInputError(f"y has shape {array.shape}; expected ({count},): one label for every input")
    if array.dtype.kind == "f" and not bool((np.isfinite(array) & (array == np.round(array))).all()):
        raise InvalidInputError("y has labels that are no whole numbers; expected class numbers 0, 1, ...")
    if array.size and not _LOWEST <= array.min() <= array.max() <= _HIGHEST:
        raise InvalidInputError(f"y has labels from {array.min()} to {array.max()}; expected class numbers 0, 1, ...")
    return torch.tensor(array.astype(np.int64))


def as_label(value: Any) -> Int[Tensor, " 1"]:
    """One class number."""
    one = value.numel() == 1 if isinstance(value, Tensor) else getattr(value, "size", 1) == 1
    value = value.item() if hasattr(value, "item") and one else value
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, Integral):
        raise InvalidTypeError(f"label is {value!r}; expected a class number 0, 1, ...")
    if not _LOWEST <= int(value) <= _HIGHEST:
        raise InvalidInputError(f"label is {value}; expected a class number 0, 1, ...")
    return torch.tensor([int(value)])


def as_radius(value: Any) -> float:
    """A finite number >= 0."""
    try:
        radius = float(value)
    except (TypeError, ValueError):
        raise InvalidTypeError(f"eps is {value!r}; expected one number, the radius in the units of x") from None
    if not (np.isfinite(radius) and radius >= 0):
        raise InvalidInputError(f"eps is {radius}; expected a finite radius >= 0")
    return radius


def as_domain(domain: Any, shape: Shape) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]] | None:
    """The limits of valid inputs, flat, from a pair of numbers or of arrays that fit one input.

    Raises:
        InvalidInputError: for anything but a pair, NaN, crossing limits, or arrays that do not fit.
    """
    if domain is None:
        return None
    try:
        lower, upper = domain
    except (TypeError, ValueError):
        raise InvalidInputError(
            f"domain is {domain!r}; expected a pair (lower, upper) of numbers or arrays, such as (0, 1)"
        ) from None
    low, high = _as_limit(lower, shape), _as_limit(upper, shape)
    if bool((low > high).any()):
        raise InvalidInputError("a lower limit of the domain is above its upper limit; expected lower <= upper")
    return low, high


def _as_limit(value: Any, shape: Shape) -> Float[Tensor, " n"]:
    limit = torch.from_numpy(np.array(_as_array(value, "domain"), dtype=np.float64, order="C"))
    if bool(limit.isnan().any()):
        raise InvalidInputError("a domain limit is NaN; expected numbers, infinite where a side is open")
    try:
        return limit.expand(shape).reshape(-1)
    except RuntimeError:
        raise InvalidInputError(
            f"a domain limit has shape {tuple(limit.shape)}; expected a number or one input's shape, {shape}"
        ) from None
