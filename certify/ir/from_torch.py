"""A graph from a `torch.nn` module."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from certify.errors import (
    ImportMismatchError,
    InvalidInputError,
    InvalidTypeError,
    TrainModeError,
    UnsupportedOp,
)
from certify.ir.graph import Graph
from certify.ir.ops import Linear, ReLU, Reshape, Scale, Shape
from certify.ir.simplify import simplify

_CHECK_INPUTS = 16
_CHECK_TOLERANCE = 1e-8  # of the largest output; both sides run in float64


def graph_from_torch(module: nn.Module, *, input_shape: Shape | None = None) -> Graph:
    """The simplified graph of a module, in float64, checked against the module on random inputs.

    Supported: `Sequential` (nested too) of `Linear`, `ReLU`, `Flatten`, `BatchNorm1d` and `Dropout` in eval
    mode, and `Identity`. BatchNorm is folded into a neighbouring linear layer.

    Args:
        module: the network; it is only read.
        input_shape: shape of one input, without the batch axis; default `(in_features,)` of the first layer.

    Raises:
        UnsupportedOp: for any other module, naming it.
        TrainModeError: for BatchNorm or Dropout in train mode.
        InvalidInputError: where shapes do not fit, or a weight is not finite.
        ImportMismatchError: when the graph and the module disagree on random inputs.
    """
    if not isinstance(module, nn.Module):
        raise InvalidTypeError(f"the network is a {type(module).__name__}; expected a torch.nn.Module: pass the module")
    _require_finite(module)
    layers = list(_leaves(module, ""))
    rules = [_rule(layer, path) for path, layer in layers]
    graph = Graph.start(tuple(input_shape) if input_shape is not None else _guess_shape(layers))
    for (path, layer), rule in zip(layers, rules, strict=True):
        graph = rule(graph, layer, path)
    graph = simplify(graph)
    _check(graph, module)
    return graph


def _leaves(module: nn.Module, path: str) -> Iterator[tuple[str, nn.Module]]:
    if isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward:
        for name, child in module.named_children():
            yield from _leaves(child, f"{path}.{name}" if path else name)
    else:
        yield path, module


def _guess_shape(layers: list[tuple[str, nn.Module]]) -> Shape:
    for _, layer in layers:
        width = getattr(layer, "in_features", getattr(layer, "num_features", None))
        if width is not None:
            return (int(width),)
    raise InvalidInputError(
        "the network has no layer that tells its input size: pass input_shape=, without the batch axis"
    )


def _require_finite(module: nn.Module) -> None:
    for name, value in (*module.named_parameters(), *module.named_buffers()):
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise InvalidInputError(f"{name} of the network has NaN or infinite entries; expected finite weights")


def _require_eval(module: nn.Module, path: str) -> None:
    if module.training:
        raise TrainModeError(
            f"{_where(module, path)} is in train mode, so the network is not one fixed function;"
            " call .eval() on the network first"
        )


def _where(module: nn.Module, path: str) -> str:
    kind = f"{type(module).__module__}.{type(module).__qualname__}"
    return f"module '{path or '(the network itself)'}' of class {kind}"


def _linear(graph: Graph, layer: Any, path: str) -> Graph:
    weight = layer.weight.detach().double()
    bias = weight.new_zeros(len(weight)) if layer.bias is None else layer.bias.detach().double()
    return graph.append(Linear(weight, bias))


def _relu(graph: Graph, layer: Any, path: str) -> Graph:
    return graph.append(ReLU())


def _flatten(graph: Graph, layer: Any, path: str) -> Graph:
    shape = graph.output_shape
    if layer.start_dim % (len(shape) + 1) == 0:
        raise UnsupportedOp(
            f"{_where(layer, path)} flattens the batch axis (start_dim={layer.start_dim}); use start_dim=1"
        )
    # A placeholder for the batch axis keeps torch's own reading of the two dimensions.
    target = tuple(torch.empty((1, *shape), device="meta").flatten(layer.start_dim, layer.end_dim).shape[1:])
    return graph.append(Reshape(shape, target))


def _batch_norm(graph: Graph, layer: Any, path: str) -> Graph:
    _require_eval(layer, path)
    if layer.running_mean is None:
        raise UnsupportedOp(
            f"{_where(layer, path)} has no running statistics, so its output depends on the batch;"
            " train it with track_running_stats=True"
        )
    scale = (layer.running_var.double() + layer.eps).rsqrt()
    if layer.weight is not None:
        scale = scale * layer.weight.detach().double()
    shift = -scale * layer.running_mean.double()
    if layer.bias is not None:
        shift = shift + layer.bias.detach().double()
    return graph.append(Scale(scale, shift))


def _dropout(graph: Graph, layer: Any, path: str) -> Graph:
    _require_eval(layer, path)
    return graph


def _identity(graph: Graph, layer: Any, path: str) -> Graph:
    return graph


Rule = Callable[[Graph, Any, str], Graph]

RULES: dict[type[nn.Module], Rule] = {
    nn.Linear: _linear,
    nn.ReLU: _relu,
    nn.Flatten: _flatten,
    nn.BatchNorm1d: _batch_norm,
    nn.Dropout: _dropout,
    nn.Identity: _identity,
}


def _rule(layer: nn.Module, path: str) -> Rule:
    for kind in type(layer).__mro__:
        # A subclass with a forward of its own computes something else than its base.
        if kind in RULES and kind.forward is type(layer).forward:
            return RULES[kind]
    supported = ", ".join(sorted(k.__name__ for k in RULES))
    raise UnsupportedOp(
        f"{_where(layer, path)} is not supported; supported are Sequential of {supported}."
        " Rewrite the network with these, or remove the layer if it does nothing in eval mode"
    )


def _check(graph: Graph, module: nn.Module) -> None:
    """Run both in float64 on random inputs."""
    reference = copy.deepcopy(module).double()
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    inputs: Tensor = torch.randn((_CHECK_INPUTS, *graph.input_shape), generator=generator, dtype=torch.float64)
    inputs = inputs.to(device)
    with torch.no_grad():
        expected, computed = reference(inputs.clone()), graph(inputs)
    if expected.shape != computed.shape:
        raise ImportMismatchError(
            f"the network returns shape {tuple(expected.shape)}, its graph {tuple(computed.shape)}"
        )
    error = float((expected - computed).abs().max())
    if not error <= _CHECK_TOLERANCE * (1 + float(expected.abs().max())):
        raise ImportMismatchError(
            f"the imported graph differs from the network by {error:.3g} on random inputs; hooks or"
            " overridden methods that change the forward pass are not supported"
        )
