"""Mixed-integer programs: what HiGHS claims about the least value of a margin, and what is proved of it."""

from certify.search.milp.minimum import Minimum, minimum
from certify.search.milp.model import Claim, MixedIntegerModel, require_relu
from certify.search.milp.stage import Found, solve

__all__ = ["Claim", "Found", "Minimum", "MixedIntegerModel", "minimum", "require_relu", "solve"]
