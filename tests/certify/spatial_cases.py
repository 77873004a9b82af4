"""Images, vectors and fields for the laws of deformations, and the interpolation as it is defined."""

import pytest
import torch
from certify_cases import seeded

INF = float("inf")
NORMS = (1.0, 2.0, INF)
DELTAS = (0.3, 1.0, 1.4, 2.6)
by_norm = pytest.mark.parametrize("norm", NORMS)
by_delta = pytest.mark.parametrize("delta", DELTAS)


def random_images(count, channels, height, width, seed):
    """Half of the channels black and white, as digits nearly are."""
    images = torch.rand((count, channels, height, width), generator=seeded(seed), dtype=torch.float64)
    images[:, ::2] = (images[:, ::2] > 0.5).double()
    return images


def inside(delta, norm, count, seed):
    """Vectors of the disc, a third of them on its rim."""
    generator = seeded(seed)
    vectors = (2 * torch.rand((count, 2), generator=generator, dtype=torch.float64) - 1) * delta
    length = torch.linalg.vector_norm(vectors, norm, dim=1)
    push = (length > delta) | (torch.rand(count, generator=generator) < 0.3)
    vectors = torch.where(push[:, None], vectors * (delta / length)[:, None], vectors)
    return vectors * (1 - 1e-15)


def constant_fields(vectors, height, width):
    return vectors[:, :, None, None].expand(-1, 2, height, width)


def interpolated(image, x, y):
    """I(x, y) of one channel by the definition of the source, pixel values by a rule."""
    height, width = image.shape
    x, y = min(max(x, 0.0), width - 1.0), min(max(y, 0.0), height - 1.0)
    total = 0.0
    for column in range(width):
        for row in range(height):
            total += float(image[row, column]) * max(0.0, 1 - abs(x - column)) * max(0.0, 1 - abs(y - row))
    return total
