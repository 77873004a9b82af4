"""Convex programs with constraints on predictions: the interior point against cvxpy with Clarabel.

    python -m benchmarks.constrained --quick    # the smallest size
    python -m benchmarks.constrained

Demographic parity between two groups at half of the gap that the targets have, and caps at twenty other points. CPU
seconds of one thread, the linear programs that look for conflicts included. Both are judged by
``convexnn.constrained.duality``.
"""

import argparse
from typing import Any

import numpy as np
import torch

from benchmarks.judged import timed
from convexnn import Constraints, demographic_parity, output_caps
from convexnn.constrained.feasibility import examined
from convexnn.constrained.interior import InteriorLimits, solve_interior
from convexnn.constrained.program import ConstrainedProgram, read_rows, widened
from convexnn.constrained.reference import solve_reference
from convexnn.data import read_loss
from convexnn.patterns import sample_patterns
from convexnn.problem import Problem
from convexnn.programs import ReLUProgram
from convexnn.solvers.answer import ProgramLimits

SIZES = ((100, 5, 30), (200, 10, 50), (500, 20, 100))
LOSSES = ("squared", "logistic", "hinge")
REFERENCE_UP_TO = 200  # samples


def problem(n: int, d: int, P: int, loss: str) -> ConstrainedProgram:
    """Smooth labels with a kink, groups that go with the first feature; weight decay 1e-3."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((n, d))
    groups = np.where(X[:, 0] + 0.5 * rng.standard_normal(n) > 0, "a", "b")
    f = np.sin(2 * X[:, 0]) + np.abs(X[:, 1]) - 0.5 + 0.1 * rng.standard_normal(n)
    gap = 0.5 * abs(f[groups == "a"].mean() - f[groups == "b"].mean())
    limits: Constraints = demographic_parity(groups, gap) + output_caps(rng.standard_normal((20, d)), upper=0.5)
    points, rows = read_rows(limits, torch.from_numpy(X))
    points = torch.cat([points, torch.ones(len(points), 1, dtype=torch.float64)], 1)
    read = read_loss(loss, f if loss == "squared" else np.sign(f), n)
    plain = Problem(points[:n], read, 1e-3)
    patterns = sample_patterns(points, P, torch.Generator().manual_seed(0))
    return ConstrainedProgram(plain, ReLUProgram(widened(plain, points), patterns), rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    print("| n/d/patterns, loss | interior point to 1e-6: s, gap, violation | cvxpy + Clarabel: s, gap, violation |")
    print("|---|---|---|")
    for n, d, P in SIZES[: 1 if quick else None]:
        for loss in LOSSES:
            program = problem(n, d, P, loss)
            cells = []
            for wanted, solve in (
                (True, lambda p=program: solve_interior(p, examined(p), InteriorLimits(1e-6))),
                (n <= REFERENCE_UP_TO, lambda p=program: solve_reference(p, ProgramLimits(1e-6))),
            ):
                if not wanted:
                    cells.append("not run")
                    continue
                run = timed(solve)
                found: Any = run.judgement
                cells.append(f"{run.seconds:.2f}, {found.gap(program.problem.floor()):.1e}, {found.violation:.0e}")
            print(f"| {n}/{d}/{P}, {loss} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
