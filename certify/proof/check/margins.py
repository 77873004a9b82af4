"""Proofs that a network keeps a label on a ball or box: every margin of the label over another class is positive."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from certify.proof.artefact import Dyadic, Work, digest, dyadic, fields, integer, integers, items, require
from certify.proof.check.cases import cases_of
from certify.proof.check.network import Network, read_network
from certify.proof.check.region import Region, read_region
from certify.proof.check.rows import Hidden, centres, forms_minimum, read_rows, squared_radii
from certify.proof.check.sdp import OUTWEIGHED, form_size, proves, read_multipliers

GIVEN = ("network", "region", "label")  # what a caller may compare


@dataclass(frozen=True)
class Claim:
    """On the whole region the network's largest score is that of the label (for one score: 1 positive, 0 negative).

    Attributes:
        widths: of the network.
        network_digest: SHA-256 of its weights.
        network: the weights, if they are in the file.
        region: the inputs.
        label: the class.
        digest: SHA-256 of all that.
    """

    widths: list[int]
    network_digest: str
    network: Network | None
    region: Region
    label: int
    digest: str

    @property
    def rivals(self) -> list[int]:
        """The other classes; a network with one score has two."""
        return [t for t in range(max(self.widths[-1], 2)) if t != self.label]


def read_claim(value: Any) -> Claim:
    """The claim of a file."""
    held = fields(value, "the claim", "network", "region", "label")
    widths, network_digest, network = read_network(held["network"])
    region, region_digest = read_region(held["region"], widths[0])
    label = integer(held["label"], "the label", 0, max(widths[-1], 2) - 1)
    whole = digest(network_digest, region_digest, widths, label)
    return Claim(widths, network_digest, network, region, label, whole)


def check(
    claim: Claim,
    proof: Any,
    *,
    network: Network | None = None,
    region: Region | None = None,
    label: int | None = None,
) -> tuple[str, ...]:
    """What is proved, in sentences; the caller's network, region and label have to be those of the claim.

    Raises:
        RejectedError: something does not follow.
    """
    if network is not None:
        require(network.digest == claim.network_digest, "the proof is about another network")
    require(region is None or region.same_as(claim.region), "the proof is about another region")
    require(label is None or label == claim.label, f"the proof is about the label {claim.label}")
    network = claim.network or network
    require(network is not None, "the weights are not in the file: give the network")
    assert network is not None
    require(network.widths == claim.widths, "the widths are not those of the network")
    bounds = _margins(claim, network, proof)
    return (*_sentences(claim), *(f"margin over class {t}: at least {float(b):.6g}" for t, b in sorted(bounds.items())))


def _sentences(claim: Claim) -> tuple[str, ...]:
    region = claim.region
    size = "" if region.norm == "box" else f" of radius {region.radius / (1 << region.scale):.9g}"
    return (
        f"label {claim.label} is kept on the {region.norm} region{size}, in real arithmetic on the stored weights",
        f"network {' -> '.join(map(str, claim.widths))}, SHA-256 {claim.network_digest}",
        f"claim SHA-256 {claim.digest}",
    )


def _margins(claim: Claim, network: Network, proof: Any) -> dict[int, Fraction]:
    """The proved bound of every margin, all positive."""
    held = fields(proof, "the proof", "squared_norms", "hidden", "slopes", "sdp")
    hidden = _hidden(network, claim.region, held["hidden"], held["squared_norms"])
    bounds = {} if held["slopes"] is None else _by_slopes(claim, network, hidden, held["slopes"])
    work = Work()
    for part in items(held["sdp"], None, "sdp"):
        rival, bound = _by_sdp(claim, network, hidden, part, work)
        require(rival not in bounds, f"the margin over class {rival} is proved twice")
        bounds[rival] = bound
    require(sorted(bounds) == claim.rivals, "the proof is not about every other class")
    require(all(b > 0 for b in bounds.values()), "a margin's bound is not positive")
    return bounds


def _hidden(network: Network, region: Region, value: Any, norms: Any) -> list[Hidden]:
    """The bounds of every hidden layer, each proved from those below."""
    radii, middles = squared_radii(network, region, norms), centres(network, region)
    proved: list[Hidden] = []
    for k, part in enumerate(items(value, len(network.layers) - 1, "hidden")):
        where = f"hidden layer {k + 1}"
        held = fields(part, where, "lower", "upper", "rows")
        n = len(network.layers[k][1].values)
        lower, upper = (dyadic(held[side], (n,), f"{side} of {where}") for side in ("lower", "upper"))
        rows = read_rows(held["rows"], 2 * n, proved, f"the rows of {where}")
        found = forms_minimum(network, region, proved, both_signs(network, k), rows)
        for i, (low, high) in enumerate(zip(lower.values, upper.values, strict=True)):
            require(Fraction(low, 1 << lower.scale) <= found[i], f"the lower bound {i} of {where} is not proved")
            require(Fraction(-high, 1 << upper.scale) <= found[n + i], f"the upper bound {i} of {where} is not proved")
        proved.append(Hidden(lower, upper, middles[k], radii[k]))
    return proved


def both_signs(network: Network, k: int) -> tuple[Dyadic, list[Fraction]]:
    """The entries of z_{k+1}, then their negatives, as forms on x_k."""
    W, b = network.layers[k]
    constants = [Fraction(v, 1 << b.scale) for v in b.values]
    return Dyadic(W.values + [[-v for v in row] for row in W.values], W.scale), constants + [-v for v in constants]


def margin_forms(claim: Claim, network: Network, rivals: Sequence[int]) -> tuple[Dyadic, list[Fraction]]:
    """Score of the label less that of each rival, as forms on the last hidden layer."""
    W, b = network.layers[-1]
    if len(W.values) == 1:
        sign = 1 if claim.label == 1 else -1
        return Dyadic([[sign * v for v in W.values[0]]] * len(rivals), W.scale), [
            Fraction(sign * b.values[0], 1 << b.scale)
        ] * len(rivals)
    y = claim.label
    rows = [[p - q for p, q in zip(W.values[y], W.values[t], strict=True)] for t in rivals]
    return Dyadic(rows, W.scale), [Fraction(b.values[y] - b.values[t], 1 << b.scale) for t in rivals]


def _by_slopes(claim: Claim, network: Network, hidden: Sequence[Hidden], value: Any) -> dict[int, Fraction]:
    """The margins proved by backward substitution."""
    held = fields(value, "slopes", "rivals", "bounds", "rows")
    rivals = integers(held["rivals"], None, "the rivals")
    require(len(set(rivals)) == len(rivals) and set(rivals) <= set(claim.rivals), "the rivals are no other classes")
    claimed = dyadic(held["bounds"], (len(rivals),), "the bounds")
    rows = read_rows(held["rows"], len(rivals), hidden, "the rows of the margins")
    found = forms_minimum(network, claim.region, hidden, margin_forms(claim, network, rivals), rows)
    bounds = [Fraction(v, 1 << claimed.scale) for v in claimed.values]
    for t, bound, proved in zip(rivals, bounds, found, strict=True):
        require(bound <= proved, f"the bound of the margin over class {t} is not proved")
    return dict(zip(rivals, bounds, strict=True))


def _by_sdp(claim: Claim, network: Network, hidden: Sequence[Hidden], value: Any, work: Work) -> tuple[int, Fraction]:
    """A margin proved by a semidefinite form in every case of the signs of some neurons."""
    held = fields(value, "sdp", "rival", "bound", "order", "leaves")
    rival, bound = integer(held["rival"], "the rival", 0, 10**6), dyadic(held["bound"], (), "the bound")
    require(rival in claim.rivals and bool(hidden), "an sdp proof needs another class and a hidden layer")
    forms, constants = margin_forms(claim, network, [rival])
    t = Fraction(bound.values, 1 << bound.scale)
    for case, leaf in cases_of(held["order"], held["leaves"], hidden):
        multipliers = read_multipliers(leaf, case, claim.widths[0])
        size = form_size(case, multipliers)
        work.add(size**2 * (len(OUTWEIGHED) * size + len(multipliers.cuts.left)))
        proved = proves(network, claim.region, case, (forms, constants[0]), multipliers, t)
        require(proved, f"the bound of the margin over class {rival} is not proved")
    return rival, t
