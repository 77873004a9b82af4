"""Proved gaps of networks trained by Adam and by ``convexnn.train`` on real tables, all from the exact checker.

    python -m benchmarks.proof_tables                        # ten tables of shared/data/uci.npz and scikit-learn
    python -m benchmarks.proof_tables --weight-decay 1e-2    # instead of 1e-1: more neurons, weaker proofs
    python -m benchmarks.proof_tables --quick                # two small ones

Standardised columns, missing values replaced by means, constant columns dropped; first-layer and output biases. Two
classes: logistic loss; numbers: squared loss on standardised targets. Adam: width 100, 2000
full-batch steps from 3e-2 on a cosine, penalty as in convexnn. A bound holds for all networks: it is proved once, for
the network of ``convexnn.train`` (10 s at most), and taken over for Adam's by ``resume=``; both files are read back and
judged by ``certify.proof.check``. "s" are wall seconds until the stage that gave the bound, one thread.
"""

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import convexnn
from benchmarks.checked import accepted
from benchmarks.data import shared_file
from certify.proof.check import check_file

WIDTH, STEPS = 100, 2000
AIM = 1e-3
UCI = ("haberman", "blood", "banknote", "mammographic", "pima", "energy_y1_regression", "statlog_heart", "parkinsons")
SKLEARN = ("diabetes", "breast_cancer")
QUICK = ("haberman", "blood")


@dataclass(frozen=True)
class Table:
    name: str
    X: np.ndarray
    y: np.ndarray
    loss: str


def uci(name: str) -> Table:
    with np.load(shared_file("data/uci.npz")) as stored:
        return prepared(name, stored[f"{name}__X"], stored[f"{name}__y"])


def sklearn(name: str) -> Table:
    from sklearn import datasets

    return prepared(f"{name} (scikit-learn)", *getattr(datasets, f"load_{name}")(return_X_y=True))


def prepared(name: str, X: np.ndarray, y: np.ndarray) -> Table:
    X = np.where(np.isnan(X), np.nanmean(X, axis=0), X).astype(float)
    X = X[:, X.std(axis=0) > 0]
    X = (X - X.mean(axis=0)) / X.std(axis=0)
    if len(np.unique(y)) == 2:
        return Table(name, X, (y == y.max()).astype(int), "logistic")
    return Table(name, X, (y - y.mean()) / y.std(), "squared")


LOSSES: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "logistic": lambda f, y: torch.nn.functional.softplus((1 - 2 * y) * f).mean(),
    "squared": lambda f, y: 0.5 * ((f - y) ** 2).mean(),
}


def by_adam(table: Table, weight_decay: float) -> torch.nn.Module:
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(table.X.shape[1], WIDTH), torch.nn.ReLU(), torch.nn.Linear(WIDTH, 1))
    network = network.double()
    X, y = torch.from_numpy(table.X), torch.from_numpy(table.y).double()
    optimiser = torch.optim.Adam(network.parameters(), lr=3e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, STEPS)
    *penalised, _ = network.parameters()
    for _ in range(STEPS):
        optimiser.zero_grad()
        penalty = sum((p**2).sum() for p in penalised)
        (LOSSES[table.loss](network(X)[:, 0], y) + weight_decay / 2 * penalty).backward()
        optimiser.step()
        schedule.step()
    return network


def proved(network: torch.nn.Module, table: Table, file: Path, **options: Any) -> convexnn.OptimalityGap:
    gap = convexnn.optimality_gap(
        network,
        table.X,
        table.y,
        loss=table.loss,
        random_state=0,
        out=file,
        tol=AIM,
        **options,
    )
    facts = check_file(file).facts
    assert any("within" in fact for fact in facts)
    return gap


def row(table: Table, weight_decay: float, seconds: float) -> str:
    ours = convexnn.train(
        table.X, table.y, loss=table.loss, weight_decay=weight_decay, random_state=0, tol=1e-5, max_seconds=10
    ).network
    adam = by_adam(table, weight_decay)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "proof.json.gz"
        gap = proved(ours, table, file, weight_decay=weight_decay, proof="tree", timeout=seconds, max_seconds=5)
        checking, size = accepted(file)
        other = proved(
            adam, table, file, weight_decay=weight_decay, proof="fast", timeout=1e-9, max_seconds=1, resume=file
        )
    took, stage = next((t, name) for name, t, bound in gap.proof.stages if bound == gap.bound)
    n, d = table.X.shape
    evidence = 1 - gap.local_search_bound / gap.objective
    return (
        f"| {table.name}, n={n} d={d}, {table.loss} | {gap.bound:.7f} | {gap.objective:.7f} | {100 * gap.gap:.3f} % | "
        f"{gap.n_neurons} | {other.objective:.7f} | {100 * other.gap:.3f} % | {other.n_neurons} | {evidence:.1e} | "
        f"{took:.1f} | {checking:.1f} | {size // 1000} | {stage} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", default="", help="part of a name")
    parser.add_argument("--weight-decay", type=float, default=1e-1)
    parser.add_argument("--seconds", type=float, default=60.0, help="for the proof of a table")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(
        "| table | proved bound | global training | gap | neurons | Adam | gap | neurons | evidence | s | s to check "
        "| kB | by |\n|---|---|---|---|---|---|---|---|---|---|---|---|---|"
    )
    for name in QUICK if options.quick else (*UCI, *SKLEARN):
        if options.only in name:
            print(
                row(sklearn(name) if name in SKLEARN else uci(name), options.weight_decay, options.seconds), flush=True
            )


if __name__ == "__main__":
    main()
