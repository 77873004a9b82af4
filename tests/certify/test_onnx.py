import subprocess
import sys

import numpy as np
import pytest
from shared_data import shared_files

from certify.ir.chain import dense_chain
from certify.ir.from_onnx import graph_from_onnx

NETWORKS = shared_files("vnn/*/onnx/*") + shared_files("nets/*.onnx")
DENSE = [
    p
    for name in ("acasxu", "mnist_fc", "rl_benchmarks", "reach_prob_density")
    for p in shared_files(f"vnn/{name}/onnx/*")
]


@pytest.mark.parametrize("path", NETWORKS)
def test_real_networks_are_what_onnxruntime_computes(path):
    graph = graph_from_onnx(path)  # raises where they differ
    assert len(graph.nodes) > 4


@pytest.mark.parametrize("path", DENSE)
def test_real_dense_networks_are_chains(path):
    graph = graph_from_onnx(path, check=False)
    x = np.random.default_rng(0).standard_normal((20, *graph.input_shape))
    value = x.reshape((20, -1))
    *hidden, (weight, bias) = dense_chain(graph)
    for w, b in hidden:
        value = np.maximum(value @ w.T + b, 0)
    np.testing.assert_allclose(value @ weight.T + bias, graph(x).reshape((20, -1)), rtol=1e-10, atol=1e-10)


def test_reading_onnx_imports_no_torch():
    code = "import sys, certify.ir.from_onnx, certify.ir.chain; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
