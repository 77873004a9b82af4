"""Candidates for witnesses: samples that close in on the lowest margin, and descent from many starts.

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
# Descent: its starts and steps, how often an input starts at one of its limits, the length of the first step as a
# share of the width, and of each further one relative to the last.
_STARTS, _STEPS = 4000, 20
_ENTRIES = 2**21  # of the largest array
_AT_LIMIT = 0.75
_LENGTH, _FALL = 0.3, 0.9
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


def descend_box(
    chain: Chain,
    targets: Targets,
    box: tuple[np.ndarray, np.ndarray],
    replay: Replay,
    seed: tuple[int, ...],
    tick: Callable[[], None],
) -> bool:
    """Whether signed gradient steps find a witness, from random points of the box, half of them on its faces.

    Networks are flat in most of a large box; what is special is often at its boundary.
    """
    generator = np.random.default_rng(seed)
    lower, upper = box
    starts = max(2, min(_STARTS, _ENTRIES // chain.widest))
    share = generator.uniform(size=(starts, len(lower)))
    at_limit = generator.uniform(size=share.shape) < _AT_LIMIT
    at_limit[::2] = False
    share = np.where(at_limit, share.round(), share)
    points = np.clip(lower * (1 - share) + upper * share, lower, upper)
    # Every start has a case that it pursues.
    case = np.arange(starts) // 2 % len(targets.starts)
    length = _LENGTH * generator.uniform(size=(starts, 1)) * (0.5 * upper - 0.5 * lower)
    for _ in range(_STEPS):
        tick()
        value, gradient = targets.slopes(chain, points, case)
        if replay_best(chain, targets, points[value <= 0], replay).min(initial=np.inf) == -np.inf:
            return True
        points = np.clip(points - length * np.sign(gradient), lower, upper)
        length *= _FALL
    return False


def _uniform(generator: np.random.Generator, lower: np.ndarray, upper: np.ndarray, count: int) -> np.ndarray:
    share = generator.uniform(size=(count, len(lower)))
    return np.clip(lower * (1 - share) + upper * share, lower, upper)
