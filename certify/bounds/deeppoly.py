"""DeepPoly with one lower slope for all neurons.

Singh, Gehr, Pueschel & Vechev, "An abstract domain for certifying neural networks", POPL 2019. The two fixed
choices are the ones whose expressivity is known: Baader et al., "Expressivity of ReLU-networks under convex
relaxations", ICLR 2024.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import repeat

from jaxtyping import Float
from torch import Tensor

from certify.bounds.base import AbstractMethod, Bounds
from certify.bounds.crown import substituted, substituted_margins, sweep
from certify.errors import InvalidInputError
from certify.ir import Graph
from certify.properties import Margins
from certify.regions import AbstractRegion


@dataclass(frozen=True)
class DeepPoly(AbstractMethod):
    """Backward substitution with the lower line 0 (slope 0) or z (slope 1) at every unstable neuron.

    Attributes:
        slope: 0 or 1.
    """

    slope: int = 0

    def __post_init__(self) -> None:
        if self.slope not in (0, 1):
            raise InvalidInputError(f"the slope of DeepPoly is {self.slope}; expected 0 or 1")

    @property
    def name(self) -> str:
        """What a user calls it."""
        return f"deeppoly-{self.slope}"

    def steps(self, graph: Graph, region: AbstractRegion, known: Bounds | None = None) -> Iterator[Bounds]:
        """One node more each time."""
        return sweep(graph, region, repeat(known or Bounds()), substituted, slope=float(self.slope))

    def margins(
        self, graph: Graph, region: AbstractRegion, bounds: Bounds, margins: Margins
    ) -> Float[Tensor, "batch targets"]:
        """Substitution of every margin, never below the interval bound."""
        return substituted_margins(graph, region, bounds, margins, float(self.slope))
