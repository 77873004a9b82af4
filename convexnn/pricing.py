"""Pricing: neurons u that maximise ||V'(Xu)_+|| on the unit sphere, by local ascent from many starts.

The maximum M(V) decides the dual bound. The ascent finds local maxima: the largest of them is a
lower bound of M, so that a bound on the training problem built on it is evidence, not proof.

The ascent smooths the kink of the ReLU, r_E(t) = (t + sqrt(t^2 + E^2)) / 2, minimises
||z||^2/2 - b'V'r_E(Xz) with b = V'r_E(Xz) normalised, by batched Newton steps, and lets E go to
zero. Its stationary points are z = M u.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from convexnn.neurons import Neurons, unit_rows

COARSE = (3e-2, 3e-3)
FINE = (1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8)
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

    def take(self, index: Int[Tensor, " m"] | slice) -> "Candidates":
        """A subset, in the order given."""
        return Candidates(self.U[index], self.B[index], self.values[index])


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
    """Local maxima from the given starts; ``levels`` are smoothing widths relative to ``scale``."""
    start = evaluate(X, V, U)
    Z = start.U * start.values.clamp(min=torch.finfo(X.dtype).tiny)[:, None]
    for level in levels:
        for _ in range(steps):
            Z, progress = _newton_step(X, V, Z, level * scale, pairs)
            if progress < 1e-14:
                break
    return evaluate(X, V, torch.cat([start.U[:1], Z]))


def _newton_step(
    X: Tensor, V: Tensor, Z: Tensor, width: float, pairs: ColumnPairs | None
) -> tuple[Tensor, float]:
    norms = Z.norm(dim=1, keepdim=True)
    E2 = (width * norms) ** 2
    T = Z @ X.T
    Q = torch.sqrt(T * T + E2)
    B = unit_rows((T + Q) @ V)
    SV = B @ V.T
    value = 0.5 * ((Z * Z).sum(1) - (SV * (T + Q)).sum(1))
    G = Z - (SV * (0.5 + 0.5 * T / Q)) @ X
    H = torch.clamp(-SV, min=0) * (0.5 * E2) / (Q * Q * Q)
    P = _direction(X, H, G, pairs)
    slope = (G * P).sum(1)
    Z = _line_search(Z, P, T, P @ X.T, SV, E2, value, slope)
    return Z, float(-(slope / (norms * norms)[:, 0].clamp(min=1e-300)).min())


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
    out, open_rows, step = Z.clone(), torch.arange(len(Z), device=Z.device), 1.0
    for _ in range(6):
        trial = Z[open_rows] + step * P[open_rows]
        t = T[open_rows] + step * TP[open_rows]
        new = 0.5 * (
            (trial * trial).sum(1) - (SV[open_rows] * (t + torch.sqrt(t * t + E2[open_rows]))).sum(1)
        )
        allowance = 4 * torch.finfo(Z.dtype).eps * value[open_rows].abs()
        good = new <= value[open_rows] + 1e-4 * step * slope[open_rows] + allowance
        out[open_rows[good]] = trial[good]
        open_rows = open_rows[~good]
        if len(open_rows) == 0:
            break
        step *= 0.3
    return out


def distinct(candidates: Candidates, limit: int, cosine: float = 0.9999) -> Candidates:
    """The best candidates that differ in direction, or point to different outputs."""
    same = (candidates.U @ candidates.U.T > cosine) & (candidates.B @ candidates.B.T > 0.5)
    same = same.cpu().numpy()
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
    missing = max(1, number - sum(len(part) for part in parts))
    parts.append(_noise(X, missing, generator))
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
    first, second, third = (U[_pick(len(U), m, generator).to(U.device)] for _ in range(3))
    spread = (0.3 + 0.7 * _pick(2, m, generator))[:, None].to(U)
    return [
        first + spread * _noise(U, m, generator),
        second + _signs(U, m, generator) * third + 0.05 * _noise(U, m, generator),
    ]


def search(
    X: Float[Tensor, "n d"],
    V: Float[Tensor, "n K"],
    starts: Float[Tensor, "S d"],
    *,
    scale: float,
    floor: float,
    keep: int,
    known: Float[Tensor, "m d"] | None = None,
    levels: tuple[float, ...] = FINE,
    pairs: ColumnPairs | None = None,
) -> Candidates:
    """Screen all starts coarsely, refine the best ``keep`` above ``floor`` together with ``known``."""
    screened = distinct(ascend(X, V, starts, scale=scale, levels=COARSE, steps=2, pairs=pairs), keep, 0.999)
    chosen = screened.U[screened.values > floor]
    if len(chosen) == 0:
        chosen = screened.U[:1]
    if known is not None:
        chosen = torch.cat([chosen, known])
    return ascend(X, V, chosen, scale=scale, levels=levels, steps=3, pairs=pairs)
