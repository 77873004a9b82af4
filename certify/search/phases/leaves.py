"""The open leaves of the search trees."""

from dataclasses import dataclass, fields

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Leaves:
    """Parts of regions where some phases are fixed and no answer is known.

    Everything is over the entries that are unstable at the root, `columns` of them.

    Attributes:
        tree: the tree of each.
        owner: whose bounds on hidden nodes are its own, a position in those of the root.
        signs: 1 where a phase is fixed to active, -1 to inactive, 0 where it is free.
        slopes: the best lower slopes found.
        multipliers: the best multipliers found (signed).
        weights: of the conditions.
        bound: proved for the leaf or one above it.
        branch: the column to split; -1 where there is none.
    """

    tree: Int[Tensor, " leaves"]
    owner: Int[Tensor, " leaves"]
    signs: Int[Tensor, "leaves columns"]
    slopes: Float[Tensor, "leaves columns"]
    multipliers: Float[Tensor, "leaves columns"]
    weights: Float[Tensor, "leaves conditions"]
    bound: Float[Tensor, " leaves"]
    branch: Int[Tensor, " leaves"]

    def __len__(self) -> int:
        return len(self.tree)

    @property
    def none(self) -> "Leaves":
        """None of them."""
        return self.select(torch.zeros(0, dtype=torch.long))

    def select(self, index: Tensor) -> "Leaves":
        """Some of them."""
        return Leaves(*(getattr(self, f.name)[index] for f in fields(self)))

    def joined(self, other: "Leaves") -> "Leaves":
        """Both."""
        return Leaves(*(torch.cat([getattr(self, f.name), getattr(other, f.name)]) for f in fields(self)))

    def children(self) -> "Leaves":
        """Each leaf twice: the active phase of the split entry first, all inactive ones after."""
        twice = self.joined(self)
        row = torch.arange(len(self))
        twice.signs[row, self.branch] = 1
        twice.signs[len(self) + row, self.branch] = -1
        return twice
