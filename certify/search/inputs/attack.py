"""Candidates for witnesses: samples that close in on the lowest margin.

A candidate is a suspicion in floating point. Only a replay on the network itself makes it a witness.
"""

from collections.abc import Callable

import numpy as np

from certify.search.inputs.chain import Chain
from certify.search.inputs.targets import Targets

# A replay takes a candidate (n,) and the case it was found for, and says whether it is a witness.
Replay = Callable[[np.ndarray, int], bool]

_SAMPLES = 2000
_ROUNDS = 12
_KEPT = 20
_AROUND = 25
_SHRINK = 0.6
# Candidates of one batch that are replayed.
_TRIED = 8


def replay_best(chain: Chain, targets: Targets, points: np.ndarray, replay: Replay) -> np.ndarray:
    """Replay the points with the lowest margins that look unsafe.

    Returns:
        (points,): the lowest margin of each; minus infinity for a confirmed witness.
    """
    margins = targets.margins(chain.values(points))
    margins = np.where(np.isnan(margins), np.inf, margins)
    lowest, case = margins.min(1), margins.argmin(1)
    order = np.argsort(lowest, kind="stable")[:_TRIED]
    for i in order[lowest[order] <= 0]:
        if replay(points[i], int(case[i])):
            lowest[i] = -np.inf
            break
    return lowest


def sample_box(
    chain: Chain,
    targets: Targets,
    box: tuple[np.ndarray, np.ndarray],
    replay: Replay,
    seed: int,
    tick: Callable[[], None],
) -> bool:
    """Whether sampling finds a witness: uniformly first, then around the best points in shrinking boxes."""
    generator = np.random.default_rng(seed)
    lower, upper = box
    middle = 0.5 * lower + 0.5 * upper
    points = np.concatenate([middle[None], _uniform(generator, lower, upper, _SAMPLES)])
    width = 0.5 * upper - 0.5 * lower
    for _ in range(_ROUNDS + 1):
        tick()
        lowest = replay_best(chain, targets, points, replay)
        if lowest.min() == -np.inf:
            return True
        best = points[np.argsort(lowest, kind="stable")[:_KEPT]]
        width = width * _SHRINK
        near = best[:, None] + generator.uniform(-1, 1, (len(best), _AROUND, len(lower))) * width
        points = np.clip(np.concatenate([best, near.reshape(-1, len(lower))]), lower, upper)
    return False


def _uniform(generator: np.random.Generator, lower: np.ndarray, upper: np.ndarray, count: int) -> np.ndarray:
    share = generator.uniform(size=(count, len(lower)))
    return np.clip(lower * (1 - share) + upper * share, lower, upper)
