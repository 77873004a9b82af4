"""Attacks for training: a few gradient steps that raise the cross entropy inside a box."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from certify.errors import InvalidInputError
from certify.training.margins import log_losses, margins_of


@dataclass(frozen=True)
class Attack:
    """Signed gradient steps from a random point (Madry et al., ICLR 2018; one step: Wong et al., ICLR 2020).

    Attributes:
        steps: gradient steps.
        step_size: length of the first, in radii of the box; it falls linearly to a tenth.
        random_start: whether to start at a random point, otherwise at the centre.
    """

    steps: int = 8
    step_size: float = 0.5
    random_start: bool = True

    def __post_init__(self) -> None:
        if self.steps < 0 or not self.step_size > 0:
            raise InvalidInputError(
                f"the attack has {self.steps} steps of size {self.step_size}; expected steps >= 0 and a size > 0"
            )

    def __call__(
        self,
        network: nn.Module,
        labels: Int[Tensor, " batch"],
        centre: Float[Tensor, "batch *shape"],
        radius: Float[Tensor, "batch *shape"],
    ) -> Float[Tensor, "batch *shape"]:
        """Attacked inputs; the network keeps its mode and its running statistics."""
        points = centre + radius * (2 * torch.rand_like(centre) - 1) if self.random_start else centre
        with _kept_statistics(network), torch.enable_grad():
            for k in range(self.steps):
                points = points.detach().requires_grad_(True)
                loss = log_losses(margins_of(network(points), labels)).sum()
                (gradient,) = torch.autograd.grad(loss, points)
                length = self.step_size * (1 - 0.9 * k / max(1, self.steps - 1))
                moved = points + length * radius * gradient.sign()
                points = torch.minimum(torch.maximum(moved, centre - radius), centre + radius)
        return points.detach()


FGSM = Attack(steps=1, step_size=1.25)
PGD = Attack()


@contextmanager
def _kept_statistics(network: nn.Module) -> Iterator[None]:
    """What passes inside leave the running statistics of BatchNorm as they were."""
    layers = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training]
    kept = [{name: buffer.clone() for name, buffer in layer.named_buffers()} for layer in layers]
    try:
        yield
    finally:
        for layer, buffers in zip(layers, kept, strict=True):
            for name, buffer in buffers.items():
                layer.get_buffer(name).copy_(buffer)
