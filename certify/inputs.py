"""Users' arrays (numpy, torch, pandas, lists) to float64 tensors, with the errors that bad ones deserve."""

from numbers import Integral
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from certify.errors import InvalidInputError, InvalidTypeError
from certify.ir.ops import Shape


def _as_array(value: Any, name: str) -> np.ndarray:
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        value = value.float() if value.dtype == torch.bfloat16 else value
    array: np.ndarray = value.to_numpy() if hasattr(value, "to_numpy") else np.asarray(value)
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
    return torch.tensor(array.astype(np.int64))


def as_label(value: Any) -> Int[Tensor, " 1"]:
    """One class number."""
    value = value.item() if hasattr(value, "item") and getattr(value, "size", 1) in (1, ()) else value
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, Integral):
        raise InvalidTypeError(f"label is {value!r}; expected a class number 0, 1, ...")
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
