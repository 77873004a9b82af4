"""Linear forms on a hidden layer, bounded below by backward substitution with slopes that the file suggests.

For any g, any lam >= 0, and values z with l <= z <= u and |z - zh| <= R,

    c.relu(z)  >=  g.z + sum_i min over s in [l_i, u_i] of  c_i relu(s) - g_i s + lam/2 (s - zh_i)^2  -  lam R^2 / 2 .

The minima are exact: a quadratic (or, for lam = 0, a linear function) on each side of 0. With lam = 0 this is every
bound of CROWN, of its optimised slopes, and of the dual of the triangle relaxation; with lam > 0 it is the box-and-ball
form of the SDP-CROWN lemma. g.z = (g W) x + g.b then is a form on the layer below, and the region's own minimum ends
the substitution.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from certify.proof.artefact import Dyadic, affordable, dyadic, fields, items, require
from certify.proof.check.exact import Matrix, at_most_norm, dot, product
from certify.proof.check.network import Network
from certify.proof.check.region import Region, least

# Slopes that a file leaves out follow the form itself, cut off at this scale.
_FOLLOWED = 64


@dataclass(frozen=True)
class Hidden:
    """Proved bounds of one layer's z; centre and squared radius where the file gives norms of the weights."""

    lower: Dyadic
    upper: Dyadic
    centre: Dyadic
    squared_radius: Fraction | None

    @property
    def unstable(self) -> list[int]:
        """l < 0 < u."""
        return [i for i, (a, b) in enumerate(zip(self.lower.values, self.upper.values, strict=True)) if a < 0 < b]

    @property
    def active(self) -> list[int]:
        """l >= 0."""
        return [i for i, a in enumerate(self.lower.values) if a >= 0]

    @property
    def live(self) -> list[int]:
        """Unstable or active."""
        return sorted(self.unstable + self.active)


@dataclass(frozen=True)
class Rows:
    """What the file suggests for several forms on layer k: by layer 1, ..., k slopes and lam; multipliers at the input.

    Attributes:
        free: whether "unstable" entries have slopes in the file (those of active ones follow the form, those of dead
            ones are 0), or all "live" ones.
        slopes: by layer a matrix (forms, free entries).
        lam: by layer a vector (forms).
        end: a vector (forms), see `Region.minimum`.
    """

    free: str
    slopes: tuple[Dyadic, ...]
    lam: tuple[Dyadic, ...]
    end: Dyadic

    def free_entries(self, hidden: Hidden) -> list[int]:
        """The entries of a layer that have slopes in the file."""
        return hidden.live if self.free == "live" else hidden.unstable


def read_rows(value: Any, count: int, below: Sequence[Hidden], where: str) -> Rows:
    """The suggestions for `count` forms on the last of some layers."""
    held = fields(value, where, "free", "slopes", "lam", "end")
    require(held["free"] in ("unstable", "live"), f"{where}: free is neither unstable nor live")
    slopes, lam = (items(held[k], len(below), f"{k} of {where}") for k in ("slopes", "lam"))
    rows = Rows(held["free"], (), (), dyadic(held["end"], (count,), f"the end of {where}", sign=0))
    wide = [(count, len(rows.free_entries(hidden))) for hidden in below]
    read = tuple(dyadic(v, shape, f"slopes of {where}") for v, shape in zip(slopes, wide, strict=True))
    return Rows(rows.free, read, tuple(dyadic(v, (count,), f"lam of {where}", sign=0) for v in lam), rows.end)


def forms_minimum(
    network: Network, region: Region, below: Sequence[Hidden], forms: tuple[Dyadic, list[Fraction]], rows: Rows
) -> list[Fraction]:
    """Lower bounds of C relu(z_k) + constants over the region, k = len(below); for k = 0 of C x + constants."""
    C, scale, totals = forms[0].values, forms[0].scale, list(forms[1])
    for j in range(len(below), 0, -1):
        hidden, (W, b) = below[j - 1], network.layers[j - 1]
        G, lam = _slopes(C, scale, hidden, rows, j - 1), rows.lam[j - 1]
        for r, (c, g) in enumerate(zip(C, G.values, strict=True)):
            totals[r] += Fraction(dot(g, b.values), 1 << G.scale + b.scale)
            totals[r] += _relu_minimum(Dyadic(c, scale), Dyadic(g, G.scale), Dyadic(lam.values[r], lam.scale), hidden)
        affordable(len(G.values) * len(W.values[0]), G.scale + W.scale)
        C, scale = product(G.values, W.values), G.scale + W.scale
    for r, c in enumerate(C):
        totals[r] += Fraction(dot(c, region.centre), 1 << scale + region.scale)
        totals[r] += region.minimum(c, scale, rows.end.values[r], rows.end.scale)
    return totals


def _slopes(C: Matrix, scale: int, hidden: Hidden, rows: Rows, layer: int) -> Dyadic:
    """g of every form: from the file at the free entries, following the form at other active ones, 0 at dead ones."""
    given = rows.slopes[layer]
    common = max(given.scale, _FOLLOWED)
    free, followed = rows.free_entries(hidden), hidden.active if rows.free == "unstable" else []
    up, down = max(common - scale, 0), max(scale - common, 0)
    G = []
    for c, values in zip(C, given.at(common), strict=True):
        g = [0] * len(c)
        for i, v in zip(free, values, strict=True):
            g[i] = v
        for i in followed:
            g[i] = c[i] << up >> down
        G.append(g)
    return Dyadic(G, common)


def _relu_minimum(c: Dyadic, g: Dyadic, lam: Dyadic, hidden: Hidden) -> Fraction:
    """The sum of the minima, less lam R^2 / 2."""
    if lam.values == 0:
        return _piecewise_linear(c, g, hidden)
    require(hidden.squared_radius is not None, "a multiplier lam needs norms of the weights")
    assert hidden.squared_radius is not None
    at = max(hidden.lower.scale, hidden.upper.scale, hidden.centre.scale)
    scale = max(c.scale, g.scale, at + lam.scale)
    weight = lam.at(scale - at)
    total = 0
    for a, b, low, high, z in zip(
        c.at(scale), g.at(scale), hidden.lower.at(at), hidden.upper.at(at), hidden.centre.at(at), strict=True
    ):
        sides = []
        if high > 0 or low >= 0:
            sides.append(least(a - b, weight, z, max(low, 0), max(high, 0)))
        if low < 0:
            sides.append(least(-b, weight, z, low, min(high, 0)))
        total += min(sides)
    return Fraction(total, 2 * weight << scale + at) - Fraction(lam.values, 2 << lam.scale) * hidden.squared_radius


def _piecewise_linear(c: Dyadic, g: Dyadic, hidden: Hidden) -> Fraction:
    scale, at = max(c.scale, g.scale), max(hidden.lower.scale, hidden.upper.scale)
    total = 0
    for a, b, low, high in zip(c.at(scale), g.at(scale), hidden.lower.at(at), hidden.upper.at(at), strict=True):
        ends = (a * max(low, 0) - b * low, a * max(high, 0) - b * high)
        total += min(*ends, 0) if low < 0 < high else min(ends)
    return Fraction(total, 1 << scale + at)


def centres(network: Network, region: Region) -> list[Dyadic]:
    """z of every hidden layer at the centre of the region."""
    x, found = Dyadic(region.centre, region.scale), []
    for W, b in network.layers[:-1]:
        scale = W.scale + x.scale
        common = max(scale, b.scale)
        affordable(len(b.values), common)
        z = [(dot(row, x.values) << common - scale) + v for row, v in zip(W.values, b.at(common), strict=True)]
        found.append(Dyadic(z, common))
        x = Dyadic([max(v, 0) for v in z], common)
    return found


def squared_radii(network: Network, region: Region, value: Any) -> list[Fraction | None]:
    """|z_k - zh_k|^2 over the region, from the squared norms of the weights that the file claims, each one proved."""
    if value is None:
        return [None] * (len(network.layers) - 1)
    radii: list[Fraction | None] = []
    square = region.squared_length
    claimed = items(value, len(network.layers) - 1, "the squared norms")
    for k, ((W, _), number) in enumerate(zip(network.layers, claimed, strict=False)):
        norm = dyadic(number, (), f"the squared norm of layer {k}", sign=0)
        scale = max(norm.scale, 2 * W.scale)
        # |W|^2 <= s at scale 2 W.scale: the claim rounded down is a stronger one.
        require(at_most_norm(W.values, norm.at(scale) >> scale - 2 * W.scale), f"the norm of layer {k} is not proved")
        square *= Fraction(norm.values, 1 << norm.scale)
        radii.append(square)
    return radii
