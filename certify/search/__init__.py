"""Looking for counterexamples, and climbing from cheap bounds to tight ones."""

from certify.search.attack import PGD
from certify.search.climb import PLANS, Outcome, Plan, climb
from certify.search.deadline import Deadline
from certify.search.problem import Problem

__all__ = ["PGD", "PLANS", "Deadline", "Outcome", "Plan", "Problem", "climb"]
