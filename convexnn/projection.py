"""Projections onto many polyhedral cones at once, by a batched interior point; what they say about M.

With c = sign * X'D_p v, the largest c'u over the unit ball of the cone {G u >= 0} is the norm of the
projection of c. Any multipliers a >= 0 give an upper bound ||c + G'a||, any u in the cone a lower one.
"""

import abc
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from convexnn.operators import ConeMap

_STEPS = 60
_CHUNK = 512  # cones that are worked on together


@dataclass(frozen=True)
class ColumnProducts:
    """x_i x_i' for every row, its upper triangle as one row, so that X'diag(w)X is one product for many w."""

    rows: Int[Tensor, " q"]
    columns: Int[Tensor, " q"]
    products: Float[Tensor, "m q"]

    @classmethod
    def of(cls, X: Float[Tensor, "m d"]) -> "ColumnProducts":
        """For the rows of X."""
        index = torch.triu_indices(X.shape[1], X.shape[1], device=X.device)
        return cls(index[0], index[1], X[:, index[0]] * X[:, index[1]])

    def gram(self, w: Float[Tensor, "B m"], d: int) -> Float[Tensor, "B d d"]:
        """X'diag(w_b)X for each row of w."""
        values = w @ self.products
        H = values.new_empty((len(w), d, d))
        H[:, self.rows, self.columns] = values
        H[:, self.columns, self.rows] = values
        return H


class AbstractCones(abc.ABC):
    """Polyhedral cones {G_b u >= 0}, one for each block."""

    @abc.abstractmethod
    def __len__(self) -> int:
        """Number of cones."""

    @abc.abstractmethod
    def forward(self, U: Float[Tensor, "B e"]) -> Float[Tensor, "B m"]:
        """G_b u_b."""

    @abc.abstractmethod
    def adjoint(self, L: Float[Tensor, "B m"]) -> Float[Tensor, "B e"]:
        """G_b'l_b."""

    @abc.abstractmethod
    def gram(self, w: Float[Tensor, "B m"]) -> Float[Tensor, "B e e"]:
        """G_b'diag(w_b)G_b."""

    @abc.abstractmethod
    def take(self, index: Bool[Tensor, " B"] | Int[Tensor, " k"]) -> "AbstractCones":
        """Some of the cones."""

    @property
    @abc.abstractmethod
    def row_sizes(self) -> Float[Tensor, " m"]:
        """About how large the entries of each row of G_b are."""


@dataclass(frozen=True)
class PatternCones(AbstractCones):
    """The cones of activation patterns, with the products of the rows that they share."""

    cone: ConeMap
    products: ColumnProducts

    def __len__(self) -> int:
        return len(self.cone.signs)

    def forward(self, U: Float[Tensor, "B d"]) -> Float[Tensor, "B m"]:
        """Slacks."""
        return self.cone.forward(U)

    def adjoint(self, L: Float[Tensor, "B m"]) -> Float[Tensor, "B d"]:
        """X'(2D - I) l."""
        return self.cone.adjoint(L)

    def gram(self, w: Float[Tensor, "B m"]) -> Float[Tensor, "B d d"]:
        """X'diag(w)X: the signs cancel."""
        return self.products.gram(w, self.cone.X.shape[1])

    def take(self, index: Bool[Tensor, " B"] | Int[Tensor, " k"]) -> "PatternCones":
        """Some of the cones."""
        return PatternCones(ConeMap(self.cone.X, self.cone.signs[index]), self.products)

    @property
    def row_sizes(self) -> Float[Tensor, " m"]:
        """Mean absolute entries."""
        return self.cone.X.abs().mean(1)


@dataclass(frozen=True)
class Prices:
    """For each block: bounds of the largest c'u over the unit ball of its cone, and multipliers of the upper one."""

    upper: Float[Tensor, " B"]
    lower: Float[Tensor, " B"]
    multipliers: Float[Tensor, "B m"]


@dataclass(frozen=True)
class _Iterate:
    """min ||u - c||^2 / 2 with slacks s = G u - h and multipliers l."""

    u: Float[Tensor, "B d"]
    s: Float[Tensor, "B m"]
    l: Float[Tensor, "B m"]  # noqa: E741

    def take(self, keep: Bool[Tensor, " B"]) -> "_Iterate":
        return _Iterate(self.u[keep], self.s[keep], self.l[keep])


def _start(cone: AbstractCones, C: Tensor, centre: Tensor) -> _Iterate:
    u = centre * (C * centre).sum(-1, keepdim=True).clamp(min=0.1)
    h = cone.forward(u)
    s = torch.maximum(h, 0.3 * h.abs().mean(-1, keepdim=True) + torch.finfo(h.dtype).tiny)
    # Multipliers that balance: l s is constant, and their pull is that of a tenth of c.
    pull = (1.0 / s) @ cone.row_sizes
    scale = 0.1 * C.norm(dim=-1) / pull.clamp(min=1e-300)
    return _Iterate(u, s, (scale[:, None] / s).clamp(min=1e-12))


def _step(cone: AbstractCones, C: Tensor, h: Tensor | float, at: _Iterate) -> _Iterate:
    """One Mehrotra step."""
    r_dual = at.u - C - cone.adjoint(at.l)
    r_primal = cone.forward(at.u) - h - at.s
    w = at.l / at.s
    H = cone.gram(w)
    H.diagonal(dim1=1, dim2=2).add_(1.0)
    factor, _ = torch.linalg.cholesky_ex(H)

    def direction(rc: Tensor) -> _Iterate:
        right = -r_dual + cone.adjoint(rc / at.s - w * r_primal)
        du = torch.cholesky_solve(right[:, :, None], factor)[:, :, 0]
        ds = cone.forward(du) + r_primal
        return _Iterate(du, ds, rc / at.s - w * ds)

    mu = (at.s * at.l).mean(-1, keepdim=True)
    move = direction(-at.s * at.l)
    a = _longest(at, move)
    after = ((at.s + a * move.s) * (at.l + a * move.l)).mean(-1, keepdim=True)
    sigma = ((after / mu) ** 3).clamp(1e-4, 1.0)
    move = direction(sigma * mu - at.s * at.l - move.s * move.l)
    a = 0.98 * _longest(at, move)
    return _Iterate(at.u + a * move.u, at.s + a * move.s, at.l + a * move.l)


def _longest(at: _Iterate, move: _Iterate) -> Float[Tensor, "B 1"]:
    """The step at which the first slack or multiplier vanishes, at most one."""
    worst = torch.maximum((-move.s / at.s).amax(-1), (-move.l / at.l).amax(-1))
    return (1.0 / worst.clamp(min=1e-9)).clamp(max=1.0)[:, None]


def project(
    cone: ConeMap,
    C: Float[Tensor, "*lead P d"],
    centre: Float[Tensor, "P d"],
    h: Float[Tensor, "*lead P m"] | None = None,
    *,
    accuracy: float = 1e-12,
) -> Float[Tensor, "*lead P d"]:
    """The nearest point of {G u >= h} to each block, for one cone each; ``centre`` holds directions inside them."""
    if cone.X.shape[0] == 0 or C.numel() == 0:
        return C
    lead = C.shape[:-2]
    copies = int(torch.tensor(lead).prod()) if lead else 1
    signs, middle = cone.signs.repeat(copies, 1), centre.repeat(copies, 1)
    flat, products = C.reshape(-1, C.shape[-1]), ColumnProducts.of(cone.X)
    lower = None if h is None else h.reshape(-1, h.shape[-1])
    out = [
        _project_chunk(
            PatternCones(ConeMap(cone.X, signs[part]), products),
            flat[part],
            middle[part],
            None if lower is None else lower[part],
            accuracy,
        )
        for part in torch.arange(len(flat), device=C.device).split(_CHUNK)
    ]
    return torch.cat(out).reshape(C.shape)


def _project_chunk(cone: AbstractCones, C: Tensor, centre: Tensor, h: Tensor | None, accuracy: float) -> Tensor:
    size = C.norm(dim=-1, keepdim=True).clamp(min=1e-300)
    shift = 0.0 if h is None else h / size
    at = _start(cone, C / size, centre)
    for _ in range(_STEPS):
        if (
            float((at.s * at.l).sum(-1).max()) < accuracy
            and float((cone.forward(at.u) - shift - at.s).abs().max()) < accuracy
        ):
            break
        new = _step(cone, C / size, shift, at)
        if not bool(torch.isfinite(new.u).all()):
            break
        at = new
    return at.u * size


def price(
    cone: ConeMap,
    products: ColumnProducts,
    C: Float[Tensor, "B d"],
    centre: Float[Tensor, "B d"],
    limit: float,
    *,
    accuracy: float = 1e-7,
    slack: float = 0.05,
) -> Prices:
    """Bounds of the largest c'u over each cone's unit ball, as tight as needed to compare them with ``limit``.

    A cone is done once its upper bound is below the limit, or its lower bound above it and within
    a share of ``slack`` of the upper one, or both are within ``accuracy`` of each other.
    """
    return price_cones(PatternCones(cone, products), C, centre, limit, accuracy=accuracy, slack=slack)


def price_cones(
    cones: AbstractCones,
    C: Float[Tensor, "B e"],
    centre: Float[Tensor, "B e"],
    limit: float,
    *,
    accuracy: float = 1e-7,
    slack: float = 0.05,
) -> Prices:
    """The same for cones of any kind, one for each row of C."""
    parts = [
        _price_chunk(cones.take(part), C[part] / limit, centre[part], (accuracy, slack))
        for part in torch.arange(len(C), device=C.device).split(_CHUNK)
    ]
    upper, lower, multipliers = (torch.cat(column) for column in zip(*parts, strict=True))
    return Prices(upper * limit, lower * limit, multipliers * limit)


def _price_chunk(
    cone: AbstractCones, C: Tensor, centre: Tensor, enough: tuple[float, float]
) -> tuple[Tensor, Tensor, Tensor]:
    accuracy, slack = enough
    upper, lower = C.norm(dim=-1), C.new_zeros(len(C))
    multipliers = C.new_zeros((len(C), len(cone.row_sizes)))
    index = torch.arange(len(C), device=C.device)
    inside = cone.forward(centre)
    at = _start(cone, C, centre)
    for _ in range(_STEPS):
        better, above, below = _bounds(cone, C, centre, inside, at, upper[index])
        upper[index] = torch.where(better, above, upper[index])
        multipliers[index[better]] = at.l[better]
        lower[index] = torch.maximum(lower[index], below)
        top, bottom = upper[index], lower[index]
        go = ~((top <= 1) | ((bottom > 1) & (top - bottom < slack * top)) | (top - bottom < accuracy))
        if not bool(go.any()):
            break
        if not bool(go.all()):
            index, C, centre, inside, at = index[go], C[go], centre[go], inside[go], at.take(go)
            cone = cone.take(go)
        new = _step(cone, C, 0.0, at)
        if not bool(torch.isfinite(new.u).all() & torch.isfinite(new.l).all()):
            break
        at = new
    return upper, lower, multipliers


def _bounds(
    cone: AbstractCones, C: Tensor, centre: Tensor, inside: Tensor, at: _Iterate, known: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    above = (C + cone.adjoint(at.l)).norm(dim=-1)
    short = (-cone.forward(at.u) / inside).amax(-1).clamp(min=0.0)
    u = at.u + short[:, None] * centre
    below = ((C * u).sum(-1) / u.norm(dim=-1).clamp(min=1e-300)).clamp(min=0.0)
    return above < known, above, below
