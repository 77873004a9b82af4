"""Pricing: neurons u that maximise ||V'(Xu)_+|| on the unit sphere, by local ascent from many starts.

The maximum M(V) decides the dual bound. The ascent finds local maxima: the largest of them is a
lower bound of M, so that a bound on the training problem built on it is evidence, not proof.

The ascent smooths the kink of the ReLU, r_E(t) = (t + sqrt(t^2 + E^2)) / 2, minimises
||z||^2/2 - b'V'r_E(Xz) with b = V'r_E(Xz) normalised, by batched Newton steps, and lets E go to
zero. Its stationary points are z = M u.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from convexnn.neurons import Neurons, unit_rows

_PAIR_BUDGET = 24_000_000  # numbers held for the products of columns; beyond it, conjugate gradients


@dataclass(frozen=True)
class Candidates:
    """Unit directions with their value ||V'(Xu)_+||, sorted by falling value."""

    U: Float[Tensor, "S d"]
    B: Float[Tensor, "S K"]  # V'(Xu)_+, normalised: the output direction that u wants
    values: Float[Tensor, " S"]

    def __len__(self) -> int:
        return self.U.shape[0]

    def best(self) -> float:
        """The largest value, a lower bound of M(V)."""
        return float(self.values[0]) if len(self) else 0.0

    def to(self, target: torch.dtype) -> "Candidates":
        """The same candidates in another precision."""
        return Candidates(self.U.to(target), self.B.to(target), self.values.to(target))

    def take(self, index: Int[Tensor, " m"] | Bool[Tensor, " S"] | slice) -> "Candidates":
        """A subset, in the order given."""
        return Candidates(self.U[index], self.B[index], self.values[index])


@dataclass(frozen=True)
class Effort:
    """How hard to search: smoothing levels of a climb, numbers of starts, generations of hops."""

    n_starts: int = 64
    hops: int = 256
    generations: int = 1
    patience: int = 1
    progress: float = 1e-5  # a smaller relative gain of the best counts as none
    n_elite: int = 150
    levels: tuple[float, ...] = (3e-2, 3e-3, 3e-4, 1e-5)
    steps: int = 2
    survivors: float = 0.6  # of the starts that go on to the next level
    n_polished: int = 60
    polish: tuple[float, ...] = (1e-4, 1e-5, 1e-6, 1e-7, 1e-8)


class ColumnPairs:
    """Products of columns x_a x_b, a <= b, so that all Hessians of a batch are one matrix product."""

    def __init__(self, X: Float[Tensor, "n d"]) -> None:
        d = X.shape[1]
        self._rows, self._columns = torch.triu_indices(d, d, device=X.device)
        self._products = X[:, self._rows] * X[:, self._columns]
        self._d = d

    @staticmethod
    def fit(X: Float[Tensor, "n d"]) -> "ColumnPairs | None":
        """The products, or None where they would take too much memory."""
        n, d = X.shape
        return ColumnPairs(X) if n * d * (d + 1) // 2 <= _PAIR_BUDGET else None

    def hessians(self, H: Float[Tensor, "S n"]) -> Float[Tensor, "S d d"]:
        """X' diag(h) X for each row h of H."""
        upper = H @ self._products
        full = upper.new_empty((H.shape[0], self._d, self._d))
        full[:, self._rows, self._columns] = upper
        full[:, self._columns, self._rows] = upper
        return full


def evaluate(X: Float[Tensor, "n d"], V: Float[Tensor, "n K"], U: Float[Tensor, "S d"]) -> Candidates:
    """Values of the given directions, sorted; zero rows are dropped."""
    U = unit_rows(U)
    U = U[U.norm(dim=1) > 0.5]
    C = torch.relu(U @ X.T) @ V
    values = C.norm(dim=1)
    order = torch.argsort(values, descending=True)
    return Candidates(U[order], unit_rows(C[order]), values[order])


def ascend(
    X: Float[Tensor, "n d"],
    V: Float[Tensor, "n K"],
    U: Float[Tensor, "S d"],
    *,
    scale: float,
    levels: tuple[float, ...],
    steps: int = 3,
    pairs: ColumnPairs | None = None,
) -> Candidates:
    """Climbs from the given starts; ``levels`` are smoothing widths relative to ``scale``, the typical |x|."""
    start = evaluate(X, V, U)
    Z = start.U * start.values.clamp(min=torch.finfo(X.dtype).tiny)[:, None]
    for level in levels:
        for _ in range(steps):
            Z, progress = _newton_step(X, V, Z, (level, scale), pairs)
            if progress < 1e-14:
                break
    return evaluate(X, V, torch.cat([start.U[:1], Z]))


def _newton_step(
    X: Tensor, V: Tensor, Z: Tensor, smoothing: tuple[float, float], pairs: ColumnPairs | None
) -> tuple[Tensor, float]:
    width, scale = smoothing
    square = (Z * Z).sum(1, keepdim=True)
    T = Z @ X.T
    # Where the data are narrow along z, so is the smoothing.
    E2 = width**2 * torch.minimum(scale**2 * square, X.shape[1] * (T * T).mean(1, keepdim=True))
    Q = torch.sqrt(torch.addcmul(E2, T, T))
    D = T + Q  # twice the smoothed ReLU
    SV = unit_rows(D @ V) @ V.T
    inverse = Q.reciprocal()
    pull = SV * D
    value = 0.5 * (square[:, 0] - pull.sum(1))
    G = Z - 0.5 * (pull.mul_(inverse) @ X)
    H = SV.clamp(max=0.0).mul_(inverse).mul_(inverse).mul_(inverse).mul_(-0.5 * E2)
    P = _direction(X, H, G, pairs)
    slope = (G * P).sum(1)
    Z = _line_search(Z, P, T, P @ X.T, SV, E2, value, slope)
    return Z, float(-(slope / square[:, 0].clamp(min=torch.finfo(X.dtype).tiny)).min())


def _direction(X: Tensor, H: Tensor, G: Tensor, pairs: ColumnPairs | None) -> Tensor:
    if pairs is None:
        return _conjugate_gradients(X, H, -G)
    hessians = pairs.hessians(H)
    hessians.diagonal(dim1=1, dim2=2).add_(1.0)
    factor, _ = torch.linalg.cholesky_ex(hessians)
    return -torch.cholesky_solve(G[:, :, None], factor)[:, :, 0]


def _conjugate_gradients(X: Tensor, H: Tensor, R: Tensor, max_steps: int = 8) -> Tensor:
    """(I + X'diag(h)X) p = r for each row; eight steps are enough for an ascent direction."""
    P, D = torch.zeros_like(R), R.clone()
    rr = (R * R).sum(1, keepdim=True)
    first, tiny = rr, torch.finfo(R.dtype).tiny
    for _ in range(max_steps):
        AD = D + (H * (D @ X.T)) @ X
        step = rr / (D * AD).sum(1, keepdim=True).clamp(min=tiny)
        P, R = P + step * D, R - step * AD
        new = (R * R).sum(1, keepdim=True)
        if bool((new < 1e-3 * first).all()):
            break
        D, rr = R + (new / rr.clamp(min=tiny)) * D, new
    return P


def _line_search(
    Z: Tensor, P: Tensor, T: Tensor, TP: Tensor, SV: Tensor, E2: Tensor, value: Tensor, slope: Tensor
) -> Tensor:
    """Armijo steps, row by row; rows that fail six times stay where they are."""
    limit = value + 8 * torch.finfo(Z.dtype).eps * value.abs()
    trial = Z + P
    open_rows = torch.nonzero(_merit(trial, T + TP, SV, E2) > limit + 1e-4 * slope)[:, 0]
    step = 1.0
    for _ in range(5):
        if len(open_rows) == 0:
            return trial
        step *= 0.3
        Z_open, T_open, TP_open, P_open = Z[open_rows], T[open_rows], TP[open_rows], P[open_rows]
        moved = Z_open + step * P_open
        merit = _merit(moved, T_open + step * TP_open, SV[open_rows], E2[open_rows])
        trial[open_rows] = moved
        open_rows = open_rows[merit > limit[open_rows] + 1e-4 * step * slope[open_rows]]
    trial[open_rows] = Z[open_rows]
    return trial


def _merit(Z: Tensor, T: Tensor, SV: Tensor, E2: Tensor) -> Tensor:
    """||z||^2/2 - b'V'r_E(Xz) for each row z."""
    smoothed = torch.sqrt(torch.addcmul(E2, T, T)).add_(T).mul_(SV)
    return 0.5 * ((Z * Z).sum(1) - smoothed.sum(1))


def distinct(candidates: Candidates, limit: int, cosine: float = 0.9999) -> Candidates:
    """The best candidates that differ in direction, or point to different outputs."""
    alike = (cosine < candidates.U @ candidates.U.T) & (candidates.B @ candidates.B.T > 0.5)
    same = alike.cpu().numpy()
    chosen: list[int] = []
    for j in range(len(candidates)):
        if len(chosen) == limit:
            break
        if not same[j, chosen].any():
            chosen.append(j)
    return candidates.take(torch.tensor(chosen, dtype=torch.int64, device=candidates.U.device))


def starting_points(
    X: Float[Tensor, "n d"],
    V: Float[Tensor, "n K"],
    neurons: Neurons,
    number: int,
    generator: torch.Generator,
) -> Float[Tensor, "S d"]:
    """Samples, active neurons, their sums and differences, random correlations, Gaussian noise."""
    share = max(1, number // 5)
    parts = [_near_samples(X, share, generator), _correlations(X, V, share, generator)]
    if len(neurons):
        parts += _near_neurons(unit_rows(neurons.W), share, generator)
    missing = max(2, number - sum(len(part) for part in parts))
    parts.append(_noise(X, missing - missing // 2, generator))
    # Columns of one scale: directions along which a small column decides are narrow in X itself.
    scales = X.norm(dim=0)
    parts.append(_noise(X, missing // 2, generator) / torch.where(scales > 0, scales, torch.inf))
    return torch.cat(parts)


def _noise(X: Tensor, m: int, generator: torch.Generator) -> Tensor:
    d = X.shape[1]
    return (torch.randn((m, d), generator=generator, dtype=torch.float64) / d**0.5).to(X)


def _pick(high: int, m: int, generator: torch.Generator) -> Tensor:
    return torch.randint(high, (m,), generator=generator)


def _signs(X: Tensor, m: int, generator: torch.Generator) -> Tensor:
    return (2.0 * _pick(2, m, generator) - 1.0)[:, None].to(X)


def _near_samples(X: Tensor, m: int, generator: torch.Generator) -> Tensor:
    rows = unit_rows(X[_pick(len(X), m, generator).to(X.device)])
    spread = (0.5 + 0.5 * _pick(2, m, generator))[:, None].to(X)
    return rows * _signs(X, m, generator) + spread * _noise(X, m, generator)


def _correlations(X: Tensor, V: Tensor, m: int, generator: torch.Generator) -> Tensor:
    outputs = torch.randn((m, V.shape[1]), generator=generator, dtype=torch.float64).to(X)
    half = _pick(2, m * len(X), generator).reshape(m, len(X)).to(X)
    return (half * (outputs @ V.T)) @ X


def _near_neurons(U: Tensor, m: int, generator: torch.Generator) -> list[Tensor]:
    second, third = (U[_pick(len(U), m, generator).to(U.device)] for _ in range(2))
    return [
        _near_neurons_at(U, m, (0.3, 1.0), generator),
        second + _signs(U, m, generator) * third + 0.05 * _noise(U, m, generator),
    ]


def search(
    X: Float[Tensor, "n d"],
    V: Float[Tensor, "n K"],
    starts: Float[Tensor, "S d"],
    *,
    effort: Effort,
    scale: float,
    generator: torch.Generator,
    known: Float[Tensor, "m d"] | None = None,
    pairs: ColumnPairs | None = None,
    enough: float = float("inf"),
) -> Candidates:
    """Local maxima from the starts, then from perturbed maxima (basin hopping), generation by generation.

    Near the optimum hundreds of local maxima lie within a percent of the weight decay, and the ones
    above it have small basins next to others that are almost as high: perturbing the best maxima
    finds them far more often than fresh starts do. The climbs are in single precision, the
    best of them polished in that of X. A value above ``enough`` ends the search.
    """

    single, single_V = X.float(), V.float()
    largest = float(single_V.abs().max())  # values far below one would underflow in single precision
    single_V = single_V / largest if largest > 0 else single_V

    def climb(U: Tensor) -> Candidates:
        U = U.float()
        for level in effort.levels:
            found = ascend(single, single_V, U, scale=scale, levels=(level,), steps=effort.steps)
            # Starts that met go on as one, and of the others the better part.
            U = distinct(found, max(32, int(effort.survivors * len(found))), 0.99999).U
        return evaluate(X, V, U.to(X.dtype))

    elite = climb(starts)
    if known is not None and len(known):
        elite = merge(elite, evaluate(X, V, known))
    elite = distinct(elite, effort.n_elite)
    idle = 0
    for _ in range(effort.generations):
        best = elite.best()
        if best > enough:
            break
        elite = elite.take(elite.values >= 0.9 * best)
        hops = _near_neurons_at(elite.U, min(effort.hops, 16 * len(elite)), (0.05, 0.1, 0.2, 0.4), generator)
        elite = distinct(merge(elite, climb(hops)), effort.n_elite)
        idle = 0 if elite.best() > best * (1 + effort.progress) else idle + 1
        if idle == effort.patience:
            break
    polish = elite.take(slice(effort.n_polished)).U
    return merge(elite, ascend(X, V, polish, scale=scale, levels=effort.polish, steps=2, pairs=pairs))


def merge(first: Candidates, second: Candidates) -> Candidates:
    """Both, sorted by falling value."""
    values = torch.cat([first.values, second.values])
    order = torch.argsort(values, descending=True)
    return Candidates(torch.cat([first.U, second.U])[order], torch.cat([first.B, second.B])[order], values[order])


def _near_neurons_at(U: Tensor, m: int, spreads: tuple[float, ...], generator: torch.Generator) -> Tensor:
    spread = torch.tensor(spreads)[_pick(len(spreads), m, generator)][:, None].to(U)
    return U[_pick(len(U), m, generator).to(U.device)] + spread * _noise(U, m, generator)
