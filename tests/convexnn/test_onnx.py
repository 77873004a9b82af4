"""ONNX export: what onnxruntime computes from the file is what torch computes from the network."""

import sys

import numpy as np
import pytest
import torch

from convexnn.errors import InvalidInputError, MissingDependencyError, UnsupportedNetworkError
from convexnn.onnx import to_onnx

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")


def network(hidden_bias=True, output_bias=True, outputs=3):
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Linear(5, 4, bias=hidden_bias, dtype=torch.float64),
        torch.nn.ReLU(),
        torch.nn.Linear(4, outputs, bias=output_bias, dtype=torch.float64),
    )


def replay(path, x):
    return onnxruntime.InferenceSession(str(path)).run(["y"], {"x": x})[0]


@pytest.mark.parametrize("hidden_bias", [True, False])
@pytest.mark.parametrize("output_bias", [True, False])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-14), (torch.float32, 1e-5)])
def test_replay_gives_the_same_outputs(tmp_path, hidden_bias, output_bias, dtype, tolerance):
    net = network(hidden_bias, output_bias)
    to_onnx(net, tmp_path / "net.onnx", dtype=dtype)
    for batch in (1, 7):
        x = torch.randn(batch, 5, dtype=torch.float64)
        found = replay(tmp_path / "net.onnx", x.to(dtype).numpy())
        assert found.dtype == np.dtype(str(dtype).removeprefix("torch."))
        np.testing.assert_allclose(found, net(x).detach().numpy(), atol=tolerance)


def test_metadata_is_kept(tmp_path):
    to_onnx(network(), tmp_path / "net.onnx", metadata={"features": "a,b"})
    props = {p.key: p.value for p in onnx.load(tmp_path / "net.onnx").metadata_props}
    assert props == {"features": "a,b"}


def test_another_form_is_refused(tmp_path):
    deeper = torch.nn.Sequential(*network(outputs=4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    with pytest.raises(UnsupportedNetworkError, match="Linear, ReLU, Linear"):
        to_onnx(deeper, tmp_path / "net.onnx")


def test_another_precision_is_refused(tmp_path):
    with pytest.raises(InvalidInputError, match="float16"):
        to_onnx(network(), tmp_path / "net.onnx", dtype=torch.float16)


def test_without_onnx_the_error_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'convexnn\[onnx\]'"):
        to_onnx(network(), tmp_path / "net.onnx")
