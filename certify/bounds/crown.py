"""CROWN: backward substitution with the piece of least area at every unstable entry.

Zhang et al., "Efficient neural network robustness certification with general activation functions", NeurIPS
2018; the dual norm, or the region's own minimum, ends each substitution.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import repeat, takewhile
from math import prod

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from certify.bounds.backward import Step, lower_bound, make_step, margin_form
from certify.bounds.base import AbstractMethod, Bounds, place
from certify.bounds.entries import Entries, entries_of
from certify.bounds.ibp import IBP, interval_of
from certify.ir import Graph
from certify.ir.ops import AbstractAffine
from certify.properties import Margins
from certify.regions import AbstractRegion
from certify.relaxations import relaxation_of

# Rows are substituted in chunks of about this many entries: they stay in a core's cache, and the memory of a
# wide layer stays bounded.
_CHUNK = 2**18


@dataclass(frozen=True)
class CROWN(AbstractMethod):
    """Backward substitution for the margins and, unless told otherwise, for every hidden layer.

    Attributes:
        hidden: whether hidden layers are substituted back to the input too; if not, their bounds are
            intervals (the method known as CROWN-IBP).
        stop: asked between substitutions, whether time is over: the rest stays as intervals have it.
    """

    hidden: bool = True
    stop: Callable[[], bool] | None = None

    @property
    def name(self) -> str:
        """What a user calls it."""
        return "crown" if self.hidden else "crown-ibp"

    def steps(self, graph: Graph, region: AbstractRegion, known: Bounds | None = None) -> Iterator[Bounds]:
        """One node more each time."""
        tighten = partial(substituted, stop=self.stop)
        return sweep(graph, region, repeat(known or Bounds()), tighten, hidden=self.hidden)

    def margins(
        self, graph: Graph, region: AbstractRegion, bounds: Bounds, margins: Margins
    ) -> Float[Tensor, "batch targets"]:
        """Substitution of every margin, never below the interval bound."""
        return substituted_margins(graph, region, bounds, margins)


def substituted_margins(
    graph: Graph, region: AbstractRegion, bounds: Bounds, margins: Margins, slope: float | None = None
) -> Float[Tensor, "batch targets"]:
    """Substitution of every margin, with lower slopes of least area or the given one, or its interval bound."""
    graph = place(graph, region.centre)
    steps = {k: make_step(graph, graph.nodes[k], bounds, slope) for k in range(1, len(graph.nodes))}
    own = lower_bound(graph, region.minimum, steps, margin_form(graph, margins, bounds))
    return torch.maximum(own, IBP().margins(graph, region, bounds, margins))


Tighten = Callable[[Graph, AbstractRegion, Mapping[int, Step], Bounds, int, Bool[Tensor, "batch *shape"]], Bounds]


def sweep(
    graph: Graph,
    region: AbstractRegion,
    known: Iterable[Bounds],
    tighten: Tighten,
    *,
    hidden: bool = True,
    slope: float | None = None,
) -> Iterator[Bounds]:
    """Intervals node by node, tightened where a node's bounds matter and intervals are not exact already.

    `known` are bounds from elsewhere, for every node in turn; `slope` sets the lower slopes.
    """
    graph = place(graph, region.centre)
    bounds = Bounds()
    steps: dict[int, Step] = {}
    at_centre = graph.values(region.centre)
    for (k, node), given in zip(enumerate(graph.nodes), known, strict=False):
        bounds = bounds.tightened(k, *given[k]) if k in given else bounds
        bounds = bounds.tightened(k, *interval_of(graph, k, bounds, region))
        if k > 0:
            steps[k] = make_step(graph, node, bounds, slope)
        matters = k == graph.output or (hidden and k in graph.relaxed)
        if k > 0 and matters and (region.coupled or not graph.reads_input(k)):
            bounds = tighten(graph, region, steps, bounds, k, at_centre[k] > 0)
        yield bounds


def substituted(
    graph: Graph,
    region: AbstractRegion,
    steps: Mapping[int, Step],
    bounds: Bounds,
    k: int,
    positive: Bool[Tensor, "batch *shape"],
    stop: Callable[[], bool] | None = None,
) -> Bounds:
    """Tighter bounds on the entries of node k that are undecided.

    The likely side comes first, the lower bound of what is positive at the centre: it settles most entries,
    and only the rest need the other side.
    """
    _keep_memory()
    entries = entries_of(graph, steps, k)
    for below in (positive, ~positive):
        bounds = _one_side(graph, region, steps, bounds, k, below.flatten(1), entries, stop)
    return bounds


def _keep_memory() -> None:
    """A block that was freed once tells glibc to keep as much, twice, for the next chunk.

    By default it gives the memory of every chunk back to the system and takes it anew, page by page, which takes
    longer than the arithmetic. The block itself is never touched.
    """
    torch.empty(8 * _CHUNK, dtype=torch.float64)


def _one_side(
    graph: Graph,
    region: AbstractRegion,
    steps: Mapping[int, Step],
    bounds: Bounds,
    k: int,
    below: Bool[Tensor, "batch n"],
    entries: Entries,
    stop: Callable[[], bool] | None,
) -> Bounds:
    """The lower bound, or where `below` is false the upper one, of the undecided entries of node k."""
    lower, upper = bounds[k]
    found = torch.full_like(lower.flatten(1), -torch.inf)
    numbers = torch.arange(below.shape[1], device=below.device) + below.shape[1] * ~below
    widest = max(prod(node.shape) for node in graph.nodes[: k + 1])
    chunks = _chunks(undecided(graph, bounds, k).flatten(1), widest, entries.work)
    for part, index in takewhile(lambda _: stop is None or not stop(), chunks):
        form = entries(part, numbers[part].gather(1, index))
        minimum = partial(region.minimum, inputs=part)
        found[part[:, None], index] = lower_bound(graph, minimum, steps, form, inputs=part)
    low = torch.where(below, found, -torch.inf).reshape(lower.shape)
    high = torch.where(below, torch.inf, -found).reshape(upper.shape)
    return bounds.tightened(k, low, high)


def _chunks(
    wanted: Bool[Tensor, "batch n"], widest: int, work: Int[Tensor, " batch"] | None
) -> Iterator[tuple[Int[Tensor, " inputs"], Int[Tensor, "inputs rows"]]]:
    """Some inputs with equally many entries of each; inputs that cost about as much go together."""
    counts = wanted.sum(1)
    order = (counts if work is None else counts * work).argsort(descending=True)[: int((counts > 0).sum())]
    counts = counts[order]
    while len(order):
        size = max(1, _CHUNK // (int(counts.amax()) * widest))
        part, order = order[:size], order[size:]
        # An input that wants fewer gets some others bounded too.
        index = wanted[part].to(torch.uint8).topk(int(counts[:size].amax()), dim=1).indices
        counts = counts[size:]
        for rows in index.split(max(1, _CHUNK // (len(part) * widest)), dim=1):
            yield part, rows


def undecided(graph: Graph, bounds: Bounds, k: int) -> Bool[Tensor, "batch *shape"]:
    """The entries whose bounds some operation that reads them could use."""
    lower, upper = bounds[k]
    if k == graph.output:
        return torch.ones_like(lower, dtype=torch.bool)
    readers = [graph.nodes[j].op for j in graph.consumers[k]]
    masks = [relaxation_of(op).undecided(lower, upper) for op in readers if not isinstance(op, AbstractAffine)]
    return torch.stack(masks).any(0)
