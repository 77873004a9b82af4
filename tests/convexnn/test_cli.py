"""The command line, as a user types it."""

import json

import numpy as np
import pytest
import torch

from convexnn.cli import main
from convexnn.saving import build, load_network, save_network


@pytest.fixture
def table(tmp_path):
    """A CSV file with features on very different scales, a number and a label to predict."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((50, 2)) * [1.0, 1000.0] + [0.0, 5000.0]
    y = np.abs(X[:, 0]) + 0.05 * rng.standard_normal(50)
    kind = np.where(y > 0.6, "large", "small")
    rows = [f"{a!r},{b!r},{c!r},{k}" for (a, b), c, k in zip(X.tolist(), y.tolist(), kind, strict=True)]
    path = tmp_path / "data.csv"
    path.write_text("position,mass,size,kind\n" + "\n".join(rows) + "\n")
    return path, X, y, kind


FAST = ["--weight-decay", "0.05", "--tol", "0.05", "--quiet"]


def test_fit_classification_writes_a_network_for_raw_features(table, tmp_path, capsys):
    path, X, _, kind = table
    out = tmp_path / "net.pt"
    assert main(["fit", str(path), "--target", "kind", "--drop", "size", "--out", str(out), *FAST]) == 0
    printed = capsys.readouterr().out
    for word in ("objective", "bound", "local-search", "gap", "classification: large", "accuracy"):
        assert word in printed
    network, about = load_network(out)
    with torch.no_grad():
        predicted = np.array(about["classes"])[(network(torch.from_numpy(X))[:, 0] > 0).int().numpy()]
    assert f"accuracy  {(predicted == kind).mean():.4f} on the training data" in printed
    assert (predicted == kind).mean() > 0.8
    report = json.loads(out.with_suffix(".json").read_text())
    assert report["features"] == ["position", "mass"]
    assert report["result"]["bound_kind"] == "local-search"
    assert report["result"]["bound"] <= report["result"]["objective"]


def test_fit_regression_writes_onnx(table, tmp_path, capsys):
    onnxruntime = pytest.importorskip("onnxruntime")
    path, X, y, _ = table
    out, result = tmp_path / "net.onnx", tmp_path / "result.json"
    command = [
        "fit",
        str(path),
        "--target",
        "size",
        "--drop",
        "kind",
        "--out",
        str(out),
        "--result",
        str(result),
    ]
    assert main([*command, *FAST]) == 0
    assert "R^2" in capsys.readouterr().out
    session = onnxruntime.InferenceSession(str(out))
    predicted = session.run(None, {"x": X})[0][:, 0]
    assert 1 - np.mean((predicted - y) ** 2) / np.var(y) > 0.6
    assert json.loads(result.read_text())["standardisation"]["mean"] == pytest.approx(X.mean(0).tolist())


def test_gap_of_a_saved_network_is_the_gap_of_training(table, tmp_path, capsys):
    path, *_ = table
    out = tmp_path / "net.pt"
    assert main(["fit", str(path), "--target", "kind", "--drop", "size", "--out", str(out), *FAST]) == 0
    trained = json.loads(out.with_suffix(".json").read_text())["result"]
    capsys.readouterr()
    assert main(["gap", str(out), str(path), "--drop", "size"]) == 0
    printed = dict(line.split()[:2] for line in capsys.readouterr().out.splitlines())
    assert float(printed["objective"]) == pytest.approx(trained["objective"], rel=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--target", "colour"], "no column 'colour'; its columns are: position, mass, size, kind"),
        (["--target", "size"], "not finite numbers: kind"),
        (["--target", "kind", "--out", "net.h5"], "must end in .pt or .onnx"),
        (["--target", "kind", "--out", "nowhere/net.pt"], "there is no folder 'nowhere'"),
        (["--target", "kind", "--result", "nowhere/net.json"], "there is no folder 'nowhere'"),
        (["--target", "size", "--drop", "kind", "--loss", "hinge"], "a regression uses squared"),
        (["--target", "kind", "--loss", "softmax"], "does not fit 2 classes"),
        (["--target", "kind", "--weight-decay", "-1"], "weight_decay"),
    ],
)
def test_bad_input_ends_with_one_line_and_status_2(table, tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert main(["fit", str(table[0]), *arguments, "--quiet"]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("convexnn fit: error: ")
    assert message in captured.err
    assert captured.err.count("\n") == 1


def test_gap_wants_the_columns_of_training(table, tmp_path, capsys):
    path, *_ = table
    out = tmp_path / "net.pt"
    assert main(["fit", str(path), "--target", "kind", "--drop", "size", "--out", str(out), *FAST]) == 0
    assert main(["gap", str(out), str(path)]) == 2
    assert "trained on position, mass" in capsys.readouterr().err


def test_gap_at_a_weight_decay_that_is_none(table, tmp_path, capsys):
    path, *_ = table
    out = tmp_path / "net.pt"
    assert main(["fit", str(path), "--target", "kind", "--drop", "size", "--out", str(out), *FAST]) == 0
    assert main(["gap", str(out), str(path), "--drop", "size", "--weight-decay", "0"]) == 2
    assert "weight_decay=0" in capsys.readouterr().err


def test_gap_of_a_network_that_does_not_say_its_data(table, tmp_path, capsys):
    save_network(build(2, 3, 1, True, True), tmp_path / "net.pt")
    assert main(["gap", str(tmp_path / "net.pt"), str(table[0])]) == 2
    assert "does not say what it was trained on" in capsys.readouterr().err


def test_a_hint_can_be_pasted(tmp_path, capsys):
    (tmp_path / "data.csv").write_text("mean size,y\n,1\n2,3\n")
    assert main(["fit", str(tmp_path / "data.csv"), "--target", "y"]) == 2
    assert "--drop 'mean size'" in capsys.readouterr().err


def test_version_and_help(capsys):
    for option in ("--version", "--help"):
        with pytest.raises(SystemExit, match="0"):
            main([option])
    assert "fit" in capsys.readouterr().out
