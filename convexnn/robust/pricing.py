"""What each block of a robust program can reach at a dual point: many small projections at once.

The largest c'u over unit blocks of a robust cone is the norm of the projection of c on it; with soft cones, the
largest c'u - sum_k lambda_k (r(u) - (2D - I) x_k'u)_+ is the norm of the minimiser of ||u - c||^2 / 2 plus that
sum. Both are quadratic programs of the size of a block, solved by a batched interior point whose
multipliers give upper bounds and whose points give lower bounds.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from convexnn.projection import ColumnProducts, Prices
from convexnn.robust.ball import Ball
from convexnn.robust.reach import AbstractReach, reach_of
from convexnn.solvers.cones import Scaling, jordan_divide, jordan_product, longest_steps

MOST_STEPS = 60
_SLACK = 0.05
_CHARGED = 1e-12  # share of the largest charge from which on an excess counts
_SHRINK = 0.9  # of the way to the boundary
_CORRECTIONS = 3
_LONGER = 0.3  # by how much a correction tries to lengthen the step
_PRODUCTS = (0.1, 10.0)  # of slacks and multipliers, relative to the aim, that a correction leaves as they are
_SHORT = 0.1  # predictor steps below this are followed by one that only centres


@dataclass(frozen=True)
class Cones:
    """Robust cones of some blocks with the same samples; ``charge`` is what an excess costs, None of hard cones."""

    X: Float[Tensor, "m d"]
    sides: Float[Tensor, "B m"]
    centre: Float[Tensor, "B d"]
    ball: Ball
    charge: Float[Tensor, " m"] | None

    def take(self, index: Int[Tensor, " k"] | Bool[Tensor, " B"]) -> "Cones":
        """Some of the blocks."""
        return replace(self, sides=self.sides[index], centre=self.centre[index])

    def slack(self, U: Float[Tensor, "B d"]) -> Float[Tensor, "B m"]:
        """(2D - I) X u - r(u)."""
        return self.sides * (U @ self.X.T) - self.ball.support(U)[:, None]

    def admitted(self, multipliers: Float[Tensor, "B m"]) -> Float[Tensor, "B m"]:
        """Non-negative, and at most the charge."""
        multipliers = multipliers.clamp(min=0.0)
        return multipliers if self.charge is None else torch.minimum(multipliers, self.charge)

    def upper(self, C: Float[Tensor, "B d"], multipliers: Float[Tensor, "B m"]) -> Float[Tensor, " B"]:
        """The bound of these multipliers."""
        multipliers = self.admitted(multipliers)
        pulled = C + (self.sides * multipliers) @ self.X
        return (pulled - self.ball.project(pulled, multipliers.sum(1))).norm(dim=1)

    def lower(self, C: Float[Tensor, "B d"], U: Float[Tensor, "B d"]) -> Float[Tensor, " B"]:
        """What blocks near these reach, never below zero."""
        if self.charge is None:
            inside = self.slack(self.centre).clamp(min=torch.finfo(U.dtype).tiny)
            short = (-self.slack(U) / inside).amax(1).clamp(min=0.0)
            U = U + short[:, None] * self.centre
            reached = (C * U).sum(1)
        else:
            reached = (C * U).sum(1) - (-self.slack(U)).clamp(min=0.0) @ self.charge
        return (reached / U.norm(dim=1).clamp(min=1e-300)).clamp(min=0.0)


@dataclass(frozen=True)
class _At:
    """u, y, excesses; slacks of reach, pairs and excesses with multipliers; the cones of a conic ball."""

    u: Float[Tensor, "B d"]
    y: Float[Tensor, "B y"]
    e: Float[Tensor, "B m"]
    s: Float[Tensor, "B N"]
    z: Float[Tensor, "B N"]
    cones: Float[Tensor, "B f"]
    duals: Float[Tensor, "B f"]

    def take(self, keep: Bool[Tensor, " B"]) -> "_At":
        return _At(*(part[keep] for part in (self.u, self.y, self.e, self.s, self.z, self.cones, self.duals)))

    def pairs(self, width: int, m: int) -> Float[Tensor, "B m"]:
        """The multipliers of the pairs."""
        return self.z[:, width : width + m]


def price(
    cones: Cones, C: Float[Tensor, "B d"], limit: float, *, accuracy: float, max_steps: int = MOST_STEPS
) -> Prices:
    """:func:`_price` on the samples whose excess costs anything; the multipliers of the others are zero."""
    if cones.charge is None:
        return _price(cones, C, limit, accuracy, max_steps)
    rows = cones.charge > _CHARGED * cones.charge.max().clamp(min=1e-300)
    if not bool(rows.any()):
        norms = C.norm(dim=1)
        return Prices(norms, norms, torch.zeros_like(cones.sides))
    few = replace(cones, X=cones.X[rows], sides=cones.sides[:, rows], charge=cones.charge[rows])
    found = _price(few, C, limit, accuracy, max_steps)
    multipliers = torch.zeros_like(cones.sides)
    multipliers[:, rows] = found.multipliers
    return replace(found, multipliers=multipliers)


def _price(cones: Cones, C: Float[Tensor, "B d"], limit: float, accuracy: float, max_steps: int) -> Prices:
    """Bounds, as tight as needed to compare them with ``limit``.

    A block is done once its upper bound is below the limit, or its lower bound above it and within a share of
    ``_SLACK`` of the upper one, or both are within ``accuracy`` of each other, relative to the limit.
    """
    C, cones = C / limit, replace(cones, charge=None if cones.charge is None else cones.charge / limit)
    upper, lower, multipliers = C.norm(dim=1), torch.zeros_like(C[:, 0]), C.new_zeros((len(C), len(cones.X)))
    batch = _Batch(cones, ColumnProducts.of(cones.X), reach_of(cones.ball))
    index, at = torch.arange(len(C), device=C.device), _start(batch, C)
    for _ in range(max_steps):
        found = at.pairs(batch.reach.width, len(cones.X))
        above = batch.cones.upper(C, found)
        better = above < upper[index]
        upper[index] = torch.where(better, above, upper[index])
        multipliers[index[better]] = batch.cones.admitted(found)[better]
        lower[index] = torch.maximum(lower[index], batch.cones.lower(C, at.u))
        top, bottom = upper[index], lower[index]
        go = ~((top <= 1) | ((bottom > 1) & (top - bottom < _SLACK * top)) | (top - bottom < accuracy))
        if not bool(go.any()):
            break
        if not bool(go.all()):
            index, C, at, batch = index[go], C[go], at.take(go), replace(batch, cones=batch.cones.take(go))
        new = _step(batch, C, at)
        if not bool(torch.isfinite(new.u).all() & torch.isfinite(new.z).all()):
            break
        at = new
    return Prices(upper * limit, lower * limit, multipliers * limit)


@dataclass(frozen=True)
class _Batch:
    cones: Cones
    products: ColumnProducts
    reach: AbstractReach

    def rows(self, u: Tensor, y: Tensor, e: Tensor) -> Float[Tensor, "B N"]:
        pairs = self.cones.sides * (u @ self.cones.X.T) - self.reach.value(y)[:, None]
        own = self.reach.rows(u, y)
        return torch.cat([own, pairs], 1) if self.cones.charge is None else torch.cat([own, pairs + e, e], 1)

    def conic(self, u: Tensor, y: Tensor) -> Float[Tensor, "B f"]:
        return self.reach.cones(u, y) if self.reach.conic else u.new_zeros((len(u), 0))

    def parts(self, flat: Float[Tensor, "B N"]) -> tuple[Tensor, Tensor, Tensor]:
        """Of reach, pairs, excesses."""
        width, m = self.reach.width, len(self.cones.X)
        return flat[:, :width], flat[:, width : width + m], flat[:, width + m :]


def _start(batch: _Batch, C: Tensor) -> _At:
    cones = batch.cones
    centre = cones.centre / cones.centre.norm(dim=1, keepdim=True)
    u = centre * (C * centre).sum(1, keepdim=True).clamp(min=0.1)
    slack = cones.slack(u)
    typical = slack.abs().mean(1, keepdim=True).clamp(min=1e-12)
    room = 0.5 * (slack.amin(1) if cones.charge is None else typical[:, 0]).clamp(min=1e-12)
    y, e = batch.reach.room(u, room), torch.zeros_like(slack)
    mu = 0.1 * C.norm(dim=1, keepdim=True).clamp(min=1e-12) ** 2 / slack.shape[1]
    if cones.charge is not None:  # multipliers of about half the charge, slacks and excesses that go with them
        mu = 0.5 * cones.charge.mean() * typical
        e = 2 * mu / cones.charge + (room[:, None] - slack).clamp(min=0.0)
    s, conic = batch.rows(u, y, e), batch.conic(u, y)
    duals = torch.zeros_like(conic)
    if batch.reach.conic:
        duals[:, 0] = mu[:, 0] / conic[:, 0]
    return _At(u, y, e, s, (mu / s).clamp(min=1e-12), conic, duals)


def _step(batch: _Batch, C: Tensor, at: _At) -> _At:
    """One Mehrotra step of every block, each with its own length."""
    newton = _Newton.of(batch, C, at)
    mu = (at.s * at.z).mean(1, keepdim=True)
    du = newton.direction(torch.zeros_like(at.s), torch.zeros_like(mu), None)
    length = _longest(at, du)
    after = ((at.s + length * du.s) * (at.z + length * du.z)).mean(1, keepdim=True)
    accurate = length > _SHORT
    sigma = torch.where(accurate, ((after / mu) ** 3).clamp(1e-4, 1.0), 0.5)
    second = accurate.to(mu)
    move, length = _centred(newton, sigma * mu - second * du.s * du.z, sigma * mu, replace(du, cones=second * du.cones))
    pairs = ((a, b) for a, b in zip(vars(at).values(), vars(move).values(), strict=True))
    return _At(*(a + _SHRINK * length * b for a, b in pairs))


def _centred(newton: "_Newton", target: Tensor, mu: Tensor, affine: _At) -> tuple[_At, Float[Tensor, "B 1"]]:
    """The direction and its longest step, corrected while products far from ``mu`` keep it short (Gondzio 1996)."""
    at = newton.at
    move = newton.direction(target, mu, affine)
    length = _longest(at, move)
    for _ in range(_CORRECTIONS):
        longer = (length + _LONGER).clamp(max=1.0)
        product = (at.s + longer * move.s) * (at.z + longer * move.z)
        low, high = _PRODUCTS[0] * mu, _PRODUCTS[1] * mu
        wanted = torch.minimum(torch.maximum(product, low), high) - product
        target = target + torch.maximum(wanted, -high)
        trial = newton.direction(target, mu, affine)
        further = _longest(at, trial)
        better = further > length
        if not bool(better.any()):
            break
        move = _At(*(torch.where(better, b, a) for a, b in zip(vars(move).values(), vars(trial).values(), strict=True)))
        length = torch.where(better, further, length)
    return move, length


def _longest(at: _At, move: _At) -> Float[Tensor, "B 1"]:
    """The step at which the first slack or multiplier vanishes, at most one."""
    worst = torch.maximum((-move.s / at.s).amax(1), (-move.z / at.z).amax(1))
    step = (1 / worst.clamp(min=1e-9)).clamp(max=1.0)
    if at.cones.shape[1]:
        step = torch.minimum(
            step, torch.minimum(longest_steps(at.cones, move.cones), longest_steps(at.duals, move.duals))
        )
    return step[:, None]


@dataclass(frozen=True)
class _Newton:
    """The factorised systems of one step."""

    batch: _Batch
    C: Float[Tensor, "B d"]
    at: _At
    scaling: Scaling | None
    factor: Float[Tensor, "B e e"]

    @classmethod
    def of(cls, batch: _Batch, C: Tensor, at: _At) -> "_Newton":
        scaling = Scaling.of(at.cones, at.duals) if batch.reach.conic else None
        own, pair, excess = batch.parts(at.z / at.s)
        weight = pair if batch.cones.charge is None else pair * (excess / (pair + excess))
        M = batch.reach.form(own, scaling).matrix()
        d = C.shape[1]
        mixed = (weight * batch.cones.sides) @ batch.cones.X
        M[:, :d, :d] += batch.products.gram(weight, d)
        M[:, d, :d] -= mixed
        M[:, :d, d] -= mixed
        M[:, d, d] += weight.sum(1)
        M.diagonal(dim1=1, dim2=2)[:, :d] += 1.0
        factor, info = torch.linalg.cholesky_ex(M)
        if bool((info > 0).any()):
            ridge = torch.diag_embed(1e-12 * M.diagonal(dim1=1, dim2=2))
            factor, _ = torch.linalg.cholesky_ex(M + ridge)
        return cls(batch, C, at, scaling, factor)

    def direction(self, target: Tensor, centre: Tensor, affine: "_At | None") -> _At:
        """The direction whose linearised products are these; of a conic ball, ``centre`` and the second-order term."""
        batch, at, reach, X = self.batch, self.at, self.batch.reach, self.batch.cones.X
        aim = target / at.s
        own, pair, excess = batch.parts(aim)
        u, y = reach.pull(own)
        h = at.cones
        if self.scaling is not None:
            h = self._cone_aim(centre, affine)
            u, y = reach.pull_cones(at.duals + h)
        u = u + (batch.cones.sides * pair) @ X - (at.u - self.C)
        y = y - reach.spread(pair.sum(1))
        w_own, w_pair, w_excess = batch.parts(at.z / at.s)
        form = reach.form(w_own, self.scaling)
        rho, v = reach.reduce(form, y)
        u = u + v
        right_e = torch.zeros_like(at.e)
        if batch.cones.charge is not None:
            right_e = pair + excess - batch.cones.charge
            share = w_pair / (w_pair + w_excess) * right_e
            u, rho = u - (batch.cones.sides * share) @ X, rho + share.sum(1)
        found = torch.cholesky_solve(torch.cat([u, rho[:, None]], 1)[:, :, None], self.factor)[:, :, 0]
        du, drho = found[:, :-1], found[:, -1]
        dy = reach.recover(form, drho, du, y)
        de = torch.zeros_like(at.e)
        if batch.cones.charge is not None:
            slack = batch.cones.sides * (du @ X.T) - drho[:, None]
            de = (right_e - w_pair * slack) / (w_pair + w_excess)
        ds, dcones = batch.rows(du, dy, de), batch.conic(du, dy)
        dz = aim - at.z - at.z / at.s * ds
        dduals = dcones
        if self.scaling is not None:
            dduals = h - self.scaling.apply_inverse(self.scaling.apply_inverse(dcones))
        return _At(du, dy, de, ds, dz, dcones, dduals)

    def _cone_aim(self, centre: Tensor, affine: "_At | None") -> Tensor:
        assert self.scaling is not None
        lam = self.scaling.lam
        cone = -jordan_product(lam, lam)
        if affine is not None:
            cone = cone - jordan_product(self.scaling.apply_inverse(affine.cones), self.scaling.apply(affine.duals))
            cone[:, :1] += centre
        return self.scaling.apply_inverse(jordan_divide(lam, cone))
