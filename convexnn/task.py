"""What users pass to training, read: problems in their own columns and in the rank of the data, limits, seeds."""

import math
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from convexnn.data import flag, positive, read_loss
from convexnn.errors import InvalidInputError, ScalingWarning
from convexnn.network import penalty
from convexnn.neurons import Neurons
from convexnn.problem import Problem, Reduction, reduce_to_rank
from convexnn.solvers.loop import Limits

_BIASES = ("hidden_bias", "output_bias")
_WIDE_SCALES = 1e7  # beyond it a small column has no digits left in single precision


@dataclass(frozen=True)
class Task:
    """A problem in the user's columns and its reduction to the rank of the data."""

    full: Problem
    reduced: Problem
    reduction: Reduction
    hidden_bias: bool

    def objective(self, network: nn.Module, X: Tensor) -> float:
        """J recomputed from the weights of the module itself."""
        with torch.no_grad():
            F = network(X)
        return float(self.full.loss.value(F)) + self.full.weight_decay * penalty(network)


def read_task(
    data: Tensor,
    y: Any,
    loss: str,
    weight_decay: float,
    biases: tuple[bool, bool],
    sample_weight: Any,
    device: torch.device,
) -> Task:
    """The user's problem, and its reduction to the rank of the data; ``biases``: hidden layer and output."""
    hidden_bias, output_bias = (flag(value, name) for value, name in zip(biases, _BIASES, strict=True))
    read = read_loss(loss, y, len(data), sample_weight)
    X = torch.cat([data, torch.ones_like(data[:, :1])], 1) if hidden_bias else data
    _check_scales(X)
    full = Problem(X, read, positive(weight_decay, "weight_decay"), output_bias).to(device)
    reduced, reduction = reduce_to_rank(full)
    return Task(full, reduced, reduction, hidden_bias)


def _check_scales(X: Tensor) -> None:
    norms = X.norm(dim=0)
    norms = norms[norms > 0]
    ratio = float(norms.max() / norms.min()) if len(norms) else 1.0
    if ratio > _WIDE_SCALES:
        warnings.warn(
            f"The columns of X (a first-layer bias counts as ones) differ in scale by a factor of {ratio:.0e}: the "
            "search for neurons can miss narrow ones, and the bound can be too high. Standardise the features.",
            ScalingWarning,
            stacklevel=4,
        )


def check_fits(neurons: Neurons, problem: Problem) -> None:
    """Raise where a network does not take these columns, or has weights that are not finite."""
    given = (neurons.W.shape[1], neurons.n_outputs)
    expected = (problem.n_inputs, problem.loss.n_outputs)
    if given != expected:
        raise InvalidInputError(
            f"the network has {given[0]} inputs (a bias counts as one) and {given[1]} outputs; "
            f"the data have {expected[0]} and {expected[1]}."
        )
    if not all(bool(torch.isfinite(part).all()) for part in (neurons.W, neurons.A, neurons.bias)):
        raise InvalidInputError("the network has weights that are NaN or infinite; train it again or drop them.")
    objective = problem.objective(neurons.balanced().to(problem.X.device))
    if not math.isfinite(objective):
        raise InvalidInputError(
            f"the network's objective on these data is {objective}: its weights are too large for double precision."
        )


def limits_of(tol: float, max_seconds: float | None, max_rounds: int) -> Limits:
    """The user's limits, checked."""
    seconds = float("inf") if max_seconds is None else positive(max_seconds, "max_seconds")
    if not isinstance(max_rounds, (int, np.integer)) or max_rounds < 1:
        raise InvalidInputError(f"max_rounds={max_rounds!r}; an integer of at least 1 is expected.")
    return Limits(positive(tol, "tol", zero=True), seconds, int(max_rounds))


def seed_of(random_state: Any) -> int:
    """A seed from whatever names a random state."""
    if random_state is None:
        return int(np.random.default_rng().integers(2**31))
    if isinstance(random_state, np.random.RandomState):
        return int(random_state.randint(2**31 - 1))
    if isinstance(random_state, np.random.Generator):
        return int(random_state.integers(2**31))
    if isinstance(random_state, (int, np.integer)) and 0 <= random_state < 2**32:
        return int(random_state)
    raise InvalidInputError(f"random_state={random_state!r}; None, an integer in [0, 2^32) or a numpy generator.")
