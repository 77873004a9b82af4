"""What every penalty offers."""

import abc
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class AbstractPenalty(abc.ABC):
    """A norm of each block of weights, summed over the blocks; the factor is the weight decay of the problem."""

    name: ClassVar[str]
    rotates: ClassVar[bool]  # unchanged by a rotation of the block

    @abc.abstractmethod
    def norms(self, U: Float[Tensor, "*blocks d"]) -> Float[Tensor, "*blocks"]:
        """The norm of each block."""

    @abc.abstractmethod
    def dual_norms(self, C: Float[Tensor, "*blocks d"]) -> Float[Tensor, "*blocks"]:
        """max c'u over blocks u of norm one."""

    @abc.abstractmethod
    def prox(self, U: Float[Tensor, "*blocks d"], step: float | Tensor) -> Float[Tensor, "*blocks d"]:
        """argmin over Z of step * norm(Z) + ||Z - U||^2 / 2 for each block."""

    @abc.abstractmethod
    def cone_size(self, d: int) -> int:
        """Entries that share one bound ||.||_2 <= t where the norm is written with second-order cones."""

    def value(self, U: Float[Tensor, "*blocks d"]) -> Float[Tensor, ""]:
        """Sum of the norms."""
        return self.norms(U).sum()
