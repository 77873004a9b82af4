"""ADMM with an exact, closed-form step, for every loss, penalty and program.

min over U, b of L(c) + weight_decay ||A|| + [B >= 0] with the copies A = U, B = G U and c = F U + b
(the splitting of Bai, Gautam & Sojoudi 2022, with a copy for the loss). The step in U solves
(I + g^2 G'G + d^2 F'F) U = right. (2D - I)^2 = I makes G'G the same matrix X'X for every pattern, and
F (I + g^2 G'G)^-1 F' = K o (D D') elementwise, K = X (I + g^2 X'X)^-1 X'. So by Woodbury one matrix of
the size of the samples is factorised, once, however many patterns there are; it does not depend on
the step size rho, which adapts. For many samples conjugate gradients replace the factor; the block
descent of the source can, too, as a baseline. Everything else is dense products.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from convexnn.errors import InvalidInputError
from convexnn.problem import Problem
from convexnn.programs import AbstractProgram, ConvexPoint
from convexnn.solvers.block_descent import BlockDescent

_LARGEST_FACTOR = 2**32  # bytes; beyond it the samples' system is solved by conjugate gradients
_BALANCE = 25  # steps between two looks at the step size, at first
_SETTLING = 400  # steps after which that number doubles, and again each time the steps have doubled
_CG_STEPS = 200
_CG_ACCURACY = 1e-8  # relative; looser solves cost more steps than they save


@dataclass(frozen=True)
class ADMMOptions:
    """Settings that rarely need a change."""

    linear: str = "auto"  # "factor", "cg", or one of the two by size; "blocks" is the source's baseline
    relaxation: float = 1.6

    def __post_init__(self) -> None:
        if self.linear not in ("auto", "factor", "cg", "blocks"):
            raise InvalidInputError(f"linear={self.linear!r}; 'auto', 'factor', 'cg' or 'blocks' is expected.")


@dataclass(frozen=True)
class Copies:
    """A point, or a multiplier, of the split variables."""

    A: Float[Tensor, "S K P d"]
    B: Float[Tensor, "S K P m"]
    c: Float[Tensor, "n K"]

    def plus(self, scale: float, other: "Copies") -> "Copies":
        """This plus a multiple of the other."""
        return Copies(self.A + scale * other.A, self.B + scale * other.B, self.c + scale * other.c)

    def norm(self, weights: tuple[float, float]) -> float:
        """With the weights of the second and third block."""
        parts = (self.A, weights[0] * self.B, weights[1] * self.c)
        return math.sqrt(sum(float(part.double().norm()) ** 2 for part in parts))


@dataclass(frozen=True)
class ADMMState:
    """Changes in every step; the multipliers are scaled by rho."""

    U: Float[Tensor, "S K P d"]
    b: Float[Tensor, " K"]
    copies: Copies
    multipliers: Copies
    rho: float
    q: Float[Tensor, "n K"]  # last solution of the samples' system, where conjugate gradients start
    n_steps: int

    def on(self, old: Int[Tensor, " p"], new: Int[Tensor, " q"]) -> "ADMMState":
        """The state on other patterns: those that were not there before are zero."""
        known = torch.isin(new, old)
        place = torch.searchsorted(old, new[known])

        def moved(part: Tensor) -> Tensor:
            out = part.new_zeros((*part.shape[:2], len(new), part.shape[3]))
            out[:, :, known] = part[:, :, place]
            return out

        def of(copies: Copies) -> Copies:
            return Copies(moved(copies.A), moved(copies.B), copies.c)

        return replace(self, U=moved(self.U), copies=of(self.copies), multipliers=of(self.multipliers))


@dataclass(frozen=True)
class ADMM:
    """What stays the same in every step: data, weights of the copies, factors."""

    program: AbstractProgram
    cone_weight: float  # g
    fit_weight: float  # d
    inverse: Float[Tensor, "d d"]  # (I + g^2 X'X)^-1
    factor: Float[Tensor, "n n"] | None
    diagonal: Float[Tensor, " n"] | None  # of the samples' system, for conjugate gradients
    options: ADMMOptions
    blocks: BlockDescent | None = None  # in place of a factor

    @classmethod
    def of(cls, program: AbstractProgram, rho: float, options: ADMMOptions) -> "ADMM":
        """Choose the weights of the copies and factorise."""
        X, problem = program.problem.X, program.problem
        g = 0.0 if program.cone is None else 3.0 / float(X.norm(dim=1).mean().clamp(min=1e-30))
        curvature = min(problem.loss.largest_curvature, 1.0)
        fit = math.sqrt(curvature / len(X) / rho)
        eye = torch.eye(X.shape[1], dtype=X.dtype, device=X.device)
        inverse = torch.linalg.inv(eye + g * g * (X.T @ X))
        return cls(program, g, fit, inverse, None, None, options).on(program)

    def on(self, program: AbstractProgram) -> "ADMM":
        """The same method on other patterns of the same data."""
        X = program.problem.X
        small = X.element_size() * len(X) ** 2 <= _LARGEST_FACTOR
        dense = self.options.linear == "factor" or (self.options.linear == "auto" and small)
        bare = replace(self, program=program)
        if self.options.linear == "blocks":
            return replace(bare, blocks=BlockDescent.of(program, self.cone_weight, self.fit_weight))
        return replace(bare, factor=bare._factor()) if dense else replace(bare, diagonal=bare._diagonal())

    def _factor(self) -> Tensor:
        X, signs = self.program.problem.X, len(self.program.signs)
        T = signs * self.program.gated.gram(X @ self.inverse @ X.T)
        if self.program.problem.output_bias:
            T = T - T.mean(0)
            T = T - T.mean(1, keepdim=True)
        T.diagonal().add_(1.0 / self.fit_weight**2)
        return torch.linalg.cholesky(T)

    def _diagonal(self) -> Tensor:
        X = self.program.problem.X
        K = ((X @ self.inverse) * X).sum(1)
        return 1.0 / self.fit_weight**2 + len(self.program.signs) * K * self.program.gated.mask.sum(0)

    def init(self, start: ConvexPoint, rho: float) -> ADMMState:
        """From a point, with multipliers of zero."""
        program = self.program
        B, c = self._maps(start.U, start.bias)
        copies = Copies(start.U, B.clamp(min=0.0), c)
        zero = Copies(torch.zeros_like(start.U), torch.zeros_like(B), torch.zeros_like(c))
        return ADMMState(start.U, start.bias, copies, zero, rho, torch.zeros_like(program.problem.loss.targets), 0)

    def restarted(self, start: ConvexPoint, V: Tensor, cones: Float[Tensor, "S K P m"], at: ADMMState) -> ADMMState:
        """From a point and a dual point with cone multipliers: a fixed point of the steps where both are optimal."""
        fresh, program, rho = self.init(start, at.rho), self.program, at.rho
        pull = program.correlations(V)
        if program.cone is not None:
            pull = pull + program.cone.adjoint(cones)
        B = -cones / (rho * self.cone_weight**2) if program.cone is not None else fresh.multipliers.B
        multipliers = Copies(pull / rho, B, -V / (rho * self.fit_weight**2))
        return replace(fresh, multipliers=multipliers, q=at.q, n_steps=at.n_steps)

    def _maps(self, U: Float[Tensor, "S K P d"], b: Float[Tensor, " K"]) -> tuple[Tensor, Tensor]:
        """G U and F U + b from one product."""
        program = self.program
        Z = U @ program.problem.X.T
        F = (program.gated.mask * (program.sign_column * Z).sum(0)).sum(-2).T + b
        if program.cone is None:
            return Z[..., :0], F
        return program.cone.signs * (Z if Z.shape[-1] == program.cone.X.shape[0] else Z[..., program.live]), F

    def step(self, at: ADMMState) -> ADMMState:
        """One step."""
        problem, options = self.program.problem, self.options
        U, b, q = self._solve(at.copies.plus(-1.0, at.multipliers), at)
        B, F = self._maps(U, b)
        relaxed = Copies(
            *(_mix(options.relaxation, new, old) for new, old in zip((U, B, F), _parts(at.copies), strict=True))
        )
        free = relaxed.plus(1.0, at.multipliers)
        copies = Copies(
            self.program.penalty.prox(free.A, problem.weight_decay / at.rho),
            free.B.clamp(min=0.0),
            problem.loss.prox(free.c, 1.0 / (at.rho * self.fit_weight**2)),
        )
        new = ADMMState(U, b, copies, free.plus(-1.0, copies), at.rho, q, at.n_steps + 1)
        interval = _BALANCE * 2 ** max(0, int(math.log2(new.n_steps / _SETTLING)))
        return self._balanced(new, at, Copies(U, B, F)) if new.n_steps % interval == 0 else new

    def _solve(self, target: Copies, at: ADMMState) -> tuple[Tensor, Tensor, Tensor]:
        """The least-squares step: U and b nearest to the copies in the weighted norm."""
        program, bias = self.program, self.program.problem.output_bias
        if self.blocks is not None:
            here = ConvexPoint(at.U, at.b)
            there = self.blocks.descend(target.A, target.B, target.c, start=here, seed=at.n_steps)
            return there.U, there.bias, at.q
        c = target.c - target.c.mean(0) if bias else target.c
        right = target.A + self.fit_weight**2 * program.sign_column * program.gated.adjoint(c.T)
        if program.cone is not None:
            right = right + self.cone_weight**2 * program.cone.adjoint(target.B)
        W = right @ self.inverse
        F = program.gated.forward((program.sign_column * W).sum(0)).T
        q = self._samples(F - F.mean(0) if bias else F, at)
        W = W - (program.sign_column * program.gated.adjoint(q.T)) @ self.inverse
        if not bias:
            return W, at.b, q
        F = program.gated.forward((program.sign_column * W).sum(0)).T
        return W, (target.c - F).mean(0), q

    def _samples(self, right: Float[Tensor, "n K"], at: ADMMState) -> Float[Tensor, "n K"]:
        """(I / d^2 + F (I + g^2 G'G)^-1 F')^-1 right, on centred vectors where there is a bias."""
        if self.factor is not None:
            q = torch.cholesky_solve(right, self.factor)
            return q - q.mean(0) if self.program.problem.output_bias else q
        accuracy = max(_CG_ACCURACY, 20 * torch.finfo(right.dtype).eps)
        q = _conjugate_gradients(self._apply_samples, right, at.q, self.diagonal, accuracy)
        return q - q.mean(0) if self.program.problem.output_bias else q

    def _apply_samples(self, q: Float[Tensor, "n K"]) -> Float[Tensor, "n K"]:
        program, bias = self.program, self.program.problem.output_bias
        centred = q - q.mean(0) if bias else q
        F = program.gated.forward(program.gated.adjoint(centred.T) @ self.inverse).T * len(program.signs)
        return q / self.fit_weight**2 + (F - F.mean(0) if bias else F)

    def _balanced(self, new: ADMMState, old: ADMMState, image: Copies) -> ADMMState:
        """Scale rho where the residuals of the copies and of the multipliers are far apart."""
        weights = (self.cone_weight, self.fit_weight)
        primal = image.plus(-1.0, new.copies).norm(weights)
        dual = new.copies.plus(-1.0, old.copies).norm(weights)
        size = max(image.norm(weights), new.copies.norm(weights), 1e-30)
        dual_size = max(new.multipliers.norm(weights), 1e-30)
        ratio = math.sqrt(max(primal / size, 1e-12) / max(dual / dual_size, 1e-12))
        ratio = min(max(ratio, 0.2), 5.0)
        if 1 / 1.5 < ratio < 1.5:
            return new
        lam = new.multipliers
        scaled = Copies(lam.A / ratio, lam.B / ratio, lam.c / ratio)
        return replace(new, multipliers=scaled, rho=new.rho * ratio)

    def point(self, at: ADMMState) -> ConvexPoint:
        """The sparse copy."""
        return ConvexPoint(at.copies.A, at.b)

    def dual(self, at: ADMMState) -> tuple[Tensor, Tensor]:
        """V in the domain of the dual, and cone multipliers."""
        V = -at.rho * self.fit_weight**2 * at.multipliers.c
        return V, -at.rho * self.cone_weight**2 * at.multipliers.B


def _parts(copies: Copies) -> tuple[Tensor, Tensor, Tensor]:
    return copies.A, copies.B, copies.c


def _mix(relaxation: float, new: Tensor, old: Tensor) -> Tensor:
    return relaxation * new + (1 - relaxation) * old


def _conjugate_gradients(
    apply: Callable[[Tensor], Tensor], right: Tensor, start: Tensor, diagonal: Tensor | None, accuracy: float
) -> Tensor:
    """Jacobi-preconditioned, each column on its own; a column that has converged stays as it is."""
    assert diagonal is not None
    q, r = start, right - apply(start)
    y = r / diagonal[:, None]
    p, product = y, (r * y).sum(0)
    limit = accuracy * right.norm(dim=0)
    for _ in range(_CG_STEPS):
        going = r.norm(dim=0) > limit
        if not bool(going.any()):
            break
        Ap = apply(p)
        a = torch.where(going, product / (p * Ap).sum(0), 0.0).nan_to_num(0.0, 0.0, 0.0)
        q, r = q + a * p, r - a * Ap
        y = r / diagonal[:, None]
        new = (r * y).sum(0)
        p, product = y + torch.where(going, new / product, 0.0).nan_to_num(0.0, 0.0, 0.0) * p, new
    return q


def first_rho(problem: Problem, n_patterns: int) -> float:
    """Weight decay over the norm of a typical block."""
    scale = float(problem.X.norm()) / math.sqrt(problem.n_inputs)
    V = problem.loss.negative_gradient(problem.constant().expand_as(problem.loss.targets))
    reach = float(V.norm() / problem.loss.weights.norm()) * math.sqrt(len(problem.X)) / max(scale, 1e-150)
    return problem.weight_decay * math.sqrt(n_patterns) / max(reach, 1e-150)
