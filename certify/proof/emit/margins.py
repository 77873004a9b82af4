"""Proofs of margins, built layer by layer: every claim is what the checker's own arithmetic gives, rounded down.

Hints come in floating point for bounds that were rounded already, so that what is proved is what was hoped for, up to
the rounding of the hints.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cached_property
from typing import Any

import numpy as np

from certify.proof.artefact import Dyadic
from certify.proof.check.margins import Claim, both_signs, margin_forms, read_claim
from certify.proof.check.network import Network
from certify.proof.check.rows import Hidden, Rows, centres, forms_minimum, squared_radii
from certify.proof.emit.hints import Chain, RowHints
from certify.proof.emit.multipliers import end_multipliers
from certify.proof.emit.regions import region_json
from certify.proof.writing import as_float, as_json, below, document, exact, rounded
from certify.regions import AbstractRegion

Suggest = Callable[[Chain, np.ndarray], RowHints]

_BOUND_BITS = 24
_NORM_BITS = 30
_SLOPE_BITS = 22


def _scale_of(array: np.ndarray, bits: int) -> int:
    """The scale at which the largest entry has this many bits."""
    most = float(np.abs(array).max(initial=0.0))
    return int(np.clip(bits - np.frexp(most)[1], 0, 1000)) if most > 0 else 0


def short(array: np.ndarray, bits: int) -> Dyadic:
    """Numbers with a mantissa of a few bits each, exactly."""
    mantissa, exponent = np.frexp(array)
    return exact(np.ldexp(np.rint(np.ldexp(mantissa, bits)), exponent - bits))


@dataclass(frozen=True, eq=False)
class Question:
    """What a proof is about, in all its forms.

    Attributes:
        network: exactly.
        region: a batch of one.
        claim: as the checker reads it.
        claim_json: as it stands in the file.
    """

    network: Network
    region: AbstractRegion
    claim: Claim
    claim_json: dict[str, Any]

    @staticmethod
    def of(network: Network, region: AbstractRegion, label: int, *, embed: bool = True) -> "Question":
        """`embed` puts the weights into the file; otherwise it has their digest only."""
        layers = [{"weight": as_json(W), "bias": as_json(b)} for W, b in network.layers] if embed else None
        held = {"widths": network.widths, "digest": network.digest, "layers": layers}
        claim = {"network": held, "region": region_json(region), "label": label}
        return Question(network, region, read_claim(claim), claim)


@dataclass
class Builder:
    """A proof of margins in the making.

    Attributes:
        question: what it is about.
        chain: what hints are made from; its hidden bounds are those proved so far.
        norms: claimed squared norms of the weights, for multipliers lam; None where there are none.
        proved, parts: the hidden layers so far, for the checker and as they stand in the file.
    """

    question: Question
    chain: Chain
    norms: list[Dyadic] | None
    proved: list[Hidden] = field(default_factory=list)
    parts: list[dict[str, Any]] = field(default_factory=list)

    @staticmethod
    def start(question: Question, norms: Sequence[float] | None = None) -> "Builder":
        """Nothing is proved yet; `norms` are upper bounds of the squared norms of the hidden layers' weights."""
        exactly = question.claim.region
        layers = tuple((as_float(W), as_float(b)) for W, b in question.network.layers)
        centre, low, high = (as_float(Dyadic(v, exactly.scale)) for v in (exactly.centre, exactly.lower, exactly.upper))
        radius = exactly.radius / (1 << exactly.scale)
        chain = Chain(layers, question.region, centre, radius, (low, high))
        claimed = None if norms is None else [rounded(v, _scale_of(np.array([v]), _NORM_BITS), np.ceil) for v in norms]
        return Builder(question, chain, claimed)

    @property
    def depth(self) -> int:
        """Hidden layers of the network."""
        return len(self.chain.layers) - 1

    @cached_property
    def _middles(self) -> list[Dyadic]:
        return centres(self.question.network, self.question.claim.region)

    @cached_property
    def _radii(self) -> list[Fraction | None]:
        norms = None if self.norms is None else [as_json(v) for v in self.norms]
        return squared_radii(self.question.network, self.question.claim.region, norms)

    def add_layer(self, suggest: Suggest) -> None:
        """Prove bounds of the next hidden layer."""
        k = len(self.proved)
        forms = both_signs(self.question.network, k)
        found, rows = self._minimum(forms, suggest)
        claims = below(found, _scale_of(np.array([float(v) for v in found]), _BOUND_BITS))
        n = len(found) // 2
        lower, upper = Dyadic(claims.values[:n], claims.scale), Dyadic([-v for v in claims.values[n:]], claims.scale)
        self.proved.append(Hidden(lower, upper, self._middles[k], self._radii[k]))
        self.parts.append({"lower": as_json(lower), "upper": as_json(upper), "rows": rows_json(rows)})
        self.chain = replace(self.chain, hidden=(*self.chain.hidden, (as_float(lower), as_float(upper))))

    def margins(self, rivals: Sequence[int], suggest: Suggest) -> tuple[list[Fraction], Rows]:
        """What some hints prove about the margins over some classes."""
        return self._minimum(margin_forms(self.question.claim, self.question.network, rivals), suggest)

    def _minimum(self, forms: tuple[Dyadic, list[Fraction]], suggest: Suggest) -> tuple[list[Fraction], Rows]:
        rows = self._rows(forms[0], suggest)
        network, region = self.question.network, self.question.claim.region
        return forms_minimum(network, region, self.proved, forms, rows), rows

    def _rows(self, forms: Dyadic, suggest: Suggest) -> Rows:
        """Hints for some forms on the last layer that was proved, rounded."""
        C = as_float(forms)
        hints = suggest(self.chain, C) if self.proved else RowHints((), ())
        free = "live" if hints.live else "unstable"
        rows = Rows(free, (), (), Dyadic([0] * len(C), 0))
        slopes = []
        for g, hidden in zip(hints.g, self.proved, strict=True):
            some = g[:, rows.free_entries(hidden)]
            slopes.append(rounded(some, _scale_of(some, _SLOPE_BITS)))
        first = hints.g[0] @ self.chain.layers[0][0] if hints.g else C
        end = short(end_multipliers(self.chain, first), 12)
        return Rows(free, tuple(slopes), tuple(short(v, 6) for v in hints.lam), end)

    def document(self, slopes: dict[str, Any] | None, sdp: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
        """The file's content, with the margins over some classes by slopes, over the others by `sdp` parts."""
        norms = None if self.norms is None else [as_json(v) for v in self.norms]
        proof = {"squared_norms": norms, "hidden": self.parts, "slopes": slopes, "sdp": list(sdp)}
        return document("margins", self.question.claim_json, self.question.claim.digest, proof)


def slopes_json(rivals: Sequence[int], found: list[Fraction], rows: Rows) -> dict[str, Any]:
    """Margins over some classes by slopes, as they stand in a file."""
    bounds = below(found, _scale_of(np.array([float(v) for v in found]), _BOUND_BITS))
    return {"rivals": list(rivals), "bounds": as_json(bounds), "rows": rows_json(rows)}


def rows_json(rows: Rows) -> dict[str, Any]:
    """Hints as they stand in a file."""
    return {
        "free": rows.free,
        "slopes": [as_json(v) for v in rows.slopes],
        "lam": [as_json(v) for v in rows.lam],
        "end": as_json(rows.end),
    }
