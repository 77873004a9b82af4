"""Robust training of an image classifier: convex programs beside gradient descent, clean, attacked and certified.

Run it with: python examples/birds_and_ships.py [--quick] (draws birds_and_ships.png where matplotlib is installed)

CIFAR-10's birds against its ships, shrunk to 7 x 7 pixels of three colours as Bai et al. (2022) do, from
../shared/data where they are; elsewhere scikit-learn's digits 3 against 8 stand in. One seed, one weight decay and
short time limits: for five seeds, with the weight decay chosen on validation samples, see
benchmarks/robust_accuracy.py.
"""

import argparse
import io
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits

import certify
from convexnn import Robust, lower_worst_case, train
from convexnn.robust.ball import read_ball
from convexnn.robust.baselines import Attack, Descent, attacked_accuracy, train_by_descent

torch.set_num_threads(1)
SHARED = Path(__file__).resolve().parents[2] / "shared" / "data" / "cifar10_birds_ships_jpeg.npz"
DOMAIN, WIDTH = (0.0, 1.0), 40

parser = argparse.ArgumentParser()
parser.add_argument("--quick", action="store_true", help="fewer images, one radius")
quick = parser.parse_args().quick


def birds_and_ships() -> tuple[np.ndarray, np.ndarray]:
    """Means of 4 x 4 pixels, 147 features; +1 for birds."""
    from PIL import Image

    with np.load(SHARED) as file:
        ends, stream, y = file["offset"], file["jpeg"].tobytes(), file["y"]
    some = np.random.default_rng(0).permutation(len(y))[:2000]
    spans = list(pairwise(ends))
    images = np.stack([np.asarray(Image.open(io.BytesIO(stream[slice(*spans[k])]))) for k in some])
    means = images[:, :28, :28].reshape(-1, 7, 4, 7, 4, 3).mean((2, 4)) / 255
    return means.reshape(len(some), -1), np.where(y[some] == y.min(), 1.0, -1.0)


def threes_and_eights() -> tuple[np.ndarray, np.ndarray]:
    """64 pixels; +1 for the digit 3."""
    pixels, y = load_digits(return_X_y=True)
    mine = np.random.default_rng(0).permutation(np.flatnonzero((y == 3) | (y == 8)))
    return pixels[mine] / 16, np.where(y[mine] == 3, 1.0, -1.0)


try:
    X, y = birds_and_ships()
    title, radii, n = "birds and ships", ((10,) if quick else (4, 10)), (200 if quick else 400)
except (ImportError, FileNotFoundError) as reason:
    X, y = threes_and_eights()
    title, radii, n = "digits 3 and 8", ((50,) if quick else (20, 50)), (80 if quick else 120)
    print(f"no birds and ships here ({reason}): scikit-learn's digits 3 and 8 stand in\n")
mine, other = slice(0, n), slice(n, n + 500)


def networks(eps: float) -> dict[str, torch.nn.Module]:
    """One of each method, the same weight decay for all."""
    found, decay = {}, 3e-3
    for name, attack in (("GD", "std"), ("GD-FGSM", "fgsm"), ("GD-PGD", "pgd")):
        found[name] = train_by_descent(
            X[mine], y[mine], width=WIDTH, weight_decay=decay, attack=attack, eps=eps, domain=DOMAIN,
            descent=Descent(epochs=300),
        )  # fmt: skip
    options = {
        "loss": "hinge",
        "weight_decay": decay,
        "random_state": 0,
        "tol": 3e-2,
        "max_seconds": 10,
    }
    # Few images leave many patterns with hard cones, which take long in so many columns.
    for cones, n_patterns in (("hard", 4), ("soft", WIDTH // 2)):
        result = train(X[mine], y[mine], robust=Robust(eps, cones=cones), n_patterns=n_patterns, **options)
        found[cones] = result.network
        print(f"{cones} cones: {result.status.name}, certified objective {result.objective:.4f}\n{result.robust}\n")
    limits = {"tol": 1e-2, "max_rounds": 3, "max_seconds": 10}
    lowered = lower_worst_case(result.network, X[mine], y[mine], robust=eps, weight_decay=decay, **limits)
    found["soft + MM"] = lowered.network
    print("MM, certified objective: " + " -> ".join(f"{value:.4f}" for value in lowered.history) + "\n")
    assert list(lowered.history) == sorted(lowered.history, reverse=True)  # it never rises
    return found


bars = {}
for radius in radii:
    eps, rows = radius / 255, {}
    print(f"--- {title}, {n} images to train on, l_inf {radius}/255\n")
    trained = networks(eps)
    attack = Attack(read_ball(eps, "linf", X.shape[1], hidden_bias=False), 20, 1, DOMAIN)
    print("method       clean    FGSM     PGD   certified (CROWN)")
    for name, network in trained.items():
        seen = attacked_accuracy(network, X[other], y[other], attack=attack)
        labels = (y[other] > 0).astype(int)
        report = certify.certified_accuracy(network, X[other], labels, eps=eps, method="crown", domain=DOMAIN)
        rows[name] = (seen.clean, seen.fgsm, seen.pgd, report.certified)
        print(f"{name:10s}  {seen.clean:6.1%}  {seen.fgsm:6.1%}  {seen.pgd:6.1%}  {report.certified:6.1%}")
        assert report.certified <= seen.pgd + 1e-9 <= seen.clean + 2e-9  # what is proved survives every attack
    bars[radius] = rows
    print()

try:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
except ImportError:
    print("matplotlib is not installed: no figure")
else:
    figure, panels = plt.subplots(1, len(bars), figsize=(5 * len(bars), 3.6), sharey=True, squeeze=False)
    for panel, (radius, rows) in zip(panels[0], bars.items(), strict=True):
        for k, (kind, colour) in enumerate((("clean", "#9dc3e6"), ("PGD", "#f4b183"), ("certified", "#1f4e79"))):
            heights = [100 * row[(0, 2, 3)[k]] for row in rows.values()]
            panel.bar(np.arange(len(rows)) + 0.27 * (k - 1), heights, 0.25, label=kind, color=colour)
        panel.set_xticks(range(len(rows)), rows, rotation=30, fontsize=8)
        panel.set_ylim(max(0, 100 * min(min(row) for row in rows.values()) - 10), 100)
        panel.set_title(f"{title}, {radius}/255", fontsize=10)
    panels[0, 0].set_ylabel("right, in percent")
    panels[0, 0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig("birds_and_ships.png", dpi=120)
    print("birds_and_ships.png drawn")
