"""Penalties of the convex programs: value, prox and dual norm of a block of weights."""

from convexnn.penalties.base import AbstractPenalty
from convexnn.penalties.group import GroupPenalty
from convexnn.penalties.l1 import L1Penalty

PENALTIES: dict[str, type[AbstractPenalty]] = {member.name: member for member in (GroupPenalty, L1Penalty)}

__all__ = ["PENALTIES", "AbstractPenalty", "GroupPenalty", "L1Penalty"]
