"""Suggestions for the rows of a proof, in floating point: CROWN's slopes, and what is left of their quality."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

Layer = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True, eq=False)
class Chain:
    """A network in doubles, the limits of its inputs as offsets from a centre, and bounds of the first hidden layers.

    Attributes:
        layers: (W, b), as rounded.
        centre: the middle of the region.
        norm: "linf", "l2", "l1" or "box".
        radius: of the ball.
        room: lower and upper limits of the offsets.
        hidden: lower and upper bounds of z, layer by layer.
    """

    layers: tuple[Layer, ...]
    centre: Float[np.ndarray, " n"]
    norm: str
    radius: float
    room: tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]
    hidden: tuple[tuple[np.ndarray, np.ndarray], ...] = ()


@dataclass(frozen=True, eq=False)
class RowHints:
    """Slopes g and multipliers lam of several forms, by layer 1, ..., k.

    Attributes:
        g: by layer (forms, n_j).
        lam: by layer (forms,).
        live: whether g is meant at active entries too; if not, they follow the form.
    """

    g: tuple[Float[np.ndarray, "forms _"], ...]
    lam: tuple[Float[np.ndarray, " forms"], ...]
    live: bool = False

    @staticmethod
    def plain(g: Sequence[np.ndarray]) -> "RowHints":
        """Without balls."""
        return RowHints(tuple(g), tuple(np.zeros(len(v)) for v in g))

    def where(self, chosen: np.ndarray, other: "RowHints") -> "RowHints":
        """Row by row these hints where chosen, others elsewhere."""
        g = tuple(np.where(chosen[:, None], a, b) for a, b in zip(self.g, other.g, strict=True))
        return RowHints(g, tuple(np.where(chosen, a, b) for a, b in zip(self.lam, other.lam, strict=True)), self.live)


def chords(lower: np.ndarray, upper: np.ndarray) -> np.ndarray:
    """Slope of the upper line of every entry: 1 where active, 0 where dead."""
    above, under = np.maximum(upper, 0), np.minimum(lower, 0)
    return above / np.where(above > under, above - under, 1.0)


def substituted(chain: Chain, forms: Float[np.ndarray, "m n"], slopes: Sequence[np.ndarray]) -> RowHints:
    """g of backward substitution with given lower slopes, by layer and (maybe) form."""
    c, g = forms, []
    for j in range(len(chain.hidden), 0, -1):
        steep = chords(*chain.hidden[j - 1])
        g.append(np.maximum(c, 0) * slopes[j - 1] + np.minimum(c, 0) * steep)
        c = g[-1] @ chain.layers[j - 1][0]
    return RowHints.plain(g[::-1])


def crown(chain: Chain, forms: Float[np.ndarray, "m n"]) -> RowHints:
    """Lower slopes of least area, or none at all (intervals), whichever bounds a form better."""
    areas = [np.where(low >= 0, 1.0, (high > -low).astype(float)) for low, high in chain.hidden]
    tight = substituted(chain, forms, areas)
    loose = RowHints.plain([np.zeros_like(g) for g in tight.g])
    return tight.where(values(chain, forms, tight) >= values(chain, forms, loose), loose)


def values(chain: Chain, forms: Float[np.ndarray, "m n"], hints: RowHints) -> Float[np.ndarray, " m"]:
    """About what the rows will prove without lam, up to what all hints have in common."""
    c, total = forms, np.zeros(len(forms))
    for j in range(len(chain.hidden), 0, -1):
        (low, high), g = chain.hidden[j - 1], hints.g[j - 1]
        ends = [c * np.maximum(s, 0) - g * s for s in (low, high)]
        inner = np.where((low < 0) & (high > 0), 0.0, np.inf)
        total += np.minimum(np.minimum(*ends), inner).sum(1) + g @ chain.layers[j - 1][1]
        c = g @ chain.layers[j - 1][0]
    return total + c @ chain.centre + reach(chain, c)


def reach(chain: Chain, c: Float[np.ndarray, "m n"]) -> Float[np.ndarray, " m"]:
    """About the minimum of c.d over the region; with a domain that cuts a ball, a little less."""
    corner = (np.maximum(c, 0) * chain.room[0] + np.minimum(c, 0) * chain.room[1]).sum(1)
    if chain.norm in ("linf", "box"):
        return corner
    length = np.linalg.norm(c, axis=1) if chain.norm == "l2" else np.abs(c).max(1)
    return np.maximum(corner, -chain.radius * length)
