"""Bounded polyhedra {x >= 0, A x = A x0}: dimension, vertices, and what is largest or smallest on them.

Everything is done in coordinates t of the affine hull, x = x0 + B t with an orthonormal B, in which A x = A x0 holds by
itself; linear programs go to HiGHS, and every point is moved back to the set up to rounding before it is returned.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float
from scipy.linalg import null_space, qr
from scipy.optimize import linprog, nnls

from convexnn.errors import InvalidInputError, SolverError
from convexnn.solutions.vertices import bases

_POSITIVE = 1e-9  # of the largest coordinate: what no point of the set exceeds is zero on it
_SINGULAR = 1e-9
_CHUNK = 4096


@dataclass(frozen=True)
class Polytope:
    """The non-negative x with A x = A x0; bounded, with x0 in it."""

    A: Float[np.ndarray, "N m"]
    x0: Float[np.ndarray, " m"]
    tolerance: float = 1e-8  # singular values of A, its columns scaled to norm one, that count as zero (relative)

    @cached_property
    def _hull(self) -> tuple[Float[np.ndarray, "m q"], Bool[np.ndarray, " m"], Float[np.ndarray, " m"]]:
        """B, the coordinates that can be positive, and a point where all of these are."""
        free = np.ones(len(self.x0), dtype=bool)
        while True:
            B = self._directions(free)
            tops = [self._maximise(B, np.eye(len(self.x0))[j]) for j in np.flatnonzero(free)]
            centre = np.mean(tops, axis=0) if tops else self.x0
            positive = free & (centre > _POSITIVE * max(centre.max(initial=0.0), 1e-300))
            if (positive == free).all() or not free.any():
                return B, free, centre
            free = positive  # coordinates that are zero on the set leave directions out

    def _directions(self, free: Bool[np.ndarray, " m"]) -> Float[np.ndarray, "m q"]:
        sizes = np.linalg.norm(self.A, axis=0)
        used = np.flatnonzero(free)
        scale = 1.0 / np.where(sizes[used] > 0, sizes[used], 1.0)
        B = np.zeros((len(self.x0), 0))
        if len(used):
            inner = null_space(_square(self.A[:, used] * scale), rcond=self.tolerance)
            B = np.zeros((len(self.x0), inner.shape[1]))
            B[used] = np.linalg.qr(scale[:, None] * inner)[0] if inner.shape[1] else inner
        return B

    @property
    def dimension(self) -> int:
        """Of the affine hull; zero where x0 is the only point."""
        return self._hull[0].shape[1]

    @property
    def positive(self) -> Bool[np.ndarray, " m"]:
        """Coordinates that are positive somewhere on the set."""
        return self._hull[1]

    @property
    def centre(self) -> Float[np.ndarray, " m"]:
        """A point in the relative interior: the mean of one maximiser for each coordinate."""
        return self._hull[2]

    @property
    def basis(self) -> Float[np.ndarray, "m q"]:
        """Orthonormal directions of the affine hull."""
        return self._hull[0]

    def maximise(self, c: Float[np.ndarray, " m"]) -> Float[np.ndarray, " m"]:
        """A vertex with the largest c'x."""
        return self._maximise(self.basis, c)

    def _maximise(self, B: np.ndarray, c: np.ndarray) -> np.ndarray:
        cost = -(B.T @ c)
        if B.shape[1] == 0 or not np.abs(cost).max() > 0:
            return self.x0
        found = linprog(cost / np.abs(cost).max(), A_ub=-B, b_ub=self.x0, bounds=(None, None), method="highs-ds")
        if found.x is None:
            raise SolverError(f"HiGHS found no vertex of an optimal set: {found.message}")
        return self._snapped(B, self.x0 + B @ found.x)

    def maximin(
        self, M: Float[np.ndarray, "k m"], shift: Float[np.ndarray, " k"]
    ) -> tuple[Float[np.ndarray, " m"], float]:
        """The point with the largest min_i (M x + shift)_i, and that value."""
        B, start = self.basis, M @ self.x0 + shift
        rows = np.concatenate([np.column_stack([-B, np.zeros(len(B))]), np.column_stack([-M @ B, np.ones(len(M))])])
        cost = np.append(np.zeros(B.shape[1]), -1.0)
        found = linprog(cost, A_ub=rows, b_ub=np.append(self.x0, start), bounds=(None, None), method="highs-ds")
        if found.x is None:
            raise SolverError(f"HiGHS found no largest margin on an optimal set: {found.message}")
        x = np.maximum(self.x0 + B @ found.x[:-1], 0.0)
        return x, float((M @ x + shift).min())

    def _snapped(self, B: np.ndarray, x: np.ndarray) -> np.ndarray:
        """The vertex that x is near to: its zeros exactly zero, the others from the equations."""
        zero = x <= 1e-7 * max(x.max(), 1e-300)
        t = np.linalg.lstsq(B[zero], -self.x0[zero], rcond=_SINGULAR)[0] if zero.any() else B.T @ (x - self.x0)
        out = self.x0 + B @ t
        out[zero] = 0.0
        near = np.abs(out - x).max() <= 1e-5 * max(x.max(), 1e-300)
        return np.maximum(out if near else x, 0.0)

    def random_vertex(self, rng: np.random.Generator) -> Float[np.ndarray, " m"]:
        """The vertex that is furthest in a random direction."""
        return self.maximise(self.basis @ rng.standard_normal(self.dimension))

    def minimum_norm(self) -> Float[np.ndarray, " m"]:
        """The point nearest to zero, by non-negative least squares (Lawson & Hanson, chapter 23)."""
        B = self.basis
        if B.shape[1] == 0:
            return self.x0
        low = self.x0 - B @ (B.T @ self.x0)  # the point of the affine hull nearest to zero; min |s|, B s >= -low
        size = max(np.abs(low).max(), 1e-300)
        E = np.concatenate([B.T, -low[None] / size])
        f = np.append(np.zeros(B.shape[1]), 1.0)
        residual = E @ nnls(E, f)[0] - f
        s = -residual[:-1] / residual[-1] * size if abs(residual[-1]) > 1e-14 else B.T @ self.x0
        return np.maximum(low + B @ s, 0.0)

    def vertices(self, most: int = 100_000) -> Float[np.ndarray, "v m"]:
        """All of them.

        Raises:
            InvalidInputError: there are more than ``most`` (where many coordinates vanish together, or somewhat fewer).
        """
        found, complete = self.some_vertices(most)
        if not complete:
            raise InvalidInputError(
                f"an optimal set of dimension {self.dimension} in {int(self.positive.sum())} coordinates has more than "
                f"{most} vertices, or nearly as many. Ask for random vertices, or for some_vertices of its polytope."
            )
        return found

    def some_vertices(self, most: int) -> tuple[Float[np.ndarray, "v m"], bool]:
        """Vertices by a walk along edges that ends after about ``most``, and whether these are all."""
        used = np.flatnonzero(self.positive)
        if self.dimension == 0:
            return self.x0[None], True
        sets, complete = bases(self.basis[used], self.centre[used], most)
        corners = [self._corners(used[part]) for part in np.array_split(sets, 1 + len(sets) // _CHUNK)]
        return _distinct(np.concatenate(corners)), complete

    def _corners(self, sets: np.ndarray) -> np.ndarray:
        """The points where these coordinates vanish, those in the set."""
        B = self.basis
        square = B[sets]
        fine = np.abs(np.linalg.det(square)) > _SINGULAR ** square.shape[1]
        sets, square = sets[fine], square[fine]
        fine = np.linalg.cond(square) < 1 / _SINGULAR if len(square) else fine[:0]
        sets, square = sets[fine], square[fine]
        if len(sets) == 0:
            return np.zeros((0, len(self.x0)))
        t = np.linalg.solve(square, -self.x0[sets][:, :, None])[:, :, 0]
        x = self.x0 + t @ B.T
        np.put_along_axis(x, sets, 0.0, axis=1)
        inside = x.min(1) >= -1e-9 * max(self.x0.max(initial=0.0), 1e-300)
        return np.maximum(x[inside], 0.0)


def _square(A: np.ndarray) -> np.ndarray:
    """A matrix with the same null space and no more rows than columns: a null space of N rows takes N x N numbers."""
    return qr(A, mode="r", check_finite=False)[0][: A.shape[1]] if len(A) > A.shape[1] else A


def _distinct(points: np.ndarray) -> np.ndarray:
    scale = max(np.abs(points).max(initial=0.0), 1e-300)
    _, first = np.unique(np.round(points / scale, 7), axis=0, return_index=True)
    return points[np.sort(first)]
