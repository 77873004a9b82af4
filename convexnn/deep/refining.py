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

from convexnn.deep.branches import Branches, centred, of_weights, rooms
from convexnn.deep.descent import descended
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
_FIRST_TOL = 3e-2  # of the first programs
_MUCH = 1e-4
_SHAKES = (3e-3,)  # noise, relative to a branch, for the cones around it
_SMALL = 1e-3  # norm, relative to the largest, below which a branch is left to be found again
_PATIENCE = 4
_GAIN = 1e-6  # relative fall of the objective that counts as progress
_ROUNDING, _ROOM = 1e-9, 1e-6  # of cones, before and after centring, to work with


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
    found = centred(X, found.take(rooms(X, found) > _ROUNDING))
    return found.take(rooms(X, found) > _ROOM)


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

    def see(self, *networks: ParallelWeights) -> None:
        """The networks of a round."""
        objectives = [problem_objective(self.problem, weights) for weights in networks]
        least = min(objectives)
        self.idle = 0 if least < self.objective * (1 - _GAIN) else self.idle + 1
        if least < self.objective:
            self.weights, self.objective = networks[objectives.index(least)], least


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
            last = solve_parallel(program, ProgramLimits(_program_tol(best, limits.tol), left))
            if last.status is Status.INTERRUPTED:
                raise KeyboardInterrupt
            point = shrunk(last.judgement.point, program, limits.tol)
            weights = ParallelWeights.of(program, point)
            moved = descended(problem, weights)
            best.see(weights, moved)
            found = _search(best, _dual_point(problem, last, moved), moved, limits.tol, generator)
            seconds = time.perf_counter() - started
            best.trace.append(TraceEntry(seconds, best.objective, best.bound, len(weights.Z)))
            if report is not None:
                report(best.trace[-1])
            status = _status(best, limits, seconds)
            program = _next(program, point, moved, found, generator)
    except KeyboardInterrupt:
        status = Status.INTERRUPTED
    return Refined(best.weights, best.objective, best.bound, status, last, tuple(best.trace))


def _program_tol(best: _Refinement, tol: float) -> float:
    """Programs are solved more accurately as the gap falls."""
    return _SHARE * max(tol, min(_FIRST_TOL, 0.1 * best.gap()))


def _dual_point(problem: Problem, last: ParallelAnswer, moved: ParallelWeights) -> Float[Tensor, "n K"]:
    """Of the moved network where it is much better than the program and the loss has a gradient, else of that."""
    better = problem_objective(problem, moved) < last.judgement.objective * (1 - _MUCH)
    if not better or math.isinf(problem.loss.largest_curvature):
        return problem.admit(last.V)
    return problem.dual_point(moved.outputs(problem.X))


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
    program: ParallelProgram,
    point: ParallelPoint,
    moved: ParallelWeights,
    found: Climbed,
    generator: torch.Generator,
) -> ParallelProgram:
    """The branches of the point, those of the moved network and around it, and the worst violators."""
    X, limit = program.problem.X, program.problem.weight_decay
    used = torch.unique(program.places(point.index[_large(point.U)])[2])
    near = around(X, *_shaken(moved, _large(moved.Z.flatten(1)), generator))
    order = torch.argsort(found.values, descending=True)
    order = order[found.values[order] > limit][: 4 * _ADDED]
    worst = around(X, found.Z[order], found.sigma[order])
    worst = worst.joined(worst)[0]
    worst = worst.take(torch.arange(min(_ADDED, len(worst))))
    branches = program.branches.take(used if len(used) else torch.arange(1))
    for more in (near, worst):
        branches = branches.joined(more)[0]
    return replace(program, branches=branches)


def _large(U: Float[Tensor, "B e"]) -> Tensor:
    norms = U.norm(dim=1)
    return norms > _SMALL * (norms.max() if len(norms) else 0.0)


def _shaken(weights: ParallelWeights, which: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Branches of a network, and copies with little noise: optimal ones lie where several cones meet."""
    Z, sigma = [weights.Z[which]], [weights.sigma[which]]
    size = Z[0].flatten(1).norm(dim=1)[:, None, None]
    for share in _SHAKES:
        noise = torch.randn(Z[0].shape, generator=generator, dtype=torch.float64).to(size)
        Z.append(Z[0] + share * size * noise / max(noise[:1].numel(), 1) ** 0.5)
        sigma.append(sigma[0])
    return torch.cat(Z), torch.cat(sigma)
