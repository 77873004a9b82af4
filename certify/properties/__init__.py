"""Conditions on the outputs of a network.

Names load on first use: those that read property files must not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from certify.properties.margins import Margins, margins_of_labels
    from certify.properties.query import Case, Query
    from certify.properties.vnnlib import read_vnnlib

_HOMES = {
    "Margins": "margins",
    "margins_of_labels": "margins",
    "Case": "query",
    "Query": "query",
    "read_vnnlib": "vnnlib",
}

__all__ = ["Case", "Margins", "Query", "margins_of_labels", "read_vnnlib"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
