"""Training parallel three-layer ReLU networks: what users call."""

import math
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from convexnn.data import flag, positive, read_loss, read_matrix
from convexnn.deep.branches import centred, rooms
from convexnn.deep.parallel import ParallelProgram
from convexnn.deep.reference import solve_parallel_reference
from convexnn.deep.refining import problem_objective, refine
from convexnn.deep.sampling import sample_branches
from convexnn.deep.three_layers import ParallelWeights, from_module
from convexnn.deep.working_set import ParallelAnswer, shrunk, solve_parallel
from convexnn.errors import InvalidInputError
from convexnn.patterns import sample_patterns
from convexnn.problem import Problem, reduce_to_rank
from convexnn.progress import progress_bar
from convexnn.result import Status, TraceEntry, relative_gap
from convexnn.solvers.answer import ProgramLimits
from convexnn.task import seed_of
from convexnn.threads import threads_for

METHODS = ("interior-point", "reference")
_MOST_BLOCKS = 50_000
_ROOM = 1e-4  # slack of the middle of a cone, relative to the samples, for a branch to be taken


@dataclass(frozen=True)
class ParallelResult:
    """A parallel three-layer network and what is known about its optimality.

    ``bound_kind`` "sampled-program": the bound holds for networks with the sampled branches. "local-search": for
    parallel networks with branches of this width, each feeding one output, as far as a search for better branches could
    see; evidence, not proof.
    """

    network: nn.Sequential  # Linear, ReLU, Linear (block diagonal), ReLU, Linear
    objective: float  # recomputed from the network's weights
    bound: float
    bound_kind: str
    gap: float  # relative
    status: Status
    n_branches: int  # of the network
    width: int  # hidden neurons of each branch
    n_sampled: int  # branches of the program, each with both signs for every output
    program_gap: float  # of the last convex program, at its own feasible point
    seconds: float
    loss: str
    weight_decay: float
    trace: tuple[TraceEntry, ...] = field(repr=False, default=())

    def __str__(self) -> str:
        return (
            f"status    {self.status.name}: {self.status.value}\n"
            f"objective {self.objective:.8g}\n"
            f"bound     {self.bound:.8g} ({self.bound_kind})\n"
            f"gap       {self.gap:.2e} (relative)\n"
            f"branches  {self.n_branches} of {self.width} hidden neurons, from {self.n_sampled} in the program\n"
            f"seconds   {self.seconds:.2f}"
        )


def train_parallel(
    X: Any,
    y: Any,
    *,
    weight_decay: float,
    width: int = 2,
    n_first: int = 50,
    n_second: int = 50,
    loss: str = "squared",
    method: str = "interior-point",
    refine: bool = False,
    hidden_bias: bool = True,
    output_bias: bool = True,
    sample_weight: Any = None,
    tol: float = 1e-3,
    max_seconds: float | None = None,
    random_state: int | np.integer | np.random.Generator | np.random.RandomState | None = None,
    progress: bool = False,
) -> ParallelResult:
    """Train a parallel three-layer ReLU network by convex optimisation over sampled activation patterns.

    f(x) = sum_k a_k (sum_j b_jk (w_jk'x + c_jk)_+)_+ + d with ||(w_jk, c_jk)|| <= 1, and the objective
    L(f) + (weight_decay / 2) sum_k (||b_k||^2 + ||a_k||^2). With the patterns of both layers fixed this is convex; see
    :mod:`convexnn.deep.parallel`.

    Parameters
    ----------
    X, y, loss, sample_weight:
        Data as for :func:`convexnn.train`: losses ``"squared"``, ``"logistic"``, ``"hinge"``, ``"softmax"``. With
        several outputs each branch of the program feeds one of them.
    weight_decay:
        Above zero.
    width:
        Hidden neurons of each branch.
    n_first, n_second:
        Random patterns of the first layer, from which as many tuples of ``width`` are made, and random patterns of the
        second layer for each tuple: n_first * n_second branches at most, with both signs. For each first-layer pattern
        one more branch repeats it, a neuron of a two-layer network.
    method:
        ``"interior-point"`` on a working set, or ``"reference"``: cvxpy with Clarabel, for small programs.
    refine:
        Search for branches that violate the dual over all patterns, add them and solve again, until nothing improves.
    hidden_bias, output_bias:
        Whether hidden neurons have a bias (inside their norm), and the output (free).
    tol, max_seconds:
        Relative gap at which to stop, and a time limit. The best network so far is returned, on Ctrl-C too.
    random_state:
        Seed of the sampling and of the searches.
    progress:
        Show a progress bar.

    Raises
    ------
    InvalidInputError, InvalidTypeError
        NaN or infinity, shapes that do not fit, weight_decay <= 0, counts below one, unknown loss or method, more than
        50000 blocks.

    Notes
    -----
    Ergen & Pilanci (ICML 2021); Wang, Ergen & Pilanci (ICLR 2023).
    """
    started = time.perf_counter()
    if method not in METHODS:
        raise InvalidInputError(f"method={method!r} is not known; choose one of {', '.join(map(repr, METHODS))}.")
    if flag(refine, "refine") and method != "interior-point":
        raise InvalidInputError(f'refine=True works with method="interior-point"; got method={method!r}.')
    data = read_matrix(X)
    biases = flag(hidden_bias, "hidden_bias"), flag(output_bias, "output_bias")
    full = _problem(data, read_loss(loss, y, len(data), sample_weight), weight_decay, biases)
    counts = [_count(value, name) for value, name in ((width, "width"), (n_first, "n_first"), (n_second, "n_second"))]
    seconds = math.inf if max_seconds is None else positive(max_seconds, "max_seconds")
    limits, generator = (
        ProgramLimits(positive(tol, "tol"), seconds),
        torch.Generator().manual_seed(seed_of(random_state)),
    )
    with torch.no_grad(), threads_for(full), progress_bar(progress, limits.tol) as report:
        reduced, reduction = reduce_to_rank(full)
        program = _sampled(reduced, counts, generator)
        if refine:
            outcome = _refined(program, limits, generator, report)
        elif method == "reference":
            outcome = _solved(program, solve_parallel_reference(program, limits), limits)
        else:
            outcome = _solved(program, solve_parallel(program, limits, report=report), limits)
        basis = reduction.basis
        return _result(full, data, outcome, basis, (counts[0], loss, biases), started)


@dataclass(frozen=True)
class _Outcome:
    """A network in the reduced columns, a bound, and the program behind them."""

    weights: ParallelWeights
    bound: float
    bound_kind: str
    status: Status
    n_sampled: int
    program_gap: float
    trace: tuple[TraceEntry, ...]


def _problem(data: Tensor, loss: Any, weight_decay: float, biases: tuple[bool, bool]) -> Problem:
    X = torch.cat([data, torch.ones_like(data[:, :1])], 1) if biases[0] else data
    return Problem(X, loss, positive(weight_decay, "weight_decay"), biases[1])


def _count(value: Any, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise InvalidInputError(f"{name}={value!r}; an integer of at least 1 is expected.")
    return int(value)


def _sampled(problem: Problem, counts: list[int], generator: torch.Generator) -> ParallelProgram:
    width, n_first, n_second = counts
    blocks = 2 * problem.loss.n_outputs * n_first * (n_second + 1)
    if blocks > _MOST_BLOCKS:
        raise InvalidInputError(
            f"{n_first} first-layer and {n_second} second-layer patterns make {blocks} blocks; at most {_MOST_BLOCKS} "
            "are taken. Ask for fewer patterns, and for refine=True to add those that matter."
        )
    patterns = sample_patterns(problem.X, n_first, generator)
    branches = centred(problem.X, sample_branches(problem.X, patterns, width, n_second, generator))
    room = rooms(problem.X, branches)
    # A dual point needs huge multipliers for cones that are next to flat; neighbours stand in for them.
    return ParallelProgram(problem, branches.take(room > min(_ROOM, float(room.max()) / 2)))


def _solved(program: ParallelProgram, found: ParallelAnswer, limits: ProgramLimits) -> _Outcome:
    floor = program.problem.floor()
    point = shrunk(found.judgement.point, program, limits.tol)
    status = Status.SOLVED if found.status is Status.CONVERGED else found.status
    weights, gap = ParallelWeights.of(program, point), found.judgement.gap(floor)
    bound = found.judgement.dual.bound
    return _Outcome(weights, bound, "sampled-program", status, len(program.branches), gap, found.trace)


def _refined(program: ParallelProgram, limits: ProgramLimits, generator: torch.Generator, report: Any) -> _Outcome:
    found = refine(program, limits, generator, report)
    gap = math.inf if found.last is None else found.last.judgement.gap(program.problem.floor())
    return _Outcome(found.weights, found.bound, "local-search", found.status, len(program.branches), gap, found.trace)


def _result(
    full: Problem,
    data: Tensor,
    outcome: _Outcome,
    basis: Tensor | None,
    about: tuple[int, str, tuple[bool, bool]],
    started: float,
) -> ParallelResult:
    width, loss, (hidden_bias, output_bias) = about
    weights = outcome.weights
    if basis is not None:
        weights = ParallelWeights(weights.Z @ basis.T, weights.sigma, weights.A, weights.bias)
    network = weights.balanced().module(hidden_bias=hidden_bias, output_bias=output_bias)
    objective = module_objective(network, full, data)
    return ParallelResult(
        network=network,
        objective=objective,
        bound=outcome.bound,
        bound_kind=outcome.bound_kind,
        gap=relative_gap(objective, outcome.bound, full.floor()),
        status=outcome.status,
        n_branches=int((outcome.weights.balanced().Z.flatten(1).norm(dim=1) > 0).sum()),
        width=width,
        n_sampled=outcome.n_sampled,
        program_gap=outcome.program_gap,
        seconds=time.perf_counter() - started,
        loss=loss,
        weight_decay=full.weight_decay,
        trace=outcome.trace,
    )


def module_objective(network: nn.Sequential, problem: Problem, data: Tensor) -> float:
    """L + weight_decay / 2 sum_k (||b_k||^2 + ||a_k||^2) of a module as it stands, its own outputs on the data."""
    with torch.no_grad():
        F = network(data)
    return float(problem.loss.value(F)) + problem.weight_decay * from_module(network).penalty()


def parallel_objective(
    network: nn.Sequential,
    X: Any,
    y: Any,
    *,
    weight_decay: float,
    loss: str = "squared",
    sample_weight: Any = None,
    balanced: bool = True,
) -> float:
    """The objective of :func:`train_parallel` for any parallel three-layer module, whoever trained it.

    Hidden neurons of other norms than one are rescaled into the second layer first, and with ``balanced`` the two upper
    layers of each branch are brought to one norm; neither changes the outputs, and the latter lowers the penalty.

    Raises
    ------
    UnsupportedNetworkError
        The module is no Sequential of Linear, ReLU, Linear without bias, ReLU, Linear with one branch for each hidden
        neuron.
    """
    data, weights = read_matrix(X), from_module(network)
    biases = network[0].bias is not None, network[4].bias is not None
    problem = _problem(data, read_loss(loss, y, len(data), sample_weight), weight_decay, biases)
    return problem_objective(problem, weights) if balanced else module_objective(network, problem, data)
