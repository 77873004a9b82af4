"""What the point of a first-order method is worth: a feasible point near it, and the bound of its own gradient.

A point whose directions are good already can be far from feasible and badly scaled. Its active
blocks are projected on their cones and their amplitudes chosen anew, a small convex problem; the
gradient there is a dual point, with the multipliers of projections. Both are much better than the
iterate and its multipliers, long before the method has converged.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from convexnn.duality import ProgramJudgement, dual_point, judge_program
from convexnn.losses import AbstractLoss
from convexnn.operators import ConeMap
from convexnn.programs import AbstractProgram, ConvexPoint
from convexnn.projection import project
from convexnn.result import Status
from convexnn.solvers.amplitudes import signed_amplitudes
from convexnn.solvers.answer import ProgramAnswer
from convexnn.solvers.screening import Screen

_LARGEST_PROJECTION = 2e12  # floating-point operations, of all active blocks' Newton steps
_NEWTON_STEPS = 20  # that a projection takes, about
_WIDTH = 1e-2  # of a smoothed kink of the loss, relative to the targets' size
_SHARE = 0.3  # of the room between objective and bound, for the same
_NARROWEST = 1e-6
_MIXTURES = 9
_AMPLITUDE_STEPS = 300
_CHUNK = 128  # blocks that are priced together


@dataclass(frozen=True)
class Dual:
    """A point of the dual with cone multipliers of every block."""

    V: Float[Tensor, "n K"]
    multipliers: Float[Tensor, "N m"]


def repaired(program: AbstractProgram, point: ConvexPoint, room: float = math.inf) -> ConvexPoint:
    """A feasible point with the directions of this one, each moved into its cone, at the best amplitudes.

    A kink of the loss is smoothed less where there is less ``room`` between the best objective and bound.
    """
    shape = program.shape
    flat = point.U.reshape(-1, shape[3])
    active = torch.nonzero(program.penalty.norms(flat) > 0)[:, 0]
    U = _inside(program, flat[active], active)
    norms = program.penalty.norms(U)
    live = norms > 0
    active, U, norms = active[live], U[live], norms[live]
    a, bias = _amplitudes(program, U / norms[:, None], active, norms, point.bias, _smoothed(program.problem.loss, room))
    out = torch.zeros_like(flat)
    out[active] = U * (a / norms)[:, None]
    return ConvexPoint(out.reshape(shape), bias)


def _inside(program: AbstractProgram, U: Float[Tensor, "B d"], index: Int[Tensor, " B"]) -> Float[Tensor, "B d"]:
    """The nearest points of the cones, moved inside by what rounding leaves out of them."""
    cone, patterns = program.cone, index % len(program.patterns)
    if cone is None:
        return U
    own = ConeMap(cone.X, cone.signs[patterns])
    gates = program.patterns.gates[patterns]
    gates = gates / gates.norm(dim=1, keepdim=True)
    if _work(program, len(U)) <= _LARGEST_PROJECTION:
        U = project(own, U, gates)
    return own.repaired(U, gates)


def _amplitudes(
    program: AbstractProgram,
    directions: Float[Tensor, "B d"],
    index: Int[Tensor, " B"],
    start: Float[Tensor, " B"],
    bias: Float[Tensor, " K"],
    loss: AbstractLoss,
) -> tuple[Float[Tensor, " B"], Float[Tensor, " K"]]:
    """min L(sum_j a_j f_j + b) + weight_decay sum a over a >= 0, f_j the outputs of blocks of norm one."""
    problem, (_, K, P, _) = program.problem, program.shape
    sign = program.sign_column[index // (K * P), 0, 0]
    features = sign * program.gated.mask[index % P] * (directions @ problem.X.T)  # B n
    if K > 1:
        return _coupled_amplitudes(features, (index // P) % K, program, start, bias)
    b = bias if problem.output_bias else None
    a, b = signed_amplitudes(features.T.contiguous(), loss, problem.weight_decay, start, b)
    return a, bias if b is None else b


def _smoothed(loss: AbstractLoss, room: float) -> AbstractLoss:
    """The loss with its kink smoothed by a share of the targets' size, and of the room that is left."""
    widest = _WIDTH * float(loss.targets.abs().mean())
    return loss.smoothed(max(min(widest, _SHARE * room), _NARROWEST * widest))


def _coupled_amplitudes(
    features: Float[Tensor, "B n"],
    outputs: Int[Tensor, " B"],
    program: AbstractProgram,
    a: Float[Tensor, " B"],
    b: Float[Tensor, " K"],
) -> tuple[Float[Tensor, " B"], Float[Tensor, " K"]]:
    """Several outputs: FISTA with restart; only features of one output meet in the curvature."""
    problem = program.problem
    loss, n_outputs = problem.loss, len(b)
    which = torch.nn.functional.one_hot(outputs, n_outputs).to(features)
    weighted = features * loss.weights.sqrt()
    gram = (weighted @ weighted.T) * (which @ which.T)
    size = float(torch.linalg.eigvalsh(gram)[-1]) if len(features) else 0.0
    step = 1.0 / max(1.01 * loss.largest_curvature * (size + problem.output_bias), 1e-300)
    ahead, ahead_b, t = a, b, 1.0
    for _ in range(_AMPLITUDE_STEPS):
        V = loss.negative_gradient(features.T @ (ahead[:, None] * which) + ahead_b)
        rise = ((features @ V) * which).sum(1) - problem.weight_decay
        new = (ahead + step * rise).clamp(min=0.0)
        new_b = ahead_b + step * V.sum(0) if problem.output_bias else b
        uphill = float(((ahead - new) * (new - a)).sum() + ((ahead_b - new_b) * (new_b - b)).sum()) > 0
        t_next = 1.0 if uphill else 0.5 * (1 + (1 + 4 * t * t) ** 0.5)
        push = 0.0 if uphill else (t - 1) / t_next
        ahead, ahead_b = new + push * (new - a), new_b + push * (new_b - b)
        a, b, t = new, new_b, t_next
    return a, b


def own_dual(program: AbstractProgram, point: ConvexPoint, room: float = math.inf) -> Float[Tensor, "n K"]:
    """Minus the gradient at the point; of a loss with a kink, smoothed as for the amplitudes."""
    return program.problem.admit(_smoothed(program.problem.loss, room).negative_gradient(program.output(point)))


def priced(
    program: AbstractProgram, V: Float[Tensor, "n K"], screen: Screen, accuracy: float, wanted: int
) -> tuple[Dual, Float[Tensor, " N"]]:
    """V with the multipliers of projections, and lower bounds of what each block that violates V reaches.

    Ends early where there are as many violators as wanted: the bound is poor then in any case.
    """
    C = program.correlations(V).reshape(len(screen), -1)
    limit = program.problem.weight_decay
    if _work(program, len(C)) > _LARGEST_PROJECTION:
        return Dual(V, screen.multipliers.clone()), torch.zeros_like(C[:, 0])
    every = torch.ones_like(C[:, 0], dtype=torch.bool)
    lower = screen.lower(C, every, limit, wanted=wanted, chunk=_CHUNK, accuracy=accuracy)
    return Dual(V, screen.multipliers.clone()), torch.where(lower > limit, lower, 0.0)


def _work(program: AbstractProgram, n_blocks: int) -> float:
    """Floating-point operations of projecting so many blocks, about."""
    cone = program.cone
    return 0.0 if cone is None else 2.0 * _NEWTON_STEPS * n_blocks * cone.X.shape[0] * cone.X.shape[1] ** 2


def best_mixture(program: AbstractProgram, first: Dual, second: Dual) -> Dual:
    """The point between two duals with the highest bound: correlations and multipliers are mixed alike."""
    problem = program.problem
    ends = [_pull(program, dual) for dual in (first, second)]
    best, bound = first, -float("inf")
    for share in torch.linspace(0.0, 1.0, _MIXTURES).tolist():
        V = (1 - share) * first.V + share * second.V
        largest = float(program.penalty.dual_norms((1 - share) * ends[0] + share * ends[1]).max())
        found = dual_point(problem, V, largest).bound
        if found > bound:
            held = (1 - share) * first.multipliers + share * second.multipliers
            best, bound = Dual(V, held), found
    return best


def _pull(program: AbstractProgram, dual: Dual) -> Float[Tensor, "N d"]:
    C = program.correlations(dual.V)
    if program.cone is not None:
        C = C + program.cone.adjoint(dual.multipliers.clamp(min=0.0).reshape(*C.shape[:3], -1))
    return C.reshape(-1, C.shape[3])


def judged(program: AbstractProgram, point: ConvexPoint, dual: Dual, raw: ConvexPoint) -> ProgramAnswer:
    """Objective and bound, by the judge of every solver."""
    held = None if program.cone is None else dual.multipliers.reshape(*program.shape[:3], -1)
    judgement: ProgramJudgement = judge_program(program, point, dual.V, held)
    return ProgramAnswer(judgement, dual.V, held, Status.STALLED, 0, raw=raw)
