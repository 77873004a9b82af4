"""The parts of images that rows of coefficients are about: a row of a convolution sees few pixels."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Windows:
    """For every row a rectangle of the image outside which it is zero, all of one size.

    Attributes:
        top, left: first pixel of each.
        height, width: of all.
    """

    top: Int[Tensor, " rows"]
    left: Int[Tensor, " rows"]
    height: int
    width: int

    @staticmethod
    def around(rows: Float[Tensor, "rows channels height width"]) -> "Windows":
        """The smallest ones."""
        used = (rows != 0).any(1)
        top, height = _span(used.any(2))
        left, width = _span(used.any(1))
        return Windows(top, left, height, width)

    def select(self, index: Any) -> "Windows":
        """Of some rows."""
        return Windows(self.top[index], self.left[index], self.height, self.width)

    def cut(self, rows: Float[Tensor, "rows channels height width"]) -> Float[Tensor, "rows channels h w"]:
        """The rows inside their windows."""
        if rows.shape[2:] == (self.height, self.width):
            return rows
        own = torch.arange(len(rows), device=rows.device)
        return self._gather(rows, own)

    def cut_of(
        self, images: Float[Tensor, "batch channels height width *n"], owner: Int[Tensor, " rows"]
    ) -> Float[Tensor, "rows channels h w *n"]:
        """The part of its image for every row."""
        if images.shape[2:4] == (self.height, self.width):
            return images[owner]
        return self._gather(images, owner)

    def _gather(self, images: Tensor, owner: Tensor) -> Tensor:
        down = (self.top[:, None] + torch.arange(self.height, device=owner.device))[:, None, :, None]
        right = (self.left[:, None] + torch.arange(self.width, device=owner.device))[:, None, None, :]
        channels = torch.arange(images.shape[1], device=owner.device)[None, :, None, None]
        return images[owner[:, None, None, None], channels, down, right]


def _span(used: Tensor) -> tuple[Int[Tensor, " rows"], int]:
    """The first position of each row's window, and the length of all windows."""
    size = used.shape[1]
    position = torch.arange(size, device=used.device)
    first = torch.where(used, position, size - 1).amin(1)
    last = torch.where(used, position, 0).amax(1)
    length = int((last - first).amax().clamp(min=0)) + 1
    return first.clamp(max=size - length), length
