"""A graph as a torch module: what was read from ONNX goes wherever a torch network goes."""

import os
from math import prod

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from certify.errors import InvalidInputError
from certify.ir.digest import digest_of_program
from certify.ir.from_onnx import graph_from_onnx
from certify.ir.from_torch import graph_from_torch
from certify.ir.graph import Graph
from certify.ir.onnx_file import read_program
from certify.ir.ops import Shape
from certify.ir.simplify import simplify


class GraphModule(nn.Module):
    """Runs a graph in one precision; `graph` itself is float64, with torch tensors.

    Inputs may have any shape with the right number of entries behind the batch axis. `digest` tells the file that
    the graph was read from, if it was; `unmerged` is the graph as it was read, before layers were merged.
    """

    zero: Tensor

    def __init__(
        self,
        graph: Graph,
        dtype: torch.dtype = torch.float32,
        digest: str | None = None,
        *,
        unmerged: Graph | None = None,
    ) -> None:
        super().__init__()
        self.digest, self.unmerged = digest, unmerged
        self.graph = graph.map_arrays(torch.as_tensor)
        self._rounded = self.graph.map_arrays(lambda array: array.to(dtype) if array.is_floating_point() else array)
        # Tells the precision, as the parameters of another module would.
        self.register_buffer("zero", torch.zeros((), dtype=dtype))
        self.eval()

    def forward(self, x: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch *out"]:
        """The outputs."""
        return self._rounded(x.to(self.zero.dtype).flatten(1))

    def graph_for(self, shape: Shape) -> Graph:
        """The graph, if inputs of this shape fit it."""
        if prod(shape) != prod(self.graph.input_shape):
            raise InvalidInputError(f"inputs have shape {shape}; the network expects {self.graph.input_shape}")
        return self.graph


def module_from_onnx(source: str | os.PathLike[str] | bytes) -> GraphModule:
    """An ONNX network as a torch module for `verify` and `certified_accuracy`, in float32.

    A counterexample to it is one of the graph in float32 as torch computes it, not of onnxruntime.

    Raises:
        InvalidInputError, UnsupportedOp: as `graph_from_onnx`.
    """
    graph = graph_from_onnx(source, simplified=False)
    return GraphModule(simplify(graph), digest=digest_of_program(read_program(source)), unmerged=graph)


def precision_of(module: nn.Module) -> tuple[torch.dtype, torch.device]:
    """Of its first floating-point parameter or buffer; float64 on the CPU where it has none.

    Raises:
        InvalidInputError: for bfloat16, and for parameters of several precisions.
    """
    kinds = {value.dtype for value in module.parameters() if value.is_floating_point()}
    if len(kinds) > 1:
        raise InvalidInputError(
            f"the network's parameters are of several precisions ({', '.join(sorted(map(str, kinds)))});"
            " convert it with .float() or .double()"
        )
    for value in (*module.parameters(), *module.buffers()):
        if value.dtype == torch.bfloat16:
            raise InvalidInputError(
                "the network is in bfloat16, and a counterexample is a numpy array, which has no such type;"
                " convert it with .float()"
            )
        if value.is_floating_point():
            return value.dtype, value.device
    return torch.float64, torch.device("cpu")


class ModuleRun:
    """A torch module as it is run on one input: precision and shape of the input, and outputs, in numpy."""

    def __init__(self, module: nn.Module, shape: Shape) -> None:
        kind, self._device = precision_of(module)
        self._module = module
        self.dtype = torch.zeros((), dtype=kind).numpy().dtype
        self.shape = (1, *shape)

    def __call__(self, inputs: np.ndarray) -> np.ndarray:
        """The outputs for one input."""
        tensor = torch.from_numpy(np.array(inputs, dtype=self.dtype).reshape(self.shape)).to(self._device)
        with torch.no_grad():
            output: np.ndarray = self._module(tensor).cpu().numpy()
        return output


def numpy_graph(module: nn.Module, shape: Shape | None) -> Graph:
    """The graph of a module with numpy arrays, not simplified where it is read here."""
    if isinstance(module, GraphModule):
        graph = module.graph
    else:
        graph = graph_from_torch(module, input_shape=shape, simplified=False)
    return graph.map_arrays(lambda array: array.cpu().numpy() if isinstance(array, Tensor) else array)


def unmerged_graph(module: nn.Module, shape: Shape) -> Graph:
    """The graph of a module with numpy arrays as it was read, also where the module runs a merged one."""
    if isinstance(module, GraphModule) and module.unmerged is not None:
        return module.unmerged
    return numpy_graph(module, shape)
