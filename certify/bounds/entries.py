"""The entries of a node, or their negatives, as linear forms on a node below: where backward substitution starts.

The entries of a linear layer are its rows. Where it reads a pointwise operation of another linear layer, the
two are fused: with c a row of W, D the slopes that c selects and W1 the layer below,

    c D W1 = c S W1 + sum over j with D_j != S_j of c_j (D_j - S_j) W1_j ,

S_j = 1 for the neurons that are active for most inputs, 0 for the others. The first term is a row of W S W1, which
all inputs share, and the sum is short: neurons that are as they are for most inputs drop out.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod

import torch
from jaxtyping import Float, Int
from torch import Tensor

from certify.bounds.backward import Form, Step, flat_length
from certify.ir import Graph
from certify.ir.ops import Linear, Shape
from certify.regions.base import dot
from certify.relaxations import Pieces


@dataclass(frozen=True, eq=False)
class Entries:
    """Makes forms of a node's entries.

    Attributes:
        forms: (inputs of the batch, some numbers for each) -> their forms. Number j is entry j of the node, number
            j plus the size of the node the negative of entry j.
        work: what a form of each input costs, relative to the others; None where all cost the same.
    """

    forms: Callable[[Int[Tensor, " inputs"], Int[Tensor, "inputs rows"]], Form]
    work: Int[Tensor, " batch"] | None = None

    def __call__(self, part: Int[Tensor, " inputs"], numbers: Int[Tensor, "inputs rows"]) -> Form:
        """The forms with the given numbers."""
        return self.forms(part, numbers)


# Fusing pays while at most this share of the neurons is not as it is for most inputs.
_MOST_BENT = 0.7


def entries_of(graph: Graph, steps: Mapping[int, Step], k: int) -> Entries:
    """Makes forms of entries of node k, or of their negatives."""
    bend = _bend(graph, steps, k)
    return plain_entries(graph, steps, k) if bend is None else _fused(graph, steps, k, bend)


def plain_entries(graph: Graph, steps: Mapping[int, Step], k: int) -> Entries:
    """The rows of a linear layer, on what it reads, or units on node k itself: no relaxed node is passed."""
    node, error = graph.nodes[k], steps[k].error
    if not isinstance(node.op, Linear):
        return _units(k, node.shape, error)
    start, shape = node.inputs[0], graph.nodes[node.inputs[0]].shape
    rows, constants = _both_signs(node.op.weight), _both_signs(node.op.bias)
    length = flat_length(rows.unsqueeze(0))[0]

    def forms(part: Int[Tensor, " inputs"], numbers: Int[Tensor, "inputs rows"]) -> Form:
        chosen = _pick(rows, numbers).reshape((*numbers.shape, *shape))
        return Form(start, chosen, constants[numbers], error[part], length[numbers])

    return Entries(forms)


def _units(k: int, shape: Shape, like: Tensor) -> Entries:
    """One coefficient of 1 or -1 each: made for a few entries at a time, as all of them may not fit into memory."""
    size = prod(shape)

    def forms(part: Int[Tensor, " inputs"], numbers: Int[Tensor, "inputs rows"]) -> Form:
        sign = 1.0 - 2.0 * (numbers >= size).to(like)
        rows = like.new_zeros((*numbers.shape, size)).scatter_(2, (numbers % size).unsqueeze(2), sign.unsqueeze(2))
        zero = torch.zeros_like(sign)
        return Form(k, rows.reshape((*numbers.shape, *shape)), zero, zero, torch.ones_like(sign))

    return Entries(forms)


def _both_signs(rows: Tensor) -> Tensor:
    return torch.cat([rows, -rows])


@dataclass(frozen=True, eq=False)
class _Bend:
    """The neurons whose slopes are not those of most inputs, first, and the slopes there, less those of most inputs.

    Attributes:
        usual: the slopes of most inputs, 0 or 1.
        count: how many neurons of each input are bent; the rest of `index` is there to fill its row.
    """

    usual: Float[Tensor, " n"]
    count: Int[Tensor, " batch"]
    index: Int[Tensor, "batch bent"]
    lower: Float[Tensor, "batch bent"]
    between: Float[Tensor, "batch bent"]
    intercept: Float[Tensor, "batch bent"]

    @staticmethod
    def of(pieces: Pieces) -> "_Bend":
        """What fills a row contributes zero."""
        low, up, shift = pieces.lower_slope, pieces.upper_slope, pieces.upper_intercept
        usual = (up.mean(0) > 0.5).to(up.dtype)
        bent = (low != usual) | (up != usual) | (shift != 0)
        count = bent.sum(1)
        index = bent.to(torch.uint8).topk(int(count.amax()), dim=1).indices
        between, low = (v.gather(1, index) for v in (up - low, low - usual))
        return _Bend(usual, count, index, low, between, shift.gather(1, index))

    def select(self, part: Int[Tensor, " inputs"]) -> "_Bend":
        """Of some inputs."""
        most = int(self.count[part].amax())
        each = (v[part, :most] for v in (self.index, self.lower, self.between, self.intercept))
        return _Bend(self.usual, self.count[part], *each)


def _bend(graph: Graph, steps: Mapping[int, Step], k: int) -> _Bend | None:
    """What fusing node k with the two below it needs; None where that does not fit or does not pay."""
    if not isinstance(graph.nodes[k].op, Linear):
        return None
    bent = graph.nodes[k].inputs[0]
    pieces = steps[bent].pieces if bent > 0 else None
    if pieces is None or pieces.lower_intercept is not None or len(graph.nodes[bent].inputs) > 1:
        return None
    if not isinstance(graph.nodes[graph.nodes[bent].inputs[0]].op, Linear):
        return None
    bend = _Bend.of(pieces)
    return bend if bend.index.shape[1] <= _MOST_BENT * pieces.lower_slope.shape[1] else None


def _fused(graph: Graph, steps: Mapping[int, Step], k: int, bend: _Bend) -> Entries:
    """Two linear layers and the pointwise operation between them at once.

    Rounding: |c S W1|.|x| and the corrections together stay below (2 + steepness) |c|.(|W1||x| + |b1|).
    """
    middle = graph.nodes[k].inputs[0]
    below = graph.nodes[middle].inputs[0]
    op, first = graph.nodes[k].op, graph.nodes[below].op
    assert isinstance(op, Linear)
    assert isinstance(first, Linear)
    (start,) = graph.nodes[below].inputs
    weight, usual = _both_signs(op.weight), _both_signs(op.weight * bend.usual)
    rows, constants = usual @ first.weight, usual @ first.bias + _both_signs(op.bias)
    length = flat_length(weight.unsqueeze(0))[0]
    steepness = steps[middle].steepness
    assert steepness is not None
    per_length = steps[middle].error + (2 + steepness) * steps[below].error

    def forms(part: Int[Tensor, " inputs"], numbers: Int[Tensor, "inputs rows"]) -> Form:
        own = bend.select(part)
        weights = _pick(weight, numbers).gather(2, own.index.unsqueeze(1).expand(-1, numbers.shape[1], -1))
        negative = weights.clamp(max=0)
        change = weights.mul_(own.lower.unsqueeze(1)).addcmul_(negative, own.between.unsqueeze(1))
        passed = _pick(rows, numbers).baddbmm_(change, _pick(first.weight, own.index))
        shift = dot(change, first.bias[own.index]) + dot(negative, own.intercept)
        error = steps[k].error[part] + length[numbers] * per_length[part]
        return Form(start, passed, constants[numbers] + shift, error)

    return Entries(forms, bend.count + 1)


def _pick(rows: Float[Tensor, "all *shape"], chosen: Int[Tensor, "inputs some"]) -> Float[Tensor, "inputs some *shape"]:
    # Faster than rows[chosen], by a factor of 3.
    return rows.index_select(0, chosen.flatten()).reshape((*chosen.shape, *rows.shape[1:]))
