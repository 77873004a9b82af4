"""Hints by semidefinite relaxations: the box-and-ball lemma for rows, the full relaxation for single margins."""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from certify.bounds.definite import squared_norm
from certify.bounds.dense import DenseNetwork
from certify.bounds.sdp.branch import solve_cases
from certify.bounds.sdp.stage import Settings
from certify.bounds.sdp.target import Offsets, Target
from certify.bounds.sdp_crown import ball_hints, balls_between
from certify.proof.emit.hints import Chain, RowHints
from certify.proof.emit.margins import Builder
from certify.proof.emit.sdp import sdp_part

_FEW, _STEPS_FEW, _STEPS_MANY = 50, 150, 60
# A margin's bound, relative to the margin at the centre, that is left alone: rounding must not take it below 0.
_ENOUGH = 1e-5
_MOST_CASES = 32


def lifted(chain: Chain, forms: Float[np.ndarray, "m n"]) -> RowHints:
    """Slopes and multipliers of balls and boxes together; of boxes alone where the region is no l2 ball."""
    k = len(chain.hidden)
    network = DenseNetwork(chain.layers[:k], chain.layers[k], ())
    boxes = [(torch.as_tensor(low)[None], torch.as_tensor(high)[None]) for low, high in chain.hidden]
    balls = balls_between(network, chain.region, boxes)
    steps = _STEPS_FEW if len(forms) <= _FEW else _STEPS_MANY
    _, hints = ball_hints(balls, torch.as_tensor(forms)[None], steps)
    return RowHints(hints.g, hints.lam, live=any(bool(v.any()) for v in hints.lam))


def norms_of(chain: Chain) -> list[float] | None:
    """Upper bounds of the squared norms of the hidden layers' weights, where the region has a ball to use them for."""
    if chain.norm != "l2":
        return None
    return [squared_norm(W) for W, _ in chain.layers[:-1]]


def by_sdp(builder: Builder, rival: int) -> dict[str, Any] | None:
    """The proof of one margin by the relaxation between the builder's bounds; None where it is not positive."""
    chain, claim = builder.chain, builder.question.claim
    W, b = chain.layers[-1]
    row, constant = (W[claim.label] - W[rival], b[claim.label] - b[rival]) if len(b) > 1 else (W[0], b[0])
    sign = -1.0 if len(b) == 1 and claim.label == 0 else 1.0
    ball = chain.radius if chain.norm in ("l2", "l1") else None
    lower, upper = zip(*chain.hidden, strict=True)
    offsets = Offsets(chain.centre, ball, *chain.room)
    target = Target(chain.layers[:-1], lower, upper, sign * row, float(sign * constant), offsets)
    found = solve_cases(target, Settings(enough=_ENOUGH * abs(target.at_centre)), most=_MOST_CASES)
    if found.bound <= 0:
        return None
    return sdp_part(builder, rival, found.order, found.multipliers, found.bound)
