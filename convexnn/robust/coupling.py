"""How the loss of a robust program joins its blocks, and what the factorisations of the joint matrix share."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

RIDGES = (0.0, 1e-14, 1e-12, 1e-10, 1e-8)


@dataclass(frozen=True)
class Coupling:
    """How the loss joins the blocks, after excesses and levels are gone.

    ``margin``: the weight of each margin. ``form``: the weights of the margins of a sample on each other,
    as ``form[0]`` on every margin and ``form[1]`` on the difference of the two, where there are two.
    """

    margin: Float[Tensor, "q n"]
    single: Float[Tensor, "q n"]
    difference: Float[Tensor, " n"]
    total: Float[Tensor, " n"]
    share: Float[Tensor, "B n"]  # theta: of a pair's force that comes from its margin; zero where cones are hard
    pair: Float[Tensor, "B n"]  # weights of the pairs' slacks

    def apply(self, H: Float[Tensor, "q n"]) -> Float[Tensor, "q n"]:
        """Forces on the margins: the form, applied."""
        out = self.single * H
        if len(H) == 2:
            across = self.difference * (H[0] - H[1])
            out = out + torch.stack([across, -across])
        return out
