"""What holds a neuron on its kinks: multipliers, and where there are none, the way on which the objective falls.

At a neuron z with kinks i (x_i'z = 0) the objective changes along d at the rate p'd - sum_i v_i (x_i'd)_+, with p the
gradient where all kinks are inactive, and v_i = V_i c. Parallel samples have their kinks together: with unit rows u_g
of lines, the rate is p'd - sum_g v_g (u_g'd)_+ with summed v_g, as (-t)_+ = t_+ - t. With p = sum_g theta_g u_g it is
theta_g - v_g to one side of line g and -theta_g to the other: both are >= 0 where it is convex and v_g <= theta_g <= 0.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from scipy.optimize import lsq_linear
from torch import Tensor

_ALIKE = 1e-10  # entries of unit rows
_RANK = 1e-10
_FLAT = 1e-6  # |v_g|, relative to the largest, below which a fall is not measured in it: that would be rounding
_STEEP = 1e-7  # slope, relative to the weight decay, that is no rounding


@dataclass(frozen=True)
class Lines:
    """Samples by the line through zero that they are on."""

    U: Float[Tensor, "G d"]
    index: Int[Tensor, " n"]
    along: Bool[Tensor, " n"]  # x_i is a positive multiple of its line's u_g
    sizes: Float[Tensor, " n"]

    @classmethod
    def of(cls, X: Float[Tensor, "n d"], *, together: bool) -> "Lines":
        """Of samples; each has a line of its own unless parallel ones go together."""
        sizes = X.norm(dim=1)
        U = X / sizes.clamp(min=1e-300)[:, None]
        if not together:
            return cls(U, torch.arange(len(X)), torch.ones(len(X), dtype=torch.bool), sizes)
        first = (U.abs() > 1e-6).to(torch.uint8).argmax(1, keepdim=True)
        along = U.gather(1, first)[:, 0] >= 0
        U = torch.where(along[:, None], U, -U)
        _, index = torch.unique(torch.round(U / _ALIKE), dim=0, return_inverse=True)
        lines = U.new_zeros((int(index.max()) + 1 if len(index) else 0, X.shape[1]))
        lines[index] = U
        return cls(lines, index, along, sizes)

    def sums(self, values: Float[Tensor, "k n"]) -> Float[Tensor, "k G"]:
        """Over the samples of each line."""
        return values.new_zeros((len(values), len(self.U))).index_add_(1, self.index, values)


@dataclass(frozen=True)
class Hold:
    """Multipliers of the kinks of each neuron, by line."""

    lines: Lines
    kinks: Bool[Tensor, "k G"]
    turns: Float[Tensor, "k G"]  # v_g
    theta: Float[Tensor, "k G"]
    left: Float[Tensor, "k d"]  # what multipliers do not balance: nothing where lines are independent
    cones: Bool[Tensor, "k G"] | None

    @property
    def shares(self) -> Float[Tensor, "k G"]:
        """theta / v: in [0, 1] at a local minimum."""
        return torch.where(self.kinks, self.theta / torch.where(self.turns == 0, 1e-300, self.turns), 0.5)

    def falls(self, weight_decay: float) -> tuple[Float[Tensor, "k G"], Bool[Tensor, "k G"]]:
        """How steeply the objective falls off each line, -1 where there is no kink; and to which side of u_g.

        In units of |v_g|; on the boundary of a cone, where only the way inward counts, of the largest |v|. Where
        no multipliers of dependent lines hold a neuron, the slope of its steepest descent, in units of the
        weight decay, counts for the lines that it crosses.
        """
        size = self.turns.abs().amax().clamp(min=1e-300)
        if self.cones is None:
            fall = torch.maximum(self.turns - self.theta, self.theta) / self.turns.abs().clamp(min=_FLAT * size)
            side = self.theta < self.turns - self.theta
        else:
            fall, side = torch.where(self.cones, self.turns - self.theta, self.theta) / size, self.cones
        slope = self.left.norm(dim=1, keepdim=True)
        way = -self.left @ self.lines.U.T
        crossed = (slope > _STEEP * weight_decay) & (way.abs() > _RANK * slope)
        fall = torch.where(crossed, slope / weight_decay, fall)
        return torch.where(self.kinks, fall, -1.0), torch.where(crossed, way > 0, side)


def hold(
    lines: Lines,
    kinks: Bool[Tensor, "k n"],
    turns: Float[Tensor, "k n"],
    pulls: Float[Tensor, "k d"],
    cones: Bool[Tensor, "k n"] | None,
) -> Hold:
    """Of neurons on kinks, v_i = V_i c in ``turns`` and p in ``pulls``; with cones each sample has its own line."""
    sized = torch.where(kinks, turns * lines.sizes, 0.0)
    at, total = lines.sums(kinks.to(turns)) > 0, lines.sums(sized)
    pulls = pulls + lines.sums(torch.where(lines.along, 0.0, sized)) @ lines.U
    if cones is None:
        low, high = total.clamp(max=0.0), total.clamp(min=0.0)
    else:
        low, high = torch.where(cones, total, -torch.inf), torch.where(cones, torch.inf, 0.0)
    theta, left = torch.zeros_like(total), torch.zeros_like(pulls)
    for j in torch.nonzero(at.any(1))[:, 0].tolist():
        K = lines.U[at[j]]
        Q, rank = _span(K)
        across = Q @ (Q.T @ pulls[j])
        if len(K) > rank:
            theta[j, at[j]] = _between(K, across, low[j, at[j]], high[j, at[j]])
            left[j] = across - K.T @ theta[j, at[j]]
        else:
            theta[j, at[j]] = torch.linalg.lstsq(K.T, across[:, None], driver="gelsd").solution[:, 0]
    return Hold(lines, at, total, theta, left, cones)


def _span(K: Float[Tensor, "m d"]) -> tuple[Float[Tensor, "d r"], int]:
    """An orthonormal basis of the rows' span, and its dimension."""
    _, values, right = torch.linalg.svd(K, full_matrices=False)
    rank = int((values > _RANK * values[0]).sum())
    return right[:rank].T, rank


def _between(
    K: Float[Tensor, "m d"], pull: Float[Tensor, " d"], low: Float[Tensor, " m"], high: Float[Tensor, " m"]
) -> Float[Tensor, " m"]:
    """theta between its ends with the least |pull - K' theta|."""
    high = torch.maximum(high, torch.nextafter(low, torch.full_like(low, torch.inf)))  # scipy wants an interval
    ends, steps = (low.numpy(), high.numpy()), 100 + 10 * len(K)
    found = lsq_linear(K.T.numpy(), pull.numpy(), ends, method="bvls", tol=1e-15, max_iter=steps)
    return torch.from_numpy(found.x)
