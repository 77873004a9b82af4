"""Bounding methods, loosest first; each is a value `(graph, region, known bounds) -> Bounds`."""

from certify.bounds.alpha import AlphaCROWN
from certify.bounds.base import AbstractMethod, Bounds
from certify.bounds.crown import CROWN
from certify.bounds.deeppoly import DeepPoly
from certify.bounds.ibp import IBP
from certify.bounds.intersection import Intersection
from certify.bounds.lipschitz import LipNaive
from certify.bounds.lp import TriangleLP
from certify.bounds.multi_neuron import MultiNeuron
from certify.bounds.sdp.method import SDP
from certify.bounds.sdp_crown import SDPCROWN

_ALL = (
    IBP(),
    LipNaive(),
    CROWN(hidden=False),
    DeepPoly(0),
    DeepPoly(1),
    CROWN(),
    AlphaCROWN(),
    SDPCROWN(boxes=False),
    SDPCROWN(),
    TriangleLP(),
    MultiNeuron(),
    SDP(),
)
METHODS: dict[str, AbstractMethod] = {method.name: method for method in _ALL}

__all__ = [
    "CROWN",
    "IBP",
    "METHODS",
    "SDP",
    "SDPCROWN",
    "AbstractMethod",
    "AlphaCROWN",
    "Bounds",
    "DeepPoly",
    "Intersection",
    "LipNaive",
    "MultiNeuron",
    "TriangleLP",
]
