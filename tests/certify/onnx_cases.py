"""One small ONNX network for every operator that is understood: name -> (nodes, shape of x, constants, opset)."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

RNG = np.random.default_rng(5)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def ints(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


@dataclass(frozen=True)
class Case:
    """Nodes as (operator, inputs, attributes): each gives the value named after its position, the last is y."""

    shape: tuple[Any, ...]
    nodes: list[tuple[str, str, dict[str, Any]]]
    constants: dict[str, np.ndarray] = field(default_factory=dict)
    opset: int = 17

    def model(self) -> bytes:
        nodes = []
        for k, (kind, inputs, attributes) in enumerate(self.nodes):
            last = k == len(self.nodes) - 1
            count = attributes.get("_outputs", 1)
            outputs = [f"{k}" if i == 0 else f"{k}.{i}" for i in range(count)]
            names = ["" if name == "_" else name for name in inputs.split()]
            plain = {name: v for name, v in attributes.items() if name != "_outputs"}
            nodes.append(helper.make_node(kind, names, ["y"] if last else outputs, name=f"{kind}_{k}", **plain))
        constants = [numpy_helper.from_array(v, name) for name, v in self.constants.items()]
        graph = helper.make_graph(
            nodes,
            "case",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, self.shape)],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
            constants,
        )
        opsets = [helper.make_opsetid("", self.opset)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()


def one(kind: str, shape: tuple[Any, ...], inputs: str = "x", opset: int = 17, **rest: Any) -> Case:
    constants = {name: rest.pop(name) for name in list(rest) if isinstance(rest[name], np.ndarray)}
    return Case(shape, [(kind, inputs, rest)], constants, opset)


IMAGE, FLAT = (1, 2, 6, 5), ("N", 6)
TENSOR = helper.make_tensor("value", TensorProto.FLOAT, [2], [1.5, -2.0])

ONNX_CASES: dict[str, Case] = {
    "Abs": one("Abs", FLAT),
    "Add": one("Add", FLAT, "c x", c=normal(6)),
    "Add, wider": one("Add", (1, 6), "x c", c=normal(1, 4, 6)),
    "AveragePool": one("AveragePool", IMAGE, kernel_shape=[3, 2], strides=[2, 2], pads=[1, 0, 1, 1]),
    "AveragePool, same": one("AveragePool", IMAGE, kernel_shape=[3, 3], strides=[2, 2], auto_pad="SAME_LOWER"),
    "AveragePool, counted": one("AveragePool", IMAGE, kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1),
    "BatchNormalization": one(
        "BatchNormalization", IMAGE, "x s b m v", opset=9, s=normal(2), b=normal(2), m=normal(2), v=normal(2) ** 2 + 1
    ),
    "BatchNormalization, epsilon": one(
        "BatchNormalization", IMAGE, "x s b m v", epsilon=0.5, s=normal(2), b=normal(2), m=normal(2), v=normal(2) ** 2
    ),
    "Cast": one("Cast", FLAT, to=TensorProto.FLOAT),
    "Clip": one("Clip", FLAT, "x _ h", h=np.array(0.3, dtype=np.float32)),
    "Clip, old": one("Clip", FLAT, opset=7, min=-0.2, max=0.5),
    "Clip, far": one("Clip", FLAT, opset=7, min=-5.0, max=4.0),
    "Clip, lowest": one("Clip", FLAT, opset=7, min=-3.4028234663852886e38, max=0.5),
    "Clip, unbounded": one("Clip", FLAT, opset=7, min=0.1),
    "Concat": one("Concat", FLAT, "x c x", c=normal(1, 2), axis=1),
    "Conv": one("Conv", IMAGE, "x w b", w=normal(4, 1, 3, 2), b=normal(4), group=2, pads=[1, 0, 2, 1], strides=[2, 1]),
    "Conv, same": one("Conv", IMAGE, "x w", w=normal(3, 2, 3, 2), auto_pad="SAME_UPPER", strides=[2, 2], opset=7),
    "Conv, valid": one("Conv", IMAGE, "x w", w=normal(3, 2, 3, 2), auto_pad="VALID"),
    "Conv, 1d": one("Conv", (1, 2, 7), "x w", w=normal(3, 2, 3), dilations=[2], pads=[2, 2]),
    "Conv, 3d": one("Conv", (1, 1, 3, 4, 3), "x w", w=normal(2, 1, 2, 2, 2)),
    "ConvTranspose": one(
        "ConvTranspose",
        IMAGE,
        "x w b",
        w=normal(2, 3, 3, 2),
        b=normal(3),
        strides=[2, 1],
        pads=[1, 0, 1, 1],
        output_padding=[1, 0],
    ),
    "DepthToSpace": one("DepthToSpace", (1, 8, 2, 3), blocksize=2, mode="CRD", opset=11),
    "Div": one("Div", FLAT, "x c", c=normal(6)),
    "Dropout": one("Dropout", FLAT, opset=7, ratio=0.5),
    "Dropout, new": one("Dropout", FLAT, "x _ t", t=np.array(False)),
    "Expand": one("Expand", (1, 6), "x s", s=ints(1, 3, 6)),
    "Flatten": one("Flatten", IMAGE, axis=-2),
    "Gather": one("Gather", IMAGE, "x i", i=ints(3, -1, 0), axis=2),
    "Gemm": one("Gemm", FLAT, "x w b", w=normal(3, 6), b=normal(3), transB=1, alpha=0.5, beta=2.0),
    "Gemm, transposed": one("Gemm", (6, 1), "x w b", w=normal(6, 3), b=normal(1), transA=1, beta=3.0),
    "GlobalAveragePool": one("GlobalAveragePool", IMAGE),
    "GlobalMaxPool": one("GlobalMaxPool", (1, 2, 3, 2)),
    "HardSigmoid": one("HardSigmoid", FLAT, alpha=0.4, beta=0.3),
    "Identity": one("Identity", FLAT),
    "LeakyRelu": one("LeakyRelu", FLAT, alpha=0.1),
    "MatMul": one("MatMul", (1, 3, 6), "x w", w=normal(6, 4)),
    "MatMul, vector": one("MatMul", (6,), "x w", w=normal(6, 4)),
    "MatMul, left": one("MatMul", (1, 6, 2), "w x", w=normal(4, 6)),
    "Max": one("Max", FLAT, "x c x", c=normal(6)),
    "MaxPool": one("MaxPool", IMAGE, kernel_shape=[3, 2], strides=[2, 2], pads=[1, 0, 1, 1], ceil_mode=1, opset=10),
    "MaxPool, last window outside": one("MaxPool", IMAGE, kernel_shape=[2, 1], strides=[3, 3], ceil_mode=1),
    "Min": one("Min", FLAT, "c x", c=normal(1)),
    "Mul": one("Mul", IMAGE, "x c", c=normal(2, 1, 1)),
    "Neg": one("Neg", FLAT),
    "PRelu": one("PRelu", IMAGE, "x s", s=normal(2, 1, 1)),
    "Pad": one("Pad", IMAGE, "x p c", p=ints(0, 0, 1, 2, 0, 0, 0, -1), c=np.array(1.5, dtype=np.float32)),
    "Pad, old": one("Pad", IMAGE, opset=9, pads=[0, 0, 1, 2, 0, 0, 2, 1], mode="edge"),
    "Pad, reflect": one("Pad", IMAGE, "x p", p=ints(0, 0, 1, 2, 0, 0, 0, 1), mode="reflect"),
    "ReduceMax": one("ReduceMax", (1, 2, 3, 2), axes=[-1], keepdims=0),
    "ReduceMean": one("ReduceMean", IMAGE, axes=[1, 3]),
    "ReduceMean, new": one("ReduceMean", IMAGE, "x a", opset=18, a=ints(2), keepdims=0),
    "ReduceMin": one("ReduceMin", (1, 2, 3), axes=[1]),
    "ReduceSum": one("ReduceSum", IMAGE, "x a", a=ints(1)),
    "ReduceSum, of nothing": one("ReduceSum", IMAGE, noop_with_empty_axes=1),
    "Relu": one("Relu", FLAT),
    "Reshape": one("Reshape", IMAGE, "x s", s=ints(0, -1, 5)),
    "Sigmoid": one("Sigmoid", FLAT),
    "Slice": one("Slice", IMAGE, "x s e a t", s=ints(-1, 1), e=ints(-100, 4), a=ints(2, 3), t=ints(-2, 1)),
    "Slice, old": one("Slice", IMAGE, opset=9, starts=[1, 0], ends=[5, 2], axes=[2, 3]),
    "SpaceToDepth": one("SpaceToDepth", (1, 1, 4, 6), blocksize=2),
    "Split": Case(IMAGE, [("Split", "x s", {"axis": 2, "_outputs": 2}), ("Sub", "0 0.1", {})], {"s": ints(3, 3)}, 13),
    "Split, old": Case(IMAGE, [("Split", "x", {"axis": 2, "_outputs": 3}), ("Sub", "0.2 0.1", {})], {}, 7),
    "Split, unequal": Case(
        IMAGE, [("Split", "x", {"axis": 3, "num_outputs": 2, "_outputs": 2}), ("Concat", "0.1 0", {"axis": 3})], {}, 18
    ),
    "Squeeze": one("Squeeze", (1, 1, 6), "x a", a=ints(1)),
    "Sub": one("Sub", FLAT, "c x", c=normal(6)),
    "Sum": one("Sum", FLAT, "x c x", c=normal(6)),
    "Tanh": one("Tanh", FLAT),
    "Tile": one("Tile", (1, 2, 3), "x r", r=ints(1, 2, 2)),
    "Transpose": one("Transpose", IMAGE, perm=[0, 3, 1, 2]),
    "Unsqueeze": one("Unsqueeze", FLAT, opset=11, axes=[1, 3]),
    "Shape": Case(
        ("N", 2, 3),
        [
            ("Shape", "x", {}),
            ("Gather", "0 zero", {}),
            ("Unsqueeze", "1 zeros", {}),
            ("Concat", "2 minus", {"axis": 0}),
            ("Cast", "3", {"to": TensorProto.INT64}),
            ("Reshape", "x 4", {}),
            ("Constant", "", {"value": TENSOR}),
            ("ReduceProd", "6 zeros", {"keepdims": 1}),
            ("Mul", "5 7", {}),
        ],
        {"zero": np.array(0), "zeros": ints(0), "minus": ints(-1)},
        18,
    ),
    "folded": Case(
        ("N", 2),
        [
            ("ConstantOfShape", "two", {"value": helper.make_tensor("v", TensorProto.FLOAT, [1], [3.0])}),
            ("Sqrt", "0", {}),
            ("Range", "a b c", {}),
            ("Where", "flag 1 2", {}),
            ("Div", "x 3", {}),
        ],
        {
            "two": ints(2),
            "flag": np.array([True, False]),
            "a": np.array(1, dtype=np.float32),
            "b": np.array(3, dtype=np.float32),
            "c": np.array(1, dtype=np.float32),
        },
    ),
    "fixed batch axis reshaped away": Case(
        (1, 6), [("Reshape", "x s", {}), ("MatMul", "w 0", {}), ("Relu", "1", {})], {"s": ints(6), "w": normal(3, 6)}
    ),
}


def loaded(case: Case) -> onnx.ModelProto:
    return onnx.load_model_from_string(case.model())
