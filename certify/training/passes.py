"""Boxes and points that run through a torch module together.

The module's own forward pass runs on an `Enclosed` tensor; every torch function that reads one maps centre, radius and
points by its rule, with the module's own parameters, so that everything is differentiable in them. The functions are
those that `certify.verify` reads. Radii are not enlarged by rounding errors: training needs no proofs.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from certify.errors import UnsupportedOp
from certify.ir.torch_names import CREATORS, MOVES, QUERIES, SAME
from certify.ir.torch_rules import plain_name
from certify.training.enclosures import Enclosure, affine
from certify.training.rules import RULES


class Enclosed(Tensor):
    """What a module sees of an enclosure: a tensor with shape, without numbers."""

    enclosure: Enclosure

    @staticmethod
    def of(enclosure: Enclosure) -> "Enclosed":
        """The tensor for an enclosure."""
        centre = enclosure.centre
        tensor = Tensor._make_wrapper_subclass(Enclosed, centre.shape, dtype=centre.dtype, device=centre.device)
        tensor.enclosure = enclosure
        return tensor

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        """Reached by what is no torch function: there are no numbers for it."""
        raise UnsupportedOp(f"the operation '{func}' has no rule for boxes")

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """What torch calls instead of any of its functions."""
        kwargs = kwargs or {}
        name, in_place = plain_name(func)
        if name in QUERIES:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        if name in SAME and name != "contiguous":
            return args[0]
        if name == "clone":
            return Enclosed.of(args[0].enclosure)
        if name in CREATORS:
            return func(args[0].enclosure.centre.detach(), *args[1:], **kwargs)
        if name in MOVES or name == "contiguous":
            return _shown(_moved(func, _opened(args), _opened(kwargs)))
        if name not in RULES:
            raise UnsupportedOp(
                f"the function '{name}' has no rule for boxes; there are rules for {', '.join(sorted(RULES))},"
                " and for what moves entries"
            )
        result = RULES[name](func, *_opened(args), **_opened(kwargs))
        if in_place or kwargs.get("inplace") is True:
            args[0].enclosure = result
            return args[0]
        return _shown(result)


def _opened(item: Any) -> Any:
    if isinstance(item, Enclosed):
        return item.enclosure
    if isinstance(item, dict):
        return {k: _opened(v) for k, v in item.items()}
    return type(item)(map(_opened, item)) if type(item) in (list, tuple) else item


def _shown(item: Any) -> Any:
    return Enclosed.of(item) if isinstance(item, Enclosure) else tuple(map(_shown, item))


def _moved(func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """A function that moves entries moves those of centre, radius and points alike."""
    value, rest = args[0], args[1:]
    rest = tuple(r.centre if isinstance(r, Enclosure) else r for r in rest)  # view_as and the like read its shape

    def apply(tensor: Tensor) -> Any:
        return func(tensor, *rest, **kwargs)

    parts = apply(value.centre)
    if isinstance(parts, Tensor):
        return affine(apply, apply, value)

    def part(k: int) -> Callable[[Tensor], Tensor]:
        return lambda tensor: apply(tensor)[k]

    return tuple(affine(part(k), part(k), value) for k in range(len(parts)))


def enclose(
    network: nn.Module,
    centre: Float[Tensor, "batch *shape"],
    radius: Float[Tensor, "batch *shape"],
    points: Float[Tensor, "batch *shape"] | None = None,
) -> Enclosure:
    """The network's outputs on boxes, and at points that run along.

    BatchNorm in train mode normalises the boxes with the statistics of the points (the boxes' centres where none are
    given), which is one fixed affine map for each batch; it updates its running statistics once.

    Args:
        network: any module of the operations that `certify.verify` reads.
        centre: of the boxes, `(batch, ...)`.
        radius: of the boxes, of the same shape.
        points: inputs that run along, for example attacked ones.

    Raises:
        UnsupportedOp: for an operation without a rule, by name.
    """
    if points is None and any(isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training for m in network.modules()):
        points = centre
    output = network(Enclosed.of(Enclosure(centre, radius, points)))
    if not isinstance(output, Enclosed):
        raise UnsupportedOp(f"the network returns a {type(output).__name__}; expected one tensor made from its input")
    return output.enclosure
