"""A lower bound on the objective of every network, and the data that proves it."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float

from convexnn.duality import dual_point
from convexnn.problem import Problem
from convexnn.proof.certificate import Multipliers, Region, best_settled
from convexnn.proof.hints import multipliers_of, region_of
from convexnn.proof.interior import Iterate, Relaxation
from convexnn.proof.leaf import Leaf

Array = np.ndarray


@dataclass(frozen=True)
class RegionProof:
    """sign v'(Xu)_+ <= weight decay for the unit vectors u of a region."""

    sign: float
    region: Region  # in unit rows
    multipliers: Multipliers


@dataclass(frozen=True)
class ProvedBound:
    """A dual point v with M(v) <= weight decay, proved region by region, and D(v).

    The regions of each sign cover the sphere. The bound is that of float64 arithmetic; the exact checker confirms the
    file that :mod:`convexnn.proof.artefact` writes.
    """

    value: float
    v: Float[Array, " n"]
    regions: tuple[RegionProof, ...]


NOTHING = ProvedBound(-np.inf, np.zeros(0), ())


def bound_at(problem: Problem, relaxation: Relaxation, point: Iterate) -> ProvedBound:
    """The bound that an iterate's dual point and multipliers prove; any iterate gives a valid one."""
    V = problem.admit(torch.from_numpy(point.dual_point()[:, None]))
    v = V.numpy()[:, 0]
    rows = relaxation.copies.gather(v)
    found = [_region(leaf, lam, rows) for leaf, lam in zip(relaxation.leaves, point.lam, strict=True)]
    largest = max(bound for _, bound in found)
    if not np.isfinite(largest):
        return NOTHING
    dual = dual_point(problem, V, largest)
    scaled = dual.V.numpy()[:, 0]
    s = float(np.abs(scaled).max() / max(np.abs(v).max(), 1e-300))
    return ProvedBound(dual.bound, scaled, tuple(scaled_by(proof, s) for proof, _ in found))


def _region(leaf: Leaf, lam: list[Array], v: Float[Array, " k"]) -> tuple[RegionProof, float]:
    """The proof for a leaf, and what it bounds sign v'(Xu)_+ by."""
    w, region = leaf.sign * leaf.radii * v, region_of(leaf)
    multipliers, bound = best_settled(region, w, multipliers_of(leaf, lam, w))
    return RegionProof(leaf.sign, region, multipliers), bound


def scaled_by(proof: RegionProof, s: float) -> RegionProof:
    """The proof for s v: shares and bends stay, the rest is homogeneous."""
    old = proof.multipliers
    names = ("first", "second", "both", "mixed", "neither", "pivot", "cuts")
    return replace(proof, multipliers=replace(old, **{name: s * getattr(old, name) for name in names}))
