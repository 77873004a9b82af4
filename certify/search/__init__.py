"""Looking for counterexamples, climbing from cheap bounds to tight ones, and searching until the answer is known.

Names load on first use: the search over inputs must not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from certify.search.attack import PGD
    from certify.search.climb import PLANS, Outcome, Plan
    from certify.search.deadline import Deadline
    from certify.search.problem import Problem

_HOMES = {
    "PGD": "attack",
    "PLANS": "climb",
    "Outcome": "climb",
    "Plan": "climb",
    "Deadline": "deadline",
    "Problem": "problem",
}

__all__ = ["PGD", "PLANS", "Deadline", "Outcome", "Plan", "Problem"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
