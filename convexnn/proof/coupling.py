"""Joins the leaves of a Newton step: one small system for all G, or one for the dual point, whichever is cheaper.

With free samples and groups eliminated (``factor``), a step solves, over the moments g_k of all leaves, the change y of
the loss's gradient and the change b of the output bias,

    H_k g_k + O_k'y = right_k        sum_k O_k g_k + b 1 - Delta y = -offset        1'y = -(1'gradient)

where Delta = 1/curvature + what the eliminated variables answer to y: diagonal but for samples in groups. Eliminating y
leaves a system of the size of all g_k and of no n x n matrix; eliminating the g_k leaves one of size n.
"""

import abc
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy.linalg.lapack import dpotrs

from convexnn.proof.factor import LeafFactor, cholesky, solved
from convexnn.proof.leaf import Leaf

Array = np.ndarray


@dataclass(frozen=True)
class Coupled:
    """The solution: moments of every leaf, gradient and output bias."""

    g: list[Float[Array, " p"]]
    y: Float[Array, " n"]
    bias: float


class AbstractCoupling(abc.ABC):
    """The joint system of all leaves, factorised."""

    @abc.abstractmethod
    def solve(self, right: list[Float[Array, " p"]], offset: Float[Array, " n"], pull: float) -> Coupled:
        """``right`` of every leaf, ``offset`` of the outputs, ``pull`` = -(1'gradient)."""


def lifted_samples(leaves: Sequence[Leaf]) -> Int[Array, " l"]:
    """Samples that a group of some leaf holds."""
    return np.unique(np.concatenate([leaf.groups.ravel() for leaf in leaves]))


def moment_work(n: int, L: int, p: int, lifted: int) -> float:
    """Multiplications of :class:`MomentCoupling`."""
    return L * L * n * p * p + (L * p) ** 3 / 3 + lifted * (L * p) ** 2 + lifted**3 / 3


def sample_work(n: int, L: int, p: int) -> float:
    """Multiplications of :class:`SampleCoupling`."""
    return L * (2 * n * p * p + p**3 / 3 + n * n * p) + n**3 / 3


def couple(factors: list[LeafFactor], curvature: Float[Array, " n"], output_bias: bool) -> AbstractCoupling:
    """The cheaper of both systems, factorised."""
    leaves = [factor.leaf for factor in factors]
    n, L, p = len(curvature), len(leaves), leaves[0].p
    moments = moment_work(n, L, p, len(lifted_samples(leaves))) < sample_work(n, L, p)
    return (MomentCoupling if moments else SampleCoupling)(factors, 1 / curvature, output_bias)


def _answers(factors: list[LeafFactor], inverse: Float[Array, " n"]) -> Float[Array, " n"]:
    """The diagonal of Delta without groups."""
    out = inverse.copy()
    for factor in factors:
        free = factor.leaf.free
        out[free] += factor.weight[free] ** 2 / factor.z_diagonal
    return out


def _add_groups(Delta: Array, factors: list[LeafFactor], place: Int[Array, " n"]) -> None:
    """What the groups answer to y, at the places of their samples."""
    for factor in factors:
        for indices, group in zip(factor.leaf.groups, factor.groups, strict=True):
            weight = factor.weight[indices]
            Delta[np.ix_(place[indices], place[indices])] += weight[:, None] * (group.ends.T @ group.ends) * weight


def _dense(factor: LeafFactor, samples: Int[Array, " k"]) -> Float[Array, "k p"]:
    """Rows of O."""
    leaf = factor.leaf
    first, second, third = factor.parts[samples].T
    out = third[:, None] * leaf.q_rows[samples]
    out[:, 0] += first
    out[:, leaf.u_index] += second[:, None] * leaf.rows[samples]
    place = np.full(len(leaf.rows), -1)
    place[samples] = np.arange(len(samples))
    inside = place[leaf.groups.ravel()]
    out[inside] += factor.lifted
    return out


def congruence(leaf: Leaf, local: Float[Array, "n 3 3"]) -> Float[Array, "p p"]:
    """sum_i K_i'local_i K_i with K_i = (theta, t_i, q_i) as rows over g."""
    X, Q, u = leaf.rows, leaf.q_rows, leaf.u_index
    out = _weighted_gram(Q, local[:, 2, 2])
    out[u] += X.T @ (local[:, 1, 2, None] * Q)
    out[:, u] += (X.T @ (local[:, 2, 1, None] * Q)).T
    out[np.ix_(u, u)] += X.T @ (local[:, 1, 1, None] * X)
    out[0] += Q.T @ local[:, 0, 2]
    out[:, 0] += Q.T @ local[:, 2, 0]
    out[0, u] += X.T @ local[:, 0, 1]
    out[u, 0] += X.T @ local[:, 1, 0]
    out[0, 0] += local[:, 0, 0].sum()
    return out


def _weighted_gram(Q: Float[Array, "n p"], weight: Float[Array, " n"]) -> Float[Array, "p p"]:
    """Q'diag(weight) Q, by the symmetric product where the weights allow it."""
    if (weight < 0).any():
        return Q.T @ (weight[:, None] * Q)
    root = np.sqrt(weight)[:, None] * Q
    return root.T @ root


class MomentCoupling(AbstractCoupling):
    """y eliminated."""

    def __init__(self, factors: list[LeafFactor], inverse: Float[Array, " n"], output_bias: bool) -> None:
        self._factors, self._output_bias = factors, output_bias
        n = len(inverse)
        self._dense_samples = lifted_samples([factor.leaf for factor in factors])
        diagonal = _answers(factors, inverse)
        self._share = 1 / diagonal
        self._share[self._dense_samples] = 0.0
        sizes = [factor.leaf.p for factor in factors]
        self._ends = np.cumsum([0, *sizes])
        K = self._plain()
        if len(self._dense_samples):
            place = np.zeros(n, dtype=np.int64)
            place[self._dense_samples] = np.arange(len(self._dense_samples))
            Delta = np.diag(diagonal[self._dense_samples])
            _add_groups(Delta, factors, place)
            self._delta = cholesky(Delta)
            ones = [np.ones((len(self._dense_samples), 1))] if output_bias else []
            self._rows = np.concatenate([*(_dense(f, self._dense_samples) for f in factors), *ones], 1)
            half = solved(self._delta, self._rows)
            K += half.T @ half
        self._lower = cholesky(K)

    def _plain(self) -> Array:
        """H and the samples that no group holds."""
        share, ends, size = self._share, self._ends, int(self._ends[-1])
        K = np.empty((size + self._output_bias, size + self._output_bias))
        for i, one in enumerate(self._factors):
            rows = slice(ends[i], ends[i + 1])
            for j, other in enumerate(self._factors[: i + 1]):
                local = one.parts[:, :, None] * (other.parts * share[:, None])[:, None, :]
                if i == j:
                    local[one.leaf.free] += one.schur
                block = congruence(one.leaf, local)
                K[rows, ends[j] : ends[j + 1]] = block + one.rest if i == j else block
                K[ends[j] : ends[j + 1], rows] = K[rows, ends[j] : ends[j + 1]].T
        if self._output_bias:
            K[size, :size] = np.concatenate([factor.outputs_adjoint(share) for factor in self._factors])
            K[:size, size] = K[size, :size]
            K[size, size] = share.sum()
        return K

    def _divide(self, outputs: Float[Array, " n"]) -> Float[Array, " n"]:
        """Delta^-1 outputs."""
        out = self._share * outputs
        if len(self._dense_samples):
            out[self._dense_samples] = dpotrs(self._delta, outputs[self._dense_samples], lower=1)[0]
        return out

    def solve(self, right: list[Float[Array, " p"]], offset: Float[Array, " n"], pull: float) -> Coupled:
        """From the moments to y."""
        y = self._divide(offset)
        rhs = [r - factor.outputs_adjoint(y) for factor, r in zip(self._factors, right, strict=True)]
        more = [np.array([pull - y.sum()])] if self._output_bias else []
        found = dpotrs(self._lower, np.concatenate([*rhs, *more]), lower=1)[0]
        g = [found[a:b] for a, b in zip(self._ends[:-1], self._ends[1:], strict=True)]
        bias = float(found[-1]) if self._output_bias else 0.0
        outputs = offset + bias + sum(factor.outputs(part) for factor, part in zip(self._factors, g, strict=True))
        return Coupled(g, self._divide(outputs), bias)


class SampleCoupling(AbstractCoupling):
    """The moments eliminated."""

    def __init__(self, factors: list[LeafFactor], inverse: Float[Array, " n"], output_bias: bool) -> None:
        self._factors = factors
        n = len(inverse)
        S = np.diag(_answers(factors, inverse))
        _add_groups(S, factors, np.arange(n))
        self._lowers = []
        for factor in factors:
            local = np.zeros((n, 3, 3))
            local[factor.leaf.free] = factor.schur
            self._lowers.append(cholesky(congruence(factor.leaf, local) + factor.rest))
            half = solved(self._lowers[-1], _dense(factor, np.arange(n)).T)
            S += half.T @ half
        self._lower = cholesky(S)
        self._ones = dpotrs(self._lower, np.ones(n), lower=1)[0] if output_bias else None

    def solve(self, right: list[Float[Array, " p"]], offset: Float[Array, " n"], pull: float) -> Coupled:
        """From y to the moments."""
        first = [dpotrs(lower, r, lower=1)[0] for lower, r in zip(self._lowers, right, strict=True)]
        outputs = offset + sum(factor.outputs(g) for factor, g in zip(self._factors, first, strict=True))
        y, bias = dpotrs(self._lower, outputs, lower=1)[0], 0.0
        if self._ones is not None:
            bias = float((pull - y.sum()) / self._ones.sum())
            y = y + bias * self._ones
        g = [
            dpotrs(lower, r - factor.outputs_adjoint(y), lower=1)[0]
            for lower, factor, r in zip(self._lowers, self._factors, right, strict=True)
        ]
        return Coupled(g, y, bias)
