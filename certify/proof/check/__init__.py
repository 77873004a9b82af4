"""The checker: a proof file is accepted or rejected in exact arithmetic, by code that trusts nothing in the file.

What is accepted is a statement about real arithmetic on the stored numbers: about the affine maps and ReLUs whose
weights are in the file (or in the caller's network), not about how some machine rounds when it runs them.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from certify.proof.artefact import FORMAT, VERSION, ProofError, RejectedError, UnreadableError, fields, load, require

# Every kind of proof is a module with `read_claim(json) -> Claim`, whose `digest` is the SHA-256 of the claim, and
# `check(claim, proof, **given) -> tuple of sentences`, which raises `RejectedError`; `GIVEN` names what it compares.
KINDS = {"margins": "certify.proof.check.margins", "training": "certify.proof.check.training"}


@dataclass(frozen=True)
class Accepted:
    """A proof that holds.

    Attributes:
        kind: of the proof.
        digest: SHA-256 of the claim.
        facts: what was proved, in sentences.
    """

    kind: str
    digest: str
    facts: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join(("accepted", *(f"  {fact}" for fact in self.facts)))


def check_file(path: str | os.PathLike[str], **given: Any) -> Accepted:
    """Check a proof file; see `check`.

    Raises:
        UnreadableError: the file cannot be opened.
        RejectedError: it proves nothing, or something else; says why.
    """
    return check(load(path), **given)


def check(document: Mapping[str, Any], **given: Any) -> Accepted:
    """Check a document.

    Args:
        document: as `certify.proof.artefact.load` returns it.
        given: what the caller knows and the claim has to agree with; for margins `network`, `region`, `label`,
            for training `data`, `samples`, `network`.

    Raises:
        RejectedError: the document proves nothing, or something else; says why.
    """
    require(document.get("format") == FORMAT, f"the file is no {FORMAT} file")
    version = document.get("version")
    require(type(version) is int and version == VERSION, f"version {str(version)[:20]}; this checker reads {VERSION}")
    held = fields(document, "the file", "format", "version", "kind", "claim", "digest", "proof")
    kind = held["kind"]
    require(type(kind) is str and kind in KINDS, f"the kind {str(kind)[:40]!r} is unknown")
    judge = import_module(KINDS[kind])
    for name in given:
        require(name in judge.GIVEN, f"a proof of kind {kind} has no {name} to compare")
    claim = judge.read_claim(held["claim"])
    require(held["digest"] == claim.digest, "the claim is not the one that the digest is of")
    try:
        return Accepted(kind, claim.digest, judge.check(claim, held["proof"], **given))
    except OverflowError as error:
        raise RejectedError("the proof has numbers beyond the range of this checker") from error


__all__ = ["Accepted", "ProofError", "RejectedError", "UnreadableError", "check", "check_file"]
