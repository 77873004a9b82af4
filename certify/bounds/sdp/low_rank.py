"""The value of a relaxation from below in rank and from above in value: Burer and Monteiro's factors, and candidates.

X = U U' with few columns is any moment matrix of that rank, so what is found here is an upper bound of the relaxation's
value, as the dual is a lower one, and its first column is an input at which to look for a counterexample. The program
in U is not convex. A stationary point is a minimum of the relaxation if the slack matrix S - t E_00 at its multipliers
is positive semidefinite; `certify.bounds.sdp.judge` says so, as a proved bound next to the value. Otherwise an
eigenvector of a negative eigenvalue, as a new column of U, leads down: the rank rises until the proof succeeds, at most
to where r (r + 1) / 2 exceeds the number of constraints (Barvinok 1995; Pataki 1998), from where on second-order points
are minima for almost all objectives (Burer & Monteiro, Math. Programming 103, 2005; Boumal, Voroninski & Bandeira,
NeurIPS 2016).

For verification of networks: Chiu & Zhang, "Tight certification of adversarially trained neural networks via nonconvex
low-rank semidefinite relaxations", ICML 2023.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum
from math import inf, isqrt

import numpy as np
import scipy.linalg as sl

from certify.bounds.sdp.factored import Penalised, constraints_at, minimise, residual
from certify.bounds.sdp.judge import proved_bound
from certify.bounds.sdp.program import Matrix, Program, Vector
from certify.bounds.sdp.relaxation import Relaxation
from certify.errors import InvalidInputError

# Of the multipliers of inequalities, and of the penalty's weight, in units of the objective.
_FIRST_Y, _FIRST_WEIGHT, _LEAST_Y = 0.1, 10.0, 1e-10
_HEAVIER, _ENOUGH_PROGRESS = 4.0, 0.25
_CHANGE = 5.0  # at most, of a multiplier of an inequality in a round
_NEWTON_STEPS = 100
# Gradients at the ends of the rounds; up to which one a last round is one.
_COARSE, _FINER, _FINEST, _FINE = 1e-2, 0.2, 1e-8, 1e-6
_RAISED = (0.0, *np.geomspace(1e-12, 1e-2, 11))
_NEGATIVE = 1e-9
_STEP_ASIDE, _LIGHTER = 0.05, 64.0


class Status(Enum):
    """How a run ended; the value says what it means."""

    CERTIFIED = "the dual proves that the value is that of the relaxation, up to the tolerance"
    STATIONARY = "feasible, but the dual does not prove it optimal: try a larger rank or more rounds"
    INFEASIBLE = "the constraints are not met to the tolerance: allow more rounds"
    STOPPED = "time was over"


@dataclass(frozen=True)
class LowRankSettings:
    """How the factors are found.

    Attributes:
        rank: of the first factor.
        largest: of the last one; None for the bound of Barvinok and Pataki.
        rounds: of multipliers, at each rank.
        feasible: the largest violation of a constraint, in the relaxation's scaled coordinates.
        gap: between value and proved bound, relative to the value where that is above 1, at which the value counts as
            proved.
        seed: of the forward passes that the start is the mean of, one for each column.
    """

    rank: int = 2
    largest: int | None = None
    rounds: int = 30
    feasible: float = 1e-6
    gap: float = 1e-5
    seed: int = 0

    def __post_init__(self) -> None:
        if self.rank < 1 or (self.largest is not None and self.largest < self.rank) or self.rounds < 0:
            raise InvalidInputError(
                f"ranks {self.rank} to {self.largest} with {self.rounds} rounds; expected a rank of at least 1, a"
                " largest one of at least that, and 0 rounds or more"
            )
        if not (self.feasible > 0 and self.gap > 0):
            raise InvalidInputError(
                f"feasible is {self.feasible} and gap {self.gap}; expected positive tolerances, as 1e-6 and 1e-5"
            )


@dataclass(frozen=True, eq=False)
class LowRank:
    """A point of the relaxation.

    Attributes:
        factor: U, `(size, rank)`; row 0 is a unit vector.
        value: of the relaxation's objective there; at least the relaxation's up to the residual.
        residual: the largest violation of a constraint, in scaled coordinates.
        multipliers: of the relaxation's program, and `weight` of its penalties: where a warm start goes on.
        bound: what the multipliers prove; minus infinity if nothing.
        status: how the run ended.
        steps: of Newton's method.
    """

    factor: Matrix
    value: float
    residual: float
    multipliers: Vector
    weight: float
    bound: float
    status: Status
    steps: int

    @property
    def rank(self) -> int:
        """Columns of the factor."""
        return self.factor.shape[1]

    @property
    def gap(self) -> float:
        """Value less proved bound."""
        return self.value - self.bound


def low_rank(
    relaxation: Relaxation,
    settings: LowRankSettings | None = None,
    *,
    start: LowRank | Matrix | None = None,
    stop: Callable[[], bool] | None = None,
) -> LowRank:
    """The least value over factors, rank by rank, until the dual proves it.

    Args:
        relaxation: what is minimised.
        settings: of ranks, rounds and tolerances.
        start: an earlier answer, of this relaxation or a similar one, or a moment matrix `(size, size)`; None for
            forward passes. A feasible answer is never left for a worse one.
        stop: asked before every step of Newton's method, whether time is over.
    """
    settings, program = settings or LowRankSettings(), relaxation.program
    now, steps = _started(relaxation, settings, start), 0
    best = now = _judged(relaxation, now, settings)
    largest = settings.largest or _pataki(program)
    while best.status is not Status.CERTIFIED and not (stop is not None and stop()):
        now = _judged(relaxation, _at_this_rank(program, now, settings, stop), settings)
        best, steps = _better(best, now, settings), steps + now.steps
        wider = _escape(program, now, largest)
        if wider is None:
            break
        now = wider
    over = best.status is not Status.CERTIFIED and stop is not None and stop()
    return replace(best, steps=steps, status=Status.STOPPED if over else best.status)


def _pataki(program: Program) -> int:
    """The least r with r (r + 1) / 2 above the number of constraints."""
    count = len(program.inequality) + 1
    return max((isqrt(8 * count + 1) - 1) // 2 + 1, 2)


def _unit(program: Program) -> float:
    """Of multipliers: the objective's largest coefficient."""
    return float(np.abs(program.objective[1:]).max(initial=0.0)) or 1.0


def _started(relaxation: Relaxation, settings: LowRankSettings, start: LowRank | Matrix | None) -> LowRank:
    program, unit = relaxation.program, _unit(relaxation.program)
    y, weight = np.where(program.inequality, _FIRST_Y * unit, 0.0), _FIRST_WEIGHT * unit
    if isinstance(start, LowRank):
        if (len(start.factor), len(start.multipliers)) != (program.size, len(y)):
            raise InvalidInputError(
                f"the start has {len(start.factor)} rows and {len(start.multipliers)} multipliers; expected those of"
                f" this relaxation, {program.size} and {len(y)}"
            )
        y = np.where(program.inequality, np.maximum(start.multipliers, _LEAST_Y * unit), start.multipliers)
        return _point(program, start.factor, y, max(start.weight / _LIGHTER, weight))
    if start is None:
        factor = turned(relaxation.passes(settings.rank, settings.seed).T)
    else:
        factor = factor_of(start, settings.rank)
    return _point(program, factor, y, weight)


def _point(program: Program, factor: Matrix, y: Vector, weight: float) -> LowRank:
    violated = residual(program, constraints_at(program, factor))
    value = float(program.objective @ factor[:, 0])
    return LowRank(factor, value, violated, y, weight, -inf, Status.INFEASIBLE, 0)


def turned(factor: Matrix) -> Matrix:
    """The factor of X / X_00 whose row 0 is the first unit vector: rotated and scaled."""
    length = float(np.linalg.norm(factor[0]))
    if not (np.isfinite(factor).all() and length > 0):
        raise InvalidInputError("the factor has a row 0 of zeros, or entries that are not finite; expected X_00 = 1")
    Q, _ = np.linalg.qr(np.column_stack([factor[0], np.eye(len(factor[0]))]))
    found = factor @ Q * (np.sign(Q[:, 0] @ factor[0]) / length)
    found[0] = np.eye(1, len(Q))
    return found


def factor_of(moments: Matrix, rank: int) -> Matrix:
    """The factor of the nearest matrix of some rank to a moment matrix, such as that of an interior point."""
    if moments.ndim != 2 or moments.shape[0] != moments.shape[1] or not 1 <= rank <= len(moments):
        raise InvalidInputError(
            f"moments of shape {moments.shape} at rank {rank}; expected a square matrix, no smaller"
        )
    size = len(moments)
    values, vectors = sl.eigh(moments, subset_by_index=[size - rank, size - 1])
    return turned(vectors * np.sqrt(np.maximum(values, 0)))


def _at_this_rank(
    program: Program, now: LowRank, settings: LowRankSettings, stop: Callable[[], bool] | None
) -> LowRank:
    """Rounds of minimisation and new multipliers, until the constraints hold and are complementary."""
    unit, steps, before = _unit(program), 0, inf
    v, y, weight = now.factor[1:].ravel(), now.multipliers, now.weight
    for count in range(settings.rounds):
        function = Penalised(program, now.rank, y, weight)
        tolerance = max(_FINEST, _COARSE * min(_FINER**count, _FIRST_WEIGHT * unit / weight)) * unit
        v, more = minimise(function, v, tolerance, _NEWTON_STEPS, stop=stop)
        steps += more
        y = _moved(program, y, function.next_multipliers(v), unit)
        now = _point(program, function.factor(v), y, weight)
        slack = np.where(program.inequality, y * constraints_at(program, now.factor), 0.0)
        complementary = np.abs(slack).sum() <= settings.gap / 4 * max(1.0, abs(now.value))
        done = now.residual <= settings.feasible and complementary and tolerance <= _FINE * unit
        if done or (stop is not None and stop()):
            break
        if now.residual > max(_ENOUGH_PROGRESS * before, settings.feasible) or now.residual <= settings.feasible:
            weight *= _HEAVIER
        before = now.residual
    return replace(now, steps=steps)


def _moved(program: Program, y: Vector, new: Vector, unit: float) -> Vector:
    """The next multipliers; those of inequalities change by a bounded factor, and stay positive."""
    kept = np.maximum(np.clip(new, y / _CHANGE, y * _CHANGE), _LEAST_Y * unit)
    return np.where(program.inequality, kept, new)


def _judged(relaxation: Relaxation, now: LowRank, settings: LowRankSettings) -> LowRank:
    """With the bound that its multipliers prove, raised where that is needed, and the status that follows."""
    bound, y = -inf, now.multipliers
    for share in _RAISED:
        raised = y + share * np.abs(y).max(initial=1.0) * relaxation.bounding
        found = proved_bound(relaxation.target, relaxation.multipliers(raised))
        bound = max(bound, found)
        if found < bound:
            break
    return _with_bound(now, bound, settings)


def _better(old: LowRank, new: LowRank, settings: LowRankSettings) -> LowRank:
    """The feasible one, of two the one of less value; with the better bound of both."""
    keep = old.residual <= settings.feasible and (new.residual > settings.feasible or new.value >= old.value)
    return _with_bound(old if keep else new, max(old.bound, new.bound), settings)


def _with_bound(point: LowRank, bound: float, settings: LowRankSettings) -> LowRank:
    if point.residual > settings.feasible:
        status = Status.INFEASIBLE
    elif point.value - bound <= settings.gap * max(1.0, abs(point.value)):
        status = Status.CERTIFIED
    else:
        status = Status.STATIONARY
    return replace(point, bound=bound, status=status)


def _escape(program: Program, now: LowRank, largest: int) -> LowRank | None:
    """A wider factor a little aside, along the eigenvectors of negative eigenvalues of S - t E_00; None without any."""
    S = program.cost - program.adjoint(now.multipliers)
    S[0, 0] -= S[0] @ now.factor[:, 0]
    more = min(now.rank, largest - now.rank)
    if more <= 0:
        return None
    values, vectors = sl.eigh(S, subset_by_index=[0, more - 1])
    down = values < -_NEGATIVE * np.abs(S).max()
    if not down.any():
        return None
    factor = turned(np.concatenate([now.factor, _STEP_ASIDE * vectors[:, down]], 1))
    return _point(program, factor, now.multipliers, max(now.weight / _LIGHTER, _FIRST_WEIGHT * _unit(program)))
