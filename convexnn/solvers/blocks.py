"""Some blocks of a convex program as one linear map."""

import abc
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from convexnn.operators import ConeMap
from convexnn.programs import AbstractProgram
from convexnn.projection import ColumnProducts


@dataclass(frozen=True)
class Image:
    """What blocks do: outputs without bias, and slacks (no columns where there are no constraints)."""

    F: Float[Tensor, "n K"]
    slack: Float[Tensor, "B m"]


def _placed(L: Float[Tensor, "B m"], live: Bool[Tensor, " n"]) -> Float[Tensor, "B n"]:
    out = L.new_zeros((len(L), len(live)))
    out[:, live] = L
    return out


class AbstractBlockMap(abc.ABC):
    """What the interior point asks of blocks u_j, each with its own outputs and its own cone G_j u_j >= 0.

    A block of e entries is m parts of d = e / m, one for each row of its masks: its outputs are sum_m mask_m o X u_m.
    """

    X: Float[Tensor, "n d"]
    masks: Tensor  # B n, or B m n where blocks have parts; a sign of the whole block cancels in what it adds to K
    outputs: Int[Tensor, " B"]
    n_outputs: int
    pairs: Int[Tensor, " B"]  # blocks with one output and masks alike but for a sign have one number
    centre: Float[Tensor, "B e"]  # unit directions inside the cones

    @property
    @abc.abstractmethod
    def shape(self) -> tuple[int, int]:
        """Number of blocks, number of entries of each."""

    @abc.abstractmethod
    def take(self, keep: Bool[Tensor, " B"]) -> "AbstractBlockMap":
        """Some of the blocks."""

    @abc.abstractmethod
    def forward(self, U: Float[Tensor, "B e"]) -> Float[Tensor, "n K"]:
        """Outputs without bias."""

    @abc.abstractmethod
    def image(self, U: Float[Tensor, "B e"]) -> Image:
        """Outputs and slacks."""

    @abc.abstractmethod
    def adjoint(self, V: Float[Tensor, "n K"]) -> Float[Tensor, "B e"]:
        """c_j, the transpose of :meth:`forward`."""

    @abc.abstractmethod
    def pull(self, V: Float[Tensor, "n K"], L: Float[Tensor, "B m"]) -> Float[Tensor, "B e"]:
        """c_j + G_j'l_j."""

    @abc.abstractmethod
    def repaired(self, U: Float[Tensor, "B e"], slack: Float[Tensor, "B m"]) -> Float[Tensor, "B e"]:
        """Blocks inside their cones, from blocks with these slacks."""

    @abc.abstractmethod
    def cone_gram(self, w: Float[Tensor, "B m"]) -> Float[Tensor, "B e e"]:
        """G_j'diag(w_j)G_j."""


@dataclass(frozen=True)
class BlockMap(AbstractBlockMap):
    """The blocks with these flat indices: their signed masks, outputs and cones."""

    X: Float[Tensor, "n d"]
    masks: Float[Tensor, "B n"]  # sign times pattern
    outputs: Int[Tensor, " B"]
    n_outputs: int
    pairs: Int[Tensor, " B"]  # blocks of one output and one pattern have one number
    cone: ConeMap | None
    products: ColumnProducts | None
    centre: Float[Tensor, "B d"]  # unit directions inside the cones
    live: Bool[Tensor, " n"] | None  # samples that have slacks, where some have none
    inside: Float[Tensor, "B m"] | None  # slacks of these directions, where there are any

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
        live = None if cone is None or bool(program.live.all()) else program.live
        inside = None
        if cone is not None and len(cone.X):
            inside = cone.forward(centre).clamp(min=torch.finfo(centre.dtype).tiny)
        return cls(program.problem.X, masks, outputs, K, pairs, cone, products, centre, live, inside)

    def take(self, keep: Bool[Tensor, " B"]) -> "BlockMap":
        """Some of the blocks."""
        cone = None if self.cone is None else ConeMap(self.cone.X, self.cone.signs[keep])
        pairs = torch.unique(self.pairs[keep], return_inverse=True)[1]
        return replace(
            self,
            masks=self.masks[keep],
            outputs=self.outputs[keep],
            pairs=pairs,
            cone=cone,
            centre=self.centre[keep],
            inside=None if self.inside is None else self.inside[keep],
        )

    @property
    def shape(self) -> tuple[int, int]:
        """Number of blocks, number of columns."""
        return len(self.masks), self.X.shape[1]

    def forward(self, U: Float[Tensor, "B d"]) -> Float[Tensor, "n K"]:
        """Outputs without bias."""
        return self._outputs(U @ self.X.T)

    def _outputs(self, Z: Float[Tensor, "B n"]) -> Float[Tensor, "n K"]:
        parts = self.masks * Z
        if self.n_outputs == 1:
            return parts.sum(0)[:, None]
        return parts.new_zeros((self.n_outputs, len(self.X))).index_add_(0, self.outputs, parts).T

    def image(self, U: Float[Tensor, "B d"]) -> Image:
        """Outputs and slacks from one product."""
        Z = U @ self.X.T
        if self.cone is None:
            return Image(self._outputs(Z), Z[:, :0])
        return Image(self._outputs(Z), self.cone.signs * (Z if self.live is None else Z[:, self.live]))

    def pull(self, V: Float[Tensor, "n K"], L: Float[Tensor, "B m"]) -> Float[Tensor, "B d"]:
        """c_j + G'l from one product."""
        spread = V.T[self.outputs] if self.n_outputs > 1 else V[:, 0]
        if self.cone is None:
            return (self.masks * spread) @ self.X
        own = self.cone.signs * L
        own = own if self.live is None else _placed(own, self.live)
        return own.addcmul_(self.masks, spread) @ self.X

    def adjoint(self, V: Float[Tensor, "n K"]) -> Float[Tensor, "B d"]:
        """c_j = sign X'D v_k for each block."""
        return (self.masks * (V[:, 0] if self.n_outputs == 1 else V.T[self.outputs])) @ self.X

    def repaired(self, U: Float[Tensor, "B d"], slack: Float[Tensor, "B m"]) -> Float[Tensor, "B d"]:
        """Blocks inside their cones, from blocks with these slacks, along the directions inside."""
        if self.inside is None:
            return U
        short = (-slack / self.inside).amax(1, keepdim=True).clamp(min=0.0)
        return U + short * self.centre

    def cone_gram(self, w: Float[Tensor, "B m"]) -> Float[Tensor, "B d d"]:
        """X'diag(w_j)X for each block: the signs of the slacks cancel."""
        if self.products is None:
            return w.new_zeros((*self.shape, self.shape[1]))
        return self.products.gram(w, self.shape[1])
