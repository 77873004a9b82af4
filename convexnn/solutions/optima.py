"""Finding optimal sets: an optimum to rounding, and every neuron whose correlation is that of an active one.

The polyhedron itself is in :mod:`convexnn.solutions.optimal_sets`.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from scipy.optimize import nnls
from torch import Tensor, nn

from convexnn.ascent import Candidates, ColumnPairs, evaluate, merge
from convexnn.data import positive, read_matrix
from convexnn.duality import dual_bound, judge
from convexnn.errors import InvalidInputError, SolverError
from convexnn.network import from_torch
from convexnn.neurons import Neurons, no_neurons, unit_rows
from convexnn.operators import ConeMap
from convexnn.patterns import count_or_usual, enumerate_patterns, patterns_of, sample_patterns
from convexnn.problem import Problem
from convexnn.programs import ReLUProgram
from convexnn.projection import ColumnProducts, price
from convexnn.solutions.active_set import ActiveSet, polish, stationary
from convexnn.solutions.elimination import fewest
from convexnn.solutions.optimal_sets import OptimalSet, contributions
from convexnn.solutions.pruning import pruned_neurons
from convexnn.solvers.answer import ProgramAnswer, ProgramLimits
from convexnn.solvers.sliding import SlidingFrankWolfe, SlidingState, confirmation_effort
from convexnn.solvers.working_set import solve_working_set
from convexnn.task import Task, check_fits, read_task, seed_of
from convexnn.training import train

METHODS = ("interior-point", "exact", "global")
_SMOOTH = ("squared", "logistic")
_PROGRAM_TOL = 1e-9
_ALIKE = 1 - 1e-10  # cosine from which two directions are one neuron
_TINY = 1e-6  # the same for the masses of an interior point
_SAME_NEURON = 1 - 1e-6  # cosine of blocks that hold one neuron
_AROUND = 3
_FAILURES = 3  # of Newton's method before that ends
_SETTLING = 30  # times that neurons are added to a network that is optimal but for them
_SCREENED = 0.1  # how far below the weight decay projections need not be computed
_CPU = torch.device("cpu")


def optimal_set(
    X: Any,
    y: Any,
    *,
    weight_decay: float,
    loss: str = "squared",
    method: str = "interior-point",
    n_patterns: int | None = None,
    network: nn.Module | None = None,
    hidden_bias: bool = True,
    output_bias: bool = True,
    sample_weight: Any = None,
    tol: float = 1e-6,
    random_state: Any = None,
) -> OptimalSet:
    """The polyhedron of all optimal networks.

    Args:
        X: features ``(n, d)``.
        y: targets, as for :func:`convexnn.train`.
        weight_decay: above zero.
        loss: ``"squared"`` or ``"logistic"``: the set is a polyhedron where the loss is strictly convex.
        method: which networks. ``"interior-point"``: of the ReLU program over ``n_patterns`` random patterns.
            ``"exact"``: over all patterns, listed (small data). ``"global"``: of all two-layer networks, around one
            that :func:`convexnn.train` finds (one output); neurons are then found by local search.
        n_patterns: of ``"interior-point"``; None: 100, or as many as there can be where that is less.
        network: for ``"global"``: an optimal network to take in place of training one.
        hidden_bias: whether the first layer has a bias, penalised as a weight is.
        output_bias: whether the output has one, which is free.
        sample_weight: positive weights ``(n,)``.
        random_state: seed or generator of patterns and of searches.
        tol: neurons belong to the set if their correlation with V is within ``tol`` of the weight decay, relatively.
            ``separation`` of the answer says how far the next one is: a set is clear where that is much larger.

    Raises:
        InvalidInputError: as for :func:`convexnn.train`; a loss that is not strictly convex.
        SolverError: no optimum was found that is accurate enough to say which neurons can be active.

    """
    if loss not in _SMOOTH:
        raise InvalidInputError(
            f"loss={loss!r}: optimal sets are for {' and '.join(map(repr, _SMOOTH))}, whose optima share their outputs."
        )
    if method not in METHODS:
        raise InvalidInputError(f"method={method!r} is not known; choose one of {', '.join(map(repr, METHODS))}.")
    if network is not None and method != "global":
        raise InvalidInputError('network= is for method="global".')
    tol = positive(tol, "tol")
    if tol >= _SCREENED:
        raise InvalidInputError(f"tol={tol:g}; less than {_SCREENED:g} is expected: that is what is computed.")
    data, seed = read_matrix(X), seed_of(random_state)
    task = read_task(data, y, loss, weight_decay, (hidden_bias, output_bias), sample_weight, _CPU)
    generator = torch.Generator().manual_seed(seed)
    count = count_or_usual(task.reduced.X, n_patterns)
    if method != "global":
        with torch.no_grad():
            patterns = (
                enumerate_patterns(task.reduced.X)
                if method == "exact"
                else sample_patterns(task.reduced.X, count, generator)
            )
            program = ReLUProgram(task.reduced, patterns)
            whole = method == "exact" and task.reduced.loss.n_outputs == 1
            return _of_program(task, program, "all-patterns" if whole else "sampled-program", tol)
    if task.reduced.loss.n_outputs > 1:
        raise InvalidInputError('method="global" is for one output here; take "interior-point" or "exact".')
    if network is None:
        settings: dict[str, Any] = {"hidden_bias": hidden_bias, "output_bias": output_bias, "random_state": seed}
        found = train(X, y, loss=loss, weight_decay=weight_decay, sample_weight=sample_weight, tol=1e-6, **settings)
        network = found.network
    with torch.no_grad():
        neurons = from_torch(network).to(_CPU)
        check_fits(neurons, task.full)
        given = task.reduction.restrict(neurons.balanced())
        at, program = _settled(task.reduced, _polished(task.reduced, given, 1e-6), generator, tol)
        return set_of(task, program, at, "local-search", tol)


def _polished(problem: Problem, neurons: Neurons, tol: float) -> ActiveSet:
    _, minimal, _ = pruned_neurons(problem, neurons, tol)
    return stationary(problem, minimal, None)


def _settled(problem: Problem, at: ActiveSet, generator: torch.Generator, tol: float) -> tuple[ActiveSet, ReLUProgram]:
    """A stationary network that no neuron found outside can improve, and the patterns around all that were found.

    A training gap of 1e-6 leaves correlations a thousandth too large: such neurons are added, all weights slide
    to a stationary point, and that one is taken to rounding, until neither the search nor a pattern nearby has one.
    """
    solver, pairs, failures = SlidingFrankWolfe(), ColumnPairs.fit(problem.X), 0
    for left in range(_SETTLING, -1, -1):
        V = problem.admit(at.dual)
        found, program = _searched(problem, at, V, generator, tol)
        if left == 0 or found.best() <= problem.weight_decay * (1 + 0.5 * tol):
            break
        state = SlidingState(at.neurons.balanced(), V, found, _PROGRAM_TOL, first=False, objective=at.objective)
        moved = _polished(problem, solver.improve(problem, state, pairs).neurons, 100.0**failures * 1e-10)
        lower = moved.objective < at.objective
        at, failures = (moved, 0) if lower else (at, failures + 1)
        if failures == _FAILURES:
            break
    return at, program


def _searched(
    problem: Problem, at: ActiveSet, V: Float[Tensor, "n K"], generator: torch.Generator, tol: float
) -> tuple[Candidates, ReLUProgram]:
    """Neurons of large correlation, from a search and from the program over the patterns around what it found."""
    effort, pairs = confirmation_effort(problem), ColumnPairs.fit(problem.X)
    found = judge(problem, V, at.neurons, effort=effort, generator=generator, pairs=pairs).candidates
    near = found.U[found.values >= problem.weight_decay * (1 - 1e3 * tol)]
    program = ReLUProgram(
        problem, patterns_of(problem.X, torch.cat([at.Z, near, found.U[:1]]), generator, around=_AROUND)
    )
    around = _projections(program, V, problem.weight_decay * (1 + 0.5 * tol)).flatten(0, -2)
    around = around[around.norm(dim=1) > problem.weight_decay * (1 + 0.5 * tol)]
    return merge(found, evaluate(problem.X, V, around)), program


def _of_program(task: Task, program: ReLUProgram, kind: str, tol: float) -> OptimalSet:
    """Solve a program, and describe its optimal set.

    Where every pattern is there, no cone is a restriction, and blocks that hold one neuron can be added up before
    Newton's method; where neurons lie on boundaries of many cones, the one way or the other gets through.
    """
    answer = solve_working_set(program, ProgramLimits(_PROGRAM_TOL, 600.0))
    for free in (False, True) if program.patterns.complete else (False,):
        try:
            return set_of(task, program, _accurate(program, answer, free), kind, tol)
        except SolverError as error:
            refused = error
    raise refused


def _accurate(program: ReLUProgram, answer: ProgramAnswer, free: bool) -> ActiveSet:
    """An optimum of a program to rounding: elimination of an interior point's blocks, Newton on the active set."""
    U, bias = answer.judgement.point.U, answer.judgement.point.bias
    problem, bound = program.problem, answer.judgement.dual.bound
    constant = no_neurons(U.shape[-1], problem.constant())
    norms = U.norm(dim=-1)
    index = torch.nonzero(norms > 1e-5 * norms.max())
    if problem.objective(constant) <= bound + _PROGRAM_TOL * abs(bound) or len(index) == 0:
        return polish(problem, constant)
    S, K, P = index.T
    A = U.new_zeros((len(index), U.shape[1]))
    A[torch.arange(len(index)), K] = torch.tensor(program.signs).to(U)[S]
    neurons = Neurons(U[S, K, P], A, bias)
    if free:
        neurons = neurons.balanced().merged(_SAME_NEURON)
        neurons = Neurons(neurons.W * neurons.A.norm(dim=1, keepdim=True), unit_rows(neurons.A), bias)
        A = neurons.A
    P_kept = contributions(neurons, problem.X)
    if problem.output_bias:
        P_kept = P_kept - P_kept.mean(0)
    kept = fewest(P_kept.flatten(0, 1).numpy(), neurons.masses().numpy(), 1e-7)
    x = torch.from_numpy(kept.weights)
    masses = x * neurons.masses()
    used = masses > _TINY * masses.max()
    minimal = Neurons(neurons.W[used] * x[used][:, None], A[used], bias).balanced()
    return stationary(problem, minimal, None if free else program.patterns.D[P][used])


def set_of(task: Task, program: ReLUProgram, at: ActiveSet, kind: str, tol: float) -> OptimalSet:
    """The optimal set of a program from an accurate optimum of it.

    Raises:
        SolverError: the optimum is not accurate: some correlation is above the weight decay by more than ``tol``.
    """
    problem, wd = program.problem, program.problem.weight_decay
    V = problem.admit(at.dual)
    P = _projections(program, V, wd * (1 - _SCREENED))
    norms = P.norm(dim=-1)
    largest = float(norms.max()) / wd
    if largest > 1 + tol or at.residual > tol:
        raise SolverError(
            f"no accurate optimum was found: a correlation is {largest - 1:.1e} above the weight decay (relative), and "
            f"the reference is stationary to {at.residual:.1e}; {tol:g} is needed. Train longer, or raise tol."
        )
    index = torch.nonzero(norms >= wd * (1 - tol))
    neurons, reference = _distinct(problem, P, index, program.signs, at)
    next_one = float(torch.where(norms < wd * (1 - tol), norms, 0.0).max())  # zero where it was not computed
    bound = dual_bound(problem, V, max(float(norms.max()), 1e-300))
    return OptimalSet(
        task=task,
        neurons=neurons,
        reference=reference.numpy(),
        output=at.output,
        kind=kind,
        objective=at.objective,
        bound=bound,
        tolerance=tol,
        separation=1 - next_one / wd if next_one else float("inf"),
        residual=at.residual,
        blocks=len(index),
    )


def _projections(program: ReLUProgram, V: Float[Tensor, "n K"], limit: float) -> Float[Tensor, "S K P d"]:
    """The correlations' projections on their cones, exact up to rounding; zero where shorter than ``limit``."""
    C, cone = program.correlations(V), program.cone
    flat = C.reshape(-1, C.shape[-1])
    copies = len(flat) // len(program.patterns)
    signs, gates = cone.signs.repeat(copies, 1), program.patterns.gates.repeat(copies, 1)
    products = ColumnProducts.of(cone.X)
    upper = price(ConeMap(cone.X, signs), products, flat, gates, limit, accuracy=1e-4).upper
    out = torch.zeros_like(flat)
    rows = (cone.X / cone.X.norm(dim=1, keepdim=True)).numpy()
    for b in torch.nonzero(upper > limit)[:, 0].tolist():
        outward = -signs[b].numpy()[:, None] * rows
        multipliers = nnls(outward.T, flat[b].numpy())[0]  # of the polar cone, which Moreau's decomposition takes off
        out[b] = flat[b] - torch.from_numpy(outward.T @ multipliers)
    return out.reshape(C.shape)


def _distinct(
    problem: Problem, P: Float[Tensor, "S K P d"], index: Int[Tensor, "B 3"], signs: tuple[float, ...], at: ActiveSet
) -> tuple[Neurons, Float[Tensor, " m"]]:
    """The different unit neurons of tight blocks, those of the reference first, and the reference's weights."""
    S, K, which = index.T
    A = P.new_zeros((len(index), P.shape[1]))
    A[torch.arange(len(index)), K] = torch.tensor(signs).to(P)[S]
    own, size = unit_rows(at.Z), at.Z.norm(dim=1)
    U, C = torch.cat([own, unit_rows(P[S, K, which])]), torch.cat([at.C, A])
    alike = (U @ U.T > _ALIKE) & (C @ C.T > _ALIKE)
    first = torch.argmax(alike.to(torch.uint8), dim=1) if len(U) else torch.zeros(0, dtype=torch.long)
    roots = torch.unique(first)
    reference = torch.zeros(len(U)).to(P).index_add(0, first[: len(own)], size)[roots]
    return Neurons(U[roots], C[roots], at.bias), reference
