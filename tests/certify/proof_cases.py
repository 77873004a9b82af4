"""Small proofs of random networks, and a second evaluation of proof files: plain fractions, sentence by sentence."""

from fractions import Fraction
from itertools import pairwise
from types import SimpleNamespace

import cvxpy as cp
import numpy as np
import torch

from certify.bounds.sdp import Cuts
from certify.proof.check.network import Network
from certify.proof.emit.hints import crown
from certify.proof.emit.margins import Builder, Question, slopes_json
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
    return question.network, builder.document(slopes_json(rivals, *builder.margins(rivals, suggest))), points


def sdp_multipliers(builder, rival):
    """The dual of the relaxation in (1, d, y) by cvxpy: its value and multipliers."""
    chain, label = builder.chain, builder.question.claim.label
    n, unstable = len(chain.centre), [np.flatnonzero((low < 0) & (high > 0)) for low, high in chain.hidden]
    size = 1 + n + sum(map(len, unstable))
    unit = np.eye(size)
    groups = {k: [cp.Variable(len(u), nonneg=k != "alpha") for u in unstable] for k in ("alpha", "beta", "gamma")}
    sides = {name: cp.Variable(n, nonneg=True) for name in ("nu", "above", "below")}
    tau, t = cp.Variable(nonneg=True), cp.Variable()

    def both(a, b):
        return (np.outer(a, b) + np.outer(b, a)) / 2

    forms = np.concatenate([chain.centre[:, None], np.eye(n), np.zeros((n, size - 1 - n))], 1)
    S, place = -t * both(unit[0], unit[0]), 1 + n
    for k, (W, b) in enumerate(chain.layers[:-1]):
        z, (low, high) = W @ forms + np.outer(b, unit[0]), chain.hidden[k]
        forms = np.where(low[:, None] >= 0, z, 0.0)
        for q, i in enumerate(unstable[k]):
            y, w = unit[place], unit[place] - z[i]
            S = S - groups["alpha"][k][q] * both(y, w) - groups["beta"][k][q] * both(y, high[i] * unit[0] - y)
            S = S - groups["gamma"][k][q] * both(w, -low[i] * unit[0] - w)
            forms[i], place = y, place + 1
    W, b = chain.layers[-1]
    S = S + both((W[label] - W[rival]) @ forms + (b[label] - b[rival]) * unit[0], unit[0])
    ball = np.diag([chain.radius**2, *[-1.0] * n, *[0.0] * (size - 1 - n)])
    S = S - tau * ball
    for i in range(n):
        under, over = unit[1 + i] - chain.room[0][i] * unit[0], chain.room[1][i] * unit[0] - unit[1 + i]
        S = S - sides["nu"][i] * both(under, over) - sides["above"][i] * both(under, unit[0])
        S = S - sides["below"][i] * both(over, unit[0])
    problem = cp.Problem(cp.Maximize(t), [S >> 0, *([] if chain.norm == "l2" else [tau == 0])])
    problem.solve(solver="CLARABEL")
    layers = {k: [np.reshape(v.value if v.size else [], -1) for v in group] for k, group in groups.items()}
    rest = {name: v.value for name, v in sides.items()}
    return float(t.value), SimpleNamespace(
        **layers, **rest, tau=float(tau.value), pixels=np.arange(n), cuts=Cuts.none()
    )
