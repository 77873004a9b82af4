"""The least value of a linear function of the outputs, from both sides.

From above: a point of the region, at which the network's value is taken. From below: the search on phases, which
proves what the mixed-integer program claims, up to a gap.
"""

from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from certify.bounds import AlphaCROWN, Bounds, TriangleLP
from certify.bounds.base import count_needed, last, place
from certify.bounds.linear_model import Question, Vector
from certify.errors import InvalidInputError
from certify.ir import Graph
from certify.properties import Margins
from certify.regions import AbstractRegion
from certify.search.deadline import Deadline
from certify.search.milp.model import MixedIntegerModel, require_relu
from certify.search.phases import Effort, Trees, search

# How often the point may turn out not to be the least.
_ATTEMPTS = 5


@dataclass(frozen=True, eq=False)
class Minimum:
    """lower <= min <= upper.

    Attributes:
        lower: proved, rounded down.
        upper: the value in float64 at the point.
        point: of the region, flat.
        claim: the solver's bound, in floating point and without proof.
    """

    lower: float
    upper: float
    point: Vector
    claim: float


def minimum(
    graph: Graph,
    region: AbstractRegion,
    row: Float[Tensor, " outputs"],
    *,
    constant: float = 0.0,
    gap: float = 1e-3,
    deadline: Deadline | None = None,
) -> Minimum:
    """min row.y + constant over a region (a batch of one), for a network of ReLUs.

    Args:
        graph: the network.
        region: one region, in float64 on the CPU.
        row: coefficients on the flat outputs y.
        constant: added.
        gap: upper - lower ends at most at this, times max(1, |upper|), unless time runs out.
        deadline: of all of it; what is proved by then is returned.

    Raises:
        UnsupportedOp: for activations other than ReLU.
        InvalidInputError: for several regions, or a network that is too large for a linear program.
    """
    if len(region.centre) != 1:
        raise InvalidInputError(f"the region holds {len(region.centre)} inputs; expected one: select it first")
    require_relu(graph)
    deadline, graph = deadline or Deadline(), place(graph, region.centre)
    margins = _margins(row.to(region.centre), constant)
    bounds = hidden_bounds(graph, region, None, deadline)
    model = MixedIntegerModel.of(Question(graph, region, bounds))
    objective = row.cpu().numpy() @ model.linear.expressions[graph.output]
    objective[-1] += constant
    claim = model.minimise(objective, deadline)
    centre = region.centre if claim.point is None else torch.as_tensor(claim.point)[None].to(region.centre)
    point = region.project(centre)
    for _ in range(_ATTEMPTS):
        upper = _value(graph, margins, point)
        wanted = upper - gap * max(1.0, abs(upper))
        lower, better = _prove(graph, region, margins, bounds, wanted, deadline)
        if better is None or deadline.expired:
            break
        point = better
    return Minimum(min(lower, upper), upper, point[0].cpu().numpy(), claim.bound)


def hidden_bounds(graph: Graph, region: AbstractRegion, known: Bounds | None, deadline: Deadline) -> Bounds:
    """By alpha-CROWN, then by linear programs as long as time is left: the big-M constants."""
    bounds = known or Bounds()
    for method in (AlphaCROWN(stop=lambda: deadline.expired), TriangleLP(stop=lambda: deadline.expired)):
        bounds = last(islice(method.steps(graph, region, bounds), count_needed(graph)), bounds)
    return bounds


def _margins(row: Float[Tensor, " outputs"], constant: float) -> Margins:
    none = torch.zeros((1, 1), dtype=torch.long, device=row.device)
    return Margins(row[None, None], row.new_full((1, 1), constant), none, none[0] > 0)


def _value(graph: Graph, margins: Margins, point: Float[Tensor, "1 n"]) -> float:
    return float(margins.of_outputs(graph(point).flatten(1)))


def _prove(
    graph: Graph, region: AbstractRegion, margins: Margins, bounds: Bounds, wanted: float, deadline: Deadline
) -> tuple[float, Float[Tensor, "1 n"] | None]:
    """A proved lower bound of the margin, `wanted` if all goes well; or a point with a smaller value than that."""

    def confirm(x: np.ndarray, tree: int) -> np.ndarray | None:
        point = torch.as_tensor(x)[None].to(region.centre)
        return x if _value(graph, margins, point) < wanted else None

    shifted = replace(margins, constants=margins.constants - wanted)
    # A further unit roundoff pays for the shift itself.
    slack = 4 * torch.finfo(torch.float64).eps * (abs(wanted) + float(margins.constants.abs()))
    trees = Trees.of_margins(graph, region, shifted)
    found = search(trees, confirm, deadline=deadline, known=bounds, effort=Effort(restarts=0))
    witness = None if found.witness is None else torch.as_tensor(found.witness.point)[None].to(region.centre)
    return float(found.bound) + wanted - slack - abs(float(found.bound)) * 1e-15, witness
