"""Tiny ReLU networks decided in exact arithmetic: all phases, each by Fourier-Motzkin elimination in fractions.

Slow and simple on purpose: it shares nothing with the search that it judges.
"""

import random
from fractions import Fraction
from itertools import pairwise

import numpy as np

# A constraint is (coefficients, constant): coefficients . v + constant <= 0.


def eliminate(constraints, j):
    """The shadow of a polyhedron along variable j."""
    above, below, rest = [], [], []
    for a, c in constraints:
        (above if a[j] > 0 else below if a[j] < 0 else rest).append((a, c))
    for a, c in above:
        for p, q in below:
            s, t = -p[j], a[j]
            rest.append(([s * x + t * y for x, y in zip(a, p, strict=True)], s * c + t * q))
    seen = {}
    for a, c in rest:
        scale = next((abs(x) for x in a if x), None)
        if scale is None:
            if c > 0:
                return None
            continue
        key = tuple(x / scale for x in a)
        seen[key] = max(c / scale, seen.get(key, c / scale))
    return [(list(a), c) for a, c in seen.items()]


def project(constraints, keep):
    """The shadow on the first `keep` variables; None if the polyhedron is empty."""
    size = len(constraints[0][0]) if constraints else keep
    for j in range(size - 1, keep - 1, -1):
        constraints = eliminate(constraints, j)
        if constraints is None:
            return None
    if keep == 0:
        return []
    return constraints


def exact(array):
    return [Fraction(float(v)) for v in np.asarray(array).ravel()]


def affine(W, b, forms):
    """W f + b for affine forms f of the inputs, (coefficients, constant) each."""
    out = []
    for row, shift in zip(np.asarray(W), np.asarray(b), strict=True):
        weights = exact(row)
        coefficients = [sum(w * f[0][i] for w, f in zip(weights, forms, strict=True)) for i in range(len(forms[0][0]))]
        constant = sum((w * f[1] for w, f in zip(weights, forms, strict=True)), Fraction(float(shift)))
        out.append((coefficients, constant))
    return out


def pieces(layers, lower, upper):
    """(constraints on x, output forms) of every linear piece that meets the box."""
    n = len(lower)
    unit = [[Fraction(int(i == j)) for i in range(n)] for j in range(n)]
    box = [(unit[j], -u) for j, u in enumerate(exact(upper))]
    box += [([-v for v in unit[j]], low) for j, low in enumerate(exact(lower))]
    todo = [(0, 0, box, [(unit[j], Fraction(0)) for j in range(n)], [])]
    while todo:
        depth, neuron, region, values, after = todo.pop()
        if depth == len(layers) - 1:
            yield region, affine(*layers[depth], values)
            continue
        forms = affine(*layers[depth], values)
        if neuron == len(forms):
            todo.append((depth + 1, 0, region, after, []))
            continue
        a, c = forms[neuron]
        off, on = [*region, (a, c)], [*region, ([-v for v in a], -c)]
        for piece, value in ((off, ([Fraction(0)] * n, Fraction(0))), (on, (a, c))):
            if project(piece, 0) is not None:
                todo.append((depth, neuron + 1, piece, values, [*after, value]))


def satisfiable(layers, lower, upper, polytopes):
    """Whether some x in the box has outputs in some of the polytopes (A, b)."""
    for region, outputs in pieces(layers, lower, upper):
        for A, b in polytopes:
            rows = [(c, d - e) for (c, d), e in zip(affine(A, np.zeros(len(b)), outputs), exact(b), strict=True)]
            if project([*region, *rows], 0) is not None:
                return True
    return False


def least(layers, lower, upper, row):
    """The exact minimum of row . y over the box."""
    found = None
    for region, outputs in pieces(layers, lower, upper):
        ((a, c),) = affine([row], [0.0], outputs)
        # t is the first variable: t >= a x + c
        lifted = [([Fraction(0), *p], q) for p, q in region] + [([Fraction(-1), *a], c)]
        shadow = project(lifted, 1)
        low = max(q / -p[0] for p, q in shadow if p[0] < 0)
        found = low if found is None else min(found, low)
    return found


def evaluate(layers, x):
    """Exact outputs at an exact input."""
    values = [([], v) for v in exact(x)]
    for k, (W, b) in enumerate(layers):
        values = affine(W, b, values)
        if k < len(layers) - 1:
            values = [([], max(v, Fraction(0))) for _, v in values]
    return [v for _, v in values]


def random_problem(seed):
    """(layers, lower, upper, polytopes): also degenerate ones."""
    rng = random.Random(seed)
    widths = [rng.choice([1, 2, 2]), *rng.choice([[2], [3], [2, 2], [3, 2], [1, 1, 1]]), rng.choice([1, 2])]
    kind = rng.choice(["plain", "plain", "integers", "huge", "tiny", "mixed", "twins", "zeros"])
    layers = [
        (
            np.array([[entry(rng, kind) for _ in range(n)] for _ in range(m)]),
            np.array([entry(rng, kind) for _ in range(m)]),
        )
        for n, m in pairwise(widths)
    ]
    if kind == "twins":
        for W, b in layers[:-1]:
            W[-1], b[-1] = W[0] * rng.choice([1, -1, 2]), b[0]
    lower = np.array([rng.choice([-1.0, 0.0, rng.uniform(-2, 2), 0.1]) for _ in range(widths[0])])
    upper = lower + np.array([rng.choice([0.0, 1.0, 2.0, rng.uniform(0, 3), 1e-9, 1e-16]) for _ in lower])
    polytopes = []
    for _ in range(rng.choice([1, 1, 2])):
        A = np.array(
            [
                [rng.choice([-1.0, 1.0, 0.0, entry(rng, "plain")]) for _ in range(widths[-1])]
                for _ in range(rng.choice([1, 1, 2, 3]))
            ]
        )
        polytopes.append((A, np.array([threshold(rng, layers, lower, upper, row) for row in A])))
    return layers, lower, upper, polytopes


def entry(rng, kind):
    if kind == "integers":
        return float(rng.randint(-2, 2))
    if kind == "zeros":
        return rng.choice([0.0, 0.0, 1.0, -1.0])
    size = {"huge": 1e12, "tiny": 1e-12, "mixed": 10.0 ** rng.randint(-20, 20)}.get(kind, 1.0)
    return rng.uniform(-1, 1) * size


def threshold(rng, layers, lower, upper, row):
    """Often the exact minimum of the row or a neighbouring double: the hardest questions."""
    near = float(least(layers, lower, upper, row))
    step = rng.choice([0, 1, -1, 3, None, None, None, None])
    if step is None:
        width = abs(near) + 1.0
        return near + rng.choice([rng.uniform(-0.5, 0.5), -1e-6, 1e-9]) * width
    for _ in range(abs(step)):
        near = float(np.nextafter(near, np.inf if step > 0 else -np.inf))
    return near
