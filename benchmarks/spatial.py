"""Certificates against vector fields on MNIST networks: certified share over delta and gamma, and the attack's ceiling.

    python -m benchmarks.spatial [--networks dense robust convolutional] [--norms linf] [--deltas 0.1 0.2 0.3 0.5]
        [--gammas inf 0.5 0.25 0.1] [--method crown] [--limit 100] [--quick]

The first images of the test set; an image counts where the network labels it rightly. What is certified for a set of
fields is certified for its subsets, and a field that fools stays one in larger sets: so gammas go from large to small
and deltas from small to large, an image is bounded only while its last delta was certified and no larger gamma has
settled it, and is attacked only while nothing smaller fools it. Without gamma the bound is that of a box. Seconds are
CPU seconds of one thread for each bound, without the attack.
"""

import argparse
import statistics
import time
from dataclasses import dataclass
from math import inf

import numpy as np
import torch
from torch import Tensor, nn

import certify
from benchmarks.data import SHARED
from certify.bounds import METHODS

FILES = {
    "dense": "mnist_fc_784_128_64_10.npz",
    "robust": "chiu_ADV_MNIST.npz",
    "convolutional": "mnist_cnn_a_adv.npz",
}
ATTACK = certify.Plan("attack", (), attack=certify.PGD(steps=20, restarts=2))


def load(name: str) -> nn.Module:
    """A network that reads images (1, 28, 28)."""
    stored = np.load(SHARED / "nets" / FILES[name])
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


@dataclass(frozen=True)
class Cell:
    """What is known for one pair of limits."""

    certified: Tensor
    fooled: Tensor
    seconds: list[float]


def attacked(network: nn.Module, X: Tensor, y: Tensor, region: certify.Deformation, known: Tensor) -> Tensor:
    """Which images are fooled, with those that are known to be."""
    fooled, left = known.clone(), (~known).nonzero().flatten()
    if len(left):
        report = certify.certified_accuracy(network, X[left], y[left], region=region, method=ATTACK, progress=False)
        fooled[left] = torch.tensor([status is certify.Status.FALSIFIED for status in report.statuses])
    return fooled


def cell(
    network: nn.Module, X: Tensor, y: Tensor, region: certify.Deformation, method: str, known: tuple[Tensor, ...]
) -> Cell:
    """`known`: certified in a larger set, fooled in a smaller one, certified in the last smaller one."""
    larger, smaller, before = known
    fooled = attacked(network, X, y, region, smaller)
    certified, seconds = larger.clone(), []
    plan = certify.Plan(method, (METHODS[method],), attack=None)
    for k in (before & ~fooled & ~larger).nonzero().flatten().tolist():
        start = time.process_time()
        verdict = certify.verify(network, X[k], label=int(y[k]), region=region, method=plan)
        seconds.append(time.process_time() - start)
        certified[k] = verdict.status is certify.Status.VERIFIED
    assert not bool((certified & fooled).any())
    return Cell(certified, fooled, seconds)


def table(network: nn.Module, X: Tensor, y: Tensor, options: argparse.Namespace, norm: str) -> list[float]:
    """Prints a line for each pair of limits; returns all seconds."""
    right = network(X.float()).argmax(1) == y
    certified = dict.fromkeys(options.deltas, torch.zeros_like(right))
    times: list[float] = []
    for gamma in sorted(options.gammas, reverse=True):
        before, smaller = right, ~right
        for delta in sorted(options.deltas):
            region = certify.Deformation(delta, norm, gamma)
            found = cell(network, X, y, region, options.method, (certified[delta], smaller, before))
            certified[delta], smaller = found.certified, found.fooled
            before = found.certified
            times += found.seconds
            share, ceiling = (100 * float(v.double().mean()) for v in (found.certified, ~found.fooled))
            median = f"{statistics.median(found.seconds):8.2f}" if found.seconds else "       -"
            print(f"  {norm:>4} {delta:5.2f} {gamma:6.2f} | {share:9.1f} {ceiling:9.1f} {median}", flush=True)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=list(FILES), choices=FILES)
    parser.add_argument("--norms", nargs="+", default=["linf", "l2", "l1"])
    parser.add_argument("--deltas", nargs="+", type=float, default=[0.1, 0.2, 0.3, 0.5])
    parser.add_argument("--gammas", nargs="+", type=float, default=[inf, 0.5, 0.25, 0.1])
    parser.add_argument("--method", default="crown", choices=METHODS)
    parser.add_argument("--limit", type=int, default=100)
    parser.add_argument("--quick", action="store_true", help="three images, two deltas, two gammas, one norm")
    options = parser.parse_args()
    if options.quick:
        options.networks, options.norms, options.limit = ["dense"], ["linf"], 3
        options.deltas, options.gammas = [0.1, 0.2], [inf, 0.1]
    torch.set_num_threads(1)
    stored = np.load(SHARED / "data" / "mnist.npz")
    X = torch.from_numpy(stored["x_test"][: options.limit]).double()[:, None] / 255
    y = torch.from_numpy(stored["y_test"][: options.limit]).long()
    for name in options.networks:
        network = load(name)
        clean = 100 * float((network(X.float()).argmax(1) == y).double().mean())
        print(f"{name} ({FILES[name]}), {options.limit} images, {clean:.1f} % clean, method {options.method}")
        print("  norm delta  gamma | certified unfooled median s", flush=True)
        for norm in options.norms:
            times = table(network, X, y, options, norm)
            if times:
                print(f"  {norm}: median {statistics.median(times):.2f} s, longest {max(times):.2f} s of {len(times)}")


if __name__ == "__main__":
    main()
