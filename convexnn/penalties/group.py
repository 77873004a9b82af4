"""Group l2 penalty, the one that weight decay of a ReLU network becomes."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from convexnn.penalties.base import AbstractPenalty


@dataclass(frozen=True)
class GroupPenalty(AbstractPenalty):
    """||u||_2; its own dual; prox u (1 - step/||u||)_+."""

    name: ClassVar[str] = "group"
    rotates: ClassVar[bool] = True

    def norms(self, U: Float[Tensor, "*blocks d"]) -> Float[Tensor, "*blocks"]:
        """Euclidean norms."""
        return U.norm(dim=-1)

    def dual_norms(self, C: Float[Tensor, "*blocks d"]) -> Float[Tensor, "*blocks"]:
        """Euclidean norms."""
        return C.norm(dim=-1)

    def prox(self, U: Float[Tensor, "*blocks d"], step: float | Tensor) -> Float[Tensor, "*blocks d"]:
        """Shrink each block towards zero."""
        norms = U.norm(dim=-1, keepdim=True).clamp(min=torch.finfo(U.dtype).tiny)
        return U * (1 - step / norms).clamp(min=0.0)

    def cone_size(self, d: int) -> int:
        """The whole block."""
        return d
