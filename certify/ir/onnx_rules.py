"""ONNX operators on values, one rule each: what nodes they add to the graph."""

from collections.abc import Callable
from typing import Any

import numpy as np

from certify.errors import InvalidInputError, UnsupportedOp
from certify.ir.build import Builder, Value
from certify.ir.onnx_constants import shape_of
from certify.ir.onnx_file import Call
from certify.ir.onnx_moves import MOVES
from certify.ir.ops import ReLU, Shape, Sigmoid, Tanh, Window
from certify.ir.windows import average_pool, covering, largest, max_pool, same_padding

Operand = Value | np.ndarray | None
Rule = Callable[..., Any]


def _constant(operand: Operand, what: str) -> np.ndarray:
    if not isinstance(operand, np.ndarray):
        raise UnsupportedOp(f"{what} is not a constant: products of two values that both depend on the input")
    return operand


def _value(operand: Operand) -> Value:
    if not isinstance(operand, Value):
        raise InvalidInputError("an input is missing")
    return operand


def _number(operand: Operand, default: float) -> float:
    return default if operand is None else float(_constant(operand, "a limit").ravel()[0])


def move(builder: Builder, call: Call, value: Value, *others: Operand) -> Any:
    """Any operator that moves entries."""
    if any(isinstance(o, Value) for o in others):
        raise UnsupportedOp("where it takes entries from depends on the input")
    moved = MOVES[call.kind](call, builder.positions(value), *others)
    if isinstance(moved, tuple):
        return tuple(builder.select(value, part) for part in moved)
    result = builder.select(value, moved)
    if call.kind != "Pad" or call.get("mode", "constant") != "constant":
        return result
    given = others[1] if len(others) > 1 else None
    filling = float(call.get("value", 0.0)) if given is None else _number(given, 0.0)
    return result if filling == 0.0 else builder.scale(result, 1.0, np.where(moved < 0, filling, 0.0))


# ---- sums and products


def _sum_of(builder: Builder, left: Operand, right: Operand, coefficients: tuple[float, float]) -> Value:
    if isinstance(left, Value) and isinstance(right, Value):
        return builder.combine([left, right], list(coefficients))
    c, d = coefficients
    if isinstance(left, Value):
        return builder.scale(left, c, d * _constant(right, "the other term"))
    return builder.scale(_value(right), d, c * _constant(left, "the other term"))


def _add(builder: Builder, call: Call, *operands: Operand) -> Operand:
    total = operands[0]
    for operand in operands[1:]:
        both = isinstance(total, np.ndarray) and isinstance(operand, np.ndarray)
        total = total + operand if both else _sum_of(builder, total, operand, (1.0, 1.0))  # type: ignore[operator]
    return total


def _subtract(builder: Builder, call: Call, left: Operand, right: Operand) -> Value:
    return _sum_of(builder, left, right, (1.0, -1.0))


def _multiply(builder: Builder, call: Call, left: Operand, right: Operand) -> Value:
    value, constant = (left, right) if isinstance(left, Value) else (right, left)
    return builder.scale(value, _constant(constant, "the other factor"))  # type: ignore[arg-type]


def _divide(builder: Builder, call: Call, left: Operand, right: Operand) -> Value:
    return builder.scale(left, 1.0 / _constant(right, "the divisor"))  # type: ignore[arg-type]


def _negate(builder: Builder, call: Call, value: Value) -> Value:
    return builder.scale(value, -1.0)


def _matmul(builder: Builder, call: Call, left: Operand, right: Operand) -> Value:
    if isinstance(left, Value):
        return _times_matrix(builder, left, _constant(right, "the right factor"))
    # A x = (x' A')'
    matrix, value = _flat_matrix(_constant(left, "the left factor")), _value(right)
    if len(value.shape) == 1:
        return builder.linear(value, matrix)
    return _swapped(builder, builder.linear(_swapped(builder, value), matrix))


def _times_matrix(builder: Builder, value: Value, matrix: np.ndarray) -> Value:
    if matrix.ndim == 1:
        product = builder.linear(value, matrix[None])
        return builder.reshape(product, product.shape[:-1])
    return builder.linear(value, _flat_matrix(matrix).T)


def _flat_matrix(array: np.ndarray) -> np.ndarray:
    if array.ndim < 2 or array.size != array.shape[-1] * array.shape[-2]:
        raise UnsupportedOp(f"a constant factor of shape {array.shape} is not supported; expected one matrix")
    return array.reshape(array.shape[-2:])


def _swapped(builder: Builder, value: Value) -> Value:
    return builder.select(value, builder.positions(value).swapaxes(-1, -2))


def _gemm(builder: Builder, call: Call, value: Operand, matrix: Operand, offset: Operand = None) -> Value:
    if not isinstance(value, Value) or len(value.shape) != 2:
        raise UnsupportedOp("Gemm is supported where its first factor depends on the input and has two axes")
    if call.get("transA", 0):
        value = _swapped(builder, value)
    weight = call.get("alpha", 1.0) * _constant(matrix, "the second factor")
    weight = weight if call.get("transB", 0) else weight.T
    if offset is None:
        return builder.linear(value, weight)
    beta = call.get("beta", 1.0)
    if isinstance(offset, np.ndarray) and offset.size in (1, len(weight)) and offset.shape[-1:] != (1,):
        return builder.linear(value, weight, beta * offset.reshape(-1))
    product = builder.linear(value, weight)
    return _sum_of(builder, product, offset, (1.0, beta))


def _batch_norm(
    builder: Builder, call: Call, value: Value, scale: Operand, shift: Operand, mean: Operand, variance: Operand
) -> Value:
    if call.get("training_mode", 0) or not call.get("spatial", 1):
        raise UnsupportedOp("batch normalisation is supported in inference mode, with one number for each channel")
    weight, offset, centre, spread = (_constant(v, "a statistic") for v in (scale, shift, mean, variance))
    return builder.batch_norm(value, (centre, spread + call.get("epsilon", 1e-5)), weight, offset)


def _reduce(builder: Builder, call: Call, value: Value, axes: Operand = None) -> Value:
    given: Any = axes if axes is not None else call.get("axes")
    if given is None or not np.size(given):
        if call.get("noop_with_empty_axes", 0):
            return value
        given = tuple(range(len(value.shape)))
    along = tuple(int(a) for a in np.asarray(given).ravel())
    keep = bool(call.get("keepdims", 1))
    if call.kind in ("ReduceMean", "ReduceSum"):
        return builder.mean(value, along, keep=keep, total=call.kind == "ReduceSum")
    return largest(builder, value, along, keep=keep, sign=1.0 if call.kind == "ReduceMax" else -1.0)


# ---- windows


def _window(call: Call, spatial: Shape, kernel: Shape) -> Window:
    axes = len(kernel)
    stride, dilation = call.get("strides") or (1,) * axes, call.get("dilations") or (1,) * axes
    mode, pads = call.get("auto_pad", "NOTSET"), call.get("pads") or (0,) * (2 * axes)
    if mode in ("SAME_UPPER", "SAME_LOWER"):
        before, after = same_padding(kernel, stride, dilation, spatial, lower=mode == "SAME_LOWER")
    elif mode in ("NOTSET", "VALID"):
        pads = pads if mode == "NOTSET" else (0,) * (2 * axes)
        before, after = tuple(pads[:axes]), tuple(pads[axes:])
    else:
        raise UnsupportedOp(f"auto_pad {mode!r} is not supported")
    return Window(kernel, tuple(stride), before, after, tuple(dilation))


def _conv(builder: Builder, call: Call, value: Value, weight: Operand, bias: Operand = None) -> Value:
    kernels = _constant(weight, "the kernel")
    offset = None if bias is None else _constant(bias, "the bias")
    axes = kernels.ndim - 2
    window = _window(call, value.shape[-axes:], tuple(kernels.shape[2:]))
    return builder.conv(value, kernels, offset, window, call.get("group", 1))


def _conv_transpose(builder: Builder, call: Call, value: Value, weight: Operand, bias: Operand = None) -> Value:
    kernels = _constant(weight, "the kernel")
    offset = None if bias is None else _constant(bias, "the bias")
    axes = kernels.ndim - 2
    if call.get("auto_pad", "NOTSET") != "NOTSET" or call.get("output_shape"):
        raise UnsupportedOp("a transposed convolution is supported with explicit pads, without output_shape")
    window = _window(call, value.shape[-axes:], tuple(kernels.shape[2:]))
    rest = call.get("output_padding") or (0,) * axes
    spatial = window.input_shape(value.shape[-axes:], tuple(rest))
    return builder.conv_transpose(value, kernels, offset, window, spatial, call.get("group", 1))


def _pool(builder: Builder, call: Call, value: Value) -> Value:
    kernel = tuple(call.get("kernel_shape"))
    spatial = value.shape[-len(kernel) :]
    window = _window(call, spatial, kernel)
    counted = (window.before, window.after) if call.get("count_include_pad", 0) else None
    if call.get("ceil_mode", 0):
        window = covering(window, spatial)
    if call.kind == "AveragePool":
        return average_pool(builder, value, window, counted=counted)
    if len([name for name in call.outputs if name]) > 1:
        raise UnsupportedOp("the indices of the maximum are not supported")
    return max_pool(builder, value, window)


def _global_pool(builder: Builder, call: Call, value: Value) -> Value:
    axes = tuple(range(2, len(value.shape)))
    if call.kind == "GlobalAveragePool":
        return builder.mean(value, axes, keep=True)
    return largest(builder, value, axes, keep=True)


# ---- activations


_POINTWISE = {"Relu": ReLU(), "Sigmoid": Sigmoid(), "Tanh": Tanh()}


def _pointwise(builder: Builder, call: Call, value: Value) -> Value:
    return builder.pointwise(value, _POINTWISE[call.kind])


def _leaky(builder: Builder, call: Call, value: Value) -> Value:
    return builder.leaky(value, call.get("alpha", 0.01))


def _prelu(builder: Builder, call: Call, value: Value, slope: Operand) -> Value:
    return builder.leaky(value, _constant(slope, "the slope"))


def _clip(builder: Builder, call: Call, value: Value, lower: Operand = None, upper: Operand = None) -> Value:
    low = _number(lower, call.get("min", -np.inf))
    high = _number(upper, call.get("max", np.inf))
    return builder.clip(value, *(np.sign(v) * np.inf if abs(v) >= 3.4e38 else v for v in (low, high)))


def _hard_sigmoid(builder: Builder, call: Call, value: Value) -> Value:
    return builder.clip(builder.scale(value, call.get("alpha", 0.2), call.get("beta", 0.5)), 0.0, 1.0)


def _absolute(builder: Builder, call: Call, value: Value) -> Value:
    return builder.absolute(value)


def _extreme(builder: Builder, call: Call, *operands: Operand) -> Operand:
    sign = 1.0 if call.kind == "Max" else -1.0
    best = operands[0]
    for other in operands[1:]:
        best = _larger(builder, best, other, sign)
    return best


def _larger(builder: Builder, left: Operand, right: Operand, sign: float) -> Operand:
    if isinstance(left, np.ndarray) and isinstance(right, np.ndarray):
        return sign * np.maximum(sign * left, sign * right)
    if isinstance(left, Value) and isinstance(right, Value):
        return builder.largest_of(left, right, sign)
    value, constant = (left, right) if isinstance(left, Value) else (right, left)
    return builder.above(_value(value), _constant(constant, "a limit"), sign)


def _cast(builder: Builder, call: Call, value: Value) -> Value:
    if call.get("to") not in (1, 11):
        raise UnsupportedOp(f"a cast to ONNX element type {call.get('to')} rounds; expected float or double")
    return value


def _dropout(builder: Builder, call: Call, value: Value, ratio: Operand = None, training: Operand = None) -> Value:
    if training is not None and bool(_constant(training, "the training mode").any()):
        raise UnsupportedOp("dropout in training mode is random; export the network in inference mode")
    return value


def _identity(builder: Builder, call: Call, value: Value) -> Value:
    return value


def _concat(builder: Builder, call: Call, *operands: Operand) -> Value:
    anchor = next(o for o in operands if isinstance(o, Value))
    parts = [o if isinstance(o, Value) else builder.constant(_constant(o, "a part"), anchor) for o in operands]
    return builder.concat(parts, call.get("axis"))


def _shape(builder: Builder, call: Call, value: Value) -> np.ndarray:
    return shape_of(call, value.shape)


RULES: dict[str, Rule] = {
    **dict.fromkeys(MOVES, move),
    **dict.fromkeys(_POINTWISE, _pointwise),
    "Abs": _absolute,
    "Add": _add,
    "AveragePool": _pool,
    "BatchNormalization": _batch_norm,
    "Cast": _cast,
    "Clip": _clip,
    "Concat": _concat,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Div": _divide,
    "Dropout": _dropout,
    "Gemm": _gemm,
    "GlobalAveragePool": _global_pool,
    "GlobalMaxPool": _global_pool,
    "HardSigmoid": _hard_sigmoid,
    "Identity": _identity,
    "LeakyRelu": _leaky,
    "MatMul": _matmul,
    "Max": _extreme,
    "MaxPool": _pool,
    "Min": _extreme,
    "Mul": _multiply,
    "Neg": _negate,
    "PRelu": _prelu,
    "ReduceMax": _reduce,
    "ReduceMean": _reduce,
    "ReduceMin": _reduce,
    "ReduceSum": _reduce,
    "Shape": _shape,
    "Sub": _subtract,
    "Sum": _add,
}
