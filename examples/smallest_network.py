"""How small can a network of Adam be made? First for nothing, then at a price, as a curve.

Run it with: python examples/smallest_network.py (draws smallest_network.png where matplotlib is installed, else text)
"""

import numpy as np
import torch
from sklearn.datasets import load_breast_cancer

from convexnn import prune, pruning_curve

WEIGHT_DECAY = 1e-2
WIDTH = 200
STEPS = 2000
torch.set_num_threads(1)

X, labels = load_breast_cancer(return_X_y=True)
X = (X - X.mean(axis=0)) / X.std(axis=0)
y = np.where(labels == 1, 1.0, -1.0)
held_out = np.random.default_rng(0).permutation(len(X)) < len(X) // 4
inputs, targets = torch.from_numpy(X[~held_out]), torch.from_numpy(y[~held_out])

torch.manual_seed(0)
network = torch.nn.Sequential(torch.nn.Linear(X.shape[1], WIDTH), torch.nn.ReLU(), torch.nn.Linear(WIDTH, 1)).double()
optimiser = torch.optim.Adam(network.parameters(), lr=1e-2)
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, STEPS)
*penalised, _output_bias = network.parameters()
for _ in range(STEPS):
    optimiser.zero_grad()
    loss = torch.nn.functional.softplus(-targets * network(inputs)[:, 0]).mean()
    (loss + WEIGHT_DECAY / 2 * sum((p**2).sum() for p in penalised)).backward()
    optimiser.step()
    schedule.step()

settings = {"loss": "logistic", "weight_decay": WEIGHT_DECAY}
print(f"Breast cancer, logistic loss, weight decay {WEIGHT_DECAY}: {WIDTH} neurons, {STEPS} steps of Adam\n")
for tol in (1e-8, 1e-6):
    pruned = prune(network, inputs, targets, tol=tol, **settings)
    print(f"Outputs on the training data kept to {tol:g}:\n{pruned}\n")

curves = {
    name: pruning_curve(
        network, inputs, targets, correction=name, test=(X[held_out], y[held_out]), **settings
    )
    for name in ("least-squares", "weight-decay", "slide")
}  # fmt: skip
for name, curve in curves.items():
    print(f"Below the rank, correction {name!r}:\n{curve}\n")

try:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
except ImportError:
    print("matplotlib is not installed: no figure")
else:
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4))
    for name, curve in curves.items():
        sizes = [point.n_neurons for point in curve.points]
        left.loglog(sizes, [point.objective for point in curve.points], "o-", label=name)
        right.semilogx(sizes, [point.test_accuracy for point in curve.points], "o-", label=name)
    left.axhline(pruned.objective_before, color="black", linewidth=1, label=f"Adam, {WIDTH} neurons")
    left.set_ylabel("training objective")
    right.set_ylabel("test accuracy")
    for axes in (left, right):
        axes.set_xlabel("neurons")
        axes.legend()
    figure.tight_layout()
    figure.savefig("smallest_network.png", dpi=120)
    print("smallest_network.png drawn")

best = curves["slide"].smallest()
print(f"\nThe smallest network that is no worse than Adam's (to 1e-6, all weights corrected): {best.n_neurons} neurons")
