"""The Hessian of one group of lifted samples: its own block, its coupling to G, and what it adds to G.

Variables: the rows v_i = (z_i, W_i) of the moment matrix below G, m x k with k = d + 1, then S_ij for i > j; S_ii is
W_i'xh_i. Cones: the moment matrix; (z_i, W_i) = v_i, and (z_i - t_i, U xh_i - W_i), which is v_i - G (0, xh_i) but for
signs; four rows for each pair. With (a, b) a place in the triangle of G, every coupling to G has the form T_ab + T_ba
(half of it on the diagonal), so that products of small matrices are formed first and folded last.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from convexnn.proof.leaf import Leaf, triangle

Array = np.ndarray


@dataclass(frozen=True)
class GroupHessian:
    """Blocks of the Hessian of a group; what it adds to G is the folded sum of ``left`` (x) ``right``."""

    own: Float[Array, "L L"]
    cross: Float[Array, "p L"]  # rows of G
    left: Float[Array, "r k k"]
    right: Float[Array, "r k k"]


@dataclass(frozen=True)
class _Cones:
    """What the second-order cones and the pairs come down to: m x m weights and m matrices of order k."""

    own: Float[Array, "m k k"]  # of v_i with itself
    shared: Float[Array, "m k k"]  # of v_i - G (0, xh_i) and of pairs, against G
    twice: Float[Array, "m k k"]  # the same with half of the pairs: against G and G
    neither: Float[Array, "m m"]
    mixed: Float[Array, "m m"]  # entry ij: weight of W_i'xh_j in rows


def group_hessian(leaf: Leaf, j: int, P: Float[Array, "N N"], lorentz: Array, pairs: Array) -> GroupHessian:
    """From the scaled Hessians of the moment matrix (P dX P), of the cones (2, m, k, k) and of pairs (*, 4)."""
    X = np.concatenate([np.zeros((leaf.m, 1)), leaf.lifted[j]], 1)
    cones = _cones(leaf, X, lorentz, pairs)
    width = X.size
    K = np.empty((leaf.n_local, leaf.n_local))
    K[:width, :width] = _rows_rows(X, P, cones)
    K[width:, :width] = _pairs_rows(leaf, X, P, pairs)
    K[:width, width:] = K[width:, :width].T
    K[width:, width:] = _pairs_pairs(leaf, P, pairs)
    left = np.concatenate([P[None, : leaf.d + 1, : leaf.d + 1], X[:, :, None] * X[:, None, :]])
    right = np.concatenate([P[None, : leaf.d + 1, : leaf.d + 1], cones.twice])
    return GroupHessian(K, _cross(leaf, X, P, cones, pairs), left, right)


def _cones(leaf: Leaf, X: Float[Array, "m k"], lorentz: Array, pairs: Array) -> _Cones:
    i, k = leaf.pairs
    m = leaf.m
    neither, mixed = np.zeros((m, m)), np.zeros((m, m))
    neither[i, k] = neither[k, i] = pairs[:, 3]
    mixed[i, k], mixed[k, i] = pairs[:, 1] + pairs[:, 3], pairs[:, 2] + pairs[:, 3]
    flip = np.ones(X.shape[1])
    flip[1:] = -1.0
    second = flip[:, None] * lorentz[1] * flip
    squares = (X[:, :, None] * X[:, None, :]).reshape(m, -1)
    joint = (neither @ squares).reshape(second.shape)
    own = lorentz[0] + second + (mixed @ squares).reshape(second.shape)
    return _Cones(own, second + joint, second + 0.5 * joint, neither, mixed)


def _rows_rows(X: Float[Array, "m k"], P: Array, cones: _Cones) -> Float[Array, "mk mk"]:
    """v_i against v_j; S_ii = W_i'xh_i makes three of the terms."""
    m, k = X.shape
    Z, PS = P[:k, k:], P[k:, k:]
    edge = X[:, :, None] * Z.T[:, None, :]  # xh_ia Z_bi
    out = np.add((P[:k, :k] + edge)[:, :, None, :], edge.transpose(2, 0, 1)[None])
    flat = X.ravel()
    out += 0.5 * (flat * PS.repeat(k, 0).repeat(k, 1) * flat[:, None]).reshape(m, k, m, k)
    out *= 2 * PS[:, None, :, None]
    out += (2 * Z)[None, :, :, None] * Z.T[:, None, None, :]
    out += X.T[None, :, :, None] * (cones.neither[:, :, None] * X[:, None, :])[:, None]
    i = np.arange(m)
    out[i, :, i] += cones.own
    return out.reshape(m * k, m * k)


def _pairs_rows(leaf: Leaf, X: Float[Array, "m k"], P: Array, pairs: Array) -> Float[Array, "s mk"]:
    """S_pq against v_i."""
    p, q = leaf.pairs
    m, k = X.shape
    Z, PS = P[:k, k:], P[k:, k:]
    out = PS[p][:, :, None] * Z.T[q][:, None, :] + PS[q][:, :, None] * Z.T[p][:, None, :]
    out += (PS[p] * PS[q])[:, :, None] * X
    out *= 2
    places = np.arange(len(p))
    out[places, p] -= (pairs[:, 1] + pairs[:, 3])[:, None] * X[q]
    out[places, q] -= (pairs[:, 2] + pairs[:, 3])[:, None] * X[p]
    return out.reshape(len(p), m * k)


def _pairs_pairs(leaf: Leaf, P: Array, pairs: Array) -> Float[Array, "s s"]:
    p, q = leaf.pairs
    PS = P[leaf.d + 1 :, leaf.d + 1 :]
    out = 2 * (PS[p][:, p] * PS[q][:, q] + PS[p][:, q] * PS[q][:, p])
    out[np.diag_indices_from(out)] += pairs.sum(1)
    return out


def _cross(leaf: Leaf, X: Float[Array, "m k"], P: Array, cones: _Cones, pairs: Array) -> Float[Array, "p L"]:
    m, k = X.shape
    Z, (i, j) = P[:k, k:], leaf.pairs
    a, b = triangle(k)
    weight = np.where(a == b, 0.5, 1.0)[:, None]
    # T_ab = 2 Z_ai P_bc + Z_ai Z_bi xh_ic - xh_ia shared_i,bc
    inner = np.stack([2 * P[:k, :k] + Z.T[:, :, None] * X[:, None, :], -cones.shared], 1).reshape(m, 2, k * k)
    T = (np.stack([Z.T, X], -1) @ inner).reshape(m, k * k, k)
    rows = np.take(T, a * k + b, axis=1)
    rows += np.take(T, b * k + a, axis=1)
    out = np.empty((len(a), leaf.n_local))
    out[:, : m * k] = (rows.transpose(1, 0, 2) * weight[:, None]).reshape(len(a), m * k)
    ZA, ZB, XA, XB = Z[a], Z[b], X.T[a], X.T[b]
    moments = ZA[:, i] * ZB[:, j] + ZB[:, i] * ZA[:, j]
    out[:, m * k :] = weight * (2 * moments + pairs[:, 3] * (XA[:, i] * XB[:, j] + XB[:, i] * XA[:, j]))
    return out


def folded(left: Float[Array, "r k k"], right: Float[Array, "r k k"]) -> Float[Array, "p p"]:
    """sum of F (left (x) right) F' over the triangle: the Hessian of sum tr(left dG right dG) / 2."""
    k = left.shape[-1]
    a, b = triangle(k)
    weight = np.where(a == b, 0.5, 1.0)
    full = left.reshape(len(left), -1).T @ right.reshape(len(right), -1)  # (a c), (b d)
    full = full.reshape(k, k, k, k).transpose(0, 2, 1, 3).reshape(k * k, k * k)
    rows = full[a * k + b] + full[b * k + a]
    return (rows[:, a * k + b] + rows[:, b * k + a]) * weight * weight[:, None]
