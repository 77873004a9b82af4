"""How much floating point can be off, so that every bound is rounded to the safe side.

A sum of n products computed in any order, with or without fused multiply-add, is off by at most
gamma_n times the sum of the absolute values, gamma_n = n u / (1 - n u), u the unit roundoff
(Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., section 3.1).
"""

import torch
from jaxtyping import Float
from torch import Tensor

# Operations beside the n products of a sum (scaling, subtracting, the error term's own arithmetic), and the
# rounding of a weight to the working precision, all fit into this many further roundings.
_SLACK = 16


# Unit roundoff of float64.
UNIT = 2.0**-53


def gamma_of(terms: int) -> float:
    """The same as `gamma`, in float64."""
    return gamma(terms, torch.float64)


def gamma(terms: int, dtype: torch.dtype) -> float:
    """Relative error bound of a sum of `terms` products, doubled to absorb second-order terms."""
    # finfo.eps is 2u: the bound is 2 (terms + slack) u.
    return (terms + _SLACK) * torch.finfo(dtype).eps


def down(value: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The next number below."""
    return torch.nextafter(value, torch.full_like(value, -torch.inf))


def up(value: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The next number above."""
    return torch.nextafter(value, torch.full_like(value, torch.inf))


def cast_down(value: Float[Tensor, "*shape"], dtype: torch.dtype) -> Float[Tensor, "*shape"]:
    """In another precision, never above the value."""
    cast = value.to(dtype)
    return torch.where(cast.double() > value.double(), down(cast), cast)


def cast_up(value: Float[Tensor, "*shape"], dtype: torch.dtype) -> Float[Tensor, "*shape"]:
    """In another precision, never below the value."""
    return -cast_down(-value, dtype)


def fits_single(*values: Float[Tensor, "*_"]) -> bool:
    """Whether all can be squared in single precision."""
    most = torch.finfo(torch.float32).max ** 0.5
    return all(bool((v.abs() < most).all()) for v in values)
