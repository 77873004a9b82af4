"""Sets of inputs."""

from certify.regions.base import AbstractRegion
from certify.regions.box import Box
from certify.regions.lp_ball import NORMS, LpBall

__all__ = ["NORMS", "AbstractRegion", "Box", "LpBall"]
