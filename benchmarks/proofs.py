"""Proved gaps of globally trained networks, every figure from the exact checker.

    python -m benchmarks.proofs            # all problems
    python -m benchmarks.proofs --quick    # the small ones

Columns of norm one, no biases, weight decay 1e-2, squared loss. Teacher problems "n.. d..": numpy's default_rng(0), X
Gaussian, five ReLU neurons with Gaussian weights / sqrt(d) and signs +1 -1 +1 -1 +1, noise 0.1, drawn in that order;
breast cancer (scikit-learn): standardised, targets +1 and -1. "gap" is what ``certify.proof.check`` accepts for the
network of ``convexnn.train``, read back from the file; "evidence" the gap to the local-search bound.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch

import convexnn
from benchmarks.checked import accepted
from benchmarks.training import breast_cancer, unit_columns

WEIGHT_DECAY = 1e-2
# name, samples, columns (0: breast cancer), effort, seconds and gap that the project set itself
CELLS = (
    ("n40 d4", 40, 4, "tree", 10, 1e-3),
    ("n200 d5", 200, 5, "tree", 10, 1e-3),
    ("n60 d6", 60, 6, "tree", 60, 1.3e-2),
    ("n500 d10", 500, 10, "tree", 120, 1e-2),
    ("n500 d20", 500, 20, "tree", 300, 2.2e-2),
    ("breast cancer n569 d30", 569, 0, "tree", 300, 8e-3),
)
QUICK = CELLS[:2]


def problem(n: int, d: int) -> tuple[np.ndarray, np.ndarray]:
    if d == 0:
        X, y = breast_cancer()
        return X, y[:, 0]
    rng = np.random.default_rng(0)
    X = rng.standard_normal((n, d))
    W = rng.standard_normal((d, 5)) / np.sqrt(d)
    y = np.maximum(X @ W, 0) @ np.array([1, -1, 1, -1, 1.0]) + 0.1 * rng.standard_normal(n)
    return unit_columns(X), y


def run(name: str, n: int, d: int, how: str, seconds: float, aim: float) -> str:
    X, y = problem(n, d)
    biases = {"hidden_bias": False, "output_bias": False}
    network = convexnn.train(
        X, y, weight_decay=WEIGHT_DECAY, random_state=0, tol=1e-5, max_seconds=20, **biases
    ).network
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "proof.json.gz"
        gap = convexnn.optimality_gap(
            network,
            X,
            y,
            weight_decay=WEIGHT_DECAY,
            random_state=0,
            proof=how,
            timeout=0.9 * seconds,
            tol=aim,
            out=file,
        )
        checking, size = accepted(file)
    took = next(t for _, t, bound in gap.proof.stages if bound == gap.bound)
    evidence = 1 - gap.local_search_bound / gap.objective
    met = "yes" if gap.gap <= aim and took <= seconds else "no"
    return (
        f"| {name} | {gap.objective:.8f} | {gap.bound:.8f} | {100 * gap.gap:.3f} % | {took:.1f} | {100 * aim:g} % in "
        f"{seconds} s: {met} | {evidence:.1e} | {checking:.2f} | {size // 1000} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", default="", help="part of a name")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| problem | objective | proved bound | proved gap | s | aim | evidence | s to check | kB |")
    print("|---|---|---|---|---|---|---|---|---|")
    for cell in QUICK if options.quick else CELLS:
        if options.only in cell[0]:
            print(run(*cell), flush=True)


if __name__ == "__main__":
    main()
