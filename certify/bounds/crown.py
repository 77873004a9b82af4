"""CROWN: backward substitution with the piece of least area at every unstable entry.

Zhang et al., "Efficient neural network robustness certification with general activation functions", NeurIPS
2018; the dual norm, or the region's own minimum, ends each substitution.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from certify.bounds.backward import Form, Step, lower_bound, make_step, margin_form
from certify.bounds.base import AbstractMethod, Bounds, place
from certify.bounds.ibp import IBP, interval_of
from certify.ir import Graph
from certify.ir.ops import AbstractAffine, Linear
from certify.properties import Margins
from certify.regions import AbstractRegion
from certify.relaxations import relaxation_of

# Rows are substituted in chunks of about this many entries: they stay in a core's cache, and the memory of a
# wide layer stays bounded.
_CHUNK = 2**18
# Above this share of undecided entries the rows of all entries, shared by the batch, are cheaper than rows
# chosen for each input.
_SHARED_ABOVE = 0.7


@dataclass(frozen=True)
class CROWN(AbstractMethod):
    """Backward substitution for the margins and, unless told otherwise, for every hidden layer.

    Attributes:
        hidden: whether hidden layers are substituted back to the input too; if not, their bounds are
            intervals (the method known as CROWN-IBP).
    """

    hidden: bool = True

    @property
    def name(self) -> str:
        """What a user calls it."""
        return "crown" if self.hidden else "crown-ibp"

    def steps(self, graph: Graph, region: AbstractRegion, known: Bounds | None = None) -> Iterator[Bounds]:
        """One node more each time."""
        graph = place(graph, region.centre)
        bounds = known or Bounds()
        steps: dict[int, Step] = {}
        for k, node in enumerate(graph.nodes):
            bounds = bounds.tightened(k, *interval_of(graph, k, bounds, region))
            if k > 0:
                steps[k] = make_step(graph, node, bounds)
            if self._substitutes(graph, k):
                bounds = _substituted(graph, region, steps, bounds, k)
            yield bounds

    def _substitutes(self, graph: Graph, k: int) -> bool:
        """Whether this node's bounds matter and intervals are not exact already."""
        matters = k == graph.output or (self.hidden and k in graph.relaxed)
        return k > 0 and matters and not graph.reads_input(k)

    def margins(
        self, graph: Graph, region: AbstractRegion, bounds: Bounds, margins: Margins
    ) -> Float[Tensor, "batch targets"]:
        """Substitution of every margin, never below the interval bound."""
        graph = place(graph, region.centre)
        steps = {k: make_step(graph, graph.nodes[k], bounds) for k in range(1, len(graph.nodes))}
        own = lower_bound(graph, region.minimum, steps, margin_form(graph, margins, bounds))
        return torch.maximum(own, IBP().margins(graph, region, bounds, margins))


def _substituted(
    graph: Graph, region: AbstractRegion, steps: Mapping[int, Step], bounds: Bounds, k: int
) -> Bounds:
    """Tighter bounds on the entries of node k that are still undecided."""
    lower, upper = bounds[k]
    wanted = _undecided(graph, bounds, k).flatten(1)
    most = int(wanted.sum(1).max())
    if most == 0:
        return bounds
    if most > _SHARED_ABOVE * wanted.shape[1]:
        index = torch.arange(wanted.shape[1], device=wanted.device)[None]
    else:
        index = wanted.to(torch.uint8).topk(most, dim=1).indices
    below, above = _both_sides(graph, region, steps, lower, k, index)
    index = index.expand(below.shape)
    low = lower.flatten(1).scatter(1, index, below).reshape(lower.shape)
    high = upper.flatten(1).scatter(1, index, above).reshape(upper.shape)
    return bounds.tightened(k, low, high)


def _undecided(graph: Graph, bounds: Bounds, k: int) -> Bool[Tensor, "batch *shape"]:
    """The entries whose bounds some operation that reads them could use."""
    lower, upper = bounds[k]
    if k == graph.output:
        return torch.ones_like(lower, dtype=torch.bool)
    readers = [graph.nodes[j].op for j in graph.consumers[k]]
    masks = [
        relaxation_of(op).undecided(lower, upper) for op in readers if not isinstance(op, AbstractAffine)
    ]
    return torch.stack(masks).any(0)


def _both_sides(
    graph: Graph,
    region: AbstractRegion,
    steps: Mapping[int, Step],
    like: Tensor,
    k: int,
    index: Int[Tensor, "#batch chosen"],
) -> tuple[Float[Tensor, "batch chosen"], Float[Tensor, "batch chosen"]]:
    """Lower and upper bounds of the chosen entries of node k, in chunks of rows."""
    widest = max(prod(node.shape) for node in graph.nodes[:k])
    size = max(1, _CHUNK // (len(like) * widest))
    below, above = [], []
    for chunk in index.split(size, 1):
        form = _entries(graph, steps, like, k, chunk)
        below.append(lower_bound(graph, region.minimum, steps, form))
        above.append(-lower_bound(graph, region.minimum, steps, form.negated()))
    return torch.cat(below, 1), torch.cat(above, 1)


def _entries(
    graph: Graph, steps: Mapping[int, Step], like: Tensor, k: int, index: Int[Tensor, "#batch chosen"]
) -> Form:
    """Entries of node k as forms: the rows of a linear layer are such forms on what it reads."""
    op, error = graph.nodes[k].op, steps[k].error
    if isinstance(op, Linear):
        return Form(graph.nodes[k].inputs[0], op.weight[index], op.bias[index], error)
    rows = torch.nn.functional.one_hot(index, like[0].numel()).to(like)
    rows = rows.reshape((*index.shape, *like.shape[1:]))
    return Form(k, rows, rows.new_zeros(index.shape), torch.zeros_like(error))
