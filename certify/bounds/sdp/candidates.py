"""Inputs at which a margin may be negative, from the relaxation's value: starts for an attack, never more than that."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float

from certify.bounds.sdp.inputs import Inputs
from certify.bounds.sdp.low_rank import LowRank, LowRankSettings, low_rank
from certify.bounds.sdp.relaxation import Relaxation
from certify.bounds.sdp.solve import all_pixels
from certify.bounds.sdp.target import Target

# An attack needs no more.
_ROUGH = LowRankSettings(largest=2, rounds=5, feasible=1e-2, gap=1e-2)


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
    """Of a target with unstable neurons. Where pixels are many, their limits count only when points are projected."""
    pixels = all_pixels(target)
    relaxation = Relaxation(target, Inputs.of(target, np.zeros(0, dtype=int) if pixels is None else pixels))
    return inputs_of(relaxation, low_rank(relaxation, settings, stop=stop), count)
