"""Semidefinite relaxations: bounds of single margins that are tight, anytime, and proved by a judge of their own."""

from certify.bounds.sdp.branch import Cases, solve_cases
from certify.bounds.sdp.candidates import candidates
from certify.bounds.sdp.inputs import Inputs
from certify.bounds.sdp.judge import proved_bound
from certify.bounds.sdp.low_rank import LowRank, LowRankSettings, low_rank
from certify.bounds.sdp.relaxation import Relaxation
from certify.bounds.sdp.solve import solve
from certify.bounds.sdp.stage import Settings, Solution
from certify.bounds.sdp.target import Cuts, Factor, Multipliers, Offsets, Target, targets_of

__all__ = [
    "Cases",
    "Cuts",
    "Factor",
    "Inputs",
    "LowRank",
    "LowRankSettings",
    "Multipliers",
    "Offsets",
    "Relaxation",
    "Settings",
    "Solution",
    "Target",
    "candidates",
    "low_rank",
    "proved_bound",
    "solve",
    "solve_cases",
    "targets_of",
]
