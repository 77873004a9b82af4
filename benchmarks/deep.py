"""Parallel three-layer networks and linear networks, measured: parts of ``python -m benchmarks.structure``."""

import resource
from collections.abc import Callable
from typing import Any

import cvxpy as cp
import numpy as np
import torch
from sklearn.datasets import load_diabetes, load_digits
from torch import nn

import convexnn
from benchmarks.data import shared_file


def cpu_seconds(call: Callable[[], Any]) -> tuple[Any, float]:
    """What a call returns, and the CPU seconds it took."""
    before = resource.getrusage(resource.RUSAGE_SELF)
    out = call()
    after = resource.getrusage(resource.RUSAGE_SELF)
    return out, after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def teacher(n: int, d: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Gaussian samples, and a three-layer network of them with noise."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, d))
    hidden = np.maximum(X @ rng.standard_normal((d, 4)) / np.sqrt(d), 0)
    second = np.maximum(hidden @ rng.standard_normal((4, 3)), 0)
    return X, second @ np.array([1.0, -1.0, 1.0]) + 0.1 * rng.standard_normal(n)


def sign_targets(y: np.ndarray) -> np.ndarray:
    return np.where(y > np.median(y), 1.0, -1.0)


def program_row(case: tuple[int, int, int, int, float, str], method: str, tol: float) -> str:
    n, first, second, width, decay, loss = case
    X, y = teacher(n, 10)
    y = y if loss == "squared" else sign_targets(y)
    settings = {"weight_decay": decay, "width": width, "n_first": first, "n_second": second, "loss": loss}
    found, seconds = cpu_seconds(
        lambda: convexnn.train_parallel(X, y, method=method, tol=tol, max_seconds=120.0, random_state=0, **settings)
    )
    name = "cvxpy, Clarabel" if method == "reference" else "this"
    return (
        f"| {n} / {first} / {second} / {width} | {loss}, {decay:g} | {name} | {found.n_sampled} | "
        f"{found.objective:.7g} | {found.program_gap:.1e} | {seconds:.1f} | {found.seconds:.1f} | {found.status.name} |"
    )


def run_programs(quick: bool) -> None:
    """The sampled program against cvxpy on 50 samples, and alone on 200."""
    print("\n### Parallel three-layer networks: the sampled program, 10 columns and a bias\n")
    print(
        "| n / P1 / P2 / m | loss, weight decay | solver | branches | objective | own gap | CPU s | wall s | status |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    small = [(50, 10, 5, 2, 1e-2, loss) for loss in ("squared", "logistic", "hinge")]
    for case in small[:1] if quick else small:
        for method in ("interior-point", "reference"):
            print(program_row(case, method, 1e-6), flush=True)
    for decay in (1e-2,) if quick else (1e-1, 1e-2, 1e-3):
        for loss in ("squared",) if quick else ("squared", "logistic", "hinge"):
            print(program_row((200, 50, 50, 2, decay, loss), "interior-point", 1e-3), flush=True)


def table(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Complete rows of a table of two classes, standardised; labels -1 and +1."""
    with np.load(shared_file("data/uci.npz")) as stored:
        X, y = stored[f"{name}__X"].astype(float), stored[f"{name}__y"]
    whole = np.isfinite(X).all(axis=1)
    X, y = X[whole], y[whole]
    X = X[:, X.std(axis=0) > 0]
    return (X - X.mean(axis=0)) / X.std(axis=0), np.where(y == y.max(), 1.0, -1.0)


class Parallel(nn.Module):
    """The same architecture for Adam: hidden neurons are divided by their norms."""

    def __init__(self, d: int, branches: int, width: int) -> None:
        super().__init__()
        self.W = nn.Parameter(torch.randn(branches, width, d + 1, dtype=torch.float64))
        self.b = nn.Parameter(0.3 * torch.randn(branches, width, dtype=torch.float64))
        self.a = nn.Parameter(0.3 * torch.randn(branches, dtype=torch.float64))
        self.bias = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, X: torch.Tensor) -> torch.Tensor:
        W = self.W / self.W.norm(dim=2, keepdim=True)
        hidden = torch.relu(X @ W.flatten(0, 1).T).unflatten(1, self.b.shape)
        return torch.relu((hidden * self.b).sum(2)) @ self.a + self.bias


def adam(X: np.ndarray, y: np.ndarray, decay: float, rate: float, steps: int = 4000) -> tuple[float, Parallel]:
    """Full batches, the rate falling to zero along a cosine; 50 branches of two."""
    torch.manual_seed(0)
    network = Parallel(X.shape[1], 50, 2)
    inputs, targets = torch.from_numpy(np.c_[X, np.ones(len(X))]), torch.from_numpy(y)
    optimiser = torch.optim.Adam(network.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        optimiser.zero_grad()
        penalty = (network.b**2).sum() + (network.a**2).sum()
        objective = 0.5 * ((network(inputs) - targets) ** 2).mean() + 0.5 * decay * penalty
        objective.backward()
        optimiser.step()
        schedule.step()
    return float(objective.detach()), network


def run_comparison(quick: bool) -> None:
    """Sampled, refined, Adam and two layers on tables, squared loss on labels of -1 and +1."""
    settings = {"weight_decay": 1e-2, "random_state": 0}
    decay, limit = 1e-2, 20.0 if quick else 90.0
    print(f"\n### Parallel networks of width 2 on tables, squared loss, weight decay {decay:g}\n")
    print(
        "| table | network | objective | bound | gap | branches | test accuracy | CPU s |\n"
        "|---|---|---|---|---|---|---|---|"
    )
    for name in ("haberman",) if quick else ("haberman", "planning", "mammographic"):
        X, y = table(name)
        train = np.random.default_rng(0).random(len(X)) < 0.6
        inside, outside = (X[train], y[train]), (torch.from_numpy(X[~train]), y[~train])

        def row(kind: str, found: Any, seconds: float, size: str, outside: Any = outside, name: str = name) -> None:
            with torch.no_grad():
                right = float(np.mean((found.network(outside[0])[:, 0].numpy() > 0) == (outside[1] > 0)))
            print(
                f"| {name} | {kind} | {found.objective:.6g} | {found.bound:.6g} ({found.bound_kind}) | "
                f"{found.gap:.1e} | {size} | {right:.3f} | {seconds:.1f} |",
                flush=True,
            )

        for kind, more in (("sampled, 50 x 50", {}), ("refined", {"refine": True, "n_first": 30, "n_second": 10})):
            found, seconds = cpu_seconds(
                lambda more=more, inside=inside: convexnn.train_parallel(*inside, max_seconds=limit, **settings, **more)
            )
            row(kind, found, seconds, str(found.n_branches))
        runs = [cpu_seconds(lambda rate=rate, inside=inside: adam(*inside, decay, rate)) for rate in (3e-3, 1e-2, 3e-2)]
        (objective, network), _ = min(runs, key=lambda run: run[0][0])
        with torch.no_grad():
            F = network(torch.cat([outside[0], torch.ones(len(outside[0]), 1)], 1))
        right = float(np.mean((F.numpy() > 0) == (outside[1] > 0)))
        cost = sum(run[1] for run in runs)
        print(f"| {name} | Adam, best of 3 rates | {objective:.6g} | | | 50 | {right:.3f} | {cost:.1f} |", flush=True)
        two, seconds = cpu_seconds(lambda inside=inside: convexnn.train(*inside, tol=1e-3, **settings))
        row("two layers", two, seconds, f"{two.n_neurons} neurons")


def run_parallel(quick: bool) -> None:
    """Three layers."""
    run_programs(quick)
    run_comparison(quick)


def nuclear_by_cvxpy(X: np.ndarray, Y: np.ndarray, decay: float) -> float:
    W, b = cp.Variable((X.shape[1], Y.shape[1])), cp.Variable((1, Y.shape[1]))
    F = X @ W + np.ones((len(X), 1)) @ b
    model = cp.Problem(cp.Minimize(cp.sum_squares(F - Y) / (2 * len(X)) + decay * cp.normNuc(W)))
    model.solve(solver="CLARABEL")
    return float(model.value)


def linear_data(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Standardised; "white": the left singular vectors in place of the columns."""
    X, y = load_diabetes(return_X_y=True) if name == "diabetes" else load_digits(return_X_y=True)
    X = X[:, X.std(axis=0) > 0]
    X = (X - X.mean(axis=0)) / X.std(axis=0)
    if "white" in name:
        U, s, _ = np.linalg.svd(X, full_matrices=False)
        X = U[:, s > 1e-9 * s[0]] * np.sqrt(len(X))
    return X, (y - y.mean())[:, None] / y.std() if name == "diabetes" else np.eye(10)[y]


def run_linear(quick: bool) -> None:
    """Parallel networks against cvxpy, ranks, and duality gaps by depth."""
    print("\n### Linear networks: parallel branches of any depth\n")
    print("| data | weight decay | rank | depth 3, 5 | objective | gap | CPU s | cvxpy: difference | its CPU s |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name in ("diabetes", "digits", "digits, white"):
        X, Y = linear_data(name)
        for decay in (1e-1, 1e-2) if quick else (0.3, 0.2, 0.1, 1e-2, 1e-3):
            found, seconds = cpu_seconds(
                lambda X=X, Y=Y, decay=decay: convexnn.train_linear(X, Y, weight_decay=decay, depth=3)
            )
            cells = " | "
            ranks = ", ".join(
                str(convexnn.depth_gaps(X, Y, weight_decay=decay, depths=(depth,))[0].rank) for depth in (3, 5)
            )
            if not quick and name != "digits, white" and decay < 0.05:
                theirs, cost = cpu_seconds(lambda X=X, Y=Y, decay=decay: nuclear_by_cvxpy(X, Y, decay))
                cells = f"{theirs / found.objective - 1:+.1e} | {cost:.1f}"
            print(
                f"| {name} | {decay:g} | {found.rank} | {ranks} | {found.objective:.8g} | "
                f"{found.gap:.1e} ({found.bound_kind}) | "
                f"{seconds:.2f} | {cells} |",
                flush=True,
            )
    print("\n### Standard linear networks: the duality gap by depth\n")
    print(
        "| data | weight decay | depth | optimum P | its rank | dual D | gap | CPU s |\n"
        "|---|---|---|---|---|---|---|---|"
    )
    for name in ("digits, white",) if quick else ("digits, white", "digits", "diabetes"):
        X, Y = linear_data(name)
        for depth in (2, 3) if quick else (2, 3, 4, 6):
            (one,), seconds = cpu_seconds(
                lambda X=X, Y=Y, depth=depth: convexnn.depth_gaps(X, Y, weight_decay=1e-2, depths=(depth,))
            )
            kind = "" if one.closed_form or depth == 2 else " (local search)"
            print(
                f"| {name} | 0.01 | {depth} | {one.objective:.7g}{kind} | {one.rank} | {one.dual:.7g} | "
                f"{one.gap:.1e} | {seconds:.2f} |",
                flush=True,
            )
