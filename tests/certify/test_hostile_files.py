"""Files that somebody damaged or wrote to do harm: typed errors, a limit on memory, and no answer printed."""

import gzip
import random
import resource
import subprocess
import sys
from contextlib import suppress

import numpy as np
import pytest
from shared_data import SHARED

import certify
from certify.cli import main
from certify.errors import QueryError
from certify.properties import read_vnnlib
from certify.properties.vnnlib import parse_vnnlib

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from mutants import changed_bytes, changed_model, changed_text  # noqa: E402
from onnx_cases import FLAT, ONNX_CASES, Case, ints, normal, one  # noqa: E402

from certify.ir.from_onnx import graph_from_onnx  # noqa: E402

VERSION_1 = """
(declare-const X_0 Real) (declare-const X_1 Real) (declare-const Y_0 Real) (declare-const Y_1 Real)
(assert (and (<= X_0 1) (>= X_0 -1))) (assert (and (<= X_1 1) (>= X_1 -1)))
(assert (or (and (<= Y_0 (* 2 Y_1)) (>= (+ Y_1 (- Y_0) 3) 0.1)) (and (< X_0 0.5) (> Y_1 0.25)) (= Y_1 1e-3)))
"""
VERSION_2 = """(vnnlib-version <2.0>)
(declare-network N (declare-input In float32 [1,2]) (declare-output Out float32 [3]))
(assert (and (<= In[0,0] 1.0) (>= In[0,0] 0.0) (<= In[0,1] 1.0) (>= In[0,1] 0.0)))
(assert (or (<= Out[0] (* 2.0 Out[1])) (and (>= Out[0] -1.0) (== (+ Out[0] Out[1] (- Out[2])) 0.5))))
"""


def read_mutants(contents, change, seeds, check=False):
    """Reads each seed's mutant: graphs and the package's own errors are fine, anything else is raised."""
    read = 0
    for seed in seeds:
        rng = random.Random(seed)
        with suppress(certify.CertifyError):
            graph_from_onnx(change(rng.choice(contents), rng), check=check)
            read += 1
    return read


@pytest.mark.parametrize("change", [changed_bytes, changed_model], ids=["bytes", "meaning"])
def test_damaged_networks_are_read_or_refused(change):
    contents = [case.model() for case in ONNX_CASES.values()]
    assert read_mutants(contents, change, range(1000)) > 20


@pytest.mark.slow
@pytest.mark.parametrize("change", [changed_bytes, changed_model], ids=["bytes", "meaning"])
def test_damaged_real_networks_are_read_or_refused(change):
    files = [path for path in SHARED.glob("vnn/*/onnx/*.onnx") if path.stat().st_size < 2**20]
    if not files:
        pytest.skip(f"{SHARED / 'vnn'} has no networks")
    contents = [path.read_bytes() for path in files] + [case.model() for case in ONNX_CASES.values()]
    assert read_mutants(contents, change, range(5000)) > 100
    assert read_mutants(contents, change, range(5000, 6000), check=True) > 10


def parse_mutants(texts, seeds):
    parsed = 0
    for seed in seeds:
        rng = random.Random(seed)
        with suppress(QueryError):
            parse_vnnlib(changed_text(rng.choice(texts), rng))
            parsed += 1
    return parsed


def test_damaged_properties_are_read_or_refused():
    pytest.importorskip("vnnlib")
    assert parse_mutants([VERSION_1, VERSION_2], range(1500)) > 3


@pytest.mark.slow
def test_damaged_real_properties_are_read_or_refused():
    pytest.importorskip("vnnlib")
    files = [path for path in SHARED.glob("vnn/**/*.vnnlib*") if path.name.endswith((".vnnlib", ".vnnlib.gz"))]
    if not files:
        pytest.skip(f"{SHARED / 'vnn'} has no properties")
    texts = [content.decode() for content in map(unpacked_file, files) if len(content) < 60_000]
    assert parse_mutants([*texts[:60], VERSION_1, VERSION_2], range(20_000)) > 200


def unpacked_file(path):
    content = path.read_bytes()
    return gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (VERSION_1 + "((assert) (<= Y_0 1))", "line 5: a command has no name"),
        (VERSION_2 + "; n\u00e9\n(assert (<= Out[0] é))", "line 6: the character 'é' is no part of VNN-LIB"),
        (VERSION_2 + "(assert (<= Out[99999999999999999999] 1.0))", "it cannot be parsed (IndexError: sto"),
    ],
)
def test_texts_that_the_fuzzing_found(text, message):
    if text.startswith(VERSION_2):
        pytest.importorskip("vnnlib")
    with pytest.raises(QueryError) as caught:
        parse_vnnlib(text)
    assert message in str(caught.value)


def test_texts_have_a_limit(monkeypatch):
    monkeypatch.setattr("certify.properties.sexpr._MOST_TOKENS", 100)
    with pytest.raises(QueryError, match="more than 100 names, numbers and parentheses"):
        parse_vnnlib(VERSION_1)
    pytest.importorskip("vnnlib")
    monkeypatch.setattr("certify.properties.vnnlib2._MOST_TEXT", 100)
    with pytest.raises(QueryError, match="more than 100 characters"):
        parse_vnnlib(VERSION_2)


def test_a_small_archive_does_not_unpack_to_a_large_file(tmp_path):
    """Zeros are packed a thousandfold; what people pack, less than twentyfold."""
    bomb = gzip.compress(bytes(2**25))
    with pytest.raises(certify.InvalidInputError, match="the network is a gzip archive of .* unpacks to more than"):
        graph_from_onnx(bomb)
    path = tmp_path / "bomb.vnnlib.gz"
    path.write_bytes(gzip.compress(b" " * 2**25))
    with pytest.raises(QueryError, match=r"bomb.vnnlib.gz is a gzip archive of .* unpacks to more than 16777216"):
        read_vnnlib(path)


@pytest.mark.parametrize("kind", ["Max", "Add", "MatMul"])
def test_an_operand_that_is_left_out_is_named(kind):
    with pytest.raises(certify.CertifyError, match=rf"'{kind}_1' \({kind}\)"):
        graph_from_onnx(Case(FLAT, [("Relu", "x", {}), (kind, "0 _", {})]).model())


def test_a_limit_that_is_no_number_is_no_limit():
    """max(x, NaN) is NaN, not x."""
    nan = np.array(np.nan, dtype=np.float32)
    with pytest.raises(certify.UnsupportedOp, match=r"'Clip_0'.*nan"):
        graph_from_onnx(one("Clip", FLAT, "x low", low=nan).model())


def test_two_small_matrices_around_a_bottleneck_stay_two():
    """Their product would have 2^32 entries."""
    matrices = {"a": normal(2**16, 1), "b": normal(1, 2**16)}
    graph = graph_from_onnx(Case((1, 2**16), [("MatMul", "x a", {}), ("MatMul", "0 b", {})], matrices).model())
    assert [tuple(node.op.weight.shape) for node in graph.nodes[1:]] == [(1, 2**16), (2**16, 1)]


SMALL_BUT_GREEDY = {
    "a long input": one("Relu", (1, 2**25)),
    "a long value": one("Expand", (1, 1, 1), "x s", s=ints(2**13, 2**12, 1)),
    "many windows": one("MaxPool", (1, 1, 2**11, 2**11), kernel_shape=[2, 2]),
    "many copies": Case((1, 2**20), [("Concat", " ".join("x" * 8), {"axis": 1}), ("Concat", "0 0", {"axis": 1})]),
    "a large image": one("Conv", (1, 1, 2**10, 2**10), "x w", w=normal(30, 1, 3, 3)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL_BUT_GREEDY)
def test_a_small_file_takes_no_more_than_two_gibibytes(name, tmp_path):
    path = tmp_path / "net.onnx"
    path.write_bytes(SMALL_BUT_GREEDY[name].model())
    assert path.stat().st_size < 2**12
    code = "import sys; from certify.ir.from_onnx import graph_from_onnx; graph_from_onnx(sys.argv[1])"
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    subprocess.run([sys.executable, "-c", code, str(path)], check=True)
    assert max(before, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss) < 2 * 2**20  # kibibytes


# ---- the command line


def _bad(content, text, word):
    return pytest.param(content, text, word, id=word.replace(" ", "-"))


GEMM = one("Gemm", (1, 2), "x w", w=normal(2, 2)).model()
BOX = VERSION_1.rsplit("(assert", 1)[0]


@pytest.mark.parametrize(
    ("content", "text", "word"),
    [
        _bad(GEMM[:-30], VERSION_1, "truncated"),
        _bad(b"%PDF-1.7", VERSION_1, "no ONNX model"),
        _bad(gzip.compress(GEMM)[:-9], VERSION_1, "broken gzip archive"),
        _bad(gzip.compress(bytes(2**25)), VERSION_1, "unpacks to more than"),
        _bad(one("Softmax", (1, 2)).model(), VERSION_1, "'Softmax_0' (Softmax)"),
        _bad(one("Relu", ("N", "length")).model(), VERSION_1, "pass input_shape"),
        _bad(one("Relu", (1, 2**26)).model(), VERSION_1, "at most"),
        _bad(one("Relu", (1, 3)).model(), VERSION_1, "2 inputs and 2 outputs, the network 3 and 3"),
        _bad(GEMM, BOX + "(assert (<= Y_7 1))", "'Y_7' is not declared"),
        _bad(GEMM, BOX + "(assert (>= X_0 3))", "the box is empty"),
        _bad(GEMM, BOX + "(assert (>= (* Y_0 Y_1) 3))", "is not linear"),
        _bad(GEMM, "(" * 10**6, "nested deeper"),
        _bad(GEMM, "", "no inputs are declared"),
        _bad(GEMM, VERSION_2.replace("[1,2]", "[99999,99999]"), "declares"),
    ],
)
def test_bad_files_end_with_status_2_one_line_and_no_answer(content, text, word, tmp_path, capsys):
    if text.startswith("(vnnlib"):
        pytest.importorskip("vnnlib")
    (tmp_path / "net.onnx").write_bytes(content)
    (tmp_path / "q.vnnlib").write_text(text)
    results = tmp_path / "results.txt"
    arguments = ["--network", f"N={tmp_path / 'net.onnx'}", "--timeout", "5", "--results", str(results)]
    assert main(["verify", str(tmp_path / "q.vnnlib"), *arguments]) == 2
    captured = capsys.readouterr()
    assert (captured.out, captured.err.count("\n"), results.exists()) == ("", 1, False)
    assert word in captured.err


@pytest.mark.slow
def test_damaged_files_end_with_an_answer_or_status_2(tmp_path, capsys):
    """Whatever the command line is given: a status, and at most the answers that it knows."""
    network, query = tmp_path / "net.onnx", tmp_path / "q.vnnlib"
    contents = [one("Gemm", (1, 2), "x w", w=normal(2, 2)).model(), one("Relu", (1, 2)).model()]
    words = set()
    for seed in range(1500):
        rng = random.Random(seed)
        content, text = rng.choice(contents), VERSION_1
        content = rng.choice([changed_bytes, changed_model])(content, rng) if seed % 2 else content
        network.write_bytes(content)
        query.write_text(text if seed % 3 else changed_text(text, rng), encoding="utf-8", errors="replace")
        status = main(["verify", str(query), "--network", f"N={network}", "--timeout", "1e6"])
        out = capsys.readouterr().out
        assert (status, out) == (2, "") or status == 0
        words |= {out.split("\n")[0]}
    assert {"", "sat"} <= words <= {"", "sat", "unsat", "unknown"}
