"""Two-layer ReLU networks as plain arrays: f(x) = sum_j (x'w_j)_+ a_j + b."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Neurons:
    """First-layer rows W, output rows A, output bias b.

    A first-layer bias is a column of W, against a column of ones in the data.
    """

    W: Float[Tensor, "k d"]
    A: Float[Tensor, "k K"]
    bias: Float[Tensor, " K"]

    def __len__(self) -> int:
        return self.W.shape[0]

    @property
    def n_outputs(self) -> int:
        """Number K of outputs."""
        return self.A.shape[1]

    def __call__(self, X: Float[Tensor, "n d"]) -> Float[Tensor, "n K"]:
        """f(x) for each row x of X."""
        return torch.relu(X @ self.W.T) @ self.A + self.bias

    def to(self, target: torch.device | torch.dtype) -> "Neurons":
        """The same neurons on another device or in another precision."""
        return Neurons(self.W.to(target), self.A.to(target), self.bias.to(target))

    def masses(self) -> Float[Tensor, " k"]:
        """||w_j|| ||a_j||: what the weight-decay penalty of a balanced neuron comes to."""
        return self.W.norm(dim=1) * self.A.norm(dim=1)

    def half_squared_norm(self) -> Float[Tensor, ""]:
        """(||W||^2 + ||A||^2) / 2, the penalty of the weights as they stand; the bias is free."""
        return 0.5 * ((self.W**2).sum() + (self.A**2).sum())

    def balanced(self) -> "Neurons":
        """Rescale each neuron to ||w_j|| = ||a_j||: the same function, the least penalty (AM-GM).

        Neurons without effect (a zero on either side) are dropped.
        """
        live = self.masses() > 0
        W, A = self.W[live], self.A[live]
        # Two roots, not one of the quotient, which overflows for subnormal norms.
        scale = A.norm(dim=1, keepdim=True).sqrt() / W.norm(dim=1, keepdim=True).sqrt()
        return replace(self, W=W * scale, A=A / scale)

    def pruned(self, tolerance: float = 1e-7) -> "Neurons":
        """Drop neurons whose mass is below tolerance times the largest."""
        masses = self.masses()
        if len(self) == 0:
            return self
        live = masses > tolerance * masses.max()
        return replace(self, W=self.W[live], A=self.A[live])

    def merged(self, cosine: float = 1 - 1e-7) -> "Neurons":
        """Add up balanced neurons that point in the same direction on both sides."""
        if len(self) < 2:
            return self
        labels = self._cluster(cosine)
        roots = torch.unique(labels)
        if len(roots) == len(self):
            return self
        W, A = [], []
        for root in roots:
            group = labels == root
            # For parallel balanced neurons w_j = m_j^(1/2) u, a_j = m_j^(1/2) c the sum is m^(1/2) u, m^(1/2) c.
            mass = self.masses()[group]
            share = torch.sqrt(mass / mass.sum())
            W.append((share[:, None] * self.W[group]).sum(0))
            A.append((share[:, None] * self.A[group]).sum(0))
        return replace(self, W=torch.stack(W), A=torch.stack(A))

    def _cluster(self, cosine: float) -> Tensor:
        u, c = unit_rows(self.W), unit_rows(self.A)
        same = (u @ u.T > cosine) & (c @ c.T > cosine)
        return torch.argmax(same.to(torch.uint8), dim=1)  # the first neuron that this one equals


def no_neurons(n_inputs: int, bias: Float[Tensor, " K"]) -> Neurons:
    """The constant function f(x) = b."""
    return Neurons(bias.new_zeros((0, n_inputs)), bias.new_zeros((0, len(bias))), bias)


def unit_rows(Z: Float[Tensor, "k d"]) -> Float[Tensor, "k d"]:
    """Rows of norm one; zero rows stay zero."""
    return Z / Z.norm(dim=1, keepdim=True).clamp(min=1e-300 if Z.dtype == torch.float64 else 1e-30)
