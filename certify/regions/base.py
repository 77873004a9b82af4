"""What every input region can do."""

from abc import ABC, abstractmethod
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def dot(rows: Float[Tensor, "#batch rows n"], vectors: Float[Tensor, "batch n"]) -> Float[Tensor, "batch rows"]:
    """rows . vector for every input; rows shared by the batch cost one matrix product."""
    if len(rows) == 1:
        return vectors @ rows[0].T
    # As vector times transposed rows: several times faster than rows times vector in the batched product.
    return torch.bmm(vectors.unsqueeze(1), rows.transpose(1, 2)).squeeze(1)


class AbstractRegion(ABC):
    """A batch of closed, bounded, non-empty sets of inputs, one for each input, on flat vectors.

    Attributes:
        centre: a point in the middle of each region.
    """

    centre: Float[Tensor, "batch n"]

    @property
    def coupled(self) -> bool:
        """Whether entries depend on each other so much that a sum of a few is worth a bound of its own."""
        return False

    @abstractmethod
    def minimum(
        self, rows: Float[Tensor, "#chosen rows n"], inputs: Int[Tensor, " chosen"] | None = None
    ) -> Float[Tensor, "chosen rows"]:
        """A lower bound of `min row.x` over the region, exact up to rounding and rounded down.

        `inputs` are the inputs of the batch that the rows are about; by default all.
        """

    @abstractmethod
    def minimiser(self, rows: Float[Tensor, "batch n"]) -> Float[Tensor, "batch n"]:
        """A point of each region where row.x is least, up to rounding."""

    @abstractmethod
    def bounding_box(self) -> tuple[Float[Tensor, "batch n"], Float[Tensor, "batch n"]]:
        """The smallest box around the region, rounded outward."""

    @abstractmethod
    def contains(self, points: Float[Tensor, "batch n"], tolerance: float = 0.0) -> Bool[Tensor, " batch"]:
        """Whether each point is in the region of its input, in float64; `tolerance` is absolute."""

    @abstractmethod
    def project(self, points: Float[Tensor, "batch n"]) -> Float[Tensor, "batch n"]:
        """The nearest point of the region in Euclidean distance."""

    @abstractmethod
    def sample(self, generator: torch.Generator) -> Float[Tensor, "batch n"]:
        """A random point of each region (the whole region is reached; not uniform in general)."""

    @abstractmethod
    def ascent_direction(self, gradient: Float[Tensor, "batch n"]) -> Float[Tensor, "batch n"]:
        """The step of the region's own size that a linear function grows most along."""

    @abstractmethod
    def select(self, index: Any) -> "AbstractRegion":
        """The regions of some of the inputs."""

    @abstractmethod
    def to(self, dtype: torch.dtype) -> "AbstractRegion":
        """A region that contains this one, in another precision."""
