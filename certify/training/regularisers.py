"""Terms that are added to the loss."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from certify.training.bounds import relu_inputs
from certify.training.enclosures import Enclosure

_TOLERATED = 0.5
_TINY = 1e-12


def l1_norm(network: nn.Module) -> Float[Tensor, ""]:
    """The sum of the absolute weights of the linear and convolutional layers; biases are free."""
    weights = [p.abs().sum() for p in network.parameters() if p.ndim > 1]
    return torch.stack(weights).sum() if weights else torch.zeros(())


def stability(output: Enclosure) -> Float[Tensor, ""]:
    """Shi et al. (2021): intervals should not grow from layer to layer, nor ReLUs be mostly off, or mostly on.

    With the mean widths D_0 of the input and D_i of what ReLU layer i reads, t = 1/2:

        1/(t m) sum_i [ (t - D_0/D_i)_+ + (t - min(a_i, 1/a_i))_+ + (t - min(b_i, 1/b_i))_+ ]

    a_i is the mean of the positive centres over that of the negative ones, b_i the same of their variances, each
    weighted by how many there are.

    Args:
        output: the enclosure of the network's outputs, as `evaluate` gives it.
    """
    read = list(relu_inputs(output))
    if not read:
        return output.centre.new_zeros(())
    inputs = [v for v in output.walk() if v.step is None]
    width = torch.stack([v.radius.mean() for v in inputs]).mean()
    terms = []
    for value in read:
        terms.append(_short_of(width / value.radius.mean().clamp(min=_TINY)))
        terms += [_short_of(_even(*pair)) for pair in _halves(value.centre)]
    return torch.stack(terms).sum() / (_TOLERATED * len(read))


def _short_of(ratio: Tensor) -> Tensor:
    return (_TOLERATED - ratio).clamp(min=0)


def _even(above: Tensor, below: Tensor) -> Tensor:
    """The smaller over the larger one."""
    ratio = above.clamp(min=_TINY) / below.clamp(min=_TINY)
    return torch.minimum(ratio, 1 / ratio)


def _halves(centre: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Sums, and sums of squared deviations, of the positive and of the negative centres."""
    on = (centre > 0).to(centre.dtype)
    off = 1 - on
    sums = (centre * on).sum(), (-centre * off).sum()
    means = sums[0] / on.sum().clamp(min=1), -sums[1] / off.sum().clamp(min=1)
    squares = ((centre - means[0]).square() * on).sum(), ((centre - means[1]).square() * off).sum()
    return sums, squares
