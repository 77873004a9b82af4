"""Fewer neurons for the same outputs: optimal pruning, and what it costs to go on below that.

Write a network in balanced form as F = sum_j x_j p_j + b with contributions p_j = (X w_j)_+ a_j', masses
m_j = ||w_j|| ||a_j|| and x = 1. Where the network is stationary, <V, p_j> = weight_decay m_j for V = -grad L(F):
then every x >= 0 with the same outputs has the same penalty, since <V, F> and 1'V = 0 fix it, and so has
one with at most rank(p_1, ..., p_k) neurons (Mishkin & Pilanci, ICML 2023). Off stationarity the same steps, taken in
the direction that does not raise the penalty, keep the outputs and never raise the objective.
"""

import time
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from convexnn.data import positive, read_matrix
from convexnn.errors import InvalidInputError
from convexnn.network import from_torch, layers_of, to_torch
from convexnn.neurons import Neurons, unit_rows
from convexnn.problem import Problem
from convexnn.solutions.elimination import fewest
from convexnn.task import Task, check_fits, read_task

_ROUNDING = 1e-13  # of a rank, relative to the largest singular value
_ALIKE = 0.99  # cosine of output weights from which neurons with several outputs may be added up
_TRIES = 4  # rank tolerances between tol and rounding
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class PrunedNetwork:
    """A network with the outputs of another one on its data, and few neurons."""

    network: nn.Sequential  # Linear(d, k), ReLU, Linear(k, K), float64, on the CPU
    n_given: int  # neurons with an effect in the network that was given
    n_merged: int  # of these, added up with others of the same activation pattern
    rank: int  # of the contributions that were left, an output bias taken off: no vertex has more neurons
    n_neurons: int
    objective_before: float  # of the given network in balanced form
    objective: float  # recomputed from the weights of ``network``
    fit_change: float  # largest change of an output on the data, relative to the spread of the outputs
    residual: float  # how far the given network is from stationary, see :func:`prune`
    seconds: float

    def __str__(self) -> str:
        return (
            f"neurons   {self.n_given} -> {self.n_neurons} ({self.n_merged} added to others, rank {self.rank})\n"
            f"objective {self.objective_before:.10g} -> {self.objective:.10g}\n"
            f"outputs   change by at most {self.fit_change:.1e} of their spread\n"
            f"residual  {self.residual:.1e} (zero where the network is stationary)"
        )


def prune(
    network: nn.Module,
    X: Any,
    y: Any,
    *,
    weight_decay: float,
    loss: str = "squared",
    sample_weight: Any = None,
    tol: float = 1e-8,
    max_residual: float | None = None,
) -> PrunedNetwork:
    """A network with the same outputs on the data, no larger objective, and as few neurons as elimination gives.

    Neurons without effect go, neurons with the same activation pattern and sign are added up, and the rest is
    eliminated until contributions are independent: at most their rank remains, and never more than there are
    outputs on the data. Works on any network Linear, ReLU, Linear, whoever trained it, with one output or several.
    This is a vertex of the set of networks with these outputs and this penalty; another vertex can have fewer neurons.

    Args:
        network: torch module computing Linear, ReLU, Linear.
        X: features ``(n, d)``.
        y: targets, as for :func:`convexnn.train`; they matter for the objective and the residual.
        weight_decay: that the network was trained with.
        loss: ``"squared"``, ``"logistic"``, ``"hinge"`` or ``"softmax"``.
        sample_weight: positive weights ``(n,)``.
        tol: allowed change of outputs on the data, relative to their largest distance from the mean output. Networks
            of Adam hold near copies of one neuron: larger values find those out (try 1e-6), and the objective shows
            what that costs.
        max_residual: refuse networks further from stationary than this. None: prune any, and report.

    Returns:
        The network and its figures. ``residual`` is ``sum_j |<V, p_j> - weight_decay m_j| / J`` (with the gradient of
        an output bias added): how much of the objective rescaling neurons could gain to first order. At a stationary
        point it is zero, and pruning leaves the objective as it is; else the objective can fall.

    Raises:
        UnsupportedNetworkError: the module is not of that form, or does not take X.
        InvalidInputError: as for :func:`convexnn.train`; or the residual is above ``max_residual``.

    """
    started = time.perf_counter()
    tol = positive(tol, "tol", zero=True)
    task, given = read_network(network, X, y, loss, weight_decay, sample_weight)
    with torch.no_grad():
        residual = radial_residual(task.full, given)
        if max_residual is not None and residual > positive(max_residual, "max_residual", zero=True):
            raise InvalidInputError(
                f"the network is not stationary for this objective: its residual is {residual:.1e}, above "
                f"max_residual={max_residual:g}. Train it longer, check loss and weight_decay, or pass "
                "max_residual=None to prune it all the same."
            )
        merged, pruned, rank = pruned_neurons(task.full, given, tol)
        module = to_torch(pruned, hidden_bias=task.hidden_bias, output_bias=task.full.output_bias)
        return PrunedNetwork(
            network=module,
            n_given=len(given),
            n_merged=len(given) - len(merged),
            rank=rank,
            n_neurons=len(pruned),
            objective_before=task.full.objective(given),
            objective=task.objective(module, read_matrix(X)),
            fit_change=fit_change(task.full, given, pruned),
            residual=residual,
            seconds=time.perf_counter() - started,
        )


def read_network(
    network: nn.Module, X: Any, y: Any, loss: str, weight_decay: float, sample_weight: Any
) -> tuple[Task, Neurons]:
    """The training problem of a network with its own biases, and its neurons with an effect, balanced."""
    first, last = layers_of(network)
    biases = (first.bias is not None, last.bias is not None)
    task = read_task(read_matrix(X), y, loss, weight_decay, biases, sample_weight, _CPU)
    neurons = from_torch(network).to(_CPU)
    check_fits(neurons, task.full)
    return task, neurons.balanced()


def radial_residual(problem: Problem, neurons: Neurons) -> float:
    """(sum_j |<V, p_j> - weight_decay m_j| + |b - mean F| |1'V|) / J of a balanced network."""
    F = neurons(problem.X)
    V = problem.loss.negative_gradient(F)
    pull = ((torch.relu(neurons.W @ problem.X.T) @ V) * neurons.A).sum(1)
    total = float((pull - problem.weight_decay * neurons.masses()).abs().sum())
    if problem.output_bias:
        total += float((V.sum(0) * (F - F.mean(0)).abs().amax(0)).abs().sum())
    objective = problem.objective(neurons)
    return total / objective if objective > 0 else 0.0


def fit_change(problem: Problem, before: Neurons, after: Neurons) -> float:
    """Largest change of an output, relative to the largest distance from the mean output."""
    F = before(problem.X)
    return float((after(problem.X) - F).abs().max()) / output_scale(F)


def output_scale(F: Float[Tensor, "n K"]) -> float:
    """Largest distance of an output from its mean, or the largest output where there is none."""
    spread = float((F - F.mean(0)).abs().max())
    return spread if spread > 1e-12 * float(F.abs().max()) else max(float(F.abs().max()), 1e-300)


def pruned_neurons(problem: Problem, neurons: Neurons, tol: float) -> tuple[Neurons, Neurons, int]:
    """Balanced neurons after merging, after elimination, and the rank between the two."""
    F = neurons(problem.X)
    allowed = tol * output_scale(F)
    live = torch.relu(neurons.W @ problem.X.T).amax(1) > 0
    used = replace(neurons, W=neurons.W[live], A=neurons.A[live])
    merged = added_up(problem, used, 0.5 * allowed)
    for k in range(_TRIES + 1):
        rank_tol = max(tol * 10.0 ** (-2 * k), _ROUNDING) if k < _TRIES else _ROUNDING
        pruned, rank = _eliminated(problem, merged, F, rank_tol)
        if rank_tol == _ROUNDING or float((pruned(problem.X) - F).abs().max()) <= allowed:
            break
    return merged, pruned, rank


def _eliminated(problem: Problem, neurons: Neurons, F: Float[Tensor, "n K"], tolerance: float) -> tuple[Neurons, int]:
    """The neurons that elimination leaves, rescaled; an output bias takes up what is constant."""
    if len(neurons) == 0:
        return neurons, 0
    target = F - neurons.bias
    P = torch.relu(problem.X @ neurons.W.T)[:, None, :] * neurons.A.T
    if problem.output_bias:
        P, target = P - P.mean(0), target - target.mean(0)
    N = target.numel()
    found = fewest(P.reshape(N, -1).numpy(), neurons.masses().numpy(), tolerance, target.reshape(N).numpy())
    x = torch.from_numpy(found.weights)
    root = x[x > 0].sqrt()[:, None]
    pruned = replace(neurons, W=neurons.W[x > 0] * root, A=neurons.A[x > 0] * root)
    if problem.output_bias:
        pruned = replace(pruned, bias=pruned.bias + (F - pruned(problem.X)).mean(0))
    return pruned, found.rank


def added_up(problem: Problem, neurons: Neurons, allowed: float) -> Neurons:
    """Neurons added up where no output changes by more than ``allowed`` in all; the largest ones collect.

    Neurons of one sign with the same activation pattern add up exactly, and the norm of a sum is no larger than the sum
    of norms. With several outputs the output weights have to be parallel as well. On a kink patterns may
    differ: the change is measured, and adds up over all merges.
    """
    order = torch.argsort(neurons.masses(), descending=True)
    W, A = neurons.W[order], neurons.A[order]
    T, spent, gone = W @ problem.X.T, problem.X.new_zeros(len(problem.X)), torch.zeros(len(W), dtype=torch.bool)
    kept: list[int] = []
    for j in range(len(W)):
        into = _partner(problem, (W, A, T), (j, kept), allowed - spent)
        if into is None:
            kept.append(j)
            continue
        collector, change = into
        gone[j], spent = True, spent + change
        W[collector], A[collector] = _sum(W[[collector, j]], A[[collector, j]])
        T[collector] = problem.X @ W[collector]
    return replace(neurons, W=W[~gone], A=A[~gone])


def _sum(W: Float[Tensor, "2 d"], A: Float[Tensor, "2 K"]) -> tuple[Tensor, Tensor]:
    """w a' = (|a_1| w_1 + |a_2| w_2) c' in balanced form, c the unit vector along the sum of output weights."""
    total, direction = A.sum(0), (A.norm(dim=1)[:, None] * W).sum(0)
    root = direction.norm().sqrt()
    return direction / root, total / total.norm() * root


def _partner(
    problem: Problem, parts: tuple[Tensor, Tensor, Tensor], which: tuple[int, list[int]], left: Float[Tensor, " n"]
) -> tuple[int, Float[Tensor, " n"]] | None:
    """The neuron that takes up number j with the least change of the outputs, if that is within what is left."""
    (W, A, T), (j, kept) = parts, which
    if not kept:
        return None
    index = torch.tensor(kept)
    index = index[unit_rows(A[index]) @ unit_rows(A[j : j + 1])[0] > _ALIKE]
    # With patterns that differ at one sample by more than is left, no sum can do: with weights t_1 > 0 > t_2 the
    # output changes by min(t_1, -t_2) |a|.
    size, own = A[index].norm(dim=1)[:, None], float(A[j].norm())
    cross = torch.where(T[index] * T[j] < 0, torch.minimum(T[index].abs() * size, T[j].abs() * own), 0.0)
    index = index[(cross <= left).all(1)]
    best = None
    for c in index.tolist():
        w, a = _sum(W[[c, j]], A[[c, j]])
        before = torch.relu(T[c])[:, None] * A[c] + torch.relu(T[j])[:, None] * A[j]
        change = (torch.relu(problem.X @ w)[:, None] * a - before).abs().amax(1)
        if bool((change <= left).all()) and (best is None or float(change.max()) < float(best[1].max())):
            best = c, change
    return best
