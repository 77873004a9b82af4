"""What the caller brings to a training proof is compared number by number: data, weights of samples, network."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch

from certify.cli import main
from certify.proof.artefact import RejectedError, load
from certify.proof.check import check
from certify.proof.check.given import Samples
from certify.proof.check.network import Network as Chain
from certify.proof.writing import exact
from convexnn.gap import optimality_gap
from convexnn.onnx import to_onnx

pytestmark = pytest.mark.usefixtures("unchecked")


@dataclass(frozen=True)
class Case:
    network: torch.nn.Sequential
    X: np.ndarray
    y: np.ndarray
    weights: np.ndarray | None
    document: dict[str, Any]

    def samples(self):
        """As a caller reads them."""
        weights = None if self.weights is None else exact(self.weights)
        return Samples(exact(self.X), exact(self.y), weights)


CASES = {}


def proved(folder, loss="squared", biases=(True, True), weighted=False):
    """A small problem with its proof; the bound is weak, which does not matter here."""
    key = (loss, biases, weighted)
    if key not in CASES:
        rng = np.random.default_rng(3)
        X, y = rng.standard_normal((10, 2)), rng.standard_normal(10)
        y = y if loss == "squared" else (y > 0).astype(int)
        weights = rng.uniform(0.5, 2.0, 10) if weighted else None
        torch.manual_seed(0)
        layers = torch.nn.Linear(2, 3, bias=biases[0]), torch.nn.Linear(3, 1, bias=biases[1])
        network = torch.nn.Sequential(layers[0], torch.nn.ReLU(), layers[1])
        out = folder / "proof.json"
        optimality_gap(
            network, X, y, weight_decay=0.1, loss=loss, sample_weight=weights,
            proof="fast", timeout=1e-9, max_seconds=0.1, random_state=0, out=out,
        )  # fmt: skip
        CASES[key] = Case(network, X, y, weights, load(out))
    return CASES[key]


def moved(array, place=0, by=2.0**-40):
    out = np.array(array, dtype=float)
    out.flat[place] += by
    return out


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("biases", [(True, True), (False, False)])
@pytest.mark.parametrize("loss", ["squared", "logistic"])
def test_the_callers_arrays_are_compared(tmp_path, loss, biases, weighted):
    case = proved(tmp_path, loss, biases, weighted)
    facts = check(case.document, samples=case.samples()).facts
    said = next(fact for fact in facts if "X and y are those given" in fact)
    assert ("column of ones" in said) == biases[0]
    assert ("label 0" in said) == (loss == "logistic")
    for place in (0, 19):
        with pytest.raises(RejectedError, match="inputs X"):
            check(case.document, samples=replace(case, X=moved(case.X, place)).samples())
    with pytest.raises(RejectedError, match="targets y"):
        check(case.document, samples=replace(case, y=moved(case.y, 3)).samples())
    with pytest.raises(RejectedError, match="targets y"):
        check(case.document, samples=replace(case, y=case.y[::-1]).samples())
    with pytest.raises(RejectedError, match="samples"):
        check(case.document, samples=replace(case, X=case.X[:-1]).samples())
    with pytest.raises(RejectedError, match="columns"):
        check(case.document, samples=replace(case, X=case.X[:, :1] if biases[0] else moved(case.X)[:, :0]).samples())


def test_labels_are_signs_of_these_losses_only(tmp_path):
    case = proved(tmp_path, "logistic")
    assert check(case.document, samples=replace(case, y=2 * case.y - 1).samples())
    for wrong in (1 - case.y, case.y + 1, 1 - 2 * case.y):
        with pytest.raises(RejectedError, match="targets y"):
            check(case.document, samples=replace(case, y=wrong).samples())
    squared = proved(tmp_path)
    with pytest.raises(RejectedError, match="targets y"):
        check(squared.document, samples=replace(squared, y=(squared.y > 0).astype(int)).samples())


def test_weights_are_compared_up_to_their_sum(tmp_path):
    case = proved(tmp_path, weighted=True)
    assert check(case.document, samples=replace(case, weights=2 * case.weights).samples())
    for wrong in (None, np.ones(10), case.weights[::-1], moved(case.weights, by=1e-12), -case.weights):
        with pytest.raises(RejectedError, match="weigh"):
            check(case.document, samples=replace(case, weights=wrong).samples())
    plain = proved(tmp_path)
    assert check(plain.document, samples=replace(plain, weights=np.full(10, 3.0)).samples())
    with pytest.raises(RejectedError, match="weigh"):
        check(plain.document, samples=replace(plain, weights=case.weights).samples())


def chain_of(network):
    first, last = (layer for layer in network if isinstance(layer, torch.nn.Linear))
    pairs = []
    for layer in (first, last):
        bias = torch.zeros(layer.out_features) if layer.bias is None else layer.bias
        pairs.append((exact(layer.weight.detach().numpy()), exact(bias.detach().numpy())))
    return Chain(tuple(pairs))


def with_entry(chain, layer, part, change):
    layers = [list(pair) for pair in chain.layers]
    layers[layer][part] = change(layers[layer][part])
    return Chain(tuple(tuple(pair) for pair in layers))


def nudged(number):
    """One entry changed by one unit in the last place."""
    values = [list(row) for row in number.values] if isinstance(number.values[0], list) else list(number.values)
    if isinstance(values[0], list):
        values[-1][-1] += 1
    else:
        values[-1] += 1
    return replace(number, values=values)


@pytest.mark.parametrize("biases", [(True, True), (False, False)])
def test_the_callers_network_is_compared(tmp_path, biases):
    case = proved(tmp_path, biases=biases)
    chain = chain_of(case.network)
    assert "the network is the one given" in check(case.document, network=chain).facts
    for layer in (0, 1):
        for part in (0, 1):
            with pytest.raises(RejectedError, match=r"another network|biases in its first layer"):
                check(case.document, network=with_entry(chain, layer, part, nudged))
    with pytest.raises(RejectedError, match="another form"):
        check(case.document, network=Chain(chain.layers[:1]))
    wide = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
    with pytest.raises(RejectedError, match="another form"):
        check(case.document, network=chain_of(wide))


def test_a_proof_says_what_it_cannot_compare(tmp_path):
    case = proved(tmp_path)
    with pytest.raises(RejectedError, match="label"):
        check(case.document, label=1)


def test_the_command_line_compares_files(tmp_path, capsys):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    X = np.random.default_rng(0).standard_normal((10, 2))
    y = (X[:, 0] > 0).astype(int)
    network = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 1))
    proof, data, model = (tmp_path / name for name in ("proof.json.gz", "data.npz", "net.onnx"))
    options = {"weight_decay": 0.1, "loss": "hinge", "timeout": 1e-9, "max_seconds": 0.1, "random_state": 0}
    optimality_gap(network, X, y, proof="fast", out=proof, **options)
    np.savez(data, X=X, y=y)
    to_onnx(network, model, dtype=torch.float32)
    command = ["check", str(proof), "--data", str(data), "--model", str(model)]
    assert main(command) == 0
    told = capsys.readouterr().out
    assert "X and y are those given" in told
    assert "the network is the one given" in told
    np.savez(data, X=moved(X), y=y)
    assert main(command) == 1
    assert "inputs X" in capsys.readouterr().out
    np.savez(data, X=X, y=y)
    with torch.no_grad():
        network[0].bias[1] += 2.0**-20
    to_onnx(network, model, dtype=torch.float32)
    assert main(command) == 1
    assert "another network" in capsys.readouterr().out
    assert main([*command, "--label", "1"]) == 1


@pytest.mark.parametrize(
    "arrays",
    [{"X": np.ones(3), "y": np.ones(3)}, {"X": np.ones((3, 1)), "y": np.ones(2)}, {"X": np.ones((3, 1))},
     {"X": np.full((1, 1), np.nan), "y": np.ones(1)}, {"X": np.ones((2, 1)), "y": np.array(["a", "b"])},
     {"X": np.ones((2, 1)), "y": np.ones(2), "weights": np.ones(3)}],
)  # fmt: skip
def test_unusable_data_are_an_error(tmp_path, arrays, capsys):
    path = tmp_path / "data.npz"
    np.savez(path, **arrays)
    assert main(["check", str(tmp_path / "absent"), "--data", str(path)]) == 2
    assert "data.npz" in capsys.readouterr().err
