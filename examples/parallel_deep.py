"""Deeper networks that stay convex: parallel three-layer ReLU networks, and what depth does to linear ones.

Run it with: python examples/parallel_deep.py (draws parallel_deep.png where matplotlib is installed, else text)
"""

import numpy as np
import torch

from convexnn import depth_gaps, train, train_linear, train_parallel, train_rank_one

WEIGHT_DECAY = 2e-3
torch.set_num_threads(1)
rng = np.random.default_rng(0)

# A function of one variable with four pieces, from 40 noisy samples: two layers of kinks.
x = np.sort(rng.uniform(-1, 1, 40))
bumps = np.maximum(1 - 4 * np.abs(np.abs(x) - 0.5), 0)
y = bumps + 0.05 * rng.standard_normal(len(x))
X = x[:, None]

settings = {"weight_decay": WEIGHT_DECAY, "random_state": 0}
sampled = train_parallel(X, y, n_first=20, n_second=10, **settings)
print(f"Three layers, sampled patterns of both:\n{sampled}\n")
refined = train_parallel(X, y, n_first=20, n_second=10, refine=True, tol=1e-2, max_seconds=6.0, **settings)
print(f"And with patterns added where that pays:\n{refined}\n")
shallow = train(X, y, **settings)
print(f"Two layers, all patterns:\n{shallow}\n")

# Linear networks: the penalty of a standard one is not convex from depth three on, that of parallel branches is.
features = np.linalg.qr(rng.standard_normal((100, 8)))[0] * 10
targets = features @ rng.standard_normal((8, 5)) * np.geomspace(2, 0.1, 5) + 0.1 * rng.standard_normal((100, 5))
decays = np.geomspace(0.01, 3, 25)
curves = {
    "parallel, any depth": [
        train_linear(features, targets, weight_decay=decay, depth=3, output_bias=False).rank for decay in decays
    ]
}
for depth in (3, 5):
    curves[f"standard, depth {depth}"] = [
        train_linear(
            features, targets, weight_decay=decay, depth=depth, architecture="standard", output_bias=False
        ).rank
        for decay in decays
    ]
gaps = depth_gaps(features, targets, weight_decay=0.1, depths=range(2, 9), output_bias=False)
print("Standard linear networks, weight decay 0.1\ndepth  optimum   dual      gap      rank")
for one in gaps:
    print(f"{one.depth:5d}  {one.objective:.6f}  {one.dual:.6f}  {one.gap:.1e}  {one.rank}")

line = np.outer(x, [1.0, 2.0])
one = train_rank_one(line, np.abs(x) - 0.3 * x, weight_decay=1e-2)
print(f"\nData of rank one, three layers in closed form:\n{one}")

try:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
except ImportError:
    print("matplotlib is not installed: no figure")
else:
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(14, 4))
    grid = torch.linspace(-1.1, 1.1, 400, dtype=torch.float64)[:, None]
    left.plot(x, y, ".", color="black")
    for name, found in (("sampled", sampled), ("refined", refined), ("two layers", shallow)):
        with torch.no_grad():
            left.plot(grid, found.network(grid), label=f"{name}: {found.objective:.4f}")
    left.set_title("outputs, and objectives")
    for name, ranks in curves.items():
        middle.step(decays, ranks, where="mid", label=name)
    middle.set_xscale("log")
    middle.set_xlabel("weight decay")
    middle.set_title("rank of linear networks")
    right.plot([one.depth for one in gaps], [one.objective for one in gaps], "o-", label="optimum")
    right.plot([one.depth for one in gaps], [one.dual for one in gaps], "o-", label="dual")
    right.set_xlabel("depth")
    right.set_title("standard linear networks")
    for axes in (left, middle, right):
        axes.legend()
    figure.tight_layout()
    figure.savefig("parallel_deep.png", dpi=120)
    print("parallel_deep.png drawn")
