"""Property files answered, from Python and from the command line: against exact arithmetic and onnxruntime."""

import contextlib
import os
import re
import subprocess
import sys
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from time import perf_counter

import exact_phases
import numpy as np
import pytest
import torch

import certify
from certify.cli import CAPABILITIES, main
from certify.errors import InvalidInputError, QueryError
from certify.properties.query import Case, Query, enclose
from certify.queries import verify_vnnlib
from certify.search.deadline import Deadline, OutOfTimeError
from certify.search.inputs.chain import Chain
from certify.search.inputs.search import InputSearch
from certify.search.replay import representable
from certify.verdict import Answer

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
helper, TensorProto = onnx.helper, onnx.TensorProto

SHARED = Path(os.environ.get("CONVEXNN_SHARED", Path(__file__).resolve().parents[3] / "shared")) / "vnn"


def write_onnx(path, layers):
    """A file of Gemm and Relu nodes, in float32."""
    numpy_helper = onnx.numpy_helper
    nodes, constants, last = [], [], "x"
    for k, (W, b) in enumerate(layers):
        constants += [
            numpy_helper.from_array(np.asarray(W, np.float32), f"W{k}"),
            numpy_helper.from_array(np.asarray(b, np.float32), f"b{k}"),
        ]
        nodes.append(helper.make_node("Gemm", [last, f"W{k}", f"b{k}"], [f"z{k}"], transB=1))
        last = f"z{k}"
        if k < len(layers) - 1:
            nodes.append(helper.make_node("Relu", [last], [f"a{k}"]))
            last = f"a{k}"
    sizes = (np.shape(layers[0][0])[1], np.shape(layers[-1][0])[0])
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, n])
        for name, n in zip(("x", last), sizes, strict=True)
    ]
    graph = helper.make_graph(nodes, "net", values[:1], values[1:], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    path.write_bytes(model.SerializeToString())
    return str(path)


def written(lower, upper, polytopes):
    """A VNN-LIB 1.0 text with the doubles in full."""
    n, m = len(lower), polytopes[0][0].shape[1]
    lines = [f"(declare-const {kind}_{j} Real)" for kind, count in (("X", n), ("Y", m)) for j in range(count)]
    for j, (low, high) in enumerate(zip(lower, upper, strict=True)):
        lines.append(f"(assert (and (>= X_{j} {float(low)!r}) (<= X_{j} {float(high)!r})))")
    cases = [
        "(and "
        + " ".join(
            "(<= (+ " + " ".join(f"(* {float(a)!r} Y_{j})" for j, a in enumerate(row)) + f") {float(c)!r})"
            for row, c in zip(A, b, strict=True)
        )
        + ")"
        for A, b in polytopes
    ]
    return "\n".join([*lines, "(assert (or " + " ".join(cases) + "))"])


def float32_problem(seed):
    """A random problem whose weights are float32 numbers."""
    layers, lower, upper, polytopes = exact_phases.random_problem(seed)
    layers = [(W.astype(np.float32).astype(float), b.astype(np.float32).astype(float)) for W, b in layers]
    return layers, lower, upper, polytopes


@pytest.fixture
def small(tmp_path):
    """y = relu(x) + relu(-x) = |x| on [-1, 1]."""
    layers = [(np.array([[1.0], [-1.0]]), np.zeros(2)), (np.array([[1.0, 1.0]]), np.zeros(1))]
    return write_onnx(tmp_path / "abs.onnx", layers), tmp_path


def ask(folder, condition):
    path = folder / "q.vnnlib"
    box = "(declare-const X_0 Real)(declare-const Y_0 Real)(assert (<= X_0 1))(assert (>= X_0 -1))"
    path.write_text(box + condition)
    return path


@pytest.mark.parametrize("seed", range(30))
def test_answers_agree_with_exact_arithmetic_and_witnesses_with_the_runtime(tmp_path, seed):
    layers, lower, upper, polytopes = float32_problem(seed)
    network, query = write_onnx(tmp_path / "net.onnx", layers), tmp_path / "q.vnnlib"
    query.write_text(written(lower, upper, polytopes))
    verdict = verify_vnnlib(network, query, timeout=0.5)
    if verdict.answer is Answer.UNSAT:
        assert not exact_phases.satisfiable(layers, lower, upper, polytopes)
        assert verdict.bound == 0
    assert (verdict.witness is not None) == (verdict.answer is Answer.SAT)
    if verdict.witness is not None:
        session = onnxruntime.InferenceSession(network, providers=["CPUExecutionProvider"])
        (outputs,) = session.run(None, {"x": verdict.witness.inputs})
        np.testing.assert_array_equal(outputs, verdict.witness.outputs)
        y = outputs.astype(float).ravel()
        assert any(Case(lower, upper, A, b).holds_for(y) for A, b in polytopes)
        x = verdict.witness.inputs.astype(float).ravel()
        gap = np.maximum(lower - x, x - upper).max()
        assert gap <= 1e-7 * np.abs(x).max()
        assert gap <= max(verdict.witness.excess, 0)


def test_the_public_function_and_a_query_without_a_file(small):
    network, _ = small
    one = np.ones(1)
    verdict = certify.verify_vnnlib(network, Query((Case(-one, one, -one[:, None], -2 * one),)))
    assert verdict.answer is Answer.UNSAT
    assert "UNSAT" in str(verdict)


def test_a_torch_module_gets_the_answers_of_its_onnx_file(small):
    _, folder = small
    network = torch.nn.Sequential(torch.nn.Linear(1, 2), torch.nn.ReLU(), torch.nn.Linear(2, 1)).eval()
    with torch.no_grad():
        for parameter, value in zip(
            network.parameters(), ([[1.0], [-1.0]], [0.0, 0.0], [[1.0, 1.0]], [0.0]), strict=True
        ):
            parameter.copy_(torch.tensor(value))
    for condition, answer in (("(>= Y_0 2)", Answer.UNSAT), ("(>= Y_0 0.5)", Answer.SAT)):
        verdict = verify_vnnlib(network, ask(folder, f"(assert {condition})"))
        assert verdict.answer is answer
    with torch.no_grad():
        outputs = network(torch.from_numpy(verdict.witness.inputs)).numpy()
    np.testing.assert_array_equal(outputs, verdict.witness.outputs)


def test_boundaries_count_as_unsafe_unless_strict(small):
    network, folder = small
    answers = [
        verify_vnnlib(network, ask(folder, f"(assert ({op} Y_0 1))"), timeout=2).answer for op in (">=", ">", "=")
    ]
    assert answers[0] is answers[2] is Answer.SAT
    assert answers[1] is not Answer.SAT


@pytest.mark.parametrize("method", ["inputs", "phases"])
@pytest.mark.parametrize("seed", [1, 8])
def test_layers_of_a_module_are_not_merged_behind_the_proof(seed, method):
    """Two layers whose products cancel to the last digit: merged, they are another network."""
    generator = np.random.default_rng(seed)
    a, b, c = 1 + generator.random(3)
    weights = np.array([[a], [b]]), np.array([[c, -c * a / b]])
    network = torch.nn.Sequential(torch.nn.Linear(1, 2, bias=False), torch.nn.Linear(2, 1, bias=False)).double().eval()
    with torch.no_grad():
        for layer, weight in zip(network, weights, strict=True):
            layer.weight.copy_(torch.from_numpy(weight))
    exact = sum(Fraction(v) * Fraction(w) for v, w in zip(weights[0][:, 0], weights[1][0], strict=True))
    case = Case(np.ones(1), np.ones(1), np.ones((1, 1)), np.array([enclose(exact)[1]]))
    assert verify_vnnlib(network, Query((case,)), method=method).answer is not Answer.UNSAT


def test_a_case_without_output_constraints_is_satisfiable(small):
    network, folder = small
    assert verify_vnnlib(network, ask(folder, "")).answer is Answer.SAT


def test_open_axes_are_what_the_caller_says(tmp_path):
    graph = helper.make_graph(
        [helper.make_node("ReduceSum", ["x"], ["y"], keepdims=0)],
        "sum",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 2, "length"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    )
    network = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    query = Query((Case(np.zeros(6), np.ones(6), -np.ones((1, 1)), np.array([-5.0])),))
    verdict = verify_vnnlib(network, query, input_shape=(2, 3))
    assert verdict.answer is Answer.SAT
    assert verdict.witness.inputs.shape == (1, 2, 3)
    assert verdict.witness.outputs >= 5


@pytest.mark.parametrize("mean", [49.0, 98.0, 103.0])
def test_a_batch_normalisation_that_cancels_is_no_proof(mean):
    """x = 0 gives 1 - mean / mean = 0, where 1 - mean * (1 / mean) is not 0 in double precision."""
    numbers = {"scale": 1.0, "offset": 1.0, "mean": mean, "variance": mean**2}
    graph = helper.make_graph(
        [helper.make_node("BatchNormalization", ["x", *numbers], ["y"], epsilon=0.0)],
        "norm",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1])],
        [helper.make_tensor(name, TensorProto.FLOAT, [1], [value]) for name, value in numbers.items()],
    )
    network = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    for sign in (1.0, -1.0):
        query = Query((Case(np.zeros(1), np.zeros(1), np.full((1, 1), sign), np.zeros(1)),))
        for method in ("inputs", "phases"):
            assert verify_vnnlib(network, query, method=method).answer is not Answer.UNSAT


@pytest.mark.parametrize("mean", [49.0, 98.0, 103.0])
@pytest.mark.parametrize("method", ["inputs", "phases"])
def test_a_batch_normalisation_of_torch_that_cancels_is_no_proof(mean, method):
    """The same, as torch has it: the real output at x = 0 is 0, which is unsafe from both sides."""
    norm = torch.nn.BatchNorm1d(1, eps=0.0).double().eval()
    torch.nn.init.ones_(norm.bias)
    norm.running_mean[:], norm.running_var[:] = mean, mean**2
    for sign in (1.0, -1.0):
        query = Query((Case(np.zeros(1), np.zeros(1), np.array([[sign]]), np.zeros(1)),))
        assert verify_vnnlib(norm, query, method=method).answer is not Answer.UNSAT


def test_a_box_without_a_float32_has_the_nearest_one(small):
    network, folder = small
    verdict = verify_vnnlib(network, ask(folder, "(assert (= X_0 0.1)) (assert (<= Y_0 0.5))"))
    assert verdict.answer is Answer.SAT
    assert 0 < verdict.witness.excess < 1e-8
    assert "outside the written box" in str(verdict)


def test_a_point_of_the_searched_box_is_moved_into_the_written_one():
    """Which may be smaller by more than a unit in the last place, at either end."""
    case = Case(
        np.zeros(2),
        np.ones(2),
        np.zeros((0, 1)),
        np.zeros(0),
        written_lower=np.full(2, 0.25),
        written_upper=np.full(2, 0.75),
    )
    assert representable(np.array([0.0, 1.0]), case, np.dtype(np.float64)).tolist() == [0.25, 0.75]


def test_representable_points_stay_inside_where_they_can():
    generator = np.random.default_rng(0)
    for _ in range(200):
        lower = generator.normal(size=4)
        upper = lower + generator.choice([0.0, 1e-9, 1e-7, 1.0], size=4)
        case = Case(lower, upper, np.zeros((0, 1)), np.zeros(0))
        x = np.clip(lower + generator.uniform(size=4) * (upper - lower), lower, upper)
        point = representable(x, case, np.dtype(np.float32)).astype(float)
        up = np.nextafter(lower.astype(np.float32), np.float32(np.inf)).astype(float)
        first = np.where(lower.astype(np.float32).astype(float) >= lower, lower.astype(np.float32), up)
        assert ((lower <= point) & (point <= upper) | (first > upper)).all()
        assert (np.abs(point - x) <= 2e-7 * np.abs(x)).all()


def test_sizes_and_types_have_to_fit(small):
    network, folder = small
    query = folder / "q.vnnlib"
    query.write_text(written([0.0, 0.0], [1.0, 1.0], [(np.ones((1, 1)), np.ones(1))]))
    with pytest.raises(QueryError, match="2 inputs and 1 outputs, the network 1 and 1"):
        verify_vnnlib(network, query)
    with pytest.raises(InvalidInputError, match="timeout"):
        verify_vnnlib(network, ask(folder, ""), timeout=0)
    with pytest.raises(InvalidInputError, match="method"):
        verify_vnnlib(network, ask(folder, ""), method="magic")


def wide_problem(tmp_path):
    """Too hard for the time it is given."""
    generator = np.random.default_rng(0)
    sizes = [8, 60, 60, 60, 3]
    layers = [(generator.normal(size=(m, n)) / np.sqrt(n) * 2, generator.normal(size=m)) for n, m in pairwise(sizes)]
    network, query = write_onnx(tmp_path / "wide.onnx", layers), tmp_path / "q.vnnlib"
    A = np.eye(3)[:1]
    query.write_text(written([-2.0] * 8, [2.0] * 8, [(A, np.array([-60.0]))]))
    return network, query


@pytest.mark.parametrize("limit", [0.3, 1.0])
def test_the_time_limit_is_kept(tmp_path, limit):
    network, query = wide_problem(tmp_path)
    start = perf_counter()
    verdict = verify_vnnlib(network, query, timeout=limit)
    assert verdict.answer is Answer.TIMEOUT
    assert perf_counter() - start < limit + 3  # on a busy machine; the benchmarks say how well it is kept
    assert verdict.bound < 0


def test_the_time_limit_is_kept_by_wide_networks():
    generator = np.random.default_rng(0)
    sizes = [6, 1500, 1500, 1500, 2]
    layers = [(generator.normal(size=(m, n)) / np.sqrt(n), generator.normal(size=m)) for n, m in pairwise(sizes)]
    case = Case(np.full(6, -1.0), np.ones(6), np.eye(2)[:1], np.array([-1e3]))
    deadline = Deadline(0.5)
    with contextlib.suppress(OutOfTimeError):
        search = InputSearch.of(Chain.of(layers), [case], deadline=deadline)
        search.run(search.start(), lambda point, k: False, deadline)
    assert deadline.elapsed < 3.5


# --- The command line ---


def test_verify_prints_the_answer_and_the_witness(small, capsys):
    network, folder = small
    assert main(["verify", str(ask(folder, "(assert (>= Y_0 2))")), "--network", f"N={network}"]) == 0
    assert capsys.readouterr().out == "unsat\n"
    assert main(["verify", str(ask(folder, "(assert (>= Y_0 0.5))")), "--network", f"N={network}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert (lines[0], lines[1], lines[3]) == ("sat", "X float32 [1,1]", "Y float32 [1,1]")
    assert abs(float(lines[2])) == float(lines[4]) >= 0.5


def test_run_instance_writes_the_results_of_vnn_comp(small):
    network, folder = small
    scripts = Path(__file__).resolve().parents[2] / "tools" / "vnncomp"
    environment = os.environ | {"CERTIFY": f"{sys.executable} -m certify", "WORKERS": "1"}
    texts = {}
    for name, condition in (("sat", "(>= Y_0 0.5)"), ("unsat", "(>= Y_0 2)"), ("error", "(>= Y_7 2)")):
        query, results = str(ask(folder, f"(assert {condition})")), folder / f"{name}.txt"
        prepare = ["bash", str(scripts / "prepare_instance.sh"), "v1", "test", network, query]
        subprocess.run(prepare, check=True)
        run = ["bash", str(scripts / "run_instance.sh"), "v1", "test", network, query, str(results), "10"]
        subprocess.run(run, check=True, capture_output=True, env=environment)
        texts[name] = results.read_text().split("\n", 1)
    assert {name: lines[0] for name, lines in texts.items()} == {name: name for name in texts}
    assert re.fullmatch(r"\(\(X_0 \S+\)\s+\(Y_0 \S+\)\)\s*", texts["sat"][1])
    assert texts["unsat"][1] == ""


def test_verify_uses_the_names_of_version_2(small, capsys):
    pytest.importorskip("vnnlib")
    network, folder = small
    query = folder / "two.vnnlib"
    query.write_text(
        "(vnnlib-version <2.0>)(declare-network f (declare-input In float32 [1,1]) (declare-output Out float32 [1,1]))"
        "(assert (and (<= In[0,0] 1.0) (>= In[0,0] -1.0)))(assert (>= Out[0,0] 0.5))"
    )
    assert main(["verify", str(query), "--network", f"f={network}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert (lines[0], lines[1], lines[3]) == ("sat", "In float32 [1,1]", "Out float32 [1,1]")
    assert main(["verify", str(query), "--network", f"g={network}"]) == 2
    assert "declares the network 'f'" in capsys.readouterr().err
    query.write_text(query.read_text().replace("float32", "float64"))
    assert main(["verify", str(query), "--network", f"f={network}"]) == 2
    assert "float64" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--network", "N=absent.onnx"], "absent.onnx"),
        (["--network", "absent.onnx"], "NAME=FILE"),
        (["--network", "N=a", "--network", "M=b"], "NAME=FILE"),
        (["--network", "N=abs.onnx", "--timeout", "0"], "timeout is 0.0; expected a positive number"),
        (["--network", "N=abs.onnx", "--timeout", "-5"], "timeout is -5.0; expected a positive number"),
        (["--network", "N=abs.onnx", "--timeout", "nan"], "timeout is nan; expected a positive number"),
        (["--network", "N=abs.onnx", "--results", "absent/results.txt"], "absent/results.txt"),
        (["--network", "N=future.onnx"], "onnxruntime cannot load the network"),
    ],
)
def test_bad_input_ends_with_status_2_and_prints_no_answer(small, capsys, monkeypatch, arguments, message):
    network, folder = small
    monkeypatch.chdir(folder)
    model = onnx.load(network)
    model.opset_import[0].version = 99
    onnx.save(model, folder / "future.onnx")
    assert main(["verify", str(ask(folder, "")), *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert message in captured.err


def test_supports_claims_no_more_than_is_read(small):
    """LIN would be linear expressions of inputs, too."""
    with pytest.raises(QueryError, match="relates an input to outputs"):
        verify_vnnlib(small[0], ask(small[1], "(assert (<= Y_0 X_0))"))
    assert CAPABILITIES["arithmetic-complexity-theories"] == ("BND", "OUTC")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 broken", "cut", "flipped", "array"])
def test_damaged_data_are_named(small, capsys, content):
    network, folder = small
    path = folder / "data.npz"
    np.savez_compressed(path, X=np.arange(5000.0)[:, None], y=np.zeros(5000, dtype=int))
    whole = path.read_bytes()
    if content == "array":
        with path.open("wb") as stream:
            np.save(stream, np.zeros(3))
    else:
        flipped = whole[:300] + bytes(200) + whole[500:]
        path.write_bytes({"cut": whole[:-100], "flipped": flipped}.get(content, content))
    assert main(["accuracy", network, str(path), "--eps", "0.1"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert "damaged" in captured.err


def test_data_that_unpack_to_too_much_are_refused(small, capsys, monkeypatch):
    network, folder = small
    monkeypatch.setattr("certify.cli._LARGEST_DATA", 2**20)
    np.savez_compressed(folder / "data.npz", X=np.zeros((2**18, 1)), y=np.zeros(2**18, dtype=np.uint8))
    assert (folder / "data.npz").stat().st_size < 2**14
    assert main(["accuracy", network, str(folder / "data.npz"), "--eps", "0.1"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "unpacks to 2359" in captured.err


def test_a_limit_is_a_count(small, capsys):
    network, folder = small
    np.savez(folder / "data.npz", X=np.zeros((3, 1)), y=np.zeros(3, dtype=int))
    assert main(["accuracy", network, str(folder / "data.npz"), "--eps", "0.1", "--limit", "-1"]) == 2
    assert "--limit is -1" in capsys.readouterr().err


def test_supports_answers_every_capability(capsys):
    for name in CAPABILITIES:
        assert main(["supports", f"--{name}"]) == 0
        assert capsys.readouterr().out.strip()
    main(["supports", "--onnx-operators"])
    assert {"Gemm", "Relu", "Conv"} <= set(capsys.readouterr().out.split())


def test_accuracy_counts(tmp_path, capsys):
    generator = np.random.default_rng(1)
    layers = [(generator.normal(size=(6, 3)), np.zeros(6)), (generator.normal(size=(2, 6)), np.zeros(2))]
    network = write_onnx(tmp_path / "net.onnx", layers)
    X = generator.normal(size=(10, 3))
    y = (np.maximum(X @ layers[0][0].T, 0) @ layers[1][0].T).argmax(1)
    np.savez(tmp_path / "data.npz", X=X, y=y)
    arguments = ["accuracy", network, str(tmp_path / "data.npz"), "--method", "crown"]
    assert main([*arguments, "--eps", "1e-6"]) == 0
    assert "certified  100.00%" in capsys.readouterr().out
    np.savez(tmp_path / "data.npz", X=X)
    assert main([*arguments, "--eps", "0.1"]) == 2
    assert "expected X" in capsys.readouterr().err


def test_the_process_answers_without_torch(small):
    network, folder = small
    query = ask(folder, "(assert (>= Y_0 2))")
    code = (
        "import sys; from certify.cli import main;"
        f"status = main(['verify', {str(query)!r}, '--network', 'N=' + {network!r}]);"
        "sys.exit(status or 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "unsat\n")


@pytest.mark.parametrize(("limit", "answer"), [(2.5, "unsat"), (0.2, "sat")])
def test_a_dense_network_of_many_inputs_is_bounded_and_sampled_before_torch_is_loaded(tmp_path, limit, answer):
    """y = relu(mean of 40 inputs) <= 1 on [0, 1]^40, 1/2 in the middle."""
    network = write_onnx(tmp_path / "wide.onnx", [(np.full((1, 40), 1 / 40), np.zeros(1)), (np.ones((1, 1)), [0.0])])
    lines = ["(declare-const Y_0 Real)", f"(assert (>= Y_0 {limit}))"]
    for i in range(40):
        lines += [f"(declare-const X_{i} Real)", f"(assert (>= X_{i} 0))", f"(assert (<= X_{i} 1))"]
    query = tmp_path / "wide.vnnlib"
    query.write_text("\n".join(lines))
    code = (
        "import sys; from certify.cli import main;"
        f"status = main(['verify', {str(query)!r}, '--network', 'N=' + {network!r}]);"
        "sys.exit(status or 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.split("\n")[0]) == (0, answer)


@pytest.mark.parametrize(
    ("network", "prop", "answer"),
    [("1_1", 1, "UNSAT"), ("1_1", 3, "UNSAT"), ("2_1", 2, "SAT"), ("1_1", 5, "UNSAT"), ("2_9", 8, "SAT")],
)
def test_known_answers_of_acas_xu(network, prop, answer):
    folder = SHARED / "acasxu"
    if not folder.exists():
        pytest.skip(f"{folder} is absent; set CONVEXNN_SHARED")
    verdict = verify_vnnlib(
        folder / f"onnx/ACASXU_run2a_{network}_batch_2000.onnx", folder / f"vnnlib/prop_{prop}.vnnlib", timeout=60
    )
    assert verdict.answer.name == answer
