"""Rivals of convex training, each returning (seconds, weights) checkpoints on the same problem.

A problem is X (n, d) without bias columns, Y (n, K), a loss and a weight decay; the objective is
that of convexnn. Checkpoints are judged afterwards, off the clock, by one function.
"""

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

Checkpoint = tuple[float, np.ndarray, np.ndarray]  # seconds, W (k, d), A (k, K)


@dataclass(frozen=True)
class Problem:
    """Data and objective of one cell of the benchmark."""

    name: str
    X: np.ndarray
    Y: np.ndarray
    loss: str
    weight_decay: float

    def sample_loss(self, F: torch.Tensor, Y: torch.Tensor) -> torch.Tensor:
        if self.loss == "squared":
            return ((F - Y) ** 2).sum() / (2 * len(Y))
        if self.loss == "logistic":
            return torch.nn.functional.softplus(-Y * F).mean()
        return torch.nn.functional.cross_entropy(F, Y)

    def objective(self, W: np.ndarray, A: np.ndarray) -> float:
        """J of the balanced network, in float64."""
        F = torch.tensor(np.maximum(self.X @ W.T, 0) @ A)
        masses = np.linalg.norm(W, axis=1) * np.linalg.norm(A, axis=1)
        return float(self.sample_loss(F, torch.tensor(self.Y))) + self.weight_decay * float(masses.sum())


def active_neurons(W: np.ndarray, A: np.ndarray, tolerance: float = 1e-3) -> int:
    """Neurons whose mass is above tolerance times the largest."""
    masses = np.linalg.norm(W, axis=1) * np.linalg.norm(A, axis=1)
    return int((masses > tolerance * masses.max()).sum()) if len(masses) and masses.max() > 1e-9 else 0


def _parameters(problem: Problem, width: int, seed: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    d, outputs = problem.X.shape[1], problem.Y.shape[1]
    W = torch.randn((width, d), generator=generator, dtype=dtype) / d**0.5
    A = torch.randn((width, outputs), generator=generator, dtype=dtype) / width**0.5
    return W.requires_grad_(), A.requires_grad_()


def _closure(problem: Problem, W: torch.Tensor, A: torch.Tensor) -> Callable[[], torch.Tensor]:
    X, Y = torch.tensor(problem.X, dtype=W.dtype), torch.tensor(problem.Y, dtype=W.dtype)

    def value() -> torch.Tensor:
        F = torch.relu(X @ W.T) @ A
        return problem.sample_loss(F, Y) + 0.5 * problem.weight_decay * ((W * W).sum() + (A * A).sum())

    return value


def adam(problem: Problem, *, rate: float = 3e-2, width: int = 200, steps: int = 4000) -> list[Checkpoint]:
    """Full-batch Adam with a cosine schedule, float32, as torch users write it."""
    W, A = _parameters(problem, width, 0, torch.float32)
    value = _closure(problem, W, A)
    optimiser = torch.optim.Adam([W, A], lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    seconds, out = 0.0, []
    for step in range(steps):
        started = time.perf_counter()
        optimiser.zero_grad()
        value().backward()
        optimiser.step()
        schedule.step()
        seconds += time.perf_counter() - started
        if step % 25 == 24 or step == steps - 1:
            out.append((seconds, W.detach().double().numpy().copy(), A.detach().double().numpy().copy()))
    return out


def lbfgs(problem: Problem, *, width: int = 200, max_seconds: float = 30.0) -> list[Checkpoint]:
    """torch's L-BFGS with a strong Wolfe line search, float64, until it stops or the time is up."""
    W, A = _parameters(problem, width, 0, torch.float64)
    value = _closure(problem, W, A)
    optimiser = torch.optim.LBFGS(
        [W, A],
        max_iter=50,
        history_size=20,
        line_search_fn="strong_wolfe",
        tolerance_grad=1e-12,
        tolerance_change=1e-14,
    )

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        loss = value()
        loss.backward()
        return loss

    seconds, out, last = 0.0, [], float("inf")
    while seconds < max_seconds:
        started = time.perf_counter()
        loss = float(optimiser.step(closure).detach())
        seconds += time.perf_counter() - started
        out.append((seconds, W.detach().numpy().copy(), A.detach().numpy().copy()))
        if not loss < last:
            break
        last = loss
    return out


class PeerFailedError(RuntimeError):
    """A peer gave up: said so in the table, and the others go on."""


def sampled_patterns(X: np.ndarray, number: int, seed: int = 0) -> np.ndarray:
    """Distinct activation patterns (n, P) of Gaussian directions, the empty one left out."""
    rng = np.random.default_rng(seed)
    D = np.unique(X @ rng.standard_normal((X.shape[1], 4 * number)) > 0, axis=1)
    D = D[:, D.any(0)]
    return D[:, rng.permutation(D.shape[1])[:number]].astype(float)


def cvxpy_clarabel(problem: Problem, *, patterns: int) -> list[Checkpoint]:
    """The sampled convex program with cone constraints, one output, as one writes it in cvxpy."""
    import cvxpy as cp

    X, y = problem.X, problem.Y[:, 0]
    D = sampled_patterns(X, patterns)
    started = time.perf_counter()
    V, Z = cp.Variable((X.shape[1], D.shape[1])), cp.Variable((X.shape[1], D.shape[1]))
    f = cp.sum(cp.multiply(D, X @ (V - Z)), axis=1)
    n = len(y)
    loss = cp.sum_squares(f - y) / (2 * n) if problem.loss == "squared" else cp.sum(cp.logistic(-cp.multiply(y, f))) / n
    penalty = cp.sum(cp.norm(V, 2, axis=0)) + cp.sum(cp.norm(Z, 2, axis=0))
    cones = [cp.multiply(2 * D - 1, X @ V) >= 0, cp.multiply(2 * D - 1, X @ Z) >= 0]
    try:
        cp.Problem(cp.Minimize(loss + problem.weight_decay * penalty), cones).solve(solver="CLARABEL")
    except cp.SolverError as error:
        raise PeerFailedError(f"{error} ({time.perf_counter() - started:.1f} s)") from error
    seconds = time.perf_counter() - started
    W = np.concatenate([V.value.T, Z.value.T])
    signs = np.repeat([1.0, -1.0], D.shape[1])[:, None]
    return [(seconds, W, signs)]


def scnn_al(problem: Problem, *, gates: int = 100) -> list[Checkpoint]:
    """pyscnn's augmented Lagrangian on the sampled ReLU program (squared loss only), at its own tolerance."""
    from scnn.activations import sample_gate_vectors
    from scnn.metrics import Metrics
    from scnn.models import ConvexReLU
    from scnn.optimize import optimize_model
    from scnn.regularizers import NeuronGL1
    from scnn.solvers import AL

    model = ConvexReLU(sample_gate_vectors(123, problem.X.shape[1], gates), c=1)
    started = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, _ = optimize_model(
            model,
            AL(model),
            Metrics(metric_freq=10**9),
            problem.X,
            problem.Y,
            regularizer=NeuronGL1(problem.weight_decay),
            return_convex=True,
            unitize_data=False,
        )
    seconds = time.perf_counter() - started
    W = np.concatenate([np.asarray(part, float)[0] for part in model.parameters[:2]])
    half = len(W) // 2
    return [(seconds, W, np.repeat([1.0, -1.0], half)[:, None])]
