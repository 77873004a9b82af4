"""The Newton matrix of one leaf, eliminated from the inside out: free samples and groups first, G is left.

H = A'P A with P the scaled Hessians of the cones. The variables of a free sample (its z) and of a group meet the rest
through g alone, so that H is an arrow. What is left, and how the outputs of the leaf depend on it, goes to
``coupling``, which joins the leaves.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.linalg import LinAlgError
from scipy.linalg.lapack import dpotrf, dtrtrs

from convexnn.proof.cones import AbstractScaling
from convexnn.proof.leaf import Leaf, symmetric_hessian
from convexnn.proof.lifting import folded, group_hessian

Array = np.ndarray

_RIDGE = 1e-13  # relative, at the level of rounding


@dataclass(frozen=True)
class GroupFactor:
    """Cholesky factor of a group's own block; its coupling to g and its outputs after a triangular solve."""

    lower: Float[Array, "L L"]
    coupling: Float[Array, "L p"]  # lower^-1 H_local,g
    ends: Float[Array, "L m"]  # lower^-1 of the unit vectors of z


@dataclass(frozen=True)
class Reduced:
    """A right-hand side without free samples and groups: for g, and what they add to the outputs at g = 0."""

    g: Float[Array, " p"]
    outputs: Float[Array, " n"]
    halves: list[Array]  # lower^-1 of the groups' parts


@dataclass(frozen=True)
class LeafFactor:
    """A leaf with its free samples and groups eliminated.

    ``parts`` are the coefficients in (theta, t_i, q_i) of each sample's output, zero for samples in groups, whose
    outputs are ``lifted`` @ g; ``schur`` is what each free sample adds to the Hessian, in the same three.
    """

    leaf: Leaf
    z_diagonal: Float[Array, " k"]
    z_coupling: Float[Array, "k 3"]
    schur: Float[Array, "k 3 3"]
    parts: Float[Array, "n 3"]
    groups: list[GroupFactor]
    lifted: Float[Array, "l p"]
    rest: Float[Array, "p p"]  # the Hessian without ``schur``

    @property
    def weight(self) -> Float[Array, " n"]:
        """Outputs for a unit of z."""
        return self.leaf.sign * self.leaf.radii

    def outputs(self, g: Float[Array, " p"]) -> Float[Array, " n"]:
        """The part of the outputs that moves with g."""
        leaf, parts = self.leaf, self.parts
        out = parts[:, 0] * g[0] + parts[:, 1] * (leaf.rows @ g[leaf.u_index]) + parts[:, 2] * (leaf.q_rows @ g)
        out[leaf.groups.ravel()] += self.lifted @ g
        return out

    def outputs_adjoint(self, y: Float[Array, " n"]) -> Float[Array, " p"]:
        """Adjoint of :meth:`outputs`."""
        leaf, (first, second, third) = self.leaf, (self.parts * y[:, None]).T
        out = leaf.q_rows.T @ third
        out[0] += first.sum()
        out[leaf.u_index] += leaf.rows.T @ second
        return out + self.lifted.T @ y[leaf.groups.ravel()]

    def reduce(self, right: Array) -> Reduced:
        """Eliminate free samples and groups from a right-hand side."""
        leaf, k = self.leaf, self.leaf.p + len(self.leaf.free)
        g, z = right[: leaf.p].copy(), right[leaf.p : k] / self.z_diagonal
        outputs = np.zeros(len(leaf.rows))
        outputs[leaf.free] = z
        pulled = self.z_coupling * z[:, None]
        g[0] -= pulled[:, 0].sum()
        g[leaf.u_index] -= leaf.rows[leaf.free].T @ pulled[:, 1]
        third = np.zeros(len(leaf.rows))
        third[leaf.free] = pulled[:, 2]
        g -= leaf.q_rows.T @ third
        halves = [solved(f.lower, r) for f, r in zip(self.groups, self._local(right), strict=True)]
        for indices, factor, half in zip(leaf.groups, self.groups, halves, strict=True):
            g -= factor.coupling.T @ half
            outputs[indices] = factor.ends.T @ half
        return Reduced(g, self.weight * outputs, halves)

    def expand(self, right: Array, reduced: Reduced, g: Float[Array, " p"], y: Float[Array, " n"]) -> Array:
        """The solution of H x + B'y = right, from its g."""
        leaf, free = self.leaf, self.leaf.free
        z = right[leaf.p : leaf.p + len(free)] - (self.weight * y)[free]
        moved = (leaf.q_rows @ g)[free]
        z -= self.z_coupling[:, 0] * g[0] + self.z_coupling[:, 1] * (leaf.rows[free] @ g[leaf.u_index])
        z = (z - self.z_coupling[:, 2] * moved) / self.z_diagonal
        pull = self.weight * y
        inner = [
            solved(f.lower, half - f.ends @ pull[indices] - f.coupling @ g, transposed=True)
            for indices, f, half in zip(leaf.groups, self.groups, reduced.halves, strict=True)
        ]
        return np.concatenate([g, z, *inner])

    def _local(self, right: Array) -> Array:
        start = self.leaf.p + len(self.leaf.free)
        return right[start:].reshape(self.leaf.n_groups, self.leaf.n_local)


def factorise(leaf: Leaf, scalings: list[AbstractScaling]) -> LeafFactor:
    """Assemble and eliminate; raises LinAlgError where rounding has destroyed definiteness."""
    rows, linear, cone, moments, lorentz, pairs = (scaling.hessian() for scaling in scalings)  # type: ignore[attr-defined]
    H = (leaf.g_rows * rows[:, None]).T @ leaf.g_rows
    local = _free(leaf, linear, cone)
    diagonal, coupling = local[:, 0, 0], local[:, 0, 1:]
    schur = local[:, 1:, 1:] - coupling[:, :, None] * (coupling / diagonal[:, None])[:, None, :]
    parts = np.zeros((len(leaf.rows), 3))
    parts[leaf.on, 1] = 1.0
    parts[leaf.free] = -coupling / diagonal[:, None]
    parts *= (leaf.sign * leaf.radii)[:, None]
    groups: list[GroupFactor] = []
    if leaf.n_groups == 0:
        H += symmetric_hessian(moments[0])
    else:
        groups = _groups(leaf, H, moments, lorentz, pairs)
    weight = (leaf.sign * leaf.radii)[leaf.groups]
    lifted = [-w[:, None] * (f.ends.T @ f.coupling) for w, f in zip(weight, groups, strict=True)]
    return LeafFactor(
        leaf, diagonal, coupling, schur, parts, groups, np.concatenate([np.zeros((0, leaf.p)), *lifted]), H
    )


def _free(leaf: Leaf, linear: Array, cone: Array) -> Float[Array, "k 4 4"]:
    """The Hessian of each free sample in (z, theta, t, q)."""
    low, high = leaf.low[leaf.free], leaf.high[leaf.free]
    one, zero = np.ones_like(low), np.zeros_like(low)
    lines = [(one, zero, zero, zero), (one, zero, -one, zero), (high - low, zero, low, -one)]
    if leaf.cuts:
        lines.append((low - high, -high * low, high, zero))
    L = np.stack([np.stack(line, -1) for line in lines], 1)  # samples, rows, (z, theta, t, q)
    C = np.array([[0.0, 1, 0, 1], [4, 0, -2, 0], [0, 1, 0, -1]])
    return np.swapaxes(L, 1, 2) @ (linear[..., None] * L) + C.T @ cone @ C


def _groups(leaf: Leaf, H: Array, moments: Array, lorentz: Array, pairs: Array) -> list[GroupFactor]:
    """Factorise all groups and take them off H."""
    factors, left, right = [], [], []
    for P, cones, rows, j in zip(moments, lorentz, pairs, range(leaf.n_groups), strict=True):
        hessian = group_hessian(leaf, j, P, cones, rows)
        left.append(hessian.left)
        right.append(hessian.right)
        factors.append(_group(leaf, hessian.own, hessian.cross))
        H -= factors[-1].coupling.T @ factors[-1].coupling
    H += folded(np.concatenate(left), np.concatenate(right))
    return factors


def _group(leaf: Leaf, own: Array, cross: Float[Array, "p L"]) -> GroupFactor:
    lower = cholesky(own)
    ends = np.zeros((len(own), leaf.m), order="F")
    ends[np.arange(leaf.m) * (leaf.d + 1), np.arange(leaf.m)] = 1.0
    return GroupFactor(lower, solved(lower, cross.T), solved(lower, ends))


def cholesky(H: Float[Array, "N N"]) -> Float[Array, "N N"]:
    """The lower factor of a symmetric matrix with a relative ridge; the matrix is overwritten."""
    H[np.diag_indices_from(H)] *= 1 + _RIDGE
    lower, info = dpotrf(H.T, lower=1, clean=0, overwrite_a=1)
    if info != 0:
        raise LinAlgError("the Newton matrix is not positive definite any more")
    return lower


def solved(lower: Array, right: Array, transposed: bool = False) -> Array:
    """lower^-1 right, or lower^-T right; only the lower triangle is read."""
    return dtrtrs(lower, right, lower=1, trans=int(transposed))[0]
