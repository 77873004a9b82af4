"""Inputs at which a margin may be negative, from the relaxation's value: starts for an attack, never more than that."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float

from certify.bounds.sdp.low_rank import LowRank, LowRankSettings, low_rank
from certify.bounds.sdp.relaxation import Inputs, Relaxation
from certify.bounds.sdp.solve import all_pixels, most_violated
from certify.bounds.sdp.target import Target

# An attack needs no more.
_ROUGH = LowRankSettings(largest=2, rounds=12, feasible=1e-4, gap=1e-3)
_PIXELS = 80


def inputs_of(relaxation: Relaxation, found: LowRank, count: int = 1, *, seed: int = 0) -> Float[np.ndarray, "count n"]:
    """The first moment, then random inputs whose second moments are those of U U'; projected on the region."""
    columns = np.random.default_rng(seed).standard_normal((count, found.rank))
    columns[:, 0] = 1.0
    columns[:1, 1:] = 0.0
    project = relaxation.target.offsets.project
    return np.stack([project(relaxation.offset_of(found.factor[1:] @ column)) for column in columns])


def candidates(
    target: Target, count: int = 3, settings: LowRankSettings = _ROUGH, *, stop: Callable[[], bool] | None = None
) -> Float[np.ndarray, "count n"]:
    """Of a target with unstable neurons. Pixels' limits are taken in where the value without them breaks them."""
    pixels = all_pixels(target)
    relaxation = Relaxation(target, Inputs.of(target, np.zeros(0, dtype=int) if pixels is None else pixels))
    found = low_rank(relaxation, settings, stop=stop)
    if pixels is None:
        outside = most_violated(target, relaxation.offset_of(found.factor[1:, 0]), _PIXELS)
        if len(outside) and not (stop is not None and stop()):
            relaxation = Relaxation(target, Inputs.of(target, outside))
            found = low_rank(relaxation, settings, stop=stop)
    return inputs_of(relaxation, found, count)
