"""Margins of a label over the other classes, and the loss of margins."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from certify.errors import InvalidInputError


def _require_labels(scores: Float[Tensor, "batch *classes"], labels: Int[Tensor, " batch"]) -> None:
    """Raises `InvalidInputError` for scores that are no row for every input, or labels that are no class."""
    if scores.ndim not in (1, 2) or len(scores) != len(labels):
        raise InvalidInputError(
            f"the network returns shape {tuple(scores.shape)} for {len(labels)} inputs; expected a row of scores, one"
            " for each class, for every input"
        )
    classes = max(2, scores.shape[1] if scores.ndim == 2 else 1)
    if len(labels) and not (int(labels.min()) >= 0 and int(labels.max()) < classes):
        raise InvalidInputError(
            f"labels go from {int(labels.min())} to {int(labels.max())}; expected class numbers 0 to {classes - 1}"
        )


def margins_of(scores: Float[Tensor, "batch *classes"], labels: Int[Tensor, " batch"]) -> Float[Tensor, "batch rivals"]:
    """Score of the label minus those of the other classes; of one score, its sign for class 1.

    Raises:
        InvalidInputError: for scores that are no row for every input, or labels that are no class.
    """
    _require_labels(scores, labels)
    if scores.ndim == 1 or scores.shape[1] == 1:
        return scores.reshape(-1, 1) * sign_of(labels)
    differences = scores.gather(1, labels[:, None]) - scores
    return differences.gather(1, rivals_of(labels, scores.shape[1]))


def rivals_of(labels: Int[Tensor, " batch"], classes: int) -> Int[Tensor, "batch rivals"]:
    """The other classes, in order."""
    numbers = torch.arange(classes - 1, device=labels.device)
    return numbers + (numbers >= labels[:, None]).long()


def sign_of(labels: Int[Tensor, " batch"]) -> Int[Tensor, "batch 1"]:
    """1 for class 1, -1 for class 0."""
    return (2 * labels - 1)[:, None]


def log_losses(margins: Float[Tensor, "batch rivals"]) -> Float[Tensor, " batch"]:
    """log(1 + sum_j exp(-v_j)): the cross entropy, as a function of margins that falls in each."""
    return torch.logsumexp(torch.nn.functional.pad(-margins, (1, 0)), dim=1)
