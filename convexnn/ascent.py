"""Local ascent of ||V'(Xu)_+|| over the unit sphere, many climbs at once in dense products.

The ascent smooths the kink of the ReLU, r_E(t) = (t + sqrt(t^2 + E^2)) / 2, minimises
||z||^2/2 - b'V'r_E(Xz) with b = V'r_E(Xz) normalised, by batched Newton steps, and lets E go to
zero. Its stationary points are z = M u.
"""

from copy import copy
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from convexnn.neurons import unit_rows

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


class ColumnPairs:
    """Products of columns x_a x_b, a <= b, so that all Hessians of a batch are one matrix product."""

    def __init__(self, X: Float[Tensor, "n d"]) -> None:
        d = X.shape[1]
        self._rows, self._columns = torch.triu_indices(d, d, device=X.device)
        self._products = X[:, self._rows] * X[:, self._columns]
        self._d = d

    @cached_property
    def single(self) -> "ColumnPairs":
        """The same products in single precision, for preconditioners."""
        out = copy(self)
        out._products = self._products.float()
        return out

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
    if len(start) == 0:
        return start
    Z = start.U * start.values.clamp(min=torch.finfo(X.dtype).tiny)[:, None]
    T = Z @ X.T
    for level in levels:
        for _ in range(steps):
            Z, T, progress = _newton_step(X, V, (Z, T), (level, scale), pairs)
            if progress < 1e-14:
                break
    return evaluate(X, V, torch.cat([start.U[:1], Z]))


def _newton_step(
    X: Tensor, V: Tensor, at: tuple[Tensor, Tensor], smoothing: tuple[float, float], pairs: ColumnPairs | None
) -> tuple[Tensor, Tensor, float]:
    """Memory traffic decides the time: passes over arrays of starts x samples are few, and in place."""
    (Z, T), (width, scale) = at, smoothing
    square = (Z * Z).sum(1, keepdim=True)
    # Where the data are narrow along z, so is the smoothing.
    narrow = torch.linalg.vector_norm(T, dim=1, keepdim=True) ** 2 * (X.shape[1] / X.shape[0])
    E2 = width**2 * torch.minimum(scale**2 * square, narrow)
    Q = torch.addcmul(E2, T, T).sqrt_()
    D = T + Q  # twice the smoothed ReLU
    SV = unit_rows(D @ V) @ V.T
    value = 0.5 * (square[:, 0] - torch.linalg.vecdot(SV, D))
    inverse = Q.reciprocal_()
    H = SV * inverse
    G = Z - 0.5 * (D.mul_(H) @ X)
    H = H.clamp_(max=0.0).mul_(inverse.square_()).mul_(-0.5 * E2)
    P = newton_direction(X, H, G, pairs)
    slope = torch.linalg.vecdot(G, P)
    Z, T = _line_search((Z, T), (P, P @ X.T), SV, E2, value, slope)
    return Z, T, float(-(slope / square[:, 0].clamp(min=torch.finfo(X.dtype).tiny)).min())


def newton_direction(
    X: Float[Tensor, "n d"], H: Float[Tensor, "S n"], G: Float[Tensor, "S d"], pairs: ColumnPairs | None
) -> Float[Tensor, "S d"]:
    """-(I + X'diag(h)X)^-1 g for each row; without ``pairs`` by a few conjugate gradients."""
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
        AD = torch.addmm(D, (D @ X.T).mul_(H), X)
        step = rr / (D * AD).sum(1, keepdim=True).clamp(min=tiny)
        P, R = P + step * D, R - step * AD
        new = (R * R).sum(1, keepdim=True)
        if bool((new < 1e-3 * first).all()):
            break
        D, rr = R + (new / rr.clamp(min=tiny)) * D, new
    return P


def _line_search(
    at: tuple[Tensor, Tensor], along: tuple[Tensor, Tensor], SV: Tensor, E2: Tensor, value: Tensor, slope: Tensor
) -> tuple[Tensor, Tensor]:
    """Armijo steps, row by row; rows that fail six times stay where they are."""
    (Z, T), (P, TP) = at, along
    limit = value + 8 * torch.finfo(Z.dtype).eps * value.abs()
    trial, T_trial = Z + P, T + TP
    open_rows = torch.nonzero(_merit(trial, T_trial, SV, E2) > limit + 1e-4 * slope)[:, 0]
    step = 1.0
    for _ in range(5):
        if len(open_rows) == 0:
            return trial, T_trial
        step *= 0.3
        moved, T_moved = Z[open_rows] + step * P[open_rows], T[open_rows] + step * TP[open_rows]
        merit = _merit(moved, T_moved, SV[open_rows], E2[open_rows])
        trial[open_rows], T_trial[open_rows] = moved, T_moved
        open_rows = open_rows[merit > limit[open_rows] + 1e-4 * step * slope[open_rows]]
    trial[open_rows], T_trial[open_rows] = Z[open_rows], T[open_rows]
    return trial, T_trial


def _merit(Z: Tensor, T: Tensor, SV: Tensor, E2: Tensor) -> Tensor:
    """||z||^2/2 - b'V'r_E(Xz) for each row z."""
    doubled = torch.addcmul(E2, T, T).sqrt_().add_(T)
    return 0.5 * ((Z * Z).sum(1) - torch.linalg.vecdot(doubled, SV))


def distinct(candidates: Candidates, limit: int, cosine: float = 0.9999) -> Candidates:
    """The best candidates that differ in direction, or point to different outputs."""
    alike = (cosine < candidates.U @ candidates.U.T) & (candidates.B @ candidates.B.T > 0.5)
    same = alike.cpu().numpy()
    taken = np.zeros(len(candidates), dtype=bool)
    chosen: list[int] = []
    for j in range(len(candidates)):
        if len(chosen) == limit:
            break
        if not taken[j]:
            chosen.append(j)
            taken |= same[j]
    return candidates.take(torch.tensor(chosen, dtype=torch.int64, device=candidates.U.device))


def merge(first: Candidates, second: Candidates) -> Candidates:
    """Both, sorted by falling value."""
    values = torch.cat([first.values, second.values])
    order = torch.argsort(values, descending=True)
    return Candidates(torch.cat([first.U, second.U])[order], torch.cat([first.B, second.B])[order], values[order])
