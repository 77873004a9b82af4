"""A decision boundary with and without robust training, on points of the plane with a box around each.

Run it with: python examples/robust_two_dimensional.py (draws robust_two_dimensional.png where matplotlib is installed)

The illustration of Bai, Gautam & Sojoudi (2022): labels are kept on whole boxes only where training asks for it.
"""

import numpy as np
import torch

import certify
from convexnn import Robust, train

torch.set_num_threads(1)
EPS = 0.08
rng = np.random.default_rng(3)

# Points of two classes whose boxes of half-width EPS do not meet: a network that keeps every label exists.
points: list[np.ndarray] = []
labels: list[float] = []
while len(points) < 40:
    x = rng.uniform(-1, 1, 2)
    label = 1.0 if x[1] > 0.5 * np.sin(3.5 * x[0]) else -1.0
    others = [p for p, other in zip(points, labels, strict=True) if other != label]
    if all(np.abs(x - p).max() > 2.2 * EPS for p in others):
        points.append(x)
        labels.append(label)
X, y = np.array(points), np.array(labels)

options = {"loss": "hinge", "weight_decay": 1e-3, "n_patterns": 200, "random_state": 0}
runs = {
    "not robust": train(X, y, robust=0.0, **options),
    "soft cones": train(X, y, robust=Robust(EPS), **options),
    "hard cones": train(X, y, robust=Robust(EPS, cones="hard"), **options),
}

print(f"{len(X)} points of the plane, boxes of half-width {EPS}\n")
print("training     neurons    objective   own gap   right   under attack   proved on the whole box")
for name, result in runs.items():
    report = certify.certified_accuracy(result.network, X, (y > 0).astype(int), eps=EPS, method="complete")
    print(
        f"{name:12s} {result.n_neurons:7d}  {result.objective:11.5f}   {result.gap:.1e}  {report.clean:6.1%}  "
        f"{report.attacked:12.1%}  {report.certified:14.1%}"
    )
print(f"\n{runs['hard cones'].robust}")

# Hard cones keep some of the patterns that soft ones have, so that their optimum is never better.
assert runs["soft cones"].robust.bound <= runs["hard cones"].robust.objective

try:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
except ImportError:
    print("\nmatplotlib is not installed: no figure")
else:
    axis = np.linspace(-1.15, 1.15, 300)
    grid = np.stack(np.meshgrid(axis, axis), -1)
    figure, panels = plt.subplots(1, 3, figsize=(12, 4), sharey=True)
    for panel, (name, result) in zip(panels, runs.items(), strict=True):
        with torch.no_grad():
            f = result.network(torch.tensor(grid.reshape(-1, 2)))[:, 0].reshape(grid.shape[:2]).numpy()
        panel.contourf(axis, axis, f > 0, levels=[-0.5, 0.5, 1.5], colors=["#d9e6f5", "#fbe3cf"])
        for x, label in zip(X, y, strict=True):
            colour = "#c55a11" if label > 0 else "#1f4e79"
            panel.add_patch(plt.Rectangle(x - EPS, 2 * EPS, 2 * EPS, fill=False, color=colour, linewidth=0.8))
            panel.plot(*x, ".", color=colour)
        panel.set_title(name)
        panel.set_aspect("equal")
    figure.tight_layout()
    figure.savefig("robust_two_dimensional.png", dpi=120)
    print("\nrobust_two_dimensional.png drawn")
