"""Linear networks as torch modules, and the two penalties of their weights."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from convexnn.errors import UnsupportedNetworkError
from convexnn.network import linear_layer


@dataclass(frozen=True)
class LinearFactors:
    """weights = P diag(sigma) Qh, singular values that are zero left out, and a bias."""

    P: Float[Tensor, "d r"]
    sigma: Float[Tensor, " r"]
    Qh: Float[Tensor, "r K"]
    bias: Float[Tensor, " K"]

    @classmethod
    def of(cls, weights: Float[Tensor, "d K"], bias: Float[Tensor, " K"], *, tolerance: float) -> "LinearFactors":
        """By a singular value decomposition; values up to ``tolerance`` times the largest count as zero."""
        P, sigma, Qh = torch.linalg.svd(weights, full_matrices=False)
        live = sigma > tolerance * sigma.max()
        return cls(P[:, live], sigma[live], Qh[live], bias)

    @property
    def weights(self) -> Float[Tensor, "d K"]:
        """The product."""
        return (self.P * self.sigma) @ self.Qh

    def module(self, depth: int, *, with_bias: bool) -> nn.Sequential:
        """Balanced factors: every layer has the singular values sigma^(1/depth), inner layers are diagonal."""
        P, sigma, Qh = self.P, self.sigma, self.Qh
        if len(sigma) == 0:  # torch.nn.Linear warns about layers of width zero
            P, sigma, Qh = P.new_zeros((len(P), 1)), sigma.new_zeros(1), Qh.new_zeros((1, Qh.shape[1]))
        root = sigma ** (1 / depth)
        inner = [linear_layer(torch.diag(root), None) for _ in range(depth - 2)]
        last = linear_layer(Qh.T * root, self.bias if with_bias else None)
        return nn.Sequential(linear_layer((P * root).T, None), *inner, last)


def layer_norms(network: nn.Sequential) -> list[float]:
    """||W_l||_F of every linear layer, as they stand."""
    return [float(layer.weight.detach().double().norm()) for layer in network if isinstance(layer, nn.Linear)]


def standard_penalty(network: nn.Sequential) -> float:
    """sum_l ||W_l||_F^2 / 2 of the weights as they stand."""
    return 0.5 * sum(float((W**2).sum()) for W in _weights(network))


def parallel_penalty(network: nn.Sequential) -> float:
    """(1/L) sum_k sum_l ||W_lk||_F^L over branches k of width one: rows, entries of the diagonals, columns.

    Raises:
        UnsupportedNetworkError: an inner layer is not diagonal, so that branches meet.
    """
    first, *inner, last = _weights(network)
    depth = len(inner) + 2
    for W in inner:
        if W.shape[0] != W.shape[1] or bool((W - torch.diag(torch.diag(W))).any()):
            raise UnsupportedNetworkError("an inner layer is not diagonal; branches of width one are expected.")
    norms = [first.norm(dim=1), *(torch.diag(W).abs() for W in inner), last.norm(dim=0)]
    return sum(float((size**depth).sum()) for size in norms) / depth


def _weights(network: nn.Sequential) -> list[Tensor]:
    layers = list(network)
    if len(layers) < 2 or not all(isinstance(layer, nn.Linear) for layer in layers):
        raise UnsupportedNetworkError("a torch.nn.Sequential of two or more Linear layers is expected.")
    return [layer.weight.detach().double() for layer in layers if isinstance(layer, nn.Linear)]
