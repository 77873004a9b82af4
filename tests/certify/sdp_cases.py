"""Targets of random networks, and the semidefinite relaxation in an independent formulation."""

from itertools import combinations

import cvxpy as cp
import numpy as np
import torch
from certify_cases import centres, mlp, randomised, regions_around

from certify.bounds import CROWN
from certify.bounds.dense import DenseNetwork
from certify.bounds.sdp import Settings, Target, targets_of
from certify.ir.from_torch import graph_from_torch
from certify.properties import margins_of_labels

KINDS = ["l2", "l2 in domain", "linf in domain", "box", "l1 in domain"]
tight = Settings(tolerance=1e-6, iterations=60, cuts=())


def case(seed, kind, *sizes, eps=0.4):
    """A random network, one region, CROWN's bounds and the margin of output 0 over output 1."""
    sizes = sizes or (3, 6, 5, 2)
    graph = graph_from_torch(randomised(mlp(*sizes).double(), seed), input_shape=(sizes[0],))
    region = regions_around(centres(sizes[0], 1, seed), eps)[kind]
    margins = margins_of_labels(torch.tensor([0]), sizes[-1])
    bounds = CROWN()(graph, region)
    return graph, region, bounds, margins


def target_of(graph, region, bounds, margins, t=0):
    rows, constants = margins.rows[0].numpy(), margins.constants[0].numpy()
    return targets_of(DenseNetwork.of(graph), region, bounds, rows, constants)[t]


def by_cvxpy(target: Target, *, products: bool = False) -> float:
    """The same relaxation over moments of (1, d, unstable y), one constraint after the other, without any scaling.

    With `products` all products of two factors are at least 0.
    """
    o, unstable = target.offsets, target.unstable
    n, size = len(o.centre), 1 + len(o.centre) + sum(map(len, unstable))
    X = cp.Variable((size, size), PSD=True)
    unit = np.eye(size)
    values = [o.centre[i] * unit[0] + unit[1 + i] for i in range(n)]
    rules, at = [X[0, 0] == 1], 1 + n

    def times(a, b):
        return a @ X @ b

    if o.has_ball:
        rules.append(sum(X[1 + i, 1 + i] for i in range(n)) <= o.radius**2)
    for i in range(n):
        if not o.has_ball or min(-o.lower[i], o.upper[i]) < o.radius:
            rules.append(times(unit[1 + i] - o.lower[i] * unit[0], o.upper[i] * unit[0] - unit[1 + i]) >= 0)
    factors = []
    for k, ((W, b), low, high) in enumerate(zip(target.layers, target.lower, target.upper, strict=True)):
        z = [sum(w * v for w, v in zip(row, values, strict=True)) + c * unit[0] for row, c in zip(W, b, strict=True)]
        values = []
        for i, form in enumerate(z):
            if (k, i) in target.split:
                sides = [form - low[i] * unit[0], high[i] * unit[0] - form]
                factors += sides
                rules.append(times(*sides) >= 0)
            if high[i] <= 0 or low[i] >= 0:
                values.append(0 * form if high[i] <= 0 else form)
                continue
            y = unit[at]
            at += 1
            w = y - form
            factors += [y, w, high[i] * unit[0] - y, -low[i] * unit[0] - w]
            rules += [times(y, w) == 0, times(y, high[i] * unit[0] - y) >= 0, times(w, -low[i] * unit[0] - w) >= 0]
            values.append(y)
    rules += [times(a, b) >= 0 for a, b in combinations(factors, 2) if products]
    objective = sum(c * X[0] @ v for c, v in zip(target.objective, values, strict=True)) + target.constant
    problem = cp.Problem(cp.Minimize(objective), rules)
    problem.solve(solver="CLARABEL")
    return float(problem.value)
