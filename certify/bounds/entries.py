"""The entries of a node, or their negatives, as linear forms on a node below: where backward substitution starts.

The entries of a linear layer are its rows. Where it reads a pointwise operation of another linear layer, the
two are fused: with c a row of W, D the slopes that c selects and W1 the layer below,

    c D W1 = c W1 + sum over j with D_j != 1 of c_j (D_j - 1) W1_j .

The first term is a row of W W1, which all inputs share, and the sum is short: neurons that are active on the
region drop out.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from certify.bounds.backward import Form, Step, flat_length
from certify.ir import Graph
from certify.ir.ops import Linear, Shape
from certify.regions.base import dot
from certify.relaxations import Pieces

# (inputs of the batch, numbers of the entries of each) -> their forms
Entries = Callable[[Int[Tensor, " inputs"], Int[Tensor, "inputs rows"]], Form]

# Fusing pays while at most this share of the neurons has a slope other than 1.
_MOST_BENT = 0.7


def entries_of(graph: Graph, steps: Mapping[int, Step], k: int, below: Bool[Tensor, "batch n"]) -> Entries:
    """Makes forms of entries of node k, or (where `below` is false) of their negatives."""
    numbers, bend = _numbers(below), _bend(graph, steps, k)
    return _plain(graph, steps, k, numbers) if bend is None else _fused(graph, steps, k, numbers, bend)


def plain_entries(graph: Graph, steps: Mapping[int, Step], k: int, below: Bool[Tensor, "batch n"]) -> Entries:
    """The same without passing a relaxed node: for those who choose its slopes."""
    return _plain(graph, steps, k, _numbers(below))


def _numbers(below: Bool[Tensor, "batch n"]) -> Int[Tensor, "batch n"]:
    return torch.arange(below.shape[1], device=below.device) + below.shape[1] * (~below)


def _plain(graph: Graph, steps: Mapping[int, Step], k: int, numbers: Int[Tensor, "batch n"]) -> Entries:
    """The rows of a linear layer, on what it reads, or units on node k itself."""
    node, error = graph.nodes[k], steps[k].error
    if not isinstance(node.op, Linear):
        return _units(k, node.shape, error, numbers)
    start, shape = node.inputs[0], graph.nodes[node.inputs[0]].shape
    length = flat_length(node.op.weight.unsqueeze(0))[0]
    rows, constants = _both_signs(node.op.weight), _both_signs(node.op.bias)

    def entries(part: Int[Tensor, " inputs"], index: Int[Tensor, "inputs rows"]) -> Form:
        chosen = numbers[part].gather(1, index)
        return Form(
            start, _pick(rows, chosen).reshape((*index.shape, *shape)), constants[chosen], error[part], length[index]
        )

    return entries


def _units(k: int, shape: Shape, like: Tensor, numbers: Int[Tensor, "batch n"]) -> Entries:
    """One coefficient of 1 or -1 each: made for a few entries at a time, as all of them may not fit into memory."""
    size = numbers.shape[1]

    def entries(part: Int[Tensor, " inputs"], index: Int[Tensor, "inputs rows"]) -> Form:
        sign = 1.0 - 2.0 * (numbers[part].gather(1, index) >= size).to(like)
        rows = like.new_zeros((*index.shape, size)).scatter_(2, index.unsqueeze(2), sign.unsqueeze(2))
        zero = torch.zeros_like(sign)
        return Form(k, rows.reshape((*index.shape, *shape)), zero, zero, torch.ones_like(sign))

    return entries


def _both_signs(rows: Tensor) -> Tensor:
    return torch.cat([rows, -rows])


@dataclass(frozen=True, eq=False)
class _Bend:
    """The neurons whose slopes are not both 1, and the slopes there, less 1."""

    index: Int[Tensor, "batch bent"]
    lower: Float[Tensor, "batch bent"]
    between: Float[Tensor, "batch bent"]
    intercept: Float[Tensor, "batch bent"]

    @staticmethod
    def of(pieces: Pieces) -> "_Bend":
        """A few unbent ones may be among them: they contribute zero."""
        low, up, shift = pieces.lower_slope, pieces.upper_slope, pieces.upper_intercept
        bent = (low != 1) | (up != 1) | (shift != 0)
        index = bent.to(torch.uint8).topk(int(bent.sum(1).amax()), dim=1).indices
        low, up, shift = (v.gather(1, index) for v in (low, up, shift))
        return _Bend(index, low - 1, up - low, shift)


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


def _fused(graph: Graph, steps: Mapping[int, Step], k: int, numbers: Int[Tensor, "batch n"], bend: _Bend) -> Entries:
    """Two linear layers and the pointwise operation between them at once.

    Rounding: |c W1|.|x| and the corrections together stay below (2 + steepness) |c|.(|W1||x| + |b1|).
    """
    middle = graph.nodes[k].inputs[0]
    below = graph.nodes[middle].inputs[0]
    op, first = graph.nodes[k].op, graph.nodes[below].op
    assert isinstance(op, Linear)
    assert isinstance(first, Linear)
    (start,) = graph.nodes[below].inputs
    rows = _both_signs(op.weight @ first.weight)
    constants = _both_signs(op.weight @ first.bias + op.bias)
    weight, length = _both_signs(op.weight), flat_length(op.weight.unsqueeze(0))[0]
    steepness = steps[middle].steepness
    assert steepness is not None
    per_length = steps[middle].error + (2 + steepness) * steps[below].error

    def entries(part: Int[Tensor, " inputs"], index: Int[Tensor, "inputs rows"]) -> Form:
        chosen, neurons = numbers[part].gather(1, index), bend.index[part]
        weights = _pick(weight, chosen).gather(2, neurons.unsqueeze(1).expand(-1, index.shape[1], -1))
        negative = weights.clamp(max=0)
        change = (weights * bend.lower[part].unsqueeze(1)).addcmul_(negative, bend.between[part].unsqueeze(1))
        passed = _pick(rows, chosen).baddbmm_(change, _pick(first.weight, neurons))
        shift = dot(change, first.bias[neurons]) + dot(negative, bend.intercept[part])
        error = steps[k].error[part] + length[index] * per_length[part]
        return Form(start, passed, constants[chosen] + shift, error)

    return entries


def _pick(rows: Float[Tensor, "all *shape"], chosen: Int[Tensor, "inputs some"]) -> Float[Tensor, "inputs some *shape"]:
    # Faster than rows[chosen], by a factor of 3.
    return rows.index_select(0, chosen.flatten()).reshape((*chosen.shape, *rows.shape[1:]))
