"""ONNX operators that move entries, as functions of numpy arrays.

Applied to constants they fold them; applied to the positions of a value's entries they say where each entry of
the result comes from. -1 is the position of a zero.
"""

from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np

from certify.errors import InvalidInputError, UnsupportedOp
from certify.ir.build import require_size
from certify.ir.onnx_file import Call

Array = np.ndarray
Move = Callable[..., Any]


def _ints(value: Any) -> tuple[int, ...] | None:
    return None if value is None else tuple(int(v) for v in np.asarray(value).ravel())


def _axes(call: Call, given: Any) -> tuple[int, ...] | None:
    """The axes: an input since some version, an attribute before."""
    return _ints(given if given is not None else call.get("axes"))


def _reshape(call: Call, data: Array, shape: Any = None) -> Array:
    wanted = _ints(shape if shape is not None else call.get("shape")) or ()
    if not call.get("allowzero", 0):
        wanted = tuple(data.shape[k] if n == 0 and k < data.ndim else n for k, n in enumerate(wanted))
    return data.reshape(wanted)


def _flatten(call: Call, data: Array) -> Array:
    return data.reshape((prod(data.shape[: call.get("axis", 1)]), -1))


def _transpose(call: Call, data: Array) -> Array:
    return data.transpose(call.get("perm"))


def _squeeze(call: Call, data: Array, axes: Any = None) -> Array:
    return data.squeeze(_axes(call, axes))


def _unsqueeze(call: Call, data: Array, axes: Any = None) -> Array:
    return np.expand_dims(data, _axes(call, axes) or ())


def _slice(call: Call, data: Array, starts: Any = None, ends: Any = None, axes: Any = None, steps: Any = None) -> Array:
    first = _ints(starts if starts is not None else call.get("starts")) or ()
    last = _ints(ends if ends is not None else call.get("ends")) or ()
    along = _axes(call, axes) or tuple(range(len(first)))
    step = _ints(steps) or (1,) * len(first)
    cut = [slice(None)] * data.ndim
    for axis, begin, end, jump in zip(along, first, last, step, strict=True):
        cut[axis] = slice(begin, end, jump)
    return data[tuple(cut)]


def _gather(call: Call, data: Array, indices: Array) -> Array:
    require_size((data.size // data.shape[call.get("axis", 0)], np.size(indices)), "its result")
    return np.asarray(np.take(data, np.asarray(indices, dtype=np.intp), axis=call.get("axis", 0)))


def _expand(call: Call, data: Array, shape: Array) -> Array:
    target = np.broadcast_shapes(data.shape, _ints(shape) or ())
    require_size(target, "its result")
    return np.broadcast_to(data, target)


def _tile(call: Call, data: Array, repeats: Array) -> Array:
    times = _ints(repeats) or ()
    require_size(tuple(n * t for n, t in zip(data.shape, times, strict=True)), "its result")
    return np.tile(data, times)


def _split(call: Call, data: Array, sizes: Any = None) -> tuple[Array, ...]:
    axis, wanted = call.get("axis", 0), _ints(sizes if sizes is not None else call.get("split"))
    if wanted is None:
        each = -(-data.shape[axis] // len(call.outputs))
        wanted = (each,) * (len(call.outputs) - 1)
    elif sum(wanted) != data.shape[axis]:
        raise InvalidInputError(f"it cuts an axis of {data.shape[axis]} into {wanted}; expected the same total")
    else:
        wanted = wanted[:-1]
    return tuple(np.split(data, np.cumsum(wanted, dtype=int), axis=axis))


def _pad(call: Call, data: Array, pads: Any = None, value: Any = None, axes: Any = None) -> Array:
    """Zeros where the mode is constant: the value that is to stand there is added by the caller."""
    amounts = np.asarray(pads if pads is not None else call.get("pads", ()), dtype=int).reshape((2, -1))
    along = _ints(axes) or tuple(range(data.ndim))
    ends = np.zeros((data.ndim, 2), dtype=int)
    ends[list(along)] = amounts.T
    require_size(tuple(n + a + b for n, (a, b) in zip(data.shape, ends.tolist(), strict=True)), "its result")
    cut = tuple(slice(max(-a, 0), n - max(-b, 0)) for n, (a, b) in zip(data.shape, ends.tolist(), strict=True))
    mode = call.get("mode", "constant")
    if mode == "constant":
        return np.pad(data[cut], ends.clip(0), constant_values=-1)
    if mode not in ("reflect", "edge", "wrap"):
        raise UnsupportedOp(f"padding mode {mode!r} is not supported")
    return np.pad(data[cut], ends.clip(0), mode=mode)


def _depth_to_space(call: Call, data: Array) -> Array:
    b = call.get("blocksize")
    n, c, h, w = data.shape
    if call.get("mode", "DCR") == "DCR":
        return data.reshape((n, b, b, c // b**2, h, w)).transpose((0, 3, 4, 1, 5, 2)).reshape((n, -1, h * b, w * b))
    return data.reshape((n, c // b**2, b, b, h, w)).transpose((0, 1, 4, 2, 5, 3)).reshape((n, -1, h * b, w * b))


def _space_to_depth(call: Call, data: Array) -> Array:
    b = call.get("blocksize")
    n, c, h, w = data.shape
    return data.reshape((n, c, h // b, b, w // b, b)).transpose((0, 3, 5, 1, 2, 4)).reshape((n, -1, h // b, w // b))


MOVES: dict[str, Move] = {
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Transpose": _transpose,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Slice": _slice,
    "Gather": _gather,
    "Expand": _expand,
    "Tile": _tile,
    "Split": _split,
    "Pad": _pad,
    "DepthToSpace": _depth_to_space,
    "SpaceToDepth": _space_to_depth,
}
