"""A primal-dual interior point for the joint moment relaxation of training.

    minimise  sum_i phi_i(f_i) + weight_decay sum_leaf theta   with  f = sum_leaf outputs(x_leaf) + bias,  A x_leaf in K

Mehrotra's predictor and corrector with Nesterov-Todd scaling and one common step length (phi need not be quadratic).
A step factorises each leaf on its own and joins them in one small system. Nothing here is trusted: the multipliers are
hints for ``certificate``, which finds a valid bound from any of them.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float
from joblib import Parallel, delayed
from scipy.linalg import LinAlgError

from convexnn.losses import AbstractLoss, HingeLoss
from convexnn.proof.cones import AbstractScaling
from convexnn.proof.copies import Copies
from convexnn.proof.coupling import AbstractCoupling, couple
from convexnn.proof.factor import LeafFactor, factorise
from convexnn.proof.leaf import Cones, Leaf
from convexnn.proof.terms import AbstractTerm, HingeTerm, SmoothTerm

Array = np.ndarray


@dataclass(frozen=True)
class Relaxation:
    """The leaves of both signs over the distinct rows of one set of data."""

    loss: AbstractLoss
    weight_decay: float
    output_bias: bool
    leaves: tuple[Leaf, ...]
    copies: Copies
    workers: int = 1  # threads that share the leaves


@dataclass(frozen=True)
class Iterate:
    """Point, slacks and multipliers of every leaf, the output bias, and the loss at the outputs."""

    x: list[Array]
    s: list[Cones]
    lam: list[Cones]
    bias: float
    term: AbstractTerm
    mu: float  # total complementarity
    residual: float  # of stationarity, relative to the weight decay

    def dual_point(self) -> Float[Array, " n"]:
        """v = -grad of the loss at the outputs."""
        return -self.term.model(0.0, False).gradient


def start(problem: Relaxation, theta: float) -> Iterate:
    """Uniform moments, slacks pushed inside, multipliers on the central path of a guessed parameter."""
    x = [leaf.start(theta) for leaf in problem.leaves]
    f = problem.copies.spread(_outputs(problem, x))
    hinge = isinstance(problem.loss, HingeLoss)
    term: AbstractTerm = HingeTerm.begin(problem.loss, f) if hinge else SmoothTerm(problem.loss, f)
    mu = problem.weight_decay * theta / (problem.leaves[0].d + 1)
    s = [_inside(leaf, leaf.forward(a), theta) for leaf, a in zip(problem.leaves, x, strict=True)]
    lam = [_inverse(leaf, part, mu) for leaf, part in zip(problem.leaves, s, strict=True)]
    return Iterate(x, s, lam, 0.0, term, mu, np.inf)


def _outputs(problem: Relaxation, x: list[Array]) -> Float[Array, " n"]:
    return np.sum([leaf.outputs(a) for leaf, a in zip(problem.leaves, x, strict=True)], axis=0)


def _inside(leaf: Leaf, s: Cones, theta: float) -> Cones:
    """Slacks moved into the interior of their cones by at least a small multiple of theta."""
    del leaf
    floor = 1e-3 * theta
    rows, linear, cone, moments, lorentz, pairs = (part.copy() for part in s)
    for part in (rows, linear, pairs):
        np.maximum(part, floor, out=part)
    for part in (cone, lorentz):
        part[..., 0] = np.maximum(part[..., 0], 1.1 * np.linalg.norm(part[..., 1:], axis=-1) + floor)
    lowest = np.linalg.eigvalsh(moments)[..., :1]
    diagonal = np.arange(moments.shape[-1])
    moments[..., diagonal, diagonal] += np.maximum(floor - lowest, 0.0)
    return [rows, linear, cone, moments, lorentz, pairs]


def _inverse(leaf: Leaf, s: Cones, mu: float) -> Cones:
    """mu s^-1 in the algebra of each cone."""
    del leaf
    rows, linear, cone, moments, lorentz, pairs = s

    def second_order(part: Array) -> Array:
        out = -part
        out[..., 0] = part[..., 0]
        return mu * out / (part[..., :1] ** 2 - (part[..., 1:] ** 2).sum(-1, keepdims=True))

    return [mu / rows, mu / linear, second_order(cone), mu * np.linalg.inv(moments), second_order(lorentz), mu / pairs]


@dataclass(frozen=True)
class _System:
    """Everything that one iteration factorises once."""

    factors: list[LeafFactor]
    scalings: list[list[AbstractScaling]]
    coupling: AbstractCoupling
    curvature: Array  # of rows
    primal: list[Cones]  # A x - s
    dual: list[Array]  # B'grad + weight decay - A'lam
    gradient: Array  # of rows


def _prepare(problem: Relaxation, point: Iterate) -> _System:
    leaves = problem.leaves
    scalings = [leaf.scale_at(s, lam) for leaf, s, lam in zip(leaves, point.s, point.lam, strict=True)]
    factors = Parallel(n_jobs=min(problem.workers, len(leaves)), prefer="threads")(
        delayed(factorise)(leaf, scaling) for leaf, scaling in zip(leaves, scalings, strict=True)
    )
    model = point.term.model(0.0, False)
    gradient, curvature = problem.copies.gather(model.gradient), problem.copies.gather(model.curvature)
    primal = [
        [a - b for a, b in zip(leaf.forward(x), s, strict=True)]
        for leaf, x, s in zip(leaves, point.x, point.s, strict=True)
    ]
    dual = [
        leaf.outputs_adjoint(gradient) + _mass(leaf, problem.weight_decay) - leaf.adjoint(lam)
        for leaf, lam in zip(leaves, point.lam, strict=True)
    ]
    return _System(
        factors, scalings, couple(factors, curvature, problem.output_bias), curvature, primal, dual, gradient
    )


def _mass(leaf: Leaf, weight_decay: float) -> Array:
    out = np.zeros(leaf.size)
    out[0] = weight_decay
    return out


@dataclass(frozen=True)
class _Direction:
    x: list[Array]
    s: list[Cones]
    lam: list[Cones]
    scaled: list[list[tuple[Array, Array]]]  # W^-T ds and W dlam
    bias: float
    term: AbstractTerm


def _direction(
    problem: Relaxation, point: Iterate, system: _System, sigma_mu: float, previous: "_Direction | None"
) -> _Direction:
    leaves = problem.leaves
    term = point.term if previous is None else previous.term  # the same point, with the predictor's direction
    model = term.model(sigma_mu, previous is not None)
    wanted = _targets(system, sigma_mu, previous)
    right = [
        leaf.adjoint(
            [scaling.unscale(q - scaling.primal(r)) for scaling, q, r in zip(scalings, wants, primal, strict=True)]
        )
        - dual
        for leaf, scalings, wants, primal, dual in zip(
            leaves, system.scalings, wanted, system.primal, system.dual, strict=True
        )
    ]
    x, bias = _solve(system, right, problem.copies.gather(model.offset))
    df = problem.copies.spread(_outputs(problem, x)) + bias
    ds = [
        [a + b for a, b in zip(leaf.forward(dx), primal, strict=True)]
        for leaf, dx, primal in zip(leaves, x, system.primal, strict=True)
    ]
    scaled = [
        [(first := scaling.primal(a), q - first) for scaling, a, q in zip(scalings, part, wants, strict=True)]
        for scalings, part, wants in zip(system.scalings, ds, wanted, strict=True)
    ]
    dlam = [
        [scaling.unscale(pair[1]) for scaling, pair in zip(scalings, part, strict=True)]
        for scalings, part in zip(system.scalings, scaled, strict=True)
    ]
    if isinstance(term, HingeTerm):
        term = term.directed(df, sigma_mu, previous is not None)
    return _Direction(x, ds, dlam, scaled, bias, term)


def _targets(system: _System, sigma_mu: float, previous: "_Direction | None") -> list[list[Array]]:
    """point \\ (sigma mu e - point o point - (the second-order term of the predictor))."""
    out = []
    for k, scalings in enumerate(system.scalings):
        part = []
        for c, scaling in enumerate(scalings):
            right = sigma_mu * scaling.unit() - scaling.square()
            if previous is not None:
                right = right - scaling.product(*previous.scaled[k][c])
            part.append(scaling.divide(right))
        out.append(part)
    return out


def _solve(system: _System, right: list[Array], offset: Float[Array, " k"]) -> tuple[list[Array], float]:
    """Points and output bias: H x + B'y = right, y = curvature (sum of B x + bias) + offset, 1'y = -(1'gradient)."""
    reduced = [factor.reduce(r) for factor, r in zip(system.factors, right, strict=True)]
    outputs = offset / system.curvature + sum(part.outputs for part in reduced)
    found = system.coupling.solve([part.g for part in reduced], outputs, -float(system.gradient.sum()))
    x = [
        factor.expand(r, part, g, found.y)
        for factor, r, part, g in zip(system.factors, right, reduced, found.g, strict=True)
    ]
    return x, found.bias


def _longest(system: _System, direction: _Direction) -> float:
    steps = [
        min(scaling.step(pair[0]), scaling.step(pair[1]))
        for scalings, part in zip(system.scalings, direction.scaled, strict=True)
        for scaling, pair in zip(scalings, part, strict=True)
        if pair[0].size
    ]
    term = direction.term.step() if isinstance(direction.term, HingeTerm) else np.inf
    return min(*steps, term)


def _complementarity(s: list[Cones], lam: list[Cones]) -> float:
    return sum(float((a * b).sum()) for p, q in zip(s, lam, strict=True) for a, b in zip(p, q, strict=True))


def _move(problem: Relaxation, point: Iterate, direction: _Direction, t: float) -> Iterate:
    def along(old: list[Cones], new: list[Cones]) -> list[Cones]:
        return [[a + t * b for a, b in zip(p, q, strict=True)] for p, q in zip(old, new, strict=True)]

    x = [a + t * b for a, b in zip(point.x, direction.x, strict=True)]
    s, lam = along(point.s, direction.s), along(point.lam, direction.lam)
    bias = point.bias + t * direction.bias
    f = problem.copies.spread(_outputs(problem, x)) + bias
    return Iterate(x, s, lam, bias, direction.term.move(t, f), point.mu, point.residual)


def iterates(problem: Relaxation, theta: float, max_steps: int = 60) -> Iterator[Iterate]:
    """The points of the path, best last; ends where rounding stops it."""
    point = start(problem, theta)
    degree = sum(k.degree for k in _all_scalings(problem, point)) + point.term.degree
    for _ in range(max_steps):
        try:
            point, t = _step(problem, point, degree)
        except (LinAlgError, ValueError, FloatingPointError):
            return
        yield point
        if t < 1e-4:
            return


def _step(problem: Relaxation, point: Iterate, degree: int) -> tuple[Iterate, float]:
    """Predictor and corrector; the new point and the step length."""
    with np.errstate(over="raise", divide="raise", invalid="raise"):
        system = _prepare(problem, point)
        predictor = _direction(problem, point, system, 0.0, None)
        ahead = _move(problem, point, predictor, min(1.0, _longest(system, predictor)))
        mu = _total(point) / degree
        sigma = min(1.0, max(_total(ahead) / degree / mu, 0.0)) ** 3
        direction = _direction(problem, point, system, sigma * mu, predictor)
        t = min(1.0, 0.98 * _longest(system, direction))
        point = _move(problem, point, direction, t)
        residual = max(float(np.abs(part).max()) for part in system.dual) / problem.weight_decay
    return replace(point, mu=_total(point), residual=residual), t


def _total(point: Iterate) -> float:
    return _complementarity(point.s, point.lam) + point.term.complementarity()


def _all_scalings(problem: Relaxation, point: Iterate) -> list[AbstractScaling]:
    return [k for leaf, s, lam in zip(problem.leaves, point.s, point.lam, strict=True) for k in leaf.scale_at(s, lam)]
