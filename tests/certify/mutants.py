"""Damaged networks and properties: real ones with random changes, of bytes, of tokens and of what the format means."""

import random
import re

import onnx
from onnx import TensorProto, helper

INTEGERS = [0, 1, -1, 2, 3, 7, -2, 2**20, 10**9, 2**31 - 1, -(2**31), 2**31, 2**63 - 1, -(2**63)]
REALS = [0.0, -0.0, 1.0, 1e-45, 3e38, -3e38, float("inf"), float("-inf"), float("nan"), 255.0]
OPERATOR_NAMES = (
    "Loop If Scan Softmax Relu Gemm Conv Reshape Sigmoid MaxPool AveragePool Add Split Gather Slice Squeeze Unsqueeze"
    " Clip Max Shape Cast Expand ConstantOfShape Range Tile Pad ReduceMax Transpose MatMul BatchNormalization Concat"
    " Flatten PRelu ConvTranspose DepthToSpace Dropout Einsum Resize Pow Where"
)
ATTRIBUTE_NAMES = (
    "axis axes perm kernel_shape strides pads dilations group epsilon alpha beta transA transB to value auto_pad"
    " ceil_mode keepdims shape mode min max blocksize allowzero split count_include_pad output_padding"
)


def changed_bytes(content: bytes, rng: random.Random) -> bytes:
    """A few bytes replaced, removed or repeated, often near either end, where the names and shapes are."""
    data = bytearray(content)
    for _ in range(rng.randrange(1, 6)):
        near = rng.randrange(min(len(data), 600))
        at = rng.choice([rng.randrange(len(data)), near, len(data) - 1 - near])
        kind = rng.randrange(4)
        if kind == 0:
            data[at] = rng.randrange(256)
        elif kind == 1 and len(data) > 9:
            del data[at : at + rng.randrange(1, 9)]
        elif kind == 2:
            data[at:at] = rng.randbytes(rng.randrange(1, 9))
        else:
            data[at:at] = data[at : at + rng.randrange(1, 200)]
    return bytes(data)


def _attribute(rng: random.Random) -> onnx.AttributeProto:
    values = [
        rng.choice(INTEGERS),
        [rng.choice(INTEGERS) for _ in range(rng.randrange(1, 6))],
        rng.choice(REALS),
        rng.choice(["SAME_UPPER", "VALID", "reflect", "", "DCR", b"\xff\xfe"]),
        helper.make_tensor("t", TensorProto.INT64, [2], rng.choices(INTEGERS, k=2)),
    ]
    return helper.make_attribute(rng.choice(ATTRIBUTE_NAMES.split()), rng.choice(values))


def _change_node(graph: onnx.GraphProto, node: onnx.NodeProto, rng: random.Random) -> None:
    names = [name for other in graph.node for name in (*other.input, *other.output)]
    kind = rng.randrange(8)
    if kind == 0:
        node.op_type = rng.choice(OPERATOR_NAMES.split())
    elif kind == 1 and node.attribute:
        attribute = rng.choice(node.attribute)
        attribute.i, attribute.f = rng.choice(INTEGERS), rng.choice(REALS)
        if attribute.ints:
            attribute.ints[rng.randrange(len(attribute.ints))] = rng.choice(INTEGERS)
    elif kind == 2:
        node.attribute.append(_attribute(rng))
    elif kind == 3 and node.attribute:
        del node.attribute[rng.randrange(len(node.attribute))]
    elif kind == 4 and node.input:
        node.input[rng.randrange(len(node.input))] = rng.choice([*names, "", "nowhere"])
    elif kind == 5:
        node.input.append(rng.choice(names))
    elif kind == 6 and node.input:
        del node.input[-1]
    elif node.output:
        node.output[rng.randrange(len(node.output))] = rng.choice([*names, ""])


def _change_tensor(tensor: onnx.TensorProto, rng: random.Random) -> None:
    kind = rng.randrange(4)
    if kind == 0 and tensor.dims:
        tensor.dims[rng.randrange(len(tensor.dims))] = rng.choice(INTEGERS)
    elif kind == 1:
        tensor.dims.append(rng.choice([0, 1, 2, -1]))
    elif kind == 2:
        tensor.data_type = rng.randrange(30)
    elif tensor.raw_data:
        tensor.raw_data = changed_bytes(tensor.raw_data, rng)


def _change_model(model: onnx.ModelProto, rng: random.Random) -> None:
    graph, kind = model.graph, rng.randrange(8)
    if kind < 3 and graph.node:
        _change_node(graph, rng.choice(graph.node), rng)
    elif kind == 3 and graph.initializer:
        _change_tensor(rng.choice(graph.initializer), rng)
    elif kind == 4 and graph.node:
        graph.node.insert(rng.randrange(len(graph.node) + 1), rng.choice(graph.node))
    elif kind == 5 and graph.node:
        del graph.node[rng.randrange(len(graph.node))]
    elif kind == 6 and graph.input[0].type.tensor_type.shape.dim:
        rng.choice(graph.input[0].type.tensor_type.shape.dim).dim_value = rng.choice(INTEGERS)
    elif kind == 7:
        model.opset_import[0].version = rng.choice([0, 1, 7, 9, 11, 13, 18, 25, 99, -3, 2**40])


def changed_model(content: bytes, rng: random.Random) -> bytes:
    """Nodes, attributes, shapes and tensors changed in a file that stays well-formed protobuf."""
    model = onnx.load_from_string(content)
    for _ in range(rng.randrange(1, 4)):
        _change_model(model, rng)
    return model.SerializeToString()


_TOKEN = re.compile(r"[()\[\],]|[^\s()\[\],]+")
_WORD_LIST = (
    "( ) and or assert <= >= < > = == != + - * / not X_0 Y_0 X_1 Y_99 X_00 X_-1 X_999999999 1e308 1e-308 1e400 nan inf"
    " 0x1 1_000 Real Int declare-const declare-fun () |quoted| ; Ω ٣ \uff11 é In[0,0] Out[2] Out ["
    " [99999999999999999999]"
    " [-1] <2.0> vnnlib-version declare-network declare-input declare-output float32 float64 int8 ite let . -"
    " -0.0 0.5"
)


def changed_text(text: str, rng: random.Random) -> str:
    """Tokens replaced, removed, repeated or exchanged; or characters."""
    if rng.random() < 0.3:
        return changed_bytes(text.encode(), rng).decode("utf-8", "replace")
    tokens = _TOKEN.findall(re.sub(r";[^\n]*", "", text))
    for _ in range(rng.randrange(1, 5)):
        at, kind = rng.randrange(len(tokens)), rng.randrange(5)
        if kind == 0:
            tokens[at] = rng.choice([*_WORD_LIST.split(), "9" * 300, "(" * 150])
        elif kind == 1:
            tokens.insert(at, rng.choice(_WORD_LIST.split()))
        elif kind == 2 and len(tokens) > 1:
            del tokens[at]
        elif kind == 3:
            other = rng.randrange(len(tokens))
            tokens[at], tokens[other] = tokens[other], tokens[at]
        else:
            tokens[at:at] = tokens[at : at + rng.randrange(1, 30)] * rng.choice([1, 1, 2, 50])
    return " ".join(tokens)
