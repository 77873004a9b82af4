"""Semidefinite relaxations: bounds of single margins that are tight, anytime, and proved by a judge of their own."""

from certify.bounds.sdp.judge import proved_bound
from certify.bounds.sdp.solve import Settings, Solution, solve
from certify.bounds.sdp.target import Multipliers, Offsets, Target, targets_of

__all__ = ["Multipliers", "Offsets", "Settings", "Solution", "Target", "proved_bound", "solve", "targets_of"]
