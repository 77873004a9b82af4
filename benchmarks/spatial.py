"""Certificates against vector fields on MNIST networks: certified share over delta and gamma, and the attack's ceiling.

    python -m benchmarks.spatial [--networks dense robust convolutional] [--norms linf] [--deltas 0.1 0.2 0.3 0.5]
        [--gammas inf 0.5 0.25 0.1] [--method crown] [--limit 100] [--results runs/spatial] [--quick]

The first images of the test set; an image counts where the network labels it rightly. Cells: per cent certified / for
which the attack finds no field. `certify.accuracy_map` chooses what is bounded and attacked. Seconds are CPU
seconds of one thread for a bound, without the attack. With `--results` a run that was stopped goes on.
"""

import argparse
import itertools
from math import inf
from pathlib import Path

import numpy as np
import torch
from torch import nn

import certify
from benchmarks.data import shared_file
from certify.bounds import METHODS

FILES = {
    "dense": "mnist_fc_784_128_64_10.npz",
    "robust": "chiu_ADV_MNIST.npz",
    "convolutional": "mnist_cnn_a_adv.npz",
}


def load(name: str) -> nn.Module:
    """A network that reads images (1, 28, 28)."""
    stored = np.load(shared_file(f"nets/{FILES[name]}"))
    pairs = [
        (torch.from_numpy(stored[k]), torch.from_numpy(stored["b" + k[1:]])) for k in sorted(stored) if k[0] == "W"
    ]
    layers: list[nn.Module] = []
    for weight, bias in pairs:
        if weight.ndim == 4:
            layer: nn.Module = nn.Conv2d(*weight.shape[1::-1], weight.shape[2], stride=2, padding=1)
        else:
            if not any(isinstance(one, nn.Flatten) for one in layers):
                layers.append(nn.Flatten())
            layer = nn.Linear(*weight.shape[::-1])
        layer.load_state_dict({"weight": weight, "bias": bias})
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1]).eval()


def shown(found: certify.AccuracyMap, norm: str, deltas: list[float], gammas: list[float]) -> None:
    """A table of one norm."""
    number = {(r.name, r.delta, inf if r.gamma is None else r.gamma): k for k, r in enumerate(found.regions)}
    print(f"\n| {norm}, gamma | " + " | ".join(f"delta {delta:g}" for delta in deltas) + " |")
    print("|---|" + "---|" * len(deltas))
    for gamma in gammas:
        index = [number[norm, delta, gamma] for delta in deltas]
        cells = zip(100 * found.certified[index], 100 * found.attacked[index], strict=True)
        print(f"| {gamma:g} | " + " | ".join(f"{low:.0f} / {high:.0f}" for low, high in cells) + " |")


def timed(found: certify.AccuracyMap) -> None:
    """Seconds of the bounds that were needed, without gamma and with it."""
    with_gamma = np.array([region.coupled for region in found.regions])
    for name, chosen in (("without gamma", ~with_gamma), ("with gamma", with_gamma)):
        seconds = found.seconds[:, chosen]
        seconds = seconds[np.isfinite(seconds)]
        if len(seconds):
            print(
                f"CPU seconds of a bound {name}: median {np.median(seconds):.2f}, longest {seconds.max():.2f},"
                f" {len(seconds)} bounds, {seconds.sum():.0f} in all"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=list(FILES), choices=FILES)
    parser.add_argument("--norms", nargs="+", default=["linf", "l2", "l1"], choices=("linf", "l2", "l1"))
    parser.add_argument("--deltas", nargs="+", type=float, default=[0.1, 0.2, 0.3, 0.5])
    parser.add_argument("--gammas", nargs="+", type=float, default=[inf, 0.5, 0.25, 0.1])
    parser.add_argument("--method", default="crown", choices=METHODS)
    parser.add_argument("--limit", type=int, default=100)
    parser.add_argument("--results", type=Path, help="a folder for the answers, to go on from")
    parser.add_argument("--quick", action="store_true", help="two images, two deltas, two gammas, one norm")
    options = parser.parse_args()
    if options.quick:
        options.networks, options.norms, options.limit = ["dense"], ["linf"], 2
        options.deltas, options.gammas = [0.1, 0.2], [inf, 0.1]
    torch.set_num_threads(1)
    stored = np.load(shared_file("data/mnist.npz"))
    X = torch.from_numpy(stored["x_test"][: options.limit]).double()[:, None] / 255
    y = torch.from_numpy(stored["y_test"][: options.limit]).long()
    sets = itertools.product(options.norms, options.deltas, options.gammas)
    regions = [certify.Deformation(delta, norm, gamma) for norm, delta, gamma in sets]
    plan = certify.Plan(options.method, (METHODS[options.method],), attack=certify.PGD(steps=20, restarts=2))
    for name in options.networks:
        file = None
        if options.results is not None:
            options.results.mkdir(parents=True, exist_ok=True)
            file = options.results / f"{name}-{options.method}.jsonl"
        found = certify.accuracy_map(load(name), X, y, regions=regions, method=plan, results=file, progress=False)
        print(
            f"\n### {name} ({FILES[name]}), {options.method}, {len(X)} images, {100 * found.clean.mean():.0f} % clean"
        )
        for norm in options.norms:
            shown(found, norm, options.deltas, options.gammas)
        print()
        timed(found)


if __name__ == "__main__":
    main()
