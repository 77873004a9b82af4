"""One relaxation record per pointwise operation, read by every bounding method."""

from certify.errors import UnsupportedOp
from certify.ir.ops import AbstractOp, ReLU
from certify.relaxations.base import AbstractRelaxation, Pieces
from certify.relaxations.relu import ReLURelaxation

RELAXATIONS: dict[type[AbstractOp], AbstractRelaxation] = {ReLU: ReLURelaxation()}


def relaxation_of(op: AbstractOp) -> AbstractRelaxation:
    """The record of an operation; raises `UnsupportedOp` where there is none."""
    record = RELAXATIONS.get(type(op))
    if record is None:
        known = ", ".join(sorted(k.__name__ for k in RELAXATIONS))
        raise UnsupportedOp(f"{type(op).__name__} has no relaxation; there is one for {known}")
    return record


__all__ = ["RELAXATIONS", "AbstractRelaxation", "Pieces", "relaxation_of"]
