"""Small proofs of random networks, and a second evaluation of proof files: plain fractions, sentence by sentence."""

from fractions import Fraction
from itertools import pairwise

import numpy as np
import torch

from certify.proof.check.network import Network
from certify.proof.emit.hints import crown
from certify.proof.emit.margins import Builder, Question
from certify.proof.writing import exact
from certify.regions import Box, LpBall

WIDTHS = (3, 5, 4, 3)


def random_network(seed, widths=WIDTHS):
    rng = np.random.default_rng(seed)
    layers = [
        (rng.standard_normal((m, n)).astype(np.float32) / np.float32(n) ** 0.5, rng.standard_normal(m) / 4)
        for n, m in pairwise(widths)
    ]
    return Network(tuple((exact(W), exact(b)) for W, b in layers))


def layers_of(network):
    return [
        (
            [[Fraction(v, 2**W.scale) for v in row] for row in W.values],
            [Fraction(v, 2**b.scale) for v in b.values],
        )
        for W, b in network.layers
    ]


def output_at(network, x):
    """The exact output at a point of fractions."""
    layers = layers_of(network)
    for k, (W, b) in enumerate(layers):
        x = [sum(w * v for w, v in zip(row, x, strict=True)) + c for row, c in zip(W, b, strict=True)]
        x = [max(v, Fraction(0)) for v in x] if k + 1 < len(layers) else x
    return x


def region_of(norm, seed, n=WIDTHS[0], size=0.05, domain=False):
    """A region, and points of it (fractions)."""
    rng = np.random.default_rng(seed + 100)
    centre = rng.random(n)
    if norm == "box":
        low, high = centre - size, centre + size * rng.random(n)
        shares = [[Fraction(v) for v in row] for row in rng.random((50, n))]
        points = [
            [Fraction(a) + t * (Fraction(b) - Fraction(a)) for a, b, t in zip(low, high, row, strict=True)]
            for row in shares
        ]
        return Box(*(torch.as_tensor(v)[None] for v in (low, high))), points
    limits = [torch.full((1, n), v, dtype=torch.float64) for v in (0.0, 1.0)] if domain else [None, None]
    steps = rng.standard_normal((50, n))
    lengths = np.linalg.norm(steps, {"linf": np.inf, "l2": 2, "l1": 1}[norm], axis=1, keepdims=True)
    steps = steps / lengths * size * (1 - 1e-9) * rng.random((50, 1)) ** 0.1
    points = [[Fraction(c) + Fraction(d) for c, d in zip(centre, row, strict=True)] for row in steps]
    points = [[min(max(v, 0), 1) for v in p] for p in points] if domain else points
    return LpBall(torch.as_tensor(centre)[None], size, norm, *limits), points


def question_of(seed, norm="linf", *, size=0.05, domain=False, embed=True, widths=WIDTHS):
    """A random question, and points of its region; the label is that of the first point."""
    network = random_network(seed, widths)
    region, points = region_of(norm, seed, widths[0], size, domain)
    scores = output_at(network, points[0])
    label = max(range(len(scores)), key=scores.__getitem__) if len(scores) > 1 else int(scores[0] > 0)
    return Question.of(network, region, label, embed=embed), points


def builder_of(question, suggest=crown, norms=None):
    """The proof of all hidden layers."""
    builder = Builder.start(question, norms)
    for _ in range(builder.depth):
        builder.add_layer(suggest)
    return builder


def proof_of(seed, norm="linf", suggest=crown, **options):
    """A network, a document that may be accepted, and points of its region."""
    question, points = question_of(seed, norm, **options)
    builder = builder_of(question, suggest)
    rivals = question.claim.rivals
    return question.network, builder.document(rivals, builder.margins(rivals, suggest)), points
