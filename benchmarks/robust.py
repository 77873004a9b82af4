"""Robust convex programs: this package against cvxpy and Clarabel, and what robust training is worth.

    python -m benchmarks.robust --quick           # two to three minutes: all parts but n=2000
    python -m benchmarks.robust                   # n=2000 too, up to ten minutes for each of its rows
    python -m benchmarks.robust --only accurate   # one of: accurate, soft, majorise, large

Times are CPU seconds of one thread unless said otherwise. Every point and its multipliers, whoever found
them, are judged by ``convexnn.robust.duality.judge_robust``.
"""

import argparse
import time

import numpy as np
import torch
from scipy import sparse

from benchmarks.judged import timed
from convexnn.data import read_loss
from convexnn.problem import Problem
from convexnn.programs import ConvexPoint
from convexnn.result import relative_gap
from convexnn.robust.answer import RobustAnswer
from convexnn.robust.ball import read_ball
from convexnn.robust.blocks import RobustBlocks
from convexnn.robust.duality import RobustDual, RobustJudgement, judge_robust
from convexnn.robust.first_order import solve_first_order
from convexnn.robust.in_turn import solve_in_turn
from convexnn.robust.majorise import majorise
from convexnn.robust.program import AbstractRobustProgram, HardRobustProgram, SoftRobustProgram
from convexnn.robust.reference import solve_reference
from convexnn.robust.sampling import sample_robust
from convexnn.robust.working_set import solve_working_set
from convexnn.solvers.answer import ProgramLimits


def clusters(n: int, d: int, seed: int, spread: float = 0.06) -> tuple[np.ndarray, np.ndarray]:
    """Twelve clusters in the unit cube with labels by turns, three of a hundred labels flipped; d counts the bias."""
    rng = np.random.default_rng(seed)
    centres = rng.uniform(0.1, 0.9, (12, d - 1))
    which = rng.integers(0, 12, n)
    X = np.clip(centres[which] + spread * rng.standard_normal((n, d - 1)), 0, 1)
    y = np.where(which % 2 == 0, 1.0, -1.0) * np.where(rng.random(n) < 0.03, -1, 1)
    return X, y


def cluster_program(
    n: int,
    d: int,
    P: int,
    *,
    soft: bool = False,
    loss: str = "hinge",
    norm: str = "linf",
    seed: int = 0,
    weight_decay: float | None = None,
) -> AbstractRobustProgram:
    """Weight decay 0.05 / n unless given, no output bias; of hard cones P patterns that survive eps 0.02."""
    F, y = clusters(n, d, seed)
    X = torch.tensor(np.hstack([F, np.ones((n, 1))]))
    ball = read_ball(0.02, norm, d - 1, hidden_bias=True)
    tries = 2 if soft or X.numel() < 50_000 else 100  # in many dimensions few directions have a wide gap
    found = sample_robust(X, ball, tries * P, torch.Generator().manual_seed(seed), soft=soft)
    assert len(found.patterns) >= P
    patterns = found.patterns.take(torch.arange(P))
    kind = SoftRobustProgram if soft else HardRobustProgram
    decay = 0.05 / n if weight_decay is None else weight_decay
    return kind(Problem(X, read_loss(loss, y, n), decay, False), patterns, ball)


def clarabel_grouped(program: AbstractRobustProgram) -> RobustJudgement:
    """Clarabel on its own sparse form of the hinge with hard l_inf cones, one slope for each group of samples."""
    import clarabel

    form = _GroupedForm(program)
    settings = clarabel.DefaultSettings()
    settings.verbose, settings.max_threads = False, 1
    settings.tol_gap_abs = settings.tol_gap_rel = settings.tol_feas = 1e-8
    cones = [clarabel.ZeroConeT(form.n_equal), clarabel.NonnegativeConeT(form.n_below)]
    cones += [clarabel.SecondOrderConeT(form.d + 1)] * form.B
    size = form.offsets[-1]
    solver = clarabel.DefaultSolver(sparse.csc_matrix((size, size)), form.cost, form.A, form.b, cones, settings)
    found = solver.solve()
    return form.judged(np.array(found.x), np.array(found.z))


class _GroupedForm:
    """Variables u, a >= |u|, t, z, w >= |z|, xi; rows: z = S u, then the inequalities, then the norms."""

    def __init__(self, program: AbstractRobustProgram) -> None:
        self.program = program
        blocks = self.blocks = RobustBlocks.of(program, torch.arange(2 * len(program.patterns)))
        self.B, self.d, self.n, self.g = len(blocks), blocks.X.shape[1], len(blocks.X), len(blocks.shared)
        self.moves = np.flatnonzero(program.ball.radii.numpy() > 0)
        B, d, n, g, m = self.B, self.d, self.n, self.g, len(self.moves)
        self.offsets = np.cumsum([0, B * d, B * m, B, g * d, g * m, n])
        self.n_equal, rows = g * d, self._rows()
        self.n_below = sum(row.shape[0] for row in rows)
        norms = self._norms()
        sums = sparse.kron(blocks.shared.numpy(), sparse.identity(d))
        equal = self._at(3, sparse.identity(g * d)) - self._at(0, sums)
        self.A = sparse.vstack([equal, *rows, norms]).tocsc()
        self.b = np.zeros(self.A.shape[0])
        self.hinge = self.n_equal + self.n_below - 2 * n
        self.b[self.hinge : self.hinge + n] = -1.0
        c, wd = program.problem.loss.weights.numpy(), program.problem.weight_decay
        self.cost = np.concatenate([np.zeros(B * (d + m)), wd * np.ones(B), np.zeros(g * (d + m)), c])

    def _at(self, part: int, M: sparse.spmatrix) -> sparse.csr_matrix:
        left, right = self.offsets[part], self.offsets[-1] - self.offsets[part] - M.shape[1]
        return sparse.hstack([sparse.csr_matrix((M.shape[0], left)), M, sparse.csr_matrix((M.shape[0], right))]).tocsr()

    def _rows(self) -> list[sparse.csr_matrix]:
        """Everything that is at most its right-hand side; the hinge last but one."""
        blocks, X, e = self.blocks, self.blocks.X.numpy(), self.program.ball.radii.numpy()[self.moves][None]
        pick = sparse.identity(self.d).tocsr()[self.moves]
        own, joint = (sparse.kron(sparse.identity(k), pick) for k in (self.B, self.g))
        rows = [
            sign * self._at(part, M) - self._at(part + 1, sparse.identity(M.shape[0]))
            for part, M in ((0, own), (3, joint))
            for sign in (1.0, -1.0)
        ]
        sides = blocks.sides.numpy()
        slack = sparse.block_diag([-side[:, None] * X for side in sides])
        rows.append(self._at(0, slack) + self._at(1, sparse.kron(sparse.identity(self.B), np.repeat(e, self.n, 0))))
        member = sparse.csr_matrix((np.ones(self.n), (np.arange(self.n), blocks.group.numpy())), (self.n, self.g))
        yx = sparse.csr_matrix(self.program.targets.numpy()[:, None] * X)
        margin = sparse.vstack([sparse.kron(member[k], yx[k]) for k in range(self.n)])
        one = self._at(5, sparse.identity(self.n))
        rows.append(-self._at(3, margin) + self._at(4, sparse.kron(member, e)) - one)
        rows.append(-one)
        return rows

    def _norms(self) -> sparse.csr_matrix:
        B, d = self.B, self.d
        columns = np.concatenate([self.offsets[2] + np.arange(B)[:, None], np.arange(B * d).reshape(B, d)], 1).ravel()
        size = B * (d + 1)
        return sparse.csr_matrix((-np.ones(size), (np.arange(size), columns)), (size, self.offsets[-1]))

    def judged(self, x: np.ndarray, z: np.ndarray) -> RobustJudgement:
        """With its own multipliers; those of z = S u give the pull of each group on its slope."""
        program, y = self.program, self.program.targets
        U = torch.tensor(x[: self.B * self.d]).reshape(2, 1, -1, self.d)
        lam = torch.tensor(z[self.hinge : self.hinge + self.n]).clamp(min=0.0)
        start = self.n_equal + 2 * (self.B + self.g) * len(self.moves)
        alpha = torch.tensor(z[start : start + self.B * self.n]).reshape(2, -1, self.n).clamp(min=0.0)
        tie = torch.tensor(z[: self.n_equal]).reshape(self.g, self.d)
        rows, total = torch.zeros_like(tie), torch.zeros(self.g, dtype=tie.dtype)
        rows = rows.index_add(0, self.blocks.group, (lam * y)[:, None] * self.blocks.X)
        total = total.index_add(0, self.blocks.group, lam)
        worst = ((rows - tie) / total[:, None].clamp(min=1e-300))[self.blocks.group]
        below, above = torch.where(y > 0, lam, 0.0), torch.where(y > 0, 0.0, lam)
        point = ConvexPoint(U, torch.zeros(1, dtype=U.dtype))
        return judge_robust(program, point, RobustDual(below, above, worst, alpha))


def run_accurate(quick: bool) -> None:
    """Certified gap 1e-5 at a feasible point, hinge, hard l_inf cones; n=60 for three draws, as it takes so little."""
    del quick
    for n, d, P, seeds in [(60, 7, 30, range(3)), (200, 20, 60, range(1))]:
        print(f"\n### Hinge, hard l_inf cones, n={n} d={d} P={P}\n")
        print("| draw | solver | CPU s | objective at a feasible point | certified gap |\n|---|---|---|---|---|")
        solve_working_set(cluster_program(60, 7, 30), ProgramLimits(1e-2))  # what is loaded at the first call
        seconds = [_raced(cluster_program(n, d, P, seed=seed), seed) for seed in seeds]
        own, grouped, plain = (sum(column) for column in zip(*seconds, strict=True))
        print(f"\n- grouped / own: {grouped / own:.2f} (aim: {1 if n == 60 else 3})")
        print(f"- cvxpy / own: {plain / own:.1f}" + (" (aim: 20)" if n == 200 else ""), flush=True)


def _raced(program: AbstractRobustProgram, seed: int) -> tuple[float, float, float]:
    """CPU seconds of the interior point, of Clarabel's grouped form and of cvxpy; judged points are printed."""
    own = timed(lambda: solve_working_set(program, ProgramLimits(1e-5)))
    print(own.row(f"{seed} | interior point on a working set, 1e-5"), flush=True)
    grouped = timed(lambda: clarabel_grouped(program))
    print(grouped.row(f"{seed} | Clarabel, grouped sparse form"), flush=True)
    plain = timed(lambda: solve_reference(program, ProgramLimits(1e-5)))
    print(plain.row(f"{seed} | cvxpy + Clarabel"), flush=True)
    return own.seconds, grouped.seconds, plain.seconds


def run_large(quick: bool) -> None:
    """To a certified gap, hinge, l_inf, both kinds of cones; two threads where there are two cores."""
    torch.set_num_threads(2)
    sizes = (800, 64, 100) if quick else (2000, 100, 200)
    n, d, P = sizes
    print(f"\n### Hinge, l_inf, n={n} d={d} P={P}: to 1e-2 within ten minutes\n")
    print("| cones, weight decay | CPU s | seconds | objective | bound | gap | blocks |\n|---|---|---|---|---|---|---|")
    cells = [("hard", None, 1e-2)] if quick else [("hard", None, 1e-2), ("soft", 1e-2, 1e-2), ("soft", 1e-3, 1e-2)]
    for cones, decay, tol in cells:
        program = cluster_program(*sizes, soft=cones == "soft", weight_decay=decay)
        started = time.process_time()
        answer = solve_in_turn(program, ProgramLimits(tol, max_seconds=600))
        name = f"{cones}, {'0.05/n' if decay is None else decay}"
        _last_row(name, time.process_time() - started, answer)
    torch.set_num_threads(1)


def _last_row(name: str, cpu: float, answer: RobustAnswer) -> None:
    last = answer.trace[-1]
    gap = relative_gap(last.objective, last.bound)
    numbers = f"{last.seconds:.0f} | {last.objective:.6f} | {last.bound:.6f} | {gap:.1e} | {last.n_neurons}"
    print(f"| {name} | {cpu:.0f} | {numbers} |", flush=True)


def run_soft(quick: bool) -> None:
    """Soft cones: the interior point to a certified gap, the first-order method to its own end."""
    print("\n### Soft cones, l_inf: interior point (1e-3) and first-order method (rounds gain less than 1e-3)\n")
    print("| loss, n/d/P | solver | CPU s | objective | certified gap |\n|---|---|---|---|---|")
    for loss, n, d, P in [("hinge", 200, 20, 60), ("logistic", 200, 20, 60)][: 1 if quick else 2]:
        program = cluster_program(n, d, P, soft=True, loss=loss)
        exact = timed(lambda program=program: solve_working_set(program, ProgramLimits(1e-3)))
        print(exact.row(f"{loss}, {n}/{d}/{P} | interior point"), flush=True)
        first = timed(lambda program=program: solve_first_order(program, ProgramLimits(1e-2, 60)))
        print(first.row(f"{loss}, {n}/{d}/{P} | first-order"), flush=True)


def run_majorise(quick: bool) -> None:
    """What the network of soft cones certifies, before and after majorise-minimise."""
    n, d, P = (200, 20, 36) if quick else (400, 40, 36)
    program = cluster_program(n, d, P, soft=True, norm="linf")
    problem, ball = program.problem, program.ball
    point = solve_first_order(program, ProgramLimits(1e-2, 20)).judgement.point
    network = program.network(point)
    print(f"\n### Majorise-minimise, hinge, l_inf, n={n} d={d}, {len(network)} neurons\n")
    print("| round | certified objective |\n|---|---|")
    started = time.process_time()
    found = majorise(problem, ball, network, ProgramLimits(1e-3, 60, 20))
    for k, value in enumerate(found.history):
        print(f"| {k} | {value:.6f} |")
    print(f"\n- {time.process_time() - started:.1f} CPU s", flush=True)


PARTS = {"accurate": run_accurate, "soft": run_soft, "majorise": run_majorise, "large": run_large}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", choices=list(PARTS))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name, part in PARTS.items():
        if arguments.only in (None, name):
            part(arguments.quick)


if __name__ == "__main__":
    main()
