"""Trees of slabs in proof files: the nodes of one sign, and the ranges of samples in every leaf."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float

from certify.proof.check.spheres import RADIUS_BITS, Rows, Slab
from certify.proof.writing import as_json, rounded
from convexnn.proof.bound import RegionProof
from convexnn.proof.slabs import Cut, tilt

Array = np.ndarray


@dataclass
class Tree:
    """Filled depth first: what the file's tree holds, and the proofs of its leaves in that order."""

    basis: Float[Array, "d r"] | None  # of the columns that the proofs are in
    order: list[int] = field(default_factory=list)
    splits: list[dict[str, Any]] = field(default_factory=list)
    leaves: list[RegionProof] = field(default_factory=list)

    def visit(self, proofs: Sequence[RegionProof], depth: int = 0) -> "Tree":
        """Add the leaves below a node, which share their first cuts."""
        cuts = proofs[0].region.cuts
        if len(cuts) == depth:
            assert len(proofs) == 1, "regions overlap"
            self.order.append(-1)
            self.leaves.append(proofs[0])
            return self
        self.order.append(len(self.splits))
        self.splits.append(self._split(cuts[depth]))
        lower = [proof for proof in proofs if is_lower(proof.region.cuts[depth])]
        upper = [proof for proof in proofs if not is_lower(proof.region.cuts[depth])]
        return self.visit(lower, depth + 1).visit(upper, depth + 1)

    def _split(self, cut: Cut) -> dict[str, Any]:
        omega, low, high = cut
        omega = omega if self.basis is None else self.basis @ omega
        at = high if is_lower(cut) else low
        return {"omega": as_json(rounded(omega, RADIUS_BITS)), "at": as_json(rounded(at, RADIUS_BITS))}


def is_lower(cut: Cut) -> bool:
    """Whether a cut keeps the part below."""
    return cut[1] == -1.0


def tilts_of(
    rows: Rows, unit: Float[Array, "n d"], norms: Float[Array, " n"], cuts: tuple[Cut, ...], slabs: list[Slab]
) -> list[list[list[int]]]:
    """For every sample what makes its two ranges short, as the file has it: hints."""
    if not slabs:
        return []
    assert len(rows.values) == len(unit)

    def side(row: Array, norm: float) -> list[int]:
        return [int(v) for v in np.rint(np.ldexp(norm * tilt(row, cuts), RADIUS_BITS))]

    return [[side(row, norm), side(-row, norm)] for row, norm in zip(unit, norms, strict=True)]
