"""Convex programs over fixed activation patterns."""

from convexnn.programs.base import AbstractProgram, ConvexPoint
from convexnn.programs.gated import GatedProgram
from convexnn.programs.relu import ReLUProgram

PROGRAMS: dict[str, type[AbstractProgram]] = {member.name: member for member in (GatedProgram, ReLUProgram)}

__all__ = ["PROGRAMS", "AbstractProgram", "ConvexPoint", "GatedProgram", "ReLUProgram"]
