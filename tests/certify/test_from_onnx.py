import gzip
import inspect
import io
import subprocess
import sys
from contextlib import nullcontext, suppress

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx_cases import FLAT, IMAGE, ONNX_CASES, Case, ints, loaded, normal, one
from shared_data import shared_files
from torch_cases import TORCH_CASES

import certify
from certify.ir.chain import dense_chain
from certify.ir.from_onnx import graph_from_onnx
from certify.ir.from_torch import graph_from_torch
from certify.ir.onnx_rules import RULES
from certify.ir.runtime import Runtime

NETWORKS = shared_files("vnn/*/onnx/*") + shared_files("nets/*.onnx")
DENSE = shared_files("vnn/acasxu/onnx/*_1_1_*") + shared_files("vnn/[mr]*[cy]/onnx/*") + shared_files("vnn/rl*/onnx/*")


@pytest.mark.parametrize("path", NETWORKS)
def test_real_networks_are_what_onnxruntime_computes(path):
    graph = graph_from_onnx(path)  # raises where they differ
    assert len(graph.nodes) > 4


@pytest.mark.parametrize("path", DENSE)
def test_real_dense_networks_are_chains(path):
    require_chain(graph_from_onnx(path, check=False))


def require_chain(graph):
    x = np.random.default_rng(0).standard_normal((20, *graph.input_shape))
    value = x.reshape((20, -1))
    *hidden, (weight, bias) = dense_chain(graph)
    for w, b in hidden:
        value = np.maximum(value @ w.T + b, 0)
    np.testing.assert_allclose(value @ weight.T + bias, graph(x).reshape((20, -1)), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ONNX_CASES)
def test_operators_are_what_onnxruntime_computes(name):
    case = ONNX_CASES[name]
    graph = graph_from_onnx(case.model())  # raises where they differ by 1e-4
    x = np.random.default_rng(1).standard_normal((1, *graph.input_shape)).astype(np.float32)
    expected = Runtime(case.model())(x)
    np.testing.assert_allclose(graph(x.astype(np.float64)).ravel(), expected.ravel(), rtol=2e-6, atol=2e-6)


def test_every_operator_has_a_case():
    assert set(RULES) <= {name.split(",")[0] for name in ONNX_CASES}


@pytest.mark.parametrize("name", ["Conv", "Clip", "MatMul, left", "AveragePool", "Pad", "Sum"])
def test_chains_of_other_operations_are_dense(name):
    if name == "Sum":
        assert dense_chain(graph_from_onnx(one("Max", FLAT, "x c x", c=normal(6)).model())) is None
    else:
        require_chain(graph_from_onnx(ONNX_CASES[name].model()))


def test_chains_have_a_largest_matrix():
    assert dense_chain(graph_from_onnx(ONNX_CASES["Conv"].model()), max_entries=100) is None


@pytest.mark.parametrize("name", ["residual", "max_pool2d", "avg_pool1d", "conv_transpose2d", "batch_norm", "hardtanh"])
@pytest.mark.parametrize("opset", [10, 13, 18])
@pytest.mark.filterwarnings("ignore")
def test_exported_torch_networks_are_the_same_graph(name, opset):
    module, shape = TORCH_CASES[name]
    file = io.BytesIO()
    example = torch.zeros((1, *shape))
    torch.onnx.export(module.float(), example, file, opset_version=opset, dynamo=False)
    from_file = graph_from_onnx(gzip.compress(file.getvalue()))
    from_module = graph_from_torch(module, input_shape=shape)
    x = np.random.default_rng(2).standard_normal((5, *shape))
    expected = from_module(torch.as_tensor(x)).numpy()
    assert from_file.input_shape == shape
    assert from_file.output_shape == from_module.output_shape
    np.testing.assert_allclose(from_file(x), expected, rtol=1e-5, atol=1e-5)


def test_reading_onnx_imports_no_torch():
    code = "import sys, certify.ir.from_onnx, certify.ir.chain; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ---- shapes


def test_open_axes_have_to_be_given():
    case = one("Relu", ("N", 2, "length"))
    with pytest.raises(certify.InvalidInputError, match=r"open.*pass input_shape="):
        graph_from_onnx(case.model())
    assert graph_from_onnx(case.model(), input_shape=(2, 7)).input_shape == (2, 7)
    with pytest.raises(certify.InvalidInputError, match="the file declares"):
        graph_from_onnx(case.model(), input_shape=(3, 7))


def test_the_batch_axis_is_left_out():
    assert graph_from_onnx(one("Relu", ("N", 6)).model()).input_shape == (6,)
    assert graph_from_onnx(one("Relu", (1, 6)).model()).output_shape == (6,)
    assert graph_from_onnx(one("Relu", (6,)).model()).output_shape == (6,)
    assert graph_from_onnx(one("Relu", (1,)).model()).input_shape == (1,)
    assert graph_from_onnx(one("Relu", (5, 6)).model()).output_shape == (5, 6)


# ---- files that are no good


def damaged(change):
    model = loaded(ONNX_CASES["Gemm"])
    change(model)
    return model.SerializeToString()


def declared_huge(model):
    model.graph.initializer[0].dims[:] = [2**40, 2**20]


def declared_large(model):
    model.graph.initializer[0].dims[:] = [2**13, 2**13]


def in_another_file(location):
    def change(model):
        tensor = model.graph.initializer[0]
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=location)

    return change


def not_finite(model):
    values = np.full((3, 6), np.nan, dtype=np.float32)
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(values, "w"))


def unknown_operator(model):
    model.graph.node[0].op_type = "Softmax"
    del model.graph.node[0].input[1:], model.graph.node[0].attribute[:]


def custom_domain(model):
    model.graph.node[0].domain = "evil.example"


def undefined_input(model):
    model.graph.node[0].input[0] = "nowhere"


def strings(model):
    model.graph.initializer[0].CopyFrom(helper.make_tensor("w", TensorProto.STRING, [1], [b"x"]))


def branches(model):
    model.graph.node[0].attribute.append(helper.make_attribute("then", model.graph))


def two_inputs(model):
    model.graph.input.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, [1]))


def no_shape(model):
    model.graph.input[0].type.tensor_type.ClearField("shape")


def whole_numbers(model):
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.INT64


GEMM = ONNX_CASES["Gemm"].model()
LONG = {"a": ints(0)[0], "b": ints(2**60)[0], "c": ints(1)[0]}
TALL = {"a": normal(2**15, 1), "b": normal(1, 2**15)}
LOW = np.zeros(2**15, dtype=np.int64)
WIDE = {"pads": [2**16] * 4, "strides": [2**18] * 2}


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (b"", certify.InvalidInputError, "no ONNX graph"),
        (b"not a network at all", certify.InvalidInputError, "no ONNX model"),
        (GEMM[: len(GEMM) // 2], certify.InvalidInputError, "truncated"),
        (gzip.compress(GEMM)[:-20], certify.InvalidInputError, "network is a broken gzip archive"),
        (b"\x1f\x8b broken", certify.InvalidInputError, "network is a broken gzip archive"),
        (damaged(declared_huge), certify.InvalidInputError, "at most"),
        (damaged(declared_large), certify.InvalidInputError, "holds 18 entries"),
        (damaged(in_another_file("/etc/passwd")), certify.InvalidInputError, "pass the path of the model"),
        (damaged(not_finite), certify.InvalidInputError, r"'Gemm_0' \(Gemm\).*NaN"),
        (damaged(unknown_operator), certify.UnsupportedOp, r"'Gemm_0' \(Softmax\)"),
        (damaged(custom_domain), certify.UnsupportedOp, r"'Gemm_0'.*evil\.example"),
        (damaged(undefined_input), certify.InvalidInputError, "reads 'nowhere'"),
        (damaged(strings), certify.UnsupportedOp, "holds object"),
        (damaged(branches), certify.UnsupportedOp, "subgraph"),
        (damaged(two_inputs), certify.UnsupportedOp, r"inputs \['x', 'z'\]"),
        (damaged(no_shape), certify.InvalidInputError, "no shape"),
        (damaged(whole_numbers), certify.UnsupportedOp, "not floating point"),
        (one("Relu", (1, 2**20, 2**20)).model(), certify.InvalidInputError, "at most"),
        (one("Expand", FLAT, "x s", s=ints(2**20, 2**20, 6)).model(), certify.InvalidInputError, "at most"),
        (one("Tile", FLAT, "x r", r=ints(2**20, 2**20)).model(), certify.InvalidInputError, "at most"),
        (one("Pad", FLAT, "x p", p=ints(0, 0, 0, 2**40)).model(), certify.InvalidInputError, "at most"),
        (
            Case(FLAT, [("ConstantOfShape", "s", {}), ("Add", "x 0", {})], {"s": ints(2**20, 2**20)}).model(),
            certify.InvalidInputError,
            "at most",
        ),
        (
            Case(FLAT, [("Range", "a b c", {}), ("Add", "x 0", {})], LONG).model(),
            certify.InvalidInputError,
            "at most",
        ),
        (
            Case(FLAT, [("Mul", "a b", {}), ("Add", "x 0", {})], TALL).model(),
            certify.InvalidInputError,
            "at most",
        ),
        (
            Case(FLAT, [("MatMul", "a b", {}), ("Add", "x 0", {})], TALL).model(),
            certify.InvalidInputError,
            r"'MatMul_0'.*at most",
        ),
        (
            Case(FLAT, [("Gather", "a i", {}), ("Add", "x 0", {})], {"a": TALL["b"], "i": LOW}).model(),
            certify.InvalidInputError,
            r"'Gather_0'.*at most",
        ),
        (one("Gather", (1, 2**15), "x i", i=LOW).model(), certify.InvalidInputError, "at most"),
        *(
            (one(kind, (1, 1, 4, 4), **WIDE, kernel_shape=[2**17] * 2).model(), certify.InvalidInputError, "at most")
            for kind in ("MaxPool", "AveragePool")
        ),
        (
            one("MaxPool", (1, 1, 2**10, 2**10), kernel_shape=[2**8] * 2).model(),
            certify.InvalidInputError,
            "what its windows meet",
        ),
        (one("Conv", (1, 1, 4, 4), "x w", w=normal(1, 1, 3, 3), **WIDE).model(), certify.InvalidInputError, "padded"),
        (
            one(
                "ConvTranspose", (1, 1, 4, 4), "x w", w=normal(1, 1, 3, 3), pads=[2**17] * 4, strides=[2**17] * 2
            ).model(),
            certify.InvalidInputError,
            "padding",
        ),
        (one("MatMul", FLAT, "x x").model(), certify.UnsupportedOp, "depend on the input"),
        (one("MatMul", FLAT, "x w", w=normal(5, 2)).model(), certify.InvalidInputError, r"'MatMul_0'.*last axis of 5"),
        (one("Reshape", FLAT, "x s", s=ints(7)).model(), certify.InvalidInputError, "malformed"),
        (one("Div", FLAT, "x c", c=np.zeros(6, dtype=np.float32)).model(), certify.InvalidInputError, "divide by zero"),
        (one("Transpose", FLAT, perm=[0, 5]).model(), certify.InvalidInputError, "malformed"),
        (one("Conv", IMAGE, "x w", w=normal(3, 2, 9, 9)).model(), certify.InvalidInputError, "does not fit"),
        (
            one("Conv", IMAGE, "x w", w=normal(3, 2, 2, 2), strides=[0]).model(),
            certify.InvalidInputError,
            "no window",
        ),
        (one("Cast", FLAT, to=TensorProto.INT64).model(), certify.UnsupportedOp, "rounds"),
        (Case(FLAT, [("Identity", "c", {})], {"c": normal(2)}).model(), certify.InvalidInputError, "does not depend"),
    ],
)
def test_bad_files_are_named(content, error, message):
    with pytest.raises(error, match=message):
        graph_from_onnx(content)


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ([("Relu", "x", {}), ("Relu", "0", {}), ("Relu", "1", {})], None),
        ([*[("ConstantOfShape", "s", {})] * 5, ("Relu", "x", {})], "computed constants have more than 100"),
        ([("Tile", "x r", {}), *[("Relu", f"{k}", {}) for k in range(3)]], "values have more than 100"),
    ],
)
def test_values_and_computed_constants_have_a_limit_in_all(nodes, message, monkeypatch):
    monkeypatch.setattr("certify.ir.build._MOST", 100)
    content = Case(FLAT, nodes, {"s": ints(24), "r": ints(1, 5)}).model()
    with nullcontext() if message is None else pytest.raises(certify.InvalidInputError, match=message):
        graph_from_onnx(content)


def test_bad_sources_are_named(tmp_path):
    with pytest.raises(certify.InvalidTypeError, match="expected a path"):
        inspect.unwrap(graph_from_onnx)(3)
    with pytest.raises(certify.InvalidInputError, match="cannot read"):
        graph_from_onnx(tmp_path / "absent.onnx")
    with pytest.raises(certify.InvalidInputError, match="cannot read"):
        graph_from_onnx(tmp_path)


@pytest.mark.parametrize(
    "location", ["../outside.bin", "/etc/passwd", "", "sub/../../outside.bin", "link.bin", "absent"]
)
def test_external_data_stay_in_the_folder(location, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "outside.bin").write_bytes(bytes(1000))
    (folder / "link.bin").symlink_to(tmp_path / "outside.bin")
    (folder / "net.onnx").write_bytes(damaged(in_another_file(location)))
    with pytest.raises(certify.InvalidInputError, match="no file inside the model's folder"):
        graph_from_onnx(folder / "net.onnx")


def test_external_data_inside_the_folder_are_read(tmp_path):
    model = loaded(ONNX_CASES["Gemm"])
    onnx.save(model, tmp_path / "net.onnx", save_as_external_data=True, size_threshold=0, location="weights.bin")
    graph = graph_from_onnx(tmp_path / "net.onnx")
    np.testing.assert_array_equal(graph.nodes[1].op.weight, graph_from_onnx(GEMM).nodes[1].op.weight)
    (tmp_path / "weights.bin").write_bytes(b"short")
    with pytest.raises(certify.InvalidInputError, match="ends before"):
        graph_from_onnx(tmp_path / "net.onnx")


def test_an_operator_read_wrongly_is_noticed(monkeypatch):
    monkeypatch.setitem(RULES, "Relu", lambda builder, call, value: builder.leaky(value, 0.01))
    with pytest.raises(certify.ImportMismatchError, match="differs from onnxruntime"):
        graph_from_onnx(ONNX_CASES["Relu"].model())


def test_random_bytes_and_flipped_bits_never_escape():
    """Whatever a damaged file holds, the answer is a graph or one of the package's own errors."""
    rng = np.random.default_rng(3)
    for name in ("Gemm", "Conv", "Shape", "Slice", "MaxPool"):
        content = np.frombuffer(ONNX_CASES[name].model(), dtype=np.uint8)
        for _ in range(60):
            broken = content.copy()
            places = rng.integers(0, len(broken), int(rng.integers(1, 6)))
            broken[places] = rng.integers(0, 256, len(places))
            with suppress(certify.CertifyError):
                graph_from_onnx(broken.tobytes(), check=False)
