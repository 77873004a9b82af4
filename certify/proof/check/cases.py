"""Case splits on the signs of hidden neurons: together the cases are the whole region."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from certify.proof.artefact import DEEPEST, Dyadic, integer, items, require
from certify.proof.check.rows import Hidden


def cases_of(order: Any, leaves: Any, hidden: Sequence[Hidden]) -> Iterator[tuple[list[Hidden], Any]]:
    """The bounds of the hidden layers in every case, and its proof.

    ``order`` lists the nodes depth first: [layer, neuron] of an unstable neuron, followed by the cases z <= 0 and
    z >= 0, or [] for the next of the leaves. Where neither case is left out every input of the region is in one.
    """
    proofs = iter(items(leaves, None, "the leaves"))
    open_ = [(list(hidden), 0)]
    for node in items(order, None, "the order of the cases"):
        require(bool(open_), "the cases have nodes that belong to nothing")
        bounds, depth = open_.pop()
        if items(node, None, "a node of the cases"):
            require(depth < DEEPEST, f"the cases are more than {DEEPEST} deep")
            open_ += [(part, depth + 1) for part in reversed(_halves(bounds, node))]
            continue
        proof = next(proofs, None)
        require(proof is not None, "there are more cases than proofs")
        yield bounds, proof
    require(not open_ and next(proofs, None) is None, "the cases do not cover the region")


def _halves(bounds: list[Hidden], node: Any) -> tuple[list[Hidden], list[Hidden]]:
    """With u = 0, and with l = 0, for one unstable neuron."""
    layer, neuron = items(node, 2, "a split")
    k = integer(layer, "the layer of a split", 0, len(bounds) - 1)
    i = integer(neuron, "the neuron of a split", 0, len(bounds[k].lower.values) - 1)
    require(bounds[k].lower.values[i] < 0 < bounds[k].upper.values[i], "a split is of a neuron of known sign")
    dead = replace(bounds[k], upper=_zeroed(bounds[k].upper, i))
    active = replace(bounds[k], lower=_zeroed(bounds[k].lower, i))
    return [*bounds[:k], dead, *bounds[k + 1 :]], [*bounds[:k], active, *bounds[k + 1 :]]


def _zeroed(bound: Dyadic, i: int) -> Dyadic:
    return Dyadic([*bound.values[:i], 0, *bound.values[i + 1 :]], bound.scale)
