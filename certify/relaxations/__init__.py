"""One relaxation record per pointwise operation, read by every bounding method."""

from certify.errors import UnsupportedOp
from certify.ir.ops import AbstractOp, ReLU, Sigmoid, Tanh
from certify.relaxations.base import AbstractRelaxation, Pieces
from certify.relaxations.relu import ReLURelaxation
from certify.relaxations.sshape import SigmoidRelaxation, TanhRelaxation

RELAXATIONS: dict[type[AbstractOp], AbstractRelaxation] = {
    ReLU: ReLURelaxation(),
    Sigmoid: SigmoidRelaxation(),
    Tanh: TanhRelaxation(),
}


def relaxation_of(op: AbstractOp) -> AbstractRelaxation:
    """The record of an operation; raises `UnsupportedOp` where there is none."""
    record = RELAXATIONS.get(type(op))
    if record is None:
        known = ", ".join(sorted(k.__name__ for k in RELAXATIONS))
        raise UnsupportedOp(f"{type(op).__name__} has no relaxation; there is one for {known}")
    return record


__all__ = ["RELAXATIONS", "AbstractRelaxation", "Pieces", "relaxation_of"]
