"""Training: what users call."""

import os
import time
import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from convexnn.constrained.training import (
    ConstrainedOutcome,
    ConstrainedSettings,
    check_constrained,
    train_constrained,
)
from convexnn.data import flag, read_matrix, resolve_device
from convexnn.errors import InvalidInputError, SolverError, SolverWarning
from convexnn.network import from_torch, layers_of, to_torch
from convexnn.neurons import Neurons
from convexnn.patterns import USUAL, count_or_usual
from convexnn.problem import Reduction
from convexnn.progress import progress_bar
from convexnn.proof.report import Request, check_provable
from convexnn.proof.report import prove as prove_bound
from convexnn.restricted import METHODS as RESTRICTED
from convexnn.restricted import RestrictedAnswer, Restriction, solve_restricted
from convexnn.result import Status, TrainingResult, relative_gap
from convexnn.robust.training import MAJORISE, RobustOutcome, certified_loss, check_robust, read_robust, train_robust
from convexnn.robust.training import METHODS as ROBUST
from convexnn.solvers.loop import Answer, solve
from convexnn.solvers.sliding import SlidingFrankWolfe
from convexnn.task import Task, check_fits, limits_of, read_task, seed_of
from convexnn.threads import threads_for

METHODS = ("global", *RESTRICTED)


def train(
    X: Any,
    y: Any,
    *,
    loss: str = "squared",
    weight_decay: float,
    method: str = "global",
    n_patterns: int | None = None,
    refine: bool | str = False,
    hidden_bias: bool = True,
    output_bias: bool = True,
    tol: float = 1e-4,
    max_seconds: float | None = None,
    max_rounds: int = 200,
    sample_weight: Any = None,
    warm_start: nn.Module | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float64,
    random_state: int | np.integer | np.random.Generator | np.random.RandomState | None = None,
    progress: bool = False,
    prove: str | None = None,
    proof_seconds: float | None = 60.0,
    proof_file: str | os.PathLike[str] | None = None,
    robust: Any = None,
    constraints: Any = None,
) -> TrainingResult:
    """Train a two-layer ReLU network by convex optimisation, and say how far from the optimum it can be.

    Minimises J = (1/n) sum_i l(f(x_i), y_i) + (weight_decay / 2) (||W1||^2 + ||b1||^2 + ||W2||^2)
    over networks f(x) = W2 (W1 x + b1)_+ + b2 of every width (the default method; others restrict the
    activation patterns); the output bias b2 is not penalised.

    Parameters
    ----------
    X:
        Features (n, d): array, tensor or frame, finite.
    y:
        Targets. ``"squared"``: (n,) or (n, K), real. ``"logistic"`` and ``"hinge"``: (n,) of -1 and
        +1 (or 0 and 1). ``"softmax"``: integer labels 0 to K-1 (n,), or probabilities (n, K).
    loss:
        ``"squared"`` ((f - y)^2 / 2), ``"logistic"``, ``"hinge"`` or ``"softmax"``.
    weight_decay:
        Above zero. Where no neuron pays for its weights the constant network is returned, with status NULL.
    method:
        ``"global"``: sliding Frank-Wolfe over all activation patterns. The others fix activation patterns and
        solve a convex program: ``"interior-point"`` (accurate), ``"admm"`` (large data, CUDA; polished by the
        interior point where that can), ``"fista"`` (gated program, split into a ReLU network), ``"scp"``
        (first layers fixed), ``"exact"`` (all patterns, small data), ``"reference"`` (cvxpy with Clarabel;
        ``"reference-scs"``, ``"reference-mosek"``), ``"auto"`` (interior point or ADMM, by size).
    n_patterns:
        Random patterns of those methods (random neurons for ``"scp"``); not for ``"global"`` and ``"exact"``. None:
        100, or as many as there can be where that is less.
    refine:
        Add the patterns around the network's neurons and around neurons that violate the dual, and solve again
        until nothing improves; for ``"interior-point"``, ``"admm"``, ``"auto"`` and ``"reference"``.
    hidden_bias, output_bias:
        Whether the first layer has a bias (penalised like its weights) and the output (free).
    tol:
        Relative gap between objective and bound at which to stop, after a confirmation with fresh starts.
    max_seconds, max_rounds:
        Limits; when one is reached, the best network and its own gap are returned. Rounds are counted by the
        global method and by a refinement; a step or a cvxpy solve that has begun is finished first.
    sample_weight:
        Positive weights (n,); the mean loss becomes a weighted mean.
    warm_start:
        A torch network Linear, ReLU, Linear to start from; of the methods with random patterns, its patterns
        are added to them (``"scp"`` and ``"exact"`` take nothing from it).
    device, dtype:
        Where and in what precision the solver works; float32 is for ``"global"`` and ``"admm"``, the others
        always use float64. Objective and bound are always float64.
    random_state:
        Seed; the same seed gives the same network on the same machine.
    progress:
        Show a progress bar.
    prove, proof_seconds, proof_file:
        ``"fast"`` or ``"tree"``: after training, prove a lower bound on the objective of every network, as
        ``proof``, ``timeout`` and ``out`` of :func:`optimality_gap` do; ``bound`` and ``gap`` are then the proved ones.
        The search for it ends at ``tol``. Where no proof was found in time, a SolverWarning says so, and the result is
        the one without.
    robust:
        A radius, or a :class:`convexnn.Robust`: minimise the worst case of the loss over a ball of perturbations
        around every sample (one output; squared, logistic, hinge). Convex over ``n_patterns`` sampled patterns:
        ``"global"`` and ``"auto"`` are the interior point here, for soft cones and large data after ``"first-order"``;
        ``"reference"`` is cvxpy. ``refine=True`` (soft cones) adds the patterns that the network's neurons have at the
        samples until nothing improves; ``refine="mm"`` goes on from the network, and from ``warm_start``, by
        majorising what they certify: see :mod:`convexnn.robust.majorise`.
        ``objective`` is then an upper bound of the network's worst case, from its weights and in floating point,
        ``bound`` and ``gap`` are the program's own.
    constraints:
        A :class:`convexnn.Constraints`, A f <= b on the outputs at the samples and at extra points (one output;
        squared, logistic, hinge). ``"interior-point"`` and ``"auto"`` solve the program of sampled patterns,
        ``"global"`` (and ``refine=True``) adds patterns until nothing improves, ``"fista"`` is the gated program,
        ``"reference"`` is cvxpy. Multipliers and what the network itself makes of each row are in ``constraints``
        of the result.

    Returns
    -------
    TrainingResult
        ``network`` (float64, on the CPU), ``objective``, ``bound`` with ``bound_kind`` ("proved": see ``prove``;
        "local-search": evidence, not proof; "sampled-program": for this program only; "all-patterns": every pattern was
        listed), ``gap``, ``status``, ``n_neurons``, ``seconds``, ``trace``, ``program``, ``robust``, ``constraints``.

    Raises
    ------
    InvalidInputError, InvalidTypeError
        NaN or infinity, shapes that do not fit, one class, weight_decay <= 0, unknown loss or method; with
        ``robust`` a radius beyond what any sampled pattern survives (hard cones; says which is the largest).
    InfeasibleConstraintsError
        No network with these patterns meets the constraints; names a minimal set of rows in conflict.
    DeviceError
        CUDA was asked for and is not there.

    Notes
    -----
    Derivation: Pilanci & Ergen (ICML 2020); Denoyelle et al. (2019). Ctrl-C returns the best network
    so far with status INTERRUPTED.
    """
    started = time.perf_counter()
    _check_method(method, dtype, robust=robust is not None)
    refine = _read_refine(refine, method, robust=robust is not None, constrained=constraints is not None)
    how_robust = None if robust is None else read_robust(robust)
    if how_robust is not None:
        check_robust(how_robust, method, refine=refine, prove=prove)
    device = resolve_device(device)
    data = read_matrix(X)
    task = read_task(data, y, loss, weight_decay, (hidden_bias, output_bias), sample_weight, device)
    if prove is not None:
        check_provable(task.reduced, prove, proof_seconds, proof_file)
    if method == "scp" and n_patterns is None:
        n_patterns = USUAL  # neurons, and patterns do not limit those
    n_patterns = count_or_usual(task.reduced.X, n_patterns)
    if how_robust is not None:
        task = replace(task, reduced=task.full, reduction=Reduction(None))  # balls are not the same in rotated columns
    if constraints is not None:
        settings = ConstrainedSettings(method, n_patterns, task.hidden_bias, bool(refine))
        others = {name for name, value in (("robust", robust), ("prove", prove)) if value is not None}
        check_constrained(constraints, settings, task.full, others)
        # Extra points may leave the rank of the data.
        task = replace(task, reduced=task.full, reduction=Reduction(None))
    start = None if warm_start is None else _warm_start(task, warm_start)
    limits = limits_of(tol, max_seconds, max_rounds)
    request = None if prove is None else Request(prove, proof_seconds, limits.tol, proof_file)
    seed = seed_of(random_state)
    with torch.no_grad(), threads_for(task.reduced), progress_bar(progress, limits.tol) as report:
        if how_robust is not None:
            how = (method, n_patterns, task.hidden_bias, refine)
            outcome = train_robust(task.full, how_robust, how, start=start, limits=limits, seed=seed, report=report)
            plain = _result(task, data, outcome.answer, (method, loss), started)
            return _robust_result(plain, outcome, task)
        if constraints is not None:
            bounded = train_constrained(
                task.full, constraints, data, settings, start=start, limits=limits, seed=seed, report=report
            )
            return _constrained_result(_result(task, data, bounded.answer, (method, loss), started), bounded)
        if method == "global":
            answer = solve(
                task.reduced, SlidingFrankWolfe(), start=start, limits=limits, seed=seed, dtype=dtype, report=report
            )
            result = _result(task, data, answer, (method, loss), started)
            return _proved(result, task, request, answer.V)
        restriction = Restriction(method, n_patterns, bool(refine), dtype)
        found = solve_restricted(task.reduced, restriction, start=start, limits=limits, seed=seed, report=report)
    result = _restricted_result(_result(task, data, found.answer, (method, loss), started), found, task)
    return _proved(result, task, request)


def _proved(result: TrainingResult, task: Task, request: Request | None, V: Tensor | None = None) -> TrainingResult:
    """The result with a proved bound in place of the evidence, where one was asked for."""
    if request is None:
        return result
    given = from_torch(result.network)
    try:
        report = prove_bound(
            (task.full, task.reduced),
            task.reduction,
            (given, task.reduction.restrict(given.to(task.reduced.X.device))),
            request,
            V,
        )
    except SolverError as error:  # the network and its evidence stay
        warnings.warn(f"{error} The bound is the one before any proof.", SolverWarning, stacklevel=3)
        return result
    return replace(
        result,
        bound=report.bound,
        bound_kind="proved",
        gap=relative_gap(report.objective, report.bound, task.full.floor()),
        seconds=result.seconds + (report.stages[-1][1] if report.stages else 0.0),
        proof=report,
    )


def _robust_result(result: TrainingResult, outcome: RobustOutcome, task: Task) -> TrainingResult:
    """The certified objective, recomputed from the weights of the module itself, and the gap of the program."""
    worst = certified_loss(task.full, from_torch(result.network), outcome)
    about = outcome.report  # slopes chosen for the network can certify less than the optimum of soft cones
    bound, gap = min(result.bound, worst), about.gap
    if result.n_neurons == 0:
        gap = relative_gap(worst, result.bound, task.full.floor())
    return replace(result, objective=worst, bound=bound, bound_kind="sampled-program", gap=gap, robust=about)


def _constrained_result(result: TrainingResult, outcome: ConstrainedOutcome) -> TrainingResult:
    """And what the module itself makes of the constraints."""
    F = result.network(outcome.points)
    bound = min(result.bound, result.objective)
    return replace(
        result,
        bound=bound,
        bound_kind=outcome.bound_kind,
        gap=relative_gap(result.objective, bound),
        program=outcome.program,
        constraints=outcome.report(F),
    )


def _restricted_result(result: TrainingResult, found: RestrictedAnswer, task: Task) -> TrainingResult:
    gap = relative_gap(result.objective, found.answer.bound, task.full.floor())
    return replace(result, bound_kind=found.bound_kind, gap=gap, program=found.report)


def _check_method(method: str, dtype: torch.dtype, *, robust: bool = False) -> None:
    if method not in METHODS and not (robust and method in ROBUST):
        raise InvalidInputError(f"method={method!r} is not known; choose one of {', '.join(map(repr, METHODS))}.")
    if dtype not in (torch.float64, torch.float32):
        raise InvalidInputError(f"dtype={dtype} is not supported; pass torch.float64 or torch.float32.")


def _read_refine(refine: Any, method: str, *, robust: bool, constrained: bool) -> bool | str:
    if isinstance(refine, str):
        if refine != MAJORISE or not robust:
            raise InvalidInputError(
                f"refine={refine!r} is not known; pass True or False, or with robust= {MAJORISE!r} to lower what the "
                "network certifies."
            )
        return refine
    refine = flag(refine, "refine")
    if refine and method == "global" and not (robust or constrained):
        raise InvalidInputError('method="global" works on all patterns already: leave refine=False.')
    return refine


def _warm_start(task: Task, network: nn.Module) -> Neurons:
    first, last = layers_of(network)
    neurons = from_torch(network).to(task.full.X.device)
    if task.hidden_bias and first.bias is None:
        neurons = replace(neurons, W=torch.cat([neurons.W, torch.zeros_like(neurons.W[:, :1])], 1))
    if not task.hidden_bias and first.bias is not None:
        raise InvalidInputError("warm_start has a first-layer bias, but hidden_bias=False; pass hidden_bias=True.")
    if not task.full.output_bias and last.bias is not None:
        raise InvalidInputError("warm_start has an output bias, but output_bias=False; pass output_bias=True.")
    check_fits(neurons, task.full)
    return task.reduction.restrict(neurons)


def _result(task: Task, data: Tensor, answer: Answer, names: tuple[str, str], started: float) -> TrainingResult:
    neurons = task.reduction.lift(answer.neurons).to(torch.device("cpu"))
    network = to_torch(neurons, hidden_bias=task.hidden_bias, output_bias=task.full.output_bias)
    on_cpu = replace(task, full=task.full.to(torch.device("cpu")))
    objective = on_cpu.objective(network, data)
    status = Status.NULL if answer.status is Status.CONVERGED and len(neurons) == 0 else answer.status
    return TrainingResult(
        network=network,
        objective=objective,
        bound=answer.bound,
        bound_kind="local-search",
        gap=relative_gap(objective, answer.bound, task.full.floor()),
        status=status,
        n_neurons=len(neurons),
        seconds=time.perf_counter() - started,
        n_rounds=answer.n_rounds,
        method=names[0],
        loss=names[1],
        weight_decay=task.full.weight_decay,
        trace=answer.trace,
    )
