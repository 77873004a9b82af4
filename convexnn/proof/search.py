"""The search for a proof: stages of growing cost, each written and checked exactly, the best kept at all times."""

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from jaxtyping import Float

from convexnn.errors import InvalidInputError, SolverError
from convexnn.neurons import Neurons
from convexnn.problem import Problem
from convexnn.proof.artefact import WrittenProof, written, written_cones
from convexnn.proof.bound import NOTHING, ProvedBound, bound_at
from convexnn.proof.groups import lifted
from convexnn.proof.interior import Iterate, Relaxation, iterates
from convexnn.proof.leaf import Leaf
from convexnn.proof.simplicial import MOST_COLUMNS
from convexnn.proof.slabs import whole_sphere

Array = np.ndarray

EFFORTS = ("fast", "tree")
_LIFTS = {"fast": ((200, 10),), "tree": ((200, 10), (400, 10), (10**9, 10), (10**9, 20))}
_MARGINS = {"fast": (1e-2, 1e-3), "tree": (1e-2, 1e-3, 1e-4)}  # of the dual point, for proofs by cones


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
    started: float = field(default_factory=time.perf_counter)
    best: WrittenProof | None = None
    trace: list[ProofStage] = field(default_factory=list)
    interrupted: bool = False

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
    p = (d + 1) * (d + 2) // 2
    needed = 8.0 * (3 * n * n + 2 * (5 * n * p + 5 * p * p))
    limit = 0.6 * (available if available is not None else _free_memory())
    if needed > limit:
        raise InvalidInputError(
            f"a proof for {n} samples and {d} columns needs about {needed / 2**30:.1f} GiB, of which this machine has "
            f"{limit / 2**30:.1f} GiB to give; use fewer columns (PCA) or samples, or proof=None for evidence only."
        )


def _free_memory() -> float:
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
    leaves, points, w = _relaxed(search, _roots(search.reduced), "root")
    if search.basis is None and search.full.X.shape[1] <= MOST_COLUMNS:
        for margin in _MARGINS[how]:
            if search.done():
                return
            before = search.best
            search.offer(
                f"cones, margin {margin:g}",
                written_cones(search.full, v / (1 + margin), search.neurons, search.deadline),
            )
            if search.best is before:
                break  # a smaller margin needs more cones still
    for n_lifted, m in _LIFTS[how]:
        if search.done() or len(points) == 0:
            return
        groups = lifted(leaves, points, w, min(n_lifted, 2 * len(w)), min(m, len(w)))
        lifts = tuple(replace(leaf, groups=part) for leaf, part in zip(leaves, groups, strict=True))
        if not any(len(part) for part in groups):
            return
        _relaxed(search, lifts, f"{sum(part.size for part in groups)} samples lifted in groups of {m}")


def _roots(problem: Problem) -> tuple[Leaf, Leaf]:
    X = problem.X.cpu().numpy()
    radii = np.linalg.norm(X, axis=1)
    rows = X / np.maximum(radii, 1e-300)[:, None]
    return whole_sphere(1.0, rows, radii), whole_sphere(-1.0, rows, radii)


def _relaxed(
    search: ProofSearch, leaves: tuple[Leaf, ...], name: str
) -> tuple[tuple[Leaf, ...], list[Array], Float[Array, " n"]]:
    """Solve a relaxation, write its proof; the leaves, the last point and its dual point."""
    problem = search.reduced
    relaxation = Relaxation(problem.loss, problem.weight_decay, problem.output_bias, leaves)
    best, last = NOTHING, None
    for point, proof in _converging(problem, relaxation, search):
        last = point
        best = proof if proof.value > best.value else best
    if best.value > -np.inf and (search.best is None or best.value > search.best.bound):
        search.offer(name, _written(search, best))
    if last is None:
        return leaves, [], np.zeros(len(problem.X))
    return leaves, last.x, last.dual_point()


def _written(search: ProofSearch, proof: ProvedBound) -> WrittenProof | None:
    try:
        return written(search.full, proof, search.neurons, search.basis)
    except SolverError:
        return None  # an earlier stage's proof stays


def _converging(problem: Problem, relaxation: Relaxation, search: ProofSearch) -> Iterator[tuple[Iterate, ProvedBound]]:
    """Iterates and their bounds until the bound stands still."""
    value, still = -np.inf, 0
    scale = max(abs(search.objective), 1e-300)
    for point in iterates(relaxation, theta=1.0):
        proof = bound_at(problem, relaxation, point)
        yield point, proof
        still = still + 1 if proof.value < value + 2e-5 * scale else 0
        value = max(value, proof.value)
        if point.mu < 1e-5 * scale or (still > 2 and point.mu < 1e-2 * scale) or time.perf_counter() > search.deadline:
            return


def dual_point_of(problem: Problem, neurons: Neurons) -> Float[Array, " n"]:
    """v = -grad L at a network's outputs, inside the domain."""
    with torch.no_grad():
        return problem.dual_point(neurons(problem.X)).cpu().numpy()[:, 0]
