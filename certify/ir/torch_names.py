"""torch functions by name: which only ask, copy or move, and the moves done to positions of entries."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from certify.ir.build import Builder, Value


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# What a traced tensor answers itself.
QUERIES = _names("""
    shape size dim ndim ndimension numel nelement dtype device layout is_floating_point is_complex len stride
    is_contiguous requires_grad is_cuda is_mps is_sparse is_quantized is_nested is_leaf names get_device hash
""")
# What makes constants of the same shape or kind.
CREATORS = _names("zeros_like ones_like full_like new_zeros new_ones new_full new_tensor")
# What gives the same tensor back: numbers are float64 here, whatever the network computes in.
SAME = _names("contiguous detach float double to type_as cpu cuda data identity")
# What only moves entries: done to the positions of the entries instead.
MOVES = _names("""
    view reshape flatten unflatten ravel view_as reshape_as transpose permute swapaxes swapdims movedim moveaxis
    t T mT adjoint squeeze unsqueeze expand expand_as broadcast_to repeat tile repeat_interleave getitem select
    narrow chunk split split_with_sizes tensor_split hsplit vsplit dsplit unbind flip fliplr flipud roll rot90
    index_select unfold pixel_shuffle pixel_unshuffle channel_shuffle diagonal iter
""")


def moved(builder: Builder, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """A function that moves entries, applied to positions."""
    values = [v for v in args if isinstance(v, Value)]

    def positions(item: Any) -> Any:
        return torch.as_tensor(builder.positions(item)) if isinstance(item, Value) else item

    result = func(*map(positions, args), **{k: positions(v) for k, v in kwargs.items()})
    if isinstance(result, Tensor):
        return builder.select(values[0], result.numpy())
    return tuple(builder.select(values[0], part.numpy()) for part in result)
