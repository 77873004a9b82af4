"""Whether any network of a program meets the rows, and if not, which rows are in conflict.

The outputs that a program can reach at its points form a linear space: a block that is free, or the difference of two
blocks in the same open cone, is any vector. So A f <= b for some network is a system with as many unknowns as the rows
have rank, and its alternative (Farkas) is mu >= 0 with mu'A f = 0 for every network and b'mu < 0. Vertices of
{mu >= 0, mu'A f = 0, b'mu = -1} have the supports of the minimal conflicts (Gleeson & Ryan 1990).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.linalg import qr
from scipy.optimize import linprog
from torch import Tensor

from convexnn.constrained.program import ConstrainedProgram, Rows
from convexnn.constraints import listed
from convexnn.errors import InfeasibleConstraintsError
from convexnn.programs import AbstractProgram

_RANK = 1e-10  # of singular values, relative to the largest: less is out of reach for weights of a sane size
_SHORT = 1e-8  # by which rows of norm one must be missed to count as infeasible, relative to the limits
_FINE = {"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10}


@dataclass(frozen=True)
class Reach:
    """An orthonormal basis of what the rows can be made to be, by any weights of the program."""

    basis: Float[np.ndarray, "m r"]

    @classmethod
    def of(cls, rows: Float[Tensor, "m c"]) -> "Reach":
        """The range of a matrix."""
        U, singular, _ = torch.linalg.svd(rows, full_matrices=False)
        live = singular > _RANK * singular.max().clamp(min=torch.finfo(rows.dtype).tiny)
        return cls(U[:, live].numpy())

    def short(self, b: np.ndarray) -> float:
        """The least t such that the rows can be at most b + t; infinite ones are left out."""
        m, r = self.basis.shape
        A = np.hstack([self.basis, -np.ones((m, 1))])
        lower = -max(1.0, float(np.abs(b).max()))  # some room is enough
        bounds = [(None, None)] * r + [(lower, None)]
        found = linprog(np.eye(1, r + 1, r)[0], A_ub=A, b_ub=b, bounds=bounds, method="highs-ds", options=_FINE)
        return float(found.fun) if found.status == 0 else float("nan")

    def tied(self, b: np.ndarray) -> Float[np.ndarray, " m"]:
        """mu >= 0 with mu'A f = 0 and b'mu = 0, positive wherever any is: the rows that never have room."""
        m = len(b)
        A = np.hstack([np.vstack([self.basis.T, b[None]])] * 2)  # mu = p + w, p <= 1: as many p at one as can be
        cost = np.concatenate([-np.ones(m), np.zeros(m)])
        bounds = [(0.0, 1.0)] * m + [(0.0, None)] * m
        found: Any = linprog(cost, A_eq=A, b_eq=np.zeros(len(A)), bounds=bounds, method="highs-ds", options=_FINE)
        if found.status != 0:
            return np.zeros(m)
        mu = found.x[:m] + found.x[m:]
        return np.where(mu > 1e-6, mu, 0.0)

    def conflict(self, b: np.ndarray) -> Float[np.ndarray, " m"] | None:
        """A vertex of the alternative, or None where there is none."""
        A = np.vstack([self.basis.T, b[None]])
        right = np.zeros(len(A))
        right[-1] = -1.0
        found: Any = linprog(np.ones(len(b)), A_eq=A, b_eq=right, method="highs-ds", options=_FINE)
        return found.x if found.status == 0 else None


def reachable(program: AbstractProgram, A: Float[Tensor, "m N"]) -> Float[Tensor, "m c"]:
    """The rows as linear functions of the weights: A D_p X for every pattern, and the output bias."""
    X, mask = program.problem.X, program.gated.mask
    parts = [(A * row) @ X for row in mask]
    if program.problem.output_bias:
        parts.append(A.sum(1, keepdim=True))
    return torch.cat(parts, 1)


@dataclass(frozen=True)
class Split:
    """The rows as a solver wants them: those that can have room, and those that never have any.

    Rows such as f <= 1 and -f <= -1 hold as equalities wherever they hold. ``equal`` are independent ones of them, and
    all of them are given; ``balance`` is a positive combination of all of them that is zero for every network, and
    whose limits add up to zero: multipliers of either sign become non-negative by multiples of it.
    """

    free: Int[Tensor, " i"]
    equal: Int[Tensor, " e"]
    balance: Float[Tensor, " m"]

    def joined(self, free: Float[Tensor, " i"], equal: Float[Tensor, " e"]) -> Float[Tensor, " m"]:
        """Non-negative multipliers of all rows, from those of the free rows and of the equal ones of either sign."""
        mu = torch.zeros_like(self.balance)
        mu[self.free], mu[self.equal] = free, equal
        bound = self.balance > 0
        if not bool(bound.any()):
            return mu
        return mu + (-mu[bound] / self.balance[bound]).clamp(min=0.0).max() * self.balance


def examined(program: ConstrainedProgram) -> Split:
    """Which rows can have room.

    Raises:
        InfeasibleConstraintsError: no network with these patterns meets the rows; names a minimal set in conflict.
    """
    rows = program.rows
    reach = Reach.of(reachable(program.wide, rows.A))
    b = rows.b.numpy()
    short, tolerance = reach.short(b), _tolerance(b)
    if short > tolerance:
        raise _error(program, rows, *minimal_conflict(reach, b))
    reached = torch.from_numpy(np.linalg.norm(reach.basis, axis=1) > _RANK)
    balance = torch.zeros_like(rows.b)
    if short > -tolerance:
        balance = torch.from_numpy(reach.tied(b)).to(rows.b)
    tied = balance > 0
    equal = _independent(reach.basis, torch.nonzero(tied & reached)[:, 0])
    return Split(torch.nonzero(~tied & reached)[:, 0], equal, balance)


def _independent(basis: np.ndarray, index: Int[Tensor, " k"]) -> Int[Tensor, " e"]:
    """Rows that are not combinations of the others."""
    if len(index) == 0:
        return index
    _, R, order = qr(basis[index.numpy()].T, mode="economic", pivoting=True)
    size = np.abs(np.diag(R))
    return index[torch.from_numpy(np.sort(order[: int((size > 1e-8 * size.max()).sum())]).astype(np.int64))]


def _tolerance(b: np.ndarray) -> float:
    """Negative limits force outputs to be as large; a limit far above zero forces nothing, and counts for nothing."""
    return _SHORT * max(1.0, float(-b.min()))


def minimal_conflict(reach: Reach, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows that cannot all be met though any fewer of them can, and the weights that prove it."""
    found = reach.conflict(b)
    which = np.arange(len(b)) if found is None else np.flatnonzero(found > 1e-9 * found.max())
    if not _in_conflict(reach, b, which):
        which = np.arange(len(b))
    for row in list(which):  # a vertex has no more than it needs, but for rounding
        fewer = which[which != row]
        if len(fewer) and _in_conflict(reach, b, fewer):
            which = fewer
    found = Reach(reach.basis[which]).conflict(b[which])
    return which, np.ones(len(which)) if found is None else found


def _in_conflict(reach: Reach, b: np.ndarray, which: np.ndarray) -> bool:
    return Reach(reach.basis[which]).short(b[which]) > _tolerance(b)


def _error(
    program: ConstrainedProgram, rows: Rows, which: np.ndarray, weights: np.ndarray
) -> InfeasibleConstraintsError:
    index = torch.from_numpy(which)
    own = rows.take(index)
    # Every function of the points, whatever its patterns: equal points have equal outputs.
    _, place = torch.unique(program.wide.problem.X, dim=0, return_inverse=True)
    free = torch.zeros(len(own), int(place.max()) + 1, dtype=own.A.dtype).index_add(1, place, own.A)
    b = own.b.numpy()
    anyone = Reach.of(free).short(b) > _tolerance(rows.b.numpy())
    given = own.b * own.scales
    reach = Reach.of(reachable(program.wide, own.A * own.scales[:, None]))
    room = reach.short(given.numpy())
    who = (
        "No function meets"
        if anyone
        else f"No network with these {len(program.wide.patterns)} activation patterns meets"
    )
    help_ = "" if anyone else " More patterns may: raise n_patterns."
    message = (
        f"{who} these {len(which)} constraints together, though any {len(which) - 1} of them can be met: "
        f"{listed(own.names)}. Raising each of their limits by {room:.4g} makes them feasible.{help_}"
        if len(which) > 1
        else f"{who} the constraint {listed(own.names)!r}: raise its limit by {room:.4g}.{help_}"
    )
    scaled = weights / own.scales.numpy()
    return InfeasibleConstraintsError(
        message, tuple(which.tolist()), own.names, tuple((scaled / scaled.max()).tolist())
    )
