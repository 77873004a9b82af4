"""How the optimal network moves with weight decay, and which weight decay tests best.

Run it with: python examples/regularisation_path.py (draws regularisation_path.png where matplotlib is installed)
"""

import numpy as np
import torch
from sklearn.datasets import load_breast_cancer

from convexnn import path, sensitivity

torch.set_num_threads(1)
X, labels = load_breast_cancer(return_X_y=True)
X = (X - X.mean(axis=0)) / X.std(axis=0)
y = np.where(labels == 1, 1.0, -1.0)
held_out = np.random.default_rng(0).permutation(len(X)) < len(X) // 3
settings = {"loss": "logistic", "random_state": 0}

found = path(X[~held_out], y[~held_out], n_points=8, tol=1e-3, test=(X[held_out], y[held_out]), **settings)
print(f"Breast cancer, logistic loss, null level {found.null_level:.4g}:\n\n{found}\n")

best = found.best()
print(f"Least test loss at weight decay {best.weight_decay:.3g}: {best.n_neurons} neurons,")
print(f"test accuracy {best.test_accuracy:.3f}.")

moved = sensitivity(best.network, X[~held_out], y[~held_out], loss="logistic", weight_decay=best.weight_decay)
by_sample = moved.outputs_by_sample_weight.abs().sum(dim=0)
print(f"\nDerivatives there ({moved.n_kinks} samples on kinks, next change {moved.distance:.1e} away):")
print(f"  d objective / d weight decay   {moved.objective_by_weight_decay:.4f}")
print(f"  largest d output / d weight decay   {moved.outputs_by_weight_decay.abs().max():.4f}")
half = int((by_sample.sort(descending=True).values.cumsum(dim=0) < by_sample.sum() / 2).sum()) + 1
print(f"  {half} of {len(by_sample)} samples have half of all influence on the outputs")

try:
    import matplotlib

    matplotlib.use("Agg")
except ImportError:
    print("matplotlib is not installed: no figure")
else:
    left, _ = found.plot()
    left.figure.tight_layout()
    left.figure.savefig("regularisation_path.png", dpi=120)
    print("\nregularisation_path.png drawn")
