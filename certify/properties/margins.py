"""Linear conditions on the outputs."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from certify.errors import InvalidInputError


@dataclass(frozen=True, eq=False)
class Margins:
    """For every input of a batch: all of `rows.y + constants` have to stay positive.

    Attributes:
        rows: coefficients on the outputs y.
        constants: c0.
        rivals: the class that wins where that margin is negative.
        keeps_ties: whether a margin of exactly zero still is the right label.
    """

    rows: Float[Tensor, "batch targets outputs"]
    constants: Float[Tensor, "batch targets"]
    rivals: Int[Tensor, "batch targets"]
    keeps_ties: Bool[Tensor, " batch"]

    def of_outputs(self, outputs: Float[Tensor, "batch outputs"]) -> Float[Tensor, "batch targets"]:
        """The margins at given outputs."""
        return torch.einsum("bto,bo->bt", self.rows, outputs) + self.constants

    def violated(self, margins: Float[Tensor, "batch targets"]) -> Bool[Tensor, " batch"]:
        """Whether some margin is lost (a NaN counts as lost)."""
        kept = torch.where(self.keeps_ties[:, None], margins >= 0, margins > 0)
        return ~kept.all(1)

    def cpu(self) -> "Margins":
        """The same in the memory of the CPU."""
        return Margins(self.rows.cpu(), self.constants.cpu(), self.rivals.cpu(), self.keeps_ties.cpu())

    def select(self, index: Any) -> "Margins":
        """The conditions of some of the inputs."""
        return Margins(self.rows[index], self.constants[index], self.rivals[index], self.keeps_ties[index])


def margins_of_labels(labels: Int[Tensor, " batch"], n_outputs: int) -> Margins:
    """The label's score above every other one; with a single output, its sign: class 1 iff y > 0.

    A tie between scores is a loss, as its winner depends on the order of the classes; an output of exactly
    zero is class 0.

    Raises:
        InvalidInputError: for labels outside 0, ..., classes - 1.
    """
    n_classes = max(n_outputs, 2)
    if bool(((labels < 0) | (labels >= n_classes)).any()):
        bad = int(labels[(labels < 0) | (labels >= n_classes)][0])
        hint = " (a network with one output has the classes 0 and 1: 1 where the output is positive)"
        raise InvalidInputError(
            f"label {bad} is out of range; expected an integer from 0 to {n_classes - 1}"
            + (hint if n_outputs == 1 else "; encode the labels as column numbers of the output")
        )
    if n_outputs == 1:
        return _signs(labels)
    classes = torch.arange(n_classes, device=labels.device)
    rivals = classes.expand(len(labels), -1)
    rivals = rivals[rivals != labels[:, None]].reshape(len(labels), n_classes - 1)
    unit = torch.eye(n_classes, dtype=torch.float64, device=labels.device)
    rows = unit[labels][:, None] - unit[rivals]
    return Margins(rows, rows.new_zeros(rivals.shape), rivals, torch.zeros_like(labels, dtype=torch.bool))


def _signs(labels: Int[Tensor, " batch"]) -> Margins:
    rows = (2.0 * labels.double() - 1.0)[:, None, None]
    return Margins(rows, rows.new_zeros(len(labels), 1), 1 - labels[:, None], labels == 0)
