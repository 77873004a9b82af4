"""Below the rank: fewer neurons at a price, as a curve of neurons against objective, loss and accuracy.

Neurons are removed one by one, the one first whose loss the others can make up for best: for a quadratic loss,
removing row a_j and letting the other output weights follow raises it by |a_j|^2 / (2 (H^-1)_jj), H the Hessian in the
amplitudes (Hassibi & Stork, 1993). At each size that is recorded the network is corrected, and removals go on there.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from convexnn.ascent import ColumnPairs
from convexnn.data import read_loss, read_matrix
from convexnn.errors import InvalidInputError
from convexnn.losses import AbstractLoss, AbstractMarginLoss
from convexnn.network import to_torch
from convexnn.neurons import Neurons, unit_rows
from convexnn.problem import Problem
from convexnn.solutions.pruning import PrunedNetwork, fit_change, prune, read_network
from convexnn.solvers.amplitudes import group_amplitudes, signed_amplitudes
from convexnn.solvers.slide_scalar import slide_scalar
from convexnn.solvers.slide_vector import slide_vector
from convexnn.solvers.smoothing import Levels
from convexnn.task import Task

_N_SIZES = 16
_RIDGE = 1e-10  # of the amplitudes' Hessian, relative to its mean curvature
_GROUP_STEPS = 500


@dataclass(frozen=True)
class SizedNetwork:
    """One point of the curve."""

    n_neurons: int
    network: nn.Sequential = field(repr=False)
    objective: float  # J of the network, from its weights
    loss: float  # its mean loss on the data
    fit_change: float  # largest change of an output on the data, relative to the spread of the given outputs
    test_loss: float | None  # mean loss on the test data
    test_accuracy: float | None  # there, where outputs are classes: logistic, hinge, softmax


@dataclass(frozen=True)
class PruningCurve:
    """Networks of fewer and fewer neurons; the first one is that of optimal pruning."""

    pruned: PrunedNetwork
    points: tuple[SizedNetwork, ...]
    correction: str

    def smallest(self, increase: float = 1e-6) -> SizedNetwork:
        """The smallest network whose objective is at most this much, relatively, above that of the given network."""
        limit = self.pruned.objective_before + increase * abs(self.pruned.objective_before)
        return min((point for point in self.points if point.objective <= limit), key=lambda point: point.n_neurons)

    def __str__(self) -> str:
        lines = ["neurons    objective         loss   outputs change"]
        for point in self.points:
            line = f"{point.n_neurons:7d} {point.objective:12.8f} {point.loss:12.8f} {point.fit_change:16.1e}"
            lines.append(line + ("" if point.test_accuracy is None else f"   test accuracy {point.test_accuracy:.4f}"))
        return "\n".join(lines)


def pruning_curve(
    network: nn.Module,
    X: Any,
    y: Any,
    *,
    weight_decay: float,
    loss: str = "squared",
    sample_weight: Any = None,
    tol: float = 1e-8,
    correction: str = "weight-decay",
    sizes: Sequence[int] | None = None,
    test: tuple[Any, Any] | None = None,
) -> PruningCurve:
    """Prune as far as the outputs allow, then further, and record what each size costs.

    Args:
        network: torch module computing Linear, ReLU, Linear.
        X: features ``(n, d)``.
        y: targets, as for :func:`convexnn.train`.
        weight_decay: that the network was trained with.
        loss: ``"squared"``, ``"logistic"``, ``"hinge"`` or ``"softmax"``.
        sample_weight: positive weights ``(n,)``.
        tol: of the optimal pruning, see :func:`prune`.
        correction: what is fitted again at each size. ``"weight-decay"``: the output weights, to the objective (a
            convex problem). ``"least-squares"``: the output weights, to the outputs of the given network, without
            regard to the penalty (as Mishkin & Pilanci do). ``"slide"``: all weights, to a stationary point nearby.
        sizes: numbers of neurons to record; default: about sixteen, down to one.
        test: features and targets to score every size on.

    Raises:
        UnsupportedNetworkError, InvalidInputError: as for :func:`prune`; an unknown correction, sizes below one.

    """
    if correction not in _CORRECTIONS:
        names = ", ".join(map(repr, _CORRECTIONS))
        raise InvalidInputError(f"correction={correction!r} is not known; choose one of {names}.")
    pruned = prune(network, X, y, weight_decay=weight_decay, loss=loss, sample_weight=sample_weight, tol=tol)
    task, neurons = read_network(pruned.network, X, y, loss, weight_decay, sample_weight)
    _, given = read_network(network, X, y, loss, weight_decay, sample_weight)
    score = _scorer(task, given, test, loss)
    points = [score(neurons)]
    with torch.no_grad():
        at = task.reduction.restrict(neurons)
        outputs = given(task.full.X)
        for size in _sizes(sizes, len(neurons)):
            if size >= len(at):  # a correction can leave fewer than were asked for
                continue
            at = _CORRECTIONS[correction](task.reduced, _removed(task.reduced, at, size), outputs)
            points.append(score(task.reduction.lift(at)))
    return PruningCurve(pruned, tuple(points), correction)


def _sizes(wanted: Sequence[int] | None, size: int) -> list[int]:
    """Falling, below what there is."""
    if wanted is None:
        wanted = np.unique(np.round(np.geomspace(1, max(size, 1), _N_SIZES)).astype(int)).tolist()
    if isinstance(wanted, str) or not np.iterable(wanted):
        raise InvalidInputError(f"sizes={wanted!r}; a sequence of integers of at least 1 is expected.")
    if any(isinstance(k, bool) or not isinstance(k, (int, np.integer)) or k < 1 for k in wanted):
        raise InvalidInputError(f"sizes={wanted!r}; integers of at least 1 are expected.")
    return sorted({int(k) for k in wanted if k < size}, reverse=True)


def _removed(problem: Problem, neurons: Neurons, size: int) -> Neurons:
    """Without the neurons that the others make up for best, one after the other, until ``size`` are left."""
    U = unit_rows(neurons.W)
    A = neurons.A * neurons.W.norm(dim=1, keepdim=True)
    inverse = _inverse_hessian(problem, torch.relu(problem.X @ U.T), neurons(problem.X))
    live = torch.ones(len(A), dtype=torch.bool)
    for _ in range(len(A) - size):
        spread = inverse.diagonal().clamp(min=1e-300)
        cost = torch.where(live, (A**2).sum(1) / spread, torch.inf)
        j = int(torch.argmin(cost))
        column = inverse[:, j] / spread[j]
        A = A - column[:, None] * A[j]
        inverse = inverse - torch.outer(column, inverse[j])
        live[j] = False
    sign_kept = (A * neurons.A).sum(1) > 0
    return _rescaled(neurons, U, torch.where(sign_kept[:, None], A, 0.0), live)


def _inverse_hessian(problem: Problem, Z: Float[Tensor, "n k"], F: Float[Tensor, "n K"]) -> Float[Tensor, "k k"]:
    """Inverse of Z'diag(h)Z, h the mean curvature of the outputs; an output bias is eliminated."""
    h = problem.loss.quadratic_form(problem.loss.curvature(F), torch.eye(F.shape[1]).to(F)).mean(0)
    h = h.clamp(min=0.0) + 1e-12 * problem.loss.weights
    if problem.output_bias:
        Z = Z - (h @ Z) / h.sum()
    H = Z.T @ (h[:, None] * Z)
    H.diagonal().add_(_RIDGE * H.diagonal().mean() + torch.finfo(H.dtype).tiny)
    return torch.linalg.inv(H)


def _rescaled(neurons: Neurons, U: Tensor, A: Tensor, live: Bool[Tensor, " k"]) -> Neurons:
    """Balanced, without the dead; a neuron whose output weights vanished stays as a small one, so that it can grow."""
    W, A = U[live], A[live]
    floor = 1e-6 * unit_rows(neurons.A[live]) * float(A.norm(dim=1).max())
    return replace(neurons, W=W, A=torch.where(A.norm(dim=1, keepdim=True) > 0, A, floor)).balanced()


def _with_weight_decay(problem: Problem, neurons: Neurons, outputs: Tensor) -> Neurons:
    """Output weights and bias at the minimum of the objective."""
    del outputs
    U, C = unit_rows(neurons.W), unit_rows(neurons.A)
    Z, masses, wd = torch.relu(problem.X @ U.T), neurons.masses(), problem.weight_decay
    bias = neurons.bias if problem.output_bias else None
    if neurons.n_outputs == 1:
        masses, bias = signed_amplitudes(Z * C[:, 0], problem.loss, wd, masses, bias)
        A = masses[:, None] * C
    else:
        A, bias = group_amplitudes(Z, problem.loss, wd, masses[:, None] * C, bias, max_steps=_GROUP_STEPS)
    return Neurons(U, A, neurons.bias if bias is None else bias).balanced()


def _by_least_squares(problem: Problem, neurons: Neurons, outputs: Tensor) -> Neurons:
    """Output weights and bias that come nearest to the given outputs."""
    U = unit_rows(neurons.W)
    Z = torch.relu(problem.X @ U.T)
    shift = outputs.mean(0) if problem.output_bias else torch.zeros_like(neurons.bias)
    centre = Z.mean(0) if problem.output_bias else torch.zeros_like(Z[0])
    A = torch.linalg.lstsq(Z - centre, outputs - shift, driver="gelsd").solution
    bias = shift - centre @ A if problem.output_bias else neurons.bias
    return Neurons(U, A, bias).balanced()


def _by_sliding(problem: Problem, neurons: Neurons, outputs: Tensor) -> Neurons:
    """All weights at a stationary point nearby."""
    at = _with_weight_decay(problem, neurons, outputs)
    if len(at) == 0:
        return at
    slide = slide_scalar if at.n_outputs == 1 else slide_vector
    levels = Levels(1e-3, 1e-8, 1e-10 * problem.objective(at))
    slid, _ = slide(problem, at, levels, pairs=ColumnPairs.fit(problem.X))
    slid = slid.pruned().balanced().merged()
    return slid if problem.objective(slid) < problem.objective(at) else at


_CORRECTIONS: dict[str, Callable[[Problem, Neurons, Tensor], Neurons]] = {
    "weight-decay": _with_weight_decay,
    "least-squares": _by_least_squares,
    "slide": _by_sliding,
}


def _scorer(task: Task, given: Neurons, test: tuple[Any, Any] | None, loss: str) -> Callable[[Neurons], SizedNetwork]:
    problem = task.full
    held = None if test is None else _read_test(test, loss, problem, problem.n_inputs - task.hidden_bias)

    def score(neurons: Neurons) -> SizedNetwork:
        module = to_torch(neurons, hidden_bias=task.hidden_bias, output_bias=problem.output_bias)
        return SizedNetwork(
            n_neurons=len(neurons),
            network=module,
            objective=problem.objective(neurons),
            loss=float(problem.loss.value(neurons(problem.X))),
            fit_change=fit_change(problem, given, neurons),
            test_loss=None if held is None else _test_loss(module, *held),
            test_accuracy=None if held is None else _accuracy(module, *held),
        )

    return score


def _read_test(test: tuple[Any, Any], loss: str, problem: Problem, n_columns: int) -> tuple[Tensor, AbstractLoss]:
    X = read_matrix(test[0], "the test features")
    read = read_loss(loss, test[1], len(X))
    if read.n_outputs != problem.loss.n_outputs or X.shape[1] != n_columns:
        raise InvalidInputError(
            f"the test data have {X.shape[1]} columns and {read.n_outputs} outputs; those of training have "
            f"{n_columns} and {problem.loss.n_outputs}."
        )
    return X, read


def _test_loss(module: nn.Module, X: Tensor, loss: AbstractLoss) -> float:
    with torch.no_grad():
        return float(loss.value(module(X)))


def _accuracy(module: nn.Module, X: Tensor, loss: AbstractLoss) -> float | None:
    """Share of samples on the right side; None where outputs are no classes."""
    with torch.no_grad():
        F = module(X)
    if isinstance(loss, AbstractMarginLoss):
        return float((torch.where(F > 0, 1.0, -1.0) == loss.targets).double().mean())
    if loss.name == "softmax":
        return float((F.argmax(1) == loss.targets.argmax(1)).double().mean())
    return None
