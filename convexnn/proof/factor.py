"""The Newton matrix of one leaf, factorised from the inside out: free samples and groups first, then G.

H = A'P A with P the scaled Hessians of the cones. The variables of a free sample (its z) and of a group meet the rest
through g alone, so that H is an arrow; eliminating them leaves a p x p matrix. The outputs of the leaf are linear in z
and in g: ``gram`` is B H^-1 B', what the leaf adds to the n x n system of the dual point.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.linalg import cholesky, solve_triangular

from convexnn.proof.cones import AbstractScaling
from convexnn.proof.leaf import Leaf, symmetric_hessian, triangle

Array = np.ndarray


@dataclass(frozen=True)
class GroupFactor:
    """Cholesky factor of a group's own block, and its coupling to g after a triangular solve."""

    lower: Float[Array, "L L"]
    coupling: Float[Array, "L p"]  # lower^-1 H_local,g


@dataclass(frozen=True)
class LeafFactor:
    """H = A'P A of a leaf, ready to solve with."""

    leaf: Leaf
    z_diagonal: Float[Array, " k"]
    z_coupling: Float[Array, "k p"]  # rows H_z,g
    groups: list[GroupFactor]
    lower: Float[Array, "p p"]
    outputs_g: Float[Array, "n p"]  # (B_g - B_x H_xx^-1 H_xg) lower^-T

    def solve(self, right: Array) -> Array:
        """H^-1 right."""
        leaf = self.leaf
        k = leaf.p + len(leaf.free)
        g, z = right[: leaf.p].copy(), right[leaf.p : k]
        local = right[k:].reshape(leaf.n_groups, leaf.n_local)
        g -= self.z_coupling.T @ (z / self.z_diagonal)
        half = [_forward(f.lower, r) for f, r in zip(self.groups, local, strict=True)]
        for factor, h in zip(self.groups, half, strict=True):
            g -= factor.coupling.T @ h
        g = _backward(self.lower, _forward(self.lower, g))
        z = (z - self.z_coupling @ g) / self.z_diagonal
        inner = [_backward(f.lower, h - f.coupling @ g) for f, h in zip(self.groups, half, strict=True)]
        return np.concatenate([g, z, *inner])

    def gram(self) -> Float[Array, "n n"]:
        """B H^-1 B'."""
        leaf, out = self.leaf, self.outputs_g @ self.outputs_g.T
        weight = leaf.sign * leaf.radii
        out[leaf.free, leaf.free] += weight[leaf.free] ** 2 / self.z_diagonal
        for indices, factor in zip(leaf.groups, self.groups, strict=True):
            E = _forward(factor.lower, np.eye(len(factor.lower), leaf.m))
            out[np.ix_(indices, indices)] += weight[indices][:, None] * (E.T @ E) * weight[indices]
        return out


def _forward(lower: Array, right: Array) -> Array:
    return solve_triangular(lower, right, lower=True, check_finite=False)


def _backward(lower: Array, right: Array) -> Array:
    return solve_triangular(lower, right, lower=True, trans=1, check_finite=False)


def factorise(leaf: Leaf, scalings: list[AbstractScaling]) -> LeafFactor:
    """Assemble and factorise; raises LinAlgError where rounding has destroyed definiteness."""
    rows, linear, cone, moments, lorentz, pairs = (scaling.hessian() for scaling in scalings)  # type: ignore[attr-defined]
    H = (leaf.g_rows * rows[:, None]).T @ leaf.g_rows
    z_diagonal, z_coupling = _free(leaf, H, linear, cone)
    H -= (z_coupling / z_diagonal[:, None]).T @ z_coupling
    if leaf.n_groups == 0:
        H += symmetric_hessian(moments[0])
    else:
        H += _second_cones(leaf, lorentz[:, 1])
    groups = []
    for j in range(leaf.n_groups):
        factor = _group(leaf, H, j, moments[j], lorentz[j], pairs[j])
        H -= factor.coupling.T @ factor.coupling
        groups.append(factor)
    lower = _cholesky(H)
    outputs = _outputs(leaf, z_diagonal, z_coupling, groups)
    return LeafFactor(leaf, z_diagonal, z_coupling, groups, lower, _forward(lower, outputs.T).T)


def _cholesky(H: Array) -> Array:
    """Of H with a relative ridge at the level of rounding."""
    diagonal = np.sqrt(np.maximum(np.diagonal(H), 1e-300))
    scaled = H / diagonal[:, None] / diagonal
    scaled[np.diag_indices_from(scaled)] += 1e-13
    return diagonal[:, None] * cholesky(scaled, lower=True, check_finite=False)


def _free(leaf: Leaf, H: Array, linear: Array, cone: Array) -> tuple[Array, Array]:
    """Add the free samples to H; their diagonal in z and coupling to g."""
    free = leaf.free
    low, high = leaf.low[free], leaf.high[free]
    one, zero = np.ones_like(low), np.zeros_like(low)
    lines = [(one, zero, zero, zero), (one, zero, -one, zero), (high - low, zero, low, -one)]
    if leaf.cuts:
        lines.append((low - high, -high * low, high, zero))
    L = np.stack([np.stack(line, -1) for line in lines], 1)  # samples, rows, (z, theta, t, q)
    C = np.array([[0.0, 1, 0, 1], [4, 0, -2, 0], [0, 1, 0, -1]])
    local = np.swapaxes(L, 1, 2) @ (linear[..., None] * L) + C.T @ cone @ C
    T, Q = leaf.t_rows[free], leaf.q_rows[free]
    H += _congruence(local[:, 1:, 1:], T, Q)
    coupling = local[:, 0, 2, None] * T + local[:, 0, 3, None] * Q
    coupling[:, 0] += local[:, 0, 1]
    return local[:, 0, 0], coupling


def _congruence(local: Float[Array, "k 3 3"], T: Array, Q: Array) -> Array:
    """sum_i K_i' local_i K_i with K_i = (theta, t_i, q_i) as rows over g."""
    cross = T.T @ (local[:, 1, 2, None] * Q)
    out = cross + cross.T + T.T @ (local[:, 1, 1, None] * T) + Q.T @ (local[:, 2, 2, None] * Q)
    edge = T.T @ local[:, 0, 1] + Q.T @ local[:, 0, 2]
    out[0] += edge
    out[:, 0] += edge
    out[0, 0] += local[:, 0, 0].sum()
    return out


def _second_cones(leaf: Leaf, P: Float[Array, "J m k k"]) -> Array:
    """What the cones (z - t, U xh - W) add to H_gg."""
    d, X = leaf.d, leaf.lifted.reshape(-1, leaf.d)
    P = P.reshape(-1, d + 1, d + 1)
    out = np.zeros((leaf.p, leaf.p))
    out[np.ix_(leaf.u_index, leaf.u_index)] = X.T @ (P[:, 0, 0, None] * X)
    XX = (X[:, :, None] * X[:, None, :]).reshape(len(X), -1)
    full = (XX.T @ P[:, 1:, 1:].reshape(len(X), -1)).reshape(d, d, d, d)  # x_a x_b P_kl
    full = full.transpose(2, 0, 3, 1).reshape(d * d, d * d)  # (k a), (l b)
    edge = -(XX.T @ P[:, 0, 1:]).reshape(d, d, d)  # u_a times U_kb: -x_a x_b P_0k
    edge = edge.transpose(0, 2, 1).reshape(d, d * d)
    U = leaf.square_index.ravel()
    out += _fold(_fold(full, U, leaf.p).T, U, leaf.p)
    edge = _fold(edge.T, U, leaf.p)  # p, d
    out[:, leaf.u_index] += edge
    out[leaf.u_index, :] += edge.T
    return out


def _fold(M: Float[Array, "r c"], index: Array, size: int) -> Float[Array, "s c"]:
    """Sum the rows of M that share an index."""
    order = np.argsort(index, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(index[order]) > 0])
    out = np.zeros((size, M.shape[1]))
    out[index[order][starts]] = np.add.reduceat(M[order], starts, axis=0)
    return out


def _group(leaf: Leaf, H: Array, j: int, P: Array, lorentz: Array, pairs: Array) -> GroupFactor:
    """Add the g-part of a group's moment matrix and pairs to H; factorise its own block."""
    p, m, d, L = leaf.p, leaf.m, leaf.d, leaf.n_local
    full = _moment_hessian(leaf, j, P)
    K, C = full[p:, p:], full[p:, :p]
    H += full[:p, :p]
    _add_cones(leaf, j, K, C, lorentz)
    _add_pairs(leaf, j, H, K, C, pairs)
    del m, d, L
    lower = _cholesky(K)
    return GroupFactor(lower, _forward(lower, C))


def _places(leaf: Leaf) -> tuple[Array, Array]:
    """Places of g and of a group's variables z, W, S in the triangle of its moment matrix; places of S_ii."""
    k, m, d = leaf.d + 1, leaf.m, leaf.d
    row = k + np.arange(m)
    base = row * (row + 1) // 2
    i, jj = leaf.pairs
    W = (base[:, None] + 1 + np.arange(d)).ravel()
    return np.concatenate([np.arange(leaf.p), base, W, base[i] + k + jj]), base + row


def _moment_hessian(leaf: Leaf, j: int, P: Array) -> Array:
    """Hessian of the moment matrix in (g, z, W, S), with S_ii = W_i'xh_i substituted."""
    places, diagonal = _places(leaf)
    full = symmetric_hessian(P)
    out = full[np.ix_(places, places)]
    X, m, d = leaf.lifted[j], leaf.m, leaf.d
    start = leaf.p + m
    D = full[np.ix_(diagonal, places)]
    edge = (X[:, :, None] * D[:, None, :]).reshape(m * d, -1)
    out[start : start + m * d] += edge
    out[:, start : start + m * d] += edge.T
    square = full[np.ix_(diagonal, diagonal)]
    out[start : start + m * d, start : start + m * d] += np.einsum("ia,ij,jb->iajb", X, square, X).reshape(m * d, m * d)
    return out


def _add_cones(leaf: Leaf, j: int, K: Array, C: Array, lorentz: Float[Array, "2 m k k"]) -> None:
    """The cones (z, W) and (z - t, U xh - W) of a group; the H_gg part of the second is added elsewhere."""
    m, d, X = leaf.m, leaf.d, leaf.lifted[j]
    first, second = lorentz
    flip = np.ones(d + 1)
    flip[1:] = -1.0
    both = first + flip[:, None] * second * flip
    i = np.arange(m)
    W = m + i[:, None] * d + np.arange(d)
    K[i, i] += both[:, 0, 0]
    K[i[:, None], W] += both[:, 0, 1:]
    K[W, i[:, None]] += both[:, 0, 1:]
    K[W[:, :, None], W[:, None, :]] += both[:, 1:, 1:]
    left = flip[:, None] * second  # rows: variables (z, W) of the sample
    u = -left[:, :, 0, None] * X[:, None, :]
    rows = np.concatenate([i[:, None], W], 1)
    C[rows[:, :, None], leaf.u_index] += u
    U = (left[:, :, 1:, None] * X[:, None, None, :]).reshape(m * (d + 1), d * d)
    C[rows.ravel()] += _fold(U.T, leaf.square_index.ravel(), leaf.p).T


def _add_pairs(leaf: Leaf, j: int, H: Array, K: Array, C: Array, D: Float[Array, "pairs 4"]) -> None:
    """The rows S, S - a, S - b, S - a - b + c of pairs, a = W_i'xh_j, b = W_j'xh_i, c = xh_i'U xh_j."""
    m, d, X = leaf.m, leaf.d, leaf.lifted[j]
    i, k = leaf.pairs
    if len(i) == 0:
        return
    S = m + m * d + np.arange(len(i))
    K[S, S] += D.sum(1)
    a, b, both = D[:, 1] + D[:, 3], D[:, 2] + D[:, 3], D[:, 3]
    W = m + np.arange(m)[:, None] * d + np.arange(d)
    for rows, columns, value in ((S[:, None], W[i], -a[:, None] * X[k]), (S[:, None], W[k], -b[:, None] * X[i])):
        K[rows, columns] += value
        K[columns, rows] += value
    own, cross = np.zeros((m, m)), np.zeros((m, m))
    own[i, k], own[k, i] = a, b
    cross[i, k] = cross[k, i] = both
    K[W[:, :, None], W[:, None, :]] += np.einsum("ij,ja,jb->iab", own, X, X)
    block = np.einsum("ij,ja,ib->iajb", cross, X, X).reshape(m * d, m * d)
    K[m : m + m * d, m : m + m * d] += block
    c = _pair_rows(leaf, j)
    C[S] += both[:, None] * c
    weighted = both[:, None] * c
    full = np.zeros((m, m, leaf.p))
    full[i, k] = full[k, i] = weighted
    C[m : m + m * d] -= np.einsum("ja,ijp->iap", X, full, optimize=True).reshape(m * d, -1)
    H += c.T @ weighted


def _pair_rows(leaf: Leaf, j: int) -> Float[Array, "pairs p"]:
    """xh_i'U xh_j as rows over g."""
    i, k = leaf.pairs
    X = leaf.lifted[j]
    a, b = triangle(leaf.d + 1)
    inside = b > 0
    A, B = a[inside] - 1, b[inside] - 1
    value = X[i][:, A] * X[k][:, B] + X[i][:, B] * X[k][:, A]
    out = np.zeros((len(i), leaf.p))
    out[:, inside] = np.where(A == B, 0.5, 1.0) * value
    return out


def _outputs(leaf: Leaf, z_diagonal: Array, z_coupling: Array, groups: list[GroupFactor]) -> Float[Array, "n p"]:
    """B_g - B_x H_xx^-1 H_xg."""
    out = np.zeros((len(leaf.rows), leaf.p))
    out[leaf.on] = leaf.t_rows[leaf.on]
    out[leaf.free] = -z_coupling / z_diagonal[:, None]
    for indices, factor in zip(leaf.groups, groups, strict=True):
        out[indices] = -_backward(factor.lower, factor.coupling)[: leaf.m]
    return (leaf.sign * leaf.radii)[:, None] * out
