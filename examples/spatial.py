"""Smoothly deformed digits: a field that changes the label, and what is certified over delta and gamma.

    python examples/spatial.py [--quick]

Trains a small network on scikit-learn's digits (8 x 8 pixels), proves how far one of them can be bent, and draws the
image, the field that fools the network, the deformed image, and a map of what is certified.
"""

import argparse

import matplotlib
import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

import certify

matplotlib.use("Agg")
import matplotlib.pyplot as plt

WORDS = {certify.Status.VERIFIED: 1.0, certify.Status.FALSIFIED: -1.0}


def trained(images, labels):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 20), nn.ReLU(), nn.Linear(20, 10))
    optimiser = torch.optim.Adam(network.parameters(), lr=5e-3, weight_decay=1e-3)
    for _ in range(300):
        optimiser.zero_grad()
        nn.functional.cross_entropy(network(images), labels).backward()
        optimiser.step()
    return network.eval()


def answers(network, image, label, deltas, gammas):
    """1 certified, -1 falsified, 0 unknown. What holds for larger sets holds for smaller ones."""
    found = np.zeros((len(gammas), len(deltas)))
    for i, gamma in enumerate(gammas):
        for j, delta in enumerate(deltas):
            if (found[:i, j] == 1).any() or (found[i, :j] == -1).any():
                found[i, j] = 1 if (found[:i, j] == 1).any() else -1
                continue
            region = certify.VectorField(image, delta, gamma=gamma)
            verdict = certify.verify(network, image, label=label, region=region, method="crown")
            found[i, j] = WORDS.get(verdict.status, 0.0)
            print(
                f"  delta {delta:.2f}, gamma {gamma}: {verdict.status.name}, margin at least {verdict.worst_margin:.3f}"
            )
    return found


def draw(image, verdict, found, deltas, gammas):
    figure, axes = plt.subplots(1, 4, figsize=(15, 3.6))
    rows, columns = np.mgrid[: image.shape[0], : image.shape[1]]
    axes[0].imshow(image, cmap="gray")
    axes[0].set_title("image")
    axes[1].imshow(image, cmap="gray", alpha=0.4)
    axes[1].set_title("no field found")
    axes[2].set_title("-")
    if verdict is not None:
        axes[1].quiver(columns, rows, *verdict.flow, angles="xy", scale_units="xy", scale=1, color="tab:red")
        axes[1].set_title("where each pixel looks")
        axes[2].imshow(verdict.counterexample, cmap="gray")
        axes[2].set_title("deformed: another label")
    axes[3].imshow(found, cmap="RdYlGn", vmin=-1, vmax=1, aspect="auto", origin="lower")
    axes[3].set_xticks(range(len(deltas)), [f"{d:g}" for d in deltas])
    axes[3].set_yticks(range(len(gammas)), ["any" if g is None else f"{g:g}" for g in gammas])
    axes[3].set(xlabel="delta (pixels)", ylabel="gamma", title="green: certified, red: falsified")
    figure.tight_layout()
    figure.savefig("spatial.png", dpi=120)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a coarser map")
    options = parser.parse_args()
    torch.set_num_threads(1)
    digits = load_digits()
    images, labels = torch.from_numpy(digits.images / 16.0), torch.from_numpy(digits.target)
    network = trained(images[200:].float(), labels[200:])
    k = int((network(images[:200].float()).argmax(1) == labels[:200]).nonzero()[3])
    image, label = images[k].numpy(), int(labels[k])
    deltas = [0.1, 0.3] if options.quick else [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    gammas = [None, 0.1] if options.quick else [None, 0.5, 0.25, 0.1, 0.05]
    print(f"digit {label}, 8 x 8 pixels")
    found = answers(network, image, label, deltas, gammas)
    fooled = None
    for delta in (0.5, 0.8, 1.2):  # the smallest of these that a smooth field needs
        region = certify.VectorField(image, delta, gamma=0.25)
        verdict = certify.verify(network, image, label=label, region=region, method="ibp")
        if verdict.status is certify.Status.FALSIFIED:
            outputs = network(torch.from_numpy(verdict.counterexample)[None])
            print(f"a field of length {delta} and gamma 0.25 makes the {label} a {int(outputs.argmax())}")
            fooled = verdict
            break
    draw(image, fooled, found, deltas, gammas)
    print("figure: spatial.png")


if __name__ == "__main__":
    main()
