"""The search for a proof: stages of growing cost, each written and checked exactly, the best kept at all times."""

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float

from convexnn.errors import InvalidInputError, SolverError
from convexnn.neurons import Neurons
from convexnn.problem import Problem
from convexnn.proof.artefact import WrittenProof, written, written_cones
from convexnn.proof.bound import NOTHING, ProvedBound, bound_at
from convexnn.proof.copies import Copies
from convexnn.proof.groups import lifted
from convexnn.proof.interior import Iterate, Relaxation, iterates
from convexnn.proof.leaf import Leaf
from convexnn.proof.plan import FIRST, LARGER, MARGINS, SLABS, Clock, Lift, joint_memory, memory, operations
from convexnn.proof.simplicial import MOST_COLUMNS
from convexnn.proof.slabs import parts_of, whole_sphere, widest

Array = np.ndarray

EFFORTS = ("fast", "tree")
_SPREAD = 0.1  # regions with less than this share of the widest spread stay whole


@dataclass(frozen=True)
class ProofStage:
    """One stage of a search."""

    name: str
    seconds: float  # since the search began
    bound: float  # the best so far, as the exact checker accepted it


@dataclass
class ProofSearch:
    """The best proof so far: mutable, so that an interrupt loses nothing."""

    full: Problem  # in the user's columns: what the file is about
    reduced: Problem  # in the columns the search works in
    basis: Float[Array, "d r"] | None
    neurons: Neurons  # of the network, in the user's columns
    objective: float
    deadline: float
    tol: float
    mass: float = 1.0  # a guess of the optimal total mass of neurons: where the interior point starts
    workers: int = 1
    known: tuple[int, int, int] | None = None  # the finest relaxation that an earlier search has tried
    started: float = field(default_factory=time.perf_counter)
    best: WrittenProof | None = None
    trace: list[ProofStage] = field(default_factory=list)
    interrupted: bool = False

    @cached_property
    def copies(self) -> Copies:
        """Which samples have equal rows."""
        return Copies.of(self.full.X.cpu().numpy())

    def offer(self, name: str, proof: WrittenProof | None) -> None:
        """Keep the better one."""
        if proof is not None and (self.best is None or proof.bound > self.best.bound):
            self.best = proof
        if self.best is not None:
            self.trace.append(ProofStage(name, time.perf_counter() - self.started, self.best.bound))

    def done(self) -> bool:
        """Close enough, or out of time."""
        close = self.best is not None and self.best.bound >= self.objective * (1 - self.tol)
        return close or time.perf_counter() > self.deadline


def check_size(n: int, d: int, how: str, available: float | None = None) -> None:
    """Raise before something hopeless starts: says the memory that the smallest proof needs."""
    if how not in EFFORTS:
        raise InvalidInputError(f"proof={how!r} is not known; choose one of {', '.join(map(repr, EFFORTS))}, or None.")
    needed = joint_memory(n, 2, (d + 1) * (d + 2) // 2, 0)
    limit = 0.6 * (available if available is not None else free_memory())
    if needed > limit:
        raise InvalidInputError(
            f"a proof for {n} samples and {d} columns needs about {needed / 2**30:.1f} GiB, of which this machine has "
            f"{limit / 2**30:.1f} GiB to give; use fewer columns (PCA) or samples, or proof=None for evidence only."
        )


def free_memory() -> float:
    """Bytes that this machine has to give."""
    try:
        return float(os.sysconf("SC_AVPHYS_PAGES")) * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):  # no such counter on this system
        return 8.0 * 2**30


def run(search: ProofSearch, v: Float[Array, " n"], how: str) -> ProofSearch:
    """All stages until the aim, the deadline or an interrupt (Ctrl-C), which is remembered and not raised."""
    try:
        _stages(search, v, how)
    except KeyboardInterrupt:
        search.interrupted = True
    return search


def _stages(search: ProofSearch, v: Float[Array, " n"], how: str) -> None:
    if search.best is not None and search.done():
        return  # resumed, and nothing is left to do
    clock = Clock(search.deadline)
    leaves: tuple[Leaf, ...] = _roots(search)
    point, _ = _timed(search, clock, leaves, "root")
    few = search.reduced.n_inputs < MOST_COLUMNS
    if few:
        _cones(search, clock, v, how)
    if point is None or not _groups(search, clock, leaves, point, how):
        return
    if not few:
        _cones(search, clock, v, how)
    _slabs(search, clock, leaves, point, how)


def _groups(search: ProofSearch, clock: Clock, leaves: tuple[Leaf, ...], points: Iterate, how: str) -> bool:
    """Small groups of several kinds, then larger ones of the kind that gave most; whether there is time for more."""
    tried: list[_Tried] = []
    for lift in FIRST[how]:
        if search.done() or not _lift(search, clock, leaves, points, lift, tried):
            return False
    for m in LARGER[how]:
        if search.done() or not tried:
            break
        lift = replace(max(tried, key=lambda one: one.value).lift, m=m)
        if search.known is not None and lift.order() <= search.known:
            continue  # what the proof that is resumed has tried
        if not _lift(search, clock, leaves, points, lift, tried):
            break
    return not search.done()


@dataclass(frozen=True)
class _Tried:
    """A relaxation with groups that has been solved, and its bound in float64."""

    lift: Lift
    leaves: tuple[Leaf, ...]
    value: float


def _lift(
    search: ProofSearch,
    clock: Clock,
    leaves: tuple[Leaf, ...],
    points: Iterate,
    lift: Lift,
    tried: list[_Tried],
) -> bool:
    """Solve a relaxation with groups, unless it has none or has been solved; False where it would take too long."""
    lifts = _lifted(search, leaves, points, lift)
    if lifts is leaves or any(_same(lifts, one.leaves) for one in tried) or memory(lifts) > 0.6 * free_memory():
        return True
    if not clock.allows(operations(lifts)):
        return False
    name = f"{sum(leaf.groups.size for leaf in lifts)} samples lifted in groups of {lift.m}"
    parted = f", {len(leaves)} slabs" if lift.partings else ""
    tried.append(_Tried(lift, lifts, _timed(search, clock, lifts, name + parted)[1]))
    return True


def _same(one: tuple[Leaf, ...], other: tuple[Leaf, ...]) -> bool:
    return all(np.array_equal(a.groups, b.groups) for a, b in zip(one, other, strict=True))


def _slabs(search: ProofSearch, clock: Clock, leaves: tuple[Leaf, ...], point: Iterate | None, how: str) -> None:
    """Part every region, lift in all of them, and again."""
    for lift in SLABS[how]:
        if search.done() or point is None:
            return
        leaves = _parted(leaves, point.x)
        point, _ = _timed(search, clock, leaves, f"{len(leaves)} slabs")
        if search.done() or point is None or (search.known is not None and lift.order() <= search.known):
            continue
        if not _lift(search, clock, leaves, point, lift, []):
            return


def _cones(search: ProofSearch, clock: Clock, v: Float[Array, " n"], how: str) -> None:
    """Closer and closer for as long as the time allows; of what is left each margin may take half.

    Cones are parted near maxima only: how many a smaller margin needs is not predicted, but tried.
    """
    if search.reduced.n_inputs > MOST_COLUMNS:
        return
    for margin in MARGINS[how]:
        if search.done():
            return
        if search.best is not None and _dual_value(search.reduced, v / (1 + margin)) <= search.best.bound:
            continue  # nothing to gain
        proof = written_cones(
            search.full,
            v / (1 + margin),
            search.neurons,
            0.5 * clock.left(),
            basis=search.basis,
            workers=search.workers,
        )
        search.offer(f"cones, margin {margin:g}", proof)
        if proof is None:
            return


def _parted(leaves: tuple[Leaf, ...], points: list[Array]) -> tuple[Leaf, ...]:
    """Every region in two whose moments spread much, along the direction in which they spread most."""
    spread = [widest(leaf, x) for leaf, x in zip(leaves, points, strict=True)]
    least = _SPREAD * max(value for value, _, _ in spread)
    parts = [
        parts_of(leaf, omega, at) if value >= least else (leaf,)
        for leaf, (value, omega, at) in zip(leaves, spread, strict=True)
    ]
    return tuple(part for pair in parts for part in pair)


def _lifted(search: ProofSearch, leaves: tuple[Leaf, ...], point: Iterate, lift: Lift) -> tuple[Leaf, ...]:
    """The leaves with groups; as they are where nothing can be lifted."""
    n, v = len(leaves[0].rows), search.copies.gather(point.dual_point())
    groups = lifted(leaves, point.x, v, min(lift.n_lifted, len(leaves) * n), min(lift.m, n), by_slack=lift.by_slack)
    if not any(len(part) for part in groups):
        return leaves
    return tuple(replace(leaf, groups=part) for leaf, part in zip(leaves, groups, strict=True))


def _roots(search: ProofSearch) -> tuple[Leaf, Leaf]:
    X = search.reduced.X.cpu().numpy()[search.copies.first]
    radii = np.linalg.norm(X, axis=1)
    rows = X / np.maximum(radii, 1e-300)[:, None]
    return whole_sphere(1.0, rows, radii), whole_sphere(-1.0, rows, radii)


def _timed(search: ProofSearch, clock: Clock, leaves: tuple[Leaf, ...], name: str) -> tuple[Iterate | None, float]:
    """Solve a relaxation and offer its proof; the last point, None where there is none, and the bound in float64."""
    clock.begin()
    problem = search.reduced
    relaxation = Relaxation(
        problem.loss, problem.weight_decay, problem.output_bias, leaves, search.copies, search.workers
    )
    best, last = NOTHING, None
    for point, proof in _converging(problem, relaxation, search):
        last = point
        best = proof if proof.value > best.value else best
    if time.perf_counter() <= search.deadline:
        clock.end(operations(leaves))
    if best.value > -np.inf and (search.best is None or best.value > search.best.bound):
        search.offer(name, _written(search, best))
    if last is not None:
        search.mass = sum(float(x[0]) for x in last.x)
    return last, best.value


def _written(search: ProofSearch, proof: ProvedBound) -> WrittenProof | None:
    try:
        return written(search.full, proof, search.neurons, search.basis)
    except SolverError:
        return None  # an earlier stage's proof stays


def _converging(problem: Problem, relaxation: Relaxation, search: ProofSearch) -> Iterator[tuple[Iterate, ProvedBound]]:
    """Iterates and their bounds until the bound stands still."""
    value, still = -np.inf, 0
    scale = max(abs(search.objective), 1e-300)
    for point in iterates(relaxation, search.mass / 2):
        proof = bound_at(problem, relaxation, point)
        yield point, proof
        still = still + 1 if proof.value < value + 2e-5 * scale else 0
        value = max(value, proof.value)
        if point.mu < 1e-5 * scale or (still > 2 and point.mu < 1e-2 * scale) or time.perf_counter() > search.deadline:
            return


def _dual_value(problem: Problem, v: Float[Array, " n"]) -> float:
    return float(problem.loss.dual_value(torch.from_numpy(v[:, None])))


def dual_point_of(problem: Problem, neurons: Neurons) -> Float[Array, " n"]:
    """v = -grad L at a network's outputs, inside the domain."""
    with torch.no_grad():
        return problem.dual_point(neurons(problem.X)).cpu().numpy()[:, 0]
