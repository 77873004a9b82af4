"""Images moved along vector fields.

The deformed image is `I'(p) = I(p + v(p))`, with I bilinear between pixels and constant beyond the border (Ruoss
et al., "Efficient certification of spatial robustness", AAAI 2021, section 3). Entry 0 of a vector is the way to
the right (columns), entry 1 the way down (rows), both in pixels. All channels move along the same field.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn


def deform(
    images: Float[Tensor, "batch channels height width"], fields: Float[Tensor, "batch 2 height width"]
) -> Float[Tensor, "batch channels height width"]:
    """The deformed images; differentiable in both arguments."""
    height, width = images.shape[2:]
    columns = torch.arange(width, dtype=fields.dtype, device=fields.device)
    rows = torch.arange(height, dtype=fields.dtype, device=fields.device)[:, None]
    left, share_x = _cell(columns + fields[:, 0], width)
    top, share_y = _cell(rows + fields[:, 1], height)
    flat = images.flatten(2)

    def corner(down: int, right: int) -> Tensor:
        row, column = (top + down).clamp(max=height - 1), (left + right).clamp(max=width - 1)
        index = (row * width + column).flatten(1).unsqueeze(1).expand(-1, flat.shape[1], -1)
        return flat.gather(2, index).unflatten(2, (height, width))

    share_x, share_y = share_x.unsqueeze(1), share_y.unsqueeze(1)
    above = torch.lerp(corner(0, 0), corner(0, 1), share_x)
    below = torch.lerp(corner(1, 0), corner(1, 1), share_x)
    return torch.lerp(above, below, share_y)


def _cell(position: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The pixel before a position, and the share of the next one."""
    inside = position.clamp(0, size - 1)
    first = inside.detach().floor()
    return first.long(), inside - first


def patches(
    images: Float[Tensor, "batch channels height width"], reach: int
) -> Float[Tensor, "batch channels height width n"]:
    """Around every pixel the (2 reach + 1)^2 values of the image, row by row, constant beyond the border."""
    side = 2 * reach + 1
    padded = nn.functional.pad(images, (reach,) * 4, mode="replicate")
    return padded.unfold(2, side, 1).unfold(3, side, 1).flatten(4)
