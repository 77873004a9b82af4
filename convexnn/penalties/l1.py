"""l1 penalty: sparse weights within a block."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from convexnn.penalties.base import AbstractPenalty


@dataclass(frozen=True)
class L1Penalty(AbstractPenalty):
    """||u||_1; dual ||c||_inf; prox by soft thresholding."""

    name: ClassVar[str] = "l1"
    rotates: ClassVar[bool] = False

    def norms(self, U: Float[Tensor, "*blocks d"]) -> Float[Tensor, "*blocks"]:
        """Sums of absolute values."""
        return U.abs().sum(-1)

    def dual_norms(self, C: Float[Tensor, "*blocks d"]) -> Float[Tensor, "*blocks"]:
        """Largest absolute values."""
        return C.abs().amax(-1)

    def prox(self, U: Float[Tensor, "*blocks d"], step: float | Tensor) -> Float[Tensor, "*blocks d"]:
        """Move each entry towards zero."""
        return torch.sign(U) * (U.abs() - step).clamp(min=0.0)

    def cone_size(self, d: int) -> int:
        """Each entry has its own bound."""
        del d
        return 1
