"""A graph from a `torch.nn` module."""

import copy

import torch
from torch import Tensor, nn

from certify.errors import (
    ImportMismatchError,
    InvalidInputError,
    InvalidTypeError,
    UnsupportedOp,
)
from certify.ir.build import Builder, Value
from certify.ir.graph import Graph
from certify.ir.ops import Shape
from certify.ir.tracing import record

_CHECK_INPUTS = 16
_CHECK_TOLERANCE = 1e-8  # of the largest output; both sides run in float64


def graph_from_torch(module: nn.Module, *, input_shape: Shape | None = None, simplified: bool = True) -> Graph:
    """The graph of a module, in float64, checked against the module on random inputs.

    The module's forward pass is run once on a tensor without numbers, so that any Python in it is followed:
    nested modules, branches and loops on shapes, functions and methods, residual sums, hooks. The list of
    functions is on the page "Supported operations" of the documentation.

    Args:
        module: the network; it is only read. Its first axis has to be the batch.
        input_shape: shape of one input, without the batch axis; default `(in_features,)` of the first layer.
        simplified: whether to merge consecutive affine operations, which rounds their products.

    Raises:
        UnsupportedOp: for a function without a rule, naming it and the module that calls it.
        TrainModeError: for BatchNorm or Dropout in train mode.
        InvalidInputError: where shapes do not fit, or a weight is not finite.
        ImportMismatchError: when the graph and the module disagree on random inputs.
    """
    if not isinstance(module, nn.Module):
        raise InvalidTypeError(f"the network is a {type(module).__name__}; expected a torch.nn.Module: pass the module")
    _require_finite(module)
    shape = tuple(input_shape) if input_shape is not None else _guess_shape(module)
    reference = copy.deepcopy(module).double().cpu()
    builder = Builder(shape)
    output = record(reference, builder, builder.reshape(builder.input, (1, *shape)))
    graph = builder.finish(_without_batch(builder, output), simplified=simplified).map_arrays(torch.as_tensor)
    _check(graph, reference)
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    return graph.map_arrays(lambda v: v.to(device))


def _guess_shape(module: nn.Module) -> Shape:
    for layer in module.modules():
        width = getattr(layer, "in_features", getattr(layer, "num_features", None))
        if isinstance(layer, nn.Linear | nn.BatchNorm1d) and width is not None:
            return (int(width),)
        if isinstance(layer, nn.modules.conv._ConvNd):
            break
    raise InvalidInputError(
        "the network has no first layer that tells its input's shape: pass input_shape=, without the batch axis"
    )


def _require_finite(module: nn.Module) -> None:
    for name, value in (*module.named_parameters(), *module.named_buffers()):
        if value.is_meta or nn.parameter.is_lazy(value):
            raise InvalidInputError(f"{name} of the network has no values yet; load or initialise it first")
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise InvalidInputError(f"{name} of the network has NaN or infinite entries; expected finite weights")


def _without_batch(builder: Builder, output: Value) -> Value:
    if 0 in output.shape:
        raise UnsupportedOp(f"the network returns shape {output.shape}, which is nothing; expected at least one score")
    if not output.shape or output.shape[0] != 1:
        raise UnsupportedOp(
            f"the network returns shape {output.shape} for one input: it flattens the batch axis;"
            " use flatten(1), and keep the first axis for the batch"
        )
    return builder.reshape(output, output.shape[1:] or (1,))


def _check(graph: Graph, reference: nn.Module) -> None:
    """Run both in float64 on random inputs."""
    generator = torch.Generator().manual_seed(0)
    inputs: Tensor = torch.randn((_CHECK_INPUTS, *graph.input_shape), generator=generator, dtype=torch.float64)
    with torch.no_grad():
        try:
            expected = reference(inputs.clone())
        except RuntimeError as error:
            raise UnsupportedOp(f"the network takes one input but no batch of {_CHECK_INPUTS}: {error}") from error
        computed = graph(inputs)
    if expected.shape != computed.shape and expected.shape != computed.shape[:1]:
        raise ImportMismatchError(
            f"the network returns shape {tuple(expected.shape)}, its graph {tuple(computed.shape)}"
        )
    off = float((expected.reshape(computed.shape) - computed).abs().max())
    if not off <= _CHECK_TOLERANCE * (1 + float(expected.abs().max())):
        raise ImportMismatchError(
            f"the imported graph differs from the network by {off:.3g} on random inputs; randomness, or numbers"
            " that steer the forward pass, are not supported"
        )
