"""ONNX operators on constants alone: what computes shapes, and what an exporter did not fold."""

from collections.abc import Callable
from typing import Any

import numpy as np

from certify.errors import UnsupportedOp
from certify.ir.build import require_size
from certify.ir.onnx_file import Call

Array = np.ndarray


def _cast(call: Call, data: Array) -> Array:
    """Real numbers stay float64; whole ones are cut off towards zero."""
    if call.get("to") in (1, 10, 11, 16):
        return data.astype(np.float64)
    return (data != 0).astype(np.int64) if call.get("to") == 9 else data.astype(np.int64)


def _constant(call: Call) -> Array:
    for name in ("value", "value_float", "value_floats", "value_int", "value_ints"):
        if name in call.attributes:
            return np.asarray(call.attributes[name])
    raise UnsupportedOp(f"a constant with attributes {sorted(call.attributes)} is not supported")


def _filled(call: Call, shape: Array) -> Array:
    target = tuple(int(n) for n in shape)
    require_size(target, "its result")
    value = call.get("value")
    return np.full(target, 0.0 if value is None else np.asarray(value).ravel()[0])


def _range(call: Call, start: Array, limit: Array, step: Array) -> Array:
    begin, end, jump = (v.ravel()[0] for v in (start, limit, step))
    require_size((max(int(np.ceil((end - begin) / jump)), 0),), "its result")
    return np.arange(begin, end, jump)


def _divide(call: Call, left: Array, right: Array) -> Array:
    if left.dtype.kind == right.dtype.kind == "i":
        return np.trunc(left / right).astype(np.int64)
    return left / right


def _reduced(function: Any) -> Callable[..., Array]:
    def fold(call: Call, data: Array, axes: Any = None) -> Array:
        along = axes if axes is not None else call.get("axes")
        chosen = None if along is None else tuple(int(a) for a in np.asarray(along).ravel())
        return np.asarray(function(data, axis=chosen, keepdims=bool(call.get("keepdims", 1))))

    return fold


def _plain(function: Any) -> Callable[..., Array]:
    def fold(call: Call, *values: Array) -> Array:
        require_size(np.broadcast_shapes(*(v.shape for v in values)), "its result")
        result = np.asarray(function(*values))
        return result.astype(np.int64) if result.dtype == bool else result

    return fold


def _product(call: Call, left: Array, right: Array) -> Array:
    lead = np.broadcast_shapes(left.shape[:-2], right.shape[:-2])
    require_size((*lead, *left.shape[-2:-1], *right.shape[-1:]), "its result")
    return np.asarray(np.matmul(left, right))


def _joined(call: Call, *values: Array) -> Array:
    require_size((sum(v.size for v in values),), "its result")
    return np.concatenate(values, axis=call.get("axis"))


def shape_of(call: Call, shape: tuple[int, ...]) -> Array:
    """The axes, or those from `start` to `end`."""
    return np.array(shape[call.get("start", 0) : call.get("end")], dtype=np.int64)


FOLDS: dict[str, Callable[..., Array]] = {
    "Constant": _constant,
    "ConstantOfShape": _filled,
    "Range": _range,
    "Cast": _cast,
    "Identity": _plain(lambda x: x),
    "Size": _plain(np.size),
    "Shape": lambda call, data: shape_of(call, data.shape),
    "Concat": _joined,
    "MatMul": _product,
    "Div": _divide,
    "ReduceProd": _reduced(np.prod),
    "ReduceSum": _reduced(np.sum),
    "ReduceMean": _reduced(np.mean),
    "ReduceMax": _reduced(np.max),
    "ReduceMin": _reduced(np.min),
    **{
        name: _plain(function)
        for name, function in {
            "Add": np.add,
            "Sub": np.subtract,
            "Mul": np.multiply,
            "Pow": np.power,
            "Mod": np.mod,
            "Neg": np.negative,
            "Abs": np.abs,
            "Sqrt": np.sqrt,
            "Exp": np.exp,
            "Log": np.log,
            "Floor": np.floor,
            "Ceil": np.ceil,
            "Reciprocal": lambda x: 1.0 / x,
            "Relu": lambda x: np.maximum(x, 0),
            "Equal": np.equal,
            "Less": np.less,
            "Greater": np.greater,
            "Not": lambda x: x == 0,
            "And": lambda x, y: (x != 0) & (y != 0),
            "Or": lambda x, y: (x != 0) | (y != 0),
            "Where": lambda c, x, y: np.where(c != 0, x, y),
        }.items()
    },
}
