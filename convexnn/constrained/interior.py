"""A structured interior point for constrained programs, all blocks at once.

Infeasible-start Mehrotra steps with Nesterov-Todd scaling for ||u_j|| <= t_j, slack rows s_j = G_j u_j of the cones,
and slacks c = b - A f of the constraints with multipliers mu; rows that never have room are equalities with
multipliers nu. Everything but u is eliminated, as in :mod:`convexnn.solvers.interior`; the constraints join the samples
in the one matrix in which blocks meet. Once full steps have been taken the iterates keep strictly to the constraints.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from convexnn.constrained.duality import ConstrainedJudgement, admitted, judge_constrained, scaled_dual
from convexnn.constrained.feasibility import Split
from convexnn.constrained.program import ConstrainedProgram
from convexnn.constrained.system import Heights, RowSystem
from convexnn.programs import ConvexPoint
from convexnn.solvers.blocks import BlockMap, Image
from convexnn.solvers.cones import Scaling, jordan_divide, jordan_product, longest_ratio, longest_step
from convexnn.solvers.kinks import AbstractLossPart, Kink, first_kink, loss_part
from convexnn.solvers.newton import Response

VIOLATION = 1e-9  # of rows of norm one, relative to their limits: what a point may have and still count as feasible
_PATIENCE = 12  # steps without a smaller gap, nearer than this, after which rounding has taken over
_NEAR = 1e-3
_SHRINK, _SHRINK_HINGE = 0.95, 0.9
_RECENTRE, _RECENTRE_HINGE = 3.0, 0.8


@dataclass(frozen=True)
class Iterate:
    """x = (t, u), z in second-order cones; s, l of the cones' rows; c, mu and nu of the constraints; kink, bias."""

    x: Float[Tensor, "B e"]
    z: Float[Tensor, "B e"]
    s: Float[Tensor, "B m"]
    l: Float[Tensor, "B m"]  # noqa: E741
    c: Float[Tensor, " k"]
    mu: Float[Tensor, " k"]
    nu: Float[Tensor, " e"]
    kink: Kink
    b: Float[Tensor, " 1"]

    def pairs(self) -> list[tuple[Tensor, Tensor]]:
        """The positive pairs whose products go to zero."""
        return [(self.s, self.l), (self.c, self.mu), (self.kink.p, self.kink.q)]

    def complementarity(self) -> float:
        """The mean of the products that go to zero."""
        total = float((self.x * self.z).sum()) + sum(float((p * q).sum()) for p, q in self.pairs())
        return total / (len(self.x) + sum(p.numel() for p, _ in self.pairs()))

    def moved(self, step: float, by: "Iterate") -> "Iterate":
        """After a step."""
        kink = Kink(self.kink.p + step * by.kink.p, self.kink.q + step * by.kink.q)
        x, z, s, l, c, mu, nu = (  # noqa: E741
            getattr(self, name) + step * getattr(by, name) for name in ("x", "z", "s", "l", "c", "mu", "nu")
        )
        return Iterate(x, z, s, l, c, mu, nu, kink, self.b + step * by.b)

    def reach(self, by: "Iterate") -> float:
        """The longest step that stays inside."""
        cones = longest_step(torch.cat([self.x, self.z]), torch.cat([by.x, by.z]))
        steps = zip(self.pairs(), by.pairs(), strict=True)
        ratios = [longest_ratio(mine[k], move[k]) for mine, move in steps for k in range(2) if mine[k].numel()]
        return min([cones, *ratios])

    def interior(self) -> bool:
        """Whether everything is finite and the pairs are positive."""
        positive = all(bool((part > 0).all()) for pair in self.pairs() for part in pair)
        return positive and all(bool(torch.isfinite(part).all()) for part in (self.x, self.z, self.b))


@dataclass(frozen=True)
class Targets:
    """What the linearised products of the pairs are to be, and the scaled one of the cones."""

    slack: Float[Tensor, "B m"]
    cone: Float[Tensor, "B e"]
    rows: Float[Tensor, " k"]
    kink: Float[Tensor, "k 2"]


@dataclass(frozen=True)
class _Setting:
    """What stays the same in every step; the rows are those that can have room, then the equalities."""

    program: ConstrainedProgram
    split: Split
    blocks: Int[Tensor, " B"]  # flat indices of those that are not held at zero
    maps: BlockMap
    heights: Heights

    @classmethod
    def of(cls, program: ConstrainedProgram, split: Split, blocks: Int[Tensor, " B"] | None) -> "_Setting":
        S, _, P, _ = program.wide.shape
        blocks = torch.arange(S * P) if blocks is None else blocks
        rows = program.rows.take(torch.cat([split.free, split.equal]))
        soft = torch.cat([rows.b.new_ones(program.n + len(split.free)), rows.b.new_zeros(len(split.equal))])
        maps = BlockMap.of(program.wide, blocks)
        return cls(program, split, blocks, maps, Heights(rows, program.n, soft))

    def pulled(self, V: Float[Tensor, "n 1"], mu: Float[Tensor, " k"]) -> Float[Tensor, "N 1"]:
        """W = (V, 0) - A'mu."""
        return self.heights.adjoint(torch.cat([V, -mu[:, None]]))


@dataclass(frozen=True)
class _Place:
    """A program at an iterate."""

    setting: "_Setting"
    at: Iterate

    @cached_property
    def image(self) -> Image:
        return self.maps.image(self.at.x[:, 1:])

    @cached_property
    def outputs(self) -> Float[Tensor, "N 1"]:
        return self.image.F + self.at.b

    @cached_property
    def part(self) -> AbstractLossPart:
        return loss_part(self.program.problem.loss, self.outputs[: self.program.n], self.at.kink)

    @property
    def program(self) -> ConstrainedProgram:
        return self.setting.program

    @property
    def maps(self) -> BlockMap:
        return self.setting.maps

    @cached_property
    def room(self) -> Float[Tensor, " k"]:
        """b - A f - c: what the slacks of the constraints are short of; of equalities b - A f."""
        rows = self.setting.heights.rows
        return rows.b - rows.A @ self.outputs[:, 0] - torch.cat([self.at.c, torch.zeros_like(self.at.nu)])

    @cached_property
    def system(self) -> RowSystem:
        at, parts = self.at, [self.part.linearised().root[:, 0], (self.at.mu / self.at.c).sqrt()]
        root = torch.cat([*parts, torch.ones_like(at.nu)])[:, None]
        scaling, bias = Scaling.of(at.x, at.z), self.program.problem.output_bias
        return RowSystem.of(self.maps, self.setting.heights, scaling, at.l / at.s, root, with_bias=bias)

    def direction(self, aim: Targets, refinements: int = 0) -> Iterate:
        """The Newton direction whose linearised complementarity products are these."""
        at, system, maps, n = self.at, self.system, self.maps, self.program.n
        scaling, weights, k = system.scaling, at.mu / at.c, len(at.c)
        h = scaling.apply_inverse(aim.cone)
        share = (h[:, :1] - self.program.problem.weight_decay + at.z[:, :1]) / scaling.head
        r_s = self.image.slack - at.s
        dl = aim.slack / at.s - system.weights * r_s
        dmu = aim.rows / at.c - weights * self.room[:k]  # at dF = 0
        W = self.setting.pulled(self.part.shifted(aim.kink), torch.cat([at.mu + dmu, at.nu]))
        right = maps.pull(W, at.l + dl) + at.z[:, 1:] + h[:, 1:] - scaling.cross * share
        short = torch.cat([at.c.new_zeros(n + k), -self.room[k:]])[:, None]  # equalities: A dF = room
        found, image = system.solve(Response(right, short, W.sum(0)), refinements)
        dx, dz = _cones(scaling, found.du, share, h)
        dF, pull = image.F + found.db, system.root * found.q  # the latter is diag(h) T dF
        dmu = dmu + pull[n : n + k, 0]
        # From the side that is the larger: the other one's rounding would grow.
        rows = self.setting.heights.rows
        dc = self.room[:k] - (rows.A @ dF)[:k, 0]
        dc = torch.where(at.mu > at.c, (aim.rows - at.c * dmu) / at.mu, dc)
        dkink = self.part.moved(aim.kink, dF[:n], pull[:n])
        ds = image.slack + r_s
        return Iterate(dx, dz, ds, dl - system.weights * image.slack, dc, dmu, pull[n + k :, 0], dkink, found.db)

    def advance(self, refinements: int) -> Iterate:
        """One predictor-corrector step."""
        at, lam, kinked = self.at, self.system.scaling.lam, len(self.at.kink.p) > 0
        affine = self.direction(Targets(-at.s * at.l, -lam, -at.c * at.mu, -at.kink.products()))
        length, mu = min(1.0, at.reach(affine)), at.complementarity()
        accurate = length > 0.1
        left = min(1.0, at.moved(length, affine).complementarity() / mu)
        sigma = max(left**3, 1e-4) if accurate else _RECENTRE_HINGE if kinked else _RECENTRE
        aim = self._corrected(affine, sigma * mu, 1.0 if accurate else 0.0)
        move = self.direction(aim, refinements)
        return at.moved(min(1.0, (_SHRINK_HINGE if kinked else _SHRINK) * at.reach(move)), move)

    def _corrected(self, affine: Iterate, mu: float, second: float) -> Targets:
        at, scaling = self.at, self.system.scaling
        cone = -jordan_product(scaling.lam, scaling.lam)
        cone = cone - second * jordan_product(scaling.apply_inverse(affine.x), scaling.apply(affine.z))
        cone[:, 0] += mu
        return Targets(
            mu - at.s * at.l - second * affine.s * affine.l,
            jordan_divide(scaling.lam, cone),
            mu - at.c * at.mu - second * affine.c * affine.mu,
            mu - at.kink.products() - second * affine.kink.products(),
        )


def _cones(scaling: Scaling, du: Tensor, share: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    across = (scaling.cross * du).sum(1, keepdim=True)
    along = (scaling.w1 * du).sum(1, keepdim=True)
    dt = share - across / scaling.head
    tail = scaling.cross * dt + (du + 2 * scaling.w1 * along) / scaling.eta**2
    return torch.cat([dt, du], 1), h - torch.cat([scaling.head * dt + across, tail], 1)


@dataclass(frozen=True)
class InteriorLimits:
    """When to stop."""

    tol: float = 1e-6  # relative gap of the program
    max_steps: int = 100
    deadline: float = math.inf  # of time.perf_counter()


def solve_interior(
    program: ConstrainedProgram,
    split: Split,
    limits: InteriorLimits = InteriorLimits(),
    *,
    share: float = 0.5,
    blocks: Int[Tensor, " B"] | None = None,
    see: Callable[[ConstrainedJudgement], None] | None = None,
) -> ConstrainedJudgement:
    """Solve; with ``blocks``, flat indices, all others are held at zero, and the bound is of that program alone.

    ``share`` sets the size of the start, which decides where runs stall. ``see`` is called at every step.
    """
    setting, idle, best = _Setting.of(program, split, blocks), 0, None
    place, floor = _Place(setting, _start(setting, share)), program.problem.floor()
    for step in range(limits.max_steps + 1):
        old, judged = best, _judge(place)
        best = judged if old is None else better(program, old, judged)
        idle = 0 if old is None or best.gap(floor) < 0.9 * old.gap(floor) or best.gap(floor) > _NEAR else idle + 1
        if see is not None:
            see(best)
        if ended(program, best, limits.tol) or idle >= _PATIENCE or time.perf_counter() > limits.deadline:
            break
        moved = place.advance(1) if step < limits.max_steps else place.at
        if step == limits.max_steps or not moved.interior():
            break
        place = _Place(setting, moved)
    assert best is not None
    return best


def ended(program: ConstrainedProgram, best: ConstrainedJudgement, tol: float) -> bool:
    """Whether the point keeps to the constraints and its gap is at most the tolerance."""
    return best.violation <= allowed(program) and best.gap(program.problem.floor()) <= tol


def allowed(program: ConstrainedProgram) -> float:
    """The violation of rows of norm one that counts as none, relative to how large the outputs have to be.

    Targets and negative limits make them large; zero meets every other row, so that a limit of 1e9 that is there to
    limit nothing gives no room to the others.
    """
    return VIOLATION * max(1.0, float(-program.rows.b.min()), float(program.problem.loss.targets.abs().max()))


def _judge(place: _Place) -> ConstrainedJudgement:
    program, at = place.program, place.at
    mu = place.setting.split.joined(at.mu, at.nu)
    S, K, P, d = program.wide.shape
    setting = place.setting
    U = at.x.new_zeros(S * P, d).index_copy(0, setting.blocks, at.x[:, 1:])
    point = ConvexPoint(U.reshape(S, K, P, d), at.b)
    if len(setting.blocks) == S * P:
        multipliers = at.l.reshape(S, K, P, -1) if program.wide.cone is not None else None
        return judge_constrained(program, point, place.part.dual(), mu, multipliers)
    V, mu = admitted(program, place.part.dual(), mu)
    reached = program.wide.penalty.dual_norms(setting.maps.pull(program.pulled(V, mu), at.l))
    judged = judge_constrained(program, point, V, mu)
    return replace(judged, dual=scaled_dual(program, V, mu, float(reached.max())))


def better(program: ConstrainedProgram, old: ConstrainedJudgement, new: ConstrainedJudgement) -> ConstrainedJudgement:
    """The better point of the two, feasible ones first, with the better bound of the two."""
    limit = allowed(program)

    def key(judged: ConstrainedJudgement) -> tuple[float, float]:
        return max(judged.violation, limit), judged.objective

    point = new if key(new) < key(old) else old
    dual = new if new.dual.bound > old.dual.bound else old
    return ConstrainedJudgement(point.point, point.objective, point.violation, dual.dual, dual.multipliers)


def _start(setting: _Setting, share: float) -> Iterate:
    problem, maps, rows = setting.program.problem, setting.maps, setting.heights.rows
    B, d = maps.shape
    constant = problem.constant()
    loss = float(problem.loss.value(constant.expand_as(problem.loss.targets)))
    spread = float(problem.loss.negative_gradient(constant.expand_as(problem.loss.targets)).norm())
    spread = max(spread / float(problem.loss.weights.norm()), 1e-150) * math.sqrt(len(problem.X))
    fitting = spread / max(float(problem.X.norm()) / math.sqrt(d), 1e-150)
    tau = max(fitting / math.sqrt(B), share * loss / problem.weight_decay / B)
    u = 0.5 * tau * maps.centre
    x = torch.cat([u.new_full((B, 1), tau), u], 1)
    z = torch.zeros_like(x)
    z[:, 0] = problem.weight_decay
    image = maps.image(u)
    slack = image.slack
    s = torch.maximum(slack, 0.5 * slack.abs().mean().nan_to_num(1.0).expand_as(slack))
    product = problem.weight_decay * tau / len(problem.X)
    F = image.F + constant
    room, k = rows.b - rows.A @ F[:, 0], len(setting.split.free)
    usual = max(1.0, float(problem.loss.targets.abs().max()), float(-room.min())) if len(room) else 1.0
    c = torch.maximum(room, room.abs().clamp(max=10 * usual).mean().clamp(min=1e-3).expand_as(room))[:k]
    nu, kink = torch.zeros_like(room[k:]), first_kink(problem.loss, F[: setting.program.n])
    return Iterate(x, z, s, (product / s).clamp(min=1e-300), c, product / c, nu, kink, constant)
