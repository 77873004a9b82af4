"""torch functions on values, by name: the same rule for a function, a method and a module that calls it.

Rules have torch's own parameters, after the builder. Values come as `Value`, other tensors as they are.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from certify.errors import TrainModeError, UnsupportedOp
from certify.ir.build import Builder, Value
from certify.ir.ops import ReLU, Shape, Sigmoid, Tanh, Window
from certify.ir.windows import average_pool, covering, largest, max_pool

Rule = Callable[..., Any]


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


def _numbers(item: Any, what: str) -> np.ndarray:
    """A constant as float64."""
    if isinstance(item, Value):
        raise UnsupportedOp(f"{what} depends on the input: products of two such values are not supported")
    if isinstance(item, Tensor):
        return item.detach().cpu().double().numpy()
    return np.asarray(item, dtype=np.float64)


def _optional(item: Any, what: str) -> np.ndarray | None:
    return None if item is None else _numbers(item, what)


def _tuple(item: Any, axes: int) -> Shape:
    """One number for each axis."""
    values = tuple(item) if isinstance(item, list | tuple) else (item,)
    return tuple(int(v) for v in (values * axes if len(values) == 1 else values))


def _axes(dim: Any, value: Value) -> tuple[int, ...]:
    if dim is None or dim == ():
        return tuple(range(len(value.shape)))
    return tuple(dim) if isinstance(dim, list | tuple) else (int(dim),)


# ---- sums and products


def _combine(builder: Builder, left: Any, right: Any, c: float, d: float) -> Value:
    if isinstance(left, Value) and isinstance(right, Value):
        return builder.combine([left, right], [c, d])
    if isinstance(left, Value):
        return builder.scale(left, c, d * _numbers(right, "the other term"))
    return builder.scale(right, d, c * _numbers(left, "the other term"))


def _add(builder: Builder, input: Any, other: Any, alpha: Any = 1.0) -> Value:
    return _combine(builder, input, other, 1.0, float(alpha))


def _sub(builder: Builder, input: Any, other: Any, alpha: Any = 1.0) -> Value:
    return _combine(builder, input, other, 1.0, -float(alpha))


def _rsub(builder: Builder, input: Any, other: Any, alpha: Any = 1.0) -> Value:
    return _combine(builder, other, input, 1.0, -float(alpha))


def _mul(builder: Builder, input: Any, other: Any) -> Value:
    value, factor = (input, other) if isinstance(input, Value) else (other, input)
    return builder.scale(value, _numbers(factor, "the other factor"))


def _div(builder: Builder, input: Any, other: Any, rounding_mode: Any = None) -> Value:
    if rounding_mode is not None or not isinstance(input, Value):
        raise UnsupportedOp("division is supported by constants, without rounding")
    return builder.scale(input, 1.0 / _numbers(other, "the divisor"))


def _neg(builder: Builder, input: Value) -> Value:
    return builder.scale(input, -1.0)


def _linear(builder: Builder, input: Value, weight: Any, bias: Any = None) -> Value:
    return builder.linear(input, _numbers(weight, "the weight"), _optional(bias, "the bias"))


def _matmul(builder: Builder, input: Any, other: Any) -> Value:
    if isinstance(input, Value):
        matrix = _numbers(other, "the other factor")
        if matrix.ndim == 1:
            product = builder.linear(input, matrix[None])
            return builder.reshape(product, product.shape[:-1])
        return builder.linear(input, _matrix(matrix).T)
    matrix = _matrix(_numbers(input, "the other factor"))
    if len(other.shape) == 1:
        return builder.linear(other, matrix)
    return _swapped(builder, builder.linear(_swapped(builder, other), matrix))


def _rmatmul(builder: Builder, input: Any, other: Any) -> Value:
    return _matmul(builder, other, input)


def _matrix(array: np.ndarray) -> np.ndarray:
    if array.ndim != 2:
        raise UnsupportedOp(f"a constant factor of shape {array.shape} is not supported; expected a matrix or vector")
    return array


def _swapped(builder: Builder, value: Value) -> Value:
    return builder.select(value, builder.positions(value).swapaxes(-1, -2))


def _addmm(builder: Builder, input: Any, mat1: Any, mat2: Any, beta: Any = 1.0, alpha: Any = 1.0) -> Value:
    return _combine(builder, _matmul(builder, mat1, mat2), input, float(alpha), float(beta))


def _cat(builder: Builder, tensors: Any, dim: int = 0) -> Value:
    anchor = next(t for t in tensors if isinstance(t, Value))
    return builder.concat([_as_value(builder, t, anchor) for t in tensors], dim)


def _stack(builder: Builder, tensors: Any, dim: int = 0) -> Value:
    anchor = next(t for t in tensors if isinstance(t, Value))
    values = [_as_value(builder, t, anchor) for t in tensors]
    axis = dim % (len(anchor.shape) + 1)
    return builder.concat([builder.reshape(v, (*v.shape[:axis], 1, *v.shape[axis:])) for v in values], axis)


def _as_value(builder: Builder, item: Any, anchor: Value) -> Value:
    return item if isinstance(item, Value) else builder.constant(_numbers(item, "a part"), anchor)


def _mean(builder: Builder, input: Value, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Value:
    return builder.mean(input, _axes(dim, input), keep=keepdim)


def _sum(builder: Builder, input: Value, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Value:
    return builder.mean(input, _axes(dim, input), keep=keepdim, total=True)


def _batch_norm(
    builder: Builder,
    input: Value,
    running_mean: Any,
    running_var: Any,
    weight: Any = None,
    bias: Any = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Value:
    """Parameters as in torch."""
    if running_mean is None or running_var is None:
        raise UnsupportedOp(
            "there are no running statistics, so the output depends on the batch; train with track_running_stats=True"
        )
    _require_eval(training)
    mean, variance = _numbers(running_mean, "the mean"), _numbers(running_var, "the variance")
    scale = 1.0 if weight is None else _numbers(weight, "the weight")
    offset = 0.0 if bias is None else _numbers(bias, "the bias")
    return builder.batch_norm(input, (mean, variance + eps), scale, offset)


def _require_eval(training: bool) -> None:
    if training:
        raise TrainModeError(
            "it is in train mode, so the network is not one fixed function; call .eval() on the network first"
        )


# ---- windows


def _padding(padding: Any, kernel: Shape, stride: Shape, dilation: Shape) -> tuple[Shape, Shape]:
    if padding == "valid":
        return (0,) * len(kernel), (0,) * len(kernel)
    if padding == "same":
        total = tuple(d * (k - 1) for k, d in zip(kernel, dilation, strict=True))
        before = tuple(t // 2 for t in total)
        return before, tuple(t - b for t, b in zip(total, before, strict=True))
    both = _tuple(padding, len(kernel))
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
    kernels = _numbers(weight, "the kernel")
    kernel = kernels.shape[2:]
    steps, gaps = _tuple(stride, len(kernel)), _tuple(dilation, len(kernel))
    window = Window(kernel, steps, *_padding(padding, kernel, steps, gaps), gaps)
    return builder.conv(input, kernels, _optional(bias, "the bias"), window, groups)


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
    kernels = _numbers(weight, "the kernel")
    axes = kernels.ndim - 2
    steps, both, gaps, rest = (_tuple(v, axes) for v in (stride, padding, dilation, output_padding))
    window = Window(kernels.shape[2:], steps, both, both, gaps)
    spatial = window.input_shape(input.shape[-axes:], rest)
    return builder.conv_transpose(input, kernels, _optional(bias, "the bias"), window, spatial, groups)


def _pooling(
    input: Value, axes: int, kernel_size: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool
) -> Window:
    kernel, both = _tuple(kernel_size, axes), _tuple(padding, axes)
    steps = kernel if stride is None or stride == [] else _tuple(stride, axes)
    window = Window(kernel, steps, both, both, _tuple(dilation, axes))
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
        both = _tuple(padding, axes)
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


# ---- activations


def _pointwise(op: Any) -> Rule:
    def rule(builder: Builder, input: Value, inplace: bool = False) -> Value:
        return builder.pointwise(input, op)

    return rule


def _leaky(builder: Builder, input: Value, negative_slope: float = 0.01, inplace: bool = False) -> Value:
    return builder.leaky(input, negative_slope)


def _prelu(builder: Builder, input: Value, weight: Any) -> Value:
    slope = _numbers(weight, "the slope")
    return builder.leaky(input, slope if slope.size == 1 else slope.reshape((-1, *[1] * (len(input.shape) - 2))))


def _hardtanh(
    builder: Builder, input: Value, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False
) -> Value:
    return builder.clip(input, float(min_val), float(max_val))


def _relu6(builder: Builder, input: Value, inplace: bool = False) -> Value:
    return builder.clip(input, 0.0, 6.0)


def _hardsigmoid(builder: Builder, input: Value, inplace: bool = False) -> Value:
    return builder.clip(builder.scale(input, 1.0 / 6.0, 0.5), 0.0, 1.0)


def _clamp(builder: Builder, input: Value, min: Any = None, max: Any = None) -> Value:
    low, high = (_limit(v, otherwise) for v, otherwise in ((min, -np.inf), (max, np.inf)))
    return builder.clip(input, low, high)


def _limit(item: Any, otherwise: float) -> float:
    if item is None:
        return otherwise
    numbers = _numbers(item, "a limit")
    if numbers.size != 1:
        raise UnsupportedOp("clamping is supported with one number for each limit")
    return float(numbers.ravel()[0])


def _abs(builder: Builder, input: Value) -> Value:
    return builder.absolute(input)


def _dropout(builder: Builder, input: Value, p: float = 0.5, training: bool = True, inplace: bool = False) -> Value:
    _require_eval(training)
    return input


def _extreme(sign: float) -> Rule:
    def rule(builder: Builder, input: Any, other: Any = None, keepdim: bool = False, dim: Any = None) -> Value:
        if isinstance(other, int) or dim is not None:
            raise UnsupportedOp("max and min along an axis return indices as well; use amax or amin")
        if other is None:
            return largest(builder, input, _axes(None, input), keep=False, sign=sign)
        if isinstance(input, Value) and isinstance(other, Value):
            return builder.largest_of(input, other, sign)
        value, constant = (input, other) if isinstance(input, Value) else (other, input)
        return builder.above(value, _numbers(constant, "the other one"), sign)

    return rule


def _along(sign: float) -> Rule:
    def rule(builder: Builder, input: Value, dim: Any = (), keepdim: bool = False) -> Value:
        return largest(builder, input, _axes(dim, input), keep=keepdim, sign=sign)

    return rule


RULES: dict[str, Rule] = {
    "abs": _abs,
    "absolute": _abs,
    "add": _add,
    "addmm": _addmm,
    "amax": _along(1.0),
    "amin": _along(-1.0),
    "batch_norm": _batch_norm,
    "cat": _cat,
    "clamp": _clamp,
    "clip": _clamp,
    "concat": _cat,
    "concatenate": _cat,
    "div": _div,
    "hardsigmoid": _hardsigmoid,
    "hardtanh": _hardtanh,
    "leaky_relu": _leaky,
    "linear": _linear,
    "matmul": _matmul,
    "max": _extreme(1.0),
    "maximum": _extreme(1.0),
    "mean": _mean,
    "min": _extreme(-1.0),
    "minimum": _extreme(-1.0),
    "mm": _matmul,
    "mul": _mul,
    "multiply": _mul,
    "neg": _neg,
    "negative": _neg,
    "pad": _pad,
    "prelu": _prelu,
    "radd": _add,
    "relu": _pointwise(ReLU()),
    "relu6": _relu6,
    "rmatmul": _rmatmul,
    "rmul": _mul,
    "rsub": _rsub,
    "sigmoid": _pointwise(Sigmoid()),
    "stack": _stack,
    "sub": _sub,
    "subtract": _sub,
    "sum": _sum,
    "tanh": _pointwise(Tanh()),
    "true_divide": _div,
    "truediv": _div,
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), _conv),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), _conv_transpose),
    **dict.fromkeys(
        ("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout"), _dropout
    ),
    **{f"max_pool{n}d": _max_pool(n) for n in (1, 2, 3)},
    **{f"avg_pool{n}d": _avg_pool(n) for n in (1, 2, 3)},
    **{f"adaptive_avg_pool{n}d": _adaptive(n, mean=True) for n in (1, 2, 3)},
    **{f"adaptive_max_pool{n}d": _adaptive(n, mean=False) for n in (1, 2, 3)},
}


def plain_name(func: Callable[..., Any]) -> tuple[str, bool]:
    """The same for a function, a method, an operator and a property; and whether it writes in place."""
    name = func.__name__
    if name == "__get__":
        return func.__self__.__name__, False  # type: ignore[attr-defined]
    if name.startswith("__"):
        plain = name.strip("_")
        in_place = plain[0] == "i" and plain[1:] in RULES
        return (plain[1:], True) if in_place else (plain, False)
    return name.rstrip("_").lstrip("_"), name.endswith("_")
