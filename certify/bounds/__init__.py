"""Bounding methods, loosest first; each is a value `(graph, region, known bounds) -> Bounds`."""

from certify.bounds.base import AbstractMethod, Bounds
from certify.bounds.crown import CROWN
from certify.bounds.ibp import IBP

ibp = IBP()
crown_ibp = CROWN(hidden=False)
crown = CROWN()

METHODS: dict[str, AbstractMethod] = {m.name: m for m in (ibp, crown_ibp, crown)}

__all__ = ["CROWN", "IBP", "METHODS", "AbstractMethod", "Bounds", "crown", "crown_ibp", "ibp"]
