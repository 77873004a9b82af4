"""Flips: starts for the ascent across one kink of a local maximum.

Along its sphere, ||V'(Xu)_+|| is a concave function but for the kinks of positive weight, c_i (x_i'u)_+
with c = V b > 0. A local maximum lies strictly on one side of each of these, and other maxima, often
higher ones, lie just across. With z = M u and the curvature H = I + X'diag((-c)_+ r'')X of the rest,
the maximum of the model on the other side of kink i is z -+ c_i H^-1 x_i, and its value is higher by

    c_i^2 x_i'H^-1 x_i / 2 - c_i |x_i'z|   <=   c_i^2 |x_i|^2 / 2 - c_i |x_i'z|.

The right-hand side ranks all flips of all maxima by two matrix products; H is used for those chosen.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from convexnn.ascent import Candidates, ColumnPairs, newton_direction

_WIDTH = 3e-3  # smoothing of the kinks in H, relative to the typical |x|: how far a flip may push them


@dataclass(frozen=True)
class Tried:
    """Flips that were made before: kinks of maxima."""

    U: Float[Tensor, "m d"]
    kinks: Bool[Tensor, "m n"]

    @staticmethod
    def none(X: Float[Tensor, "n d"]) -> "Tried":
        """Nothing was tried."""
        return Tried(X.new_zeros((0, X.shape[1])), torch.zeros((0, len(X)), dtype=torch.bool, device=X.device))

    def at(self, U: Float[Tensor, "S d"]) -> Bool[Tensor, "S n"]:
        """The same for these maxima, in their order."""
        same = (U @ self.U.T > 1 - 1e-6).to(U.dtype)
        return same @ self.kinks.to(U.dtype) > 0


def flips(
    X: Float[Tensor, "n d"],
    V: Float[Tensor, "n K"],
    maxima: Candidates,
    number: int,
    *,
    scale: float,
    tried: Tried,
    pairs: ColumnPairs | None = None,
) -> tuple[Float[Tensor, "S d"], Tried]:
    """The most promising starts across one kink each, at most ``number``, and what was tried until now."""
    done = tried.at(maxima.U)
    M = maxima.values[:, None]
    C, T = maxima.B @ V.T, M * (maxima.U @ X.T)
    gain = 0.5 * C * C * (X * X).sum(1) - C * T.abs()
    promise = torch.where((C > 0) & ~done, M * M + 2 * gain, -torch.inf).flatten()
    top = torch.topk(promise, min(number, len(promise)))
    chosen = top.indices[top.values > 0]
    row, kink = chosen // len(X), chosen % len(X)
    done[row, kink] = True
    E2 = (_WIDTH * scale * M[row]) ** 2
    H = (-C[row]).clamp(min=0.0) * (0.5 * E2) * (T[row] ** 2 + E2) ** -1.5
    step = newton_direction(X, H, X[kink], pairs)
    size = torch.sign(T[row, kink]) * C[row, kink]
    return M[row] * maxima.U[row] + size[:, None] * step, Tried(maxima.U, done)
