"""How far a network can be from the global optimum: evidence by local search, or a proof."""

import os
import time
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from convexnn.ascent import ColumnPairs
from convexnn.data import read_matrix, resolve_device
from convexnn.duality import judge
from convexnn.network import from_torch, layers_of
from convexnn.neurons import Neurons
from convexnn.proof.report import Request, check_provable, prove
from convexnn.result import OptimalityGap, relative_gap
from convexnn.solvers.loop import Limits, solve
from convexnn.solvers.sliding import SlidingFrankWolfe, confirmation_effort
from convexnn.task import Task, check_fits, limits_of, read_task, seed_of
from convexnn.threads import threads_for


def optimality_gap(
    network: nn.Module,
    X: Any,
    y: Any,
    *,
    weight_decay: float,
    loss: str = "squared",
    sample_weight: Any = None,
    tol: float = 1e-4,
    max_seconds: float | None = None,
    device: str | torch.device = "cpu",
    random_state: int | np.integer | np.random.Generator | np.random.RandomState | None = None,
    proof: str | None = None,
    timeout: float | None = 60.0,
    out: str | os.PathLike[str] | None = None,
    resume: str | os.PathLike[str] | None = None,
    workers: int = 1,
) -> OptimalityGap:
    """How far a trained network is from the best two-layer ReLU network of any width.

    Takes any torch network of the form Linear, ReLU, Linear, whoever trained it. Each neuron is
    first rescaled to its balanced form, which leaves the function as it is and lowers the penalty;
    ``objective`` is J after that, ``objective_as_given`` before. The bound is the better of the one
    at the network's own residual and the one that the global method finds within ``max_seconds``.

    Parameters
    ----------
    network:
        torch module computing Linear, ReLU, Linear.
    X, y, weight_decay, loss, sample_weight, device, random_state:
        The training problem, as for :func:`train`. Biases are taken from the network: a first-layer
        bias is penalised, an output bias is free.
    tol:
        Relative gap at which the search for a better bound stops.
    max_seconds:
        Limit of that search; None: until the bound is within ``tol`` of the best network found.
    proof:
        None: evidence only. ``"fast"``: prove a bound by a moment relaxation with some samples lifted, and by
        simplicial cones where there are at most six columns. ``"tree"``: go on with more of both until the proved gap
        is ``tol`` or the time is up; the bound never gets worse. For one output; squared, logistic or hinge loss.
    timeout:
        Seconds for the proof, the search for evidence not counted; None: no limit. A stage checks it between steps.
    out:
        File for the proof, packed unless its name ends in .json; ``certify check FILE`` judges it in exact arithmetic.
    resume:
        File of an earlier proof for the same data and settings, about this or another network: its bound holds for
        all networks, so that it is checked and taken over, and the search goes on with what was not tried.
    workers:
        Threads that share a relaxation, and processes that share the cones.

    Returns
    -------
    OptimalityGap
        ``bound_kind`` is "local-search": evidence, not proof; with ``proof`` it is "proved", and objective and bound
        are those that the exact checker accepted. Ctrl-C during the proof returns the best bound until then. A gap that
        stays large means that the network is far from optimal (was it trained with this weight decay?) or that the
        proof is weak: ``local_search_bound`` tells which is likely.

    Raises
    ------
    UnsupportedNetworkError
        The module is not of that form, or does not take X or give outputs like y.
    InvalidInputError, InvalidTypeError, DeviceError
        As for :func:`train`; a proof was asked for several outputs, or needs more memory than there is.
    SolverError
        The search for a proof ended before it had any.
    """
    started = time.perf_counter()
    device = resolve_device(device)
    first, last = layers_of(network)
    data = read_matrix(X)
    biases = (first.bias is not None, last.bias is not None)
    task = read_task(data, y, loss, weight_decay, biases, sample_weight, device)
    given = from_torch(network).to(device)
    check_fits(given, task.full)
    request = Request(proof or "", timeout, tol, out, resume, workers)
    if proof is not None:
        check_provable(task.reduced, proof, timeout, out)
    as_given = task.full.objective(given)
    balanced = given.balanced()
    objective = task.full.objective(balanced)
    limits = limits_of(tol, max_seconds, 200)
    with torch.no_grad(), threads_for(task.reduced):
        bound, best, V = _best_bound(task, balanced, objective, limits, seed_of(random_state))
    evidence = OptimalityGap(
        objective=objective,
        objective_as_given=as_given,
        bound=bound,
        bound_kind="local-search",
        gap=relative_gap(objective, bound, task.full.floor()),
        n_neurons=len(balanced),
        seconds=time.perf_counter() - started,
    )
    if proof is None:
        return evidence
    with threads_for(task.reduced):
        report = prove(
            (task.full, task.reduced),
            task.reduction,
            (given, best),
            request,
            V,
        )
    return replace(
        evidence,
        objective=report.objective,
        bound=report.bound,
        bound_kind="proved",
        gap=relative_gap(report.objective, report.bound, task.full.floor()),
        seconds=time.perf_counter() - started,
        local_search_bound=bound,
        proof=report,
    )


def _best_bound(
    task: Task, neurons: Neurons, objective: float, limits: Limits, seed: int
) -> tuple[float, Neurons, Tensor | None]:
    """The local-search bound, the best network known, and the dual point of the bound, in the reduced columns."""
    problem = task.reduced
    restricted = task.reduction.restrict(neurons)
    bias = problem.loss.optimal_bias(restricted(problem.X)) if problem.output_bias else 0.0
    V = problem.dual_point(restricted(problem.X) + bias)
    generator = torch.Generator().manual_seed(seed)
    own = judge(
        problem,
        V,
        restricted,
        effort=confirmation_effort(problem),
        generator=generator,
        pairs=ColumnPairs.fit(problem.X),
    )
    if relative_gap(objective, own.dual.bound, problem.floor()) <= limits.tol:
        return own.dual.bound, replace(restricted, bias=restricted.bias + bias), own.dual.V
    answer = solve(problem, SlidingFrankWolfe(), start=None, limits=limits, seed=seed)
    # A bound above a network that exists is wrong: the search missed a neuron.
    best = min(objective, answer.objective)
    found = ((own.dual.bound, own.dual.V), (answer.bound, answer.V))
    possible = [one for one in found if one[0] <= best] or [min(found, key=lambda one: one[0])]
    bound, dual = max(possible, key=lambda one: one[0])
    return bound, answer.neurons, dual
