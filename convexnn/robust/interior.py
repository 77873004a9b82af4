"""A structured interior point for some blocks of a robust program, hard or soft, any of its losses and balls.

Infeasible-start Mehrotra steps with Nesterov-Todd scaling of the group norms. A start inside the cones was
tried: they are narrow, and from near their boundary runs crawl. Every iterate gives a feasible network,
by a move along the directions of the patterns, and its multipliers, made feasible, a bound.
"""

import math
import time
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from convexnn.programs import ConvexPoint
from convexnn.result import relative_gap
from convexnn.robust.blocks import RobustBlocks, Rows, Variables
from convexnn.robust.duality import RobustDual, admitted, at_best_scale
from convexnn.robust.program import AbstractRobustProgram, Outputs, worst_outputs
from convexnn.robust.system import ReducedSystem, Weights
from convexnn.solvers.cones import Scaling, jordan_divide, jordan_product, longest_ratio, longest_steps

_SHRINK = (
    0.9  # of the way to the boundary; longer steps leave some products far from the others, and later steps are tiny
)
_SHORT = 0.1  # predictor steps below this are followed by one that only centres
_FIRST_MULTIPLIER = 0.3  # relative to a sample's weight in the loss
_FIRST_PRICE = 10.0  # relative to the weight decay; neither matters by more than a tenth of the steps
_NEARLY_FEASIBLE = 2.0  # dual norm, relative to the weight decay, from which on blocks may be given up
_CLEARLY = 0.3
_WORTH_SHRINKING = 0.8  # share of the blocks that is left, for which it pays to copy them
_CONES = 0.1  # of the complementarity that the cones take; near their boundary, which is curved, steps are short
_CORRECTIONS = 3
_LONG = 0.9  # steps that need no correction
_LONGER = 0.3  # by how much a correction tries to lengthen them
_WORTH = 0.1  # share of that which makes it worth while
_PRODUCTS = (0.1, 10.0)  # of slacks and multipliers, relative to the aim, that a correction leaves as they are
_STALLED = 8  # steps in a row that improve nothing


@dataclass(frozen=True)
class InteriorOptions:
    """When to stop."""

    tol: float = 1e-7  # relative gap of the program restricted to the blocks
    max_steps: int = 100
    deadline: float = math.inf  # of time.perf_counter()


@dataclass(frozen=True)
class Solved:
    """The best point and the best dual point seen."""

    u: Float[Tensor, "B d"]
    bias: Float[Tensor, " 1"]
    objective: float
    dual: RobustDual  # without multipliers of blocks
    multipliers: Float[Tensor, "B n"]
    bound: float  # of the blocks that were kept alone
    n_steps: int
    kept: Int[Tensor, " k"]  # the blocks that were not given up as zero

    def gap(self, floor: float) -> float:
        """Relative, of the program with these blocks."""
        return relative_gap(self.objective, self.bound, floor)


@dataclass(frozen=True)
class _Iterate:
    """A point, positive slacks, which become those of the point, and positive multipliers of them."""

    x: Variables
    s: Float[Tensor, " N"]
    cones: Float[Tensor, "c e"]
    z: Float[Tensor, " N"]
    duals: Float[Tensor, "c e"]

    def take(self, blocks: RobustBlocks, keep: Bool[Tensor, " B"]) -> "_Iterate":
        """Of some of the blocks."""
        pairs = blocks.pairs(keep[:, None].expand_as(blocks.mask))
        cones = torch.ones(len(self.cones), dtype=torch.bool, device=keep.device)
        cones[: len(keep)] = keep
        if blocks.reach.conic:
            cones[len(keep) : 2 * len(keep)] = keep
        s, z = (blocks.views(part).take(keep, pairs).flat() for part in (self.s, self.z))
        return _Iterate(self.x.take(keep, pairs), s, self.cones[cones], z, self.duals[cones])

    def complementarity(self) -> float:
        total = torch.dot(self.s, self.z) + (self.cones * self.duals).sum()
        return float(total) / self.count

    @property
    def barrier(self) -> float:
        """How many times the others' the products of the cones are on the central path."""
        return max(1.0, _CONES * len(self.s) / max(1, len(self.cones)))

    @property
    def count(self) -> float:
        """Products that go to zero, those of cones as often as they are larger."""
        return len(self.s) + self.barrier * len(self.cones)


@dataclass(frozen=True)
class _Move:
    dx: Variables
    ds: Float[Tensor, " N"]
    dcones: Float[Tensor, "c e"]
    dz: Float[Tensor, " N"]
    dduals: Float[Tensor, "c e"]


@dataclass
class _Run:
    """Where a run is, and the best that it has seen; blocks that were given up keep their last multipliers."""

    blocks: RobustBlocks
    at: _Iterate
    kept: Int[Tensor, " k"]
    firm: Bool[Tensor, " B"]  # blocks that stay
    multipliers: Float[Tensor, "B n"]
    best: Solved | None = None
    idle: int = 0

    def see(self, seen: Solved) -> None:
        """``seen`` has the blocks that are kept."""
        multipliers = self.multipliers.index_copy(0, self.kept, seen.multipliers)
        u = torch.zeros_like(multipliers[:, :1]).expand(-1, seen.u.shape[1]).index_copy(0, self.kept, seen.u)
        seen = replace(seen, u=u, multipliers=multipliers, kept=self.kept)
        old = self.best or seen
        better = seen.objective < old.objective, seen.bound > old.bound
        self.idle = 0 if self.best is None or any(better) else self.idle + 1
        primal, dual = seen if better[0] else old, seen if better[1] else old
        self.best = replace(seen, u=primal.u, bias=primal.bias, objective=primal.objective)
        self.best = replace(self.best, dual=dual.dual, multipliers=dual.multipliers, bound=dual.bound)


def solve_blocks(
    program: AbstractRobustProgram,
    index: Int[Tensor, " B"],
    options: InteriorOptions = InteriorOptions(),
    firm: Bool[Tensor, " B"] | None = None,
) -> Solved:
    """Solve the program with all but these blocks (flat indices into its shape 2, P) held at zero.

    Blocks that go to zero are given up on the way, unless they are ``firm``.
    """
    blocks = RobustBlocks.of(program, index)
    firm = torch.zeros_like(index, dtype=torch.bool) if firm is None else firm
    run = _Run(blocks, _start(blocks), torch.arange(len(index)), firm, torch.zeros_like(blocks.mask))
    far = float(program.problem.loss.value(program.output(program.zero())))
    for n_steps in range(options.max_steps + 1):
        last = n_steps == options.max_steps or time.perf_counter() > options.deadline
        if last or run.best is not None or run.at.complementarity() * run.at.count < far:
            seen, reached = _judged(run.blocks, run.at, n_steps)
            run.see(seen)
            assert run.best is not None
            if last or run.best.gap(program.problem.floor()) <= options.tol or run.idle > _STALLED:
                break
            _shrink(run, reached)
        moved = _advanced(run.blocks, run.at)
        if not _interior(moved):
            break
        run.at = moved
    if run.best is None:
        run.see(_judged(run.blocks, run.at, n_steps)[0])
    assert run.best is not None
    return run.best


def _shrink(run: _Run, reached: Float[Tensor, " k"]) -> None:
    """Give up the blocks that go to zero, where they are many.

    Those are much nearer to zero, relative to the largest, than their dual constraint is to being tight: one of
    the two goes to zero. ``reached`` is what each block can reach at the dual point, relative to the weight decay.
    """
    if float(reached.max()) > _NEARLY_FEASIBLE:
        return
    blocks, at, B = run.blocks, run.at, len(run.blocks)
    groups = at.duals[:B]
    slack = 1 - torch.maximum(reached, groups[:, 1:].norm(dim=1) / groups[:, 0])
    size = at.x.t + at.x.u.norm(dim=1)
    keep = run.firm[run.kept] | (size > _CLEARLY * slack * size.max()) | (size == size.max())
    if int(keep.sum()) > _WORTH_SHRINKING * B:
        return
    rows = blocks.views(at.z)
    run.multipliers = run.multipliers.index_copy(0, run.kept, blocks.dense(rows.pairs))
    run.blocks, run.at, run.kept = blocks.take(keep), at.take(blocks, keep), run.kept[keep]


def _interior(at: _Iterate) -> bool:
    finite = all(bool(torch.isfinite(part).all()) for part in (at.s, at.z, at.cones, at.duals))
    return finite and bool((at.s > 0).all()) and bool((at.z > 0).all())


def _start(blocks: RobustBlocks) -> _Iterate:
    """No weights; slacks as large as the targets, multipliers of rows as large as the slope of a sample's loss."""
    problem, B, like = blocks.program.problem, len(blocks), blocks.X
    g, p = len(blocks.shared), 0 if blocks.harmful is None else len(blocks.harmful)
    extra, bias = blocks.reach.extra, problem.constant() if problem.output_bias else like.new_zeros(0)
    u, y, w = torch.zeros_like(blocks.centre), like.new_zeros((B, extra)), like.new_zeros((g, extra))
    x = Variables(u, y, w, bias, u[:, 0], like.new_zeros(p), like.new_zeros(blocks.levels))
    size, weight = float(problem.loss.targets.abs().mean()), float(problem.loss.weights.mean())
    if not blocks.program.margin_loss:  # whose slope grows with the residual
        weight = weight * max(size, 1e-12)
    s, cones = torch.full((blocks.n_rows,), max(size, 1e-12)).to(like), torch.zeros_like(blocks.cones(x))
    duals = torch.zeros_like(cones)
    cones[:, 0], duals[:, 0] = max(size, 1e-12), weight
    duals[:B, 0] = _FIRST_PRICE * problem.weight_decay
    return _Iterate(x, s, cones, _FIRST_MULTIPLIER * weight * torch.ones_like(s), duals)


def _margin_weights(blocks: RobustBlocks, x: Variables) -> tuple[Tensor | None, Tensor]:
    """Of the logistic loss: minus its slope at each margin; and its curvature there. Of the others: of the level."""
    c = blocks.program.problem.loss.weights
    if blocks.levels:
        return None, c
    p = torch.sigmoid(-blocks.margins(x))
    return c * p, (c * p * (1 - p))[0]


def _advanced(blocks: RobustBlocks, at: _Iterate) -> _Iterate:
    """One predictor-corrector step."""
    scaling = Scaling.of(at.cones, at.duals)
    force, curvature = _margin_weights(blocks, at.x)
    system = ReducedSystem.of(blocks, Weights(blocks.views(at.z / at.s), scaling, curvature))
    newton = _Newton(blocks, at, scaling, system, force)
    affine = newton.direction(torch.zeros_like(at.s), -jordan_product(scaling.lam, scaling.lam), refine=False)
    primal, dual = _lengths(blocks, at, affine, 1.0)
    mu = at.complementarity()
    left = _moved(at, affine, primal, dual).complementarity() / mu
    accurate = min(primal, dual) > _SHORT
    sigma = min(max(left**3, 1e-4), 1.0) if accurate else 0.5
    second = 1.0 if accurate else 0.0
    cone = -jordan_product(scaling.lam, scaling.lam)
    cone = cone - second * jordan_product(scaling.apply_inverse(affine.dcones), scaling.apply(affine.dduals))
    cone[:, 0] += sigma * mu * at.barrier
    move = _centred(newton, sigma * mu - second * affine.ds * affine.dz, cone, sigma * mu)
    primal, dual = _lengths(blocks, at, move, _SHRINK)
    return _moved(at, move, primal, dual)


def _centred(newton: "_Newton", target: Float[Tensor, " N"], cone: Float[Tensor, "c e"], mu: float) -> _Move:
    """The direction, corrected while products far from ``mu`` keep its steps short (Gondzio 1996).

    A correction is one more solution with the same factor, which costs little where there are many blocks.
    """
    blocks, at = newton.blocks, newton.at
    move = newton.direction(target, cone, refine=True)
    primal, dual = _lengths(blocks, at, move, 1.0)
    for _ in range(_CORRECTIONS):
        if min(primal, dual) > _LONG:
            break
        longer = min(1.0, primal + _LONGER), min(1.0, dual + _LONGER)
        product = (at.s + longer[0] * move.ds) * (at.z + longer[1] * move.dz)
        wanted = product.clamp(_PRODUCTS[0] * mu, _PRODUCTS[1] * mu) - product
        target = target + wanted.clamp(min=-_PRODUCTS[1] * mu)
        trial = newton.direction(target, cone, refine=True)
        further = _lengths(blocks, at, trial, 1.0)
        if sum(further) < primal + dual + _WORTH * _LONGER:
            break
        move, (primal, dual) = trial, further
    return move


@dataclass(frozen=True)
class _Newton:
    """Newton directions from an iterate."""

    blocks: RobustBlocks
    at: _Iterate
    scaling: Scaling
    system: ReducedSystem
    force: Float[Tensor, "q n"] | None

    def direction(self, target: Float[Tensor, " N"], cone: Float[Tensor, "c e"], *, refine: bool) -> _Move:
        """The direction whose linearised products of slacks and multipliers are these."""
        blocks, at, scaling = self.blocks, self.at, self.scaling
        # The multipliers after a full step, but for what x changes in the slacks.
        aim = target / at.s - at.z / at.s * self.missing
        h = scaling.apply_inverse(jordan_divide(scaling.lam, cone))
        h = h - scaling.apply_inverse(scaling.apply_inverse(self.missing_cones))
        right = blocks.pull(blocks.views(aim), at.duals + h, self.force)
        right = right.combine(_gradient(blocks, at.x), torch.sub)
        dx = self.system.solve(right, refine=refine)
        ds, dcones = blocks.rows(dx).flat(), blocks.cones(dx)
        dz = aim - at.z - at.z / at.s * ds
        dduals = h - scaling.apply_inverse(scaling.apply_inverse(dcones))
        return _Move(dx, ds + self.missing, dcones + self.missing_cones, dz, dduals)

    @cached_property
    def missing(self) -> Float[Tensor, " N"]:
        """What the slacks are short of."""
        return self.blocks.rows(self.at.x).flat() + self.blocks.constant - self.at.s

    @cached_property
    def missing_cones(self) -> Float[Tensor, "c e"]:
        """The same of the cones."""
        return self.blocks.cones(self.at.x) - self.at.cones


def _gradient(blocks: RobustBlocks, x: Variables) -> Variables:
    """Of the objective, but for the margins of the logistic loss."""
    zero = Variables(*(torch.zeros_like(part) for part in x.parts()))
    problem = blocks.program.problem
    c = problem.loss.weights
    level = x.level if not blocks.levels else (c if blocks.program.margin_loss else c * x.level)
    return replace(zero, t=torch.full_like(x.t, problem.weight_decay), level=level)


def _lengths(blocks: RobustBlocks, at: _Iterate, move: _Move, shrink: float) -> tuple[float, float]:
    """How far primal and dual may go; equally far where the objective is curved."""
    conic = longest_steps(torch.cat([at.cones, at.duals]), torch.cat([move.dcones, move.dduals]))
    primal, dual = (float(part.min()) for part in conic.chunk(2))
    primal, dual = min(primal, longest_ratio(at.s, move.ds)), min(dual, longest_ratio(at.z, move.dz))
    if blocks.program.problem.loss.name != "hinge":
        primal = dual = min(primal, dual)
    return min(1.0, shrink * primal), min(1.0, shrink * dual)


def _moved(at: _Iterate, move: _Move, primal: float, dual: float) -> _Iterate:
    return _Iterate(
        at.x.moved(primal, move.dx),
        at.s + primal * move.ds,
        at.cones + primal * move.dcones,
        at.z + dual * move.dz,
        at.duals + dual * move.dduals,
    )


def _judged(blocks: RobustBlocks, at: _Iterate, n_steps: int) -> tuple[Solved, Float[Tensor, " B"]]:
    """The exact objective of the point and the bound of its multipliers, for these blocks; what each block reaches."""
    program = blocks.program
    u, bias = _repaired(blocks, at.x.u), at.x.bias if len(at.x.bias) else at.x.u.new_zeros(1)
    objective = _objective(blocks, u, bias)
    rows = blocks.views(at.z)
    dual = admitted(program, _dual(blocks, at, rows))
    alpha = blocks.dense(rows.pairs)
    if program.soft:
        alpha = torch.minimum(alpha, torch.where(blocks.signs[:, None] > 0, dual.above, dual.below))
    reached = _norms(blocks, dual, alpha) / program.problem.weight_decay
    limit = 1 / float(reached.max()) if float(reached.max()) > 0 else 1e300
    scaled, bound = at_best_scale(program, dual, limit)
    ratio = float(scaled.total.sum() / dual.total.sum().clamp(min=1e-300))
    kept = torch.arange(len(blocks))
    return Solved(u, bias, objective, scaled, ratio * alpha, bound, n_steps, kept), reached


def _repaired(blocks: RobustBlocks, u: Float[Tensor, "B d"]) -> Float[Tensor, "B d"]:
    """The nearest points u + t g inside hard cones."""
    if blocks.program.soft:
        return u
    short = (-blocks.slack(u) / blocks.inside).amax(1).clamp(min=0.0)
    return u + short[:, None] * blocks.centre


def _objective(blocks: RobustBlocks, u: Tensor, bias: Tensor) -> float:
    program = blocks.program
    z = blocks.slopes(u)
    f = (blocks.X * z[blocks.group]).sum(1) + bias
    reach = program.ball.support(z)[blocks.group]
    low, high = f - reach, f + reach
    if program.soft:
        excess = (-blocks.slack(u)).clamp(min=0.0)
        plus = (blocks.signs > 0).to(u)
        low, high = low - (1 - plus) @ excess, high + plus @ excess
    F = worst_outputs(program.problem.loss.targets, Outputs(low, high), margin=program.margin_loss)
    return float(program.problem.loss.value(F) + program.problem.weight_decay * u.norm(dim=1).sum())


def _dual(blocks: RobustBlocks, at: _Iterate, rows: Rows) -> RobustDual:
    """The weights of the margins, and mu = minus what the joint reaches pull at the slopes, per unit of weight."""
    force, _ = _margin_weights(blocks, at.x)
    weights = rows.loss.reshape(blocks.ends.shape) if force is None else force
    if blocks.program.margin_loss:
        up = blocks.program.targets > 0
        below, above = torch.where(up, weights[0], 0.0), torch.where(up, 0.0, weights[0])
    else:
        below, above = weights
    if blocks.reach.conic:
        pull, _ = blocks.reach.pull_cones(blocks.parted(at.duals)[2])
    else:
        pull, _ = blocks.reach.pull(rows.joint)
    total = torch.zeros_like(pull[:, 0]).index_add(0, blocks.group, below + above)
    worst = (-pull / total[:, None].clamp(min=1e-300))[blocks.group]
    return RobustDual(below, above, worst, blocks.X.new_zeros((2, 0, len(blocks.X))))


def _norms(blocks: RobustBlocks, dual: RobustDual, alpha: Float[Tensor, "B n"]) -> Float[Tensor, " B"]:
    """dist(c + X'(2D - I) a, (1'a) * ball) of each block."""
    rows = dual.net[:, None] * blocks.X - dual.total[:, None] * dual.worst
    pulled = (blocks.signs[:, None] * blocks.mask) @ rows + (blocks.sides * alpha) @ blocks.X
    return (pulled - blocks.program.ball.project(pulled, alpha.sum(1))).norm(dim=1)


def point_of(program: AbstractRobustProgram, index: Int[Tensor, " B"], found: Solved) -> ConvexPoint:
    """The program's point with these blocks."""
    S, P, d = program.shape
    U = program.problem.X.new_zeros((S * P, d)).index_copy(0, index, found.u)
    return ConvexPoint(U.reshape(S, 1, P, d), found.bias)
