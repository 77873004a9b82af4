"""Optimal pruning, optimal sets, regularisation paths and deeper networks, measured.

    python -m benchmarks.structure --quick         # a few minutes
    python -m benchmarks.structure                 # wider networks, more tables, more points
    python -m benchmarks.structure --only pruning  # one part

Seconds are CPU seconds of one thread. Columns of the data are scaled to unit variance.
"""

import resource
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy.optimize import linprog
from torch import nn

import convexnn
from benchmarks.data import shared_file
from benchmarks.deep import run_linear, run_parallel
from benchmarks.parts import run_parts
from benchmarks.training import breast_cancer, digits, teacher
from convexnn.errors import SolverError
from convexnn.network import from_torch
from convexnn.solutions.optima import optimal_set
from convexnn.solutions.optimal_sets import OptimalSet
from convexnn.solutions.paths import path
from convexnn.solutions.pruning import prune
from convexnn.solutions.shrinking import pruning_curve


def cpu_seconds(call: Callable[[], Any]) -> tuple[Any, float]:
    """What a call returns, and the CPU seconds it took."""
    before = resource.getrusage(resource.RUSAGE_SELF)
    out = call()
    after = resource.getrusage(resource.RUSAGE_SELF)
    return out, after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def unit_variance(load: Callable[[], tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """The training benchmark's data, its columns of norm one scaled to norm sqrt(n)."""
    X, Y = load()
    return X * np.sqrt(len(X)), Y


def sample_loss(name: str, F: torch.Tensor, Y: torch.Tensor) -> torch.Tensor:
    if name == "squared":
        return 0.5 * ((F - Y) ** 2).sum(1).mean()
    if name == "logistic":
        return nn.functional.softplus(-Y * F).mean()
    return nn.functional.cross_entropy(F, Y.argmax(1))


def adam(X: np.ndarray, Y: np.ndarray, loss: str, decay: float, width: int, steps: int) -> nn.Sequential:
    """Full-batch Adam, learning rate 1e-2 falling to zero along a cosine: close to a stationary point."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(X.shape[1], width), nn.ReLU(), nn.Linear(width, Y.shape[1])).double()
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    inputs, targets = torch.from_numpy(X), torch.from_numpy(Y)
    *penalised, _output_bias = network.parameters()
    for _ in range(steps):
        optimiser.zero_grad()
        penalty = sum((p**2).sum() for p in penalised)
        (sample_loss(loss, network(inputs), targets) + decay / 2 * penalty).backward()
        optimiser.step()
        schedule.step()
    return network


def linear_program(network: nn.Sequential, X: np.ndarray) -> str:
    """The same by HiGHS: min masses'x, contributions x = outputs, x >= 0. Cells of a row: neurons, outputs change."""
    neurons = from_torch(network).balanced()
    inputs = torch.cat([torch.from_numpy(X), torch.ones(len(X), 1)], 1)
    P = torch.relu(inputs @ neurons.W.T)[:, None, :] * neurons.A.T
    P = (P - P.mean(0)).reshape(-1, len(neurons)).numpy()
    F = P.sum(1)
    found = linprog(neurons.masses().numpy(), A_eq=P, b_eq=F, method="highs-ds")
    if found.x is None:
        return f"none: {found.message.split('.')[0]} | | -"
    return f"{int((found.x > 0).sum())} | | {float(np.abs(P @ found.x - F).max() / np.abs(F).max()):.1e}"


def run_pruning(quick: bool) -> None:
    """Networks of Adam, pruned at two tolerances, and further down."""
    cases = [
        ("breast cancer", breast_cancer, "logistic", 200, 4000),
        ("breast cancer", breast_cancer, "squared", 200 if quick else 1000, 4000),
        ("teacher", teacher, "squared", 200 if quick else 500, 4000),
        ("digits", digits, "softmax", 200, 600 if quick else 3000),
    ] + ([] if quick else [("digits", digits, "squared", 1000, 4500)])
    print("\n### Pruning networks of Adam, weight decay 1e-2\n")
    print(
        "| data, loss | width | residual | kept to | neurons | objective, relative change | outputs change | s |\n"
        "|---|---|---|---|---|---|---|---|"
    )
    networks = []
    for name, load, loss, width, steps in cases:
        X, Y = unit_variance(load)
        Y = np.where(Y > 0, 1.0, -1.0) if loss == "logistic" else Y
        network = adam(X, Y, loss, 1e-2, width, steps)
        y = Y.argmax(1) if loss == "softmax" else Y
        networks.append((f"{name}, {loss}", network, X, y, loss))
        for tol in (1e-8, 1e-6):
            pruned, seconds = cpu_seconds(
                lambda network=network, X=X, y=y, loss=loss, tol=tol: prune(
                    network, X, y, weight_decay=1e-2, loss=loss, tol=tol
                )
            )
            change = pruned.objective / pruned.objective_before - 1
            print(
                f"| {name}, {loss} | {width} | {pruned.residual:.0e} | {tol:g} | {pruned.n_neurons} | {change:+.1e} | "
                f"{pruned.fit_change:.1e} | {seconds:.1f} |",
                flush=True,
            )
        if Y.shape[1] == 1 and width <= 200:
            cells, seconds = cpu_seconds(lambda network=network, X=X: linear_program(network, X))
            print(f"| the same, linear program (HiGHS) | {width} | | | {cells} | {seconds:.1f} |", flush=True)
    run_curves(networks)


def run_curves(networks: list[tuple[str, nn.Sequential, np.ndarray, np.ndarray, str]]) -> None:
    """The smallest network within a share of the objective, by correction."""
    print("\n### Smallest networks within a relative increase of Adam's objective\n")
    print("| network | correction | 1e-6 | 1e-4 | 1e-2 | s |\n|---|---|---|---|---|---|")
    for name, network, X, y, loss in networks:
        for correction in ("least-squares", "weight-decay", "slide"):
            if correction == "slide" and y.ndim == 2 and y.shape[1] > 1:
                continue  # minutes
            curve, seconds = cpu_seconds(
                lambda network=network, X=X, y=y, loss=loss, correction=correction: pruning_curve(
                    network, X, y, weight_decay=1e-2, loss=loss, correction=correction
                )
            )
            sizes = " | ".join(str(curve.smallest(share).n_neurons) for share in (1e-6, 1e-4, 1e-2))
            print(f"| {name} | {correction} | {sizes} | {seconds:.1f} |", flush=True)


TABLES = (
    "fertility", "haberman", "mammographic", "monks_1", "parkinsons", "pima", "planning", "sonar", "statlog_heart",
    "blood",
)  # fmt: skip


def table(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Complete rows of a table of two classes, standardised; labels -1 and +1."""
    with np.load(shared_file("data/uci.npz")) as stored:
        X, y = stored[f"{name}__X"].astype(float), stored[f"{name}__y"]
    whole = np.isfinite(X).all(axis=1)
    X, y = X[whole], y[whole]
    X = X[:, X.std(axis=0) > 0]
    return (X - X.mean(axis=0)) / X.std(axis=0), np.where(y == y.max(), 1.0, -1.0)


MOST_VERTICES = 20_000


def corners(found: OptimalSet) -> tuple[list[np.ndarray], str]:
    """Vertices and how many there are; of too many those that a walk along edges meets first, and random ones."""
    rng = np.random.default_rng(0)
    try:
        points, complete = found.polytope.some_vertices(MOST_VERTICES)
    except SolverError:
        points, complete = np.array([found.polytope.random_vertex(rng) for _ in range(20)]), False
        return list(points), f"at least {len(np.unique(points.round(9), axis=0))} (random)"
    if complete:
        return list(points), str(len(points))
    return [*points, *(found.polytope.random_vertex(rng) for _ in range(20))], f"at least {len(points)}"


def accuracies(found: OptimalSet, X: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, str]:
    """Test accuracy of the vertices, and their number; every hundredth is checked as an element."""
    M, shift = found.outputs_at(X)
    points, count = corners(found)
    for x in points[::100]:
        found.element(x)
    return np.array([np.mean((M @ x + shift > 0) == (y > 0)) for x in points]), count


def set_row(name: str, decay: float, method: str, X: np.ndarray, y: np.ndarray) -> str:
    train = np.random.default_rng(0).random(len(X)) < 0.6
    settings = {"weight_decay": decay, "method": method, "n_patterns": 25, "random_state": 0}
    try:
        found, seconds = cpu_seconds(lambda: optimal_set(X[train], y[train], **settings))
    except SolverError as error:
        return f"| {name} | {train.sum()} x {X.shape[1]} | {decay:.1e} | {str(error).split(':')[0]} | | | | | | | |"
    spread, count = accuracies(found, X[~train], y[~train])
    apart = "-" if np.isinf(found.separation) else f"{found.separation:.0e}"
    return (
        f"| {name} | {train.sum()} x {X.shape[1]} | {decay:.1e} | {found.gap:.0e} | {len(found.neurons)} | {apart} | "
        f"{found.dimension} | {found.function_dimension} | {count} | "
        f"{spread.min():.3f} to {spread.max():.3f} | {seconds:.1f} |"
    )


def run_sets(quick: bool) -> None:
    """Dimension, vertices and spread of test accuracy over optimal sets."""
    head = "| table | training | weight decay | gap | neurons | next | dimension | functions | vertices |"
    for method in ("interior-point",) if quick else ("interior-point", "global"):
        what = "25 random patterns" if method == "interior-point" else "all networks, by local search"
        print(f"\n### Optimal sets, squared loss, {what}\n\n{head} test accuracy | s |")
        print("|---|---|---|---|---|---|---|---|---|---|---|")
        for name in TABLES:
            X, y = table(name)
            decays = (0.01,) if quick or method == "global" else (0.01, 0.01 / (0.6 * len(X)))
            for decay in decays:
                print(set_row(name, decay, method, X, y), flush=True)
    run_near(quick)
    run_symmetric()


def run_near(quick: bool) -> None:
    """The setting in which the source tunes, and what is free where correlations may be a little too small."""
    print("\n### 500 random patterns, weight decay 1e-3, no biases, 15 % of the rows (as the source tunes)\n")
    head = "| table | training | within | gap | neurons | dimension | functions | vertices | test accuracy |"
    print(f"{head} objective up to | s |\n|---|---|---|---|---|---|---|---|---|---|---|")
    for name in TABLES[:3] if quick else TABLES:
        X, y = table(name)
        train = np.random.default_rng(0).random(len(X)) < 0.15
        for tol in (1e-6, 1e-2, 5e-2):
            print(near_row(name, tol, (X[train], y[train]), (X[~train], y[~train])), flush=True)


def near_row(name: str, tol: float, train: tuple[np.ndarray, ...], test: tuple[np.ndarray, ...]) -> str:
    """Vertices of the weights with the optimal outputs, over neurons within ``tol`` of being optimal."""
    settings = {"weight_decay": 1e-3, "n_patterns": 500, "hidden_bias": False, "output_bias": False, "random_state": 0}
    found, seconds = cpu_seconds(lambda: optimal_set(*train, tol=tol, **settings))
    M, shift = found.outputs_at(test[0])
    vertices, count = corners(found)
    right = [np.mean((M @ x + shift > 0) == (test[1] > 0)) for x in vertices]
    excess = max(1e-3 * (x.sum() - found.reference.sum()) / found.objective for x in vertices)
    return (
        f"| {name} | {len(train[0])} x {train[0].shape[1]} | {tol:g} | {found.gap:.0e} | {len(found.neurons)} | "
        f"{found.dimension} | {found.function_dimension} | {count} | "
        f"{min(right):.3f} to {max(right):.3f} | {excess:+.1e} | {seconds:.1f} |"
    )


def run_symmetric() -> None:
    """Symmetric grids, where optima are many."""
    side = np.linspace(-1, 1, 5)
    grid = np.stack(np.meshgrid(side, side), -1).reshape(-1, 2)
    targets = {
        "|x|^2": (grid**2).sum(1),
        "x^2 - y^2": grid[:, 0] ** 2 - grid[:, 1] ** 2,
        "cos 3x cos 3y": np.cos(3 * grid[:, 0]) * np.cos(3 * grid[:, 1]),
    }
    print("\n### Optimal sets on a grid of 5 by 5, all patterns\n")
    print("| targets | weight decay | neurons | dimension | functions | vertices | neurons of vertices | s |")
    print("|---|---|---|---|---|---|---|---|")
    for name, y in targets.items():
        for decay in (1e-2, 1e-3):
            found, seconds = cpu_seconds(
                lambda y=y, decay=decay: optimal_set(grid, y, weight_decay=decay, method="exact", random_state=0)
            )
            points, count = corners(found)
            sizes = [np.count_nonzero(x) for x in points]
            print(
                f"| {name} | {decay:g} | {len(found.neurons)} | {found.dimension} | {found.function_dimension} | "
                f"{count} | {min(sizes)} to {max(sizes)} | {seconds:.1f} |",
                flush=True,
            )


def run_paths(quick: bool) -> None:
    """Thirty weight decays on breast cancer, and the hardest of them alone."""
    X, Y = unit_variance(breast_cancer)
    print("\n### Paths on breast cancer, squared loss, gap 1e-4 by local search\n")
    print("| points | from | to | total s | longest, wall s | alone s (gap) | ratio (aim 6) | largest gap | neurons |")
    print("|---|---|---|---|---|---|---|---|---|")
    level = path(X, Y[:, 0], n_points=1, random_state=0).null_level
    for count, end in ((30, 0.012), (30, 0.005)) if quick else ((30, 0.012), (30, 0.005), (30, 0.003)):
        decays = np.geomspace(level, end, count)
        found, total = cpu_seconds(lambda decays=decays: path(X, Y[:, 0], weight_decays=decays, random_state=0))
        alone, seconds = cpu_seconds(
            lambda end=end: convexnn.train(X, Y[:, 0], weight_decay=end, tol=1e-4, random_state=0)
        )
        longest, gap = max(point.seconds for point in found.points), max(point.gap for point in found.points)
        print(
            f"| {count} | {level:.3g} | {end:g} | {total:.1f} | {longest:.1f} | {seconds:.1f} ({alone.gap:.0e}) | "
            f"{total / seconds:.1f} | {gap:.0e} | 0 to {found.points[-1].n_neurons} |",
            flush=True,
        )


PARTS: dict[str, Callable[[bool], None]] = {
    "pruning": run_pruning,
    "sets": run_sets,
    "paths": run_paths,
    "parallel": run_parallel,
    "linear": run_linear,
}


if __name__ == "__main__":
    run_parts(__doc__, PARTS)
