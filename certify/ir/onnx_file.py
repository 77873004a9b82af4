"""An ONNX file as plain Python and numpy: nothing in it is executed, and sizes are checked before memory is used."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from certify.errors import InvalidInputError, InvalidTypeError, MissingDependencyError, UnsupportedOp
from certify.ir.build import LARGEST, require_size
from certify.packed import unpacked

_LARGEST_FILE = 2**31  # protobuf itself reads no more
_REAL = ("float16", "bfloat16", "float32", "float64")
_NUMBERS = (*_REAL, "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "bool")


@dataclass(frozen=True)
class Call:
    """One node of the file.

    Attributes:
        kind: the operator, such as "Conv".
        name: what errors call the node.
        inputs, outputs: names of values; "" for an optional one that is absent.
        attributes: their Python or numpy values.
        opset: the version of the operator set.
    """

    kind: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    opset: int = 0

    def get(self, name: str, default: Any = None) -> Any:
        """An attribute."""
        return self.attributes.get(name, default)


@dataclass(frozen=True, eq=False)
class Program:
    """A file's graph: its calls in order, its constants, and the one input and output that are floating point.

    Attributes:
        calls: the nodes, in order.
        constants: the initialisers by name.
        input: name of the input.
        shape: its axes, None where the file leaves one open.
        output: name of the output.
        content: the file, for a runtime; or its path, if some of the data lie in other files.
    """

    calls: tuple[Call, ...]
    constants: Mapping[str, np.ndarray]
    input: str
    shape: tuple[int | None, ...]
    output: str
    content: bytes | str


def read_program(source: Any) -> Program:
    """Reads a `.onnx` or `.onnx.gz` file, or its content.

    Raises:
        InvalidInputError: for a file that is absent, too large, truncated or no ONNX model, or with tensors
            whose declared size is not the size of their data.
        UnsupportedOp: for what no network here has: several inputs or outputs, subgraphs, custom operators.
    """
    if isinstance(source, bytes):
        content, path = source, None
    elif isinstance(source, str | os.PathLike):
        path = Path(source)
        content = _read(path)
    else:
        raise InvalidTypeError(f"the network is a {type(source).__name__}; expected a path, or the bytes of a file")
    try:
        content = unpacked(content, _LARGEST_FILE)
    except InvalidInputError as error:
        raise InvalidInputError(f"the network is {error}") from error.__cause__
    model = _parsed(content)
    program = _program(model, content, None if path is None else path.resolve().parent)
    external = any(t.data_location == 1 for t in model.graph.initializer)
    return replace(program, content=str(path)) if external else program


def _read(path: Path) -> bytes:
    try:
        if path.stat().st_size > _LARGEST_FILE:
            raise InvalidInputError(f"{path} has {path.stat().st_size} bytes; expected at most {_LARGEST_FILE}")
        with path.open("rb") as stream:  # what is no plain file tells no size
            return stream.read(_LARGEST_FILE)
    except OSError as error:
        raise InvalidInputError(f"cannot read {path}: {error.strerror}; check the path of the network") from error


def _parsed(content: bytes) -> Any:
    try:
        import onnx
        from google.protobuf.message import DecodeError
    except ImportError as error:
        raise MissingDependencyError(
            "reading ONNX files needs the package onnx; install it with pip install 'convexnn[onnx]'"
        ) from error
    model = onnx.ModelProto()
    try:
        model.ParseFromString(content)
    except DecodeError as error:
        raise InvalidInputError("the file is truncated, or no ONNX model; fetch or export it again") from error
    if not model.graph.node and not model.graph.output:
        raise InvalidInputError("the file holds no ONNX graph; fetch or export it again")
    return model


def _program(model: Any, content: bytes, folder: Path | None) -> Program:
    graph = model.graph
    if model.functions:
        raise UnsupportedOp(f"the file defines {len(model.functions)} functions of its own; export it without them")
    if graph.sparse_initializer:
        raise UnsupportedOp("sparse initialisers are not supported; export the network with dense ones")
    opset = max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=1)
    constants = {_text(t.name): array_of(t, folder) for t in graph.initializer}
    inputs = [v for v in graph.input if _text(v.name) not in constants]
    if len(inputs) != 1 or len(graph.output) != 1:
        given = [[v.name for v in values] for values in (inputs, graph.output)]
        raise UnsupportedOp(f"the network has inputs {given[0]} and outputs {given[1]}; expected one of each")
    calls = tuple(_call(node, k, opset, folder) for k, node in enumerate(graph.node))
    names = _text(inputs[0].name), _text(graph.output[0].name)
    return Program(calls, constants, names[0], _declared(inputs[0]), names[1], content)


def _declared(value: Any) -> tuple[int | None, ...]:
    kind = value.type.tensor_type
    if not kind.HasField("shape"):
        raise InvalidInputError(f"the input {value.name!r} has no shape in the file; pass input_shape=")
    if kind.elem_type not in (1, 10, 11, 16):  # float, float16, double, bfloat16
        raise UnsupportedOp(f"the input {value.name!r} is not floating point (ONNX element type {kind.elem_type})")
    return tuple(d.dim_value if d.WhichOneof("value") == "dim_value" else None for d in kind.shape.dim)


def _call(node: Any, position: int, opset: int, folder: Path | None) -> Call:
    outputs = tuple(map(_text, node.output))
    name = _text(node.name) or (outputs[0] if outputs else f"number {position}")
    if node.domain not in ("", "ai.onnx"):
        raise UnsupportedOp(f"node {name!r} is {node.op_type} of the domain {node.domain!r}; expected standard ONNX")
    attributes = {_text(a.name): _attribute(a, name, folder) for a in node.attribute}
    return Call(_text(node.op_type), name, tuple(map(_text, node.input)), outputs, attributes, opset)


def _text(value: Any) -> str:
    """protobuf hands out bytes where a string is no UTF-8."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _attribute(attribute: Any, node: str, folder: Path | None) -> Any:
    """By the type numbers of onnx.AttributeProto: f 1, i 2, s 3, t 4, floats 6, ints 7, strings 8."""
    kind = attribute.type
    simple = {1: "f", 2: "i", 6: "floats", 7: "ints"}
    if kind in simple:
        value = getattr(attribute, simple[kind])
        return tuple(value) if kind > 5 else value
    if kind == 3:
        return _text(attribute.s)
    if kind == 8:
        return tuple(map(_text, attribute.strings))
    if kind == 4:
        return array_of(attribute.t, folder)
    raise UnsupportedOp(f"attribute {attribute.name!r} of node {node!r} is a subgraph or another rare kind")


def array_of(tensor: Any, folder: Path | None) -> np.ndarray:
    """A tensor of the file; real numbers become float64 and whole ones int64."""
    from onnx import helper, numpy_helper

    shape = tuple(tensor.dims)
    require_size(shape, f"the tensor {tensor.name!r}", LARGEST)
    try:
        kind = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.data_type))
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidInputError(f"the tensor {tensor.name!r} has the unknown type {tensor.data_type}") from error
    if kind.name not in _NUMBERS:
        raise UnsupportedOp(f"the tensor {tensor.name!r} holds {kind.name}; expected one of {', '.join(_NUMBERS)}")
    if tensor.data_location == 1:
        array = _external(tensor, shape, kind, folder)
    else:
        _require_data(tensor, shape, kind)
        try:
            array = numpy_helper.to_array(tensor)
        except (ValueError, TypeError) as error:
            raise InvalidInputError(f"the tensor {tensor.name!r} cannot be read: {error}") from error
    with np.errstate(invalid="ignore"):  # a signalling NaN, which is refused where it is used
        return np.array(array, dtype=np.float64 if kind.name in _REAL else np.int64)


def _require_data(tensor: Any, shape: tuple[int, ...], kind: np.dtype) -> None:
    """The data are there: a declared size costs nothing to write."""
    fields = ("float_data", "int32_data", "int64_data", "double_data", "uint64_data")
    held = max(len(tensor.raw_data) // kind.itemsize, *(len(getattr(tensor, f)) for f in fields))
    if held != prod(shape):
        raise InvalidInputError(
            f"the tensor {tensor.name!r} is declared with shape {shape} but holds {held} entries; the file is damaged"
        )


def _external(tensor: Any, shape: tuple[int, ...], kind: np.dtype, folder: Path | None) -> np.ndarray:
    """Data in a file of their own, which has to lie in the model's folder."""
    told = {_text(entry.key): _text(entry.value) for entry in tensor.external_data}
    location, name = told.get("location", ""), tensor.name
    if folder is None:
        raise InvalidInputError(f"the tensor {name!r} lies in the file {location!r}: pass the path of the model")
    path = (folder / location).resolve()
    if not location or Path(location).is_absolute() or not path.is_relative_to(folder) or not path.is_file():
        raise InvalidInputError(
            f"the tensor {name!r} lies in {location!r}, which is no file inside the model's folder {folder}"
        )
    size = prod(shape) * kind.itemsize
    offset = told.get("offset", "0")
    if not offset.isdigit() or int(offset) + size > path.stat().st_size:
        raise InvalidInputError(f"the file {location!r} ends before the {size} bytes of the tensor {name!r}")
    with path.open("rb") as stream:
        stream.seek(int(offset))
        return np.frombuffer(stream.read(size), dtype=kind.newbyteorder("<")).reshape(shape)
