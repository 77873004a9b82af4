"""Proofs of margins, built layer by layer: every claim is what the checker's own arithmetic gives, rounded down.

Hints come in floating point for bounds that were rounded already, so that what is proved is what was hoped for, up to
the rounding of the hints.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

import numpy as np

from certify.proof.artefact import Dyadic
from certify.proof.check.margins import Claim, both_signs, margin_forms, read_claim
from certify.proof.check.network import Network
from certify.proof.check.rows import Hidden, Rows, centres, forms_minimum
from certify.proof.emit.hints import Chain, RowHints
from certify.proof.emit.multipliers import end_multipliers
from certify.proof.writing import as_float, as_json, below, document, exact, rounded

Suggest = Callable[[Chain, np.ndarray], RowHints]

_BOUND_BITS = 24
_SLOPE_BITS = 22


def _scale_of(array: np.ndarray, bits: int) -> int:
    """The scale at which the largest entry has this many bits."""
    most = float(np.abs(array).max(initial=0.0))
    return int(np.clip(bits - np.frexp(most)[1], 0, 1000)) if most > 0 else 0


def short(array: np.ndarray, bits: int) -> Dyadic:
    """Numbers with a mantissa of a few bits each, exactly."""
    mantissa, exponent = np.frexp(array)
    return exact(np.ldexp(np.rint(np.ldexp(mantissa, bits)), exponent - bits))


def claim_of(network: Network, region: dict[str, Any], label: int, *, embed: bool) -> tuple[dict[str, Any], Claim]:
    """The claim as it stands in the file, and as the checker reads it."""
    layers = [{"weight": as_json(W), "bias": as_json(b)} for W, b in network.layers] if embed else None
    held = {"widths": network.widths, "digest": network.digest, "layers": layers}
    claim = {"network": held, "region": region, "label": label}
    return claim, read_claim(claim)


@dataclass
class Builder:
    """A proof of margins in the making.

    Attributes:
        network: exactly.
        claim: as the checker reads it.
        norms: claimed squared norms of the weights, for multipliers lam.
        chain: what hints are made from; its hidden bounds are those proved so far.
        proved: the layers so far, and as they stand in the file.
    """

    network: Network
    claim: Claim
    norms: Sequence[Dyadic] | None
    chain: Chain
    radii: Sequence[Fraction | None]
    proved: list[Hidden] = field(default_factory=list)
    parts: list[dict[str, Any]] = field(default_factory=list)

    @staticmethod
    def start(network: Network, claim: Claim) -> "Builder":
        """Nothing is proved yet."""
        region = claim.region
        layers = tuple((as_float(W), as_float(b)) for W, b in network.layers)
        centre, low, high = (as_float(Dyadic(v, region.scale)) for v in (region.centre, region.lower, region.upper))
        radius = region.radius / (1 << region.scale)
        chain = Chain(layers, centre, region.norm, radius, (low, high))
        return Builder(network, claim, None, chain, [None] * (len(layers) - 1))

    def add_layer(self, suggest: Suggest) -> None:
        """Prove bounds of the next hidden layer."""
        k = len(self.proved)
        forms = both_signs(self.network, k)
        rows = self.rows(forms[0], suggest)
        found = forms_minimum(self.network, self.claim.region, self.proved, forms, rows)
        sizes = np.array([float(v) for v in found])
        claims = below(found, _scale_of(sizes, _BOUND_BITS))
        n = len(found) // 2
        lower, upper = Dyadic(claims.values[:n], claims.scale), Dyadic([-v for v in claims.values[n:]], claims.scale)
        middle = centres(self.network, self.claim.region)[k]
        self.proved.append(Hidden(lower, upper, middle, self.radii[k]))
        self.parts.append({"lower": as_json(lower), "upper": as_json(upper), "rows": _rows_json(rows)})
        self.chain = replace(self.chain, hidden=(*self.chain.hidden, (as_float(lower), as_float(upper))))

    def rows(self, forms: Dyadic, suggest: Suggest) -> Rows:
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

    def margins(self, rivals: Sequence[int], suggest: Suggest) -> tuple[list[Fraction], Rows]:
        """What some hints prove about the margins over some classes."""
        forms = margin_forms(self.claim, self.network, rivals)
        rows = self.rows(forms[0], suggest)
        return forms_minimum(self.network, self.claim.region, self.proved, forms, rows), rows


def _rows_json(rows: Rows) -> dict[str, Any]:
    return {
        "free": rows.free,
        "slopes": [as_json(v) for v in rows.slopes],
        "lam": [as_json(v) for v in rows.lam],
        "end": as_json(rows.end),
    }


def finished(builder: Builder, claim: dict[str, Any], rivals: Sequence[int], suggest: Suggest) -> dict[str, Any]:
    """The document with margins over the rivals by slopes."""
    found, rows = builder.margins(rivals, suggest)
    bounds = below(found, _scale_of(np.array([float(v) for v in found]), _BOUND_BITS))
    norms = None if builder.norms is None else [as_json(v) for v in builder.norms]
    slopes = {"rivals": list(rivals), "bounds": as_json(bounds), "rows": _rows_json(rows)}
    proof = {"squared_norms": norms, "hidden": builder.parts, "slopes": slopes, "sdp": []}
    return document("margins", claim, builder.claim.digest, proof)
