"""The joint moment relaxation of training: the project's interior point against cvxpy with Clarabel, same program.

    python -m benchmarks.moment_sdp            # n500 d20: the root, and with 100 and 200 lifted samples
    python -m benchmarks.moment_sdp --quick    # the root

The problem is "n500 d20" of ``benchmarks.proofs``. Times are CPU seconds of one thread. cvxpy's model is written with
arrays (one second-order cone constraint for all samples, no loops over samples); the time it takes to hand the model to
Clarabel is given on its own. The project's time runs until its multipliers prove a bound within 1e-4 of Clarabel's
value, and includes the bounds of all iterates. It starts from half the largest mass that an optimal network can have,
(loss of the zero network) / (weight decay), for either sign.
"""

import argparse
import time
from dataclasses import replace

import cvxpy as cp
import numpy as np
import torch

from benchmarks.proofs import WEIGHT_DECAY, problem
from convexnn.data import read_loss
from convexnn.problem import Problem
from convexnn.proof.bound import bound_at
from convexnn.proof.copies import Copies
from convexnn.proof.groups import lifted
from convexnn.proof.interior import Iterate, Relaxation, iterates
from convexnn.proof.leaf import Leaf
from convexnn.proof.slabs import whole_sphere

CLOSE = 1e-4


def training_problem(n: int, d: int) -> Problem:
    X, y = problem(n, d)
    return Problem(torch.from_numpy(X), read_loss("squared", y, n), WEIGHT_DECAY, output_bias=False)


def roots(task: Problem) -> tuple[Leaf, ...]:
    X = task.X.numpy()
    radii = np.linalg.norm(X, axis=1)
    return tuple(whole_sphere(sign, X / radii[:, None], radii) for sign in (1.0, -1.0))


def group_constraints(leaf: Leaf, G: cp.Variable, z: cp.Variable) -> list[cp.Constraint]:
    out: list[cp.Constraint] = []
    d, m = leaf.d, leaf.m
    for indices in leaf.groups:
        X = leaf.rows[indices]
        M = cp.Variable((d + 1 + m, d + 1 + m), PSD=True)
        W, S, U = M[1 : d + 1, d + 1 :], M[d + 1 :, d + 1 :], G[1:, 1:]
        t, P = X @ G[1:, 0], W.T @ X.T
        out += [M[: d + 1, : d + 1] == G, M[0, d + 1 :] == z[indices], cp.diag(S) == cp.diag(P)]
        out += [cp.SOC(z[indices], W, axis=0), cp.SOC(z[indices] - t, U @ X.T - W, axis=0)]
        i, j = np.tril_indices(m, -1)
        both, mixed, other = S[i, j], P[i, j], P[j, i]
        out += [both >= 0, both >= mixed, both >= other, both - mixed - other + (X @ U @ X.T)[i, j] >= 0]
    return out


def model(task: Problem, leaves: tuple[Leaf, ...]) -> cp.Problem:
    y, c = task.loss.targets.numpy()[:, 0], task.loss.weights.numpy()
    outputs, mass, constraints = 0, 0, []
    for leaf in leaves:
        rows, d = leaf.rows, leaf.d
        G, z = cp.Variable((d + 1, d + 1), PSD=True), cp.Variable(len(rows))
        t, q, theta = rows @ G[1:, 0], cp.sum(cp.multiply(rows @ G[1:, 1:], rows), axis=1), G[0, 0]
        free = leaf.free
        t, q = t[free], q[free]
        constraints += [cp.trace(G[1:, 1:]) <= theta, z[free] >= 0, z[free] >= t, 2 * z[free] >= t + q]
        constraints.append(cp.SOC(theta + q, cp.vstack([2 * (2 * z[free] - t), theta - q]), axis=0))
        constraints += group_constraints(leaf, G, z)
        outputs, mass = outputs + leaf.sign * cp.multiply(leaf.radii, z), mass + theta
    loss = 0.5 * cp.sum_squares(cp.multiply(np.sqrt(c), outputs - y))
    return cp.Problem(cp.Minimize(loss + task.weight_decay * mass), constraints)


def by_clarabel(task: Problem, leaves: tuple[Leaf, ...]) -> tuple[float, float, float]:
    """Value, CPU seconds to build and hand over, CPU seconds of Clarabel."""
    begin = time.process_time()
    program = model(task, leaves)
    program.get_problem_data(cp.CLARABEL)
    middle = time.process_time()
    value = program.solve(solver=cp.CLARABEL, max_threads=1)
    return float(value), middle - begin, time.process_time() - middle


def by_interior_point(task: Problem, leaves: tuple[Leaf, ...], aim: float) -> tuple[float, float, Iterate]:
    """Best certified bound, CPU seconds until it reaches the aim, the last iterate."""
    begin, best = time.process_time(), -np.inf
    zero = float(task.loss.value(torch.zeros_like(task.loss.targets)))
    relaxation = Relaxation(task.loss, task.weight_decay, task.output_bias, leaves, Copies.of(task.X.numpy()))
    point = None
    for point in iterates(relaxation, zero / task.weight_decay / 2):
        best = max(best, bound_at(task, relaxation, point).value)
        if best >= aim:
            break
    assert point is not None
    return best, time.process_time() - begin, point


def row(name: str, task: Problem, leaves: tuple[Leaf, ...]) -> tuple[str, Iterate]:
    value, handing, solving = by_clarabel(task, leaves)
    bound, seconds, point = by_interior_point(task, leaves, value * (1 - CLOSE))
    return (
        f"| {name} | {value:.7f} | {handing:.1f} + {solving:.1f} | {bound:.7f} | {seconds:.2f} | "
        f"{(handing + solving) / seconds:.0f} ({solving / seconds:.0f} without cvxpy) |"
    ), point


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    task = training_problem(500, 20)
    leaves = roots(task)
    print("| n500 d20 | Clarabel's value | s: cvxpy + Clarabel | own, certified | s | times faster |")
    print("|---|---|---|---|---|---|", flush=True)
    line, point = row("root", task, leaves)
    print(line, flush=True)
    for n_lifted in () if options.quick else (100, 200):
        groups = lifted(leaves, point.x, point.dual_point(), n_lifted, 10)
        lifts = tuple(replace(leaf, groups=part) for leaf, part in zip(leaves, groups, strict=True))
        print(row(f"{n_lifted} samples in groups of 10", task, lifts)[0], flush=True)


if __name__ == "__main__":
    main()
