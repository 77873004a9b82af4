"""Sampled branches: patterns of the first layer, tuples of them, and patterns of the second layer for each tuple."""

import torch
from jaxtyping import Float
from torch import Tensor

from convexnn.deep.branches import Branches, of_weights
from convexnn.patterns import Patterns

_WALK = 3  # steps of a random walk inside the cones of the first layer
_ROUNDS = 20
_FAR = 1.0  # length of a step, relative to the point, in a direction that the cone does not limit


def sample_branches(
    X: Float[Tensor, "n d"], patterns: Patterns, width: int, n_second: int, generator: torch.Generator
) -> Branches:
    """At most ``n_second`` second-layer patterns for each of as many tuples as there are first-layer patterns.

    Tuple i holds pattern i and width - 1 random others. Its second-layer patterns are those of random points in the
    cones of its patterns with random Gaussian second-layer weights. For each pattern one more branch repeats it with
    positive signs: a neuron of a two-layer network. Every branch has a point with all preactivations away from zero.
    """
    P = len(patterns)
    gates = patterns.gates / patterns.gates.norm(dim=1, keepdim=True)
    plain = of_weights(X, gates[:, None].expand(-1, width, -1), torch.ones(P, width, dtype=X.dtype))
    found, groups = plain, torch.arange(P)
    others = torch.randint(P, (P, width - 1), generator=generator)
    tuples = torch.cat([torch.arange(P)[:, None], others], 1)
    for _ in range(_ROUNDS):
        short = (n_second - torch.bincount(groups[P:], minlength=P)).clamp(min=0)
        if not bool(short.any()):
            break
        tuple_of = torch.arange(P).repeat_interleave(short)
        Z, sigma = _drawn(X, patterns, tuples[tuple_of], generator)
        found, origin = found.joined(of_weights(X, Z, sigma))
        groups = torch.cat([groups, tuple_of])[origin]
    return found


def _drawn(
    X: Float[Tensor, "n d"], patterns: Patterns, tuples: Tensor, generator: torch.Generator
) -> tuple[Float[Tensor, "T m d"], Float[Tensor, "T m"]]:
    """Random points in the cones of the patterns, times Gaussian second-layer weights, and the signs of these."""
    gates = patterns.gates / patterns.gates.norm(dim=1, keepdim=True)
    signs = 2.0 * patterns.D[tuples].to(X) - 1.0
    w = gates[tuples]
    for _ in range(_WALK):
        r = torch.randn(w.shape, generator=generator, dtype=torch.float64).to(X)
        r = r / r.norm(dim=-1, keepdim=True)
        slack, change = signs * (w @ X.T), signs * (r @ X.T)
        reach = slack / change
        low = torch.where((change > 0) & (slack > 0), -reach, -torch.inf).amax(-1).clamp(min=-_FAR)
        high = torch.where((change < 0) & (slack > 0), -reach, torch.inf).amin(-1).clamp(max=_FAR)
        share = torch.rand(low.shape, generator=generator, dtype=torch.float64).to(X)
        w = w + (0.95 * (low + share * (high - low)))[..., None] * r
        w = w / w.norm(dim=-1, keepdim=True)
    b = torch.randn(w.shape[:2], generator=generator, dtype=torch.float64).to(X)
    return b.abs()[..., None] * w, torch.where(b >= 0, 1.0, -1.0).to(X)
