"""Make a proof file, check it, tamper with it, and see it rejected.

Run it with: python examples/sdp_certificate.py
"""

import copy
import tempfile
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn

import certify
from certify.cli import main
from certify.proof.artefact import load
from certify.proof.check import RejectedError, check
from certify.proof.writing import save

EPS = 0.35


def train() -> tuple[nn.Sequential, torch.Tensor, torch.Tensor]:
    """A small classifier of digits; images and labels that it has not seen."""
    data = load_digits()
    X, y = torch.tensor(data.data / 16, dtype=torch.float32), torch.tensor(data.target)
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(64, 20), nn.ReLU(), nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 10))
    optimiser = torch.optim.Adam(network.parameters(), lr=0.02)
    for _ in range(150):
        optimiser.zero_grad()
        nn.functional.cross_entropy(network(X[:1400]), y[:1400]).backward()
        optimiser.step()
    return network.eval(), X[1400:], y[1400:]


def make(folder: Path) -> Path:
    """The proof of the first unseen image that each method in turn verifies; the last one's file."""
    network, X, y = train()
    for method in METHODS:
        path = folder / f"{method}.proof"
        for x, label in zip(X[:60], y[:60].tolist(), strict=True):
            question = {"label": label, "eps": EPS, "norm": "l2", "domain": (0, 1)}
            verdict = certify.verify(network, x, method=method, proof=path, **question)
            if verdict.proof is not None:
                print(f"{method}: {path.stat().st_size / 1024:.1f} kB, worst margin {verdict.worst_margin:.4f}")
                break
    return path


def tampered(document: dict) -> dict[str, dict]:
    """The same file with one thing changed, by what was changed."""
    changes = {
        "a bound that is too large": ("proof", "slopes", "bounds", "values", 0),
        "a weight": ("claim", "network", "layers", 0, "weight", "values", 3, 5),
        "the input": ("claim", "region", "centre", "values", 10),
        "the radius": ("claim", "region", "radius", "values"),
        "the label": ("claim", "label"),
        "the version": ("version",),
        "a hidden bound": ("proof", "hidden", 1, "lower", "values", 2),
    }
    found = {}
    for name, path in changes.items():
        found[name] = copy.deepcopy(document)
        inner = found[name]
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] += 1
    return found


METHODS = ("crown", "lp", "sdp-crown", "sdp")

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        path = make(Path(name))
        assert main(["check", str(path)]) == 0
        for what, document in tampered(load(path)).items():
            try:
                check(document)
            except RejectedError as error:
                print(f"{what}: rejected, {error}")
            else:
                raise SystemExit(f"{what} was changed, and the file was accepted")
        forged = tampered(load(path))["a bound that is too large"]
        save(forged, path)
        assert main(["check", str(path)]) == 1
