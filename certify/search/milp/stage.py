"""The mixed-integer programs of one input's margins, as a stage before the search on phases.

What is proved here is proved by substitution with the multipliers of linear programs; what HiGHS says of the
mixed-integer programs is a claim, and a candidate that the network judges.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from certify.bounds import Bounds, TriangleLP
from certify.bounds.base import place
from certify.bounds.linear_model import Question, Vector
from certify.ir import Graph
from certify.properties import Margins
from certify.regions import AbstractRegion
from certify.search.deadline import Deadline
from certify.search.milp.minimum import hidden_bounds
from certify.search.milp.model import MixedIntegerModel, require_relu

# Of the time limit: for the hidden bounds, and for these and all programs. The rest is for the proof.
_HIDDEN, _ALL = 0.2, 0.6
# A solution is clearly a counterexample from here on, relative to the margins at the centre.
_CLEAR = 1e-3


@dataclass(frozen=True, eq=False)
class Found:
    """What is known about one input's margins after its programs.

    Attributes:
        bounds: on all nodes below the output.
        lower: proved lower bounds of the margins.
        claims: by margin, what HiGHS claims as a lower bound; capped at 0, as larger values do not matter.
        witness: a confirmed counterexample.
    """

    bounds: Bounds
    lower: Float[Tensor, " targets"]
    claims: dict[int, float] = field(default_factory=dict)
    witness: Tensor | None = None


def solve(
    graph: Graph,
    region: AbstractRegion,
    margins: Margins,
    confirm: Callable[[Vector], np.ndarray | None],
    *,
    deadline: Deadline,
    known: Bounds | None = None,
    lower: Float[Tensor, " targets"] | None = None,
) -> Found:
    """The margins of one input that linear programs leave open, by mixed-integer programs, the worst first.

    Args:
        graph: the network; ReLU and affine operations only.
        region: of one input.
        margins: of one input.
        confirm: the point as it has to be written, if the network itself says that it is a counterexample.
        deadline: a share of what is left of it is used.
        known: bounds of hidden nodes.
        lower: what is proved of the margins already.

    Raises:
        UnsupportedOp: for other activations than ReLU.
        InvalidInputError: for a network that is too large for a linear program.
    """
    require_relu(graph)
    graph, share = place(graph, region.centre), _share(deadline, _ALL)
    bounds = hidden_bounds(graph, region, known, _share(deadline, _HIDDEN))
    proved = TriangleLP(stop=lambda: share.expired).margins(graph, region, bounds, margins)[0]
    found = Found(bounds, proved if lower is None else torch.maximum(proved, lower.to(proved)))
    left = [int(t) for t in found.lower.argsort() if found.lower[t] <= 0]
    if not left or share.expired:
        return found
    model = MixedIntegerModel.of(Question(graph, region, bounds))
    rows = margins.rows[0].cpu().numpy() @ model.linear.expressions[graph.output]
    rows[:, -1] += margins.constants[0].cpu().numpy()
    sizes = margins.of_outputs(graph(region.centre).flatten(1))[0].abs().tolist()
    for target in left:
        claim = model.minimise(rows[target], share, below=0.0, goal=-_CLEAR * sizes[target])
        found.claims[target] = claim.bound
        point = None if claim.point is None else confirm(claim.point)
        if point is not None:
            return Found(bounds, found.lower, found.claims, torch.as_tensor(point))
        if share.expired:
            break
    return found


def _share(deadline: Deadline, share: float) -> Deadline:
    if deadline.seconds is None:
        return deadline
    return deadline.within(share * max(deadline.seconds - deadline.elapsed, 0.0))
