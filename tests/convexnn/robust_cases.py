"""Small robust programs: clusters of samples, so that hard cones have an interior."""

import itertools

import pytest
import torch
from convexnn_cases import normal, seeded

from convexnn.data import read_loss
from convexnn.problem import Problem
from convexnn.programs import ConvexPoint
from convexnn.robust.ball import NORMS, Ball, read_ball
from convexnn.robust.duality import RobustDual
from convexnn.robust.program import LOSSES, AbstractRobustProgram, HardRobustProgram, SoftRobustProgram
from convexnn.robust.sampling import sample_robust

KINDS = {"hard": HardRobustProgram, "soft": SoftRobustProgram}
CASES = [(kind, loss, norm) for kind in KINDS for loss in LOSSES for norm in NORMS]

# The linear algebra of each norm is checked on every case; whole solves on fewer, and on the rest by slow tests.
SOLVED = [
    case if case[2] == "linf" or case[1] == "hinge" else pytest.param(*case, marks=pytest.mark.slow) for case in CASES
]


def clusters(n: int, m: int, seed: int, spread: float = 0.02) -> tuple[torch.Tensor, torch.Tensor]:
    """Features around six centres in the unit cube, and a column of ones; the centre of each."""
    generator = seeded(seed)
    centres = torch.rand((6, m), generator=generator, dtype=torch.float64)
    which = torch.randint(6, (n,), generator=generator)
    which[:6] = torch.arange(6)
    noise = spread * torch.randn((n, m), generator=generator, dtype=torch.float64)
    return torch.cat([centres[which] + noise, torch.ones(n, 1, dtype=torch.float64)], 1), which


def robust_problem(loss: str, n: int, m: int, seed: int, *, bias: bool = True, wd: float = 1e-2) -> Problem:
    X, which = clusters(n, m, seed)
    y = torch.sin(5 * X[:, :-1].sum(1)) if loss == "squared" else torch.where(which % 2 == 0, 1.0, -1.0).double()
    weights = torch.linspace(0.5, 2.0, n, dtype=torch.float64)
    return Problem(X, read_loss(loss, y.numpy(), n, weights.numpy()), wd, bias)


def robust_program(
    kind: str,
    loss: str = "hinge",
    norm: str = "linf",
    *,
    n: int = 16,
    m: int = 3,
    P: int = 6,
    eps: float = 0.02,
    bias: bool = True,
    seed: int = 0,
) -> AbstractRobustProgram:
    """Radii of the features differ; the patterns of both kinds are those whose hard cones have an interior."""
    problem = robust_problem(loss, n, m, seed, bias=bias)
    ball = read_ball([eps * (1 + 0.5 * k / m) for k in range(m)], norm, m, hidden_bias=True)
    found = sample_robust(problem.X, ball, P, seeded(seed))
    return KINDS[kind](problem, found.patterns, ball)


def narrow_program(n: int, m: int, P: int, seed: int = 0) -> AbstractRobustProgram:
    """Wide clusters, a few wrong labels and little weight decay: hard cones that are narrow, most of them in use."""
    generator = seeded(seed)
    centres = 0.1 + 0.8 * torch.rand((12, m), generator=generator, dtype=torch.float64)
    which = torch.randint(12, (n,), generator=generator)
    noise = 0.06 * torch.randn((n, m), generator=generator, dtype=torch.float64)
    X = torch.cat([(centres[which] + noise).clamp(0, 1), torch.ones(n, 1, dtype=torch.float64)], 1)
    wrong = torch.rand(n, generator=generator) < 0.03
    y = torch.where((which % 2 == 0) ^ wrong, 1.0, -1.0).double()
    ball = read_ball(0.02, "linf", m, hidden_bias=True)
    patterns = sample_robust(X, ball, 2 * P, seeded(seed)).patterns.take(torch.arange(P))
    return HardRobustProgram(Problem(X, read_loss("hinge", y.numpy(), n), 0.05 / n, False), patterns, ball)


def random_point(program: AbstractRobustProgram, seed: int, scale: float = 0.3) -> ConvexPoint:
    S, P, d = program.shape
    bias = normal(1, seed=seed) * program.problem.output_bias
    return program.feasible(ConvexPoint(scale * normal(S, 1, P, d, seed=seed), bias))


def random_dual(program: AbstractRobustProgram, seed: int, scale: float = 1.0) -> RobustDual:
    n = len(program.problem.X)
    S, P, _ = program.shape
    size = scale / n
    below, above = size * normal(n, seed=seed).abs(), size * normal(n, seed=seed + 1).abs()
    worst = program.ball.sample((n,), seeded(seed)) * (1 + (seed % 2))  # some outside
    return RobustDual(below, above, worst, 0.5 * size * normal(S, P, n, seed=seed + 2))


def extreme_points(ball: Ball, seed: int = 0) -> torch.Tensor:
    """The corners of the ball; of an ellipsoid, many points of its surface."""
    d = len(ball.radii)
    moves = torch.nonzero(ball.radii > 0)[:, 0]
    if ball.norm == "linf":
        corners = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=len(moves))), dtype=torch.float64)
    elif ball.norm == "l1":
        corners = torch.cat([torch.eye(len(moves)), -torch.eye(len(moves))]).double()
    else:
        corners = torch.nn.functional.normalize(normal(4000, len(moves), seed=seed), dim=1)
    out = torch.zeros((len(corners), d), dtype=torch.float64)
    out[:, moves] = corners * ball.radii[moves]
    return out


def sampled_worst_loss(program: AbstractRobustProgram, point: ConvexPoint, seed: int = 0) -> float:
    """The weighted mean over samples of the worst loss of the network at corners and inner points of each ball.

    No neuron is left out and no pattern assumed: the network itself is run.
    """
    network, X, loss = program.network(point), program.problem.X, program.problem.loss
    inner = program.ball.sample((300,), seeded(seed))
    shifts = torch.cat([extreme_points(program.ball, seed), inner, torch.zeros_like(inner[:1])])
    total = 0.0
    for k in range(len(X)):
        f = network(X[k] + shifts)
        one = type(loss)(loss.targets[k : k + 1], torch.ones(1, dtype=torch.float64))
        total += float(loss.weights[k]) * max(
            float(one.value(value[None])) for value in (f.min(0).values, f.max(0).values)
        )
    return total
