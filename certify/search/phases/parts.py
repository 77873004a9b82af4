"""The search of parts: hidden bounds of its own for each, then branch and bound for a while.

A part that stays open is split into a few smaller ones, which start anew from its hidden bounds. What a part does
depends on nothing but itself: several processes work on parts, and the answer does not depend on how many.
"""

from collections import deque
from collections.abc import Generator
from dataclasses import dataclass, field, replace
from math import inf
from time import time

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from certify.bounds.base import Bounds
from certify.search.deadline import Deadline
from certify.search.phases.bounding import Effort
from certify.search.phases.growth import Growth
from certify.search.phases.leaves import Leaves
from certify.search.phases.narrow import are_empty, narrowed
from certify.search.phases.root import Root
from certify.search.phases.witness import Hunter
from certify.threads import threads_for

# Narrowing goes on while it raises the bound by this share of what is missing, but not for ever.
_WORTH, _ROUNDS = 0.03, 12
# Splits of all leaves of a part that stays open; the leaves are the next parts.
_LEVELS = 2
# Levels that no search reaches.
_DEEPEST = 60
# Candidates for witnesses that a part hands back.
_CANDIDATES = 32
# Seconds left from which on starting processes pays.
_WORTH_PROCESSES = 10.0

Candidate = tuple[np.ndarray, int]


@dataclass(frozen=True, eq=False)
class Part:
    """A leaf, and bounds on hidden nodes that hold where its tree's conditions do."""

    leaf: Leaves
    bounds: Bounds


@dataclass(frozen=True, eq=False)
class Report:
    """What became of a part.

    Attributes:
        bound: of the closed leaves of each tree.
        open: what is left of it.
        stuck: leaves that nothing can be done about.
        candidates: points that may be witnesses, and their trees.
        visited: how many leaves were bounded.
    """

    bound: Float[Tensor, " trees"]
    open: tuple[Part, ...] = ()
    stuck: tuple[Leaves, ...] = ()
    candidates: tuple[Candidate, ...] = ()
    visited: int = 0


def run_part(root: Root, part: Part, effort: Effort, deadline: Deadline) -> Report:
    """Narrow, then split: as much of the one as of the other."""
    candidates: list[Candidate] = []

    def suspect(x: np.ndarray, tree: int) -> None:
        if len(candidates) < _CANDIDATES:
            candidates.append((x, tree))

    hunter = Hunter(root.trees, suspect, deadline)
    own = replace(root, relaxed=root.relaxed.between(part.bounds, root.trees.owner[part.leaf.tree]))
    leaf = replace(part.leaf, owner=torch.zeros(1, dtype=torch.long))
    growth = Growth.start(own, hunter, deadline, effort, leaf)
    with torch.no_grad():
        spent = _narrow(growth)
        open_parts = _split(growth, max(effort.least, spent))
    return Report(growth.bound, open_parts, tuple(growth.stuck), tuple(candidates), growth.visited)


def _narrow(growth: Growth) -> int:
    """Round after round; returns how many leaves could have been bounded instead."""
    effort, rounds = growth.effort, 0
    while not growth.over and rounds < _ROUNDS:
        before = float(growth.pool.bound)
        growth.root, growth.pool = narrowed(
            growth.root, growth.pool, effort.narrow_steps, effort.narrow_entries, lambda: growth.deadline.expired
        )
        rounds += 1
        if bool(are_empty(growth.root, growth.pool)):
            proved = growth.root.ceiling[growth.pool.tree]
            growth.pool = growth.close(replace(growth.pool, bound=proved))
            break
        growth.bound_all(effort.root_steps)
        if len(growth.pool) and float(growth.pool.bound) - before < -_WORTH * before:
            break
    entries = min(effort.narrow_entries, len(growth.root.columns))
    return 2 * rounds * entries * effort.narrow_steps // effort.steps


def _split(growth: Growth, visits: int) -> tuple[Part, ...]:
    """The smaller parts, where so many visits do not close the leaf, or most likely would not."""
    growth.retire()
    lowest = [_lowest(growth)]
    for _ in range(_LEVELS):
        if not growth.over:
            growth.split()
            lowest.append(_lowest(growth))
    pool, bound, stuck = growth.pool, growth.bound.clone(), list(growth.stuck)
    if _expected_leaves(lowest) <= visits:
        growth.grow(visits)
    if len(growth.pool) == 0:
        return ()
    growth.bound, growth.stuck = bound, stuck
    bounds = growth.root.relaxed.bounds
    return tuple(Part(pool.select(torch.tensor([k])), bounds) for k in range(len(pool)))


def _lowest(growth: Growth) -> float:
    return float(growth.pool.bound.min()) if len(growth.pool) else 0.0


def _expected_leaves(lowest: list[float]) -> float:
    """Twice as many with every split, if the lowest bound goes on rising as it did."""
    rise = (lowest[-1] - lowest[0]) / max(1, len(lowest) - 1)
    missing = -lowest[-1]
    if missing <= 0:
        return 0.0
    depth = len(lowest) - 1 + missing / rise if rise > 0 else inf
    return 2.0**depth if depth < _DEEPEST else inf


@dataclass
class Shared:
    """All parts of a search, first in, first out.

    Attributes:
        root: of the whole search.
        queue: the open parts.
    """

    root: Root
    effort: Effort
    deadline: Deadline
    workers: int
    queue: deque[Part] = field(default_factory=deque)

    def reports(self) -> Generator[Report, None, None]:
        """One after the other, in an order that does not depend on the number of processes.

        Parts whose report nobody takes, because the iterator is closed, are open as before.
        """
        if self.workers == 1 or self.deadline.left < _WORTH_PROCESSES:
            while self.queue and not self.deadline.expired:
                yield self._taken(run_part(self.root, self.queue.popleft(), self.effort, self.deadline))
            return
        from joblib import Parallel, delayed

        with Parallel(n_jobs=self.workers) as pool:
            while self.queue and not self.deadline.expired:
                group = deque(self.queue.popleft() for _ in range(min(self.workers, len(self.queue))))
                end = time() + self.deadline.left
                try:
                    for report in pool(delayed(_remote)(self.root, part, self.effort, end) for part in tuple(group)):
                        group.popleft()
                        yield self._taken(report)
                finally:
                    self.queue.extend(group)

    def _taken(self, report: Report) -> Report:
        self.queue.extend(report.open)
        return report


def _remote(root: Root, part: Part, effort: Effort, end: float) -> Report:
    """In another process, whose start took time."""
    with threads_for(1):
        return run_part(root, part, effort, Deadline(None if end == inf else max(end - time(), 0.0)))
