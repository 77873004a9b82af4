"""A structured interior point for convex programs over some of their blocks.

Infeasible-start Mehrotra steps with Nesterov-Todd scaling for ||u_j|| <= t_j and slack rows
s_j = G_j u_j. Everything but u is eliminated: block j keeps the small matrix
H_j = X'diag(l_j / s_j)X + (the scaling of its norm), and the blocks meet in the loss only, whose
Hessian enters by Woodbury with one matrix of the size of the samples. Losses other than the
squared one enter through their Hessian at the current outputs.
"""

import math
import time
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from convexnn.duality import DualPoint, dual_point
from convexnn.penalties import AbstractPenalty
from convexnn.problem import Problem
from convexnn.programs import AbstractProgram
from convexnn.result import relative_gap
from convexnn.solvers.blocks import AbstractBlockMap, BlockMap, Image
from convexnn.solvers.cones import Scaling, jordan_divide, jordan_product, longest_ratio, longest_step
from convexnn.solvers.kinks import AbstractLossPart, Kink, first_kink, loss_part
from convexnn.solvers.newton import NewtonSystem

_SHRINK = 0.95  # share of the way to the boundary that a step may go; nearer to it, runs jam
_SHRINK_HINGE = 0.9  # longer steps leave some of its pairs far from the central path, and later steps are tiny

# Where the affine step is cut short mu may grow: with a curved loss it fell ahead of the residuals.
_RECENTRE, _RECENTRE_HINGE = 3.0, 0.8

_NEARLY_FEASIBLE = 2.0  # dual norm, relative to the weight decay, from which on blocks may be given up
_CLEARLY = 0.3
_WORTH_SHRINKING = 0.8  # share of the blocks that is left, for which it pays to copy them


@runtime_checkable
class Penalised(Protocol):
    """What the interior point asks of a program besides its blocks."""

    @property
    def problem(self) -> Problem:
        """Loss and weight decay."""

    @property
    def penalty(self) -> AbstractPenalty:
        """Of each block."""


@dataclass(frozen=True)
class InteriorOptions:
    """When to stop."""

    tol: float = 1e-7  # relative gap of the program restricted to the blocks
    max_steps: int = 100
    deadline: float = math.inf  # of time.perf_counter()
    refinements: int = 1  # of the linear systems of the corrector
    share: float = 0.5  # of the largest sum of norms that can pay off, which a new run starts at


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

    def take(self, keep: Bool[Tensor, " B"]) -> "Iterate":
        """Some of the blocks, where each has one cone."""
        return replace(self, x=self.x[keep], z=self.z[keep], s=self.s[keep], l=self.l[keep])

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
    kept: Int[Tensor, " k"]  # the blocks that were not given up as zero
    iterate: Iterate  # of these, to go on from


@dataclass
class _Best:
    """The best primal and dual points seen so far; blocks that were given up keep their last multipliers."""

    U: Tensor  # B d
    multipliers: Tensor  # B m
    given_up: Tensor  # B m, multipliers
    firm: Tensor  # B, blocks that stay
    objective: float = math.inf
    bias: Tensor | None = None
    dual: DualPoint | None = None
    V: Tensor | None = None

    def gap(self, floor: float) -> float:
        return relative_gap(self.objective, self.dual.bound, floor) if self.dual is not None else math.inf

    def see_primal(self, objective: float, U: Tensor, kept: Tensor, bias: Tensor) -> None:
        if objective < self.objective:
            self.objective, self.bias = objective, bias
            self.U = torch.zeros_like(self.U).index_copy(0, kept, U)

    def see_dual(self, dual: DualPoint, V: Tensor, kept: Tensor, multipliers: Tensor) -> None:
        if self.dual is None or dual.bound > self.dual.bound:
            self.dual, self.V = dual, V
            self.multipliers = self.given_up.index_copy(0, kept, multipliers)


@dataclass(frozen=True)
class _Place:
    """An iterate, the blocks that it has, and what they do."""

    maps: AbstractBlockMap
    kept: Int[Tensor, " k"]
    at: Iterate
    image: Image
    part: AbstractLossPart

    @classmethod
    def of(cls, program: Penalised, maps: AbstractBlockMap, kept: Int[Tensor, " k"], at: Iterate) -> "_Place":
        image = maps.image(at.blocks(maps.shape))
        return cls(maps, kept, at, image, loss_part(program.problem.loss, image.F + at.b, at.kink))


def solve_blocks(
    program: AbstractProgram,
    index: Int[Tensor, " B"],
    options: InteriorOptions = InteriorOptions(),
    resume: Iterate | None = None,
    firm: Bool[Tensor, " B"] | None = None,
) -> InteriorPoint:
    """Solve the program with all but these blocks (flat indices into its shape S K P) held at zero.

    Blocks that go to zero are given up on the way, unless they are ``firm``. ``resume`` is the last
    iterate of an earlier call with the blocks that it kept.
    """
    return solve_map(program, BlockMap.of(program, index), options, resume, firm)


def solve_map(
    program: Penalised,
    maps: AbstractBlockMap,
    options: InteriorOptions = InteriorOptions(),
    resume: Iterate | None = None,
    firm: Bool[Tensor, " B"] | None = None,
) -> InteriorPoint:
    """The same for blocks of any kind."""
    index = torch.arange(len(maps.centre), device=maps.centre.device)
    firm = torch.zeros_like(index, dtype=torch.bool) if firm is None else firm
    at = _start(program, maps, options.share) if resume is None else resume
    place = _Place.of(program, maps, index, at)
    best, floor, n_steps = _Best(torch.zeros_like(maps.centre), at.l, at.l, firm), program.problem.floor(), 0
    for n_steps in range(options.max_steps + 1):
        reached = _judge(program, place, best)
        if best.gap(floor) <= options.tol or n_steps == options.max_steps or time.perf_counter() > options.deadline:
            break
        place = _shrunk(program, place, reached, best)
        moved = _advance(program, place, options.refinements)
        if not moved.interior():
            break
        place = _Place.of(program, place.maps, place.kept, moved)
    assert best.dual is not None
    assert best.V is not None
    assert best.bias is not None
    C = maps.pull(best.V, best.multipliers)
    bound = dual_point(program.problem, best.V, float(program.penalty.dual_norms(C).max())).bound
    gap = relative_gap(best.objective, bound, floor)
    return InteriorPoint(
        best.U, best.bias, best.objective, best.V, best.multipliers, bound, gap, n_steps, place.kept, place.at
    )


def _shrunk(program: Penalised, place: _Place, reached: Float[Tensor, " q"], best: _Best) -> _Place:
    """Without the blocks that go to zero, where they are many.

    A block is given up that is much nearer to zero, relative to the largest, than its dual constraint
    is to being tight: one of the two goes to zero. ``reached`` is the dual norm of each block.
    """
    maps, at, kept, limit = place.maps, place.at, place.kept, program.problem.weight_decay
    if len(at.x) != len(kept) or float(reached.max()) > _NEARLY_FEASIBLE * limit:
        return place
    size = at.x[:, 0] + at.x[:, 1:].norm(dim=1)
    slack = 1 - torch.maximum(reached / limit, at.z[:, 1:].norm(dim=1) / at.z[:, 0])
    keep = best.firm[kept] | (size > _CLEARLY * slack * at.x[:, 0].max())
    if int(keep.sum()) > _WORTH_SHRINKING * len(keep):
        return place
    best.given_up = best.given_up.index_copy(0, kept[~keep], at.l[~keep])
    return _Place.of(program, maps.take(keep), kept[keep], at.take(keep))


def _start(program: Penalised, maps: AbstractBlockMap, share: float) -> Iterate:
    problem, (B, d) = program.problem, maps.shape
    tau = max(_fitting_size(program) / math.sqrt(B), share * _affordable_size(program) / B)
    e = program.penalty.cone_size(d)
    u, bias = 0.5 * tau * maps.centre, problem.constant()
    x = torch.cat([u.new_full((B * d // e, 1), tau), u.reshape(-1, e)], 1)
    z = torch.zeros_like(x)
    z[:, 0] = problem.weight_decay
    image = maps.image(u)
    slack = image.slack
    s = torch.maximum(slack, 0.5 * slack.abs().mean().nan_to_num(1.0).expand_as(slack))
    l = (problem.weight_decay * tau / len(problem.X) / s).clamp(min=1e-300)  # noqa: E741
    return Iterate(x, z, s, l, first_kink(problem.loss, image.F + bias), bias)


def _affordable_size(program: Penalised) -> float:
    """No solution has a larger sum of norms: its penalty would exceed the loss of the constant outputs.

    Starts far below the solution's own size put mu below what infeasible steps need, and these jam.
    """
    problem = program.problem
    loss = problem.loss.value(problem.constant().expand_as(problem.loss.targets))
    return float(loss) / problem.weight_decay


def _fitting_size(program: Penalised) -> float:
    """The norm of a block whose outputs are of the size of the targets, ||y|| for the squared loss."""
    problem = program.problem
    constant = problem.constant().expand_as(problem.loss.targets)
    spread = float(problem.loss.negative_gradient(constant).norm() / problem.loss.weights.norm())
    return max(spread, 1e-150) * math.sqrt(len(problem.X)) / (float(problem.X.norm()) / math.sqrt(problem.n_inputs))


def _judge(program: Penalised, place: _Place, best: _Best) -> Float[Tensor, " q"]:
    """Objective at the feasible point near the iterate, and the bound of its dual variable and multipliers.

    Returns the dual norm of each block's correlation with these.
    """
    problem, maps, at = program.problem, place.maps, place.at
    U = maps.repaired(at.blocks(maps.shape), place.image.slack)
    objective = float(problem.loss.value(maps.forward(U) + at.b) + problem.weight_decay * program.penalty.value(U))
    best.see_primal(objective, U, place.kept, at.b)
    V = problem.admit(place.part.dual())
    norms = program.penalty.dual_norms(maps.pull(V, at.l))
    dual = dual_point(problem, V, float(norms.max()))
    best.see_dual(dual, V, place.kept, at.l)
    return norms


def _advance(program: Penalised, place: _Place, refinements: int) -> Iterate:
    """One predictor-corrector step."""
    at = place.at
    scaling = Scaling.of(at.x, at.z)
    bias = program.problem.output_bias
    system = NewtonSystem.of(place.maps, place.part.linearised(), scaling, at.l / at.s, bias)
    step = _Step(place, system, program.problem.weight_decay)
    affine = step.direction(-at.s * at.l, -scaling.lam, -at.kink.products())
    length = min(1.0, _reach(at, affine))
    mu = at.complementarity()
    accurate = length > 0.1
    left = min(1.0, at.moved(length, affine).complementarity() / mu)
    sigma = max(left**3, 1e-4) if accurate else _RECENTRE_HINGE if len(at.kink.p) else _RECENTRE
    second = 1.0 if accurate else 0.0
    cone = -jordan_product(scaling.lam, scaling.lam)
    cone = cone - second * jordan_product(scaling.apply_inverse(affine.x), scaling.apply(affine.z))
    cone[:, 0] += sigma * mu
    slack = sigma * mu - at.s * at.l - second * affine.s * affine.l
    kink = sigma * mu - at.kink.products() - second * affine.kink.products()
    move = step.direction(slack, jordan_divide(scaling.lam, cone), kink, refinements)
    shrink = _SHRINK_HINGE if len(at.kink.p) else _SHRINK
    return at.moved(min(1.0, shrink * _reach(at, move)), move)


def _reach(at: Iterate, by: Iterate) -> float:
    return min(
        longest_step(torch.cat([at.x, at.z]), torch.cat([by.x, by.z])),
        longest_ratio(at.s, by.s),
        longest_ratio(at.l, by.l),
        longest_ratio(at.kink.p, by.kink.p),
        longest_ratio(at.kink.q, by.kink.q),
    )


@dataclass(frozen=True)
class _Step:
    """The residuals of the optimality conditions at an iterate, and Newton directions from it."""

    place: _Place
    system: NewtonSystem
    weight_decay: float

    @cached_property
    def r_s(self) -> Float[Tensor, "B m"]:
        """What the slacks are short of."""
        return self.place.image.slack - self.place.at.s

    def direction(
        self, slack: Float[Tensor, "B m"], cone: Float[Tensor, "q e"], kink: Float[Tensor, "k 2"], refinements: int = 0
    ) -> Iterate:
        """The direction whose linearised complementarity products are these."""
        at, part, maps, system = self.place.at, self.place.part, self.place.maps, self.system
        scaling, V = system.scaling, part.shifted(kink)
        h = scaling.apply_inverse(cone)
        share = (h[:, :1] - self.weight_decay + at.z[:, :1]) / scaling.head
        dl = slack / at.s - system.weights * self.r_s
        own = at.z[:, 1:] + h[:, 1:] - scaling.cross * share
        right = maps.pull(V, at.l + dl) + own.reshape(maps.shape)
        found, image = system.solve(right, V.sum(0), refinements)
        dx, dz = self._cones(found.du, share, h)
        dkink = part.moved(kink, image.F + found.db, system.linear.right(found.q))
        return Iterate(dx, dz, image.slack + self.r_s, dl - system.weights * image.slack, dkink, found.db)

    def _cones(self, du: Tensor, share: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        scaling = self.system.scaling
        rows = du.reshape(len(h), -1)
        across = (scaling.cross * rows).sum(1, keepdim=True)
        along = (scaling.w1 * rows).sum(1, keepdim=True)
        dt = share - across / scaling.head
        tail = scaling.cross * dt + (rows + 2 * scaling.w1 * along) / scaling.eta**2
        dz = h - torch.cat([scaling.head * dt + across, tail], 1)
        return torch.cat([dt, rows], 1), dz
