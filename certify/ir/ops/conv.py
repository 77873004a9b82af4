"""Convolutions of one, two or three spatial axes, and their transposes."""

import sys
from contextlib import nullcontext
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from jaxtyping import Float

from certify.errors import InvalidInputError
from certify.ir.ops.base import AbstractAffine, Shape
from certify.ir.ops.dense import row_sums


@dataclass(frozen=True)
class Window:
    """How a kernel moves: one number for every spatial axis.

    Attributes:
        kernel: its lengths.
        stride: steps between neighbouring results.
        before, after: zeros added at either end.
        dilation: steps between the kernel's own entries.
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    dilation: tuple[int, ...]

    def __post_init__(self) -> None:
        axes = len(self.kernel)
        positive = min((*self.kernel, *self.stride, *self.dilation), default=0) > 0
        lengths = {len(v) for v in (self.stride, self.before, self.after, self.dilation)}
        if axes not in (1, 2, 3) or lengths != {axes} or not positive or min(*self.before, *self.after) < 0:
            raise InvalidInputError(
                f"{self} is no window; expected one, two or three axes, positive kernel, stride and dilation, and"
                " paddings that are not negative"
            )

    def padded(self, spatial: Shape) -> Shape:
        """The lengths with the zeros at both ends."""
        return tuple(n + a + b for n, a, b in zip(spatial, self.before, self.after, strict=True))

    def output_shape(self, spatial: Shape) -> Shape:
        """How many results there are along every axis."""
        sizes = zip(self.padded(spatial), self.kernel, self.stride, self.dilation, strict=True)
        result = tuple((n - d * (k - 1) - 1) // s + 1 for n, k, s, d in sizes)
        if min(result) < 1:
            raise InvalidInputError(f"a window of {self.kernel} (dilation {self.dilation}) does not fit into {spatial}")
        return result

    def input_shape(self, results: Shape, rest: Shape) -> Shape:
        """The lengths that give so many results, with `rest` entries at the end that no window meets."""
        axes = zip(results, self.kernel, self.stride, self.dilation, self.before, self.after, rest, strict=True)
        return tuple((n - 1) * s + d * (k - 1) + 1 + r - a - b for n, k, s, d, a, b, r in axes)

    def places(self, offset: tuple[int, ...], results: Shape) -> tuple[slice, ...]:
        """The padded entries that meet one entry of the kernel, over all results."""
        axes = zip(offset, self.dilation, self.stride, results, strict=True)
        return tuple(slice(o * d, o * d + s * (n - 1) + 1, s) for o, d, s, n in axes)


@dataclass(frozen=True, eq=False)
class _Kernels(AbstractAffine):
    """What a convolution and its transpose have in common.

    Attributes:
        weight: the kernels of the convolution, (its outputs, its inputs in a block, *kernel).
        bias: one number per output channel.
        spatial: spatial lengths of the convolution's input.
        window: how the kernel moves.
        groups: number of blocks of channels, each read by output channels of its own.
    """

    weight: Float[Any, "out in_of_group *kernel"]
    bias: Float[Any, " channels"]
    spatial: Shape
    window: Window
    groups: int = 1

    @property
    def terms(self) -> int:
        """The entries of a kernel, or the kernels that meet an entry, and the bias."""
        fan_out = int(self.weight.shape[0]) // self.groups
        return max(int(self.weight.shape[1]), fan_out) * prod(self.window.kernel) + 1

    @property
    def _per_channel(self) -> Any:
        return self.bias.reshape((-1, *[1] * len(self.spatial)))

    def offset_size(self) -> Any:
        """|b|."""
        return abs(self._per_channel)

    def offset(self, rows: Any) -> Any:
        """c'b."""
        return row_sums(rows * self._per_channel)


@dataclass(frozen=True, eq=False)
class Conv(_Kernels):
    """Cross-correlation, as every framework means by convolution: values (channels, *spatial)."""

    @property
    def _channels(self) -> int:
        return int(self.weight.shape[1]) * self.groups

    def output_shape(self, *inputs: Shape) -> Shape:
        """(out, *spatial), of (channels, *spatial)."""
        expected = (self._channels, *self.spatial)
        out = int(self.weight.shape[0])
        if inputs[0] != expected or out % self.groups or tuple(self.weight.shape[2:]) != self.window.kernel:
            raise InvalidInputError(
                f"a convolution of {self._channels} channels of {self.spatial} in {self.groups} groups was given"
                f" values of shape {inputs[0]}; expected {expected}, and output channels that the groups divide"
            )
        return (out, *self.window.output_shape(self.spatial))

    def forward(self, *values: Any) -> Any:
        """w * x + b."""
        return convolve(values[0], self.weight, self.window, self.groups) + self._per_channel

    def spread(self, *radii: Any) -> Any:
        """|w| * r."""
        return convolve(radii[0], abs(self.weight), self.window, self.groups)

    def adjoint(self, rows: Any) -> tuple[Any, ...]:
        """The transposed convolution of the rows."""
        flat = rows.reshape((prod(rows.shape[:2]), *rows.shape[2:]))
        back = convolve_transposed(flat, self.weight, self.window, self.groups, self.spatial)
        return (back.reshape((*rows.shape[:2], *back.shape[1:])),)


@dataclass(frozen=True, eq=False)
class ConvTranspose(_Kernels):
    """The transpose of a convolution, plus a bias: that convolution's outputs are the inputs here."""

    def output_shape(self, *inputs: Shape) -> Shape:
        """(out, *spatial), of (in, *spatial)."""
        expected = (int(self.weight.shape[0]), *self.window.output_shape(self.spatial))
        if inputs[0] != expected or expected[0] % self.groups:
            raise InvalidInputError(
                f"a transposed convolution to {self.spatial} in {self.groups} groups was given values of shape"
                f" {inputs[0]}; expected {expected}, and channels that the groups divide"
            )
        return (int(self.weight.shape[1]) * self.groups, *self.spatial)

    def forward(self, *values: Any) -> Any:
        """w' * x + b."""
        result = convolve_transposed(values[0], self.weight, self.window, self.groups, self.spatial)
        return result + self._per_channel

    def spread(self, *radii: Any) -> Any:
        """|w|' * r."""
        return convolve_transposed(radii[0], abs(self.weight), self.window, self.groups, self.spatial)

    def adjoint(self, rows: Any) -> tuple[Any, ...]:
        """The convolution of the rows."""
        flat = rows.reshape((prod(rows.shape[:2]), *rows.shape[2:]))
        back = convolve(flat, self.weight, self.window, self.groups)
        return (back.reshape((*rows.shape[:2], *back.shape[1:])),)


def convolve(values: Any, weight: Any, window: Window, groups: int) -> Any:
    """(batch, channels, *spatial) to (batch, out, *results)."""
    if isinstance(values, np.ndarray):
        return _convolve(values, weight, window, groups)
    torch = sys.modules["torch"]
    functional = torch.nn.functional
    padding = window.before
    if window.before != window.after:
        pairs = [p for ends in zip(window.before[::-1], window.after[::-1], strict=True) for p in ends]
        values, padding = functional.pad(values, pairs), (0,) * len(padding)
    run = getattr(functional, f"conv{len(padding)}d")
    with _sums_of_products(values):
        return run(values, weight, None, window.stride, padding, window.dilation, groups)


def convolve_transposed(rows: Any, weight: Any, window: Window, groups: int, spatial: Shape) -> Any:
    """(batch, out, *results) back to (batch, channels, *spatial)."""
    if isinstance(rows, np.ndarray):
        return _convolve_transposed(rows, weight, window, groups, spatial)
    torch = sys.modules["torch"]
    run = getattr(torch.nn.functional, f"conv_transpose{len(spatial)}d")
    axes = zip(window.padded(spatial), rows.shape[2:], window.kernel, window.stride, window.dilation, strict=True)
    rest = tuple(n - ((m - 1) * s + d * (k - 1) + 1) for n, m, k, s, d in axes)
    same = window.before == window.after
    padding = window.before if same else (0,) * len(spatial)
    with _sums_of_products(rows):
        back = run(rows, weight, None, window.stride, padding, rest, groups, window.dilation)
    if same:
        return back
    return back[(..., *(slice(a, a + n) for a, n in zip(window.before, spatial, strict=True)))]


def _sums_of_products(values: Any) -> Any:
    """cuDNN may convolve by transforms or in reduced precision, which no bound of rounding here covers."""
    return sys.modules["torch"].backends.cudnn.flags(enabled=False) if values.is_cuda else nullcontext()


def _convolve(values: Any, weight: Any, window: Window, groups: int) -> Any:
    """One matrix product for every entry of the kernel."""
    batch, results = len(values), window.output_shape(values.shape[2:])
    ends = zip(window.before, window.after, strict=True)
    padded: Any = np.pad(values, ((0, 0), (0, 0), *ends))
    kernels = weight.reshape((groups, -1, *weight.shape[1:]))
    total = np.zeros((batch, groups, kernels.shape[1], prod(results)), dtype=values.dtype)
    for offset in np.ndindex(*window.kernel):
        met = padded[(..., *window.places(offset, results))]
        total += kernels[(..., *offset)] @ met.reshape((batch, groups, kernels.shape[2], -1))
    return total.reshape((batch, -1, *results))


def _convolve_transposed(rows: Any, weight: Any, window: Window, groups: int, spatial: Shape) -> Any:
    batch, results = len(rows), rows.shape[2:]
    kernels = weight.reshape((groups, -1, *weight.shape[1:]))
    grouped = rows.reshape((batch, groups, kernels.shape[1], -1))
    total: Any = np.zeros((batch, groups * kernels.shape[2], *window.padded(spatial)), dtype=rows.dtype)
    for offset in np.ndindex(*window.kernel):
        part = kernels[(..., *offset)].swapaxes(1, 2) @ grouped
        total[(..., *window.places(offset, results))] += part.reshape((batch, -1, *results))
    return total[(..., *(slice(a, a + n) for a, n in zip(window.before, spatial, strict=True)))]
