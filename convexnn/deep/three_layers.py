"""Parallel three-layer ReLU networks as torch modules, and back."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from convexnn.deep.parallel import ParallelPoint, ParallelProgram
from convexnn.errors import UnsupportedNetworkError
from convexnn.network import linear_layer

_EXPECTED = "a torch.nn.Sequential of Linear, ReLU, Linear without bias, ReLU, Linear"


@dataclass(frozen=True)
class ParallelWeights:
    """f(x) = sum_l A_l (sum_j sigma_lj (x'z_lj)_+)_+ + bias: branches with their second layer in the first."""

    Z: Float[Tensor, "B m d"]
    sigma: Float[Tensor, "B m"]  # -1, 0 (no neuron) or +1
    A: Float[Tensor, "B K"]
    bias: Float[Tensor, " K"]

    @classmethod
    def of(cls, program: ParallelProgram, point: ParallelPoint) -> "ParallelWeights":
        """The network of a feasible point: the outputs on the data are those of the program."""
        sign, outputs, branches = program.places(point.index)
        A = point.U.new_zeros((len(sign), program.n_outputs))
        A[torch.arange(len(sign)), outputs] = sign
        Z = program.cones.take(branches).parts(point.U)
        return cls(Z, program.branches.sigma[branches], A, point.bias)

    def balanced(self) -> "ParallelWeights":
        """Both layers of each branch of one norm; the same outputs."""
        inner, outer = self.Z.flatten(1).norm(dim=1), self.A.norm(dim=1)
        scale = (outer / inner.clamp(min=torch.finfo(inner.dtype).tiny)).sqrt()
        live = (inner > 0) & (outer > 0)
        Z, A = self.Z * scale[:, None, None], self.A / scale.clamp(min=1e-300)[:, None]
        return ParallelWeights(Z[live], self.sigma[live], A[live], self.bias)

    def outputs(self, X: Float[Tensor, "n d"]) -> Float[Tensor, "n K"]:
        """f, one row for each sample."""
        hidden = (self.sigma[:, :, None] * torch.relu(self.Z @ X.T)).sum(1)
        return torch.relu(hidden).T @ self.A + self.bias

    def penalty(self) -> float:
        """sum_l (||Z_l||_F^2 + ||A_l||^2) / 2: hidden neurons of norm one carry none of it."""
        return 0.5 * float((self.Z**2).sum() + (self.A**2).sum())

    def module(self, *, hidden_bias: bool, output_bias: bool) -> nn.Sequential:
        """Linear, ReLU, Linear, ReLU, Linear with hidden neurons of norm one; the second layer is block diagonal.

        With ``hidden_bias`` the last column of Z is the bias of the hidden neurons, inside their norm.
        """
        (B, m, d), K = self.Z.shape, self.A.shape[1]
        if B == 0:  # torch.nn.Linear warns about layers of width zero
            empty = self.Z.new_zeros
            return ParallelWeights(empty((1, m, d)), empty((1, m)), empty((1, K)), self.bias).module(
                hidden_bias=hidden_bias, output_bias=output_bias
            )
        norms = self.Z.norm(dim=2)
        W = (self.Z / norms.clamp(min=torch.finfo(norms.dtype).tiny)[:, :, None]).flatten(0, 1)
        second = torch.block_diag(*(self.sigma * norms)[:, None])
        first = linear_layer(W[:, :-1], W[:, -1]) if hidden_bias else linear_layer(W, None)
        last = linear_layer(self.A.T, self.bias if output_bias else None)
        return nn.Sequential(first, nn.ReLU(), linear_layer(second, None), nn.ReLU(), last)


def from_module(network: nn.Module) -> ParallelWeights:
    """The weights of a module whose hidden neurons feed one branch each, whoever trained it.

    Raises:
        UnsupportedNetworkError: another form, a bias in the second layer, or branches that share hidden neurons.
    """
    layers = list(network) if isinstance(network, nn.Sequential) else []
    kinds = [type(layer) for layer in layers]
    if kinds != [nn.Linear, nn.ReLU, nn.Linear, nn.ReLU, nn.Linear]:
        raise UnsupportedNetworkError(f"got {type(network).__name__} of {len(layers)} layers; expected {_EXPECTED}.")
    first, second, last = (layer for layer in layers if isinstance(layer, nn.Linear))
    if second.bias is not None:
        raise UnsupportedNetworkError(f"the second layer has a bias; expected {_EXPECTED}.")
    W, b, A = (layer.weight.detach().double() for layer in (first, second, last))
    if first.bias is not None:
        W = torch.cat([W, first.bias.detach().double()[:, None]], 1)
    if bool(((b != 0).sum(0) > 1).any()):
        raise UnsupportedNetworkError("a hidden neuron feeds several branches; parallel branches share none.")
    bias = A.new_zeros(len(A)) if last.bias is None else last.bias.detach().double()
    return _gathered(W, b, A, bias)


def _gathered(W: Tensor, b: Tensor, A: Tensor, bias: Tensor) -> ParallelWeights:
    """Hidden neurons by branch, padded with zeros to the widest."""
    width = max(int((b != 0).sum(1).max()), 1)
    Z, sigma = W.new_zeros((len(b), width, W.shape[1])), W.new_zeros((len(b), width))
    for branch, row in enumerate(b):
        mine = torch.nonzero(row)[:, 0]
        Z[branch, : len(mine)] = row[mine].abs()[:, None] * W[mine]
        sigma[branch, : len(mine)] = torch.sign(row[mine])
    return ParallelWeights(Z, sigma, A.T, bias)
