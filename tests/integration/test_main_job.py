"""What a newcomer does first, from data to certificates, in one environment."""

import subprocess
import sys
from pathlib import Path

import pytest
from sklearn.datasets import load_breast_cancer

import certify
import convexnn

ROOT = Path(__file__).parents[2]


def test_train_to_the_optimum_and_certify():
    X, y = load_breast_cancer(return_X_y=True)
    X = (X - X.mean(0)) / X.std(0)
    model = convexnn.ConvexReLUClassifier(weight_decay=1e-2, random_state=0).fit(X, y)
    result = model.result_
    assert result.bound <= result.objective
    assert result.gap <= 1e-4
    assert result.bound_kind == "local-search"
    assert "local-search" in str(result)

    report = certify.certified_accuracy(model.network_, X, y, eps=0.05, norm="linf", method="crown")
    assert report.clean == pytest.approx(model.score(X, y))
    assert report.certified <= report.attacked <= report.clean
    assert report.certified > 0.8
    assert str(report)

    gap = convexnn.optimality_gap(model.network_, X, 2 * y - 1, weight_decay=1e-2, loss="logistic", tol=1e-3)
    assert gap.objective == pytest.approx(result.objective, rel=1e-9)


@pytest.mark.slow
def test_quick_demo_writes_its_report(tmp_path):
    command = [sys.executable, "-m", "convexnn.cli", "demo", "--quick", "--out", str(tmp_path / "report")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    assert (tmp_path / "report" / "index.html").exists()
    assert "Report:" in done.stdout
    assert "Adam" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("script", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.name)
def test_examples_run(script):
    quick = ["--quick"] if '"--quick"' in script.read_text() else []
    done = subprocess.run(
        [sys.executable, str(script), *quick], capture_output=True, text=True, check=True, timeout=300
    )
    assert done.stdout
    assert not done.stderr
