"""From a problem and a network to a report of what was proved."""

import os
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from convexnn.data import positive
from convexnn.errors import InvalidInputError, SolverError
from convexnn.neurons import Neurons
from convexnn.problem import Problem, Reduction
from convexnn.proof.resume import resumed
from convexnn.proof.search import ProofSearch, check_size, dual_point_of, run
from convexnn.result import ProofReport

LOSSES = ("squared", "logistic", "hinge")


def check_provable(
    problem: Problem, how: str, seconds: float | None = None, file: str | os.PathLike[str] | None = None
) -> None:
    """Raise a typed error where no proof can come of it: vector outputs, softmax, too much memory, no time, no folder.

    Called before the work that a proof comes after, so that nothing is lost.
    """
    if problem.loss.name not in LOSSES or problem.loss.n_outputs != 1:
        raise InvalidInputError(
            f"proofs are for one output and the losses {', '.join(LOSSES)}; this has "
            f"loss={problem.loss.name!r} and {problem.loss.n_outputs} outputs. Pass proof=None for evidence only."
        )
    check_size(len(problem.X), problem.n_inputs, how)
    if seconds is not None:
        positive(seconds, "timeout (proof_seconds)")
    if file is not None and (not Path(file).parent.is_dir() or Path(file).is_dir()):
        raise InvalidInputError(f"the proof cannot be written to {os.fspath(file)!r}: there is no such folder.")


@dataclass(frozen=True)
class Request:
    """What a caller of a proof asks for: effort, seconds (None: no limit), relative gap to stop at, files, workers."""

    how: str
    timeout: float | None
    tol: float
    out: str | os.PathLike[str] | None = None
    resume: str | os.PathLike[str] | None = None
    workers: int = 1

    def __post_init__(self) -> None:
        if isinstance(self.workers, bool) or not isinstance(self.workers, int) or self.workers < 1:
            raise InvalidInputError(f"workers={self.workers!r}; a whole number of at least 1 is expected.")
        if self.timeout is not None:
            positive(self.timeout, "timeout")


def prove(
    problems: tuple[Problem, Problem],
    reduction: Reduction,
    networks: tuple[Neurons, Neurons],
    request: Request,
    V: Float[Tensor, "n 1"] | None = None,
) -> ProofReport:
    """Prove a lower bound on every network's objective, and an upper bound on one network's.

    ``problems`` are the user's and the one reduced to the rank of the data; ``networks`` the one that the report is
    about, in the user's columns, and the best one known, in the reduced ones. ``V`` is the dual point of the evidence;
    without it the residual of the best network is taken, which is a poor one where the loss has kinks.
    Raises SolverError where not even the first relaxation gave a bound in time.
    """
    full, reduced = (problem.to(torch.device("cpu")) for problem in problems)
    given, best = networks
    check_provable(reduced, request.how)
    with torch.no_grad():
        objective = full.objective(given.balanced())
        mass = float((best.W.norm(dim=1) * best.A.norm(dim=1)).sum())
    basis = None if reduction.basis is None else reduction.basis.cpu().numpy()
    deadline = time.perf_counter() + (float("inf") if request.timeout is None else request.timeout)
    search = ProofSearch(full, reduced, basis, given, objective, deadline, request.tol, workers=request.workers)
    search.mass = max(mass, 1e-3 * objective / reduced.weight_decay, 1e-12)
    if request.resume is not None:
        proof, search.known = resumed(request.resume, full, given)
        search.offer("resumed", proof)
    v = dual_point_of(reduced, best) if V is None else V.cpu().numpy()[:, 0]
    run(search, v, request.how)
    return _report(search, request)


def _report(search: ProofSearch, request: Request) -> ProofReport:
    proof = search.best
    if proof is None:
        reason = "was interrupted" if search.interrupted else f"found none in {request.timeout} seconds"
        raise SolverError(f"the search for a proof {reason}; give it more time (timeout=).")
    if request.out is not None:
        proof.save(request.out)
    stages = tuple((stage.name, stage.seconds, stage.bound) for stage in search.trace)
    assert proof.objective is not None
    file = None if request.out is None else os.fspath(request.out)
    return ProofReport(proof.objective, proof.bound, proof.facts, stages, search.interrupted, file)
