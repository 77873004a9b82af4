"""The same search by several processes: rounds of a fixed number of boxes each, so that answers stay the same."""

from dataclasses import replace

import numpy as np

from certify.search.deadline import Deadline
from certify.search.inputs.attack import Replay
from certify.search.inputs.search import BATCH, InputSearch, Open, Progress

# Boxes of one process in one round: about half a second of small networks.
_ROUND = 16 * BATCH
# Candidates for witnesses that a process hands back in one round.
_CANDIDATES = 64

Candidate = tuple[np.ndarray, int]


def run_shared(
    search: InputSearch, progress: Progress, replay: Replay, deadline: Deadline, workers: int, most: int
) -> Progress:
    """Like `search.run`, by `workers` processes (joblib), once there are boxes to share.

    Every process suspects witnesses; this one replays them, in an order that does not depend on who was first.
    """
    from joblib import Parallel, delayed

    limit = progress.boxes + most
    while not (progress.over or deadline.expired) and sum(map(len, progress.open)) < workers:
        progress = search.run(progress, replay, deadline, 1)
    with Parallel(n_jobs=workers) as pool:
        while not (progress.over or deadline.expired or progress.boxes >= limit):
            left = None if deadline.seconds is None else max(deadline.seconds - deadline.elapsed, 1e-3)
            shares = _shares(progress, workers)
            done = pool(delayed(_run_share)(search, share, left) for share in shares)
            progress = _merged(progress, [part for part, _ in done])
            suspects = [candidate for _, found in done for candidate in found]
            if any(replay(point, case) for point, case in suspects):
                return replace(progress, found=True)
    return progress


def _run_share(search: InputSearch, share: Progress, seconds: float | None) -> tuple[Progress, list[Candidate]]:
    """One round of one process."""
    found: list[Candidate] = []

    def suspect(point: np.ndarray, case: int) -> bool:
        if len(found) < _CANDIDATES:
            found.append((point, case))
        return False

    return search.run(share, suspect, Deadline(seconds), _ROUND), found


def _shares(progress: Progress, workers: int) -> list[Progress]:
    """The open boxes dealt out like cards, so that everybody gets of every depth."""
    boxes = Open.join(progress.open)
    # A start above zero: the root's samples were taken already.
    return [
        Progress((boxes.select(np.arange(first, len(boxes), workers)),), boxes=1)
        for first in range(min(workers, len(boxes)))
    ]


def _merged(before: Progress, parts: list[Progress]) -> Progress:
    waiting = [part for done in parts for part in done.open if len(part)]
    return replace(
        before,
        open=tuple(waiting),
        floor=min(before.floor, *(part.floor for part in parts)),
        boxes=before.boxes + sum(part.boxes - 1 for part in parts),
        stuck=before.stuck + sum(part.stuck for part in parts),
    )
