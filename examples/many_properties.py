"""Thousands of questions: workers share them, answers are kept as they come, and a stopped run goes on.

Everything here runs on this machine. On a cluster only one line differs:

    client = distributed.Client("scheduler:8786")
    with joblib.parallel_config(backend="dask"): ...
"""

import tempfile
from pathlib import Path

import joblib
import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

import certify

torch.manual_seed(0)
digits = load_digits()
X, y = torch.tensor(digits.data / 16, dtype=torch.float32), torch.tensor(digits.target)
network = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 10))
optimiser = torch.optim.Adam(network.parameters(), 1e-2, weight_decay=1e-3)
for _ in range(150):
    optimiser.zero_grad()
    nn.functional.cross_entropy(network(X[:1200]), y[:1200]).backward()
    optimiser.step()
network.eval()


def answers(path: Path) -> int:
    """How many lines the file has below its first."""
    return len(path.read_text().splitlines()) - 1


with tempfile.TemporaryDirectory() as folder:
    results = Path(folder) / "accuracy.jsonl"
    options = {"eps": 0.02, "domain": (0, 1), "method": "crown", "results": results}

    with joblib.parallel_config(backend="loky", n_jobs=2):
        report = certify.certified_accuracy(network, X[1200:], y[1200:], **options)
    print(f"{report}\n  {answers(results)} batches in the file")

    # As if the machine had gone down in the middle of a line: what is whole is kept, the rest is computed again.
    whole = results.read_bytes()
    results.write_bytes(whole[: len(whole) * 2 // 3])
    again = certify.certified_accuracy(network, X[1200:], y[1200:], **options)
    print(f"\nGone on with after a crash: the same answers {bool((again.statuses == report.statuses).all())}")

    try:
        certify.certified_accuracy(network, X[1200:], y[1200:], **(options | {"eps": 0.03}))
    except certify.ResultsFileError as error:
        print(f"\nAnother radius is another question:\n  {error}")

    # Properties: the smallest score of the label that a change of the first 16 pixels can lead to.
    queries = []
    for x, label in zip(X[1200:1240].double().numpy(), y[1200:1240].tolist(), strict=True):
        lower, upper = x.copy(), x.copy()
        lower[:16], upper[:16] = np.maximum(x[:16] - 0.1, 0), np.minimum(x[:16] + 0.1, 1)
        rivals = [k for k in range(10) if k != label]
        rows = np.eye(10)[label] - np.eye(10)[rivals]
        cases = tuple(certify.Case(lower, upper, row[None], np.zeros(1)) for row in rows)
        queries.append((network, certify.Query(cases)))
    many = certify.verify_many(queries, timeout=10, results=Path(folder) / "properties.jsonl")
    print(f"\n{many}")
