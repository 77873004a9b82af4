"""Export of a trained network to ONNX (extra ``onnx``)."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from convexnn.errors import InvalidInputError, MissingDependencyError
from convexnn.network import layers_of

OPSET = 13
IR_VERSION = 8
Layers = tuple[torch.nn.Linear, torch.nn.Linear]
ELEMENT_TYPES = {torch.float32: np.float32, torch.float64: np.float64}


def to_onnx(
    network: torch.nn.Module,
    path: str | Path,
    *,
    dtype: torch.dtype = torch.float64,
    metadata: dict[str, str] | None = None,
) -> None:
    """Write a network of the form Linear, ReLU, Linear as the ONNX graph Gemm, Relu, Gemm.

    The input ``x`` is ``(batch, d)``, the output ``y`` is ``(batch, K)``; the batch size is free.

    Args:
        network: the trained network.
        path: file to write.
        dtype: element type in the file, ``torch.float64`` or ``torch.float32``. Many verifiers and
            runtimes take float32 only; float64 keeps every bit of the trained weights.
        metadata: text stored in the model's ``metadata_props``.

    Raises:
        UnsupportedNetworkError: the network has another form.
        InvalidInputError: another ``dtype``.
        MissingDependencyError: the package ``onnx`` is not installed.

    """
    if dtype not in ELEMENT_TYPES:
        raise InvalidInputError(f"dtype must be one of {list(ELEMENT_TYPES)}, got {dtype}")
    onnx = _import_onnx()
    model = _model(onnx, layers_of(network), np.dtype(ELEMENT_TYPES[dtype]))
    onnx.helper.set_model_props(model, metadata or {})
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, str(path))


def _import_onnx() -> Any:
    try:
        import onnx
    except ImportError as error:
        raise MissingDependencyError(
            "writing ONNX needs the package onnx, which is not installed: pip install 'convexnn[onnx]'"
        ) from error
    return onnx


def _model(onnx: Any, layers: Layers, dtype: np.dtype) -> Any:
    helper = onnx.helper
    element = helper.np_dtype_to_tensor_dtype(dtype)
    first, last = layers
    weights = _weights(layers, dtype)
    graph = helper.make_graph(
        [
            helper.make_node("Gemm", ["x", "W1", "b1"], ["z"], transB=1),
            helper.make_node("Relu", ["z"], ["h"]),
            helper.make_node("Gemm", ["h", "W2", "b2"], ["y"], transB=1),
        ],
        "convexnn",
        [helper.make_tensor_value_info("x", element, ["batch", first.in_features])],
        [helper.make_tensor_value_info("y", element, ["batch", last.out_features])],
        [onnx.numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    opset = helper.make_opsetid("", OPSET)
    return helper.make_model(graph, opset_imports=[opset], producer_name="convexnn", ir_version=IR_VERSION)


def _weights(layers: Layers, dtype: np.dtype) -> dict[str, np.ndarray]:
    """Initialisers of the graph; a missing bias is written as zeros."""
    arrays = {}
    for layer, index in zip(layers, ("1", "2"), strict=True):
        bias = torch.zeros(layer.out_features) if layer.bias is None else layer.bias
        arrays["W" + index] = layer.weight.detach().cpu().numpy().astype(dtype)
        arrays["b" + index] = bias.detach().cpu().numpy().astype(dtype)
    return arrays
