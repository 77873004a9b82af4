"""Matrices of least squared loss plus nuclear norm: what parallel linear networks are trained to, of any depth.

    min over W of ||S W - B||^2 / 2 + rest + weight ||W||_*

with a diagonal S: data, targets and sample weights enter through a singular value decomposition only.
"""

import time
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from convexnn.problem import Problem
from convexnn.result import Status, relative_gap

_RELAX = 1.6
_EVERY = 10  # steps between two looks at the gap
_ADAPT = 50  # steps before the first look at the balance of the residuals
_RARER = 1.3  # by how much the intervals to the next look grow, so that the method still converges
_FACTOR = 3.0
_MOST = 50_000
_EQUAL = 1e-9  # relative difference of singular values that counts as none


@dataclass(frozen=True)
class Reduced:
    """The weighted data as Q diag(s) basis', and what of the targets lies in their span.

    Where an output bias is trained, weighted means are taken off first: it takes up any shift.
    """

    s: Float[Tensor, " r"]
    B: Float[Tensor, "r K"]
    rest: float  # loss of what lies outside the span: no weights change it
    basis: Float[Tensor, "d r"]
    X_mean: Float[Tensor, " d"]
    Y_mean: Float[Tensor, " K"]

    @classmethod
    def of(cls, problem: Problem) -> "Reduced":
        """Of data with a squared loss."""
        X, Y, c = problem.X, problem.loss.targets, problem.loss.weights
        shift = float(problem.output_bias)
        X_mean, Y_mean = shift * (c @ X), shift * (c @ Y)
        root = c.sqrt()[:, None]
        Q, s, Vh = torch.linalg.svd(root * (X - X_mean), full_matrices=False)
        live = s > torch.finfo(s.dtype).eps * s.max() * max(X.shape)
        live[0] = True  # data of zeros keep one direction
        scaled = root * (Y - Y_mean)
        B = Q[:, live].T @ scaled
        rest = 0.5 * float(((scaled - Q[:, live] @ B) ** 2).sum())
        return cls(s[live], B, rest, Vh[live].T, X_mean, Y_mean)

    @property
    def white(self) -> bool:
        """Whether all singular values that are not zero are equal: then closed forms hold."""
        return bool(self.s[0] > 0) and bool(self.s[0] - self.s[-1] <= _EQUAL * self.s[0])

    def lifted(self, W: Float[Tensor, "r K"]) -> tuple[Float[Tensor, "d K"], Float[Tensor, " K"]]:
        """The weights for the columns of the data, with the same singular values, and the best bias."""
        full = self.basis @ W
        return full, self.Y_mean - self.X_mean @ full

    def loss(self, W: Float[Tensor, "r K"]) -> float:
        """The loss of these weights with their best bias."""
        return 0.5 * float(((self.s[:, None] * W - self.B) ** 2).sum()) + self.rest

    def bound(self, V: Float[Tensor, "r K"], weight: float) -> float:
        """A lower bound of the minimum for any V: <V, B> - ||V||^2 / 2 + rest at :meth:`scaled` V."""
        V = self.scaled(V, weight)
        return float((V * self.B).sum() - 0.5 * (V * V).sum()) + self.rest

    def scaled(self, V: Float[Tensor, "r K"], weight: float) -> Float[Tensor, "r K"]:
        """t V at the best t >= 0 with t ||S V||_2 <= weight."""
        largest = float(torch.linalg.matrix_norm(self.s[:, None] * V, 2))
        along, square = float((V * self.B).sum()), float((V * V).sum())
        best = max(along / square, 0.0) if square > 0 else 0.0
        return V * (min(best, weight / largest) if largest > 0 else best)


@dataclass(frozen=True)
class NuclearAnswer:
    """The best weights, the best bound, and how the run ended."""

    W: Float[Tensor, "r K"]
    V: Float[Tensor, "r K"]  # of the bound, scaled
    objective: float
    bound: float
    status: Status
    n_steps: int

    @property
    def gap(self) -> float:
        """Relative."""
        return relative_gap(self.objective, self.bound)


@dataclass
class _State:
    """A copy Z of W and scaled multipliers: mutable, so that an interrupt loses nothing."""

    Z: Tensor
    m: Tensor
    tau: float
    best: NuclearAnswer
    steps: int = 0
    next_look: int = field(default=_ADAPT)

    def see(self, of: Reduced, weight: float) -> None:
        V = of.B - of.s[:, None] * self.Z
        objective = of.loss(self.Z) + weight * float(torch.linalg.svdvals(self.Z).sum())
        bound, best = of.bound(V, weight), self.best
        W = self.Z if objective < best.objective else best.W
        V = of.scaled(V, weight) if bound > best.bound else best.V
        objective, bound = min(objective, best.objective), max(bound, best.bound)
        self.best = NuclearAnswer(W, V, objective, bound, best.status, self.steps)


def solve_nuclear(
    of: Reduced,
    weight: float,
    *,
    tol: float = 1e-8,
    floor: float = 0.0,
    max_seconds: float = float("inf"),
    start: NuclearAnswer | None = None,
) -> NuclearAnswer:
    """Alternating directions W and Z = W, both steps in closed form, until the duality gap is ``tol``.

    Data with equal singular values are solved by one soft threshold. Ctrl-C returns the best answer so far.
    """
    if of.white:
        return _answer(of, soft_thresholded(of.B / of.s[0], weight / float(of.s[0]) ** 2), weight, Status.SOLVED)
    started = time.perf_counter()
    first = _answer(of, torch.zeros_like(of.B) if start is None else start.W, weight, Status.STALLED)
    tau = float((of.s**2).mean()) or 1.0
    state = _State(first.W, of.s[:, None] * first.V / tau, tau, first)
    status = None
    try:
        while status is None:
            moved = [_step(of, state, weight) for _ in range(_EVERY)][-1]
            _adapt(state, *moved)
            state.see(of, weight)
            gap = relative_gap(state.best.objective, state.best.bound, floor)
            seconds = time.perf_counter() - started
            status = _status(gap <= tol, seconds > max_seconds, state.steps)
    except KeyboardInterrupt:
        status = Status.INTERRUPTED
    best = state.best
    return NuclearAnswer(best.W, best.V, best.objective, best.bound, status, state.steps)


def _status(done: bool, late: bool, steps: int) -> Status | None:
    if done:
        return Status.SOLVED
    if late:
        return Status.MAX_SECONDS
    return Status.MAX_ROUNDS if steps >= _MOST else None


def _answer(of: Reduced, W: Float[Tensor, "r K"], weight: float, status: Status) -> NuclearAnswer:
    V = of.B - of.s[:, None] * W
    objective = of.loss(W) + weight * float(torch.linalg.svdvals(W).sum())
    return NuclearAnswer(W, of.scaled(V, weight), objective, of.bound(V, weight), status, 0)


def _step(of: Reduced, at: _State, weight: float) -> tuple[float, float]:
    """One round; returns how far the copies are apart, and how far the second one moved."""
    s = of.s[:, None]
    W = (s * of.B + at.tau * (at.Z - at.m)) / (s * s + at.tau)
    ahead = _RELAX * W + (1 - _RELAX) * at.Z
    Z = soft_thresholded(ahead + at.m, weight / at.tau)
    at.m = at.m + ahead - Z
    moved = float((W - Z).norm()), float((Z - at.Z).norm())
    at.Z, at.steps = Z, at.steps + 1
    return moved


def _adapt(at: _State, apart: float, moved: float) -> None:
    """Balance the two residuals."""
    if at.steps < at.next_look:
        return
    at.next_look = int(at.steps * _RARER)
    ratio = apart / max(moved, 1e-300)
    if not 1 / _FACTOR < ratio < _FACTOR:
        scale = min(max(ratio, 0.1), 10.0) ** 0.5
        at.tau, at.m = at.tau * scale, at.m / scale


def soft_thresholded(W: Float[Tensor, "r K"], step: float) -> Float[Tensor, "r K"]:
    """The prox of step times the nuclear norm: singular values above ``step`` less it, the others zero."""
    P, sigma, Qh = torch.linalg.svd(W, full_matrices=False)
    return (P * (sigma - step).clamp(min=0.0)) @ Qh
