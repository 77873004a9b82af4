"""Regularisation paths: optimal networks from the null level of weight decay down, each one started at the last.

Along a path the loss falls and the penalty sum_j ||w_j|| ||a_j|| grows as weight decay falls; the optimal value is
concave and rising in it; and for a loss with curvature at least mu, mu ||F_1 - F_2||^2 <= (wd_1 - wd_2) (R_2 - R_1):
outputs on the data are continuous, whether or not the networks are (compare Mishkin & Pilanci, ICML 2023).
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from convexnn.data import positive, read_loss, read_matrix
from convexnn.errors import InvalidInputError, MissingDependencyError
from convexnn.losses import AbstractLoss, AbstractMarginLoss
from convexnn.network import to_torch
from convexnn.neurons import Neurons
from convexnn.patterns import count_or_usual, sample_patterns
from convexnn.problem import Problem
from convexnn.programs import GatedProgram, ReLUProgram
from convexnn.result import Status, TrainingResult, relative_gap
from convexnn.solutions.elimination import rank
from convexnn.solutions.null_level import null_level, program_null_level
from convexnn.solutions.optimal_sets import contributions
from convexnn.solutions.pruning import pruned_neurons
from convexnn.solvers.answer import ProgramLimits
from convexnn.solvers.loop import Limits, Pool, solve
from convexnn.solvers.sliding import FOLLOWING, SlidingFrankWolfe, confirmation_effort
from convexnn.solvers.working_set import solve_working_set
from convexnn.task import Task, limits_of, read_task, seed_of
from convexnn.threads import threads_for

METHODS = ("global", "interior-point", "gated")
_SPAN = 1e-2
_NOT_ZERO = 1e-5  # norms of blocks, relative to the largest
_SAME_NEURON = 1 - 1e-6  # cosine of blocks that hold one neuron
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class PathPoint:
    """One weight decay: the network found there, and what is known of it."""

    weight_decay: float
    network: nn.Sequential = field(repr=False)
    objective: float  # J of the network at this weight decay
    bound: float
    bound_kind: str  # "local-search" or "sampled-program"
    gap: float  # relative; of ``program_objective`` where there is one
    program_objective: float  # of the convex program over patterns, at a feasible point; nan for "global"
    status: Status
    loss: float  # mean loss on the data
    penalty: float  # sum of ||w_j|| ||a_j||; of programs, the sum of the norms of their blocks
    n_neurons: int
    dimension: int  # in which weights of its own neurons (blocks) can move, see :func:`path`: 0 where they are unique
    fit_change: float  # root mean square change of the outputs from the point before; nan at the first
    fit_limit: float  # no more than this at exact optima, where the loss is squared; nan for others
    test_loss: float  # nan without test data
    test_accuracy: float  # of classes; nan otherwise
    seconds: float


@dataclass(frozen=True)
class RegularisationPath:
    """Points by falling weight decay."""

    points: tuple[PathPoint, ...]
    null_level: float  # from here on no neuron pays ("global": as far as local search sees); nan of given weight decays
    method: str

    @property
    def weight_decays(self) -> Float[np.ndarray, " p"]:
        """Of the points."""
        return np.array([point.weight_decay for point in self.points])

    def best(self) -> PathPoint:
        """The point with the least test loss."""
        if not self.points or np.isnan(self.points[0].test_loss):
            raise InvalidInputError("the path has no test losses; pass test=(X, y).")
        return min(self.points, key=lambda point: point.test_loss)

    def __str__(self) -> str:
        lines = ["weight decay    objective      gap  neurons dimension         loss    penalty   test loss   seconds"]
        lines += [
            f"{p.weight_decay:12.4g} {p.objective:12.8f} {p.gap:8.1e} {p.n_neurons:8d} {p.dimension:9d} "
            f"{p.loss:12.8f} {p.penalty:10.4f} {p.test_loss:11.6f} {p.seconds:9.2f}"
            for p in self.points
        ]
        return "\n".join(lines)

    def result(self, index: int, loss: str) -> TrainingResult:
        """One point as a result of training; rounds are the points down to it."""
        point = self.points[index]
        return TrainingResult(
            network=point.network,
            objective=point.objective,
            bound=point.bound,
            bound_kind=point.bound_kind,
            gap=point.gap,
            status=point.status,
            n_neurons=point.n_neurons,
            seconds=sum(p.seconds for p in self.points),
            n_rounds=index + 1,
            method=self.method,
            loss=loss,
            weight_decay=point.weight_decay,
        )

    def plot(self, axes: Any = None) -> Any:
        """Losses, penalty and neurons over weight decay, on two matplotlib axes (new ones unless given)."""
        try:
            import matplotlib.pyplot as plt
        except ImportError as error:
            raise MissingDependencyError("plots need matplotlib: pip install 'convexnn[plots]'.") from error
        left, right = plt.subplots(1, 2, figsize=(10, 4))[1] if axes is None else axes
        decays = self.weight_decays
        left.loglog(decays, [point.loss for point in self.points], "o-", label="training loss")
        if not np.isnan(self.points[0].test_loss):
            left.loglog(decays, [point.test_loss for point in self.points], "s-", label="test loss")
        left.set_ylabel("mean loss")
        right.semilogx(decays, [point.n_neurons for point in self.points], "o-", label="neurons")
        right.semilogx(decays, [point.penalty for point in self.points], "s-", label="sum of norms")
        for panel in (left, right):
            if not np.isnan(self.null_level):
                panel.axvline(self.null_level, color="black", linewidth=1, linestyle=":", label="null level")
            panel.set_xlabel("weight decay")
            panel.legend()
        return left, right


@dataclass(frozen=True)
class _Found:
    """What a method knows at one weight decay."""

    neurons: Neurons
    bound: float
    status: Status
    objective: float = float("nan")  # of a program
    penalty: float = float("nan")
    dimension: int = 0


def path(
    X: Any,
    y: Any,
    *,
    weight_decays: Sequence[float] | None = None,
    n_points: int = 30,
    loss: str = "squared",
    method: str = "global",
    n_patterns: int | None = None,
    hidden_bias: bool = True,
    output_bias: bool = True,
    tol: float = 1e-4,
    max_seconds: float | None = None,
    sample_weight: Any = None,
    test: tuple[Any, Any] | None = None,
    test_weight: Any = None,
    random_state: Any = None,
) -> RegularisationPath:
    """Networks for many weight decays, from large to small, with a gap at each.

    ``dimension`` of a point is what the directions that it uses leave open: the neurons of the network, or the non-zero
    blocks of the program. It is their number less the rank of what they contribute on the data (an output bias taken
    off). At 0 the optimum over these directions, with any weights >= 0, is a single point. Of directions that are
    not in use it says nothing: that needs the optimum to rounding, see :func:`convexnn.optimal_set` with ``network=``.

    Args:
        X: features ``(n, d)``.
        y: targets, as for :func:`convexnn.train`.
        weight_decays: above zero; default: ``n_points`` on a geometric grid from the null level to a hundredth of it.
        n_points: of the default grid.
        loss: ``"squared"``, ``"logistic"``, ``"hinge"`` or ``"softmax"``.
        method: ``"global"``: over all networks. ``"interior-point"``: the ReLU program over ``n_patterns`` random
            patterns, the same along the path. ``"gated"``: the gated program over these, each solution split into
            a ReLU network, whose objective is larger than the program's; bound and gap are of the program.
        n_patterns: of the last two; None: 100, or as many as there can be where that is less.
        hidden_bias: whether the first layer has a bias, penalised as a weight is.
        output_bias: whether the output has one, which is free.
        sample_weight: positive weights ``(n,)``.
        random_state: seed or generator of patterns and of searches.
        tol: relative gap of every point.
        max_seconds: limit of each point.
        test: features and targets to evaluate every point on.
        test_weight: positive weights of these samples.

    Raises:
        InvalidInputError: as for :func:`convexnn.train`; an unknown method, no weight decays.

    """
    if method not in METHODS:
        raise InvalidInputError(f"method={method!r} is not known; choose one of {', '.join(map(repr, METHODS))}.")
    if isinstance(n_points, bool) or not isinstance(n_points, (int, np.integer)) or n_points < 1:
        raise InvalidInputError(f"n_points={n_points!r}; an integer of at least 1 is expected.")
    task = read_task(read_matrix(X), y, loss, 1.0, (hidden_bias, output_bias), sample_weight, _CPU)
    held = None if test is None else read_held(test, loss, task, test_weight)
    limits, seed = limits_of(tol, max_seconds, 200), seed_of(random_state)
    with torch.no_grad(), threads_for(task.reduced):
        follow, null = _follower(task.reduced, method, n_patterns, limits, seed)
        level = null() if weight_decays is None else float("nan")
        points = tuple(_points(task, follow, _grid(weight_decays, level, n_points), method, held))
    return RegularisationPath(points, level, method)


Follow = Callable[[float], _Found]


def _grid(given: Sequence[float] | None, level: float, n_points: int) -> list[float]:
    if given is None:
        return np.geomspace(level, _SPAN * level, n_points).tolist() if level > 0 else [1.0]
    if isinstance(given, str) or not np.iterable(given):
        raise InvalidInputError(f"weight_decays={given!r}; a sequence of numbers > 0 is expected, such as [{given}].")
    decays = sorted({positive(value, "weight_decays") for value in given}, reverse=True)
    if not decays:
        raise InvalidInputError("weight_decays is empty; leave it out for a grid below the null level.")
    return decays


def _follower(
    problem: Problem, method: str, n_patterns: int | None, limits: Limits, seed: int
) -> tuple[Follow, Callable[[], float]]:
    """A function that solves at one weight decay after the other, and one that finds the null level."""
    if method == "global":
        return _Global(problem, limits, seed), lambda: null_level(problem, seed)
    count = count_or_usual(problem.X, n_patterns)
    patterns = sample_patterns(problem.X, count, torch.Generator().manual_seed(seed))
    program = (GatedProgram if method == "gated" else ReLUProgram)(problem, patterns)
    return _Program(program, limits), lambda: program_null_level(program)


@dataclass
class _Global:
    """Sliding Frank-Wolfe from the network of the weight decay before."""

    problem: Problem
    limits: Limits
    seed: int
    last: Neurons | None = None
    pool: Pool | None = None

    def __call__(self, weight_decay: float) -> _Found:
        problem = replace(self.problem, weight_decay=weight_decay)
        settings: dict[str, Any] = {"limits": self.limits, "seed": self.seed}
        usual = confirmation_effort(problem)
        follows = self.pool is not None and FOLLOWING.n_starts < usual.n_starts
        solver = SlidingFrankWolfe(confirmation=FOLLOWING if follows else usual)
        answer = solve(problem, solver, start=self.last, pool=self.pool, **settings)
        self.last, self.pool = answer.neurons, answer.pool
        free = _freedom(problem, contributions(answer.neurons, problem.X))
        return _Found(answer.neurons, answer.bound, answer.status, dimension=free)


@dataclass
class _Program:
    """The interior point on working sets, from the blocks of the weight decay before."""

    program: ReLUProgram | GatedProgram
    limits: Limits
    last: Any = None

    def __call__(self, weight_decay: float) -> _Found:
        program = replace(self.program, problem=replace(self.program.problem, weight_decay=weight_decay))
        limits = ProgramLimits(self.limits.tol, self.limits.max_seconds)
        answer = solve_working_set(program, limits, start=self.last)
        self.last = answer.judgement.point
        neurons = program.network(answer.judgement.point)
        parts = _block_outputs(program, self.last.U)
        if program.cone is not None:  # a neuron on the boundary of cones can be in several blocks
            distinct = neurons.pruned(_NOT_ZERO).merged(_SAME_NEURON)
            parts = contributions(distinct, program.problem.X)
            neurons = pruned_neurons(program.problem, neurons.pruned(1e-6), 1e-8)[1]
        norms = float(program.penalty.value(self.last.U))
        free = _freedom(program.problem, parts)
        return _Found(neurons, answer.judgement.dual.bound, answer.status, answer.judgement.objective, norms, free)


def _block_outputs(program: ReLUProgram | GatedProgram, U: Float[Tensor, "S K P d"]) -> Float[Tensor, "n K m"]:
    """D_p X u e_k' of every block that is not zero."""
    norms = U.norm(dim=-1)
    S, K, P = torch.nonzero(norms > _NOT_ZERO * norms.max(), as_tuple=True)
    out = U.new_zeros((len(program.problem.X), U.shape[1], len(S)))
    out[:, K, torch.arange(len(S))] = (program.gated.mask[P] * (U[S, K, P] @ program.problem.X.T)).T
    return out


def _freedom(problem: Problem, P: Float[Tensor, "n K m"]) -> int:
    """Dimension of the weights x >= 0 with the outputs of x = 1 (all of which have its penalty at an optimum)."""
    P = P - P.mean(0) if problem.output_bias else P
    return P.shape[2] - rank(P.flatten(0, 1).numpy())


def _points(
    task: Task, follow: Follow, decays: list[float], method: str, held: tuple[Tensor, AbstractLoss] | None
) -> Iterator[PathPoint]:
    before: PathPoint | None = None
    outputs = None
    for decay in decays:
        started = time.perf_counter()
        found = follow(decay)
        seconds = time.perf_counter() - started
        F = found.neurons(task.reduced.X)
        point = _point(task, found, decay, held)
        change, limit = _moved(task.reduced, outputs, F, before, point)
        kind = "local-search" if method == "global" else "sampled-program"
        point = replace(point, fit_change=change, fit_limit=limit, bound_kind=kind, seconds=seconds)
        yield point
        before, outputs = point, F


def _point(task: Task, found: _Found, decay: float, held: tuple[Tensor, AbstractLoss] | None) -> PathPoint:
    lifted = task.reduction.lift(found.neurons)
    full = replace(task.full, weight_decay=decay)
    module = to_torch(lifted, hidden_bias=task.hidden_bias, output_bias=full.output_bias)
    objective = full.objective(lifted)
    status, own = found.status, np.isnan(found.objective)
    if len(lifted) == 0 and status is Status.CONVERGED:
        status = Status.NULL
    nan = float("nan")
    return PathPoint(
        weight_decay=decay,
        network=module,
        objective=objective,
        bound=found.bound,
        bound_kind="",
        gap=relative_gap(objective if own else found.objective, found.bound, full.floor()),
        program_objective=found.objective,
        status=status,
        loss=float(full.loss.value(lifted(full.X))),
        penalty=float(lifted.half_squared_norm()) if own else found.penalty,
        n_neurons=len(lifted),
        dimension=found.dimension,
        fit_change=nan,
        fit_limit=nan,
        test_loss=nan if held is None else held_loss(module, *held),
        test_accuracy=nan if held is None else held_accuracy(module, *held),
        seconds=nan,
    )


def _moved(
    problem: Problem, old: Tensor | None, new: Tensor, before: PathPoint | None, point: PathPoint
) -> tuple[float, float]:
    """Root mean square change of the outputs (of weighted samples), and its limit at optima of the squared loss."""
    if old is None or before is None:
        return float("nan"), float("nan")
    change = float((problem.loss.weights[:, None] * (new - old) ** 2).sum().sqrt())
    if problem.loss.name != "squared":
        return change, float("nan")
    square = (before.weight_decay - point.weight_decay) * (point.penalty - before.penalty)
    return change, max(square, 0.0) ** 0.5


def read_held(test: tuple[Any, Any], loss: str, task: Task, weights: Any = None) -> tuple[Tensor, AbstractLoss]:
    """Samples that were held out, and the loss on them."""
    X = read_matrix(test[0], "the test features")
    read = read_loss(loss, test[1], len(X), weights)
    if read.n_outputs != task.full.loss.n_outputs or X.shape[1] != task.full.n_inputs - task.hidden_bias:
        raise InvalidInputError(
            f"the test data have {X.shape[1]} columns and {read.n_outputs} outputs; those of training have "
            f"{task.full.n_inputs - task.hidden_bias} and {task.full.loss.n_outputs}."
        )
    return X, read


def held_loss(module: nn.Module, X: Tensor, loss: AbstractLoss) -> float:
    """Mean loss."""
    with torch.no_grad():
        return float(loss.value(module(X)))


def held_accuracy(module: nn.Module, X: Tensor, loss: AbstractLoss) -> float:
    """Weighted share of samples on the right side; nan where outputs are no classes."""
    with torch.no_grad():
        F = module(X)
    if isinstance(loss, AbstractMarginLoss):
        right = (torch.where(F > 0, 1.0, -1.0) == loss.targets)[:, 0]
    elif loss.name == "softmax":
        right = F.argmax(1) == loss.targets.argmax(1)
    else:
        return float("nan")
    return float(loss.weights @ right.double())
