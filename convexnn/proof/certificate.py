"""An upper bound of max over unit vectors u of w'(Xu)_+, from any multipliers: a function of pure data.

Write t_i = x_i'u, s_i = (t_i)_+, and let low_i <= t_i <= high_i on the region. What is used of them:

    |t| = 2 s - t,   s >= 0,   s >= t,   (high - low) s >= t^2 - low t,   (high - low) s <= high (t - low),
    s_i s_j >= 0,   s_i (s_j - t_j) >= 0,   (s_i - t_i)(s_j - t_j) >= 0,   s_i (s_i - t_i) = 0,
    s_i (l + e'u) >= 0  and  (s_i - t_i)(l + e'u) >= 0  for |e| <= l.

Multipliers of these turn w's into a quadratic in (1, u) and in the s of each group. The maximum over the s of a group
is a Schur complement, and the maximum over the sphere of what is left is a trust-region problem. Multipliers of a wrong
sign are clipped, so every choice gives a valid bound up to the rounding of float64; the exact checker in
``certify.proof`` repeats the computation without rounding.
"""

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, Int

Array = np.ndarray

# Least eigenvalues of a group's form in s, scaled to a diagonal of ones. At the optimum the form is singular, and the
# first costs least; multipliers that are some steps away from it, and exact proofs, want more room for their errors.
PIVOTS = (1e-7, 1e-5, 1e-4, 1e-3, 1e-2)


@dataclass(frozen=True)
class Region:
    """The data as seen from a leaf: rows x_i, bounds of x_i'u, slabs lo <= omega'u <= hi, and its groups."""

    rows: Float[Array, "n d"]
    low: Float[Array, " n"]
    high: Float[Array, " n"]
    groups: Int[Array, "J m"]
    cuts: tuple[tuple[Array, float, float], ...] = ()

    def unlifted(self) -> Bool[Array, " n"]:
        """Which samples are in no group."""
        out = np.ones(len(self.rows), dtype=bool)
        out[self.groups] = False
        return out

    def stable(self) -> Bool[Array, " n"]:
        """Which samples have one sign on the whole region."""
        return (self.low >= 0) | (self.high <= 0)


@dataclass(frozen=True)
class Multipliers:
    """The free parameters of a bound; for a sample in a group the first four are not used.

    ``bend``: c > 0 in |t| <= (t^2 / c + c) / 2; ``chord``: the share of w > 0 bounded by high (t - low) / (high - low);
    ``slope``, ``curve``: the shares of -w > 0 bounded by t and by (t^2 - low t) / (high - low).
    Groups: ``first`` (l and e of s_i (l + e'u)), ``second`` (of (s_i - t_i)(l + e'u)), ``mixed``, ``neither`` for
    the three products of pairs, ``pivot`` for s_i (s_i - t_i).
    ``cuts``: three for each slab.
    """

    bend: Float[Array, " n"]
    chord: Float[Array, " n"]
    slope: Float[Array, " n"]
    curve: Float[Array, " n"]
    first: Float[Array, "J m k"]
    second: Float[Array, "J m k"]
    both: Float[Array, "J m m"]  # symmetric
    mixed: Float[Array, "J m m"]  # entry ij belongs to s_i (s_j - t_j)
    neither: Float[Array, "J m m"]  # symmetric
    pivot: Float[Array, "J m"]
    cuts: Float[Array, "c 3"]

    def admissible(self) -> "Multipliers":
        """Clipped to the signs and shares that validity needs; diagonals of pairs are dropped."""
        chord = np.clip(self.chord, 0.0, 1.0)
        curve = np.clip(self.curve, 0.0, 1.0)
        off = 1.0 - np.eye(self.pivot.shape[-1])
        return replace(
            self,
            bend=np.maximum(self.bend, 1e-9),
            chord=chord,
            curve=curve,
            slope=np.clip(self.slope, 0.0, 1.0 - curve),
            first=_in_cone(self.first),
            second=_in_cone(self.second),
            both=off * np.maximum(self.both, 0.0),
            mixed=off * np.maximum(self.mixed, 0.0),
            neither=off * np.maximum(self.neither, 0.0),
            cuts=np.maximum(self.cuts, 0.0),
        )

    def settled(self, least: float = PIVOTS[0]) -> "Multipliers":
        """Admissible, the pivots of every group raised in proportion until its form in s has this least eigenvalue.

        Of the form scaled to a diagonal of ones: pivots of a group may differ by orders of magnitude.
        """
        fit = self.admissible()
        if not len(fit.pivot):
            return fit
        pivot = np.maximum(fit.pivot, 1e-12 * (np.abs(fit.pivot).max(1, keepdims=True) + 1e-300))
        root = 1 / np.sqrt(pivot)
        off = (fit.both + fit.mixed + np.swapaxes(fit.mixed, 1, 2) + fit.neither) / 2
        scaled = np.eye(pivot.shape[-1]) - root[:, :, None] * off * root[:, None, :]
        lowest = np.linalg.eigvalsh(scaled)[:, :1]
        raised = (2 * least - lowest) / (1 - 2 * least)
        return replace(fit, pivot=pivot * (1 + np.where(lowest < least, raised, 0.0)))


def _in_cone(x: Float[Array, "*b k"]) -> Float[Array, "*b k"]:
    """The head raised to the length of the rest."""
    out = x.copy()
    out[..., 0] = np.maximum(x[..., 0], np.linalg.norm(x[..., 1:], axis=-1))
    return out


def scalar_quadratics(region: Region, w: Float[Array, " n"], parameters: Multipliers) -> Float[Array, "3 n"]:
    """(alpha, beta, gamma) with alpha t^2 + beta t + gamma >= w (t)_+ on [low, high], for every sample on its own."""
    low, high = region.low, region.high
    width = np.maximum(high - low, 1e-300)
    up, down = np.maximum(w, 0.0), np.maximum(-w, 0.0)
    curved = up * (1 - parameters.chord)
    straight = up * parameters.chord * high / width
    alpha = curved / (4 * parameters.bend) - down * parameters.curve / width
    beta = curved / 2 + straight - down * (parameters.slope - parameters.curve * low / width)
    gamma = curved * parameters.bend / 4 - straight * low
    stable = region.stable()
    return np.stack([np.where(stable, 0, alpha), np.where(stable, w * (low >= 0), beta), np.where(stable, 0, gamma)])


def quadratic(region: Region, w: Float[Array, " n"], parameters: Multipliers) -> Float[Array, "k k"]:
    """The symmetric Q with (1, u)'Q(1, u) >= w's on the region (k = d + 1), groups included."""
    parameters = parameters.settled()
    alone = region.unlifted()
    alpha, beta, gamma = np.where(alone, scalar_quadratics(region, w, parameters), 0.0)
    Q = np.zeros((region.rows.shape[1] + 1,) * 2)
    Q[0, 0] = gamma.sum()
    Q[0, 1:] = Q[1:, 0] = beta @ region.rows / 2
    Q[1:, 1:] = region.rows.T @ (alpha[:, None] * region.rows)
    for (omega, low, high), (a, b, c) in zip(region.cuts, parameters.cuts, strict=True):
        Q[0, 1:] += (a - b + c * (low + high)) * omega / 2
        Q[1:, 0] += (a - b + c * (low + high)) * omega / 2
        Q[0, 0] += b * high - a * low - c * low * high
        Q[1:, 1:] -= c * np.outer(omega, omega)
    for j in range(len(region.groups)):
        Q += group_quadratic(region, w, parameters, j)
    return Q


@dataclass(frozen=True)
class GroupForm:
    """[1, u]'F[1, u] + 2 [1, u]'B s - s'S s, an upper bound of w's over a group."""

    F: Float[Array, "k k"]
    B: Float[Array, "k m"]
    S: Float[Array, "m m"]


def group_form(region: Region, w: Float[Array, " n"], parameters: Multipliers, j: int) -> GroupForm:
    """The Lagrangian of one group, for admissible multipliers."""
    indices = region.groups[j]
    X, pivot = region.rows[indices], parameters.pivot[j]
    e, f = parameters.first[j, :, 1:], parameters.second[j, :, 1:]
    length = parameters.second[j, :, 0]
    both, mixed, neither = parameters.both[j], parameters.mixed[j], parameters.neither[j]
    k = X.shape[1] + 1
    F, B = np.zeros((k, k)), np.zeros((k, len(indices)))
    B[0] = (w[indices] + parameters.first[j, :, 0] + length) / 2
    B[1:] = (e + f - mixed @ X - neither @ X + pivot[:, None] * X).T / 2
    F[0, 1:] = F[1:, 0] = -length @ X / 2
    cross = f.T @ X
    F[1:, 1:] = X.T @ (neither / 2) @ X - (cross + cross.T) / 2
    return GroupForm(F, B, np.diag(pivot) - (both + mixed + mixed.T + neither) / 2)


def group_quadratic(region: Region, w: Float[Array, " n"], parameters: Multipliers, j: int) -> Float[Array, "k k"]:
    """F + B S^-1 B' of settled multipliers."""
    form = group_form(region, w, parameters, j)
    return form.F + form.B @ np.linalg.solve(form.S, form.B.T)


def sphere_maximum(Q: Float[Array, "k k"], least: float = -np.inf, steps: int = 100) -> tuple[float, float]:
    """max over |u| = 1 of (1, u)'Q(1, u), and the multiplier delta of the sphere that proves it.

    delta is at least ``least``; zero makes it a bound over the ball.
    min over delta > lambda_max(A) of Q00 + delta + b'(delta I - A)^-1 b, A the block of u and b = Q[0, 1:].
    """
    values, vectors = np.linalg.eigh(Q[1:, 1:])
    b = (vectors.T @ Q[1:, 0]) ** 2
    spread = max(float(np.sqrt(b.sum())), 1e-300)
    low, high = max(values[-1], least), max(values[-1], least) + spread

    def slope(delta: float) -> float:
        return 1.0 - float((b / np.maximum(delta - values, 1e-300) ** 2).sum())

    for _ in range(steps):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    delta = max(high, least, values[-1] + 1e-12 * (abs(values[-1]) + spread))
    return float(Q[0, 0] + delta + (b / (delta - values)).sum()), float(delta)


def best_settled(region: Region, w: Float[Array, " n"], parameters: Multipliers) -> tuple[Multipliers, float]:
    """The multipliers settled in the way that gives the least bound, and that bound."""
    least = PIVOTS if len(region.groups) else PIVOTS[:1]
    settled = [parameters.settled(value) for value in least]
    bounds = [region_bound(region, w, one) for one in settled]
    best = int(np.argmin(bounds))
    return settled[best], bounds[best]


def region_bound(region: Region, w: Float[Array, " n"], parameters: Multipliers) -> float:
    """An upper bound of max w'(Xu)_+ over the unit vectors of the region."""
    return sphere_maximum(quadratic(region, w, parameters))[0]
