"""Minimising a sloped objective by smoothing: quasi-Newton steps, and the maximisers as the next centre."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from convexnn.robust.sloped import SlopedProgram
from convexnn.robust.smoothed import Evaluated, Smoothed
from convexnn.solvers.quasi_newton import minimise

# Wide first: the wide problems are well conditioned, and later ones start from their points and multipliers.
WIDTHS = (1.0, 1.0, 1.0, 0.3, 0.3, 0.1, 0.1, 0.03)  # relative to the scale of the targets
WIDTHS_NEAR = (0.1, 0.1, 0.03)  # from a start that is near the minimum
WIDTHS_FINE = (0.03, 0.03, 0.01, 0.01)  # where wider ones end above the start
_CALLS = 150  # of the smoothed function between two centres
_MOST_ROUNDS = 40
_IDLE = 2  # rounds in a row at the last width that gain less than the tolerance
_RIDGE = 2.0  # of the metric, relative to the mean eigenvalue of the second moments


@dataclass(frozen=True)
class Descended:
    """The best point seen, its exact objective, and the last smoothed one with its multipliers."""

    U: Float[Tensor, "K d"]
    bias: Float[Tensor, " 1"]
    objective: float
    last: Evaluated


Seen = Callable[[Descended], bool]


def descend(
    program: SlopedProgram,
    U: Float[Tensor, "K d"],
    bias: Float[Tensor, " 1"],
    *,
    tol: float,
    deadline: float,
    widths: tuple[float, ...] = WIDTHS,
    stop: Seen = lambda _: False,
) -> Descended:
    """From a point: never above its objective. One round for each width, then at the last one.

    Ends when rounds at the last width gain less than ``tol``, relative, or ``stop`` says so. ``deadline`` is of
    ``time.perf_counter()``; the round that has begun is finished.
    """
    scale = _scale(program)
    smoothed = Smoothed(program, widths[-1] * scale)
    x = smoothed.joined(U, bias)
    centre = smoothed.evaluate(x, smoothed.centre()).maximisers
    metric = _metric(smoothed)
    best, idle = (U, bias, program.objective(U, bias)), 0
    for k in range(_MOST_ROUNDS):
        smoothed = Smoothed(program, widths[min(k, len(widths) - 1)] * scale)
        found = minimise(partial(smoothed.evaluate, centre=centre), x, max_calls=_CALLS, metric=metric)
        x, centre = found.x, found.at.maximisers
        value = program.objective(*smoothed.split(x))
        idle = 0 if value < best[2] - tol * abs(best[2]) else idle + 1
        if value < best[2]:
            best = (*smoothed.split(x), value)
        seen = Descended(*best, found.at)
        if stop(seen) or time.perf_counter() > deadline or (idle >= _IDLE and k + 1 >= len(widths)):
            break
    return seen


def _metric(smoothed: Smoothed) -> Callable[[Tensor], Tensor]:
    """The inverse second moments of the samples, with a ridge, on the weights of every neuron."""
    problem = smoothed.program.problem
    X = problem.X
    second = X.T @ X / len(X)
    second.diagonal().add_(_RIDGE * second.diagonal().mean().clamp(min=1e-300))
    inverse = torch.linalg.inv(second)

    def apply(gradient: Tensor) -> Tensor:
        U, bias = smoothed.split(gradient)
        return smoothed.joined(U @ inverse, bias)

    return apply


def _scale(program: SlopedProgram) -> float:
    """One for losses of the margin; of the squared one, the spread of the targets."""
    if program.margin_loss:
        return 1.0
    y = program.problem.loss.targets[:, 0]
    return max(float((y - program.problem.constant()).abs().mean()), 1e-300)
