"""A graph under construction: what the readers of torch and ONNX call.

A value is a node together with the shape it is seen in. Reshaping a value makes no node: one is made only where
an operation needs another shape than its input has.

Piecewise linear functions are written with ReLU here (Arora et al., "Understanding deep neural networks with
rectified linear units", ICLR 2018), in forms that intervals and single-neuron lines lose nothing on:

    leaky ReLU   s x + (1 - s) relu(x)                     both parts rise with x; the triangle stays the best one
    clipping     b - relu((b - a) - relu(x - a))           monotone functions in a row
    maximum      x + relu(z - x), hinted to be max(x, z)   the intervals of x and z are used as well
    |x|          the maximum of -x and x
"""

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from certify.errors import InvalidInputError, UnsupportedOp
from certify.ir.graph import Graph, Node
from certify.ir.ops import (
    AbstractOp,
    AbstractPointwise,
    AxisLinear,
    Concat,
    Conv,
    ConvTranspose,
    Input,
    Linear,
    Maximum,
    ReLU,
    Reshape,
    Scale,
    Select,
    Shape,
    Sum,
    Window,
)
from certify.ir.simplify import simplify

LARGEST = 2**27  # entries of a constant that a file holds: 1 GiB in float64
_COMPUTED = 2**25  # entries of a value, or of a constant that a file computes: a few bytes can ask for them
_MOST = 2**27  # entries of all values, or of all constants that a file computes


@dataclass(frozen=True)
class Value:
    """A node's result, seen in a shape of as many entries."""

    node: int
    shape: Shape


def require_size(shape: tuple[int, ...], what: str, most: int = _COMPUTED) -> None:
    """Raises `InvalidInputError` for an array that a file has no business to ask for."""
    if min(shape, default=0) < 0 or prod(shape) > most:
        raise InvalidInputError(
            f"{what} has shape {shape}; expected axes that are not negative and at most {most} entries"
        )


class Builder:
    """Collects nodes; `finish` makes the graph. Constants are float64 numpy arrays."""

    def __init__(self, shape: Shape) -> None:
        require_size(shape, "the network's input")
        self._nodes = [Node(Input(shape), (), shape)]
        self._shaped: dict[tuple[int, Shape], int] = {}
        self._entries = {"values": 0, "computed constants": 0}

    def spend(self, entries: int, what: str = "computed constants") -> None:
        """Counts what a file asks to hold, raising `InvalidInputError` beyond a limit: small files may ask for much."""
        self._entries[what] += entries
        if self._entries[what] > _MOST:
            raise InvalidInputError(f"the network's {what} have more than {_MOST} entries in all; that is too large")

    @property
    def input(self) -> Value:
        """The network's input."""
        return Value(0, self._nodes[0].shape)

    def finish(self, output: Value, *, simplified: bool = True) -> Graph:
        """The graph that returns the value."""
        graph = Graph(tuple(self._nodes[: self._at(output) + 1]))
        return simplify(graph) if simplified else graph

    # ---- nodes

    def _add(self, op: AbstractOp, *inputs: int, hints: tuple[int, ...] = ()) -> Value:
        shape = op.output_shape(*(self._nodes[i].shape for i in inputs))
        require_size(shape, f"the result of {type(op).__name__}")
        self.spend(prod(shape), "values")
        self._nodes.append(Node(op, inputs, shape, hints))
        return Value(len(self._nodes) - 1, shape)

    def _at(self, value: Value, shape: Shape | None = None) -> int:
        """The id of a node that has the value in exactly that shape (by default the shape it is seen in)."""
        shape = value.shape if shape is None else shape
        if self._nodes[value.node].shape == shape:
            return value.node
        key = (value.node, shape)
        if key not in self._shaped:
            self._shaped[key] = self._add(Reshape(self._nodes[value.node].shape, shape), value.node).node
        return self._shaped[key]

    # ---- moving entries

    def reshape(self, value: Value, shape: Shape) -> Value:
        """The same entries in another shape."""
        if prod(shape) != prod(value.shape):
            raise InvalidInputError(f"cannot reshape {value.shape} to {shape}: the numbers of entries differ")
        return Value(value.node, shape)

    @staticmethod
    def positions(value: Value) -> np.ndarray:
        """The flat position of every entry, in the value's shape: what is done to it can be done by `select`."""
        return np.arange(prod(value.shape), dtype=np.intp).reshape(value.shape)

    def select(self, value: Value, index: np.ndarray) -> Value:
        """Entries by their flat positions; zero where the position is -1."""
        shape = tuple(map(int, index.shape))
        require_size(shape, "a selection")
        if not index.size:
            raise InvalidInputError(f"a selection of shape {shape} has no entries; expected at least one")
        if index.size == prod(value.shape) and np.array_equal(index.ravel(), np.arange(index.size)):
            return Value(value.node, shape)
        source = self._nodes[value.node].shape
        op = Select(source, np.ascontiguousarray(index, dtype=np.intp))
        return self._add(op, value.node)

    def broadcast(self, value: Value, shape: Shape) -> Value:
        """Repeated along axes of length 1, as numpy does."""
        return value if value.shape == shape else self.select(value, np.broadcast_to(self.positions(value), shape))

    def concat(self, values: list[Value], axis: int) -> Value:
        """One behind another along an axis."""
        if len(values) == 1:
            return values[0]
        rank = len(values[0].shape)
        if not -rank <= axis < rank or any(len(v.shape) != rank for v in values):
            raise InvalidInputError(f"cannot join values of shapes {[v.shape for v in values]} along axis {axis}")
        axis %= rank
        op = Concat(axis, tuple(v.shape[axis] for v in values))
        return self._add(op, *map(self._at, values))

    def constant(self, array: np.ndarray, anchor: Value) -> Value:
        """A constant as a value: zeros taken from any value, plus the constant."""
        return self.scale(self.select(anchor, np.full(array.shape, -1, dtype=np.intp)), 1.0, array)

    # ---- affine maps

    def linear(self, value: Value, weight: np.ndarray, bias: np.ndarray | None = None) -> Value:
        """W x + b along the last axis; W is `out x in`."""
        weight = _array(weight)
        bias = np.zeros(len(weight)) if bias is None else _array(np.broadcast_to(bias, (len(weight),)))
        lead = value.shape[:-1]
        if not value.shape or value.shape[-1] != weight.shape[1]:
            raise InvalidInputError(
                f"a linear layer with {weight.shape[1]} inputs was given values of shape {value.shape};"
                f" expected a last axis of {weight.shape[1]}: check the shape of the input"
            )
        if prod(lead) == 1:
            result = self._add(Linear(weight, bias), self._at(value, (weight.shape[1],)))
        else:
            result = self._add(AxisLinear(weight, bias), self._at(value))
        return Value(result.node, (*lead, len(weight)))

    def conv(self, value: Value, weight: np.ndarray, bias: np.ndarray | None, window: Window, groups: int = 1) -> Value:
        """A convolution of a value (1, channels, *spatial) or (channels, *spatial)."""
        channels, spatial, lead = _image(value, len(window.kernel))
        require_size((channels, *window.padded(spatial)), "its padded input")
        if weight.shape[1] * groups != channels:
            raise InvalidInputError(
                f"a convolution of {weight.shape[1] * groups} channels was given values of shape {value.shape}"
            )
        bias = np.zeros(len(weight)) if bias is None else bias
        op = Conv(_array(weight), _array(bias), spatial, window, groups)
        result = self._add(op, self._at(value, (channels, *spatial)))
        return Value(result.node, (*lead, *result.shape))

    def conv_transpose(
        self, value: Value, weight: np.ndarray, bias: np.ndarray | None, window: Window, spatial: Shape, groups: int = 1
    ) -> Value:
        """A transposed convolution to the given spatial lengths."""
        channels, given, lead = _image(value, len(window.kernel))
        require_size((weight.shape[1] * groups, *window.padded(spatial)), "its result with the padding")
        bias = np.zeros(weight.shape[1] * groups) if bias is None else bias
        op = ConvTranspose(_array(weight), _array(bias), spatial, window, groups)
        result = self._add(op, self._at(value, (channels, *given)))
        return Value(result.node, (*lead, *result.shape))

    def scale(self, value: Value, scale: Any = 1.0, shift: Any = 0.0) -> Value:
        """s * x + b, broadcast as numpy does."""
        scale, shift = _array(scale), _array(shift)
        value = self.broadcast(value, np.broadcast_shapes(value.shape, scale.shape, shift.shape))
        shape = self._nodes[value.node].shape
        op = Scale(*(_seen_as(array, value.shape, shape) for array in (scale, shift)))
        return Value(self._add(op, value.node).node, value.shape)

    def batch_norm(self, value: Value, statistics: tuple[Any, Any], weight: Any = 1.0, offset: Any = 0.0) -> Value:
        """(x - mean) weight / sqrt(variance) + offset, with one number of each for every channel.

        In two steps: where the scaled mean and the offset cancel, their difference is off by more than its size
        tells, while each of them is off by a few units of its own.

        Args:
            value: (batch, channels, ...).
            statistics: the mean and the variance, epsilon included.
        """
        shape = (-1, *[1] * (len(value.shape) - 2))
        mean, variance, weight, offset = (_array(v).reshape(shape) for v in (*statistics, weight, offset))
        factor = weight / np.sqrt(variance)
        return self.scale(self.scale(value, factor, -factor * mean), 1.0, offset)

    def combine(self, values: list[Value], coefficients: list[float]) -> Value:
        """c_1 x_1 + ... + c_k x_k, broadcast as numpy does."""
        shape = np.broadcast_shapes(*(v.shape for v in values))
        values = [self.broadcast(v, shape) for v in values]
        shapes = {self._nodes[v.node].shape for v in values}
        common = shapes.pop() if len(shapes) == 1 else shape
        result = self._add(Sum(tuple(coefficients)), *(self._at(v, common) for v in values))
        return Value(result.node, shape)

    def mean(self, value: Value, axes: tuple[int, ...], *, keep: bool, total: bool = False) -> Value:
        """The mean (or the total) over some axes, which stay with length 1 or go."""
        rank = len(value.shape)
        axes = tuple(sorted({a % rank for a in axes}))
        rest = tuple(a for a in range(rank) if a not in axes)
        count = prod(value.shape[a] for a in axes)
        moved = self.select(value, self.positions(value).transpose((*rest, *axes)))
        moved = self.reshape(moved, (*(value.shape[a] for a in rest), count))
        summed = self.linear(moved, np.full((1, count), 1.0 if total else 1.0 / count))
        kept = tuple(1 if a in axes else n for a, n in enumerate(value.shape))
        return self.reshape(summed, kept if keep else tuple(value.shape[a] for a in rest))

    # ---- piecewise linear functions and others

    def pointwise(self, value: Value, op: AbstractPointwise) -> Value:
        """A scalar function of every entry."""
        return Value(self._add(op, value.node).node, value.shape)

    def leaky(self, value: Value, slope: Any) -> Value:
        """x where positive, slope * x elsewhere; one slope, or an array of them."""
        slope = _array(slope)
        positive = self.pointwise(value, ReLU())
        if slope.size == 1:
            return self.combine([value, positive], [float(slope.ravel()[0]), 1.0 - float(slope.ravel()[0])])
        return self.combine([self.scale(value, slope), self.scale(positive, 1.0 - slope)], [1.0, 1.0])

    def clip(self, value: Value, lower: float, upper: float) -> Value:
        """min(max(x, lower), upper), either limit may be infinite."""
        if not lower <= upper:
            raise UnsupportedOp(f"clipping to [{lower}, {upper}], an empty interval, is not supported")
        if lower > -np.inf:
            value = self.pointwise(self.scale(value, 1.0, -lower), ReLU())
        else:
            lower = 0.0
        if upper < np.inf:
            value = self.pointwise(self.scale(value, -1.0, upper - lower), ReLU())
            return self.scale(value, -1.0, upper)
        return value if lower == 0.0 else self.scale(value, 1.0, lower)

    def maximum(self, left: Value, right: Value) -> Value:
        """max(x, z), broadcast as numpy does."""
        shape = np.broadcast_shapes(left.shape, right.shape)
        x, z = (self._at(self.broadcast(v, shape)) for v in (left, right))
        rise = self.pointwise(self._add(Sum((1.0, -1.0)), z, x), ReLU())
        return self._add(Maximum(), x, rise.node, hints=(x, z))

    def largest_of(self, left: Value, right: Value, sign: float = 1.0) -> Value:
        """max(x, z), or with sign -1 the minimum: -max(-x, -z)."""
        if sign > 0:
            return self.maximum(left, right)
        return self.scale(self.maximum(self.scale(left, -1.0), self.scale(right, -1.0)), -1.0)

    def above(self, value: Value, limit: np.ndarray, sign: float = 1.0) -> Value:
        """max(x, c) = c + relu(x - c) for a constant c, or with sign -1 the minimum."""
        return self.scale(self.pointwise(self.scale(value, sign, -sign * limit), ReLU()), sign, limit)

    def absolute(self, value: Value) -> Value:
        """|x|."""
        return self.maximum(self.scale(value, -1.0), value)

    def max_of(self, value: Value, candidates: np.ndarray) -> Value:
        """The largest of the entries at the positions `candidates[k]`, over k: a knock-out in log2(k) rounds."""
        while len(candidates) > 1:
            half = (len(candidates) + 1) // 2
            # An odd one out meets the first again, which changes nothing.
            rivals = np.concatenate([candidates[half:], candidates[: 2 * half - len(candidates)]])
            value = self.maximum(self.select(value, candidates[:half]), self.select(value, rivals))
            candidates = self.positions(value)
        return self.select(value, candidates[0])


def _array(values: Any) -> np.ndarray:
    array = np.array(values, dtype=np.float64, order="C")
    if not np.isfinite(array).all():
        raise InvalidInputError("a weight or constant of the network is NaN or infinite; expected finite numbers")
    return array


def _image(value: Value, axes: int) -> tuple[int, Shape, Shape]:
    """Channels, spatial lengths, and the batch axis where there is one (it has length 1)."""
    rank = len(value.shape)
    if rank == axes + 1:
        return value.shape[0], value.shape[1:], ()
    if rank == axes + 2 and value.shape[0] == 1:
        return value.shape[1], value.shape[2:], (1,)
    raise InvalidInputError(
        f"a layer with {axes} spatial axes was given values of shape {value.shape};"
        f" expected (1, channels, {', '.join(['length'] * axes)})"
    )


def _seen_as(array: np.ndarray, seen: Shape, shape: Shape) -> np.ndarray:
    """An array that is broadcast against values seen in one shape, for the same values in another shape."""
    full = array.reshape((1,) * (len(seen) - array.ndim) + array.shape)
    if array.size == 1:
        return full.reshape((1,) * len(shape))
    lead = len(seen) - len(shape)
    if lead >= 0 and seen[lead:] == shape:
        return full.reshape(full.shape[lead:])
    if lead < 0 and shape[-lead:] == seen:
        return full.reshape((1,) * -lead + full.shape)
    return np.array(np.broadcast_to(full, seen), order="C").reshape(shape)
