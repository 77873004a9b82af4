"""Certified training, measured: cost of a step, fronts on digits, MNIST, and a convex last block.

    python -m benchmarks.certified_training --quick        # steps, a small front, the convex block
    python -m benchmarks.certified_training                # fronts of three losses on digits, five seeds
    python -m benchmarks.certified_training --only mnist-0.3-contrast

The parts of MNIST take half an hour and more, and go on from `runs/`: mnist-0.1, mnist-0.3, mnist-0.3-contrast and
mnist-0.3-contrast-mtl. Seconds are CPU seconds of one thread; of MNIST's training, wall time.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import certify
from benchmarks.data import shared_file
from benchmarks.parts import run_parts
from certify import training
from certify.search import PLANS
from convexnn import Robust, train

DOMAIN = (0.0, 1.0)
# Seconds for each input that bounds and attack leave open.
BRIEF = replace(PLANS["auto"], name="auto, 1 s", limit=1.0)
SEARCH = replace(PLANS["auto"], name="auto, 5 s", limit=5.0)
RUNS = Path("runs") / "certified_training"


def small_cnn() -> nn.Sequential:
    """166,702 parameters."""
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 4, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 32, 4, stride=2, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.Flatten()),
        *(nn.Linear(32 * 7 * 7, 100), nn.BatchNorm1d(100), nn.ReLU(), nn.Linear(100, 10)),
    )


def dense() -> nn.Sequential:
    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))


# ---- steps


def plain_interval_loss(network: nn.Sequential, x: torch.Tensor, y: torch.Tensor, eps: float) -> torch.Tensor:
    """What one would write by hand for a chain of layers in eval mode: the least that a step can cost."""
    centre, radius = x, torch.full_like(x, eps)
    for layer in network:
        if isinstance(layer, nn.Conv2d):
            centre = layer(centre)
            radius = nn.functional.conv2d(radius, layer.weight.abs(), None, layer.stride, layer.padding)
        elif isinstance(layer, nn.Linear):
            centre, radius = layer(centre), nn.functional.linear(radius, layer.weight.abs())
        elif isinstance(layer, nn.ReLU):
            lower, upper = torch.relu(centre - radius), torch.relu(centre + radius)
            centre, radius = (lower + upper) / 2, (upper - lower) / 2
        elif isinstance(layer, nn.Flatten):
            centre, radius = layer(centre), layer(radius)
    worst = centre + radius
    worst = worst.scatter(1, y[:, None], (centre - radius).gather(1, y[:, None]))
    return nn.functional.cross_entropy(worst, y)


def step_seconds(call: Callable[[], torch.Tensor], repeats: int) -> float:
    """Of a loss and its gradient: the fastest of some."""
    times = []
    for _ in range(repeats):
        before = time.process_time()
        call().backward()
        times.append(time.process_time() - before)
    return min(times)


def without_batch_norm(network: nn.Sequential) -> nn.Sequential:
    return nn.Sequential(*(layer for layer in network if not isinstance(layer, nn.modules.batchnorm._BatchNorm)))


def run_steps(quick: bool) -> None:
    """Every loss beside an interval step written by hand, and a natural one."""
    torch.manual_seed(0)
    print("\n### One training step (loss and gradient), batch 256, in units of an interval step written by hand\n")
    print("| network | natural | " + " | ".join(m for m in training.LOSSES if m != "natural") + " | by hand, s |")
    print("|---|" + "---|" * (len(training.LOSSES) + 1))
    cells = {
        "dense 64-128-128-10": (dense(), torch.rand(256, 64)),
        "convolutional": (without_batch_norm(small_cnn()), torch.rand(256, 1, 28, 28)),
    }
    y = torch.randint(0, 10, (256,))
    repeats = 3 if quick else 10
    for name, (network, x) in cells.items():
        base = step_seconds(lambda network=network, x=x: plain_interval_loss(network, x, y, 0.1), repeats)
        ratios = [
            step_seconds(lambda loss=loss, network=network, x=x: loss(network, x, y, 0.1, 0.5), repeats) / base
            for loss in training.LOSSES.values()
        ]
        print(f"| {name} | " + " | ".join(f"{r:.2f}" for r in ratios) + f" | {base:.4f} |", flush=True)


# ---- digits


def digit_splits() -> list[torch.Tensor]:
    """Training, validation and test images and labels: 1097, 300 and 400."""
    X, y = load_digits(return_X_y=True)
    rest, X_test, y_rest, y_test = train_test_split(X / 16, y, test_size=400, random_state=0, stratify=y)
    X_train, X_val, y_train, y_val = train_test_split(rest, y_rest, test_size=300, random_state=0, stratify=y_rest)
    arrays = (X_train, y_train, X_val, y_val, X_test, y_test)
    return [torch.as_tensor(v, dtype=torch.float32 if v.ndim == 2 else torch.long) for v in arrays]


def digit_recipe(epochs: int, seed: int = 0) -> training.Recipe:
    return training.Recipe(
        epochs=epochs,
        ramp=epochs / 3,
        milestones=(3 * epochs // 4, 9 * epochs // 10),
        learning_rate=2e-3,
        l1=1e-5,
        seed=seed,
    )


def run_digits(quick: bool) -> None:
    """Fronts on validation images; what is chosen there, beside intervals alone, on test images and other seeds."""
    X_train, y_train, X_val, y_val, X_test, y_test = digit_splits()
    loader = DataLoader(TensorDataset(X_train, y_train), batch_size=64, shuffle=True)
    epochs, plan = (30, PLANS["crown"]) if quick else (80, BRIEF)
    before = time.process_time()
    front = training.front(
        dense,
        loader,
        X_val,
        y_val,
        eps=0.1,
        domain=DOMAIN,
        recipe=digit_recipe(epochs),
        methods=("mtl-ibp",) if quick else ("cc-ibp", "mtl-ibp", "exp-ibp"),
        alphas=(0.35, 1.0) if quick else (0.1, 0.2, 0.35, 0.5, 0.75, 1.0),
        plan=plan,
    )
    seconds = time.process_time() - before
    print(f"\n### Digits 8 x 8, dense 64-128-128-10, l_inf 0.1, 300 validation images; {seconds:.0f} s in all\n")
    print("| loss | alpha | natural | attacked | certified | training s |\n|---|---|---|---|---|---|")
    for p in front.points:
        print(f"| {p.method} | {p.alpha:g} | {_found(p.report)} | {p.seconds:.1f} |", flush=True)

    least = min(p.natural for p in front.points if p.alpha == 1.0)
    chosen = {m: front.of(m).best(natural=least).alpha for m in dict.fromkeys(p.method for p in front.points)}
    seeds = 1 if quick else 5
    print(f"\nalpha: the best certified one there with at least the natural accuracy of intervals. Seeds: {seeds}\n")
    print("| loss | alpha | natural | attacked | certified |\n|---|---|---|---|---|")
    for method, alpha in {**chosen, "ibp": 1.0}.items():
        figures = []
        for seed in range(seeds):
            recipe = digit_recipe(epochs, seed)
            run = training.fit(dense(), loader, eps=0.1, method=method, alpha=alpha, recipe=recipe, domain=DOMAIN)
            found = certify.certified_accuracy(run.network, X_test, y_test, eps=0.1, domain=DOMAIN, method=plan)
            figures.append([100 * found.clean, 100 * found.attacked, 100 * found.certified])
        spread = np.std(figures, axis=0, ddof=1) if seeds > 1 else np.zeros(3)
        cells = (f"{mean:.1f} ± {by:.1f}" for mean, by in zip(np.mean(figures, axis=0), spread, strict=True))
        print(f"| {method} | {alpha:g} | " + " | ".join(cells) + " |", flush=True)


def _found(report: certify.AccuracyReport, digits: int = 1) -> str:
    return " | ".join(f"{v:.{digits}%}" for v in (report.clean, report.attacked, report.certified))


# ---- a convex last block


def run_halves(quick: bool) -> None:
    """Even against odd digits: the last layer of a network trained for certificates, or a convex block on its features.

    The block is two-layer and trained by the robust program, with the features' mean interval radii as its ball, on the
    features that the rest of the network gives; certificates are for the whole chain.
    """
    X_train, y_train, _, _, X_test, y_test = digit_splits()
    y_train, y_test = y_train % 2, y_test % 2
    loader = DataLoader(TensorDataset(X_train, y_train), batch_size=64, shuffle=True)
    print("\n### Digits, even against odd, l_inf 0.1: a convex block for the last layer, 400 test images\n")
    print("| seed | last block | weight decay | natural | attacked | certified | s |\n|---|---|---|---|---|---|---|")
    for seed in range(1 if quick else 3):
        network = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 1))
        recipe = digit_recipe(30 if quick else 80, seed)
        trained = training.fit(network, loader, eps=0.1, method="mtl-ibp", alpha=0.3, recipe=recipe, domain=DOMAIN)
        _judge(f"| {seed} | linear, as trained |", network, X_test, y_test, trained.seconds)
        features = network[:-1]
        with torch.no_grad():
            lower, upper = (X_train + s * 0.1 for s in (-1, 1))
            lower, upper = lower.clamp(0, 1), upper.clamp(0, 1)
            box = training.enclose(features, (lower + upper) / 2, (upper - lower) / 2)
            h, radii = features(X_train).double().numpy(), box.radius.mean(0).double().numpy()
        for decay in (1e-3,) if quick else (1e-4, 1e-3, 1e-2):
            before = time.process_time()
            result = train(
                h,
                np.where(y_train.numpy() == 1, 1.0, -1.0),
                loss="hinge",
                weight_decay=decay,
                robust=Robust(np.maximum(radii, 1e-9)),
                n_patterns=20,
                random_state=seed,
                max_seconds=20,
                tol=1e-2,
            )
            chain = nn.Sequential(*features, *result.network.float())
            _judge(f"| {seed} | convex, robust | {decay:g}", chain, X_test, y_test, time.process_time() - before)


def _judge(label: str, network: nn.Module, X: torch.Tensor, y: torch.Tensor, seconds: float) -> None:
    found = certify.certified_accuracy(network.eval(), X, y, eps=0.1, domain=DOMAIN, method="crown")
    print(f"{label} | {_found(found)} | {seconds:.1f} |", flush=True)


# ---- MNIST


def contrast_cnn() -> nn.Sequential:
    """193,234 parameters."""
    return nn.Sequential(
        training.Contrast(0.45, 0.55),
        *(nn.Conv2d(1, 16, 4, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 64, 4, stride=2, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.Flatten()),
        *(nn.Linear(64 * 7 * 7, 56), nn.BatchNorm1d(56), nn.ReLU(), nn.Linear(56, 10)),
    )


# Intervals alone, and less caution than the defaults: with contrast the loss falls at once, and goes on falling.
BOLD = training.Recipe(epochs=60, ramp=17, learning_rate=1e-3, milestones=(42, 51), l1=0)


def mnist() -> list[torch.Tensor]:
    """Images in [0, 1] to train on and to test on, and the labels of both."""
    with np.load(shared_file("data/mnist.npz")) as file:
        images = [torch.as_tensor(file[k][:, None] / np.float32(255)) for k in ("x_train", "x_test")]
        labels = [torch.as_tensor(file[k].astype(np.int64)) for k in ("y_train", "y_test")]
    return images + labels


def run_mnist(name: str, quick: bool) -> None:
    """A small convolutional network, all 10,000 test images."""
    if quick:
        raise SystemExit("MNIST has no quick part: leave --quick out.")
    make, how = MNIST[name]
    network, eps = make(), how["eps"]
    X_train, X_test, y_train, y_test = mnist()
    loader = DataLoader(TensorDataset(X_train, y_train), batch_size=256, shuffle=True)
    RUNS.mkdir(parents=True, exist_ok=True)
    run = training.fit(network, loader, domain=DOMAIN, checkpoint=RUNS / f"{name}.pt", **how)
    before = time.process_time()
    found = certify.certified_accuracy(
        network, X_test, y_test, eps=eps, domain=DOMAIN, method=SEARCH, results=RUNS / f"{name}.jsonl"
    )
    weights = sum(p.numel() for p in network.parameters())
    print(f"\n### MNIST, l_inf {eps:g}, {make.__name__}, {weights:,} parameters, {len(X_test):,} test images\n")
    print("| loss, alpha | natural | attacked | certified | epochs | training, s | certifying s |")
    print("|---|---|---|---|---|---|---|")
    seconds = sum(entry["seconds"] for entry in run.trace)
    costs = f"{run.epochs} | {seconds:.0f} | {time.process_time() - before:.0f}"
    print(f"| {how['method']}, {how['alpha']:g} | {_found(found, 2)} | {costs} |", flush=True)


PARTS: dict[str, Callable[[bool], Any]] = {
    "steps": run_steps,
    "digits": run_digits,
    "halves": run_halves,
}
MNIST = {
    "mnist-0.1": (small_cnn, {"eps": 0.1, "method": "mtl-ibp", "alpha": 0.1}),
    "mnist-0.3": (small_cnn, {"eps": 0.3, "method": "mtl-ibp", "alpha": 0.5}),
    "mnist-0.3-contrast": (contrast_cnn, {"eps": 0.3, "method": "ibp", "alpha": 1.0, "recipe": BOLD}),
    "mnist-0.3-contrast-mtl": (
        contrast_cnn,
        {"eps": 0.3, "method": "mtl-ibp", "alpha": 0.5, "recipe": replace(BOLD, learning_rate=5e-4)},
    ),
}
PARTS |= {name: partial(run_mnist, name) for name in MNIST}


if __name__ == "__main__":
    run_parts(__doc__, PARTS, only=MNIST)
