"""Proof files: accepted when they hold, rejected with a reason when anything in them was changed."""

import json
import subprocess
import sys
from fractions import Fraction

import pytest
from proof_cases import builder_of, output_at, proof_of, question_of

from certify.cli import main
from certify.proof.artefact import RejectedError, load
from certify.proof.check import check, check_file
from certify.proof.emit.hints import crown
from certify.proof.emit.slopes import ascended, programmed
from certify.proof.writing import save

KINDS = [("linf", False), ("linf", True), ("l2", False), ("l2", True), ("l1", False), ("l1", True), ("box", False)]


def claimed_bounds(document):
    slopes = document["proof"]["slopes"]
    bounds = slopes["bounds"]
    return {t: Fraction(v, 2 ** bounds["scale"]) for t, v in zip(slopes["rivals"], bounds["values"], strict=True)}


@pytest.mark.parametrize(("norm", "domain"), KINDS)
@pytest.mark.parametrize("suggest", [crown, ascended, programmed])
def test_proofs_are_accepted_and_true(norm, domain, suggest):
    for seed in range(3):
        network, document, points = proof_of(seed, norm, suggest, domain=domain, size=0.03)
        bounds = claimed_bounds(document)
        label = document["claim"]["label"]
        for x in points:
            y = output_at(network, x)
            assert all(y[label] - y[t] >= bound for t, bound in bounds.items())
        if min(bounds.values()) > 0:
            assert any("margin over class" in fact for fact in check(document).facts)
        else:
            with pytest.raises(RejectedError, match="not positive"):
                check(document)


def test_the_checker_imports_no_torch():
    code = "import sys, certify.proof.check, certify.proof.check.margins; " + " ".join(
        f"assert {name!r} not in sys.modules;" for name in ("torch", "scipy", "cvxpy", "highspy", "certify.errors")
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", ["proof.json", "a.proof"])
def test_files_and_exit_codes(tmp_path, capsys, name):
    _, document, _ = proof_of(0)
    path = tmp_path / name
    size = save(document, path)
    assert path.stat().st_size == size
    assert load(path) == json.loads(json.dumps(document))
    assert check_file(path).digest == document["digest"]
    label = document["claim"]["label"]
    assert main(["check", str(path), "--label", str(label)]) == 0
    assert "accepted" in capsys.readouterr().out
    assert main(["check", str(path), "--label", str(label + 1)]) == 1
    assert "rejected: the proof is about the label" in capsys.readouterr().out
    path.write_bytes(path.read_bytes()[:-9])
    assert main(["check", str(path)]) == 1
    assert main(["check", str(tmp_path / "absent")]) == 2
    assert main(["check", str(tmp_path)]) == 2


@pytest.mark.parametrize(("norm", "domain"), KINDS)
def test_better_hints_prove_more(norm, domain):
    """Ascent at least as much as CROWN, the linear program at least as much as ascent, up to rounded hints."""
    for seed in range(3):
        question, _ = question_of(seed, norm, domain=domain, size=0.3, widths=(4, 6, 5, 3))
        builder = builder_of(question)
        rivals = question.claim.rivals
        plain, better, best = (builder.margins(rivals, s)[0] for s in (crown, ascended, programmed))
        for low, middle, high in zip(plain, better, best, strict=True):
            assert low <= middle + Fraction(1, 10**5)
            assert middle <= high + Fraction(1, 10**5)
