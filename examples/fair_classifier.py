"""A classifier whose mean score for two groups differs by at most a given gap, and what each bit of that gap costs.

Run it with: python examples/fair_classifier.py (draws fair_classifier.png where matplotlib is installed)

The table is heart disease (270 patients, from ../shared/data/uci.npz) where that is there, and scikit-learn's diabetes
study (442 patients, disease progression above its median) elsewhere; the groups are the two sexes, and the network does
not see that column. The loss against the allowed gap is a convex curve, and the multiplier is minus its slope.
"""

from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_diabetes

from convexnn import demographic_parity, train

torch.set_num_threads(1)
SHARED = Path(__file__).resolve().parents[2] / "shared" / "data" / "uci.npz"
WEIGHT_DECAY, SHARES = 1e-2, (0.0, 0.25, 0.5, 0.75, 1.2)


def table() -> tuple[str, np.ndarray, np.ndarray, np.ndarray]:
    """A name, features, labels -1 and +1, and the sex of each patient."""
    if SHARED.exists():
        with np.load(SHARED) as file:
            X, y = file["statlog_heart__X"].astype(float), file["statlog_heart__y"]
        name, column = "heart disease", 1
    else:
        X, target = load_diabetes(return_X_y=True)
        name, column, y = "diabetes progression (../shared is not there)", 1, target > np.median(target)
    sex = np.where(X[:, column] == X[:, column].max(), "1", "0")
    return name, np.delete(X, column, 1), np.where(y > 0, 1.0, -1.0), sex


name, X, y, sex = table()
order = np.random.default_rng(0).permutation(len(X))
mine, other = order[: int(0.7 * len(X))], order[int(0.7 * len(X)) :]
X = (X - X[mine].mean(0)) / X[mine].std(0)


def scores(network: torch.nn.Module, rows: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return network(torch.from_numpy(X[rows]))[:, 0].numpy()


def gap(values: np.ndarray, rows: np.ndarray) -> float:
    return abs(values[sex[rows] == "1"].mean() - values[sex[rows] == "0"].mean())


options = {"loss": "logistic", "weight_decay": WEIGHT_DECAY, "method": "interior-point", "n_patterns": 40}
options |= {"random_state": 0, "tol": 1e-4}
# The patterns are the same in all runs: a limit that no network reaches shows what is lost without any.
free = gap(
    scores(train(X[mine], y[mine], constraints=demographic_parity(sex[mine], 100.0), **options).network, mine), mine
)
runs = [
    (share * free, train(X[mine], y[mine], constraints=demographic_parity(sex[mine], share * free), **options))
    for share in SHARES
]

print(
    f"{name}: {len(mine)} patients to train on, {len(other)} others\n"
    f"without a limit the mean scores of the two sexes differ by {free:.3f}\n"
)
print("allowed   objective   bound      multiplier   neurons   |   others: mean scores differ   positive rates   right")
for limit, result in runs:
    values = scores(result.network, other)
    rates = [(values[sex[other] == group] > 0).mean() for group in "01"]
    right = ((values > 0) == (y[other] > 0)).mean()
    price = sum(result.constraints.multipliers)
    print(
        f"{limit:7.3f}   {result.objective:.6f}   {result.bound:.6f}   {price:10.4f}   {result.n_neurons:7d}   |   "
        f"{gap(values, other):27.3f}   {rates[0]:6.1%} {rates[1]:6.1%}   {right:6.1%}"
    )
print("\nThe limit is on mean scores of the training patients: it bounds neither decisions nor other patients.")

# A convex curve lies above its tangents, and each network keeps to its own limit.
for limit, result in runs:
    assert result.constraints.violation <= result.constraints.tolerance
    assert gap(scores(result.network, mine), mine) <= limit + 1e-6
    for elsewhere, there in runs:
        tangent = result.bound - sum(result.constraints.multipliers) * (elsewhere - limit)
        assert there.objective >= tangent - 1e-9

try:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
except ImportError:
    print("\nmatplotlib is not installed: no figure")
else:
    figure, panel = plt.subplots(figsize=(6, 4))
    panel.plot([limit for limit, _ in runs], [result.objective for _, result in runs], "o-", color="#1f4e79")
    width = 0.12 * free
    for limit, result in runs:
        ends, slope = np.array([-width, width]), -sum(result.constraints.multipliers)
        panel.plot(limit + ends, result.objective + slope * ends, color="#c55a11", linewidth=2)
    panel.set_xlabel("allowed difference of mean scores")
    panel.set_ylabel("objective")
    panel.set_title(f"{name}: the price of parity (slopes are multipliers)", fontsize=10)
    figure.tight_layout()
    figure.savefig("fair_classifier.png", dpi=120)
    print("\nfair_classifier.png drawn")
