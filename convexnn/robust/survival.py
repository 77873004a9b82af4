"""How large a ball each activation pattern survives: the largest radii for which its robust cone has an interior."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy import sparse
from scipy.optimize import linprog
from torch import Tensor

from convexnn.errors import InvalidInputError
from convexnn.patterns import Patterns
from convexnn.robust.ball import Ball

_LARGE = 50_000  # entries of X beyond which a linear program for each pattern takes longer than training
_CLEARLY = 1.0 + 1e-6  # multiple of the radii from which on a cone counts as having an interior


@dataclass(frozen=True)
class Survival:
    """For each pattern: the multiple of the radii up to which its cone has an interior, and a direction inside.

    ``factors`` are zero where the pattern has no open cone even without a ball, and infinite where every ball
    leaves one: with a first-layer bias, where all neurons' sides are equal.
    """

    factors: Float[Tensor, " P"]
    directions: Float[Tensor, "P d"]

    @property
    def inside(self) -> Bool[Tensor, " P"]:
        """Whether the cone has an interior at the radii themselves."""
        return self.factors > _CLEARLY

    def largest(self, ball: Ball) -> float:
        """The largest radius of the ball at which some pattern is known to keep an interior."""
        return float(self.factors.max() * ball.radii.max())


def survival(X: Float[Tensor, "n d"], patterns: Patterns, ball: Ball) -> Survival:
    """min r(u) subject to (2D - I) X u >= 1 for each pattern, by HiGHS (l2: Clarabel): the factor is one over it.

    Directions are those of the largest margin, of norm one. On large data the patterns are left with their own
    directions, and factors are lower bounds.
    """
    own = _of_directions(X, patterns, ball)
    if X.numel() > _LARGE:
        return own
    A, radii = X.detach().cpu().double().numpy(), ball.radii.cpu().double().numpy()
    sides = 2.0 * patterns.D.cpu().double().numpy() - 1.0
    factors, directions = own.factors.cpu().numpy().copy(), own.directions.cpu().double().numpy().copy()
    solve = _SOLVERS[ball.norm]
    for p, side in enumerate(sides):
        u = solve(side[:, None] * A, radii)
        if u is None or not np.linalg.norm(u) > 0:
            continue
        slack = float((side * (A @ u)).min())
        reach = float(ball.support(torch.from_numpy(u).to(ball.radii)))
        if slack > 0:
            factors[p] = slack / reach if reach > 0 else np.inf
            directions[p] = u / np.linalg.norm(u)
    return Survival(torch.from_numpy(factors).to(X), torch.from_numpy(directions).to(X))


def _of_directions(X: Float[Tensor, "n d"], patterns: Patterns, ball: Ball) -> Survival:
    """What the directions of the patterns themselves survive; zero where they are not inside their cones."""
    gates = patterns.gates / patterns.gates.norm(dim=1, keepdim=True).clamp(min=1e-300)
    slack = ((2.0 * patterns.D.to(X) - 1.0) * (gates @ X.T)).amin(1).clamp(min=0.0)
    return Survival(torch.where(slack > 0, slack / ball.support(gates), 0.0), gates)


def surviving(patterns: Patterns, found: Survival, ball: Ball) -> Patterns:
    """The patterns whose robust cone has an interior, with directions inside.

    Raises:
        InvalidInputError: there are none; says up to which radius there would be.
    """
    inside = found.inside
    if not bool(inside.any()):
        raise InvalidInputError(
            f"no robust cone of the {len(patterns)} patterns has an interior at radius {float(ball.radii.max()):g} "
            f"({ball.norm}); the largest radius that one of them survives is {found.largest(ball):.6g}. Use a smaller "
            'eps, other patterns, or soft cones: Robust(eps, cones="soft"), of an estimator robust_cones="soft".'
        )
    return replace(patterns, D=patterns.D[inside], gates=found.directions[inside], complete=False)


def _linf(A: np.ndarray, radii: np.ndarray) -> np.ndarray | None:
    """u = p - m with p, m >= 0 and cost radii'(p + m); the columns that cannot move are free."""
    d = A.shape[1]
    found = linprog(np.tile(radii, 2), -np.hstack([A, -A]), -np.ones(len(A)), method="highs")
    return None if found.x is None else found.x[:d] - found.x[d:]


def _l1(A: np.ndarray, radii: np.ndarray) -> np.ndarray | None:
    """The least t with |radii * u| <= t."""
    n, d = A.shape
    moves = np.flatnonzero(radii > 0)
    E = np.zeros((len(moves), d))
    E[np.arange(len(moves)), moves] = radii[moves]
    ones = np.ones((len(moves), 1))
    rows = np.vstack([np.hstack([-A, np.zeros((n, 1))]), np.hstack([E, -ones]), np.hstack([-E, -ones])])
    right = np.concatenate([-np.ones(n), np.zeros(2 * len(moves))])
    found = linprog(np.append(np.zeros(d), 1.0), rows, right, bounds=[(None, None)] * d + [(0, None)], method="highs")
    return None if found.x is None else found.x[:d]


def _l2(A: np.ndarray, radii: np.ndarray) -> np.ndarray | None:
    """min ||radii * u||^2 / 2, the support vector machine with a hard margin."""
    import clarabel

    settings = clarabel.DefaultSettings()
    settings.verbose, settings.max_threads = False, 1
    cones = [clarabel.NonnegativeConeT(len(A))]
    P, rows = sparse.diags(radii**2).tocsc(), sparse.csc_matrix(-A)
    found = clarabel.DefaultSolver(P, np.zeros(len(radii)), rows, -np.ones(len(A)), cones, settings).solve()
    u = np.array(found.x)
    return u if np.isfinite(u).all() else None


_SOLVERS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray | None]] = {"linf": _linf, "l2": _l2, "l1": _l1}
