"""Symmetric cones in batches: Nesterov-Todd scalings, steps to the boundary, and the algebra a Mehrotra step needs.

Three kinds are used: the orthant (arrays of any shape), second-order cones (..., k) whose first entry bounds the norm
of the others, and positive semidefinite matrices (..., N, N). A scaling at (s, lam) is a linear W with
W lam = W^-T s =: point. See Nesterov & Todd (1997) and Vandenberghe, "The CVXOPT linear and quadratic cone program
solvers" (2010), for the formulas.
"""

import abc
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

Array = np.ndarray

_TINY = 1e-300


class AbstractScaling(abc.ABC):
    """The scaling of one batch of cones at a strictly interior pair (s, lam)."""

    degree: int  # of the barrier: what complementarity is divided by

    @abc.abstractmethod
    def primal(self, ds: Array) -> Array:
        """W^-T ds."""

    @abc.abstractmethod
    def dual(self, dlam: Array) -> Array:
        """W dlam."""

    @abc.abstractmethod
    def unscale(self, scaled: Array) -> Array:
        """W^-1 applied to a scaled vector."""

    @abc.abstractmethod
    def divide(self, right: Array) -> Array:
        """The x with point o x = right, o being the Jordan product of the cone."""

    @abc.abstractmethod
    def square(self) -> Array:
        """point o point."""

    @abc.abstractmethod
    def product(self, a: Array, b: Array) -> Array:
        """a o b for scaled vectors."""

    @abc.abstractmethod
    def unit(self) -> Array:
        """The unit of the Jordan product, broadcast to the batch."""

    @abc.abstractmethod
    def step(self, scaled: Array) -> float:
        """The largest t with point + t scaled in the cone (infinity where it never leaves)."""


@dataclass(frozen=True)
class OrthantScaling(AbstractScaling):
    """W = diag(sqrt(s / lam))."""

    root: Array  # sqrt(s / lam)
    point: Array  # sqrt(s lam)

    @staticmethod
    def at(s: Array, lam: Array) -> "OrthantScaling":
        """The scaling at (s, lam)."""
        return OrthantScaling(np.sqrt(s / lam), np.sqrt(s * lam))

    @property
    def degree(self) -> int:  # type: ignore[override]
        """Number of entries."""
        return self.point.size

    def hessian(self) -> Array:
        """The diagonal of W^-1 W^-T: lam / s."""
        return self.root**-2

    def primal(self, ds: Array) -> Array:
        """ds / root."""
        return ds / self.root

    def dual(self, dlam: Array) -> Array:
        """root dlam."""
        return self.root * dlam

    def unscale(self, scaled: Array) -> Array:
        """scaled / root."""
        return scaled / self.root

    def divide(self, right: Array) -> Array:
        """right / point."""
        return right / self.point

    def square(self) -> Array:
        """s lam."""
        return self.point**2

    def product(self, a: Array, b: Array) -> Array:
        """Entrywise."""
        return a * b

    def unit(self) -> Array:
        """Ones."""
        return np.ones_like(self.point)

    def step(self, scaled: Array) -> float:
        """1 / max(-scaled / point)."""
        worst = float(np.max(-scaled / self.point, initial=0.0))
        return 1.0 / worst if worst > 0 else np.inf


def hyperbolic(x: Float[Array, "*b k"]) -> Float[Array, "*b"]:
    """x_0^2 - |x_1|^2, without cancellation where the cone's boundary is near."""
    norm = np.linalg.norm(x[..., 1:], axis=-1)
    return (x[..., 0] - norm) * (x[..., 0] + norm)


@dataclass(frozen=True)
class LorentzScaling(AbstractScaling):
    """Second-order cones: W = eta [[w0, w1'], [w1, I + w1 w1' / (1 + w0)]] with w0^2 - |w1|^2 = 1."""

    eta: Array  # (*b,)
    w: Array  # (*b, k)
    point: Array  # (*b, k)

    @staticmethod
    def at(s: Array, lam: Array) -> "LorentzScaling":
        """The scaling at (s, lam)."""
        a, b = np.sqrt(np.maximum(hyperbolic(s), _TINY)), np.sqrt(np.maximum(hyperbolic(lam), _TINY))
        unit_s, unit_lam = s / a[..., None], lam / b[..., None]
        gamma = np.sqrt((1 + np.maximum((unit_s * unit_lam).sum(-1), 1.0)) / 2)  # at least 1, but for rounding
        w = (unit_s + _reflect(unit_lam)) / (2 * gamma[..., None])
        w[..., 0] = np.sqrt(1 + (w[..., 1:] ** 2).sum(-1))
        eta = np.sqrt(a / b)
        return LorentzScaling(eta, w, _boost(w, lam) * eta[..., None])

    @property
    def degree(self) -> int:  # type: ignore[override]
        """Number of cones."""
        return self.eta.size

    def hessian(self) -> Array:
        """W^-2 = eta^-2 (2 Jw (Jw)' - J), (*b, k, k)."""
        w = _reflect(self.w)
        out = 2 * w[..., :, None] * w[..., None, :]
        diagonal = np.arange(w.shape[-1])
        out[..., diagonal, diagonal] += np.where(diagonal == 0, -1.0, 1.0)
        return out / (self.eta**2)[..., None, None]

    def primal(self, ds: Array) -> Array:
        """W^-1 ds (W is symmetric)."""
        return _boost(_reflect(self.w), ds) / self.eta[..., None]

    def dual(self, dlam: Array) -> Array:
        """W dlam."""
        return _boost(self.w, dlam) * self.eta[..., None]

    def unscale(self, scaled: Array) -> Array:
        """W^-1 scaled."""
        return self.primal(scaled)

    def divide(self, right: Array) -> Array:
        """The inverse of the arrow matrix of the point, applied to right."""
        p0, p1 = self.point[..., :1], self.point[..., 1:]
        det = np.maximum(hyperbolic(self.point), _TINY)[..., None]
        r0, r1 = right[..., :1], right[..., 1:]
        inner = (p1 * r1).sum(-1, keepdims=True)
        x0 = (p0 * r0 - inner) / det
        return np.concatenate([x0, (r1 - x0 * p1) / p0], -1)

    def square(self) -> Array:
        """point o point."""
        return self.product(self.point, self.point)

    def product(self, a: Array, b: Array) -> Array:
        """(a'b, a0 b1 + b0 a1)."""
        head = (a * b).sum(-1, keepdims=True)
        return np.concatenate([head, a[..., :1] * b[..., 1:] + b[..., :1] * a[..., 1:]], -1)

    def unit(self) -> Array:
        """(1, 0, ..., 0)."""
        out = np.zeros_like(self.point)
        out[..., 0] = 1.0
        return out

    def step(self, scaled: Array) -> float:
        """The first root of the quadratic that leaves the cone."""
        a = hyperbolic(scaled)
        b = self.point[..., 0] * scaled[..., 0] - (self.point[..., 1:] * scaled[..., 1:]).sum(-1)
        c = np.maximum(hyperbolic(self.point), _TINY)
        root = np.sqrt(np.maximum(b * b - a * c, 0.0))
        # c / (-b + root) is the smaller positive root; where its denominator is not positive the ray stays inside
        bad = (b * b >= a * c) & ((a < 0) | (b < 0))
        with np.errstate(divide="ignore"):
            found = np.where(bad, c / np.maximum(root - b, _TINY), np.inf)
        return float(np.min(found, initial=np.inf))


def _reflect(x: Array) -> Array:
    out = -x
    out[..., 0] = x[..., 0]
    return out


def _boost(w: Array, x: Array) -> Array:
    """[[w0, w1'], [w1, I + w1 w1' / (1 + w0)]] x."""
    inner = (w[..., 1:] * x[..., 1:]).sum(-1)
    head = w[..., 0] * x[..., 0] + inner
    tail = x[..., 1:] + (x[..., 0] + inner / (1 + w[..., 0]))[..., None] * w[..., 1:]
    return np.concatenate([head[..., None], tail], -1)


@dataclass(frozen=True)
class MatrixScaling(AbstractScaling):
    """Positive semidefinite matrices: R^-1 S R^-T = R' Lam R = diag(point)."""

    R: Array  # (*b, N, N)
    inverse: Array  # R^-1
    point: Array  # (*b, N), positive

    @staticmethod
    def at(s: Array, lam: Array) -> "MatrixScaling":
        """From Cholesky factors and one singular value decomposition; raises LinAlgError outside the cone."""
        lower_s, lower_lam = np.linalg.cholesky(s), np.linalg.cholesky(lam)
        left, point, right = np.linalg.svd(np.swapaxes(lower_lam, -1, -2) @ lower_s)
        root = np.sqrt(np.maximum(point, _TINY))
        R = lower_s @ np.swapaxes(right, -1, -2) / root[..., None, :]
        inverse = np.swapaxes(left, -1, -2) @ np.swapaxes(lower_lam, -1, -2) / root[..., :, None]
        return MatrixScaling(R, inverse, point)

    @property
    def degree(self) -> int:  # type: ignore[override]
        """Sum of the orders."""
        return self.point.size

    def hessian(self) -> Array:
        """P = R^-T R^-1: the Hessian is dX -> P dX P."""
        return np.swapaxes(self.inverse, -1, -2) @ self.inverse

    def primal(self, ds: Array) -> Array:
        """R^-1 ds R^-T."""
        return self.inverse @ ds @ np.swapaxes(self.inverse, -1, -2)

    def dual(self, dlam: Array) -> Array:
        """R' dlam R."""
        return np.swapaxes(self.R, -1, -2) @ dlam @ self.R

    def unscale(self, scaled: Array) -> Array:
        """R^-T scaled R^-1."""
        return np.swapaxes(self.inverse, -1, -2) @ scaled @ self.inverse

    def divide(self, right: Array) -> Array:
        """2 right_ij / (point_i + point_j)."""
        return 2 * right / (self.point[..., :, None] + self.point[..., None, :])

    def square(self) -> Array:
        """diag(point^2)."""
        return self.point[..., None] ** 2 * np.eye(self.point.shape[-1])

    def product(self, a: Array, b: Array) -> Array:
        """(ab + ba) / 2."""
        ab = a @ b
        return 0.5 * (ab + np.swapaxes(ab, -1, -2))

    def unit(self) -> Array:
        """The identity."""
        return np.broadcast_to(np.eye(self.point.shape[-1]), (*self.point.shape, self.point.shape[-1]))

    def step(self, scaled: Array) -> float:
        """1 / the largest eigenvalue of -D^-1/2 scaled D^-1/2."""
        root = 1 / np.sqrt(self.point)
        values = np.linalg.eigvalsh(-root[..., :, None] * scaled * root[..., None, :])
        worst = float(np.max(values, initial=0.0))
        return 1.0 / worst if worst > 0 else np.inf
