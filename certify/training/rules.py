"""What torch functions do with boxes, by name: each rule has the function's own parameters, after the function."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from certify.errors import UnsupportedOp
from certify.training.enclosures import Enclosure, Rule, affine, between, rising

Function = Callable[..., Any]


def _constant(item: Any, what: str) -> Any:
    if isinstance(item, Enclosure):
        raise UnsupportedOp(f"{what} depends on the input: products of two such values have no rule for boxes")
    return item


def _size(item: Any) -> Any:
    return item.abs() if isinstance(item, Tensor) else abs(item)


# ---- sums and products


def _linear(func: Function, input: Enclosure, weight: Tensor, bias: Tensor | None = None) -> Enclosure:
    _constant(weight, "the weight")
    return affine(
        lambda x: functional.linear(x, weight, bias),
        lambda r: functional.linear(r, weight.abs()),
        input,
        layer=(weight, bias),
    )


def _conv(
    func: Function, input: Enclosure, weight: Tensor, bias: Tensor | None = None, *args: Any, **kwargs: Any
) -> Enclosure:
    _constant(weight, "the kernel")
    return affine(
        lambda x: func(x, weight, bias, *args, **kwargs), lambda r: func(r, weight.abs(), None, *args, **kwargs), input
    )


def _product(func: Function, left: Any, right: Any) -> Enclosure:
    """matmul and the elementwise products, with a constant on either side."""
    if isinstance(left, Enclosure):
        other = _constant(right, "the other factor")
        return affine(lambda x: func(x, other), lambda r: func(r, _size(other)), left)
    return affine(lambda x: func(left, x), lambda r: func(_size(left), r), right)


def _divide(func: Function, input: Any, other: Any, *, rounding_mode: Any = None) -> Enclosure:
    if rounding_mode is not None or not isinstance(input, Enclosure):
        raise UnsupportedOp("division has a rule for boxes by constants, without rounding")
    _constant(other, "the divisor")
    return affine(lambda x: func(x, other), lambda r: func(r, _size(other)), input)


def _negate(func: Function, input: Enclosure) -> Enclosure:
    return affine(func, lambda r: r, input)


def _add(func: Function, input: Any, other: Any, *, alpha: Any = 1) -> Enclosure:
    return _sum_of(input, other, 1.0, float(alpha))


def _subtract(func: Function, input: Any, other: Any, *, alpha: Any = 1) -> Enclosure:
    return _sum_of(input, other, 1.0, -float(alpha))


def _reversed_subtract(func: Function, input: Any, other: Any, *, alpha: Any = 1) -> Enclosure:
    return _sum_of(other, input, 1.0, -float(alpha))


def _sum_of(left: Any, right: Any, c: float, d: float) -> Enclosure:
    if isinstance(left, Enclosure) and isinstance(right, Enclosure):
        return affine(lambda x, y: c * x + d * y, lambda r, s: abs(c) * r + abs(d) * s, left, right)
    if isinstance(left, Enclosure):
        return _shifted(left, c, d * right)
    return _shifted(right, d, c * left)


def _shifted(value: Enclosure, factor: float, shift: Any) -> Enclosure:
    still = 0 * shift  # broadcasts the radius as the value
    return affine(lambda x: factor * x + shift, lambda r: abs(factor) * r + still, value)


def _addmm(func: Function, input: Any, mat1: Any, mat2: Any, *, beta: Any = 1, alpha: Any = 1) -> Enclosure:
    return _sum_of(_product(torch.matmul, mat1, mat2), input, float(alpha), float(beta))


def _cat(func: Function, tensors: Any, dim: int = 0) -> Enclosure:
    slots = [t if isinstance(t, Enclosure) else None for t in tensors]

    def joined(values: Any, constant: Callable[[Tensor], Tensor]) -> Tensor:
        rest = iter(values)
        return func([constant(t) if s is None else next(rest) for t, s in zip(tensors, slots, strict=True)], dim)

    return affine(
        lambda *x: joined(x, lambda t: t), lambda *r: joined(r, torch.zeros_like), *(s for s in slots if s is not None)
    )


def _average(func: Function, input: Enclosure, *args: Any, **kwargs: Any) -> Enclosure:
    """Sums and means: coefficients that are not negative."""

    def apply(x: Tensor) -> Tensor:
        return func(x, *args, **kwargs)

    return affine(apply, apply, input)


def _pad(func: Function, input: Enclosure, pad: Any, mode: str = "constant", value: float | None = None) -> Enclosure:
    return affine(lambda x: func(x, pad, mode, value), lambda r: func(r, pad, mode), input)


def _batch_norm(
    func: Function,
    input: Enclosure,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Enclosure:
    """Parameters as in torch; in training the statistics are those of the points."""
    shape = (1, -1, *[1] * (input.centre.ndim - 2))
    if training or running_mean is None or running_var is None:
        points = input.points
        assert points is not None  # enclose lets points run along
        axes = [k for k in range(points.ndim) if k != 1]
        mean, variance = points.mean(axes), points.var(axes, unbiased=False)
        functional.batch_norm(points.detach(), running_mean, running_var, None, None, True, momentum, eps)
    else:
        mean, variance = running_mean, running_var
    scale = torch.rsqrt(variance + eps) * (1.0 if weight is None else weight)
    shift = (0.0 if bias is None else bias) - mean * scale
    scale, shift = scale.reshape(shape), shift.reshape(shape)
    return affine(lambda x: x * scale + shift, lambda r: r * scale.abs(), input)


def _dropout(
    func: Function, input: Enclosure, p: float = 0.5, training: bool = True, inplace: bool = False
) -> Enclosure:
    """The same entries are dropped of box and points."""
    if training and "alpha" in func.__name__:
        raise UnsupportedOp("alpha dropout in train mode has no rule for boxes; use dropout, or call .eval() on it")
    kept = func(torch.ones_like(input.centre), p, training)
    return affine(lambda x: x * kept, lambda r: r * kept, input)


# ---- activations and maxima


def _relu(func: Function, input: Enclosure, inplace: bool = False) -> Enclosure:
    return rising(torch.relu, input, kind="relu")


def _rising(func: Function, input: Enclosure, *args: Any, inplace: bool = False, **kwargs: Any) -> Enclosure:
    return rising(lambda x: func(x, *args, **kwargs), input)


def _leaky(func: Function, input: Enclosure, negative_slope: float = 0.01, inplace: bool = False) -> Enclosure:
    return _bent(lambda x: functional.leaky_relu(x, negative_slope), input)


def _prelu(func: Function, input: Enclosure, weight: Tensor) -> Enclosure:
    return _bent(lambda x: functional.prelu(x, weight), input)


def _abs(func: Function, input: Enclosure) -> Enclosure:
    return _bent(torch.abs, input)


def _bent(function: Callable[[Tensor], Tensor], input: Enclosure) -> Enclosure:
    """A line on either side of 0, through 0."""
    lower, upper = function(input.lower), function(input.upper)
    zero = torch.zeros_like(lower)
    across = (input.lower < 0) & (input.upper > 0)
    low, high = torch.minimum(lower, upper), torch.maximum(lower, upper)
    low = torch.where(across, torch.minimum(low, zero), low)
    return between((low, torch.where(across, torch.maximum(high, zero), high)), function, input)


def _clamp(func: Function, input: Enclosure, min: Any = None, max: Any = None) -> Enclosure:
    _constant(min, "a limit"), _constant(max, "a limit")
    return rising(lambda x: torch.clamp(x, min, max), input)


def _pool(func: Function, input: Enclosure, *args: Any, **kwargs: Any) -> Enclosure:
    if kwargs.get("return_indices"):
        raise UnsupportedOp("the indices of the maximum have no rule for boxes")
    return rising(lambda x: func(x, *args, **kwargs), input)


def _extreme(func: Function, input: Any, other: Any = None, **kwargs: Any) -> Enclosure:
    if isinstance(other, int) or kwargs:
        raise UnsupportedOp("max and min along an axis return indices as well; use amax or amin")
    if other is None:
        raise UnsupportedOp("max and min of all entries run over the batch; use amax or amin along other axes")
    if isinstance(input, Enclosure) and isinstance(other, Enclosure):
        return rising(func, input, other)
    value, constant = (input, other) if isinstance(input, Enclosure) else (other, input)
    return rising(lambda x: func(x, constant), value)


RULES: dict[str, Rule] = {
    **dict.fromkeys(("abs", "absolute"), _abs),
    **dict.fromkeys(("add", "radd"), _add),
    "addmm": _addmm,
    **dict.fromkeys(("amax", "amin", "hardsigmoid", "hardtanh", "relu6", "sigmoid", "tanh"), _rising),
    "batch_norm": _batch_norm,
    **dict.fromkeys(("cat", "concat", "concatenate", "stack"), _cat),
    **dict.fromkeys(("clamp", "clip"), _clamp),
    **dict.fromkeys(("div", "true_divide", "truediv"), _divide),
    "leaky_relu": _leaky,
    "linear": _linear,
    **dict.fromkeys(("matmul", "mm", "mul", "multiply", "rmatmul", "rmul"), _product),
    **dict.fromkeys(("max", "maximum", "min", "minimum"), _extreme),
    **dict.fromkeys(("mean", "sum"), _average),
    **dict.fromkeys(("neg", "negative"), _negate),
    "pad": _pad,
    "prelu": _prelu,
    "relu": _relu,
    "rsub": _reversed_subtract,
    **dict.fromkeys(("sub", "subtract"), _subtract),
    **{f"conv{n}d": _conv for n in (1, 2, 3)},
    **{f"conv_transpose{n}d": _conv for n in (1, 2, 3)},
    **dict.fromkeys(
        ("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout"), _dropout
    ),
    **{f"max_pool{n}d": _pool for n in (1, 2, 3)},
    **{f"avg_pool{n}d": _average for n in (1, 2, 3)},
    **{f"adaptive_avg_pool{n}d": _average for n in (1, 2, 3)},
    **{f"adaptive_max_pool{n}d": _pool for n in (1, 2, 3)},
}
