"""torch functions that look through windows: convolutions, pooling, padding."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from certify.errors import UnsupportedOp
from certify.ir.build import Builder, Value
from certify.ir.ops import Shape, Window
from certify.ir.torch_arguments import numbers, one_for_each_axis, optional_numbers
from certify.ir.windows import average_pool, covering, max_pool

Rule = Callable[..., Any]


def _padding(padding: Any, kernel: Shape, stride: Shape, dilation: Shape) -> tuple[Shape, Shape]:
    if padding == "valid":
        return (0,) * len(kernel), (0,) * len(kernel)
    if padding == "same":
        total = tuple(d * (k - 1) for k, d in zip(kernel, dilation, strict=True))
        before = tuple(t // 2 for t in total)
        return before, tuple(t - b for t, b in zip(total, before, strict=True))
    both = one_for_each_axis(padding, len(kernel))
    return both, both


def _conv(
    builder: Builder,
    input: Value,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Value:
    """Parameters as in torch."""
    kernels = numbers(weight, "the kernel")
    kernel = kernels.shape[2:]
    steps, gaps = one_for_each_axis(stride, len(kernel)), one_for_each_axis(dilation, len(kernel))
    window = Window(kernel, steps, *_padding(padding, kernel, steps, gaps), gaps)
    return builder.conv(input, kernels, optional_numbers(bias, "the bias"), window, groups)


def _conv_transpose(
    builder: Builder,
    input: Value,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Value:
    """Parameters as in torch."""
    kernels = numbers(weight, "the kernel")
    axes = kernels.ndim - 2
    steps, both, gaps, rest = (one_for_each_axis(v, axes) for v in (stride, padding, dilation, output_padding))
    window = Window(kernels.shape[2:], steps, both, both, gaps)
    spatial = window.input_shape(input.shape[-axes:], rest)
    return builder.conv_transpose(input, kernels, optional_numbers(bias, "the bias"), window, spatial, groups)


def _pooling(
    input: Value, axes: int, kernel_size: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool
) -> Window:
    kernel, both = one_for_each_axis(kernel_size, axes), one_for_each_axis(padding, axes)
    steps = kernel if stride is None or stride == [] else one_for_each_axis(stride, axes)
    window = Window(kernel, steps, both, both, one_for_each_axis(dilation, axes))
    return covering(window, input.shape[-axes:]) if ceil_mode else window


def _max_pool(axes: int) -> Rule:
    def rule(
        builder: Builder,
        input: Value,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        dilation: Any = 1,
        ceil_mode: bool = False,
        return_indices: bool = False,
    ) -> Value:
        if return_indices:
            raise UnsupportedOp("the indices of the maximum are not supported")
        return max_pool(builder, input, _pooling(input, axes, kernel_size, stride, padding, dilation, ceil_mode))

    return rule


def _avg_pool(axes: int) -> Rule:
    def rule(
        builder: Builder,
        input: Value,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
    ) -> Value:
        window = _pooling(input, axes, kernel_size, stride, padding, 1, ceil_mode)
        both = one_for_each_axis(padding, axes)
        counted = (both, both) if count_include_pad else None
        return average_pool(builder, input, window, counted=counted, divisor=divisor_override)

    return rule


def _adaptive(axes: int, *, mean: bool) -> Rule:
    def rule(builder: Builder, input: Value, output_size: Any, return_indices: bool = False) -> Value:
        spatial = input.shape[-axes:]
        sizes = output_size if isinstance(output_size, list | tuple) else (output_size,) * axes
        target = tuple(n if s is None else int(s) for s, n in zip(sizes, spatial, strict=True))
        if return_indices or any(n % t for n, t in zip(spatial, target, strict=True)):
            raise UnsupportedOp(
                f"adaptive pooling from {spatial} to {target} needs windows of one size, without indices"
            )
        kernel = tuple(n // t for n, t in zip(spatial, target, strict=True))
        zeros, ones = (0,) * axes, (1,) * axes
        window = Window(kernel, kernel, zeros, zeros, ones)
        return average_pool(builder, input, window, counted=None) if mean else max_pool(builder, input, window)

    return rule


def _pad(builder: Builder, input: Value, pad: Any, mode: str = "constant", value: float | None = None) -> Value:
    positions = torch.as_tensor(builder.positions(input)).double()
    if mode == "constant":
        index = torch.nn.functional.pad(positions, tuple(pad), value=-1.0).long().numpy()
        result = builder.select(input, index)
        return result if not value else builder.scale(result, 1.0, np.where(index < 0, float(value), 0.0))
    return builder.select(input, torch.nn.functional.pad(positions, tuple(pad), mode=mode).long().numpy())


WINDOWS: dict[str, Rule] = {
    "pad": _pad,
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), _conv),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), _conv_transpose),
    **{f"max_pool{n}d": _max_pool(n) for n in (1, 2, 3)},
    **{f"avg_pool{n}d": _avg_pool(n) for n in (1, 2, 3)},
    **{f"adaptive_avg_pool{n}d": _adaptive(n, mean=True) for n in (1, 2, 3)},
    **{f"adaptive_max_pool{n}d": _adaptive(n, mean=False) for n in (1, 2, 3)},
}
