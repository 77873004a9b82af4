"""Bounding methods, loosest first; each is a value `(graph, region, known bounds) -> Bounds`."""

from certify.bounds.alpha import AlphaCROWN
from certify.bounds.base import AbstractMethod, Bounds
from certify.bounds.crown import CROWN
from certify.bounds.ibp import IBP

METHODS: dict[str, AbstractMethod] = {m.name: m for m in (IBP(), CROWN(hidden=False), CROWN(), AlphaCROWN())}

__all__ = ["CROWN", "IBP", "METHODS", "AbstractMethod", "AlphaCROWN", "Bounds"]
