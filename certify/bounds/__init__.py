"""Bounding methods, loosest first; each is a value `(graph, region, known bounds) -> Bounds`."""

from certify.bounds.alpha import AlphaCROWN
from certify.bounds.base import AbstractMethod, Bounds
from certify.bounds.crown import CROWN
from certify.bounds.deeppoly import DeepPoly
from certify.bounds.ibp import IBP
from certify.bounds.intersection import Intersection
from certify.bounds.lp import TriangleLP
from certify.bounds.multi_neuron import MultiNeuron

_ALL = (IBP(), CROWN(hidden=False), DeepPoly(0), DeepPoly(1), CROWN(), AlphaCROWN(), TriangleLP(), MultiNeuron())
METHODS: dict[str, AbstractMethod] = {method.name: method for method in _ALL}

__all__ = [
    "CROWN",
    "IBP",
    "METHODS",
    "AbstractMethod",
    "AlphaCROWN",
    "Bounds",
    "DeepPoly",
    "Intersection",
    "MultiNeuron",
    "TriangleLP",
]
