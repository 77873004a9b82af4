"""Pooling: what a moving window meets, and how large it is at the edges."""

from typing import Any

import numpy as np

from certify.errors import InvalidInputError
from certify.ir.build import Builder, Value, require_size
from certify.ir.ops import Shape, Window


def covering(window: Window, spatial: Shape) -> Window:
    """The window with enough zeros after the end that the last, partial result exists too (`ceil_mode`).

    As in torch and ONNX, no window begins in the zeros after the end.
    """
    after = []
    for k, length in enumerate(spatial):
        begin = window.before[k]
        reach = window.dilation[k] * (window.kernel[k] - 1) + 1
        rest = length + begin + window.after[k] - reach
        steps = -(-rest // window.stride[k])
        if steps * window.stride[k] >= length + begin:
            steps -= 1
        after.append(max(steps * window.stride[k] + reach - length - begin, 0))
    return Window(window.kernel, window.stride, window.before, tuple(after), window.dilation)


def max_pool(builder: Builder, value: Value, window: Window) -> Value:
    """The largest entry that each window meets; what lies outside the input does not count."""
    axes = len(window.kernel)
    spatial = value.shape[-axes:]
    lead, results = value.shape[:-axes], window.output_shape(spatial)
    require_size((*lead, *window.padded(spatial)), "its padded input")
    require_size((*window.kernel, *lead, *results), "what its windows meet")
    ends = [(0, 0)] * len(lead) + list(zip(window.before, window.after, strict=True))
    padded: Any = np.pad(builder.positions(value), ends, constant_values=-1)
    candidates = np.stack([padded[(..., *window.places(o, results))] for o in np.ndindex(*window.kernel)])
    some = candidates.max(0)
    if (some < 0).any():
        raise InvalidInputError("a window of the pooling lies in the padding altogether; expected smaller padding")
    return builder.max_of(value, np.where(candidates < 0, some, candidates))


def average_pool(
    builder: Builder, value: Value, window: Window, *, counted: tuple[Shape, Shape] | None, divisor: int | None = None
) -> Value:
    """The mean over each window.

    Args:
        builder: takes the nodes.
        value: (1, channels, *spatial) or without the 1.
        window: with all the padding that makes its results.
        counted: zeros before and after the input that count as entries; None for none of them.
        divisor: what to divide by instead of the number of entries.
    """
    axes = len(window.kernel)
    spatial, channels = value.shape[-axes:], value.shape[-axes - 1]
    before, after = counted if counted is not None else ((0,) * axes, (0,) * axes)
    results = window.output_shape(spatial)
    require_size((channels, *window.kernel), "its kernel")
    counts = np.ones((1,) * axes)
    for k in range(axes):
        require_size((results[k], window.kernel[k]), "what its windows meet")
        starts = np.arange(results[k]) * window.stride[k] - window.before[k]
        met = starts[:, None] + window.dilation[k] * np.arange(window.kernel[k])
        inside = ((met >= -before[k]) & (met < spatial[k] + after[k])).sum(1)
        counts = counts * inside.reshape((-1, *[1] * (axes - k - 1)))
    if divisor is not None:
        counts = np.full_like(counts, divisor)
    if (counts == 0).any():
        raise InvalidInputError("a window of the pooling lies in the padding altogether; expected smaller padding")
    uniform = bool((counts == counts.ravel()[0]).all())
    entry = 1.0 / counts.ravel()[0] if uniform else 1.0
    weight = np.full((channels, 1, *window.kernel), entry)
    total = builder.conv(value, weight, None, window, groups=channels)
    return total if uniform else builder.scale(total, 1.0 / counts)


def same_padding(kernel: Shape, stride: Shape, dilation: Shape, spatial: Shape, *, lower: bool) -> tuple[Shape, Shape]:
    """Zeros such that the result has length / stride entries, rounded up (`auto_pad`); the odd one goes last."""
    before, after = [], []
    for k, s, d, n in zip(kernel, stride, dilation, spatial, strict=True):
        total = max((-(-n // s) - 1) * s + d * (k - 1) + 1 - n, 0)
        small = total // 2
        before.append(total - small if lower else small)
        after.append(small if lower else total - small)
    return tuple(before), tuple(after)


def largest(builder: Builder, value: Value, axes: tuple[int, ...], *, keep: bool, sign: float = 1.0) -> Value:
    """The largest entry over some axes, or with sign -1 the smallest."""
    rank = len(value.shape)
    axes = tuple(sorted({a % rank for a in axes}))
    rest = tuple(a for a in range(rank) if a not in axes)
    shape = tuple(value.shape[a] for a in rest)
    signed = value if sign > 0 else builder.scale(value, -1.0)
    positions = builder.positions(signed).transpose((*axes, *rest)).reshape((-1, *shape))
    found = builder.max_of(signed, positions)
    found = found if sign > 0 else builder.scale(found, -1.0)
    kept = tuple(1 if a in axes else n for a, n in enumerate(value.shape))
    return builder.reshape(found, kept if keep else shape)
