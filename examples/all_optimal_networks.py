"""Two optimal networks: how far can they be from each other off the data, and which of them tests best?

Run it with: python examples/all_optimal_networks.py (draws all_optimal_networks.png where matplotlib is installed)
"""

import numpy as np
import torch
from sklearn.datasets import load_iris

from convexnn import optimal_set

torch.set_num_threads(1)

print("Iris, setosa and versicolor against virginica, squared loss, weight decay 0.02, all networks:\n")
X, labels = load_iris(return_X_y=True)
X = (X - X.mean(axis=0)) / X.std(axis=0)
print(optimal_set(X, np.where(labels == 2, 1.0, -1.0), weight_decay=2e-2, method="global", random_state=0))
print("\nThis is the rule: data without symmetry have one optimum.\n")

SIDE = np.linspace(-1, 1, 5)
grid = np.stack(np.meshgrid(SIDE, SIDE), -1).reshape(-1, 2)
target = (grid**2).sum(axis=1)
found = optimal_set(grid, target, weight_decay=1e-3, method="exact", random_state=0)
print(f"|x|^2 on a grid of 5 by 5, weight decay 0.001, all activation patterns:\n\n{found}\n")

rng = np.random.default_rng(0)
near, far = rng.uniform(-1, 1, (200, 2)), rng.uniform(-2, 2, (200, 2))
choices = {
    "least norm": found.minimum_norm(),
    "vertex 1": found.random_vertex(1),
    "vertex 2": found.random_vertex(2),
    "best inside": found.validated(near, (near**2).sum(axis=1)),
    "best outside": found.validated(far, (far**2).sum(axis=1)),
    "sparse in features": found.least_l1(),
}


def mean_square(network: torch.nn.Sequential, X: np.ndarray) -> float:
    with torch.no_grad():
        f = network(torch.from_numpy(X))[:, 0].numpy()
    return float(np.mean((f - (X**2).sum(axis=1)) ** 2))


print("optimal network     neurons      objective   on the grid   inside   outside")
for name, element in choices.items():
    errors = [mean_square(element.network, part) for part in (grid, near, far)]
    print(
        f"{name:18s} {element.n_neurons:8d} {element.objective:14.10f} {errors[0]:13.8f} {errors[1]:8.5f} "
        f"{errors[2]:9.5f}"
    )

vertices = [found.random_vertex(seed).weights for seed in range(30)]
M, shift = found.outputs_at(far)
outputs = np.stack([M @ x + shift for x in vertices])
spread = (outputs.max(axis=0) - outputs.min(axis=0)).max()
print(f"\nLargest difference of two of 30 random vertices on [-2, 2]^2: {spread:.3f}; on the grid: none.")

try:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
except ImportError:
    print("matplotlib is not installed: no figure")
else:
    fine = np.linspace(-2, 2, 81)
    points = np.stack(np.meshgrid(fine, fine), -1).reshape(-1, 2)
    M, shift = found.outputs_at(points)
    surfaces = np.stack([M @ x + shift for x in vertices])
    panels = (("one vertex", surfaces[1]), ("another vertex", surfaces[2]), ("spread of 30", np.ptp(surfaces, axis=0)))
    figure, axes = plt.subplots(1, 3, figsize=(12, 4))
    for panel, (title, values) in zip(axes, panels, strict=True):
        drawn = panel.contourf(fine, fine, values.reshape(81, 81), levels=20)
        panel.plot(*grid.T, "k.", markersize=3)
        panel.set_title(title)
        figure.colorbar(drawn, ax=panel)
    figure.tight_layout()
    figure.savefig("all_optimal_networks.png", dpi=120)
    print("all_optimal_networks.png drawn")
