"""Global training against Adam, L-BFGS, pyscnn and cvxpy + Clarabel on the same problems.

    python -m benchmarks.training                 # the small problems, all rivals: about 25 minutes
    python -m benchmarks.training --quick         # without pyscnn and cvxpy: about 4 minutes
    python -m benchmarks.training --set digits    # ten classes, squared and softmax
    python -m benchmarks.training --set mnist     # even against odd, n = 10,000

Problems have columns of norm one and no biases. Breast cancer (scikit-learn, n=569, d=30):
standardised, then unit norm; targets +1 (benign) and -1 for both losses. Teacher: numpy's
default_rng(0), X (500, 20) Gaussian, five ReLU neurons with Gaussian weights / sqrt(20) and signs
+1 -1 +1 -1 +1, noise 0.1, drawn in that order; for the logistic loss the sign of that target.
Digits: pixels / 16, unit norm, ten classes one-hot. MNIST: the first 10,000 training images,
pixels / 255, unit norm, +1 for even digits.

Every rival's checkpoints are judged off the clock by one function, in balanced form. "time to g" is
when the objective first was within a factor 1 + g of the best bound in the cell; for the global
method "confirmed" is when the call returned with that tolerance, its confirmation included. Adam's
4000 steps run at three learning rates; its default is 3e-2. One thread unless --threads says otherwise.
pyscnn is optional: pip install --no-deps pyscnn linalg_backends opt_einsum.
"""

import argparse
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

import convexnn
from benchmarks.data import shared_file
from benchmarks.peers import (
    Checkpoint,
    PeerFailedError,
    Problem,
    active_neurons,
    adam,
    cvxpy_clarabel,
    lbfgs,
    scnn_al,
)

LEVELS = (1e-2, 1e-4, 1e-6)


@dataclass(frozen=True)
class Row:
    """One solver in one cell."""

    solver: str
    seconds: float
    objective: float
    neurons: int
    curve: list[tuple[float, float]]  # seconds, best objective so far


def unit_columns(X: np.ndarray) -> np.ndarray:
    return X / np.maximum(np.linalg.norm(X, axis=0), 1e-12)


def breast_cancer() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_breast_cancer

    X, y = load_breast_cancer(return_X_y=True)
    return unit_columns((X - X.mean(0)) / X.std(0)), (2.0 * y - 1)[:, None]


def teacher() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    X = rng.standard_normal((500, 20))
    W = rng.standard_normal((20, 5)) / np.sqrt(20)
    y = np.maximum(X @ W, 0) @ np.array([1, -1, 1, -1, 1.0]) + 0.1 * rng.standard_normal(500)
    return unit_columns(X), y[:, None]


def digits() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits

    X, y = load_digits(return_X_y=True)
    return unit_columns(X / 16.0), np.eye(10)[y]


def mnist() -> tuple[np.ndarray, np.ndarray]:
    with np.load(shared_file("data/mnist.npz")) as stored:
        X = stored["x_train"][:10000].reshape(10000, -1) / 255.0
        return unit_columns(X), np.where(stored["y_train"][:10000] % 2 == 0, 1.0, -1.0)[:, None]


def small_cells() -> list[Problem]:
    cells = []
    for name, load in (("breast cancer", breast_cancer), ("teacher", teacher)):
        X, y = load()
        for loss in ("squared", "logistic"):
            Y = np.where(y > 0, 1.0, -1.0) if loss == "logistic" else y
            cells += [Problem(name, X, Y, loss, wd) for wd in (1e-2, 1e-3)]
    return cells


def run_global(
    problem: Problem, tol: float, max_seconds: float = 600.0, device: str = "cpu"
) -> tuple[Row, convexnn.TrainingResult]:
    y = problem.Y if problem.loss in ("squared", "softmax") else problem.Y[:, 0]
    result = convexnn.train(
        problem.X,
        y,
        loss=problem.loss,
        weight_decay=problem.weight_decay,
        tol=tol,
        hidden_bias=False,
        output_bias=False,
        random_state=0,
        max_seconds=max_seconds,
        device=device,
    )
    curve = [(entry.seconds, entry.objective) for entry in result.trace]
    return Row(f"global, tol {tol:.0e}", result.seconds, result.objective, result.n_neurons, curve), result


def judged(problem: Problem, solver: str, checkpoints: list[Checkpoint]) -> Row:
    curve, best = [], float("inf")
    for seconds, W, A in checkpoints:
        best = min(best, problem.objective(W, A))
        curve.append((seconds, best))
    seconds, W, A = checkpoints[-1]
    return Row(solver, seconds, best, active_neurons(W, A), curve)


def rivals(problem: Problem, quick: bool) -> list[tuple[str, Callable[[], list[Checkpoint]]]]:
    out = [("Adam 3e-2", lambda: adam(problem)), ("L-BFGS", lambda: lbfgs(problem, max_seconds=10.0))]
    out += [(f"Adam {rate:g}", lambda rate=rate: adam(problem, rate=rate)) for rate in (1e-2, 1e-1)]
    if not quick and problem.Y.shape[1] == 1:
        out.append(("cvxpy + Clarabel, 50 patterns", lambda: cvxpy_clarabel(problem, patterns=50)))
        if problem.loss == "squared":
            out.append(("pyscnn AL, 100 gates", lambda: scnn_al(problem)))
    return out


def first_within(row: Row, target: float) -> float:
    return next((seconds for seconds, objective in row.curve if objective <= target), float("inf"))


def time_to(row: Row, target: float) -> str:
    seconds = first_within(row, target)
    return "never" if seconds == float("inf") else f"{seconds:.2f}"


def report(problem: Problem, rows: list[Row], bound: float) -> None:
    n, d = problem.X.shape
    print(f"\n### {problem.name}, n={n}, d={d}, {problem.loss}, weight decay {problem.weight_decay:g}\n")
    print("| solver | seconds | objective | over the best | neurons | time to 1e-2 | 1e-4 | 1e-6 |")
    print("|---|---|---|---|---|---|---|---|")
    best = min(row.objective for row in rows)
    for row in rows:
        times = " | ".join(time_to(row, bound * (1 + level)) for level in LEVELS)
        over = row.objective / best - 1
        print(f"| {row.solver} | {row.seconds:.2f} | {row.objective:.8f} | {over:.1e} | {row.neurons} | {times} |")


def verdicts(rows: list[Row], confirmed: float, loose: bool) -> None:
    ours, reference = rows[1], rows[2]
    others = [row for row in rows if not row.solver.startswith("global")]
    best = min(row.objective for row in others)
    share = confirmed / reference.seconds
    print(f"\n- objective at most 1.00001 of the best rival's: {ours.objective <= 1.00001 * best}")
    print(f"- confirmed 1e-4 gap in {confirmed:.2f} s, {share:.2f} of Adam's (aim {0.2 if loose else 1.0:g})")
    print(f"- neurons: {ours.neurons} against {reference.neurons} of Adam")
    faster = [t for t in LEVELS if first_within(reference, best * (1 + t)) < first_within(ours, best * (1 + t))]
    print(f"- Adam is first to a gap of: {', '.join(f'{t:g}' for t in faster) or 'none'}", flush=True)


def run_small(quick: bool) -> None:
    for problem in small_cells():
        first, result = run_global(problem, 1e-4)
        second, accurate = run_global(problem, 1e-6, max_seconds=30.0)
        rows = [first, second]
        for name, solve in rivals(problem, quick):
            try:
                rows.append(judged(problem, name, solve()))
            except ImportError as error:
                print(f"{name}: not installed ({error})")
            except PeerFailedError as error:
                print(f"{problem.name}, {problem.loss}, {problem.weight_decay:g}: {name} failed: {error}")
        report(problem, rows, max(result.bound, accurate.bound))
        verdicts(rows, result.seconds, problem.weight_decay == 1e-2)


def run_digits(quick: bool) -> None:
    X, Y = digits()
    for loss in ("squared", "softmax"):
        problem = Problem("digits", X, Y, loss, 1e-3)
        ours, result = run_global(problem, 1e-3)
        rows = [ours, judged(problem, "Adam 3e-2", adam(problem))]
        if not quick:
            rows += [judged(problem, f"Adam {rate:g}", adam(problem, rate=rate)) for rate in (1e-2, 1e-1)]
        report(problem, rows, result.bound)
        reached = ours if ours.objective <= rows[1].objective else run_global(problem, 2e-4)[0]
        print(f"\n- {result.status.name}, gap {result.gap:.1e} ({result.bound_kind}) after {result.seconds:.1f} s")
        print(
            f"- Adam's objective reached after {time_to(reached, rows[1].objective)} s "
            f"({reached.solver}); Adam took {rows[1].seconds:.1f} s",
            flush=True,
        )


def run_mnist(device: str) -> None:
    X, Y = mnist()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    problem = Problem("MNIST even/odd", X, Y, "squared", 1e-3)
    started = time.perf_counter()
    ours, result = run_global(problem, 1e-2, max_seconds=400.0, device=device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    report(problem, [ours], result.bound)
    print(f"\n- {result.status.name}, gap {result.gap:.1e} after {time.perf_counter() - started:.0f} s")
    print(f"- peak memory {(peak - before) / 2**20:.2f} GiB beyond the data", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", choices=("small", "digits", "mnist"), default="small")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu", help="for --set mnist: cpu or cuda")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f"torch {torch.__version__}, {args.threads} thread(s)", flush=True)
    warm_up()
    if args.set == "mnist":
        run_mnist(args.device)
    else:
        {"small": run_small, "digits": run_digits}[args.set](args.quick)


def warm_up() -> None:
    """First calls load libraries: neither side should pay for them."""
    X, y = teacher()
    problem = Problem("warm-up", X[:100, :5], y[:100], "squared", 1e-2)
    run_global(problem, 1e-2)
    adam(problem, steps=50)


if __name__ == "__main__":
    main()
