"""The proof that a network keeps its label in a region, by whatever proves it first."""

from typing import Any

from certify.proof.check import RejectedError, check
from certify.proof.emit.hints import crown
from certify.proof.emit.margins import Builder, Question, Suggest, slopes_json
from certify.proof.emit.slopes import ascended, programmed

# From cheap to tight; all of them prove hidden bounds of their own.
_LADDER: tuple[Suggest, ...] = (crown, ascended, programmed)


def prove(question: Question, stage: str) -> dict[str, Any] | None:
    """The document that the checker accepts, or None where the ladder of hints does not reach.

    `stage` is the method that verified the label: cheaper hints come first, as their proofs serve as well.
    """
    rivals = question.claim.rivals
    for suggest in _LADDER:
        builder = Builder.start(question)
        for _ in range(builder.depth):
            builder.add_layer(suggest)
        margins = builder.margins(rivals, suggest)
        if min(margins[0]) > 0:
            return _checked(builder.document(slopes_json(rivals, *margins)), question)
    return None


def _checked(document: dict[str, Any], question: Question) -> dict[str, Any] | None:
    """The document, if the checker accepts it about this very question."""
    try:
        check(document, network=question.network, region=question.claim.region, label=question.claim.label)
    except RejectedError:
        return None
    return document
