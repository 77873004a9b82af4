"""Linear networks of any depth, trained to the global optimum where theory allows it."""

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from convexnn.data import flag, positive, read_loss, read_matrix
from convexnn.deep.modules import LinearFactors, parallel_penalty, standard_penalty
from convexnn.deep.nuclear import Reduced, solve_nuclear
from convexnn.deep.standard import solve_standard
from convexnn.duality import dual_point
from convexnn.errors import InvalidInputError, InvalidTypeError
from convexnn.problem import Problem
from convexnn.result import Status, relative_gap

ARCHITECTURES = ("parallel", "standard")
_NONE = 1e-9  # singular values, relative to the largest, that are rounding of zero


@dataclass(frozen=True)
class LinearNetwork:
    """A trained linear network and what is known about its optimality.

    ``bound`` holds for networks of this architecture and depth of every width (and number of branches). ``bound_kind``
    is "closed-form" where objective and bound are both the optimum, up to rounding; "duality": weak duality at a dual
    point that the result does not depend on. The bound of a standard network of depth three and more that is not in
    closed form is that of its dual: part of the gap then is the duality gap, and the network is one of local search.
    """

    network: nn.Sequential  # depth linear layers without biases but for the last one's
    architecture: str
    depth: int
    objective: float  # recomputed from the network's weights
    bound: float
    bound_kind: str
    gap: float  # relative
    singular_values: tuple[float, ...]  # of the product of the layers; those that are not zero
    status: Status
    seconds: float
    weights: Float[Tensor, "d K"] = field(repr=False)  # the product of the layers, outputs = X weights + bias
    bias: Float[Tensor, " K"] = field(repr=False)

    @property
    def rank(self) -> int:
        """Of the product: the number of branches of the parallel network, the width of the standard one."""
        return len(self.singular_values)

    def __str__(self) -> str:
        return (
            f"status    {self.status.name}: {self.status.value}\n"
            f"network   {self.architecture}, depth {self.depth}, rank {self.rank}\n"
            f"objective {self.objective:.8g}\n"
            f"bound     {self.bound:.8g} ({self.bound_kind})\n"
            f"gap       {self.gap:.2e} (relative)"
        )


@dataclass(frozen=True)
class DepthGap:
    """Optimal values of standard linear networks of one depth and of their dual.

    In closed form ``objective`` is the optimum P and ``dual`` the dual optimum D, and their difference the duality gap.
    Otherwise ``objective`` is the best of a local search, and the difference is an upper bound of it.
    """

    depth: int
    objective: float
    dual: float
    rank: int
    closed_form: bool

    @property
    def gap(self) -> float:
        """Relative."""
        return relative_gap(self.objective, self.dual)


def train_linear(
    X: Any,
    y: Any,
    *,
    weight_decay: float,
    depth: int = 2,
    architecture: str = "parallel",
    output_bias: bool = True,
    sample_weight: Any = None,
    tol: float = 1e-8,
    max_seconds: float | None = None,
) -> LinearNetwork:
    """Train a linear network of ``depth`` layers with squared loss, f(x) = x W_1 ... W_depth + b.

    ``"standard"``: minimises L(f) + (weight_decay / 2) sum_l ||W_l||_F^2. ``"parallel"``: f is a sum of such products,
    one for each branch k, with the penalty (weight_decay / depth) sum_k sum_l ||W_lk||_F^depth. The parallel optimum is
    that of the product's nuclear norm, convex, for every depth; the standard one is that of (depth / 2) times the sum
    of the powers 2 / depth of its singular values, not convex from depth three on.

    Exact closed forms hold where all singular values of the data that are not zero are equal (orthogonal columns of one
    length, whitened data, fewer samples than columns with orthogonal samples of one length; with an output bias, after
    taking off the mean): one soft threshold, and one scalar problem for each singular value. On other data parallel
    networks, and standard ones of depth two, are solved to a duality gap of ``tol``; deeper standard ones by local
    search.

    Parameters
    ----------
    X, y:
        Features (n, d) and real targets (n,) or (n, K).
    weight_decay:
        Above zero.
    depth:
        Number of linear layers, at least two.
    architecture:
        ``"parallel"`` or ``"standard"``.
    output_bias:
        Whether the last layer has a bias, which is not penalised.
    sample_weight:
        Positive weights (n,); the mean loss becomes a weighted mean.
    tol, max_seconds:
        Relative duality gap at which to stop, and a limit for the parallel network; Ctrl-C keeps the best one.

    Returns
    -------
    LinearNetwork
        ``network`` is a torch.nn.Sequential of ``depth`` linear layers with balanced factors; that of parallel branches
        has one unit of each layer for each branch, its inner layers are diagonal.

    Raises
    ------
    InvalidInputError, InvalidTypeError
        NaN or infinity, shapes that do not fit, weight_decay <= 0, depth < 2, unknown architecture.

    Notes
    -----
    Source: Wang, Ergen & Pilanci, Parallel Deep Neural Networks Have Zero Duality Gap (ICLR 2023).
    """
    started = time.perf_counter()
    if architecture not in ARCHITECTURES:
        raise InvalidInputError(f'architecture={architecture!r} is not known; choose "parallel" or "standard".')
    depth = read_depth(depth)
    problem = _read(X, y, weight_decay, output_bias, sample_weight)
    tol = positive(tol, "tol")
    limit = float("inf") if max_seconds is None else positive(max_seconds, "max_seconds")
    with torch.no_grad():
        of = Reduced.of(problem)
        if architecture == "parallel":
            answer = solve_nuclear(of, weight_decay, tol=tol, floor=problem.floor(), max_seconds=limit)
            W, status, bound = answer.W, answer.status, _judged(problem, of, answer.V)
        else:
            point = solve_standard(of, weight_decay, depth, tol)
            W, status, bound = point.W, Status.SOLVED, point.dual
        factors = LinearFactors.of(*of.lifted(W), tolerance=_NONE)
        return _result(problem, factors, (architecture, depth), (bound, of.white), status, started)


def _judged(problem: Problem, of: Reduced, V: Float[Tensor, "r K"]) -> float:
    """The bound on the data themselves: V = -grad L at the weights behind the reduced dual point."""
    W = (of.B - V) / of.s[:, None].clamp(min=torch.finfo(V.dtype).tiny)
    full, bias = of.lifted(W)
    U = problem.dual_point(problem.X @ full + bias)
    return dual_point(problem, U, float(torch.linalg.matrix_norm(problem.X.T @ U, 2))).bound


def _result(
    problem: Problem,
    factors: LinearFactors,
    kind: tuple[str, int],
    known: tuple[float, bool],
    status: Status,
    started: float,
) -> LinearNetwork:
    (architecture, depth), (bound, white) = kind, known
    network = factors.module(depth, with_bias=problem.output_bias)
    penalty = parallel_penalty(network) if architecture == "parallel" else standard_penalty(network)
    objective = float(problem.loss.value(network(problem.X))) + problem.weight_decay * penalty
    if architecture == "standard" and white:
        bound = objective  # the closed form is the optimum itself
    return LinearNetwork(
        network=network,
        architecture=architecture,
        depth=depth,
        objective=objective,
        bound=min(bound, objective),
        bound_kind="closed-form" if white else "duality",
        gap=relative_gap(objective, bound, problem.floor()),
        singular_values=tuple(factors.sigma.tolist()),
        status=status,
        seconds=time.perf_counter() - started,
        weights=factors.weights,
        bias=factors.bias,
    )


def depth_gaps(
    X: Any,
    y: Any,
    *,
    weight_decay: float,
    depths: Iterable[int] = (2, 3, 4, 5, 6),
    output_bias: bool = True,
    sample_weight: Any = None,
    tol: float = 1e-6,
) -> tuple[DepthGap, ...]:
    """The duality gap of standard linear networks as a function of depth.

    The dual keeps the norms of the first depth - 2 layers, all at one best size, and dualises the fit. Its gap is zero
    for two layers; for more it is zero where an optimum has rank at most one.

    Parameters are those of :func:`train_linear`; ``tol`` is the relative accuracy of the dual where the data are not
    white.
    """
    problem = _read(X, y, weight_decay, output_bias, sample_weight)
    tol, out = positive(tol, "tol"), []
    with torch.no_grad():
        of = Reduced.of(problem)
        for depth in depths:
            point = solve_standard(of, problem.weight_decay, read_depth(depth), tol)
            sigma = torch.linalg.svdvals(point.W)
            rank = int((sigma > _NONE * sigma.max()).sum())
            out.append(DepthGap(depth, point.objective, point.dual, rank, point.closed_form))
    return tuple(out)


def read_depth(depth: Any) -> int:
    """An integer of at least two."""
    if isinstance(depth, bool) or not isinstance(depth, int):
        raise InvalidTypeError(f"depth={depth!r}; an integer is expected.")
    if depth < 2:
        raise InvalidInputError(f"depth={depth}; at least two layers are expected.")
    return depth


def _read(X: Any, y: Any, weight_decay: float, output_bias: bool, sample_weight: Any) -> Problem:
    data = read_matrix(X)
    loss = read_loss("squared", y, len(data), sample_weight)
    return Problem(data, loss, positive(weight_decay, "weight_decay"), flag(output_bias, "output_bias"))
