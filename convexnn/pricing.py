"""Pricing: neurons u that maximise ||V'(Xu)_+|| on the unit sphere, by local ascent from many starts.

The maximum M(V) decides the dual bound. The ascent finds local maxima: the largest of them is a
lower bound of M, so that a bound on the training problem built on it is evidence, not proof.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from convexnn.ascent import Candidates, ColumnPairs, ascend, distinct, evaluate, merge
from convexnn.flips import Tried, flips
from convexnn.neurons import Neurons, unit_rows


@dataclass(frozen=True)
class Effort:
    """How hard to search: smoothing levels of a climb, numbers of starts, generations of hops and flips."""

    n_starts: int = 64
    hops: int = 128
    flips: int = 256
    generations: int = 1
    patience: int = 1
    progress: float = 1e-5  # a smaller relative gain of the best counts as none
    n_elite: int = 150
    levels: tuple[float, ...] = (3e-2, 3e-3, 3e-4, 1e-5)
    flip_levels: tuple[float, ...] = (1e-3, 1e-4, 1e-5)
    steps: int = 2
    survivors: float = 0.6  # of the starts that go on to the next level
    n_polished: int = 20
    polish: tuple[float, ...] = (1e-4, 1e-5, 1e-6, 1e-7, 1e-8)


def starting_points(
    X: Float[Tensor, "n d"],
    V: Float[Tensor, "n K"],
    neurons: Neurons,
    number: int,
    generator: torch.Generator,
) -> Float[Tensor, "S d"]:
    """Samples, active neurons, their sums and differences, random correlations, Gaussian noise."""
    share = max(1, number // 5)
    parts = [_near_samples(X, share, generator), _correlations(X, V, share, generator)]
    if len(neurons):
        parts += _near_neurons(unit_rows(neurons.W), share, generator)
    missing = max(2, number - sum(len(part) for part in parts))
    parts.append(_noise(X, missing - missing // 2, generator))
    # Columns of one scale: directions along which a small column decides are narrow in X itself.
    scales = X.norm(dim=0)
    parts.append(_noise(X, missing // 2, generator) / torch.where(scales > 0, scales, torch.inf))
    return torch.cat(parts)


def _noise(X: Tensor, m: int, generator: torch.Generator) -> Tensor:
    d = X.shape[1]
    return (torch.randn((m, d), generator=generator, dtype=torch.float64) / d**0.5).to(X)


def _pick(high: int, m: int, generator: torch.Generator) -> Tensor:
    return torch.randint(high, (m,), generator=generator)


def _signs(X: Tensor, m: int, generator: torch.Generator) -> Tensor:
    return (2.0 * _pick(2, m, generator) - 1.0)[:, None].to(X)


def _near_samples(X: Tensor, m: int, generator: torch.Generator) -> Tensor:
    rows = unit_rows(X[_pick(len(X), m, generator).to(X.device)])
    spread = (0.5 + 0.5 * _pick(2, m, generator))[:, None].to(X)
    return rows * _signs(X, m, generator) + spread * _noise(X, m, generator)


def _correlations(X: Tensor, V: Tensor, m: int, generator: torch.Generator) -> Tensor:
    outputs = torch.randn((m, V.shape[1]), generator=generator, dtype=torch.float64).to(X)
    half = _pick(2, m * len(X), generator).reshape(m, len(X)).to(X)
    return (half * (outputs @ V.T)) @ X


def _near_neurons(U: Tensor, m: int, generator: torch.Generator) -> list[Tensor]:
    second, third = (U[_pick(len(U), m, generator).to(U.device)] for _ in range(2))
    return [
        _near_neurons_at(U, m, (0.3, 1.0), generator),
        second + _signs(U, m, generator) * third + 0.05 * _noise(U, m, generator),
    ]


@dataclass(frozen=True)
class _Climber:
    """The data in single precision, in which climbs are run, and as given, in which they are judged."""

    X: Float[Tensor, "n d"]
    V: Float[Tensor, "n K"]
    scale: float
    effort: Effort

    @cached_property
    def single(self) -> tuple[Tensor, Tensor]:
        """X, and V with a largest entry of one: far smaller values would underflow."""
        V = self.V.float()
        largest = float(V.abs().max())
        return self.X.float(), V / largest if largest > 0 else V

    def climb(self, U: Float[Tensor, "S d"]) -> Candidates:
        """Local maxima from starts anywhere."""
        X, V = self.single
        U = U.float()
        for level in self.effort.levels:
            found = ascend(X, V, U, scale=self.scale, levels=(level,), steps=self.effort.steps)
            # Starts that met go on as one, and of the others the better part.
            U = distinct(found, max(32, int(self.effort.survivors * len(found))), 0.99999).U
        return evaluate(self.X, self.V, U.to(self.X.dtype))

    def flip(self, maxima: Candidates, tried: Tried) -> tuple[Candidates, Tried]:
        """Local maxima from starts across single kinks of maxima: too close to those for coarse smoothing."""
        X, V = self.single
        local = evaluate(X, V, maxima.U.float())
        starts, tried = flips(X, V, local, self.effort.flips, scale=self.scale, tried=tried)
        found = ascend(X, V, starts, scale=self.scale, levels=self.effort.flip_levels, steps=self.effort.steps)
        return evaluate(self.X, self.V, found.U.to(self.X.dtype)), tried


def search(
    X: Float[Tensor, "n d"],
    V: Float[Tensor, "n K"],
    starts: Float[Tensor, "S d"],
    *,
    effort: Effort,
    scale: float,
    generator: torch.Generator,
    known: Float[Tensor, "m d"] | None = None,
    pairs: ColumnPairs | None = None,
    enough: float = float("inf"),
) -> Candidates:
    """Local maxima from the starts, then from the best maxima, generation by generation.

    Near the optimum hundreds of local maxima lie within a percent of the weight decay, and the ones
    above it have small basins next to others that are almost as high. Flips across one kink of a
    maximum find them far more often than random perturbations do, and these more often than fresh
    starts. The climbs are in single precision, the best of them polished in that of X. A value above
    ``enough`` ends the search.
    """
    climber = _Climber(X, V, scale, effort)
    elite = climber.climb(starts)
    if known is not None and len(known):
        elite = merge(elite, evaluate(X, V, known))
    elite = distinct(elite, effort.n_elite)
    tried, idle = Tried.none(X.float()), 0
    for _ in range(effort.generations):
        best = elite.best()
        if best > enough:
            break
        elite = elite.take(elite.values >= 0.9 * best)
        flipped, tried = climber.flip(elite, tried)
        hops = _near_neurons_at(elite.U, min(effort.hops, 16 * len(elite)), (0.05, 0.1, 0.2, 0.4), generator)
        elite = distinct(merge(merge(elite, flipped), climber.climb(hops)), effort.n_elite)
        idle = 0 if elite.best() > best * (1 + effort.progress) else idle + 1
        if idle == effort.patience:
            break
    polish = elite.take(slice(effort.n_polished)).U
    return merge(elite, ascend(X, V, polish, scale=scale, levels=effort.polish, steps=2, pairs=pairs))


def _near_neurons_at(U: Tensor, m: int, spreads: tuple[float, ...], generator: torch.Generator) -> Tensor:
    spread = torch.tensor(spreads)[_pick(len(spreads), m, generator)][:, None].to(U)
    return U[_pick(len(U), m, generator).to(U.device)] + spread * _noise(U, m, generator)
