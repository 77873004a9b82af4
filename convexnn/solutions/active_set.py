"""Newton's method on the active set of a two-layer network: stationary points to rounding, and their derivatives.

Variables are z_j = ||a_j|| w_j with fixed unit output weights c_j, and the output bias b:

    J = L(sum_j (X z_j)_+ c_j' + b) + weight_decay sum_j ||z_j||.

A neuron on a kink of a sample (x_i'z_j = 0) stays on it, z_j = N_j q_j with an orthonormal basis N_j of what is
orthogonal to its kinks; off the kinks J is smooth. Steps end at the first sample that changes its side, which becomes a
kink; a kink is left where its multiplier says that J falls to one side. With independent contributions the Hessian is
positive definite, which is the case of minimal networks (:mod:`convexnn.solutions.pruning`). With ``cones``
neurons keep to the cones of given activation patterns, as in the programs over these.
"""

from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from convexnn.neurons import Neurons, unit_rows
from convexnn.problem import Problem
from convexnn.solutions.holding import Hold, Lines, hold

_STEPS = 200
_ON_KINK = 1e-5  # of |x_i'z| relative to |x_i| |z|
_STATIONARY = 1e-13  # of the gradient, relative to the weight decay
_RELEASE = 1e-7  # of a multiplier outside its interval, relative to its length, that is no rounding
_RANK = 1e-10
_TURNED = 1e-3
_GOOD = 1e-9
_TRIES = 6


@dataclass(frozen=True)
class ActiveSet:
    """A network, the side of every sample for every neuron, and which samples are on kinks."""

    problem: Problem
    Z: Float[Tensor, "k d"]
    C: Float[Tensor, "k K"]  # unit rows, fixed
    bias: Float[Tensor, " K"]
    D: Bool[Tensor, "k n"]  # off kinks: x_i'z_j > 0; on kinks False, and without effect
    kinks: Bool[Tensor, "k n"]
    cones: Bool[Tensor, "k n"] | None = None  # patterns that neurons have to keep
    lines: Lines | None = field(default=None, repr=False)  # of the samples; None: found when they are needed

    @classmethod
    def of(
        cls,
        problem: Problem,
        neurons: Neurons,
        on_kink: float = _ON_KINK,
        cones: Bool[Tensor, "k n"] | None = None,
    ) -> "ActiveSet":
        """Of a network; samples nearer to a kink than ``on_kink``, relative to both norms, are put on it.

        Nearer ones only, where that would turn or shorten a neuron by more than a thousandth.
        """
        C = unit_rows(neurons.A)
        Z = neurons.A.norm(dim=1, keepdim=True) * neurons.W
        T = Z @ problem.X.T
        scale = problem.X.norm(dim=1) * Z.norm(dim=1, keepdim=True)
        ratio = torch.where(scale > 0, T.abs() / scale.clamp(min=1e-300), torch.inf)
        kinks = (
            torch.stack([_near(problem.X, *row, on_kink) for row in zip(Z, ratio, strict=True)]) if len(Z) else T > 0
        )
        lines = Lines.of(problem.X, together=cones is None)
        return cls(problem, Z, C, neurons.bias, (T > 0) & ~kinks, kinks, cones, lines).on_kinks()

    def on_kinks(self) -> "ActiveSet":
        """With neurons projected on their kinks, and the sides of all samples as they are then."""
        if len(self.Z) == 0:
            return self
        Z = torch.stack([N @ (N.T @ z) for N, z in zip(self.bases, self.Z, strict=True)])
        return replace(self, Z=Z, D=(Z @ self.problem.X.T > 0) & ~self.kinks)

    @cached_property
    def bases(self) -> list[Float[Tensor, "d r"]]:
        """For each neuron an orthonormal basis of the directions that stay on its kinks."""
        return [_null_space(self.problem.X[row]) for row in self.kinks]

    @property
    def neurons(self) -> Neurons:
        """The network in balanced form."""
        root = self.Z.norm(dim=1, keepdim=True).sqrt().clamp(min=1e-150)
        return Neurons(self.Z / root, root * self.C, self.bias)

    @cached_property
    def output(self) -> Float[Tensor, "n K"]:
        """F on the data."""
        return (self.D * (self.Z @ self.problem.X.T)).T @ self.C + self.bias

    @cached_property
    def dual(self) -> Float[Tensor, "n K"]:
        """-grad L."""
        return self.problem.loss.negative_gradient(self.output)

    @cached_property
    def objective(self) -> float:
        """J."""
        return float(self.problem.loss.value(self.output) + self.problem.weight_decay * self.Z.norm(dim=1).sum())

    @cached_property
    def jacobian(self) -> Float[Tensor, "n K p"]:
        """d F / d (q_1, ..., q_k, b)."""
        X, K = self.problem.X, self.C.shape[1]
        parts = [
            (side[:, None] * (X @ N))[:, None, :] * c[:, None]
            for side, N, c in zip(self.D.to(X), self.bases, self.C, strict=True)
        ]
        if self.problem.output_bias:
            parts.append(torch.eye(K).to(X).expand(len(X), K, K))
        return torch.cat(parts, 2) if parts else X.new_zeros((len(X), K, 0))

    @cached_property
    def pulls(self) -> Float[Tensor, "k d"]:
        """weight_decay z_j / ||z_j|| - X'D_j V c_j: zero off kinks at a stationary point, else in the span of kinks."""
        wd = self.problem.weight_decay
        return wd * unit_rows(self.Z) - (self.D * (self.C @ self.dual.T)) @ self.problem.X

    @cached_property
    def gradient(self) -> Float[Tensor, " p"]:
        """d J / d (q, b)."""
        parts = [N.T @ pull for N, pull in zip(self.bases, self.pulls, strict=True)]
        return torch.cat([*parts, -self.dual.sum(0)] if self.problem.output_bias else [*parts, self.Z.new_zeros(0)])

    @cached_property
    def hessian(self) -> Float[Tensor, "p p"]:
        """d^2 J / d (q, b)^2."""
        J, loss = self.jacobian, self.problem.loss
        curved = loss.hessian_product(loss.curvature(self.output), J.permute(2, 0, 1)).permute(1, 2, 0)
        p = J.shape[2]
        if p == 0:
            return J.new_zeros((0, 0))
        H = J.reshape(-1, p).T @ curved.reshape(-1, p)
        start, wd = 0, self.problem.weight_decay
        for N, z in zip(self.bases, self.Z, strict=True):
            r = N.shape[1]
            u = N.T @ z / z.norm()
            H[start : start + r, start : start + r] += wd / z.norm() * (torch.eye(r).to(H) - torch.outer(u, u))
            start += r
        return H

    def solve(self, right: Float[Tensor, "p *m"]) -> Float[Tensor, "p *m"]:
        """H^-1 right, with the diagonal scaled to one; of a singular H the least-norm answer."""
        H = self.hessian
        scale = H.diagonal().clamp(min=1e-300).rsqrt()
        scaled = scale[:, None] * H * scale
        if not bool(torch.isfinite(scaled).all()):  # a neuron has vanished
            return torch.zeros_like(right)
        column = right if right.ndim == 2 else right[:, None]
        lower, failed = torch.linalg.cholesky_ex(scaled)
        if int(failed):
            values, vectors = torch.linalg.eigh(scaled)
            inverse = torch.where(values > 1e-12 * values[-1], 1 / values.clamp(min=1e-300), 0.0)
            out = vectors @ (inverse[:, None] * (vectors.T @ (scale[:, None] * column)))
        else:
            out = torch.cholesky_solve(scale[:, None] * column, lower)
        return (scale[:, None] * out).reshape(right.shape)

    def moves(self, step: Float[Tensor, " p"]) -> tuple[Float[Tensor, "k d"], Float[Tensor, " K"]]:
        """dZ and db of a step in (q, b)."""
        sizes = [N.shape[1] for N in self.bases]
        parts = step.split([*sizes, len(step) - sum(sizes)])
        dZ = [N @ part for N, part in zip(self.bases, parts, strict=False)]
        return torch.stack(dZ) if dZ else self.Z, parts[-1] if self.problem.output_bias else torch.zeros_like(self.bias)

    @cached_property
    def condition(self) -> float:
        """Smallest over largest eigenvalue of the Hessian scaled to a unit diagonal: zero where it is singular."""
        scale = self.hessian.diagonal().clamp(min=1e-300).rsqrt()
        scaled = scale[:, None] * self.hessian * scale
        if not bool(torch.isfinite(scaled).all()):  # a neuron has vanished
            return 0.0
        values = torch.linalg.eigvalsh(scaled)
        return float(values[0] / values[-1]) if len(values) else 1.0

    @property
    def residual(self) -> float:
        """Largest entry of the gradient, relative to the weight decay (for the bias, to the sum of |V|)."""
        K = self.C.shape[1] if self.problem.output_bias else 0
        own = self.gradient[: len(self.gradient) - K].abs().max() if len(self.gradient) > K else self.Z.new_zeros(())
        total = float(own) / self.problem.weight_decay
        return max(total, float(self.dual.sum(0).abs().max() / self.dual.abs().sum().clamp(min=1e-300))) if K else total

    @cached_property
    def hold(self) -> Hold:
        """What keeps neurons on their kinks."""
        lines = self.lines or Lines.of(self.problem.X, together=self.cones is None)
        return hold(lines, self.kinks, self.C @ self.dual.T, self.pulls, self.cones)

    def shares(self) -> Float[Tensor, "k n"]:
        """On kinks the share d of V c_j that balances the neuron, of parallel samples: in [0, 1] at local minima."""
        return torch.where(self.kinks, self.hold.shares[:, self.hold.lines.index], 0.5)

    def excess(self) -> tuple[Float[Tensor, "k n"], Bool[Tensor, "k n"]]:
        """How far J is from having a minimum at each kink, see :meth:`Hold.falls`, and the side on which it falls."""
        (fall, side), lines = self.hold.falls(self.problem.weight_decay), self.hold.lines
        return torch.where(self.kinks, fall[:, lines.index], -1.0), side[:, lines.index] == lines.along


def _near(X: Float[Tensor, "n d"], z: Float[Tensor, " d"], ratio: Float[Tensor, " n"], on_kink: float) -> Tensor:
    """The samples on kinks of a neuron."""
    for shrink in (1.0, 0.1, 1e-2, 1e-4):
        kinks = ratio <= shrink * on_kink
        N = _null_space(X[kinks])
        if float((N @ (N.T @ z) - z).norm()) <= _TURNED * float(z.norm()):
            return kinks
    return torch.zeros_like(kinks)


def _null_space(rows: Float[Tensor, "m d"]) -> Float[Tensor, "d r"]:
    d = rows.shape[1]
    if len(rows) == 0:
        return torch.eye(d).to(rows)
    _, values, right = torch.linalg.svd(rows / rows.norm(dim=1, keepdim=True), full_matrices=True)
    rank = int((values > _RANK * values[0]).sum())
    return right[rank:].T


def polish(
    problem: Problem,
    neurons: Neurons,
    *,
    cones: Bool[Tensor, "k n"] | None = None,
    on_kink: float = _ON_KINK,
    steps: int = _STEPS,
) -> ActiveSet:
    """A stationary point near a network (a local minimum over its kinks) to rounding, for a twice differentiable loss.

    Neurons keep their output weights' direction. ``residual`` and ``excess`` of the answer say what was reached.
    """
    at = ActiveSet.of(problem, neurons, on_kink, cones)
    for _ in range(steps):
        if len(at.Z) == 0 and not problem.output_bias:
            break
        if at.residual > _STATIONARY:
            moved = _step(at)
            if moved is not None:
                at = moved
                continue
        released = _released(at)
        if released is None:
            break
        at = released
    return at


def stationary(problem: Problem, neurons: Neurons, cones: Bool[Tensor, "k n"] | None = None) -> ActiveSet:
    """Newton on the active set; where it gets nowhere the smallest neuron, which may have to vanish, is left out."""
    best = None
    for _ in range(_TRIES):
        at = polish(problem, neurons, cones=cones)
        best = at if best is None or at.residual < best.residual else best
        if at.residual <= _GOOD or len(at.Z) == 0:
            break
        keep = torch.ones(len(at.Z), dtype=torch.bool)
        keep[int(at.Z.norm(dim=1).argmin())] = False
        kept = at.neurons
        neurons = replace(kept, W=kept.W[keep], A=kept.A[keep])
        cones = None if cones is None else cones[keep]
    assert best is not None
    return best


def _step(at: ActiveSet) -> ActiveSet | None:
    """A Newton step up to the first change of side, which becomes a kink; None where nothing is gained."""
    dZ, db = at.moves(at.solve(-at.gradient))
    slope = float((at.pulls * dZ).sum() - (at.dual.sum(0) * db).sum())
    if not slope < 0:
        return None
    T, dT = at.Z @ at.problem.X.T, dZ @ at.problem.X.T
    slack, nearer = torch.where(at.D, T, -T).clamp(min=0.0), torch.where(at.D, -dT, dT)
    hits = torch.where(~at.kinks & (nearer > 0), slack / nearer, torch.inf)
    first, shortest = float(hits.min()) if hits.numel() else float("inf"), _shortest(at.Z)
    length = min(1.0, first)
    for _ in range(30):
        moved = replace(at, Z=at.Z + length * dZ, bias=at.bias + length * db)
        if _shortest(moved.Z) >= 1e-3 * shortest and moved.objective <= at.objective + 1e-4 * length * slope:
            break
        length *= 0.5
    else:
        # Below rounding of the objective only the gradient tells.
        moved = replace(at, Z=at.Z + min(1.0, first) * dZ, bias=at.bias + min(1.0, first) * db)
        if first < 1 or moved.residual >= 0.5 * at.residual:
            return None
        length = 1.0
    if length == first:
        j, i = divmod(int(hits.argmin()), hits.shape[1])
        kinks, D, index = moved.kinks.clone(), moved.D.clone(), at.hold.lines.index
        kinks[j, index == index[i]], D[j, index == index[i]] = True, False
        moved = replace(moved, kinks=kinks, D=D).on_kinks()
    return moved


def _shortest(Z: Float[Tensor, "k d"]) -> float:
    return float(Z.norm(dim=1).min()) if len(Z) else float("inf")


def _released(at: ActiveSet) -> ActiveSet | None:
    """Without the kink that J asks most to leave, or those that a neuron crosses together; None where there is none."""
    if not bool(at.kinks.any()):
        return None
    excess, side = at.excess()
    if float(excess.max()) <= _RELEASE:
        return None
    j, i = divmod(int(excess.argmax()), excess.shape[1])
    kinks, D, index = at.kinks.clone(), at.D.clone(), at.hold.lines.index
    leaving = index == index[i]
    if float(at.hold.left[j].norm()) > 0:  # lines that steepest descent crosses have its slope
        leaving = leaving | (excess[j] == excess[j, i])
    kinks[j, leaving], D[j, leaving] = False, side[j, leaving]
    return replace(at, kinks=kinks, D=D)
