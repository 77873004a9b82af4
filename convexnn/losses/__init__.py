"""Losses: value, derivatives and dual of the training problem."""

from convexnn.losses.base import AbstractLoss, AbstractMarginLoss, AbstractSeparableLoss
from convexnn.losses.hinge import HingeLoss
from convexnn.losses.logistic import LogisticLoss
from convexnn.losses.softmax import SoftmaxLoss
from convexnn.losses.squared import SquaredLoss

LOSSES: dict[str, type[AbstractLoss]] = {
    member.name: member for member in (SquaredLoss, LogisticLoss, HingeLoss, SoftmaxLoss)
}

__all__ = [
    "LOSSES",
    "AbstractLoss",
    "AbstractMarginLoss",
    "AbstractSeparableLoss",
    "HingeLoss",
    "LogisticLoss",
    "SoftmaxLoss",
    "SquaredLoss",
]
