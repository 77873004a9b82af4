"""From networks of users to proof files and back: exact layers, `verify(..., proof=)`, and the user's own file."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from certify_cases import mlp, randomised
from proof_cases import output_at
from torch import nn

import certify
from certify.bounds import METHODS
from certify.cli import main
from certify.ir.from_torch import graph_from_torch
from certify.ir.module import GraphModule, numpy_graph, unmerged_graph
from certify.proof.artefact import load
from certify.proof.check import RejectedError, check_file
from certify.proof.emit.chain import exact_network


class Residual(nn.Module):
    """A branch that skips a linear layer, not a ReLU."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(3, 3), nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.last(torch.relu(self.second(x + self.first(x))))


class SkipsReLU(Residual):
    def forward(self, x):
        hidden = torch.relu(self.first(x))
        return self.last(torch.relu(self.second(hidden + x)))


NETWORKS = {
    "dense": (lambda: mlp(3, 4, 2), (3,)),
    "merged": (lambda: nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2)), (3,)),
    "residual": (Residual, (3,)),
    "ends with ReLU": (lambda: nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2), nn.ReLU()), (3,)),
    "convolution": (
        lambda: nn.Sequential(nn.Conv2d(1, 2, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(18, 2)),
        (1, 5, 5),
    ),
    "convolutions": (
        lambda: nn.Sequential(nn.Conv1d(1, 2, 2), nn.Conv1d(2, 2, 2), nn.ReLU(), nn.Flatten(), nn.Linear(4, 2)),
        (1, 4),
    ),
    "no ReLU": (lambda: nn.Sequential(nn.Linear(3, 2)), (3,)),
}


def exactly(module, shape):
    return exact_network(unmerged_graph(module, shape))


@pytest.mark.parametrize("name", NETWORKS)
def test_layers_compute_what_the_network_computes_without_rounding(name):
    make, shape = NETWORKS[name]
    module = randomised(make(), 0).double().eval()
    network = exactly(module, shape)
    x = np.random.default_rng(1).random(shape)
    with torch.no_grad():
        expected = module(torch.as_tensor(x)[None])[0].numpy()
    got = output_at(network, [Fraction(v) for v in x.ravel()])
    got = [max(v, 0) for v in got] if name == "ends with ReLU" else got
    assert np.allclose([float(v) for v in got], expected, rtol=1e-12, atol=1e-12)


def test_merged_layers_are_exact_products():
    module = randomised(NETWORKS["merged"][0](), 3)  # float32 weights: products fit into 48 bits
    network = exactly(module, (3,))
    first, second = (m.weight.detach().numpy() for m in module[:2])
    expected = [
        [sum(Fraction(float(p)) * Fraction(float(q)) for p, q in zip(row, column, strict=True)) for column in first.T]
        for row in second
    ]
    W = network.layers[0][0]
    assert [[Fraction(v, 2**W.scale) for v in row] for row in W.values] == expected


@pytest.mark.parametrize(
    ("module", "shape", "told"),
    [
        (SkipsReLU(), (3,), "skips a ReLU"),
        (nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), (3,), "Tanh is neither"),
    ],
)
def test_other_networks_are_refused_by_name(tmp_path, module, shape, told):
    module = randomised(module, 0).eval()
    with pytest.raises(certify.UnsupportedOp, match=told):
        certify.verify(module, np.zeros(shape), label=0, eps=0.0, proof=tmp_path / "a.proof")
    assert not list(tmp_path.iterdir())


def question(seed, eps=0.02):
    module = randomised(mlp(4, 8, 8, 3), seed).eval()
    x = np.random.default_rng(seed).random(4).astype(np.float32)
    with torch.no_grad():
        label = int(module(torch.as_tensor(x)[None]).argmax())
    return module, {"x": x, "label": label, "eps": eps}


@pytest.mark.parametrize(
    ("method", "norm", "domain"),
    [
        ("ibp", "linf", (0, 1)),
        ("crown-ibp", "l2", (0, 1)),
        ("crown", "linf", None),
        ("crown", "l2", (0, 1)),
        ("crown", "l1", (0, 1)),
        ("alpha-crown", "l2", None),
        ("alpha-crown", "l1", None),
        ("deeppoly-0", "linf", None),
        ("lp", "linf", (0, 1)),
        ("lp", "l2", (0, 1)),
        ("auto", "linf", (0, 1)),
        ("sdp-crown", "l2", (0, 1)),
        ("sdp-crown", "linf", None),
        ("sdp", "l2", (0, 1)),
        pytest.param("sdp", "l1", None, marks=pytest.mark.slow),
        pytest.param("sdp", "linf", (0, 1), marks=pytest.mark.slow),
    ],
)
def test_what_is_verified_has_a_proof(tmp_path, method, norm, domain):
    verified = 0
    for seed in range(2):
        module, options = question(seed)
        path = tmp_path / f"{seed}.proof"
        verdict = certify.verify(module, norm=norm, domain=domain, method=method, proof=path, **options)
        if verdict.status is not certify.Status.VERIFIED:
            assert verdict.proof is None
            assert not path.exists()
            continue
        verified += 1
        assert verdict.proof == str(path)
        assert str(path) in str(verdict)
        accepted = check_file(path, network=exactly(module, (4,)), label=options["label"])
        assert f"label {options['label']} is kept" in accepted.facts[0]
    assert verified


def test_one_output_is_a_sign(tmp_path):
    module = randomised(mlp(3, 6, 1), 0).eval()
    x = np.full(3, 0.5)
    with torch.no_grad():
        label = int(module(torch.full((1, 3), 0.5))[0, 0] > 0)
    path = tmp_path / "a.proof"
    assert certify.verify(module, x, label=label, eps=1e-3, proof=path).proof
    assert f"margin over class {1 - label}" in check_file(path).facts[-1]
    with pytest.raises(RejectedError, match="label"):
        check_file(path, label=1 - label)


def test_large_networks_stay_out_of_the_file(tmp_path):
    module = randomised(mlp(40, 500, 2), 0).eval()
    with torch.no_grad():
        label = int(module(torch.zeros(1, 40)).argmax())
    path = tmp_path / "a.proof"
    certify.verify(module, np.zeros(40), label=label, eps=1e-5, norm="linf", method="crown", proof=path)
    assert load(path)["claim"]["network"]["layers"] is None
    with pytest.raises(RejectedError, match="give the network"):
        check_file(path)
    network = exactly(module, (40,))
    assert check_file(path, network=network)
    module[0].bias.data[7] += 2.0**-10
    with pytest.raises(RejectedError, match="another network"):
        check_file(path, network=exactly(module, (40,)))


def test_the_users_own_file_is_compared_weight_by_weight(tmp_path, capsys):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    module, options = question(0)
    proof, model = tmp_path / "a.proof", tmp_path / "net.onnx"
    write_onnx(onnx, model, module)
    assert certify.verify(module, proof=proof, **options).proof
    assert main(["check", str(proof), "--model", str(model)]) == 0
    from_file = certify.module_from_onnx(model)
    assert certify.verify(from_file, proof=tmp_path / "b.proof", **options).proof
    assert load(proof)["claim"]["network"] == load(tmp_path / "b.proof")["claim"]["network"]
    module[2].weight.data[1, 1] *= 1 + 2.0**-23
    write_onnx(onnx, model, module)
    assert main(["check", str(proof), "--model", str(model)]) == 1
    assert "another network" in capsys.readouterr().out
    model.write_bytes(b"no network")
    assert main(["check", str(proof), "--model", str(model)]) == 2


def write_onnx(onnx, path, module):
    nodes, constants, last = [], [], "x"
    for k, layer in enumerate(module):
        if isinstance(layer, nn.Linear):
            names = [f"W{k}", f"b{k}"]
            for name, value in zip(names, (layer.weight, layer.bias), strict=True):
                constants.append(onnx.numpy_helper.from_array(value.detach().numpy(), name))
            nodes.append(onnx.helper.make_node("Gemm", [last, *names], [f"y{k}"], transB=1))
        else:
            nodes.append(onnx.helper.make_node("Relu", [last], [f"y{k}"]))
        last = f"y{k}"
    kind = onnx.TensorProto.FLOAT
    values = (
        [onnx.helper.make_tensor_value_info(name, kind, [1, n])]
        for name, n in (("x", module[0].in_features), (last, module[-1].out_features))
    )
    graph = onnx.helper.make_graph(nodes, "net", *values, constants)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)]), path)


def test_graphs_that_were_not_read_from_a_file_are_taken_as_they_are():
    module = GraphModule(graph_from_torch(randomised(mlp(2, 3, 2), 0)))
    assert exactly(module, (2,)).digest == exact_network(numpy_graph(module, (2,))).digest


def test_the_matrix_of_a_convolution_holds_its_weights_to_the_last_bit():
    make, shape = NETWORKS["convolution"]
    module = randomised(make(), 0).double()
    weights = {Fraction(v) for v in module[0].weight.detach().numpy().ravel().tolist()} | {0}
    W, b = exactly(module, shape).layers[0]
    assert {Fraction(v, 2**W.scale) for row in W.values for v in row} == weights
    assert {Fraction(v, 2**b.scale) for v in b.values} == {Fraction(v) for v in module[0].bias.tolist()}


@pytest.mark.slow
def test_semidefinite_programs_prove_what_slopes_do_not(tmp_path):
    """At the largest of some radii that the relaxation verifies: there slopes do not reach, on some network."""
    programs, plan = 0, certify.Plan("sdp", (METHODS["sdp"],), attack=None)
    for seed in range(4):
        module, options = question(seed, 0.6)
        for _ in range(8):
            path = tmp_path / f"{seed}.proof"
            verdict = certify.verify(module, norm="l2", domain=(0, 1), method=plan, proof=path, **options)
            if verdict.status is certify.Status.VERIFIED:
                assert verdict.proof is not None
                assert check_file(path, network=exactly(module, (4,)), label=options["label"])
                programs += len(load(path)["proof"]["sdp"])
                break
            options["eps"] *= 0.8
    assert programs
