"""From a problem and a network to a report of what was proved."""

import os
import time

import torch

from convexnn.errors import InvalidInputError, SolverError
from convexnn.neurons import Neurons
from convexnn.problem import Problem, Reduction
from convexnn.proof.search import ProofSearch, check_size, dual_point_of, run
from convexnn.result import ProofReport

LOSSES = ("squared", "logistic", "hinge")


def check_provable(problem: Problem, how: str) -> None:
    """Raise a typed error where there is no proof for a problem: vector outputs, softmax, too much memory."""
    if problem.loss.name not in LOSSES or problem.loss.n_outputs != 1:
        raise InvalidInputError(
            f"proofs are for one output and the losses {', '.join(LOSSES)}; this has "
            f"loss={problem.loss.name!r} and {problem.loss.n_outputs} outputs. Pass proof=None for evidence only."
        )
    check_size(len(problem.X), problem.n_inputs, how)


def prove(
    problems: tuple[Problem, Problem],
    reduction: Reduction,
    networks: tuple[Neurons, Neurons],
    *,
    how: str,
    timeout: float | None,
    tol: float,
    out: str | os.PathLike[str] | None,
) -> ProofReport:
    """Prove a lower bound on every network's objective, and an upper bound on one network's.

    ``problems`` are the user's and the one reduced to the rank of the data; ``networks`` the one that the report is
    about, in the user's columns, and the best one known, in the reduced ones, whose residual is a good dual point.
    Raises SolverError where not even the first relaxation gave a bound in time.
    """
    full, reduced = (problem.to(torch.device("cpu")) for problem in problems)
    given, best = networks
    check_provable(reduced, how)
    with torch.no_grad():
        objective = full.objective(given.balanced())
    basis = None if reduction.basis is None else reduction.basis.cpu().numpy()
    deadline = time.perf_counter() + (float("inf") if timeout is None else timeout)
    search = ProofSearch(full, reduced, basis, given, objective, deadline, tol)
    run(search, dual_point_of(reduced, best), how)
    proof = search.best
    if proof is None:
        reason = "was interrupted" if search.interrupted else f"found none in {timeout} seconds"
        raise SolverError(f"the search for a proof {reason}; give it more time (timeout=).")
    if out is not None:
        proof.save(out)
    stages = tuple((stage.name, stage.seconds, stage.bound) for stage in search.trace)
    assert proof.objective is not None
    file = None if out is None else os.fspath(out)
    return ProofReport(proof.objective, proof.bound, proof.facts, stages, search.interrupted, file)
