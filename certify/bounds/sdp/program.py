"""Semidefinite programs whose constraints are products of two affine forms, and their operators.

Over moment matrices X of (1, v) with X_00 = 1:

    min c.X[:, 0]   s.t.   F_a' X F_b = 0 or >= 0 for pairs of columns of F,   X_00 - sum over i in I_k of X_ii >= 0 .

The first kind has rank 2, so the Schur matrix of an interior-point method is elementwise in F'XF and F'PF; the second
kind (balls and boxes of scaled variables) is diagonal.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float, Int

Vector = Float[np.ndarray, " _"]
Matrix = Float[np.ndarray, "_ _"]


@dataclass(frozen=True, eq=False)
class Program:
    """The data.

    Attributes:
        forms: F, a column for every affine form; row 0 holds the constants.
        left, right: for every product the columns of its factors.
        equal: whether the product is 0, rather than at least 0.
        objective: c.
        groups: the sets I_k as rows of zeros and ones; column 0 is zero.
    """

    forms: Matrix
    left: Int[np.ndarray, " products"]
    right: Int[np.ndarray, " products"]
    equal: Bool[np.ndarray, " products"]
    objective: Vector
    groups: Matrix

    @property
    def size(self) -> int:
        """Of X."""
        return len(self.forms)

    @property
    def products(self) -> int:
        """How many."""
        return len(self.left)

    @cached_property
    def inequality(self) -> Bool[np.ndarray, " constraints"]:
        """Which constraints are inequalities; products come first."""
        return np.concatenate([~self.equal, np.ones(len(self.groups), bool)])

    @cached_property
    def _units(self) -> Int[np.ndarray, " groups"] | None:
        """The only member of every group; None where some group has more."""
        return self.groups.argmax(1) if (self.groups.sum(1) == 1).all() else None

    @cached_property
    def cost(self) -> Matrix:
        """The symmetric C with C . X = c.X[:, 0]."""
        C = np.zeros((self.size, self.size))
        C[0] += self.objective / 2
        C[:, 0] += self.objective / 2
        return C

    def adjoint(self, y: Vector) -> Matrix:
        """sum y_k A_k."""
        m = self.products
        half = (self.forms[:, self.left] * y[:m]) @ self.forms[:, self.right].T
        S = (half + half.T) / 2
        k = np.arange(self.size)
        S[0, 0] += y[m:].sum()
        S[k, k] -= y[m:] @ self.groups
        return S

    def apply(self, X: Matrix) -> Vector:
        """A_k . X for all k."""
        G = X @ self.forms
        products = np.einsum("ij,ij->j", self.forms[:, self.left], G[:, self.right])
        return np.concatenate([products, X[0, 0] - self.groups @ np.diag(X)])

    def _among(self, M: Matrix) -> Matrix:
        """N M N', N the groups."""
        if self._units is not None:
            return M[np.ix_(self._units, self._units)]
        return self.groups @ M @ self.groups.T

    def _over(self, M: Float[np.ndarray, "n *rest"]) -> Float[np.ndarray, "groups *rest"]:
        """N M."""
        return M[self._units] if self._units is not None else self.groups @ M

    def schur(self, X: Matrix, P: Matrix) -> Matrix:
        """A_j . (X A_k P), symmetrised, for all constraints and, last, for E_00."""
        m, a, b = self.products, self.left, self.right
        XF, PF = X @ self.forms, P @ self.forms
        GX, GP = self.forms.T @ XF, self.forms.T @ PF
        q = len(self.inequality)
        M = np.empty((q + 1, q + 1))
        M[:m, :m] = _paired(GX, GP, a, b)
        corner = (XF[0, a] * PF[0, b] + XF[0, b] * PF[0, a]) / 2
        if q > m:
            entries = (XF[:, a] * PF[:, b] + XF[:, b] * PF[:, a]) / 2
            M[m:q, :m] = corner - self._over(entries)
            M[:m, m:q] = M[m:q, :m].T
        edge, top = self._over(X[0] * P[0]), X[0, 0] * P[0, 0]
        M[m:q, m:q] = top - edge[:, None] - edge + self._among(X * P)
        M[q, :m] = M[:m, q] = corner
        M[q, m:q] = M[m:q, q] = top - edge
        M[q, q] = top
        return M


def _paired(GX: Matrix, GP: Matrix, a: Int[np.ndarray, " m"], b: Int[np.ndarray, " m"]) -> Matrix:
    """(GX_aa GP_bb + GX_ab GP_ba + GX_ba GP_ab + GX_bb GP_aa) / 4 for all pairs of products."""
    Xa, Xb, Pa, Pb = GX[a], GX[b], GP[a], GP[b]
    M = Xa[:, a] * Pb[:, b]
    M += Xb[:, b] * Pa[:, a]
    mixed = Xa[:, b] * Pb[:, a]
    return (M + mixed + mixed.T) / 4
