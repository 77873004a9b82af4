"""What a search for a proof tries, in which order, and how long that is likely to take."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from convexnn.proof.coupling import lifted_samples, moment_work, sample_work
from convexnn.proof.leaf import Leaf

EVERY = 10**9

# Operations that leaves, groups and samples cost besides arithmetic: the overhead of the interpreter and of memory.
_LEAF, _GROUP, _SAMPLE = 1e8, 1.5e7, 8e4


@dataclass(frozen=True)
class Lift:
    """A relaxation: how often every region is parted, and samples lifted in groups of m.

    Groups hold samples that are nearly parallel, or with ``by_slack`` those that are both parallel and important: the
    first is better where labels are noise, the second where few samples matter.
    """

    partings: int
    n_lifted: int
    m: int
    by_slack: bool = False

    def order(self) -> tuple[int, int, int]:
        """Finer relaxations have larger ones."""
        return (self.partings, self.m, self.n_lifted)


FIRST = {
    "fast": (Lift(0, 200, 10),),
    "tree": (Lift(0, 200, 10), Lift(0, 400, 10), Lift(0, 400, 10, True), Lift(0, EVERY, 10)),
}
LARGER = {"fast": (), "tree": (20, 30, 40, 60)}  # groups in which the best of the first is tried again
SLABS = {"fast": (), "tree": tuple(Lift(k, EVERY, 20) for k in range(1, 12))}
MARGINS = {"fast": (1e-2, 1e-3), "tree": (1e-2, 1e-3, 1e-4)}  # of the dual point, for proofs by cones


def operations(leaves: Sequence[Leaf]) -> float:
    """Of one step of the interior point, roughly: what stages are compared by."""
    n, p, lifted = len(leaves[0].rows), leaves[0].p, len(lifted_samples(leaves))
    total = len(leaves) * (_LEAF + _SAMPLE * n)
    total += min(moment_work(n, len(leaves), p, lifted), sample_work(n, len(leaves), p))
    for leaf in leaves:
        L, moments = leaf.n_local, (leaf.d + 1 + leaf.m) ** 2 / 2
        total += leaf.n_groups * (_GROUP + L**3 / 3 + L * L * p + L * p * p + 8 * moments * moments)
    return total


def memory(leaves: Sequence[Leaf]) -> float:
    """Bytes at the peak of a step, roughly."""
    total = joint_memory(len(leaves[0].rows), len(leaves), leaves[0].p, len(lifted_samples(leaves)))
    for leaf in leaves:
        L, k = leaf.n_local, leaf.d + 1
        total += 8 * (leaf.n_groups * (L * L + L * leaf.p) + 4 * L * L + 5 * leaf.m * k**3)
    return total


def joint_memory(n: int, L: int, p: int, lifted: int) -> float:
    """Bytes of what all leaves share: rows over G, and the smaller joint system."""
    moments = moment_work(n, L, p, lifted) < sample_work(n, L, p)
    system = 3 * (L * p) ** 2 + 2 * lifted * (lifted + L * p) if moments else 3 * n * n + n * p + 2 * L * p * p
    return 8.0 * (system + 2 * (L + 1) * n * p + p * p + 150 * L * n)


@dataclass
class Clock:
    """Predicts stages from those that have run: seconds for an operation, the slowest so far."""

    deadline: float
    rate: float = 0.0
    begun: float = field(default_factory=time.perf_counter)

    def left(self) -> float:
        """Seconds."""
        return self.deadline - time.perf_counter()

    def begin(self) -> None:
        """A stage starts."""
        self.begun = time.perf_counter()

    def end(self, cost: float) -> None:
        """It was finished."""
        self.rate = max(self.rate, (time.perf_counter() - self.begun) / cost)

    def allows(self, cost: float) -> bool:
        """Whether a stage is likely to be done in time; a little late is a risk worth taking."""
        return self.rate * cost <= 1.2 * self.left()
