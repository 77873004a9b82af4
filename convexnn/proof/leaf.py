"""One sign and one region of the moment relaxation: variables, cones, and a structured factorisation.

Over measures of mass theta on unit vectors u of the region, with t_i = xh_i'u for the unit rows xh_i of the data and
s_i = (t_i)_+, the relaxation keeps the moments

    G = E[(1, u)(1, u)'],  z_i = E[s_i],  and of the samples of a group also  W_i = E[s_i u],  S_ij = E[s_i s_j].

The lower triangle of G is the vector g of length p = (d+1)(d+2)/2; S_ii = E[s_i t_i] = W_i'xh_i is substituted.
A point of a leaf is one flat array [g, z of the free samples, then for each group the rows (z_i, W_i) and the strict
triangle of S].
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float, Int

from convexnn.proof.cones import AbstractScaling, LorentzScaling, MatrixScaling, OrthantScaling

Array = np.ndarray

Cones = list[Array]  # slack or multiplier arrays in the order of Leaf.kinds


def triangle(order: int) -> tuple[Array, Array]:
    """Row and column of each entry of the lower triangle, row by row."""
    return np.tril_indices(order)


def matrix_of(entries: Float[Array, "*b p"], order: int) -> Float[Array, "*b N N"]:
    """The symmetric matrix of a lower triangle."""
    rows, columns = triangle(order)
    out = np.zeros((*entries.shape[:-1], order, order))
    out[..., rows, columns] = entries
    out[..., columns, rows] = entries
    return out


def gradient_of(matrix: Float[Array, "*b N N"]) -> Float[Array, "*b p"]:
    """Adjoint of :func:`matrix_of`."""
    rows, columns = triangle(matrix.shape[-1])
    return np.where(rows == columns, 1.0, 2.0) * matrix[..., rows, columns]


def symmetric_hessian(P: Float[Array, "N N"]) -> Float[Array, "p p"]:
    """The Hessian of <dX, P dX P> / 2 in the entries of the lower triangle."""
    a, b = triangle(len(P))
    weight = np.where(a == b, 0.5, 1.0)
    left, right = np.ascontiguousarray((P[a] * weight[:, None]).T), np.ascontiguousarray(P[b].T)
    out, first = np.empty((len(a), len(a))), 0
    for k in range(len(P)):  # the rows (k, l), l <= k: whole rows at a time, gathers would cost ten times as much
        block = out[first : first + k + 1]
        np.multiply(left[k], right[: k + 1], out=block)
        block += left[: k + 1] * right[k]
        block[:k] *= 2.0
        first += k + 1
    return out


@dataclass(frozen=True)
class Leaf:
    """A sign, a region given by slabs lo <= omega'u <= hi, and the groups of samples that are lifted.

    ``low`` and ``high`` bound xh_i'u on the region. Samples are off (high <= 0), on (low >= 0) or unstable;
    ``groups`` (J, m) holds unstable ones.
    """

    sign: float
    rows: Float[Array, "n d"]  # unit rows xh_i
    radii: Float[Array, " n"]  # r_i = |x_i|
    groups: Int[Array, "J m"]
    low: Float[Array, " n"]
    high: Float[Array, " n"]
    cuts: tuple[tuple[Array, float, float], ...] = ()

    # ---- sizes and constant tables

    @property
    def d(self) -> int:
        """Number of columns."""
        return self.rows.shape[1]

    @property
    def p(self) -> int:
        """Entries of the lower triangle of G."""
        return (self.d + 1) * (self.d + 2) // 2

    @cached_property
    def free(self) -> Int[Array, " k"]:
        """Unstable samples that no group lifts."""
        open_ = (self.low < 0) & (self.high > 0)
        open_[self.groups.ravel()] = False
        return np.flatnonzero(open_)

    @cached_property
    def on(self) -> Int[Array, " k"]:
        """Samples that are active in the whole region."""
        return np.flatnonzero(self.low >= 0)

    @property
    def m(self) -> int:
        """Samples a group."""
        return self.groups.shape[1]

    @property
    def n_groups(self) -> int:
        """Number J of groups."""
        return len(self.groups)

    @cached_property
    def pairs(self) -> tuple[Array, Array]:
        """Positions i > j inside a group."""
        return np.tril_indices(self.m, -1)

    @property
    def n_local(self) -> int:
        """Variables of one group."""
        return self.m + self.m * self.d + len(self.pairs[0])

    @property
    def size(self) -> int:
        """Variables of the leaf."""
        return self.p + len(self.free) + self.n_groups * self.n_local

    @cached_property
    def lifted(self) -> Float[Array, "J m d"]:
        """Unit rows of the groups."""
        return self.rows[self.groups]

    @cached_property
    def q_rows(self) -> Float[Array, "n p"]:
        """q_i = xh_i'U xh_i as rows over g."""
        a, b = triangle(self.d + 1)
        inside = b > 0
        out = np.zeros((len(self.rows), self.p))
        weight = np.where(a == b, 1.0, 2.0)[inside]
        out[:, inside] = weight * self.rows[:, a[inside] - 1] * self.rows[:, b[inside] - 1]
        return out

    @cached_property
    def t_rows(self) -> Float[Array, "n p"]:
        """t_i = xh_i'u as rows over g."""
        out = np.zeros((len(self.rows), self.p))
        out[:, self.u_index] = self.rows
        return out

    @cached_property
    def u_index(self) -> Int[Array, " d"]:
        """Places of u in g."""
        k = np.arange(1, self.d + 1)
        return k * (k + 1) // 2

    @cached_property
    def square_index(self) -> Int[Array, "d d"]:
        """Places of U in g."""
        k = np.arange(1, self.d + 1)
        high, low = np.maximum(k[:, None], k), np.minimum(k[:, None], k)
        return high * (high + 1) // 2 + low

    @cached_property
    def g_rows(self) -> Float[Array, "R p"]:
        """Rows over g that are non-negative: the trace, and the cuts."""
        trace = np.zeros(self.p)
        trace[0] = 1.0
        trace[np.diagonal(self.square_index)] = -1.0
        return np.stack([trace, *(row for cut in self.cuts for row in self._cut_rows(cut))])

    def _cut_rows(self, cut: tuple[Array, float, float]) -> list[Array]:
        omega, low, high = cut
        u, U = np.zeros(self.p), np.zeros(self.p)
        u[self.u_index] = omega
        np.add.at(U, self.square_index, np.outer(omega, omega))
        theta = np.eye(1, self.p)[0]
        return [u - low * theta, high * theta - u, (low + high) * u - U - low * high * theta]

    # ---- views of a flat point

    def split(self, x: Array) -> tuple[Array, Array, Array, Array, Array]:
        """g, z of free samples, and of the groups z (J, m), W (J, m, d), S (J, pairs)."""
        k, J, m, width = len(self.free), self.n_groups, self.m, self.d + 1
        local = x[self.p + k :].reshape(J, self.n_local)
        rows = local[:, : m * width].reshape(J, m, width)
        return x[: self.p], x[self.p : self.p + k], rows[..., 0], rows[..., 1:], local[:, m * width :]

    def join(self, g: Array, z: Array, zl: Array, W: Array, S: Array) -> Array:
        """The flat point of its parts."""
        rows = np.concatenate([zl[..., None], W], -1).reshape(self.n_groups, self.m * (self.d + 1))
        return np.concatenate([g, z, np.concatenate([rows, S], 1).ravel()])

    def outputs(self, x: Array) -> Float[Array, " n"]:
        """sign r_i E[s_i] of every sample: the contribution to the network's outputs."""
        g, z, zl, _, _ = self.split(x)
        out = np.zeros(len(self.rows))
        out[self.free] = z
        out[self.groups] = zl
        out[self.on] = self.rows[self.on] @ g[self.u_index]
        return self.sign * self.radii * out

    def outputs_adjoint(self, y: Float[Array, " n"]) -> Array:
        """Adjoint of :meth:`outputs`."""
        y = self.sign * self.radii * y
        g = np.zeros(self.p)
        g[self.u_index] = self.rows[self.on].T @ y[self.on]
        J, m, d = self.n_groups, self.m, self.d
        return self.join(g, y[self.free], y[self.groups], np.zeros((J, m, d)), np.zeros((J, len(self.pairs[0]))))

    # ---- the map to the cones

    @cached_property
    def kinds(self) -> tuple[type, ...]:
        """Scaling classes of the cones, in the order of :meth:`forward`."""
        return (OrthantScaling, OrthantScaling, LorentzScaling, MatrixScaling, LorentzScaling, OrthantScaling)

    def scale_at(self, s: Cones, lam: Cones) -> list[AbstractScaling]:
        """The scalings of all cones."""
        return [kind.at(a, b) for kind, a, b in zip(self.kinds, s, lam, strict=True)]  # type: ignore[attr-defined]

    def forward(self, x: Array) -> Cones:
        """Rows over g; rows of free samples; their Lorentz cones; moment matrices; cones and pairs of groups."""
        g, z, zl, W, S = self.split(x)
        G = matrix_of(g, self.d + 1)
        return [self.g_rows @ g, *self._free_cones(g, z), *self._group_cones(G, zl, W, S)]

    def _free_cones(self, g: Array, z: Array) -> Cones:
        free = self.free
        t, q, theta = self.rows[free] @ g[self.u_index], self.q_rows[free] @ g, g[0]
        low, high = self.low[free], self.high[free]
        linear = [z, z - t, (high - low) * z - q + low * t]
        if self.cuts:
            linear.append(high * (t - low * theta) - (high - low) * z)
        cone = np.stack([theta + q, 2 * (2 * z - t), theta - q], -1)
        return [np.stack(linear, -1), cone]

    def _group_cones(self, G: Array, zl: Array, W: Array, S: Array) -> Cones:
        if self.n_groups == 0:
            k = self.d + 1
            return [G[None], np.zeros((0, k)), np.zeros((0, 4))]
        X, U = self.lifted, G[1:, 1:]
        t, UX = X @ G[0, 1:], X @ U
        first = np.concatenate([zl[..., None], W], -1)
        second = np.concatenate([(zl - t)[..., None], UX - W], -1)
        i, j = self.pairs
        P = W @ np.swapaxes(X, 1, 2)  # P_ij = W_i'xh_j
        a, b, c = P[:, i, j], P[:, j, i], (UX @ np.swapaxes(X, 1, 2))[:, i, j]
        return [
            self._moments(G, zl, W, S, P),
            np.stack([first, second], 1),
            np.stack([S, S - a, S - b, S - a - b + c], -1),
        ]

    def _moments(self, G: Array, zl: Array, W: Array, S: Array, P: Array) -> Array:
        k, m = self.d + 1, self.m
        M = np.zeros((self.n_groups, k + m, k + m))
        M[:, :k, :k] = G
        M[:, k:, 0], M[:, k:, 1:k] = zl, W
        M[:, 0, k:], M[:, 1:k, k:] = zl, np.swapaxes(W, 1, 2)
        i, j = self.pairs
        M[:, k + i, k + j] = M[:, k + j, k + i] = S
        diagonal = np.arange(m)
        M[:, k + diagonal, k + diagonal] = P[:, diagonal, diagonal]
        return M

    def adjoint(self, cones: Cones) -> Array:
        """Adjoint of :meth:`forward`."""
        rows, linear, cone, moments, lorentz, pairs = cones
        free = self.free
        low, high = self.low[free], self.high[free]
        z = linear[:, 0] + linear[:, 1] + (high - low) * linear[:, 2] + 4 * cone[:, 1]
        t = -linear[:, 1] + low * linear[:, 2] - 2 * cone[:, 1]
        q = -linear[:, 2] + cone[:, 0] - cone[:, 2]
        theta = (cone[:, 0] + cone[:, 2]).sum()
        if self.cuts:
            z -= (high - low) * linear[:, 3]
            t += high * linear[:, 3]
            theta -= (high * low * linear[:, 3]).sum()
        g = self.g_rows.T @ rows + self.q_rows[free].T @ q
        g[self.u_index] += self.rows[free].T @ t
        g[0] += theta
        if self.n_groups == 0:
            g += gradient_of(moments[0])
            return np.concatenate([g, z])
        dG, zl, W, S = self._group_adjoint(moments, lorentz, pairs)
        return self.join(g + dG, z, zl, W, S)

    def _group_adjoint(self, moments: Array, lorentz: Array, pairs: Array) -> tuple[Array, Array, Array, Array]:
        k, X = self.d + 1, self.lifted
        i, j = self.pairs
        first, second = lorentz[:, 0], lorentz[:, 1]
        G = moments[:, :k, :k].sum(0)
        zl = 2 * moments[:, k:, 0] + first[..., 0] + second[..., 0]
        W = 2 * moments[:, k:, 1:k] + first[..., 1:] - second[..., 1:]
        diagonal = np.arange(self.m)
        W = W + moments[:, k + diagonal, k + diagonal][..., None] * X
        S = 2 * moments[:, k + i, k + j] + pairs.sum(-1)
        T = np.zeros((self.n_groups, self.m, self.m))  # of W_i'xh_j
        T[:, i, j] = -pairs[..., 1] - pairs[..., 3]
        T[:, j, i] = -pairs[..., 2] - pairs[..., 3]
        W = W + T @ X
        t = -second[..., 0]
        U = np.einsum("jia,jib->ab", second[..., 1:], X)
        U = U + np.einsum("jk,jka,jkb->ab", pairs[..., 3], X[:, i], X[:, j])
        dG = gradient_of(G)
        dG[self.u_index] += np.einsum("ji,jia->a", t, X)
        np.add.at(dG, self.square_index, U)
        return dG, zl, W, S

    # ---- a first point

    def start(self, theta: float) -> Array:
        """Moments of a uniform measure of mass theta on a sphere of radius a little below one."""
        d, X, i, j = self.d, self.lifted, *self.pairs
        shrink = 0.9
        G = np.diag(np.r_[1.0, np.full(d, shrink / d)])
        mean = 0.5 * np.sqrt(shrink / d) * 0.8
        g = theta * G[triangle(d + 1)]
        z = theta * np.full(len(self.free), 0.25 * np.sqrt(shrink / d) + shrink / (4 * d))
        zl = np.full((self.n_groups, self.m), theta * mean)
        W = theta * shrink / (2 * d) * X
        cosine = np.clip(np.einsum("jka,jka->jk", X[:, i], X[:, j]), -1, 1)
        angle = np.arccos(cosine)
        S = theta * shrink / (2 * np.pi * d) * (np.sin(angle) + (np.pi - angle) * cosine)
        return self.join(g, z, zl, W, S)
