"""Patterns for robust programs: from the data, from perturbed data, and centred in gaps of the data.

A pattern keeps its cone under perturbation only where no sample is near its hyperplane. Random directions
through the origin almost always cut through the data; a threshold in the middle of a gap of some
projection does not.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from convexnn.errors import InvalidInputError
from convexnn.patterns import Patterns, distinct_patterns, sample_patterns
from convexnn.robust.ball import Ball
from convexnn.robust.survival import survival, surviving

SOURCES = ("data", "perturbed", "gap")

_DRAWS_PER_PATTERN = 50
_BATCH = 64
_MIDDLE = 0.02  # share of the samples on the smaller side, of the widest gap where no gap is wide enough


@dataclass(frozen=True)
class RobustPatterns:
    """Patterns for a robust program and what happened to those that were sampled.

    ``factors`` are the multiples of the radii that each sampled pattern survives, where they were computed.
    """

    patterns: Patterns
    n_sampled: int
    n_surviving: int
    factors: Float[Tensor, " m"]

    @property
    def n_cutting(self) -> int:
        """Of the survivors, those that put samples on both sides: the others are linear functions of the input."""
        D = self.patterns.D
        return int((D.any(1) & ~D.all(1)).sum())


def sample_robust(
    X: Float[Tensor, "n d"],
    ball: Ball,
    count: int,
    generator: torch.Generator,
    *,
    source: str = "gap",
    hidden_bias: bool = True,
    soft: bool = False,
) -> RobustPatterns:
    """Sample ``count`` distinct patterns (fewer if there are not so many) and keep the useful ones.

    Hard cones keep what survives the ball; soft ones need no interior and keep all. With a first-layer
    bias the pattern of all ones is among them: a linear function survives every ball.

    Raises:
        InvalidInputError: an unknown source, a count below one, no survivor among hard cones (says the largest radius).
    """
    if source not in SOURCES:
        raise InvalidInputError(f"patterns from {source!r} are not known; choose one of {', '.join(SOURCES)}.")
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise InvalidInputError(f"{count!r} patterns were asked for; an integer of at least 1 is expected.")
    patterns = _sampled(X, ball, count, generator, source, hidden_bias)
    if soft:
        return RobustPatterns(patterns, len(patterns), len(patterns), X.new_zeros(0))
    found = survival(X, patterns, ball)
    kept = surviving(patterns, found, ball)
    return RobustPatterns(kept, len(patterns), len(kept), found.factors)


def _sampled(
    X: Float[Tensor, "n d"], ball: Ball, count: int, generator: torch.Generator, source: str, hidden_bias: bool
) -> Patterns:
    linear = _linear(X) if hidden_bias else None
    rest = count - (linear is not None)
    if rest == 0:
        assert linear is not None
        return linear
    if source == "data":
        found = sample_patterns(X, rest, generator)
    elif source == "gap" and hidden_bias and len(X) > 1:
        found = _collected(lambda m: _in_gaps(X, ball, m, generator), rest)
    else:
        found = _collected(lambda m: _perturbed(X, ball, m, generator, moved=source == "perturbed"), rest)
    return found if linear is None else linear.joined(found)


def _linear(X: Float[Tensor, "n d"]) -> Patterns:
    """All samples on one side; its direction is the bias."""
    gate = torch.zeros_like(X[:1])
    gate[0, -1] = 1.0
    return Patterns(torch.ones((1, len(X)), dtype=torch.bool, device=X.device), gate, 1)


def _collected(draw, count: int) -> Patterns:  # type: ignore[no-untyped-def]
    """Distinct patterns from batches of draws, until there are enough or too many draws gave nothing new."""
    found: Patterns | None = None
    limit, drawn = _DRAWS_PER_PATTERN * count, 0
    while drawn < limit:
        D, gates = draw(_BATCH)
        drawn += _BATCH
        cutting = D.any(1)  # a neuron that is never active does nothing
        new = distinct_patterns(D[cutting], gates[cutting])
        found = new if found is None else found.joined(new)
        if len(found) >= count:
            break
    assert found is not None
    return Patterns(found.D[:count], found.gates[:count], found.n_drawn)


def _perturbed(
    X: Float[Tensor, "n d"], ball: Ball, count: int, generator: torch.Generator, *, moved: bool
) -> tuple[Tensor, Tensor]:
    """Patterns of Gaussian directions on the samples, each moved to a random place of its ball."""
    gates = torch.randn((count, X.shape[1]), generator=generator, dtype=torch.float64).to(X)
    activation = gates @ X.T
    if moved:
        shift = ball.sample((len(X),), generator)
        activation = activation + gates @ shift.T
    return activation >= 0, gates


def _in_gaps(X: Float[Tensor, "n d"], ball: Ball, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Directions of three kinds, each with its threshold in the middle of a gap of the projected samples.

    A gap is drawn among those wider than the ball; where there is none, it is the widest.
    """
    features = X[:, :-1]
    H = _directions(features, count, generator)
    values, _ = torch.sort(features @ H.T, dim=0)
    half = 0.5 * (values[1:] - values[:-1])
    reach = ball.support(torch.cat([H, torch.zeros_like(H[:, :1])], 1))
    wide = half > 1.02 * reach
    least = max(1, int(_MIDDLE * len(X)))
    middle = half.clone()
    middle[: least - 1], middle[len(half) - least + 1 :] = 0.0, 0.0
    chance = torch.where(wide.any(0), wide.to(X), (middle == middle.amax(0)).to(X)) + 1e-300
    gap = torch.multinomial(chance.T.cpu(), 1, generator=generator).to(X.device)[:, 0]
    column = torch.arange(count, device=X.device)
    threshold = 0.5 * (values[gap, column] + values[gap + 1, column])
    gates = torch.cat([H, -threshold[:, None]], 1)
    gates = gates / gates.norm(dim=1, keepdim=True).clamp(min=1e-300)
    return gates @ X.T >= 0, gates


def _directions(F: Float[Tensor, "n m"], count: int, generator: torch.Generator) -> Float[Tensor, "k m"]:
    """Gaussian; differences of two samples in some of the features; one to three features alone."""
    n, m = F.shape
    kind = torch.randint(3, (count,), generator=generator)
    gaussian = torch.randn((count, m), generator=generator, dtype=torch.float64)
    pair = torch.randint(n, (count, 2), generator=generator)
    share = 0.2 + 0.8 * torch.rand((count, 1), generator=generator, dtype=torch.float64)
    some = torch.rand((count, m), generator=generator, dtype=torch.float64)
    few = torch.argsort(some, 1) < torch.randint(1, 4, (count, 1), generator=generator)
    differences = (F[pair[:, 0].to(F.device)] - F[pair[:, 1].to(F.device)]).cpu().double() * (some < share)
    H = torch.where((kind == 0)[:, None], gaussian, torch.where((kind == 1)[:, None], differences, gaussian * few))
    flat = H.abs().amax(1) == 0
    return torch.where(flat[:, None], gaussian, H).to(F)
