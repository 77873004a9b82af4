"""How much does a fixed set of activation patterns cost? Objective against the number of patterns.

Run it with: python examples/patterns.py (draws patterns.png where matplotlib is installed, else text)
"""

import numpy as np
import torch

from convexnn import train

torch.set_num_threads(1)
rng = np.random.default_rng(0)
X = rng.standard_normal((40, 3))
y = np.maximum(X @ rng.standard_normal((3, 4)), 0) @ np.array([1.0, -1.0, 1.0, -1.0]) + 0.1 * rng.standard_normal(40)
OPTIONS = {"weight_decay": 1e-2, "hidden_bias": False, "output_bias": False, "random_state": 0, "tol": 1e-6}
COUNTS = (2, 5, 10, 20, 50, 100, 200, 500)

sampled = [train(X, y, method="interior-point", n_patterns=count, **OPTIONS) for count in COUNTS]
refined = train(X, y, method="interior-point", n_patterns=10, refine=True, **OPTIONS)
exact = train(X, y, method="exact", **OPTIONS)
best = train(X, y, method="global", **OPTIONS)

print("40 samples in three dimensions, squared loss\n")
print("method                   patterns   objective       bound  it covers")
for result in sampled:
    print(
        f"sampled                  {result.program.n_patterns:8d} {result.objective:11.7f} {result.bound:11.7f}  "
        "these patterns"
    )
for name, result, covers in (
    ("sampled 10, refined", refined, "all patterns, by local search"),
    ("all patterns", exact, "all patterns, listed"),
    ("global", best, "all patterns, by local search"),
):
    count = "" if result.program is None else str(result.program.n_patterns)
    print(f"{name:24s} {count:>8s} {result.objective:11.7f} {result.bound:11.7f}  {covers}")

try:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
except ImportError:
    low, high = exact.objective, max(result.objective for result in sampled)
    print("\nobjective above the optimum (matplotlib is not installed, so in text):")
    for count, result in zip(COUNTS, sampled, strict=True):
        print(f"{count:6d} {'#' * round(60 * (result.objective - low) / (high - low))}")
else:
    figure, axes = plt.subplots(figsize=(6, 4))
    axes.semilogx(COUNTS, [result.objective for result in sampled], "o-", label="sampled patterns")
    axes.axhline(exact.objective, color="black", linewidth=1, label=f"all {exact.program.n_patterns} patterns")
    axes.plot([10], [refined.objective], "s", label="10 patterns, refined")
    axes.set_xlabel("random activation patterns")
    axes.set_ylabel("training objective")
    axes.legend()
    figure.tight_layout()
    figure.savefig("patterns.png", dpi=120)
    print("\npatterns.png drawn")

solved = sum(result.program.gap <= OPTIONS["tol"] for result in sampled)
meeting = [result.objective for result in (refined, exact, best)]
few, many = (result.objective / exact.objective for result in (sampled[0], sampled[-1]))
print(f"\n{solved} of {len(sampled)} sampled programs are solved to a gap of {OPTIONS['tol']:g}.")
print("That says nothing of other patterns.")
print(f"Their objectives over that of all patterns: {few:.4g} with {COUNTS[0]} patterns, {many:.6g} with {COUNTS[-1]}.")
print(f"The refined, the exact and the global run end within {max(meeting) / min(meeting) - 1:.1e} of each other.")
