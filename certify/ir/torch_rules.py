"""torch functions on values, by name: the same rule for a function, a method and a module that calls it.

Rules have torch's own parameters, after the builder. Values come as `Value`, other tensors as they are.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from certify.errors import TrainModeError, UnsupportedOp
from certify.ir.build import Builder, Value
from certify.ir.ops import ReLU, Sigmoid, Tanh
from certify.ir.torch_arguments import axes_of, numbers, optional_numbers
from certify.ir.torch_windows import WINDOWS, Rule
from certify.ir.windows import largest

# ---- sums and products


def _combine(builder: Builder, left: Any, right: Any, c: float, d: float) -> Value:
    if isinstance(left, Value) and isinstance(right, Value):
        return builder.combine([left, right], [c, d])
    if isinstance(left, Value):
        return builder.scale(left, c, d * numbers(right, "the other term"))
    return builder.scale(right, d, c * numbers(left, "the other term"))


def _add(builder: Builder, input: Any, other: Any, alpha: Any = 1.0) -> Value:
    return _combine(builder, input, other, 1.0, float(alpha))


def _sub(builder: Builder, input: Any, other: Any, alpha: Any = 1.0) -> Value:
    return _combine(builder, input, other, 1.0, -float(alpha))


def _rsub(builder: Builder, input: Any, other: Any, alpha: Any = 1.0) -> Value:
    return _combine(builder, other, input, 1.0, -float(alpha))


def _mul(builder: Builder, input: Any, other: Any) -> Value:
    value, factor = (input, other) if isinstance(input, Value) else (other, input)
    return builder.scale(value, numbers(factor, "the other factor"))


def _div(builder: Builder, input: Any, other: Any, rounding_mode: Any = None) -> Value:
    if rounding_mode is not None or not isinstance(input, Value):
        raise UnsupportedOp("division is supported by constants, without rounding")
    return builder.scale(input, 1.0 / numbers(other, "the divisor"))


def _neg(builder: Builder, input: Value) -> Value:
    return builder.scale(input, -1.0)


def _linear(builder: Builder, input: Value, weight: Any, bias: Any = None) -> Value:
    return builder.linear(input, numbers(weight, "the weight"), optional_numbers(bias, "the bias"))


def _matmul(builder: Builder, input: Any, other: Any) -> Value:
    if isinstance(input, Value):
        matrix = numbers(other, "the other factor")
        if matrix.ndim == 1:
            product = builder.linear(input, matrix[None])
            return builder.reshape(product, product.shape[:-1])
        return builder.linear(input, _matrix(matrix).T)
    matrix = _matrix(numbers(input, "the other factor"))
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
    return item if isinstance(item, Value) else builder.constant(numbers(item, "a part"), anchor)


def _mean(builder: Builder, input: Value, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Value:
    return builder.mean(input, axes_of(dim, input), keep=keepdim)


def _sum(builder: Builder, input: Value, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Value:
    return builder.mean(input, axes_of(dim, input), keep=keepdim, total=True)


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
    mean, variance = numbers(running_mean, "the mean"), numbers(running_var, "the variance")
    scale = 1.0 if weight is None else numbers(weight, "the weight")
    offset = 0.0 if bias is None else numbers(bias, "the bias")
    return builder.batch_norm(input, (mean, variance + eps), scale, offset)


def _require_eval(training: bool) -> None:
    if training:
        raise TrainModeError(
            "it is in train mode, so the network is not one fixed function; call .eval() on the network first"
        )


# ---- activations


def _pointwise(op: Any) -> Rule:
    def rule(builder: Builder, input: Value, inplace: bool = False) -> Value:
        return builder.pointwise(input, op)

    return rule


def _leaky(builder: Builder, input: Value, negative_slope: float = 0.01, inplace: bool = False) -> Value:
    return builder.leaky(input, negative_slope)


def _prelu(builder: Builder, input: Value, weight: Any) -> Value:
    slope = numbers(weight, "the slope")
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
    limit = numbers(item, "a limit")
    if limit.size != 1:
        raise UnsupportedOp("clamping is supported with one number for each limit")
    return float(limit.ravel()[0])


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
            return largest(builder, input, axes_of(None, input), keep=False, sign=sign)
        if isinstance(input, Value) and isinstance(other, Value):
            return builder.largest_of(input, other, sign)
        value, constant = (input, other) if isinstance(input, Value) else (other, input)
        return builder.above(value, numbers(constant, "the other one"), sign)

    return rule


def _along(sign: float) -> Rule:
    def rule(builder: Builder, input: Value, dim: Any = (), keepdim: bool = False) -> Value:
        return largest(builder, input, axes_of(dim, input), keep=keepdim, sign=sign)

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
    **dict.fromkeys(
        ("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout"), _dropout
    ),
    **WINDOWS,
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
