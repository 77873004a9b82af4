"""The proof that a network keeps its label in a region, by whatever proves it first."""

from dataclasses import dataclass
from typing import Any

from certify.proof.check import RejectedError, check
from certify.proof.emit.hints import crown
from certify.proof.emit.lifted import by_sdp, lifted, norms_of
from certify.proof.emit.margins import Builder, Question, Suggest, slopes_json
from certify.proof.emit.slopes import ascended, programmed


@dataclass(frozen=True)
class _Attempt:
    """Hints for hidden layers and margins, with multipliers of balls or not, and whether programs follow."""

    suggest: Suggest
    balls: bool = False
    programs: bool = False


# From cheap to tight; each attempt proves hidden bounds of its own.
_LADDER = tuple(map(_Attempt, (crown, ascended, programmed)))
_LIFTED = _Attempt(lifted, balls=True)
_ATTEMPTS = {
    "sdp-crown": (_LIFTED, *_LADDER),
    "sdp-crown-ball": (_LIFTED,),
    "sdp": (_Attempt(lifted, balls=True, programs=True), _Attempt(programmed, programs=True)),
}


def prove(question: Question, stage: str) -> dict[str, Any] | None:
    """The document that the checker accepts, or None where no hints reach.

    `stage` is the method that verified the label. Cheaper hints come first where it is no semidefinite one: their
    proofs serve as well.
    """
    for attempt in _ATTEMPTS.get(stage, _LADDER):
        document = _tried(question, attempt)
        if document is not None:
            return _checked(document, question)
    return None


def _tried(question: Question, attempt: _Attempt) -> dict[str, Any] | None:
    builder = Builder.start(question)
    norms = norms_of(builder.chain) if attempt.balls else None
    if norms is not None:
        builder = Builder.start(question, norms)
    for _ in range(builder.depth):
        builder.add_layer(attempt.suggest)
    rivals = question.claim.rivals
    found = builder.margins(rivals, attempt.suggest)[0]
    easy, hard = ([t for t, v in zip(rivals, found, strict=True) if (v > 0) is kind] for kind in (True, False))
    if hard and not (attempt.programs and builder.depth):
        return None
    worst_first = sorted(hard, key=lambda t: found[rivals.index(t)])
    parts = []
    for t in worst_first:
        part = by_sdp(builder, t)
        if part is None:
            return None
        parts.append(part)
    slopes = slopes_json(easy, *builder.margins(easy, attempt.suggest)) if easy else None
    return builder.document(slopes, parts)


def _checked(document: dict[str, Any], question: Question) -> dict[str, Any] | None:
    """The document, if the checker accepts it about this very question."""
    try:
        check(document, network=question.network, region=question.claim.region, label=question.claim.label)
    except RejectedError:
        return None
    return document
