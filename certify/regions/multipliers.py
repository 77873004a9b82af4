"""One-dimensional searches for the multiplier of a ball constraint, batched over rows.

A linear form over {|d|_2 <= eps} and {d_i between 0 and cap_i}, and the projection onto that set, are both
d_i = min(s w_i, cap_i) for one scalar s per row. With mu = s^2 the squared length
G(mu) = sum min(w_i^2 mu, cap_i^2) is concave, increasing and piecewise linear, so Newton's iteration started
left of the root of G = eps^2 rises to it monotonically and ends after finitely many pieces.
"""

import torch
from jaxtyping import Float
from torch import Tensor

_NEWTON_STEPS = 50
_BISECTIONS = 48


def ball_scale(
    weights: Float[Tensor, "*rows n"], caps: Float[Tensor, "*#rows n"], eps: float
) -> Float[Tensor, "*rows"]:
    """s with |min(s w, cap)|_2 = eps, or infinity where even the caps stay inside the ball."""
    squares, limits = weights.square(), caps.square().expand_as(weights)
    mu = eps * eps / squares.sum(-1)
    for _ in range(_NEWTON_STEPS):
        free = squares * mu.unsqueeze(-1) < limits
        left = eps * eps - limits.masked_fill(free, 0.0).sum(-1)
        slope = squares.masked_fill(~free, 0.0).sum(-1)
        # No slope left: every entry is at its cap, and the ball is not active.
        following = torch.where(slope > 0, left / slope, torch.inf)
        if bool((following <= mu).all()):
            break
        mu = torch.maximum(mu, following)
    return mu.sqrt()


def l1_threshold(
    weights: Float[Tensor, "*rows n"], caps: Float[Tensor, "*#rows n"], eps: float
) -> Float[Tensor, "*rows"]:
    """The multiplier of sum d <= eps in max w.d, 0 <= d <= cap: fill the largest weights first."""
    ordered, order = weights.sort(dim=-1, descending=True)
    filled = caps.expand_as(weights).gather(-1, order).cumsum(-1)
    stop = (filled < eps).sum(-1, keepdim=True)
    padded = torch.nn.functional.pad(ordered, (0, 1))  # all caps filled: the budget is not active, multiplier 0
    return padded.gather(-1, stop).squeeze(-1)


def l1_shrinkage(
    sizes: Float[Tensor, "batch n"], caps: Float[Tensor, "batch n"], eps: float
) -> Float[Tensor, " batch"]:
    """t >= 0 with sum of clip(size - t, 0, cap) at most eps, and 0 where the budget is not active."""
    low, high = torch.zeros_like(sizes[:, 0]), sizes.amax(1)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        over = torch.minimum((sizes - middle[:, None]).clamp(min=0), caps).sum(1) > eps
        low, high = torch.where(over, middle, low), torch.where(over, high, middle)
    fits = torch.minimum(sizes, caps).sum(1) <= eps
    return torch.where(fits, torch.zeros_like(high), high)
