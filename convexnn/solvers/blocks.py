"""Some blocks of a convex program as one linear map."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from convexnn.operators import ConeMap
from convexnn.programs import AbstractProgram
from convexnn.projection import ColumnProducts


@dataclass(frozen=True)
class BlockMap:
    """The blocks with these flat indices: their signed masks, outputs and cones."""

    X: Float[Tensor, "n d"]
    masks: Float[Tensor, "B n"]  # sign times pattern
    outputs: Int[Tensor, " B"]
    n_outputs: int
    pairs: Int[Tensor, " B"]  # blocks of one output and one pattern have one number
    cone: ConeMap | None
    products: ColumnProducts | None
    centre: Float[Tensor, "B d"]  # unit directions inside the cones

    @classmethod
    def of(cls, program: AbstractProgram, index: Int[Tensor, " B"]) -> "BlockMap":
        """The blocks of a program with these flat indices into its shape (S, K, P)."""
        _, K, P, _ = program.shape
        patterns, outputs = index % P, (index // P) % K
        sign = program.sign_column[index // (K * P), 0, 0]
        cone, products = program.cone, None
        if cone is not None:
            products = ColumnProducts.of(cone.X)
            cone = ConeMap(cone.X, cone.signs[patterns])
        gates = program.patterns.gates[patterns]
        pairs = torch.unique(index % (K * P), return_inverse=True)[1]
        centre = gates / gates.norm(dim=1, keepdim=True)
        masks = sign * program.gated.mask[patterns]
        return cls(program.problem.X, masks, outputs, K, pairs, cone, products, centre)

    @property
    def shape(self) -> tuple[int, int]:
        """Number of blocks, number of columns."""
        return len(self.masks), self.X.shape[1]

    def forward(self, U: Float[Tensor, "B d"]) -> Float[Tensor, "n K"]:
        """Outputs without bias."""
        parts = self.masks * (U @ self.X.T)
        if self.n_outputs == 1:
            return parts.sum(0)[:, None]
        return parts.new_zeros((self.n_outputs, len(self.X))).index_add_(0, self.outputs, parts).T

    def adjoint(self, V: Float[Tensor, "n K"]) -> Float[Tensor, "B d"]:
        """c_j = sign X'D v_k for each block."""
        return (self.masks * (V[:, 0] if self.n_outputs == 1 else V.T[self.outputs])) @ self.X

    def cone_forward(self, U: Float[Tensor, "B d"]) -> Float[Tensor, "B m"]:
        """Slacks; no columns where there are no constraints."""
        return U.new_zeros((len(U), 0)) if self.cone is None else self.cone.forward(U)

    def cone_adjoint(self, L: Float[Tensor, "B m"]) -> Float[Tensor, "B d"]:
        """G'l."""
        return L.new_zeros(self.shape) if self.cone is None else self.cone.adjoint(L)

    def repaired(self, U: Float[Tensor, "B d"]) -> Float[Tensor, "B d"]:
        """Blocks inside their cones."""
        return U if self.cone is None else self.cone.repaired(U, self.centre)

    def cone_gram(self, w: Float[Tensor, "B m"]) -> Float[Tensor, "B d d"]:
        """X'diag(w_j)X for each block: the signs of the slacks cancel."""
        if self.products is None:
            return w.new_zeros((*self.shape, self.shape[1]))
        return self.products.gram(w, self.shape[1])
