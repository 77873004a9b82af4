"""Random networks of every operation."""

from collections.abc import Callable

import numpy as np
import torch

from certify.ir.build import Builder, Value
from certify.ir.graph import Graph
from certify.ir.ops import ReLU, Sigmoid, Tanh, Window
from certify.ir.windows import average_pool, covering, largest, max_pool

Step = Callable[[Builder, Value, np.random.Generator], Value]


def _weights(rng: np.random.Generator, *shape: int) -> np.ndarray:
    fan_in = max(1, int(np.prod(shape[1:])))
    return rng.standard_normal(shape) * np.sqrt(2.0 / fan_in)


def _window(rng: np.random.Generator, spatial: tuple[int, ...], most_padding: int = 2) -> Window:
    axes = len(spatial)
    kernel = tuple(int(rng.integers(1, min(3, n) + 1)) for n in spatial)
    dilation = tuple(int(rng.integers(1, 3)) if (k - 1) * 2 < n else 1 for k, n in zip(kernel, spatial, strict=True))
    pads = [tuple(int(rng.integers(0, min(k, most_padding + 1))) for k in kernel) for _ in range(2)]
    return Window(kernel, tuple(int(rng.integers(1, 3)) for _ in range(axes)), *pads, dilation)


def linear(b: Builder, v: Value, rng: np.random.Generator) -> Value:
    out = int(rng.integers(1, 7))
    return b.linear(v, _weights(rng, out, v.shape[-1]), 0.3 * rng.standard_normal(out))


def conv(b: Builder, v: Value, rng: np.random.Generator) -> Value:
    channels, groups = v.shape[1], int(rng.choice([g for g in (1, 2, 3) if v.shape[1] % g == 0]))
    window = _window(rng, v.shape[2:])
    out = groups * int(rng.integers(1, 3))
    return b.conv(v, _weights(rng, out, channels // groups, *window.kernel), rng.standard_normal(out), window, groups)


def conv_transpose(b: Builder, v: Value, rng: np.random.Generator) -> Value:
    kernel = tuple(int(rng.integers(1, 4)) for _ in v.shape[2:])
    stride = tuple(int(rng.integers(1, 3)) for _ in kernel)
    pads = tuple(int(rng.integers(0, 2)) if k > 2 else 0 for k in kernel)
    window = Window(kernel, stride, pads, pads, (1,) * len(kernel))
    spatial = window.input_shape(v.shape[2:], tuple(s - 1 for s in stride))
    return b.conv_transpose(v, _weights(rng, v.shape[1], 2, *kernel), rng.standard_normal(2), window, spatial)


def pool(b: Builder, v: Value, rng: np.random.Generator) -> Value:
    window = _window(rng, v.shape[2:], most_padding=1)
    window = Window(window.kernel, window.stride, window.before, window.before, window.dilation)
    if rng.random() < 0.5:
        window = covering(window, v.shape[2:])
    if rng.random() < 0.5:
        return max_pool(b, v, window)
    return average_pool(b, v, window, counted=None)


def move(b: Builder, v: Value, rng: np.random.Generator) -> Value:
    p = b.positions(v)[0]
    kind = rng.integers(5)
    if kind == 0 and p.shape[-1] > 1:
        p = p[..., int(rng.integers(0, 2)) :: int(rng.integers(1, 3))]
    elif kind == 1:
        p = np.swapaxes(p, 0, -1)
    elif kind == 2:
        p = np.pad(p, [(0, 0)] * (p.ndim - 1) + [(1, 0)], constant_values=-1)
    elif kind == 3:
        p = np.take(p, rng.integers(0, p.shape[0], 3), axis=0)
    else:
        p = np.flip(p, -1)
    return b.select(v, np.ascontiguousarray(p)[None])


def scale(b: Builder, v: Value, rng: np.random.Generator) -> Value:
    shapes = ((), v.shape[-1:], (v.shape[1], *[1] * (len(v.shape) - 2)), v.shape)
    shape, other = (shapes[int(k)] for k in rng.integers(0, 4, 2))
    return b.scale(v, rng.standard_normal(shape), rng.standard_normal(other))


def branch(b: Builder, v: Value, rng: np.random.Generator) -> Value:
    other = b.pointwise(v, ReLU()) if rng.random() < 0.5 else b.scale(v, rng.standard_normal(v.shape), 0.1)
    kind = rng.integers(4)
    if kind == 0:
        return b.combine([v, other, v], [1.0, float(rng.standard_normal()), -0.5])
    if kind == 1:
        return b.concat([v, other], 1)
    if kind == 2:
        return b.largest_of(v, other, float(rng.choice([-1.0, 1.0])))
    return b.combine([b.mean(v, (-1,), keep=True), other], [1.0, 1.0])


def activation(b: Builder, v: Value, rng: np.random.Generator) -> Value:
    kind = rng.integers(8)
    if kind < 3:
        return b.pointwise(v, (ReLU(), Sigmoid(), Tanh())[kind])
    if kind == 3:
        return b.leaky(v, rng.uniform(-0.5, 1.5, (v.shape[1], *[1] * (len(v.shape) - 2))))
    if kind == 4:
        low = float(rng.normal())
        return b.clip(v, low if rng.random() < 0.8 else -np.inf, low + rng.random() if rng.random() < 0.8 else np.inf)
    if kind == 5:
        return b.absolute(v)
    if kind == 6:
        return b.above(v, rng.standard_normal(v.shape), float(rng.choice([-1.0, 1.0])))
    return largest(b, v, (1,), keep=True, sign=float(rng.choice([-1.0, 1.0])))


FLAT: list[Step] = [linear, linear, scale, branch, move, activation, activation, activation]
IMAGE: list[Step] = [conv, conv, conv_transpose, pool, linear, scale, branch, move, activation, activation, activation]


def random_graph(seed: int) -> Graph:
    """Three to eight steps on a vector, a sequence or an image, then a linear map to a few outputs."""
    rng = np.random.default_rng(seed)
    shape = ((4,), (2, 5), (2, 4, 3))[int(rng.integers(3))]
    builder = Builder(shape)
    value = builder.reshape(builder.input, (1, *shape))
    for _ in range(int(rng.integers(3, 9))):
        steps = FLAT if len(value.shape) == 2 else IMAGE
        grown = steps[int(rng.integers(len(steps)))](builder, value, rng)
        if np.prod(grown.shape) <= 120:
            value = grown
    flat = builder.reshape(value, (1, int(np.prod(value.shape))))
    output = flat if rng.random() < 0.3 else linear(builder, flat, rng)
    return builder.finish(builder.reshape(output, output.shape[1:])).map_arrays(torch.as_tensor)
