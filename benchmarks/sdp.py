"""Semidefinite certificates: verified images and seconds, and values against an independent solver.

    python -m benchmarks.sdp [--quick] [--limit 200] [--parts digits protocol adversarial boxes]

digits: digits_64_20_20_10_adv, hidden bounds by linear programs; the relaxation against cvxpy with Clarabel.
protocol: sdpcrown_mnist_mlp, l2 radius 1.0, the 200 protocol images, domain [0, 1]; all targets.
adversarial, boxes: chiu_ADV_MNIST, l2 radius 1.0 and l_inf radius 0.1, the first 50 images.
Seconds are process time of one thread for an image that PGD does not attack, all rungs together and attack included.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

import certify
from benchmarks.data import shared_file
from certify.bounds import METHODS, TriangleLP
from certify.bounds.dense import DenseNetwork
from certify.bounds.sdp import Settings, Target, solve, targets_of
from certify.ir.from_torch import graph_from_torch
from certify.properties import margins_of_labels
from certify.regions import LpBall

QUICK = 20


def network(name: str) -> nn.Sequential:
    stored = np.load(shared_file(f"nets/{name}.npz"))
    layers: list[nn.Module] = []
    for k in range(3):
        W, b = (torch.as_tensor(stored[f"{v}{k}"]) for v in "Wb")
        layer = nn.Linear(W.shape[1], W.shape[0], dtype=W.dtype)
        layer.load_state_dict({"weight": W, "bias": b})
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1]).eval()


@dataclass(frozen=True)
class Count:
    """Verdicts of a method."""

    statuses: Sequence[str]
    seconds: Sequence[float]

    def __str__(self) -> str:
        open_or_not = [t for s, t in zip(self.statuses, self.seconds, strict=True) if s != "FALSIFIED"]
        verified = self.statuses.count("VERIFIED")
        return (
            f"{verified:4d} verified, {self.statuses.count('FALSIFIED'):3d} attacked or wrong of {len(self.statuses)};"
            f" CPU s for an image not attacked: mean {np.mean(open_or_not):.2f},"
            f" median {np.median(open_or_not):.2f}, longest {max(open_or_not):.2f}"
        )


def count(name: str, method: str, limit: int, domain: tuple[int, int] | None, ball: tuple[float, str]) -> Count:
    net, images = network(name), np.load(shared_file("nets/sdp_protocol_200_images.npz"))
    statuses, seconds = [], []
    for x, y in zip(images["x"].reshape(200, -1)[:limit], images["y"][:limit], strict=True):
        start = time.process_time()
        verdict = certify.verify(net, x, label=int(y), eps=ball[0], norm=ball[1], domain=domain, method=method)
        statuses.append(verdict.status.name)
        seconds.append(time.process_time() - start)
    return Count(statuses, seconds)


def protocol(name: str, methods: Sequence[str], limit: int, ball: tuple[float, str] = (1.0, "l2")) -> None:
    print(f"\n{name}, {ball[1]} radius {ball[0]}, {limit} images")
    certify.verify(network(name), np.full(784, 0.5), label=0, eps=0.1, norm="l2", method="sdp-crown")  # imports
    for domain in ((0, 1), None) if ball[1] == "l2" else ((0, 1),):
        for method in methods:
            if method == "lipschitz" and domain is not None:
                continue  # it knows no domain
            where = "in [0, 1]" if domain else "no domain"
            print(f"  {method:>15} {where:>10} {count(name, method, limit, domain, ball)}", flush=True)


def by_clarabel(target: Target) -> tuple[float, float]:
    """The same relaxation, written without any scaling or structure; value and seconds of the solver call."""
    import cvxpy as cp

    o = target.offsets
    n, size = len(o.centre), 1 + len(o.centre) + sum(map(len, target.unstable))
    X, unit = cp.Variable((size, size), PSD=True), np.eye(size)
    values, at = [o.centre[:, None] * unit[0] + unit[1 : 1 + n]], 1 + n
    pairs, equal = [(unit[1 : 1 + n] - o.lower[:, None] * unit[0], o.upper[:, None] * unit[0] - unit[1 : 1 + n])], []
    for (W, b), unstable, active, low, high in zip(
        target.layers, target.unstable, target.active, target.lower, target.upper, strict=True
    ):
        z = W @ values[-1] + b[:, None] * unit[0]
        y = unit[at : at + len(unstable)]
        w, at = y - z[unstable], at + len(unstable)
        equal.append((y, w))
        pairs += [(y, high[unstable, None] * unit[0] - y), (w, -low[unstable, None] * unit[0] - w)]
        values.append(np.where(active[:, None], z, 0.0))
        values[-1][unstable] = y
    rules = [X[0, 0] == 1, *(cp.sum(cp.multiply(a @ X, b), axis=1) >= 0 for a, b in pairs)]
    rules += [cp.sum(cp.multiply(a @ X, b), axis=1) == 0 for a, b in equal]
    if o.radius is not None:
        rules.append(cp.trace(X[1 : 1 + n, 1 : 1 + n]) <= o.radius**2)
    problem = cp.Problem(cp.Minimize((target.objective @ values[-1]) @ X[0] + target.constant), rules)
    start = time.process_time()
    problem.solve(solver="CLARABEL")
    return float(problem.value), time.process_time() - start


def digits(with_reference: bool) -> None:
    from sklearn.datasets import load_digits

    net = network("digits_64_20_20_10_adv")
    X, Y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(X))[1400:]
    X, Y = torch.tensor(X[order] / 16), torch.tensor(Y[order])
    right = (net(X).argmax(1) == Y).nonzero()[:2, 0].tolist()
    graph = graph_from_torch(net)
    print("\ndigits_64_20_20_10_adv, hidden bounds by linear programs, the nearest rival")
    for norm, eps in (("linf", 0.1), ("l2", 0.6)):
        for image, i in enumerate(right):
            x = X[i : i + 1]
            region = LpBall(x, eps, norm, torch.zeros_like(x), torch.ones_like(x))
            margins = margins_of_labels(Y[i : i + 1], 10)
            t = margins.rivals[0].tolist().index(int(net(x)[0].argsort()[-2]))
            bounds = TriangleLP()(graph, region)
            lp = float(TriangleLP().margins(graph, region, bounds, margins)[0, t])
            rows, constants = margins.rows[0].numpy(), margins.constants[0].numpy()
            target = targets_of(DenseNetwork.of(graph), region, bounds, rows, constants)[t]
            start = time.process_time()
            found = solve(target, replace(Settings(), tolerance=1e-5))
            seconds = time.process_time() - start
            text = f"  {norm:>4} {eps} image {image}: LP {lp:.5f}, SDP {found.bound:.6f} proved in {seconds:.3f} s"
            if with_reference:
                value, longer = by_clarabel(target)
                text += f"; Clarabel {value:.6f} in {longer:.2f} s ({longer / seconds:.0f} times)"
            print(text, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"the digits, and {QUICK} protocol images")
    parser.add_argument("--limit", type=int, default=200, help="the first images only")
    every = ["digits", "protocol", "adversarial", "boxes"]
    parser.add_argument("--parts", nargs="+", choices=every, default=every)
    parser.add_argument(
        "--methods", nargs="+", choices=list(METHODS), default=["lipschitz", "sdp-crown-ball", "sdp-crown", "sdp"]
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    parts = options.parts if not options.quick else ["digits", "protocol"]
    if "digits" in parts:
        digits(with_reference=not options.quick)
    if "protocol" in parts:
        protocol("sdpcrown_mnist_mlp", options.methods, QUICK if options.quick else options.limit)
    if "adversarial" in parts:
        protocol("chiu_ADV_MNIST", options.methods, min(50, options.limit))
    if "boxes" in parts:
        protocol("chiu_ADV_MNIST", options.methods, min(50, options.limit), (0.1, "linf"))


if __name__ == "__main__":
    main()
