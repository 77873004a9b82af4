"""Convex programs over activation patterns: this package against Clarabel, cvxpy and pyscnn.

    python -m benchmarks.programs --quick        # a few minutes
    python -m benchmarks.programs                # all sizes, plain cvxpy and both pyscnn solvers too
    python -m benchmarks.programs --only steps   # one of: accurate, decays, steps, scnn, patterns, exact, images, gpu

Times are CPU seconds of one thread unless said otherwise. Every point, whoever found it, is made
feasible and judged by ``convexnn.duality.judge_program``. pyscnn is optional:
pip install --no-deps pyscnn linalg_backends opt_einsum
"""

import argparse
import io
import resource
import time
import warnings
from dataclasses import replace

import numpy as np
import torch
from scipy import sparse

import convexnn
from benchmarks.data import shared_file
from benchmarks.judged import Timed, timed
from benchmarks.training import breast_cancer
from convexnn.data import read_loss
from convexnn.duality import ProgramJudgement, judge_program
from convexnn.patterns import enumerate_patterns, of_directions, pattern_count, sample_patterns
from convexnn.problem import Problem
from convexnn.programs import AbstractProgram, ConvexPoint, GatedProgram, ReLUProgram
from convexnn.programs.base import neurons_of
from convexnn.solvers.admm import ADMM, ADMMOptions, first_rho
from convexnn.solvers.admm_rounds import solve_admm
from convexnn.solvers.answer import ProgramAnswer, ProgramLimits
from convexnn.solvers.fista import solve_fista
from convexnn.solvers.reference import solve_reference
from convexnn.solvers.working_set import solve_working_set


def teacher_program(n: int, d: int, P: int, weight_decay: float, seed: int = 0) -> ReLUProgram:
    """Ten random teacher neurons, noise, unit-norm columns, standardised targets, no biases."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, d))
    W = rng.standard_normal((d, 10)) / np.sqrt(d)
    y = np.maximum(X @ W, 0) @ rng.choice([-1.0, 1.0], 10)
    y = y + 0.1 * y.std() * rng.standard_normal(n)
    y = (y - y.mean()) / y.std()
    X = torch.tensor(X / np.linalg.norm(X, axis=0))
    patterns = sample_patterns(X, P, torch.Generator().manual_seed(seed))
    return ReLUProgram(Problem(X, read_loss("squared", y, n), weight_decay, False), patterns)


def clarabel_direct(program: AbstractProgram) -> ProgramJudgement:
    """Clarabel on its own sparse form: u, t and the residual e as variables, no modelling layer."""
    import clarabel

    X, y = program.problem.X.numpy(), program.problem.loss.targets[:, 0].numpy()
    n, d = X.shape
    masks, P = program.patterns.D.double().numpy(), len(program.patterns)
    B = 2 * P
    fit = sparse.hstack([sparse.csc_matrix(sign * mask[:, None] * X) for sign in (1.0, -1.0) for mask in masks])
    cones = sparse.block_diag([sparse.csc_matrix((1 - 2 * mask)[:, None] * X) for _ in (0, 1) for mask in masks])
    equal = sparse.hstack([fit, sparse.csc_matrix((n, B)), -sparse.identity(n)])
    below = sparse.hstack([cones, sparse.csc_matrix((B * n, B + n))])
    order = np.arange(B * (d + 1)).reshape(B, d + 1)  # (t, u) of each block
    columns = np.concatenate([B * d + np.arange(B)[:, None], np.arange(B * d).reshape(B, d)], 1)
    norm = sparse.csc_matrix((-np.ones(B * (d + 1)), (order.ravel(), columns.ravel())), (B * (d + 1), B * d + B + n))
    A = sparse.vstack([equal, below, norm]).tocsc()
    b = np.concatenate([y, np.zeros(B * n + B * (d + 1))])
    cost = np.concatenate([np.zeros(B * d), program.problem.weight_decay * np.ones(B), np.zeros(n)])
    quadratic = sparse.diags(np.concatenate([np.zeros(B * d + B), np.ones(n) / n])).tocsc()
    kinds = [clarabel.ZeroConeT(n), clarabel.NonnegativeConeT(B * n)] + [clarabel.SecondOrderConeT(d + 1)] * B
    settings = clarabel.DefaultSettings()
    settings.verbose, settings.max_threads = False, 1
    found = clarabel.DefaultSolver(quadratic, cost, A, b, kinds, settings).solve()
    U = torch.tensor(np.array(found.x)[: B * d]).reshape(2, 1, P, d)
    multipliers = torch.tensor(np.array(found.z)[n : n + B * n]).reshape(2, 1, P, n).clamp(min=0.0)
    point = ConvexPoint(U, torch.zeros(1, dtype=torch.float64))
    V = program.problem.loss.negative_gradient(program.output(point))
    return judge_program(program, point, V, multipliers)


def plain_cvxpy(program: AbstractProgram) -> ProgramJudgement:
    """The program as the sources write it, one matrix of blocks for each sign; judged with its own multipliers."""
    import cvxpy as cp

    X, y = program.problem.X.numpy(), program.problem.loss.targets[:, 0].numpy()
    D, (_, _, P, d) = program.patterns.D.double().numpy().T, program.shape
    V, W = cp.Variable((d, P)), cp.Variable((d, P))
    f = cp.sum(cp.multiply(D, X @ (V - W)), axis=1)
    penalty = cp.sum(cp.norm(V, 2, axis=0)) + cp.sum(cp.norm(W, 2, axis=0))
    cones = [cp.multiply(2 * D - 1, X @ V) >= 0, cp.multiply(2 * D - 1, X @ W) >= 0]
    objective = cp.sum_squares(f - y) / (2 * len(y)) + program.problem.weight_decay * penalty
    cp.Problem(cp.Minimize(objective), cones).solve(solver="CLARABEL")
    U = torch.tensor(np.stack([V.value.T, W.value.T]))[:, None]
    multipliers = torch.tensor(np.stack([cone.dual_value.T for cone in cones]))[:, None].clamp(min=0.0)
    point = ConvexPoint(U, torch.zeros(1, dtype=torch.float64))
    return judge_program(program, point, program.problem.loss.negative_gradient(program.output(point)), multipliers)


def source_admm(program: AbstractProgram) -> ProgramAnswer:
    """ADMM whose step in the weights is the source's randomised block coordinate descent; repaired and judged alike."""
    limits = ProgramLimits(1e-2, max_steps=2000, max_seconds=30)
    return solve_admm(program, limits, options=ADMMOptions(linear="blocks"))


def run_accurate(quick: bool) -> None:
    """Certified gap 1e-6 at a feasible point; ADMM to 1e-2."""
    sizes = [(300, 10, 100), (500, 20, 100)]
    for n, d, P in [*sizes, (500, 20, 1000)] + ([] if quick else [(2000, 50, 1000)]):
        for weight_decay in (1e-2, 1e-3):
            program = teacher_program(n, d, P, weight_decay)
            print(f"\n### ReLU program n={n} d={d} P={P}, weight decay {weight_decay:g}\n")
            print("| solver | CPU s | objective at a feasible point | certified gap |\n|---|---|---|---|")
            own = timed(lambda program=program: solve_working_set(program, ProgramLimits(1e-6)))
            print(own.row("interior point, 1e-6"), flush=True)
            if n <= 500 or weight_decay < 1e-2:
                admm = timed(lambda program=program: solve_admm(program, ProgramLimits(1e-2, max_steps=20_000)))
                print(admm.row("ADMM, 1e-2"), flush=True)
            if P <= 100 and n <= 300:
                descent = timed(lambda program=program: source_admm(program))
                print(descent.row("ADMM by the source's random blocks, 1e-2"), flush=True)
            if P <= 100:
                direct = timed(lambda program=program: clarabel_direct(program))
                print(direct.row("Clarabel, direct sparse form"), flush=True)
                model = timed(lambda program=program: solve_reference(program, ProgramLimits(1e-6)))
                print(model.row('method="reference", cvxpy + Clarabel'), flush=True)
                plain = timed(lambda program=program: plain_cvxpy(program))
                print(plain.row("plain cvxpy + Clarabel"))
                print(f"\n- Clarabel / interior point: {direct.seconds / own.seconds:.1f} (aim 10)")
                print(f"- plain cvxpy / interior point: {plain.seconds / own.seconds:.1f} (aim 50)", flush=True)


def separable_data(loss: str, n: int, d: int) -> tuple[np.ndarray, np.ndarray]:
    """Columns of unit variance and noiseless targets of a teacher with four neurons, classes for a classifier."""
    rng = np.random.default_rng(1)
    X = rng.standard_normal((n, d))
    f = np.maximum(X @ rng.standard_normal((d, 4)), 0) @ np.array([1.0, -1.0, 1.0, -1.0])
    classes = {"squared": f, "softmax": np.digitize(f, [-1.0, 1.0])}
    return X, classes.get(loss, np.where(f > 0, 1, -1))


def run_decays(quick: bool) -> None:
    """The interior point to 1e-6 as the weight decay falls and solutions grow."""
    n, d, P = (200, 10, 30) if quick else (300, 10, 50)
    decays = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
    print(f"\n### interior point, n={n} d={d} P={P}, unit variance: certified gap (CPU s)\n")
    print("| loss | " + " | ".join(f"{decay:g}" for decay in decays) + " |\n|---|" + "---|" * len(decays))
    for loss in ("squared", "logistic", "hinge", "softmax"):
        X, y = separable_data(loss, n, d)
        cells = []
        for decay in decays:
            problem = Problem(torch.tensor(X), read_loss(loss, y, n), decay, True)
            program = ReLUProgram(problem, sample_patterns(problem.X, P, torch.Generator().manual_seed(0)))
            own = timed(lambda program=program: solve_working_set(program, ProgramLimits(1e-6, max_seconds=60)))
            cells.append(f"{own.judgement.gap():.0e} ({own.seconds:.2f})")
        print(f"| {loss} | " + " | ".join(cells) + " |", flush=True)


def seconds_per_step(program: AbstractProgram, steps: int, options: ADMMOptions, device: str = "cpu") -> float:
    rho = first_rho(program.problem, len(program.patterns))
    solver = ADMM.of(program, rho, options)
    state = solver.init(program.zero(), rho)
    clock = time.process_time if device == "cpu" else time.perf_counter
    for _ in range(2):
        state = solver.step(state)
    if device != "cpu":
        torch.cuda.synchronize()
    started = clock()
    for _ in range(steps):
        state = solver.step(state)
    if device != "cpu":
        torch.cuda.synchronize()
    return (clock() - started) / steps


def exponent(sizes: list[int], seconds: list[float]) -> float:
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def text_plot(sizes: list[int], seconds: list[float], name: str) -> None:
    for size, value in zip(sizes, seconds, strict=True):
        print(f"    {name} = {size:5d} {1e3 * value:9.2f} ms {'#' * max(1, round(50 * value / max(seconds)))}")


def run_steps(quick: bool) -> None:
    """The cost of one ADMM step against P and against d."""
    steps = 5 if quick else 20
    print("\n### Cost of one ADMM step, ReLU program, n=500\n")
    counts = [250, 500, 1000, 2000, 4000]
    by_P = [seconds_per_step(teacher_program(500, 20, P, 1e-2), steps, ADMMOptions()) for P in counts]
    text_plot(counts, by_P, "P")
    columns = [10, 20, 40, 80, 160]
    by_d = [seconds_per_step(teacher_program(500, d, 500, 1e-2), steps, ADMMOptions()) for d in columns]
    text_plot(columns, by_d, "d")
    print(f"\n- exponent in P: {exponent(counts, by_P):.2f} (d=20, aim 1)")
    last = exponent(columns[-3:], by_d[-3:])
    print(f"- exponent in d: {exponent(columns, by_d):.2f} (P=500, aim 1), over the last three {last:.2f}")


def scnn_point(program: AbstractProgram, gated: bool, tol: float) -> tuple[float, ProgramJudgement, float]:
    """pyscnn on the same gates: CPU seconds, its point judged, and its largest cone violation."""
    from scnn.metrics import Metrics
    from scnn.models import ConvexGatedReLU, ConvexReLU
    from scnn.optimize import optimize_model
    from scnn.regularizers import NeuronGL1
    from scnn.solvers import AL, RFISTA

    problem, gates = program.problem, program.patterns.gates.T.numpy().copy()
    model = (ConvexGatedReLU if gated else ConvexReLU)(gates, c=1)
    solver = RFISTA(model, tol=tol) if gated else AL(model, tol=tol, constraint_tol=tol)
    started = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, _ = optimize_model(
            model,
            solver,
            Metrics(metric_freq=10**9),
            problem.X.numpy(),
            problem.loss.targets.numpy(),
            regularizer=NeuronGL1(problem.weight_decay),
            return_convex=True,
            unitize_data=False,
            dtype="float64",
        )
    seconds = time.process_time() - started
    blocks = [
        torch.tensor(np.asarray(part, float)).reshape(-1, problem.n_inputs)
        for part in model.parameters[: 1 if gated else 2]
    ]
    patterns = of_directions(problem.X, torch.tensor(np.asarray(model.G, float)).T.contiguous())
    theirs = replace(program, patterns=patterns)
    point = ConvexPoint(torch.stack(blocks)[:, None], torch.zeros(1, dtype=torch.float64))
    V = problem.loss.negative_gradient(theirs.output(point))
    if gated:
        return seconds, judge_program(theirs, point, V), 0.0
    accurate = solve_working_set(theirs, ProgramLimits(1e-7))
    judged = judge_program(theirs, point, accurate.V, accurate.multipliers)
    return seconds, judged, theirs.violation(point)


def run_scnn(quick: bool) -> None:
    """Gated R-FISTA at its own tolerance and ten times tighter, and the augmented Lagrangian."""
    try:
        import scnn  # noqa: F401
    except ImportError as error:
        print(f"\npyscnn is not installed ({error}): that comparison is left out.")
        return
    X, y = breast_cancer()
    X = torch.tensor(X)
    for weight_decay in (1e-2, 1e-3):
        problem = Problem(X, read_loss("squared", y, len(X)), weight_decay, False)
        patterns = sample_patterns(X, 100, torch.Generator().manual_seed(0))
        print(f"\n### breast cancer, 100 patterns, weight decay {weight_decay:g}\n")
        print("| solver | CPU s | objective at a feasible point | certified gap |\n|---|---|---|---|")
        gated = GatedProgram(problem, patterns)
        for tol in (1e-6, 1e-7):
            seconds, judged, _ = scnn_point(gated, True, tol)
            print(Timed(seconds, judged).row(f"pyscnn gated R-FISTA, tol {tol:g}"))
            limits = ProgramLimits(0.1 * judged.gap())
            tenth = timed(lambda gated=gated, limits=limits: solve_fista(gated, limits))
            print(tenth.row("gated FISTA, a tenth of that gap"), flush=True)
            tenth = timed(lambda gated=gated, limits=limits: solve_working_set(gated, limits))
            print(tenth.row("gated interior point, a tenth of that gap"), flush=True)
        for name, solve in (("FISTA", solve_fista), ("interior point", solve_working_set)):
            print(
                timed(lambda solve=solve, gated=gated: solve(gated, ProgramLimits(1e-5))).row(f"gated {name}, 1e-5"),
                flush=True,
            )
        relu = ReLUProgram(problem, patterns)
        print(timed(lambda relu=relu: solve_working_set(relu, ProgramLimits(1e-6))).row("ReLU interior point, 1e-6"))
        seconds, judged, violation = scnn_point(relu, False, 1e-3)
        print(Timed(seconds, judged).row(f"pyscnn ReLU AL, cone violation {violation:.1e}"), flush=True)


def run_patterns(quick: bool) -> None:
    """The objective against the number of patterns: sampled, refined, global."""
    X, y = breast_cancer()
    options = {"weight_decay": 1e-2, "hidden_bias": False, "output_bias": False, "random_state": 0}
    print("\n### breast cancer (n=569, d=30), weight decay 1e-2\n")
    print("| method | patterns | CPU s | objective | bound (kind) |\n|---|---|---|---|---|")

    def line(name: str, **settings: object) -> None:
        started = time.process_time()
        result = convexnn.train(X, y[:, 0], **options, **settings)
        seconds = time.process_time() - started
        count = "all" if result.program is None else result.program.n_patterns
        print(
            f"| {name} | {count} | {seconds:.2f} | {result.objective:.6f} | {result.bound:.6f} ({result.bound_kind}) |",
            flush=True,
        )

    for count in (10, 100, 1000) if quick else (10, 30, 100, 300, 1000, 3000):
        line("sampled", method="interior-point", n_patterns=count, tol=1e-6)
    for count in (100,) if quick else (10, 100, 1000):
        line(f"refined from {count}", method="interior-point", n_patterns=count, refine=True, tol=1e-5)
    line("global", method="global", tol=1e-5)


def run_exact(quick: bool) -> None:
    """All patterns of 40 samples in three dimensions against the global method."""
    print("\n### exact, n=40 d=3, weight decay 1e-2\n")
    worst, seconds, count = 0.0, [0.0, 0.0], 3 if quick else 20
    for seed in range(count):
        rng = np.random.default_rng(seed)
        X, y = rng.standard_normal((40, 3)), rng.standard_normal(40)
        assert len(enumerate_patterns(torch.tensor(X))) == pattern_count(40, 3)
        options = {"weight_decay": 1e-2, "hidden_bias": False, "output_bias": False, "tol": 1e-7, "random_state": 0}
        values = []
        for k, method in enumerate(("exact", "global")):
            started = time.process_time()
            values.append(convexnn.train(X, y, method=method, max_seconds=60, **options).objective)
            seconds[k] += time.process_time() - started
        worst = max(worst, abs(values[1] / values[0] - 1))
    print(f"- {pattern_count(40, 3)} patterns in each of {count} instances, as the formula says")
    print(f"- largest relative difference of the optima: {worst:.1e} (aim 1e-6)")
    print(f"- CPU s for an instance: exact {seconds[0] / count:.2f}, global {seconds[1] / count:.2f}", flush=True)


def cifar_birds_and_ships(count: int) -> tuple[np.ndarray, np.ndarray]:
    from PIL import Image

    with np.load(shared_file("data/cifar10_birds_ships_jpeg.npz")) as stored:
        raw, offset, labels = stored["jpeg"].tobytes(), stored["offset"], stored["y"]
    images = [Image.open(io.BytesIO(raw[offset[i] : offset[i + 1]])) for i in range(count)]
    X = np.stack([np.asarray(image, dtype=float).ravel() for image in images]) / 255.0
    return X, np.where(labels[:count] == labels.max(), 1.0, -1.0)


def image_sets(quick: bool) -> list[tuple[str, np.ndarray, np.ndarray, int]]:
    out = []
    with np.load(shared_file("data/mnist.npz")) as stored:
        labels = stored["y_train"]
        chosen = np.flatnonzero((labels == 2) | (labels == 8))[: 2000 if quick else 12_000]
        X = stored["x_train"][chosen].reshape(len(chosen), -1) / 255.0
        out.append(("MNIST 2 against 8", X, np.where(labels[chosen] == 2, 1.0, -1.0), 72))
    X, y = cifar_birds_and_ships(1000 if quick else 8000)
    out.append(("CIFAR-10 birds against ships", X, y, 50))
    return out


def run_images(quick: bool) -> None:
    """ADMM in single precision on images: training accuracy and seconds for a step."""
    for name, X, y, P in image_sets(quick):
        data = torch.tensor(np.concatenate([X - X.mean(0), np.ones((len(X), 1))], 1))
        problem = Problem(data, read_loss("squared", y, len(y)), 1e-3, False)
        program = ReLUProgram(problem, sample_patterns(data, P, torch.Generator().manual_seed(0)))
        started, steps = time.process_time(), 50 if quick else 200
        found = solve_admm(program, ProgramLimits(1e-3, max_steps=steps), dtype=torch.float32)
        seconds = time.process_time() - started
        single = program.to(torch.float32)
        step, free = (seconds_per_step(single, 3, ADMMOptions(linear=linear)) for linear in ("factor", "cg"))
        assert found.raw is not None
        network = neurons_of(found.raw.U, program.signs, found.raw.bias)
        accuracy = float((torch.sign(network(data)[:, 0]) == torch.tensor(y)).double().mean())
        print(f"\n### {name}, n={len(X)} d={X.shape[1]} P={P}\n")
        print(f"- {found.n_steps} steps in {seconds:.0f} CPU s with factor and judging, {step:.2f} s for a step")
        print(f"- matrix-free, by conjugate gradients: {free:.2f} s for a step, and no factor")
        print(f"- network: training accuracy {accuracy:.3f}, objective {problem.objective(network):.6f}")
        judged = found.judgement
        print(f"- program: {judged.objective:.6f} at a feasible point, bound {judged.dual.bound:.6f}")
        n, dim = len(X), 2 * P * (X.shape[1] + 1)
        print(
            f"- factor: {4 * n * n / 2**30:.2f} GiB; a Cholesky factor of all weights: {8 * dim * dim / 2**30:.0f} GiB"
        )
        print(
            f"- peak of this process so far: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GiB",
            flush=True,
        )


def run_gpu(quick: bool) -> None:
    """Seconds for a step and the share of the matrix product rate, where there is a GPU."""
    if not torch.cuda.is_available():
        print("\nNo CUDA device: the GPU table is left out.")
        return
    n, d, P = (20_000, 784, 200) if quick else (60_000, 784, 1000)
    for dtype in (torch.float32, torch.float64):
        X = torch.randn((n, d), device="cuda", dtype=torch.float64)
        y = torch.sign(X[:, 0]).cpu().numpy()
        problem = Problem(X, read_loss("squared", y, n).__class__(*_on(X, y)), 1e-3, False)
        program = ReLUProgram(problem, sample_patterns(X, P, torch.Generator().manual_seed(0))).to(dtype)
        step = seconds_per_step(program, 10, ADMMOptions(linear="cg"), "cuda")
        A, B = torch.randn((n, d), device="cuda", dtype=dtype), torch.randn((d, 2 * P), device="cuda", dtype=dtype)
        product = _gemm_seconds(A, B)
        print(f"- {dtype}: {step:.4f} s for a step, four products take {4 * product:.4f} s: {4 * product / step:.0%}")


def _on(X: torch.Tensor, y: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor(y, device=X.device)[:, None], torch.full((len(y),), 1 / len(y), device=X.device, dtype=X.dtype)


def _gemm_seconds(A: torch.Tensor, B: torch.Tensor) -> float:
    for _ in range(3):
        A @ B
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(10):
        A @ B
    torch.cuda.synchronize()
    return (time.perf_counter() - started) / 10


PARTS = {
    "accurate": run_accurate,
    "decays": run_decays,
    "steps": run_steps,
    "scnn": run_scnn,
    "patterns": run_patterns,
    "exact": run_exact,
    "images": run_images,
    "gpu": run_gpu,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", choices=tuple(PARTS))
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f"torch {torch.__version__}, {args.threads} thread(s)", flush=True)
    solve_working_set(teacher_program(60, 4, 20, 1e-2), ProgramLimits(1e-6))  # first calls load libraries
    with torch.no_grad():
        for name in [args.only] if args.only else list(PARTS):
            PARTS[name](args.quick)


if __name__ == "__main__":
    main()
