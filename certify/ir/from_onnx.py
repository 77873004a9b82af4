"""A graph from an ONNX file, with numpy arrays and without torch."""

import os
from math import prod
from typing import Any

import numpy as np

from certify.errors import CertifyError, ImportMismatchError, InvalidInputError, UnsupportedOp
from certify.ir.build import Builder, Value
from certify.ir.graph import Graph
from certify.ir.onnx_constants import FOLDS
from certify.ir.onnx_file import Call, Program, read_program
from certify.ir.onnx_moves import MOVES
from certify.ir.onnx_rules import RULES, Operand
from certify.ir.ops import Shape
from certify.ir.runtime import Runtime

_CHECK_INPUTS = 8
_CHECK_ENTRIES = 2**26  # of all their values together: large networks are checked on fewer inputs
_CHECK_TOLERANCE = 1e-4  # of the largest output: the runtime computes in float32


def graph_from_onnx(
    source: str | os.PathLike[str] | bytes,
    *,
    input_shape: Shape | None = None,
    check: bool = True,
    simplified: bool = True,
) -> Graph:
    """The simplified graph of an ONNX file, in float64, checked against onnxruntime on random inputs.

    A leading axis of length 1, or one that the file leaves open, is the batch axis: the graph's values are those
    of one input, without it. The graph computes in real numbers what the file computes in its own precision.

    Args:
        source: path of a `.onnx` or `.onnx.gz` file, or its content.
        input_shape: shape of one input, without the batch axis, where the file does not say it.
        simplified: whether to merge consecutive affine operations, which rounds their products.
        check: whether to compare with onnxruntime. Whoever switches it off answers for the import.

    Raises:
        InvalidInputError: for a file that is damaged, no ONNX model, or leaves the shape of an input open.
        UnsupportedOp: for an operator without a rule here, naming the node.
        ImportMismatchError: when onnxruntime computes something else.
        MissingDependencyError: where onnx, or for the check onnxruntime, is not installed.
    """
    program = read_program(source)
    shape, has_batch = input_axes(program, input_shape)
    builder = Builder(shape[1:] if has_batch else shape)
    values: dict[str, Operand] = {"": None, **program.constants}
    values[program.input] = builder.reshape(builder.input, shape)
    for call in program.calls:
        _run(builder, call, values)
    graph = builder.finish(_output(builder, values.get(program.output), program, has_batch), simplified=simplified)
    if check:
        check_with_runtime(graph, program, shape)
    return graph


def input_axes(program: Program, given: Shape | None) -> tuple[Shape, bool]:
    """The input's shape as the file's nodes see it, and whether its first axis is the batch.

    Raises:
        InvalidInputError: where the file leaves an axis open that `given` does not tell, or the two differ.
    """
    declared: Any = program.shape
    has_batch = bool(declared) and (declared[0] is None or (declared[0] == 1 and len(declared) > 1))
    if given is not None:
        full = (1, *given) if has_batch and len(given) == len(declared) - 1 else tuple(given)
        fits = len(full) == len(declared) and all(d in (None, n) for d, n in zip(declared, full, strict=True))
        if not fits:
            raise InvalidInputError(f"input_shape is {given}; the file declares {declared}")
        return full, has_batch
    full = (1, *declared[1:]) if has_batch else declared
    if any(n is None or n < 1 for n in full):
        raise InvalidInputError(f"the file leaves the shape of its input open: {declared}; pass input_shape=")
    return full, has_batch


def _run(builder: Builder, call: Call, values: dict[str, Operand]) -> None:
    missing = [name for name in call.inputs if name not in values]
    if missing:
        raise InvalidInputError(f"node {call.name!r} ({call.kind}) reads {missing[0]!r}, which no earlier node gives")
    try:
        with np.errstate(divide="raise", over="raise", invalid="raise"):
            results = _result(builder, call, [values[name] for name in call.inputs])
    except CertifyError as error:
        raise type(error)(f"node {call.name!r} ({call.kind}): {error}") from error
    except (ArithmeticError, AttributeError, IndexError, TypeError, ValueError) as error:
        raise InvalidInputError(f"node {call.name!r} ({call.kind}) is malformed: {error}") from error
    for name, result in zip(call.outputs, results if isinstance(results, tuple) else (results,), strict=False):
        values[name] = result
        if isinstance(result, np.ndarray):
            builder.spend(result.size)
    values[""] = None


def _result(builder: Builder, call: Call, operands: list[Operand]) -> Operand | tuple[Operand, ...]:
    if any(isinstance(o, Value) for o in operands):
        if call.kind not in RULES:
            raise UnsupportedOp(f"the operator is not supported; supported are {', '.join(sorted(RULES))}")
        return RULES[call.kind](builder, call, *operands)
    if call.kind in MOVES:
        return _moved(call, operands)
    if call.kind not in FOLDS:
        raise UnsupportedOp(f"the operator is not supported on constants; supported are {', '.join(sorted(FOLDS))}")
    return FOLDS[call.kind](call, *operands)


def _moved(call: Call, operands: list[Operand]) -> Operand | tuple[Operand, ...]:
    if call.kind == "Pad":
        raise UnsupportedOp("padding of a constant is not supported")
    return MOVES[call.kind](call, *operands)


def _output(builder: Builder, output: Operand, program: Program, has_batch: bool) -> Value:
    if not isinstance(output, Value):
        raise InvalidInputError(f"the output {program.output!r} does not depend on the input; expected a network")
    if has_batch and len(output.shape) > 1 and output.shape[0] == 1:
        return builder.reshape(output, output.shape[1:])
    return output if output.shape else builder.reshape(output, (1,))


def check_with_runtime(graph: Graph, program: Program, shape: Shape) -> None:
    """Compares the graph with onnxruntime on random inputs of several sizes."""
    runtime, generator = Runtime(program.content, shape), np.random.default_rng(0)
    count = max(2, min(_CHECK_INPUTS, _CHECK_ENTRIES // sum(prod(node.shape) for node in graph.nodes)))
    # One by one: all values of a graph are held at a time.
    for size in np.geomspace(0.1, 10.0, count):
        point = (size * generator.standard_normal(shape)).astype(runtime.dtype)
        _require_equal(runtime(point).astype(np.float64), graph(point.astype(np.float64).reshape((1, -1))))


def _require_equal(expected: np.ndarray, computed: np.ndarray) -> None:
    if expected.size != computed.size:
        raise ImportMismatchError(f"onnxruntime returns {expected.shape}, the graph {computed.shape[1:]}")
    error = float(np.abs(expected.ravel() - computed.ravel()).max())
    if not error <= _CHECK_TOLERANCE * (1 + np.abs(expected).max()):
        raise ImportMismatchError(
            f"the imported graph differs from onnxruntime by {error:.3g} on random inputs: please report it"
        )
