"""Trees of slabs: their leaves cover the unit sphere."""

from collections.abc import Iterator
from typing import Any

from certify.proof.artefact import DEEPEST, dyadic, fields, integer, items, require
from certify.proof.check.exact import root_up
from certify.proof.check.spheres import RADIUS_BITS, Slab


def leaves_of(value: Any, d: int, where: str) -> Iterator[tuple[list[Slab], Any, str]]:
    """(slabs, proof, name) of every leaf of a tree.

    ``order`` lists the nodes depth first: the number of a split, followed by its lower and its upper part, or -1 for
    the next leaf. A split {"omega", "at"} parts a region in omega'u <= at and omega'u >= at.
    """
    held = fields(value, where, "order", "splits", "leaves")
    splits = [_split(part, d, f"a split of {where}") for part in items(held["splits"], None, where)]
    leaves = items(held["leaves"], None, where)
    order = items(held["order"], None, where)
    open_: list[list[Slab]] = [[]]
    found = 0
    for node in order:
        require(bool(open_), f"the tree of {where} has nodes that belong to nothing")
        slabs = open_.pop()
        k = integer(node, f"a node of {where}", -1, len(splits) - 1)
        if k >= 0:
            require(len(slabs) < DEEPEST, f"the tree of {where} is deeper than {DEEPEST}")
            lower, upper = splits[k]
            open_ += [[*slabs, upper], [*slabs, lower]]
            continue
        require(found < len(leaves), f"the tree of {where} has more leaves than proofs")
        yield slabs, leaves[found], f"leaf {found} of {where}"
        found += 1
    require(not open_ and found == len(leaves), f"the leaves of {where} do not cover the sphere")


def _split(value: Any, d: int, where: str) -> tuple[Slab, Slab]:
    held = fields(value, where, "omega", "at")
    omega, at = dyadic(held["omega"], (d,), where), dyadic(held["at"], (), where)
    require(omega.scale <= RADIUS_BITS and at.scale <= RADIUS_BITS, f"{where} is finer than 2^-{RADIUS_BITS}")
    vector, bound = omega.at(RADIUS_BITS), at.at(RADIUS_BITS)
    length = root_up(sum(v * v for v in vector))
    return Slab(vector, -length, bound), Slab(vector, bound, length)
