"""What tells two networks apart: their operations and stored weights, to the last bit."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from certify.ir.graph import Graph
from certify.ir.onnx_file import Program
from certify.jobs.digests import digest_of


def digest_of_graph(graph: Graph) -> str:
    """Of every node: kind, inputs, shape, weights and settings.

    Take a graph that was not simplified: merged weights depend, in the last digits, on the machine that merged them.
    """
    parts: list[Any] = []
    for node in graph.nodes:
        parts += [type(node.op).__name__, node.inputs, node.shape]
        for field in fields(node.op):  # type: ignore[arg-type]
            parts += [field.name, _plain(getattr(node.op, field.name))]
    return digest_of(*parts)


def _plain(value: Any) -> Any:
    """Arrays of torch as arrays of numpy; the rest tells what it is by its `repr`."""
    if hasattr(value, "cpu"):
        value = value.cpu()
    return np.asarray(value) if hasattr(value, "dtype") else value


def digest_of_program(program: Program) -> str:
    """Of an ONNX file, unpacked, and of the data that lie beside it."""
    if isinstance(program.content, bytes):
        return digest_of(program.content)
    beside = [part for name, array in sorted(program.constants.items()) for part in (name, array)]
    return digest_of(Path(program.content).read_bytes(), *beside)
