"""Column generation over branches: search for ones that violate the dual, add them, and solve again.

The search climbs v'(sum_j sigma_j (X z_j)_+)_+ over ||Z||_F = 1 from many starts. Its best value is evidence about the
maximum over all branches, not proof, and so is the bound that is built on it ("local-search").
"""

import math
import time
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor

from convexnn.deep.branches import Branches, centred, of_weights
from convexnn.deep.parallel import ParallelPoint, ParallelProgram
from convexnn.deep.three_layers import ParallelWeights
from convexnn.deep.working_set import ParallelAnswer, shrunk, solve_parallel
from convexnn.duality import DualPoint, dual_point
from convexnn.problem import Problem
from convexnn.result import Status, TraceEntry, relative_gap
from convexnn.solvers.answer import ProgramLimits, Report

_STARTS = 256
_CONFIRM = 4  # times as many starts before a gap is believed
_STEPS = 150
_LONGEST, _SHORTEST = 0.5, 1e-3  # steps of the climb, relative to ||Z||
_ADDED = 40
_SHARE = 0.3  # of the tolerance, that each program is solved to
_NOISE = (0.3, 0.03)  # around the branches of the network
_PATIENCE = 4
_GAIN = 1e-6  # relative fall of the objective that counts as progress
_ROOM = 1e-9  # slack of a direction, relative to the samples, below which a cone is too thin to work with


@dataclass(frozen=True)
class Climbed:
    """Branches with s v_k'(sum_j sigma_j (X z_j)_+)_+ as large as a climb makes it, ||Z||_F = 1."""

    Z: Float[Tensor, "T m d"]
    sigma: Float[Tensor, "T m"]
    values: Float[Tensor, " T"]


def climb(
    X: Float[Tensor, "n d"], V: Float[Tensor, "n K"], Z: Float[Tensor, "T m d"], sigma: Float[Tensor, "T m"]
) -> Climbed:
    """From these starts, each for the sign and output that it is best at.

    Steps along the normalised gradient, ever shorter; the best point on the way is kept.
    """
    Z = Z / Z.flatten(1).norm(dim=1).clamp(min=1e-300)[:, None, None]
    both = _second(X, Z, sigma) @ torch.cat([V, -V], 1)
    v = torch.cat([V, -V], 1).T[both.argmax(1)]
    best, value = Z, both.amax(1)
    for step in torch.logspace(math.log10(_LONGEST), math.log10(_SHORTEST), _STEPS).tolist():
        T = Z @ X.T
        hidden = (sigma[:, :, None] * torch.relu(T)).sum(1)
        reached = (torch.relu(hidden) * v).sum(1)
        better = reached > value
        best, value = torch.where(better[:, None, None], Z, best), torch.maximum(value, reached)
        C = (sigma[:, :, None] * (T > 0) * ((hidden > 0) * v)[:, None]) @ X
        size = C.flatten(1).norm(dim=1).clamp(min=1e-300)[:, None, None]
        Z = Z + step * C / size
        Z = Z / Z.flatten(1).norm(dim=1)[:, None, None]
    return Climbed(best, sigma, value)


def _second(X: Tensor, Z: Tensor, sigma: Tensor) -> Float[Tensor, "T n"]:
    return torch.relu((sigma[:, :, None] * torch.relu(Z @ X.T)).sum(1))


def _starts(
    X: Tensor, width: int, own: ParallelWeights, count: int, generator: torch.Generator
) -> tuple[Float[Tensor, "T m d"], Float[Tensor, "T m"]]:
    """Gaussian hidden neurons with random signs, and the network's branches with noise of two sizes."""
    shape = (count, width, X.shape[1])
    Z = torch.randn(shape, generator=generator, dtype=torch.float64).to(X)
    sigma = torch.where(torch.rand(shape[:2], generator=generator, dtype=torch.float64) < 0.5, -1.0, 1.0).to(X)
    if len(own.Z) == 0:
        return Z, sigma
    unit = own.Z / own.Z.flatten(1).norm(dim=1)[:, None, None]
    parts, signs = [Z, unit], [sigma, own.sigma]
    for size in _NOISE:
        noise = torch.randn(unit.shape, generator=generator, dtype=torch.float64).to(X)
        parts.append(unit + size * noise / unit[0].numel() ** 0.5)
        signs.append(own.sigma)
    return torch.cat(parts), torch.cat(signs)


def around(X: Float[Tensor, "n d"], Z: Float[Tensor, "T m d"], sigma: Float[Tensor, "T m"]) -> Branches:
    """The branches of these weights, moved to the middle of their cones; those without room are left out."""
    found = of_weights(X, Z, sigma)
    found = centred(X, found.take(_wide(X, found)))
    return found.take(_wide(X, found))


def _wide(X: Tensor, branches: Branches) -> Tensor:
    T = branches.inside @ X.T
    hidden = (branches.sigma[:, :, None] * torch.relu(T)).sum(1)
    size = X.norm(dim=1)
    live, active = size > 0, branches.D1.any(1)
    first = (T.abs().amin(1) / size.clamp(min=1e-300))[:, live].amin(1)
    second = torch.where(active, hidden.abs() / size.clamp(min=1e-300), torch.inf)[:, live].amin(1)
    return torch.minimum(first, second) > _ROOM


@dataclass
class _Refinement:
    """The best network and the best dual point so far: mutable, so that a limit or an interrupt loses nothing."""

    problem: Problem
    weights: ParallelWeights
    objective: float
    dual: DualPoint | None = None
    trace: list[TraceEntry] = field(default_factory=list)
    idle: int = 0

    @property
    def bound(self) -> float:
        return -math.inf if self.dual is None else self.dual.bound

    def gap(self) -> float:
        return relative_gap(self.objective, self.bound, self.problem.floor())

    def see(self, weights: ParallelWeights, objective: float) -> None:
        self.idle = 0 if objective < self.objective * (1 - _GAIN) else self.idle + 1
        if objective < self.objective:
            self.weights, self.objective = weights, objective


@dataclass(frozen=True)
class Refined:
    """The best network over all branches that were looked at, and a bound by local search over all there are."""

    weights: ParallelWeights
    objective: float
    bound: float
    status: Status
    last: ParallelAnswer | None  # of the last program
    trace: tuple[TraceEntry, ...]


def refine(
    program: ParallelProgram, limits: ProgramLimits, generator: torch.Generator, report: Report | None = None
) -> Refined:
    """Solve, add branches that violate the dual and those around the network's own, drop idle ones; repeat.

    Ends when the gap is ``limits.tol`` after a search from several times as many starts, when a few rounds change
    nothing, or at the limit. Ctrl-C returns the best network so far.
    """
    problem, started, last = program.problem, time.perf_counter(), None
    none = ParallelWeights.of(program, program.zero())
    best = _Refinement(problem, none, problem_objective(problem, none))
    status: Status | None = None
    try:
        while status is None:
            left = max(limits.max_seconds - (time.perf_counter() - started), 1e-3)
            last = solve_parallel(program, ProgramLimits(_SHARE * limits.tol, left))
            if last.status is Status.INTERRUPTED:
                raise KeyboardInterrupt
            point = shrunk(last.judgement.point, program, limits.tol)
            weights = ParallelWeights.of(program, point)
            best.see(weights, problem_objective(problem, weights))
            found = _search(best, problem.admit(last.V), weights, limits.tol, generator)
            seconds = time.perf_counter() - started
            best.trace.append(TraceEntry(seconds, best.objective, best.bound, len(weights.Z)))
            if report is not None:
                report(best.trace[-1])
            status = _status(best, limits, seconds)
            program = _next(program, point, found, generator)
    except KeyboardInterrupt:
        status = Status.INTERRUPTED
    return Refined(best.weights, best.objective, best.bound, status, last, tuple(best.trace))


def problem_objective(problem: Problem, weights: ParallelWeights) -> float:
    """The objective of a network in balanced form."""
    balanced = weights.balanced()
    return float(problem.loss.value(balanced.outputs(problem.X))) + problem.weight_decay * balanced.penalty()


def _search(best: _Refinement, V: Tensor, weights: ParallelWeights, tol: float, generator: torch.Generator) -> Climbed:
    """Climb from fresh starts; where the gap would be small enough, again from more before it is believed."""
    problem, width = best.problem, weights.Z.shape[1]
    found = climb(problem.X, V, *_starts(problem.X, width, weights, _STARTS, generator))
    for _ in range(2):
        largest = float(found.values.max())
        dual = dual_point(problem, V, largest)
        if relative_gap(best.objective, dual.bound, problem.floor()) > tol or len(found.values) > _CONFIRM * _STARTS:
            break
        more = climb(problem.X, V, *_starts(problem.X, width, weights, _CONFIRM * _STARTS, generator))
        found = Climbed(*(torch.cat(pair) for pair in zip(_parts(found), _parts(more), strict=True)))
    if dual.bound > best.bound:
        best.dual = dual
    _disprove(best, found)
    return found


def _parts(found: Climbed) -> tuple[Tensor, Tensor, Tensor]:
    return found.Z, found.sigma, found.values


def _disprove(best: _Refinement, found: Climbed) -> None:
    """Lower the bound to what the branches that were found leave of it."""
    if best.dual is None:
        return
    reached = _second(best.problem.X, found.Z, found.sigma) @ best.dual.V
    largest = float(reached.abs().max())
    if largest > best.problem.weight_decay:
        best.dual = dual_point(best.problem, best.dual.V, largest)


def _status(best: _Refinement, limits: ProgramLimits, seconds: float) -> Status | None:
    status = limits.status(best.gap(), seconds, len(best.trace))
    return status or (Status.STALLED if best.idle >= _PATIENCE else None)


def _next(
    program: ParallelProgram, point: ParallelPoint, found: Climbed, generator: torch.Generator
) -> ParallelProgram:
    """The branches of the point, those around it, and the worst violators."""
    X, limit = program.problem.X, program.problem.weight_decay
    used = torch.unique(program.places(point.index)[2])
    mine = ParallelWeights.of(program, point)
    noise = torch.randn(mine.Z.shape, generator=generator, dtype=torch.float64).to(X)
    scale = mine.Z.flatten(1).norm(dim=1)[:, None, None] / mine.Z[0].numel() ** 0.5 if len(mine.Z) else 1.0
    near = around(X, mine.Z + 1e-3 * scale * noise, mine.sigma)
    order = torch.argsort(found.values, descending=True)
    order = order[found.values[order] > limit][: 4 * _ADDED]
    worst = around(X, found.Z[order], found.sigma[order])
    worst = worst.joined(worst)[0]
    worst = worst.take(torch.arange(min(_ADDED, len(worst))))
    branches = program.branches.take(used if len(used) else torch.arange(1))
    for more in (near, worst):
        branches = branches.joined(more)[0]
    return replace(program, branches=branches)
