"""Tensors that record what a torch module does with them.

The module's own forward pass runs on one input of batch size 1, with `Traced` tensors that know their shape but
hold no numbers: whatever Python does with shapes is simply done, and every torch function that reads a traced
tensor adds nodes to a graph. Reading numbers from one is an error, since the computation would depend on them.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from certify.errors import CertifyError, InvalidInputError, UnsupportedOp
from certify.ir.build import Builder, Value
from certify.ir.torch_names import CREATORS, MOVES, QUERIES, SAME, moved
from certify.ir.torch_rules import RULES, plain_name


@dataclass
class Recorder:
    """The graph under construction and the modules that are running.

    `path` grows when a module starts and shrinks when it ends.
    """

    builder: Builder
    path: list[tuple[str, nn.Module]] = field(default_factory=list)

    def where(self) -> str:
        """The innermost module that is running."""
        name, module = self.path[-1]
        kind = f"{type(module).__module__}.{type(module).__qualname__}"
        return f"module '{name or '(the network itself)'}' of class {kind}"


class Traced(Tensor):
    """A tensor of known shape and unknown numbers; `value` changes when it is written in place."""

    value: Value
    recorder: Recorder

    @staticmethod
    def of(recorder: Recorder, value: Value) -> "Traced":
        """The tensor for a value."""
        tensor = Tensor._make_wrapper_subclass(Traced, value.shape, dtype=torch.float64)
        tensor.value, tensor.recorder = value, recorder
        return tensor

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        """Reached by what computes with the tensor and is no torch function: it holds no numbers."""
        raise UnsupportedOp(f"the operation '{func}' needs numbers that only a real input has")

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """What torch calls instead of any of its functions."""
        kwargs = kwargs or {}
        recorder = next(a.recorder for a in _flat((*args, *kwargs.values())) if isinstance(a, Traced))
        try:
            return _record(recorder, func, args, kwargs)
        except CertifyError as error:
            if not hasattr(error, "named"):
                error = type(error)(f"{recorder.where()}: {error}")
                error.named = True  # type: ignore[attr-defined]
            raise error from None


def _record(recorder: Recorder, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    name, in_place = plain_name(func)
    if name in QUERIES:
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **kwargs)
    if name in SAME:
        return args[0]
    if name == "clone":
        return Traced.of(recorder, args[0].value)
    if name in CREATORS:
        return func(torch.zeros(args[0].shape, dtype=torch.float64), *args[1:], **kwargs)
    if name in MOVES:
        result = moved(recorder.builder, func, _values(args), _values(kwargs))
    elif name in RULES:
        bound = _bound(RULES[name], name, (recorder.builder, *_values(args)), _values(kwargs))
        in_place = in_place or bool(bound.arguments.get("inplace", False))
        result = RULES[name](*bound.args, **bound.kwargs)
    else:
        raise UnsupportedOp(
            f"the function '{name}' is not supported; supported are {', '.join(sorted((*RULES, *MOVES)))}."
            " Rewrite the network with these, or leave it out if it does nothing in eval mode"
        )
    if in_place:
        args[0].value = result
        return args[0]
    if isinstance(result, tuple):
        return tuple(Traced.of(recorder, r) for r in result)
    return Traced.of(recorder, result)


def _bound(rule: Callable[..., Any], name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    try:
        bound = signature(rule).bind(*args, **kwargs)
    except TypeError as error:
        raise UnsupportedOp(f"the function '{name}' is not supported with these arguments: {error}") from error
    bound.apply_defaults()
    return bound


def _flat(items: Any) -> Iterator[Any]:
    for item in items:
        if isinstance(item, list | tuple):
            yield from _flat(item)
        else:
            yield item


def _values(item: Any) -> Any:
    """Traced tensors as values, others as float64 or int64 arrays where rules compute with them."""
    if isinstance(item, Traced):
        return item.value
    if isinstance(item, dict):
        return {k: _values(v) for k, v in item.items()}
    if type(item) in (list, tuple):
        return type(item)(_values(v) for v in item)
    return item


def record(module: nn.Module, builder: Builder, value: Value) -> Value:
    """Runs the module on the value, and returns the value it returns."""
    recorder = Recorder(builder)
    with _watched(module, recorder), torch.no_grad():
        recorder.path.append(("", module))
        try:
            output = module(Traced.of(recorder, value))
        except CertifyError:
            raise
        except RuntimeError as error:
            raise InvalidInputError(f"{recorder.where()} does not fit its input: {error}; check input_shape") from error
        except Exception as error:
            raise UnsupportedOp(f"{recorder.where()} could not be followed: {error!r}") from error
    if not isinstance(output, Traced):
        raise UnsupportedOp(
            f"the network returns a {type(output).__name__}; expected one tensor, computed from its input"
        )
    return output.value


@contextmanager
def _watched(module: nn.Module, recorder: Recorder) -> Iterator[None]:
    """The recorder's path follows the modules that run."""
    handles = []
    for name, part in module.named_modules():
        handles.append(part.register_forward_pre_hook(lambda m, _, name=name: recorder.path.append((name, m))))
        handles.append(part.register_forward_hook(lambda *_: recorder.path.pop() and None))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
