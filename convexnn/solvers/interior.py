"""A structured interior point for convex programs over some of their blocks.

Infeasible-start Mehrotra steps with Nesterov-Todd scaling for ||u_j|| <= t_j and slack rows
s_j = G_j u_j. Everything but u is eliminated: block j keeps the small matrix
H_j = X'diag(l_j / s_j)X + (the scaling of its norm), and the blocks meet in the loss only, whose
Hessian enters by Woodbury with one matrix of the size of the samples. Losses other than the
squared one enter through their Hessian at the current outputs.
"""

import math
import time
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from convexnn.duality import DualPoint, dual_point
from convexnn.programs import AbstractProgram
from convexnn.result import relative_gap
from convexnn.solvers.blocks import BlockMap
from convexnn.solvers.cones import Scaling, jordan_divide, jordan_product, longest_ratio, longest_step
from convexnn.solvers.kinks import AbstractLossPart, Kink, first_kink, loss_part
from convexnn.solvers.newton import NewtonSystem

_SHRINK = 0.95  # share of the way to the boundary that a step may go; nearer to it, runs jam
_SHRINK_HINGE = 0.9  # longer steps leave some of its pairs far from the central path, and later steps are tiny


@dataclass(frozen=True)
class InteriorOptions:
    """When to stop."""

    tol: float = 1e-7  # relative gap of the program restricted to the blocks
    max_steps: int = 100
    deadline: float = math.inf  # of time.perf_counter()


@dataclass(frozen=True)
class Iterate:
    """x = (t, u) and z in second-order cones, slacks s and multipliers l >= 0, the kink of the loss, output bias b."""

    x: Float[Tensor, "q e"]
    z: Float[Tensor, "q e"]
    s: Float[Tensor, "B m"]
    l: Float[Tensor, "B m"]  # noqa: E741
    kink: Kink
    b: Float[Tensor, " K"]

    def blocks(self, like: tuple[int, int]) -> Float[Tensor, "B d"]:
        """u of every block."""
        return self.x[:, 1:].reshape(like)

    def complementarity(self) -> float:
        """The mean of the products that go to zero."""
        total = (self.x * self.z).sum() + (self.s * self.l).sum() + self.kink.products().sum()
        return float(total) / (len(self.x) + self.s.numel() + self.kink.p.numel())

    def moved(self, step: float, by: "Iterate") -> "Iterate":
        """After a step."""
        kink = Kink(self.kink.p + step * by.kink.p, self.kink.q + step * by.kink.q)
        x, z, s, l = (  # noqa: E741
            mine + step * move for mine, move in ((self.x, by.x), (self.z, by.z), (self.s, by.s), (self.l, by.l))
        )
        return Iterate(x, z, s, l, kink, self.b + step * by.b)

    def interior(self) -> bool:
        """Whether everything is finite and the pairs are positive."""
        parts = (self.x, self.z, self.s, self.l, self.kink.p, self.kink.q, self.b)
        positive = all(bool((part > 0).all()) for part in (self.s, self.l, self.kink.p, self.kink.q))
        return positive and all(bool(torch.isfinite(part).all()) for part in parts)


@dataclass(frozen=True)
class InteriorPoint:
    """The best feasible blocks and the best dual point seen, and the iterate to go on from."""

    U: Float[Tensor, "B d"]
    bias: Float[Tensor, " K"]
    objective: float  # of the feasible blocks
    V: Float[Tensor, "n K"]
    multipliers: Float[Tensor, "B m"]
    bound: float  # of the program with these blocks alone
    gap: float
    n_steps: int
    iterate: Iterate  # to go on from


@dataclass
class _Best:
    """The best primal and dual points seen so far."""

    objective: float = math.inf
    U: Tensor | None = None
    bias: Tensor | None = None
    dual: DualPoint | None = None
    V: Tensor | None = None
    multipliers: Tensor | None = None

    def gap(self, floor: float) -> float:
        return relative_gap(self.objective, self.dual.bound, floor) if self.dual is not None else math.inf


def solve_blocks(
    program: AbstractProgram,
    index: Int[Tensor, " B"],
    options: InteriorOptions = InteriorOptions(),
    resume: Iterate | None = None,
) -> InteriorPoint:
    """Solve the program with all but these blocks (flat indices into its shape S K P) held at zero.

    ``resume`` is the last iterate of an earlier call with the same blocks.
    """
    maps = BlockMap.of(program, index)
    at, best = _start(program, maps) if resume is None else resume, _Best()
    floor, n_steps = program.problem.floor(), 0
    for n_steps in range(options.max_steps + 1):
        part = loss_part(program.problem.loss, maps.forward(at.blocks(maps.shape)) + at.b, at.kink)
        _judge(program, maps, at, part, best)
        if best.gap(floor) <= options.tol or n_steps == options.max_steps or time.perf_counter() > options.deadline:
            break
        moved = _advance(program, maps, at, part)
        if not moved.interior():
            break
        at = moved
    assert best.U is not None
    assert best.bias is not None
    assert best.dual is not None
    assert best.V is not None
    assert best.multipliers is not None
    return InteriorPoint(
        best.U, best.bias, best.objective, best.V, best.multipliers, best.dual.bound, best.gap(floor), n_steps, at
    )


def _start(program: AbstractProgram, maps: BlockMap) -> Iterate:
    problem, (B, d) = program.problem, maps.shape
    tau = _first_size(program) / math.sqrt(B)
    e = program.penalty.cone_size(d)
    u, bias = 0.5 * tau * maps.centre, problem.constant()
    x = torch.cat([u.new_full((B * d // e, 1), tau), u.reshape(-1, e)], 1)
    z = torch.zeros_like(x)
    z[:, 0] = problem.weight_decay
    slack = maps.cone_forward(u)
    s = torch.maximum(slack, 0.5 * slack.abs().mean().nan_to_num(1.0).expand_as(slack))
    l = (problem.weight_decay * tau / len(problem.X) / s).clamp(min=1e-300)  # noqa: E741
    return Iterate(x, z, s, l, first_kink(problem.loss, maps.forward(u) + bias), bias)


def _first_size(program: AbstractProgram) -> float:
    """The norm of a block whose outputs are of the size of the targets, ||y|| for the squared loss."""
    problem = program.problem
    constant = problem.constant().expand_as(problem.loss.targets)
    spread = float(problem.loss.negative_gradient(constant).norm() / problem.loss.weights.norm())
    return max(spread, 1e-150) * math.sqrt(len(problem.X)) / (float(problem.X.norm()) / math.sqrt(problem.n_inputs))


def _judge(program: AbstractProgram, maps: BlockMap, at: Iterate, part: AbstractLossPart, best: _Best) -> None:
    """Objective at the feasible point near the iterate, and the bound of its dual variable and multipliers."""
    problem = program.problem
    U = maps.repaired(at.blocks(maps.shape))
    objective = float(problem.loss.value(maps.forward(U) + at.b) + problem.weight_decay * program.penalty.value(U))
    if objective < best.objective:
        best.objective, best.U, best.bias = objective, U, at.b
    V = problem.admit(part.dual())
    C = maps.adjoint(V) + maps.cone_adjoint(at.l)
    dual = dual_point(problem, V, float(program.penalty.dual_norms(C).max()))
    if best.dual is None or dual.bound > best.dual.bound:
        best.dual, best.V, best.multipliers = dual, V, at.l


def _advance(program: AbstractProgram, maps: BlockMap, at: Iterate, part: AbstractLossPart) -> Iterate:
    """One predictor-corrector step."""
    scaling = Scaling.of(at.x, at.z)
    system = NewtonSystem.of(maps, part.linearised(), scaling, at.l / at.s, program.problem.output_bias)
    step = _Step(program, maps, system, scaling, at, part)
    affine = step.direction(-at.s * at.l, -scaling.lam, -at.kink.products(), refine=False)
    length = min(1.0, _reach(at, affine))
    mu = at.complementarity()
    accurate = length > 0.1
    left = min(1.0, at.moved(length, affine).complementarity() / mu)
    sigma = max(left**3, 1e-4) if accurate else 0.8
    second = 1.0 if accurate else 0.0
    cone = -jordan_product(scaling.lam, scaling.lam)
    cone = cone - second * jordan_product(scaling.apply_inverse(affine.x), scaling.apply(affine.z))
    cone[:, 0] += sigma * mu
    slack = sigma * mu - at.s * at.l - second * affine.s * affine.l
    kink = sigma * mu - at.kink.products() - second * affine.kink.products()
    move = step.direction(slack, jordan_divide(scaling.lam, cone), kink, refine=True)
    shrink = _SHRINK_HINGE if len(at.kink.p) else _SHRINK
    return at.moved(min(1.0, shrink * _reach(at, move)), move)


def _reach(at: Iterate, by: Iterate) -> float:
    return min(
        longest_step(at.x, by.x),
        longest_step(at.z, by.z),
        longest_ratio(at.s, by.s),
        longest_ratio(at.l, by.l),
        longest_ratio(at.kink.p, by.kink.p),
        longest_ratio(at.kink.q, by.kink.q),
    )


@dataclass(frozen=True)
class _Step:
    """The residuals of the optimality conditions at an iterate, and Newton directions from it."""

    program: AbstractProgram
    maps: BlockMap
    system: NewtonSystem
    scaling: Scaling
    at: Iterate
    part: AbstractLossPart

    def direction(
        self, slack: Float[Tensor, "B m"], cone: Float[Tensor, "q e"], kink: Float[Tensor, "k 2"], *, refine: bool
    ) -> Iterate:
        """The direction whose linearised complementarity products are these."""
        at, maps, scaling = self.at, self.maps, self.scaling
        V = self.part.shifted(kink)
        r_u = -maps.adjoint(V) - maps.cone_adjoint(at.l) - at.z[:, 1:].reshape(maps.shape)
        r_t = self.program.problem.weight_decay - at.z[:, :1]
        r_s = maps.cone_forward(at.blocks(maps.shape)) - at.s
        h = scaling.apply_inverse(cone)
        share = (h[:, :1] - r_t) / scaling.head
        w = at.l / at.s
        right = -r_u + maps.cone_adjoint(slack / at.s - w * r_s)
        right = right + (h[:, 1:] - scaling.cross * share).reshape(maps.shape)
        found = self.system.solve(right, V.sum(0), refinements=1 if refine else 0)
        dx, dz = self._cones(found.du, share, h)
        ds = maps.cone_forward(found.du) + r_s
        dkink = self.part.moved(kink, maps.forward(found.du) + found.db, self.system.linear.right(found.q))
        return Iterate(dx, dz, ds, slack / at.s - w * ds, dkink, found.db)

    def _cones(self, du: Tensor, share: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        scaling = self.scaling
        rows = du.reshape(len(self.at.x), -1)
        across = (scaling.cross * rows).sum(1, keepdim=True)
        along = (scaling.w1 * rows).sum(1, keepdim=True)
        dt = share - across / scaling.head
        tail = scaling.cross * dt + (rows + 2 * scaling.w1 * along) / scaling.eta**2
        dz = h - torch.cat([scaling.head * dt + across, tail], 1)
        return torch.cat([dt, rows], 1), dz
