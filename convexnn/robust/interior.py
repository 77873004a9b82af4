"""A structured interior point for some blocks of a robust program, hard or soft, any of its losses and balls.

Infeasible-start Mehrotra steps with Nesterov-Todd scaling of the group norms. A start inside the cones was
tried: they are narrow, and from near their boundary runs crawl.
"""

import math
import time
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from convexnn.programs import ConvexPoint
from convexnn.robust.blocks import RobustBlocks, Variables
from convexnn.robust.iterates import Iterate, Solved, first_iterate, judged, margin_weights
from convexnn.robust.program import AbstractRobustProgram
from convexnn.robust.system import ReducedSystem, Weights
from convexnn.solvers.cones import Scaling, jordan_divide, jordan_product, longest_ratio, longest_steps

_SHRINK = (
    0.9  # of the way to the boundary; longer steps leave some products far from the others, and later steps are tiny
)
_SHORT = 0.1  # predictor steps below this are followed by one that only centres
_NEARLY_FEASIBLE = 2.0  # dual norm, relative to the weight decay, from which on blocks may be given up
_CLEARLY = 0.3
_WORTH_SHRINKING = 0.8  # share of the blocks that is left, for which it pays to copy them
_CORRECTIONS = (1, 3)  # of steps with few columns, which cost no more than their corrections, and with many
_MANY = 1000  # columns
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
    at: Iterate
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
    run = _Run(blocks, first_iterate(blocks), torch.arange(len(index)), firm, torch.zeros_like(blocks.mask))
    far = float(program.problem.loss.value(program.output(program.zero())))
    for n_steps in range(options.max_steps + 1):
        last = n_steps == options.max_steps or time.perf_counter() > options.deadline
        if last or run.best is not None or run.at.complementarity() * run.at.count < far:
            seen, reached = judged(run.blocks, run.at, n_steps)
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
        run.see(judged(run.blocks, run.at, n_steps)[0])
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


def _interior(at: Iterate) -> bool:
    finite = all(bool(torch.isfinite(part).all()) for part in (at.s, at.z, at.cones, at.duals))
    return finite and bool((at.s > 0).all()) and bool((at.z > 0).all())


def _advanced(blocks: RobustBlocks, at: Iterate) -> Iterate:
    """One predictor-corrector step."""
    scaling = Scaling.of(at.cones, at.duals)
    force, curvature = margin_weights(blocks, at.x)
    system = ReducedSystem.of(blocks, Weights(blocks.views(at.z / at.s), scaling, curvature))
    newton = _Newton(blocks, at, scaling, system, force)
    affine = newton.direction(torch.zeros_like(at.s), -jordan_product(scaling.lam, scaling.lam), refine=False)
    primal, dual = (min(1.0, length) for length in _lengths(blocks, at, affine))
    mu = at.complementarity()
    left = _moved(at, affine, primal, dual).complementarity() / mu
    accurate = min(primal, dual) > _SHORT
    sigma = min(max(left**3, 1e-4), 1.0) if accurate else 0.5
    second = 1.0 if accurate else 0.0
    cone = -jordan_product(scaling.lam, scaling.lam)
    cone = cone - second * jordan_product(scaling.apply_inverse(affine.dcones), scaling.apply(affine.dduals))
    cone[:, 0] += sigma * mu * at.barrier
    move, lengths = _centred(newton, sigma * mu - second * affine.ds * affine.dz, cone, sigma * mu)
    return _moved(at, move, *(min(1.0, _SHRINK * length) for length in lengths))


def _centred(
    newton: "_Newton", target: Float[Tensor, " N"], cone: Float[Tensor, "c e"], mu: float
) -> tuple[_Move, tuple[float, float]]:
    """The direction, corrected while products far from ``mu`` keep its steps short (Gondzio 1996), and its lengths.

    A correction is one more solution with the same factor, which costs little where there are many columns.
    """
    blocks, at = newton.blocks, newton.at
    move = newton.direction(target, cone, refine=True)
    lengths = _lengths(blocks, at, move)
    for _ in range(_CORRECTIONS[newton.at.x.u.numel() > _MANY]):
        primal, dual = (min(1.0, length) for length in lengths)
        if min(primal, dual) > _LONG:
            break
        longer = min(1.0, primal + _LONGER), min(1.0, dual + _LONGER)
        product = (at.s + longer[0] * move.ds) * (at.z + longer[1] * move.dz)
        wanted = product.clamp(_PRODUCTS[0] * mu, _PRODUCTS[1] * mu) - product
        target = target + wanted.clamp(min=-_PRODUCTS[1] * mu)
        trial = newton.direction(target, cone, refine=True)
        further = _lengths(blocks, at, trial)
        if sum(min(1.0, length) for length in further) < primal + dual + _WORTH * _LONGER:
            break
        move, lengths = trial, further
    return move, lengths


@dataclass(frozen=True)
class _Newton:
    """Newton directions from an iterate."""

    blocks: RobustBlocks
    at: Iterate
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


def _lengths(blocks: RobustBlocks, at: Iterate, move: _Move) -> tuple[float, float]:
    """How far primal and dual could go; equally far where the objective is curved."""
    conic = longest_steps(torch.cat([at.cones, at.duals]), torch.cat([move.dcones, move.dduals]))
    primal, dual = (float(part.min()) for part in conic.chunk(2))
    primal, dual = min(primal, longest_ratio(at.s, move.ds)), min(dual, longest_ratio(at.z, move.dz))
    if blocks.program.problem.loss.name != "hinge":
        primal = dual = min(primal, dual)
    return primal, dual


def _moved(at: Iterate, move: _Move, primal: float, dual: float) -> Iterate:
    return Iterate(
        at.x.moved(primal, move.dx),
        at.s + primal * move.ds,
        at.cones + primal * move.dcones,
        at.z + dual * move.dz,
        at.duals + dual * move.dduals,
    )


def point_of(program: AbstractRobustProgram, index: Int[Tensor, " B"], found: Solved) -> ConvexPoint:
    """The program's point with these blocks."""
    S, P, d = program.shape
    U = program.problem.X.new_zeros((S * P, d)).index_copy(0, index, found.u)
    return ConvexPoint(U.reshape(S, 1, P, d), found.bias)
