"""Activation patterns D = 1[X g >= 0]: sampled, enumerated, or those of a network; how many there are and suffice."""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.optimize import linprog
from torch import Tensor

from convexnn.arrangement import cells, packed
from convexnn.errors import InvalidInputError

USUAL = 100  # patterns, where nobody said
_DRAWS_PER_PATTERN = 100
_MOST_PATTERNS = 200_000
_THIN = 1e-10  # slack, relative to the sample, below which rounding decides what is inside a cone
_CLEAR = 1e-6  # length of a ray in a cell that is wide
_IDLE_ROUNDS = 20
_SMALL = 64  # samples up to which the rank is computed before sampling


@dataclass(frozen=True)
class Patterns:
    """Distinct activation patterns, each with a direction inside its cone {u : (2D - I) X u >= 0}."""

    D: Bool[Tensor, "P n"]
    gates: Float[Tensor, "P d"]
    n_drawn: int  # directions that were looked at, those with a pattern known before included
    complete: bool = False  # every pattern that exists is here
    n_random: int = 0  # of these, Gaussian directions' patterns: what the scenario bound counts

    def __len__(self) -> int:
        return self.D.shape[0]

    @property
    def n_duplicates(self) -> int:
        """Directions that were dropped because their pattern was there already."""
        return self.n_drawn - len(self)

    def to(self, target: torch.device | torch.dtype) -> "Patterns":
        """The same patterns on another device, their directions in another precision."""
        device = target if isinstance(target, torch.device) else self.D.device
        return replace(self, D=self.D.to(device), gates=self.gates.to(target))

    def take(self, index: Int[Tensor, " k"] | Bool[Tensor, " P"]) -> "Patterns":
        """Some of these patterns."""
        return replace(self, D=self.D[index], gates=self.gates[index], complete=False, n_random=0)

    def joined(self, other: "Patterns") -> "Patterns":
        """These patterns, then those of ``other`` that are new."""
        n_drawn = self.n_drawn + other.n_drawn
        both = distinct_patterns(torch.cat([self.D, other.D]), torch.cat([self.gates, other.gates]))
        n_random = self.n_random + other.n_random
        return replace(both, n_drawn=n_drawn, complete=self.complete or other.complete, n_random=n_random)

    def __str__(self) -> str:
        kind = "all patterns" if self.complete else "patterns"
        return f"{len(self)} {kind} from {self.n_drawn} directions ({self.n_duplicates} duplicates dropped)"


def of_directions(X: Float[Tensor, "n d"], gates: Float[Tensor, "m d"]) -> Patterns:
    """The distinct patterns of given directions."""
    return distinct_patterns(gates @ X.T >= 0, gates)


def distinct_patterns(D: Bool[Tensor, "m n"], gates: Float[Tensor, "m d"]) -> Patterns:
    """The first of each kind of pattern, with its direction."""
    keep = _first_of_each(D)
    return Patterns(D[keep], gates[keep], len(D))


def _first_of_each(D: Bool[Tensor, "m n"]) -> Int[Tensor, " P"]:
    """Indices of the first row of each kind, rising."""
    _, first = np.unique(packed(D.cpu().numpy()), return_index=True)
    return torch.from_numpy(np.sort(first)).to(D.device)


def pattern_count(n: int, rank: int) -> int:
    """Activation patterns of n samples in general position and of this rank: 2 sum_{k < rank} C(n-1, k).

    Samples that are not in general position (duplicated, parallel, zero) have fewer (Cover 1965).
    """
    return 2 * sum(math.comb(n - 1, k) for k in range(min(rank, n)))


def sample_patterns(X: Float[Tensor, "n d"], count: Any, generator: torch.Generator) -> Patterns:
    """Distinct patterns of Gaussian directions, at most ``count``.

    Directions are drawn until there are ``count`` distinct patterns or 100 times as many directions
    were drawn; then what was found is returned.

    Raises:
        InvalidInputError: count below one, or above the number of patterns that n samples of this
            rank can have (of more than 64 samples the rank is not looked at).
    """
    _check_count(X, count)
    gates, limit = X.new_zeros((0, X.shape[1])), _DRAWS_PER_PATTERN * count
    D = torch.zeros((0, len(X)), dtype=torch.bool, device=X.device)
    drawn = 0
    while len(D) < count and drawn < limit:
        batch = min(max(2 * (count - len(D)), 64) if drawn else count, limit - drawn)
        new = torch.randn((batch, X.shape[1]), generator=generator, dtype=torch.float64).to(X)
        D, gates = torch.cat([D, new @ X.T >= 0]), torch.cat([gates, new])
        first = _first_of_each(D)[:count]
        # Only directions up to the last one that was needed count as drawn.
        drawn = drawn - (len(D) - batch) + int(first[-1]) + 1 if len(first) == count else drawn + batch
        D, gates = D[first], gates[first]
    return Patterns(D, gates, drawn, n_random=len(D))


def count_or_usual(X: Float[Tensor, "n d"], count: int | None) -> int:
    """How many patterns to sample: where nobody said, 100, or as many as there can be where that is less."""
    return min(USUAL, pattern_count(len(X), _rank(X))) if count is None else count


def _rank(X: Float[Tensor, "n d"]) -> int:
    return int(torch.linalg.matrix_rank(X)) if len(X) <= _SMALL else X.shape[1]


def _check_count(X: Float[Tensor, "n d"], count: Any) -> None:
    if isinstance(count, bool) or not isinstance(count, (int, np.integer)) or count < 1:
        raise InvalidInputError(f"{count!r} patterns were asked for; an integer of at least 1 is expected.")
    rank = _rank(X)
    exist = pattern_count(len(X), rank)
    if count > exist:
        raise InvalidInputError(
            f"{count} patterns were asked for, but {len(X)} samples of rank {rank} have at most {exist}; ask for "
            f'fewer; method="exact" of plain training takes all of them.'
        )


def enumerate_patterns(X: Float[Tensor, "n d"], most: int = _MOST_PATTERNS) -> Patterns:
    """Every activation pattern with an open cone, with centred directions.

    Cones narrower than about 1e-10 are left out: every neuron in one is that near to a cone beside it.
    Ranks one and two by sorting, higher ranks by adding one hyperplane after the other.

    Raises:
        InvalidInputError: the count formula gives more than ``most``; says how many, and the memory.
    """
    rank = int(torch.linalg.matrix_rank(X))
    expected = pattern_count(len(X), rank)
    if expected > most:
        size = float(expected) * (len(X) + 8 * X.shape[1])
        raise InvalidInputError(
            f"{len(X)} samples of rank {rank} have up to {float(expected):.3g} activation patterns, which take "
            f"{size / 2**30:.3g} GiB; at most {most} are enumerated. Sample them, use fewer columns, or use "
            f'method="global", which works on all patterns without listing them.'
        )
    points = torch.from_numpy(cells(X.double().cpu().numpy())).to(X)
    found = of_directions(X, points)
    if len(found) < expected:
        found = _with_neighbours(X, found)
    found = centred(X, found)
    found = _widened(X, found, torch.nonzero(_width(X, found) <= _THIN)[:, 0])
    wide = _width(X, found) > _THIN
    return Patterns(found.D[wide], found.gates[wide], found.n_drawn, complete=True)


def _with_neighbours(X: Float[Tensor, "n d"], patterns: Patterns) -> Patterns:
    """And the wide cells that rays out of the known ones enter, until many rounds of rays find nothing new.

    Samples that are parallel up to rounding can put the direction of a wide cell on the wrong side of one of them.
    """
    generator, idle = torch.Generator().manual_seed(0), 0
    while idle < _IDLE_ROUNDS:
        rays = torch.randn(patterns.gates.shape, generator=generator, dtype=torch.float64).to(X)
        hits = -(patterns.gates @ X.T) / (rays @ X.T)
        hits = torch.where(hits > 0, hits, torch.inf).sort(1).values
        ends = torch.cat([hits[:, 1:], torch.full_like(hits[:, :1], torch.inf)], 1).clamp(max=1e3)
        inside = torch.argmax((ends - hits > _CLEAR * (1 + hits)).to(torch.uint8), dim=1, keepdim=True)
        middle = 0.5 * (hits + ends).gather(1, inside)
        entered = torch.where(torch.isfinite(middle), patterns.gates + middle * rays, patterns.gates)
        more = patterns.joined(of_directions(X, entered / entered.norm(dim=1, keepdim=True)))
        idle = 0 if len(more) > len(patterns) else idle + 1
        patterns = replace(more, n_drawn=patterns.n_drawn)
    return patterns


def _width(X: Float[Tensor, "n d"], patterns: Patterns) -> Float[Tensor, " P"]:
    """The smallest slack of each direction, of unit length, relative to the sample's norm; zero samples have none."""
    live = X.norm(dim=1) > 0
    slack = (2.0 * patterns.D[:, live].to(X) - 1.0) * (patterns.gates @ X[live].T) / X[live].norm(dim=1)
    return slack.amin(1) if bool(live.any()) else torch.ones_like(patterns.gates[:, 0])


def _widened(X: Float[Tensor, "n d"], patterns: Patterns, which: Int[Tensor, " k"]) -> Patterns:
    """With directions of the largest smallest slack for these patterns, by linear programming.

    A direction at a boundary does not mean that its cone is narrow: Newton's method can fail to leave it.
    """
    gates, live = patterns.gates.clone(), X.norm(dim=1) > 0
    rows = (X[live] / X[live].norm(dim=1, keepdim=True)).cpu().numpy()
    for p in which.tolist():
        signed = np.where(patterns.D[p, live].cpu().numpy()[:, None], rows, -rows)
        A, b = np.concatenate([-signed, np.ones((len(rows), 1))], 1), np.zeros(len(rows))
        cost, bounds = np.append(np.zeros(X.shape[1]), -1.0), [(-1.0, 1.0)] * X.shape[1] + [(None, 1.0)]
        found = linprog(cost, A_ub=A, b_ub=b, bounds=bounds)
        if found.x is not None and np.linalg.norm(found.x[:-1]) > 0:
            gates[p] = torch.from_numpy(found.x[:-1] / np.linalg.norm(found.x[:-1])).to(gates)
    moved = replace(patterns, gates=gates)
    better = _width(X, moved) > _width(X, patterns)
    return replace(patterns, gates=torch.where(better[:, None], gates, patterns.gates))


def patterns_of(
    X: Float[Tensor, "n d"],
    W: Float[Tensor, "k d"],
    generator: torch.Generator,
    *,
    around: int = 1,
    tolerance: float = 1e-6,
) -> Patterns:
    """Patterns whose closed cones hold the rows of W.

    A neuron on a kink (|x_i'w| <= tolerance ||x_i|| ||w||) lies in several cones: ``around`` of
    them are drawn by small random moves.
    """
    W = W / W.norm(dim=1, keepdim=True).clamp(min=torch.finfo(W.dtype).tiny)
    W = W.repeat_interleave(around, 0)
    noise = torch.randn(W.shape, generator=generator, dtype=torch.float64).to(W)
    activation, move = W @ X.T, noise @ X.T
    scale = X.norm(dim=1)
    off_kink = activation.abs() > tolerance * scale
    reach = torch.where(off_kink & (scale > 0), activation.abs() / move.abs().clamp(min=1e-300), torch.inf)
    step = (0.5 * reach.amin(1, keepdim=True)).clamp(max=0.1)
    return of_directions(X, W + step * noise)


def centred(X: Float[Tensor, "n d"], patterns: Patterns, steps: int = 40) -> Patterns:
    """The same patterns with directions at analytic centres, min ||g||^2 / 2 - (1/n) sum_i log (2D_i - 1) x_i'g.

    Damped Newton steps; a direction too close to a boundary for them stays as it is.
    """
    live = X.norm(dim=1) > 0
    X, d = X[live], X.shape[1]
    if len(X) == 0:
        return patterns
    S = 2.0 * patterns.D[:, live].to(X) - 1.0
    g = patterns.gates / patterns.gates.norm(dim=1, keepdim=True)
    eye = torch.eye(d, dtype=X.dtype, device=X.device)
    for _ in range(steps):
        slack = S * (g @ X.T)
        inverse = 1.0 / slack
        gradient = g - (S * inverse) @ X / len(X)
        H = eye + torch.einsum("pn,ni,nj->pij", inverse**2, X, X) / len(X)
        move = -torch.linalg.solve_ex(H, gradient).result  # not finite where H is singular
        ratio = -(S * (move @ X.T)) / slack
        decrement = (-(gradient * move).sum(1) * len(X)).clamp(min=0.0).sqrt()
        step = torch.minimum(1 / (1 + decrement), 0.9 / ratio.amax(1).clamp(min=1e-9))
        step = torch.where(decrement < 0.25, (0.9 / ratio.amax(1).clamp(min=1e-9)).clamp(max=1.0), step)
        new = g + step[:, None] * move
        fine = torch.isfinite(new).all(1) & ((S * (new @ X.T)) > 0).all(1)
        g = torch.where(fine[:, None], new, g)
        if float(decrement.max()) < 1e-3:
            break
    return replace(patterns, gates=g / g.norm(dim=1, keepdim=True))


def patterns_needed(n: int, psi: float, xi: float) -> int:
    """How many random patterns make a sampled program hard to improve.

    With P >= min{(n+1)/(psi xi) - 1, (2/xi)(n + 1 - log psi)} independent patterns, with confidence
    1 - psi a further random pattern improves the optimum with probability at most xi (Calafiore &
    Campi 2006; Bai, Gautam & Sojoudi 2022). n is the number of variables of the dual: samples times
    outputs. This is about patterns of the same distribution: it does not say how far the sampled
    optimum is from the optimum over all patterns, which can be far.
    """
    _check_probability(psi, "psi")
    _check_probability(xi, "xi")
    return math.ceil(min((n + 1) / (psi * xi) - 1, 2 / xi * (n + 1 - math.log(psi))))


def improvement_probability(n: int, count: int, psi: float) -> float:
    """The converse of :func:`patterns_needed`: the xi that ``count`` patterns guarantee, at most one."""
    _check_probability(psi, "psi")
    return min(1.0, (n + 1) / (psi * (count + 1)), 2 / count * (n + 1 - math.log(psi)))


def _check_probability(value: float, name: str) -> None:
    if not 0 < value < 1:
        raise InvalidInputError(f"{name}={value!r}; a probability strictly between 0 and 1 is expected.")
