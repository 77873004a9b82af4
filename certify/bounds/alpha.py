"""alpha-CROWN: backward substitution with lower slopes optimised for every form.

Xu et al., "Fast and complete: enabling complete verification with rapid and massively parallel incomplete
verifiers", ICLR 2021. The bounds of hidden entries are optimised too, each with slopes of its own.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from certify.bounds.ascent import Forms, Parameters, ascend, slots_below
from certify.bounds.backward import Form, Step, lower_bound, make_step, margin_form, relaxed_step
from certify.bounds.base import AbstractMethod, Bounds, place
from certify.bounds.crown import CROWN, substituted, sweep, undecided
from certify.bounds.entries import Entries, plain_entries
from certify.ir import Graph
from certify.ir.ops import AbstractAffine
from certify.properties import Margins
from certify.regions import AbstractRegion
from certify.rounding import fits_single, gamma

# Forms are optimised in chunks of about this many entries, which stay in a core's cache.
_CHUNK = 2**16


@dataclass(frozen=True, eq=False)
class Relaxed:
    """A network between bounds on regions, in the working precision and in single precision."""

    graph: Graph
    region: AbstractRegion
    bounds: Bounds
    steps: Mapping[int, Step]
    fast_graph: Graph
    fast_region: AbstractRegion
    fast_bounds: Bounds

    @staticmethod
    def of(graph: Graph, region: AbstractRegion, bounds: Bounds, steps: Mapping[int, Step]) -> "Relaxed":
        """With steps through every affine node, by input."""
        bounds = bounds.only(
            {0, graph.output} & set(bounds.lower)
            | {s for k in steps for s in graph.nodes[k].inputs if s in graph.relaxed}
        )
        single = fits_single(*bounds.lower.values(), *bounds.upper.values())
        fast = region.to(torch.float32) if single else region
        affine = {k: s for k, s in steps.items() if isinstance(graph.nodes[k].op, AbstractAffine)}
        return Relaxed(graph, region, bounds, affine, place(graph, fast.centre), fast, bounds.to(fast.centre.dtype))

    def between(self, bounds: Bounds, inputs: Int[Tensor, " batch"] | None = None) -> "Relaxed":
        """The same network between tighter bounds, which are bounds for the given inputs."""
        fast = bounds.to(self.fast_region.centre.dtype)
        if inputs is None:
            return replace(self, bounds=bounds, fast_bounds=fast)
        steps = {k: step.select(inputs) for k, step in self.steps.items()}
        regions = self.region.select(inputs), self.fast_region.select(inputs)
        return Relaxed(self.graph, regions[0], bounds, steps, self.fast_graph, regions[1], fast)

    def forms(
        self, form: Form, inputs: Int[Tensor, " batch"], bounds: Bounds | None = None, entry: Form | None = None
    ) -> Forms:
        """For the ascent: a form for each of the given inputs, between bounds of its own if there are any.

        With an `entry` of a node below the weights of the form's rows are free, and added to that entry.
        """
        region = self.fast_region.select(inputs)
        bounds = self.fast_bounds.select(inputs) if bounds is None else bounds
        rows, constant = (v.to(region.centre) for v in (form.rows, form.constant))
        others = {} if entry is None else {entry.node: entry.rows[:, 0].to(region.centre)}
        return Forms(self.fast_graph, region, bounds, form.node, rows, constant, others)

    def optimise(
        self, form: Form, inputs: Int[Tensor, " batch"], steps: int, stop: Callable[[], bool] | None = None
    ) -> Float[Tensor, " batch"]:
        """The best bound of one form for each of the given inputs, rounded down."""
        forms = self.forms(form, inputs)
        ascent = ascend(forms, forms.least_area(), steps, stop=stop)
        return self.judge(form, inputs, ascent.parameters)

    def judge(
        self,
        form: Form,
        inputs: Int[Tensor, " batch"],
        parameters: Parameters,
        bounds: Bounds | None = None,
        entry: Form | None = None,
    ) -> Float[Tensor, " batch"]:
        """The bound with given parameters, in the working precision and rounded down."""
        region, parameters = self.region.select(inputs), parameters.to(self.region.centre.dtype)
        bounds = self.bounds.select(inputs) if bounds is None else bounds
        steps = {k: step.select(inputs) for k, step in self.steps.items()}
        multipliers = {}
        for slot in slots_below(self.graph, form.node):
            slopes = slot.of(parameters.slopes)
            steps[slot.node] = relaxed_step(self.graph, self.graph.nodes[slot.node], bounds, slopes)
            if parameters.multipliers is not None:
                multipliers[slot.node] = slot.of(parameters.multipliers).unsqueeze(1)
        if parameters.weights is not None:
            # Conditions of their own are below the largest one only if their weights sum to one: single precision
            # and solvers leave them off by more than the rounding here.
            whole = 1.0 if entry is not None else parameters.weights.sum(1, keepdim=True)
            form = self._weighted(form, inputs, parameters.weights / whole)
        if entry is not None:
            constant, error = form.constant + entry.constant, form.error + entry.error
            form = Form(form.node, form.rows, constant, error, others={entry.node: entry.rows})
        return lower_bound(self.graph, region.minimum, steps, form, multipliers=multipliers).squeeze(1)

    def _weighted(self, form: Form, inputs: Int[Tensor, " batch"], weights: Float[Tensor, "batch conditions"]) -> Form:
        """One form for all conditions; what the sum rounds off is paid for by the size of the values."""
        rows, constant = form.rows.flatten(2), form.constant
        size = self.bounds.size(form.node)[inputs].flatten(1)
        total = torch.einsum("bc,bcn->bn", weights, rows.abs()).mul(size).sum(1) + (weights * constant.abs()).sum(1)
        error = (
            form.error * weights.sum(1, keepdim=True)
            + gamma(rows.shape[1] + rows.shape[2], rows.dtype) * total[:, None]
        )
        summed = torch.einsum("bc,bcn->bn", weights, rows).reshape((-1, 1, *form.rows.shape[2:]))
        return Form(form.node, summed, (weights * constant).sum(1, keepdim=True), error)

    def chunks(self, form: Form, inputs: Int[Tensor, " batch"]) -> Iterator[tuple[Form, Int[Tensor, " chunk"]]]:
        """The forms a few at a time."""
        widest = max(prod(node.shape) for node in self.graph.nodes[: form.node + 1])
        for part in _parts(torch.arange(len(inputs), device=inputs.device), widest):
            yield Form(form.node, form.rows[part], form.constant[part], form.error[part]), inputs[part]


@dataclass(frozen=True)
class AlphaCROWN(AbstractMethod):
    """CROWN, then ascent on the lower slopes of every form that is still undecided.

    The ascent runs in single precision; its best slopes are put into the substitution in the precision of the
    region, rounded down. The result is intersected with CROWN's own.

    Attributes:
        steps_margins: substitutions of each margin.
        steps_hidden: substitutions of each bound of a hidden entry; 0 leaves CROWN's hidden bounds.
        stop: asked in every substitution and ascent, whether time is over: the rest stays as it is.
    """

    steps_margins: int = 30
    steps_hidden: int = 16
    stop: Callable[[], bool] | None = None

    @property
    def name(self) -> str:
        """What a user calls it."""
        return "alpha-crown"

    def steps(self, graph: Graph, region: AbstractRegion, known: Bounds | None = None) -> Iterator[Bounds]:
        """One node more each time."""
        loose = CROWN(stop=self.stop).steps(graph, region, known)
        return sweep(graph, region, loose, self._tightened)

    def _tightened(
        self,
        graph: Graph,
        region: AbstractRegion,
        steps: Mapping[int, Step],
        bounds: Bounds,
        k: int,
        positive: Bool[Tensor, "batch *shape"],
    ) -> Bounds:
        bounds = substituted(graph, region, steps, bounds, k, positive, self.stop)
        if self.steps_hidden == 0 or not slots_below(graph, k):
            return bounds
        relaxed = Relaxed.of(graph, region, bounds, steps)
        entries = plain_entries(graph, steps, k)
        for below in (True, False):
            bounds = self._optimised_side(relaxed, bounds, k, below, entries)
        return bounds

    def _optimised_side(self, relaxed: Relaxed, bounds: Bounds, k: int, below: bool, entries: Entries) -> Bounds:
        """The lower or the upper bounds of the undecided entries of node k."""
        graph = relaxed.graph
        wanted = undecided(graph, bounds, k).flatten(1)
        found = torch.full_like(bounds.lower[k].flatten(1), -torch.inf)
        widest, first = max(prod(node.shape) for node in graph.nodes[: k + 1]), 0 if below else wanted.shape[1]
        for part in _parts(wanted.nonzero(), widest):
            if self.stop is not None and self.stop():
                break
            inputs, index = part.T
            form = entries(inputs, first + index[:, None])
            found[inputs, index] = relaxed.optimise(form, inputs, self.steps_hidden, self.stop)
        ends = (found, torch.full_like(found, torch.inf)) if below else (torch.full_like(found, -torch.inf), -found)
        low, high = (v.reshape(bounds.lower[k].shape) for v in ends)
        return bounds.tightened(k, low, high)

    def margins(
        self, graph: Graph, region: AbstractRegion, bounds: Bounds, margins: Margins
    ) -> Float[Tensor, "batch targets"]:
        """Ascent on every margin, never below CROWN's."""
        graph = place(graph, region.centre)
        own = CROWN().margins(graph, region, bounds, margins)
        if not slots_below(graph, graph.output):
            return own
        steps = {k: make_step(graph, graph.nodes[k], bounds) for k in range(1, len(graph.nodes))}
        relaxed, form = Relaxed.of(graph, region, bounds, steps), margin_form(graph, margins, bounds)
        batch, targets = own.shape
        inputs = torch.arange(batch, device=own.device).repeat_interleave(targets)
        flat = Form(
            form.node,
            form.rows.expand((batch, *form.rows.shape[1:])).flatten(0, 1).unsqueeze(1),
            form.constant.expand(batch, targets).reshape(-1, 1),
            form.error.expand(batch, targets).reshape(-1, 1),
        )
        chunks = relaxed.chunks(flat, inputs)
        found = torch.cat([relaxed.optimise(part, owner, self.steps_margins, self.stop) for part, owner in chunks])
        return torch.maximum(own, found.reshape(batch, targets))


def _parts(index: Int[Tensor, "entries *_"], widest: int) -> tuple[Int[Tensor, "some *_"], ...]:
    return index.split(max(1, _CHUNK // widest)) if len(index) else ()
