"""Is the network that Adam found globally optimal? A bound over all widths gives the answer.

Run it with: python examples/is_adam_globally_optimal.py [adam.json.gz]
The file that it writes is for: certify check adam.json.gz
"""

import sys
import time
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_breast_cancer

from certify.proof.artefact import RejectedError, load
from certify.proof.check import check, check_file
from certify.proof.check.training import read_claim
from certify.proof.writing import document
from convexnn import optimality_gap, train

WEIGHT_DECAY = 1e-2
WIDTH = 100
STEPS = 1200
torch.set_num_threads(1)  # for a problem of this size two threads would only wait for each other

X, labels = load_breast_cancer(return_X_y=True)
X = (X - X.mean(axis=0)) / X.std(axis=0)
y = np.where(labels == 1, 1.0, -1.0)


def adam(steps: int) -> tuple[torch.nn.Sequential, float]:
    """A network trained by Adam on the objective that convexnn minimises, and the seconds it took."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Linear(X.shape[1], WIDTH), torch.nn.ReLU(), torch.nn.Linear(WIDTH, 1)
    ).double()
    optimiser = torch.optim.Adam(network.parameters(), lr=3e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    inputs, targets = torch.from_numpy(X), torch.from_numpy(y)
    *penalised, _output_bias = network.parameters()
    start = time.perf_counter()
    for _ in range(steps):
        optimiser.zero_grad()
        loss = torch.nn.functional.softplus(-targets * network(inputs)[:, 0]).mean()
        penalty = sum((p**2).sum() for p in penalised)
        (loss + WEIGHT_DECAY / 2 * penalty).backward()
        optimiser.step()
        schedule.step()
    return network, time.perf_counter() - start


print(f"Breast cancer, logistic loss, weight decay {WEIGHT_DECAY}: Adam with {WIDTH} neurons\n")
print("  steps   seconds    objective        bound   at most this far above the optimum")
for steps in (STEPS // 24, STEPS // 4, STEPS):
    network, seconds = adam(steps)
    gap = optimality_gap(
        network, X, y, loss="logistic", weight_decay=WEIGHT_DECAY, tol=1e-3, max_seconds=10, random_state=0
    )
    print(f"{steps:7d} {seconds:9.2f} {gap.objective:12.8f} {gap.bound:12.8f} {gap.gap:12.2%}")

result = train(X, y, loss="logistic", weight_decay=WEIGHT_DECAY, tol=1e-4, max_seconds=20, random_state=0)
print(f"\nTraining that adds neurons until the bound is met, for comparison:\n{result}")
print(f"""
Adam is quick to come close, and says nothing about how close. The bound does, for any network of this
form. Its kind here is {result.bound_kind!r}: the search for a better neuron found none. That is strong
evidence, not a proof.""")

path = Path(sys.argv[1] if len(sys.argv) > 1 else "adam.json.gz")
proved = optimality_gap(
    network, X, y, loss="logistic", weight_decay=WEIGHT_DECAY, tol=1e-3, random_state=0,
    proof="fast", timeout=10, out=path,
)  # fmt: skip
print(f"\nThis is a proof, of the last network of Adam (more time makes it closer):\n{proved}\n")
print(f"certify check {path}: {check_file(path)}\n")

held = load(path)
held["claim"]["bound"]["values"] += held["claim"]["bound"]["values"] // 1000
forged = document("training", held["claim"], read_claim(held["claim"]).digest, held["proof"])
try:
    check(forged)
except RejectedError as error:
    print(f"A bound that is 0.1 % higher, with the same proof: rejected, {error}")
