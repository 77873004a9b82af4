"""Regions as the claims of proofs."""

from typing import Any

import numpy as np

from certify.errors import UnsupportedOp
from certify.proof.writing import as_json, exact
from certify.regions import AbstractRegion, Box, LpBall


def region_json(region: AbstractRegion) -> dict[str, Any]:
    """One region (a batch of one) as it stands in a claim; an open side of a domain ends outside the ball.

    Raises:
        UnsupportedOp: a region that proofs do not know.
    """
    if isinstance(region, Box):
        low, high = (as_json(exact(_numpy(v)[0])) for v in (region.lower, region.upper))
        return {"norm": "box", "centre": None, "radius": None, "lower": low, "upper": high}
    if not isinstance(region, LpBall):
        raise UnsupportedOp(f"proofs are about balls and boxes; given a {type(region).__name__}")
    centre = _numpy(region.centre)[0]
    limits = [
        None if v is None else as_json(exact(_closed(_numpy(v)[0], centre, region.eps)))
        for v in (region.lower, region.upper)
    ]
    return {
        "norm": region.norm,
        "centre": as_json(exact(centre)),
        "radius": as_json(exact(region.eps)),
        "lower": limits[0],
        "upper": limits[1],
    }


def _numpy(value: Any) -> np.ndarray:
    array: np.ndarray = value.detach().cpu().double().numpy()
    return array


def _closed(limit: np.ndarray, centre: np.ndarray, eps: float) -> np.ndarray:
    """Infinite entries become whole numbers that no point of the ball reaches."""
    far = np.ceil(np.abs(centre) + eps) + 1.0
    return np.where(np.isinf(limit), np.sign(limit) * far, limit)
