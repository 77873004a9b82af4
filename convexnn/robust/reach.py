"""The support function of the ball inside an interior point: r(v) <= value(y) for a batch of vectors v.

Each norm brings its own variables y and its own inequalities. After a step of the interior point has
weighted them, y is eliminated but for the scalar rho = value(y): what is left is the quadratic form
kappa (rho + k'v)^2 + v'(diag - coef * vec vec')v, the same for all norms.
"""

import abc
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from convexnn.robust.ball import Ball
from convexnn.solvers.cones import Scaling


@dataclass(frozen=True)
class ReachForm:
    """The form above for each of B vectors, and how right-hand sides and solutions pass through the elimination."""

    kappa: Float[Tensor, " B"]
    k: Float[Tensor, "B d"]
    diagonal: Float[Tensor, "B d"]
    coef: Float[Tensor, " B"]
    vec: Float[Tensor, "B d"]
    # of l_inf, where y has an entry for each feature: sum and difference of the weights
    D: Float[Tensor, "B m"] | None = None
    delta: Float[Tensor, "B m"] | None = None

    def matrix(self) -> Float[Tensor, "B e e"]:
        """On (v, rho), e = d + 1."""
        B, d = self.k.shape
        full = torch.cat([self.k, self.k.new_ones(B, 1)], 1)
        out = self.kappa[:, None, None] * full[:, :, None] * full[:, None, :]
        out[:, :d, :d] -= (self.coef[:, None] * self.vec)[:, :, None] * self.vec[:, None, :]
        out.diagonal(dim1=1, dim2=2)[:, :d] += self.diagonal
        return out


@dataclass(frozen=True)
class AbstractReach(abc.ABC):
    """Radii of the columns that move, and which they are."""

    radii: Float[Tensor, " m"]
    moves: Int[Tensor, " m"]
    d: int

    @property
    @abc.abstractmethod
    def extra(self) -> int:
        """Columns of y."""

    @property
    @abc.abstractmethod
    def width(self) -> int:
        """Linear inequalities of each vector."""

    conic: ClassVar[bool] = False  # whether there is a second-order cone for each vector

    @abc.abstractmethod
    def value(self, Y: Float[Tensor, "B y"]) -> Float[Tensor, " B"]:
        """rho."""

    @abc.abstractmethod
    def spread(self, r: Float[Tensor, " B"]) -> Float[Tensor, "B y"]:
        """The adjoint of :meth:`value`."""

    @abc.abstractmethod
    def rows(self, V: Float[Tensor, "B d"], Y: Float[Tensor, "B y"]) -> Float[Tensor, "B w"]:
        """What the linear inequalities want to be non-negative."""

    @abc.abstractmethod
    def pull(self, F: Float[Tensor, "B w"]) -> tuple[Float[Tensor, "B d"], Float[Tensor, "B y"]]:
        """The adjoint of :meth:`rows`."""

    @abc.abstractmethod
    def room(self, V: Float[Tensor, "B d"], extra: Float[Tensor, " B"]) -> Float[Tensor, "B y"]:
        """y strictly inside, with value r(v) + extra."""

    @abc.abstractmethod
    def form(self, w: Float[Tensor, "B w"], scaling: Scaling | None) -> ReachForm:
        """The quadratic form of weights on the inequalities, or of the scaling of the cones."""

    def cones(self, V: Float[Tensor, "B d"], Y: Float[Tensor, "B y"]) -> Float[Tensor, "B e"]:
        """(rho, radii * v), padded with zeros for the columns that do not move."""
        out = V.new_zeros((len(V), self.d + 1))
        out[:, :1] = Y
        out[:, 1 + self.moves] = self.radii * V[:, self.moves]
        return out

    def pull_cones(self, F: Float[Tensor, "B e"]) -> tuple[Float[Tensor, "B d"], Float[Tensor, "B y"]]:
        """The adjoint of :meth:`cones`."""
        return self.placed(self.radii * F[:, 1 + self.moves]), F[:, :1]

    def placed(self, F: Float[Tensor, "B m"]) -> Float[Tensor, "B d"]:
        """Entries of the columns that move, among all columns."""
        out = F.new_zeros((len(F), self.d))
        out[:, self.moves] = F
        return out

    def reduce(self, form: ReachForm, r: Float[Tensor, "B y"]) -> tuple[Float[Tensor, " B"], Float[Tensor, "B d"]]:
        """Right-hand side of y as one of (rho, v)."""
        return r[:, 0], torch.zeros_like(form.k)

    def recover(
        self, form: ReachForm, rho: Float[Tensor, " B"], V: Float[Tensor, "B d"], r: Float[Tensor, "B y"]
    ) -> Float[Tensor, "B y"]:
        """The eliminated y."""
        del form, V, r
        return rho[:, None]


class SumReach(AbstractReach):
    """l_inf: |v| <= y, rho = radii'y."""

    @property
    def extra(self) -> int:
        """One y for each feature."""
        return len(self.moves)

    @property
    def width(self) -> int:
        """y - v and y + v."""
        return 2 * len(self.moves)

    def value(self, Y: Float[Tensor, "B y"]) -> Float[Tensor, " B"]:
        """radii'y."""
        return Y @ self.radii

    def spread(self, r: Float[Tensor, " B"]) -> Float[Tensor, "B y"]:
        """r * radii."""
        return r[:, None] * self.radii

    def rows(self, V: Float[Tensor, "B d"], Y: Float[Tensor, "B y"]) -> Float[Tensor, "B w"]:
        """(y - v, y + v)."""
        moving = V[:, self.moves]
        return torch.cat([Y - moving, Y + moving], 1)

    def pull(self, F: Float[Tensor, "B w"]) -> tuple[Float[Tensor, "B d"], Float[Tensor, "B y"]]:
        """The adjoint of :meth:`rows`."""
        minus, plus = F.chunk(2, 1)
        return self.placed(plus - minus), plus + minus

    def room(self, V: Float[Tensor, "B d"], extra: Float[Tensor, " B"]) -> Float[Tensor, "B y"]:
        """|v| and the same length of each."""
        return V[:, self.moves].abs() + (extra / self.radii.sum().clamp(min=1e-300))[:, None]

    def form(self, w: Float[Tensor, "B w"], scaling: Scaling | None) -> ReachForm:
        """With D = w- + w+ and delta = w+ - w-: kappa = 1 / sum e^2/D, k = e delta / D, diagonal 4 w- w+ / D."""
        minus, plus = w.chunk(2, 1)
        D, delta = minus + plus, plus - minus
        kappa = 1 / ((self.radii**2 / D).sum(1)).clamp(min=1e-300)
        zero = w.new_zeros((len(w), self.d))
        k, diagonal = self.placed(self.radii * delta / D), self.placed(4 * minus * (plus / D))
        return ReachForm(kappa, k, diagonal, zero[:, 0], zero, D, delta)

    def reduce(self, form: ReachForm, r: Float[Tensor, "B y"]) -> tuple[Float[Tensor, " B"], Float[Tensor, "B d"]]:
        """Right-hand side of y as one of (rho, v)."""
        assert form.D is not None
        assert form.delta is not None
        q = r / form.D
        pull = form.kappa * (q @ self.radii)
        return pull, form.k * pull[:, None] - self.placed(form.delta * q)

    def recover(
        self, form: ReachForm, rho: Float[Tensor, " B"], V: Float[Tensor, "B d"], r: Float[Tensor, "B y"]
    ) -> Float[Tensor, "B y"]:
        """y = (r - delta v + eta e) / D with e'y = rho."""
        assert form.D is not None
        assert form.delta is not None
        plain = (r - form.delta * V[:, self.moves]) / form.D
        eta = form.kappa * (rho - plain @ self.radii)
        return plain + eta[:, None] * self.radii / form.D


class MaximumReach(AbstractReach):
    """l1: |radii * v| <= y, one y for all features."""

    @property
    def extra(self) -> int:
        """One y."""
        return 1

    @property
    def width(self) -> int:
        """y - radii v and y + radii v."""
        return 2 * len(self.moves)

    def value(self, Y: Float[Tensor, "B y"]) -> Float[Tensor, " B"]:
        """Y itself."""
        return Y[:, 0]

    def spread(self, r: Float[Tensor, " B"]) -> Float[Tensor, "B y"]:
        """r itself."""
        return r[:, None]

    def rows(self, V: Float[Tensor, "B d"], Y: Float[Tensor, "B y"]) -> Float[Tensor, "B w"]:
        """(y - radii v, y + radii v)."""
        moving = self.radii * V[:, self.moves]
        return torch.cat([Y - moving, Y + moving], 1)

    def pull(self, F: Float[Tensor, "B w"]) -> tuple[Float[Tensor, "B d"], Float[Tensor, "B y"]]:
        """The adjoint of :meth:`rows`."""
        minus, plus = F.chunk(2, 1)
        return self.placed(self.radii * (plus - minus)), F.sum(1, keepdim=True)

    def room(self, V: Float[Tensor, "B d"], extra: Float[Tensor, " B"]) -> Float[Tensor, "B y"]:
        """The maximum and more."""
        return ((self.radii * V[:, self.moves]).abs().amax(1) + extra)[:, None]

    def form(self, w: Float[Tensor, "B w"], scaling: Scaling | None) -> ReachForm:
        """kappa = sum D, k = e delta / kappa, diagonal e^2 D less kappa k k'."""
        minus, plus = w.chunk(2, 1)
        D, delta = minus + plus, plus - minus
        kappa = D.sum(1)
        k = self.placed(self.radii * delta) / kappa[:, None]
        return ReachForm(kappa, k, self.placed(self.radii**2 * D), kappa, k)


class ConeReach(AbstractReach):
    """l2: ||radii * v|| <= y, a second-order cone."""

    conic: ClassVar[bool] = True

    @property
    def extra(self) -> int:
        """One y."""
        return 1

    @property
    def width(self) -> int:
        """No linear inequalities."""
        return 0

    def value(self, Y: Float[Tensor, "B y"]) -> Float[Tensor, " B"]:
        """Y itself."""
        return Y[:, 0]

    def spread(self, r: Float[Tensor, " B"]) -> Float[Tensor, "B y"]:
        """r itself."""
        return r[:, None]

    def rows(self, V: Float[Tensor, "B d"], Y: Float[Tensor, "B y"]) -> Float[Tensor, "B w"]:
        """None."""
        del Y
        return V.new_zeros((len(V), 0))

    def pull(self, F: Float[Tensor, "B w"]) -> tuple[Float[Tensor, "B d"], Float[Tensor, "B y"]]:
        """Nothing."""
        return F.new_zeros((len(F), self.d)), F.new_zeros((len(F), 1))

    def room(self, V: Float[Tensor, "B d"], extra: Float[Tensor, " B"]) -> Float[Tensor, "B y"]:
        """The norm and more."""
        return ((self.radii * V[:, self.moves]).norm(dim=1) + extra)[:, None]

    def form(self, w: Float[Tensor, "B w"], scaling: Scaling | None) -> ReachForm:
        """From W^-2: kappa its head, k its cross row over kappa, then e^2 / eta^2 less the pull."""
        assert scaling is not None
        head = scaling.head[:, 0]
        e = self.placed(self.radii.expand(len(head), -1))
        k = e * scaling.cross / head[:, None]
        return ReachForm(head, k, e**2 / scaling.eta**2, scaling.pull[:, 0], e * scaling.w1)


_REACHES: dict[str, type[AbstractReach]] = {"linf": SumReach, "l2": ConeReach, "l1": MaximumReach}


def reach_of(ball: Ball) -> AbstractReach:
    """The inequalities of a ball."""
    moves = torch.nonzero(ball.radii > 0)[:, 0]
    kind = _REACHES[ball.norm] if len(moves) else ConeReach  # whose rho has a cone of its own even without features
    return kind(ball.radii[moves], moves, len(ball.radii))
