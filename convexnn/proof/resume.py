"""Takes up the proof of an earlier search: its bound is the first of the new one, for whatever network."""

import os
from typing import Any

from certify.proof.artefact import ProofError, RejectedError, dyadic, load
from certify.proof.check import training as checker
from convexnn.errors import InvalidInputError
from convexnn.neurons import Neurons
from convexnn.problem import Problem
from convexnn.proof.artefact import WrittenProof, data_of, finished
from convexnn.proof.plan import EVERY, Lift

Order = tuple[int, int, int]


def resumed(
    path: str | os.PathLike[str], problem: Problem, neurons: Neurons | None
) -> tuple[WrittenProof, Order | None]:
    """The file's proof, checked again and claimed for this network, and the finest relaxation behind it.

    Raises InvalidInputError where the file cannot be read, is rejected, or is about other data or settings.
    """
    try:
        document = load(path)
        if document.get("kind") != "training":
            raise RejectedError("it is no proof about training")
        claim, body = checker.read_claim(document.get("claim")), document.get("proof")
        data = data_of(problem)
        if claim.data.digest != data.digest:
            raise RejectedError("it is about other data or settings")
        if not isinstance(body, dict) or set(body) != {"v", "signs"}:
            raise RejectedError("it holds no proof")
        v = dyadic(body["v"], (len(data.targets.values),), "v")
        return finished(data, v, body["signs"], neurons), tried(body["signs"])
    except ProofError as error:
        raise InvalidInputError(f"resume={os.fspath(path)!r} cannot be resumed: {error}") from error


def tried(signs: list[dict[str, Any]]) -> Order | None:
    """The order of the relaxation that gave a proof; None for cones and for relaxations without groups."""
    leaves = [leaf for part in signs for leaf in part.get("leaves", ())]
    sizes = [len(group["indices"]) for leaf in leaves for group in leaf["groups"]]
    if not sizes:
        return None
    m, partings = max(sizes), max(len(part["leaves"]) for part in signs if "leaves" in part) - 1
    lifted = sum(sizes) + 2 * m * len(leaves)  # full groups only: a region leaves up to m - 1 samples alone
    return Lift(partings, min(lifted, EVERY), m).order()
