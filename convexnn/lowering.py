"""Going on from any network: lower the worst case that it certifies, never raising it."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from convexnn.data import read_matrix, resolve_device
from convexnn.errors import InvalidInputError, InvalidTypeError
from convexnn.network import from_torch, layers_of, to_torch
from convexnn.neurons import Neurons
from convexnn.problem import Problem
from convexnn.result import Status, TraceEntry
from convexnn.robust.ball import Ball, read_ball
from convexnn.robust.certified import certified_objective
from convexnn.robust.majorise import majorise
from convexnn.robust.program import LOSSES
from convexnn.robust.training import read_robust
from convexnn.solvers.answer import ProgramLimits
from convexnn.task import check_fits, limits_of, read_task
from convexnn.threads import threads_for


@dataclass(frozen=True)
class LoweredWorstCase:
    """A network and its certified objective, from its weights and in floating point.

    ``objective`` is an upper bound of the worst case of the loss over the balls, plus the penalty; ``history`` holds it
    for the start, in balanced form, and after each round, and never rises. ``validation`` holds the same of held-out
    samples, without the penalty; where there are some, the network is that of the round with the least.
    """

    network: nn.Module
    objective: float
    history: tuple[float, ...]
    status: Status
    n_neurons: int
    seconds: float
    validation: tuple[float, ...] = ()


def lower_worst_case(
    network: nn.Module,
    X: Any,
    y: Any,
    *,
    robust: Any,
    weight_decay: float,
    loss: str = "hinge",
    sample_weight: Any = None,
    tol: float = 1e-3,
    max_seconds: float | None = None,
    max_rounds: int = 50,
    device: str | torch.device = "cpu",
    report: Callable[[TraceEntry], None] | None = None,
    validation: tuple[Any, Any] | None = None,
) -> LoweredWorstCase:
    """Lower what a two-layer ReLU network certifies of its worst-case loss, by majorising and minimising.

    Each round fixes linear bounds of the neurons that are best for the present network, which makes the certified
    objective convex in the weights, and minimises it (see :mod:`convexnn.robust.majorise`). The result is a local
    optimum: there is no bound for other networks.

    Parameters
    ----------
    network:
        torch module computing Linear, ReLU, Linear with one output, however it was trained.
    X, y, weight_decay, loss, sample_weight, device:
        As for :func:`train`; losses hinge, logistic and squared. Biases are taken from the network.
    robust:
        A radius or a :class:`Robust`; its cones and patterns are not used.
    tol:
        Stop when a round gains less than this, relative.
    max_seconds, max_rounds:
        Limits; the last accepted network is returned.
    report:
        Called after each round.
    validation:
        Features and targets of samples that are not trained on: stop early, where the certified loss of these has not
        fallen for three rounds, and return the network of the round where it was least.

    Returns
    -------
    LoweredWorstCase
        STALLED is the usual end. Ctrl-C returns what was accepted, with status INTERRUPTED.

    Raises
    ------
    UnsupportedNetworkError, InvalidInputError, InvalidTypeError, DeviceError
        As for :func:`train` and :func:`optimality_gap`.
    """
    started, how = time.perf_counter(), read_robust(robust)
    first, last = layers_of(network)
    biases = (first.bias is not None, last.bias is not None)
    if loss not in LOSSES:
        raise InvalidInputError(f"loss={loss!r} has no worst case here; choose one of {', '.join(LOSSES)}.")
    task = read_task(read_matrix(X), y, loss, weight_decay, biases, sample_weight, resolve_device(device))
    problem, limits = task.full, limits_of(tol, max_seconds, max_rounds)
    given = from_torch(network).to(problem.X.device)
    check_fits(given, problem)
    if problem.loss.n_outputs != 1:
        raise InvalidInputError(f"worst cases are of one output; the targets have {problem.loss.n_outputs}.")
    ball = read_ball(how.eps, how.norm, problem.n_inputs - task.hidden_bias, hidden_bias=task.hidden_bias)
    ball = ball.to(problem.X.device)
    some = ProgramLimits(limits.tol, limits.max_seconds, limits.max_rounds)
    with torch.no_grad(), threads_for(problem):
        held_out = None if validation is None else _certified_loss(problem, ball, validation, hidden_bias=biases[0])
        found = majorise(problem, ball, given.balanced(), some, report=report, held_out=held_out)
        value = certified_objective(problem, ball, found.neurons, found.slopes)
    out = to_torch(found.neurons.to(torch.device("cpu")), hidden_bias=task.hidden_bias, output_bias=biases[1])
    seconds = time.perf_counter() - started
    return LoweredWorstCase(
        out, value, found.history, found.status, len(found.neurons), seconds, validation=found.validation
    )


def _certified_loss(
    problem: Problem, ball: Ball, samples: tuple[Any, Any], *, hidden_bias: bool
) -> Callable[[Neurons], float]:
    """The loss at the worst outputs around these samples, that of a network's own bounds."""
    if not isinstance(samples, tuple) or len(samples) != 2:
        raise InvalidTypeError("validation is no pair (X, y) of held-out features and targets.")
    biases = hidden_bias, problem.output_bias
    task = read_task(
        read_matrix(samples[0]), samples[1], problem.loss.name, problem.weight_decay, biases, None, problem.X.device
    )
    other = task.full
    if other.n_inputs != problem.n_inputs:
        raise InvalidInputError(
            f"validation has {other.n_inputs - hidden_bias} features; the samples to train on have "
            f"{problem.n_inputs - hidden_bias}."
        )

    def value(neurons: Neurons) -> float:
        penalty = other.weight_decay * float(neurons.half_squared_norm())
        return certified_objective(other, ball, neurons) - penalty

    return value
