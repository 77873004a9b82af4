"""Scalar problems of singular values, which is all that deep linear networks see of their weights.

Weight decay over the layers of a standard linear network of depth L is, at the best factors of a product with singular
values sigma, (L/2) sum_i sigma_i^(2/L); over parallel branches it is sum_i sigma_i (Wang, Ergen & Pilanci, ICLR 2023).
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

_STEPS = 60


def power_minimiser(q: Float[Tensor, " k"], curvature: float, weight_decay: float, depth: int) -> Float[Tensor, " k"]:
    """The sigma >= 0 of least curvature (sigma - q)^2 / 2 + weight_decay (depth / 2) sigma^(2/depth), for each q >= 0.

    Depth two is the soft threshold. From depth three on the function is not convex: it rises from zero and has at most
    one local minimum beyond; the better of the two is taken, zero on a tie.
    """
    root, exists = local_minimum(q, curvature, weight_decay, depth)
    better = exists & (power_value(root, q, curvature, weight_decay, depth) < 0.5 * curvature * q**2)
    return torch.where(better, root, 0.0)


def local_minimum(
    q: Float[Tensor, " k"], curvature: float, weight_decay: float, depth: int
) -> tuple[Float[Tensor, " k"], Bool[Tensor, " k"]]:
    """The local minimum above zero, and whether there is one.

    It is the larger root of curvature (sigma - q) sigma^(1 - 2/depth) + weight_decay, which falls until
    q (depth - 2) / (2 depth - 2) and rises from there on.
    """
    power = 1.0 - 2.0 / depth

    def slope(sigma: Tensor) -> Tensor:
        return curvature * (sigma - q) * sigma**power + weight_decay

    lowest = q * (depth - 2) / (2 * depth - 2)
    exists, sigma = slope(lowest) < 0, q
    for _ in range(_STEPS):  # the function is convex: Newton steps from the right of the root stay there
        rise = curvature * ((1 + power) * sigma - power * q) * sigma ** (power - 1)
        new = (sigma - slope(sigma) / rise).clamp(min=lowest)
        new = torch.where(exists, new, q)
        if bool((new >= sigma).all()):
            break
        sigma = torch.minimum(new, sigma)
    return sigma, exists


def power_value(
    sigma: Float[Tensor, " k"], q: Float[Tensor, " k"], curvature: float, weight_decay: float, depth: int
) -> Float[Tensor, " k"]:
    """curvature (sigma - q)^2 / 2 + weight_decay (depth / 2) sigma^(2/depth)."""
    return 0.5 * curvature * (sigma - q) ** 2 + 0.5 * weight_decay * depth * sigma ** (2 / depth)


def sum_power_minimum(q: Float[Tensor, " k"], curvature: float, weight_decay: float, depth: int) -> float:
    """min over sigma >= 0 of sum_i curvature (sigma_i - q_i)^2 / 2 + weight_decay (depth/2) (sum_i sigma_i)^(2/depth).

    For a given sum the best sigma is a soft threshold of q. While it keeps the k largest, the value is that of the
    scalar problem for their sum with curvature / k: every local minimum is one of these, or zero.
    """
    q = torch.sort(q, descending=True).values
    best = 0.5 * curvature * float((q**2).sum())
    for k in range(1, len(q) + 1):
        whole = q[:k].sum()[None]
        total, exists = local_minimum(whole, curvature / k, weight_decay, depth)
        if bool(exists):  # where the threshold keeps another number this is still a value of the function
            sigma = (q - (whole - total) / k).clamp(min=0.0)
            penalty = 0.5 * weight_decay * depth * float(sigma.sum()) ** (2 / depth)
            best = min(best, 0.5 * curvature * float(((sigma - q) ** 2).sum()) + penalty)
    return best


def schatten(sigma: Float[Tensor, " k"], depth: int) -> float:
    """(depth / 2) sum_i sigma_i^(2 / depth)."""
    return 0.5 * depth * float((sigma ** (2 / depth)).sum())
