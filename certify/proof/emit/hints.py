"""Suggestions for the rows of a proof, in floating point: CROWN's slopes, and what is left of their quality."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float

from certify.regions import AbstractRegion, LpBall

Layer = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True, eq=False)
class Chain:
    """A network in doubles, a region, and the bounds of the first hidden layers that are proved.

    Attributes:
        layers: (W, b), as rounded.
        region: a batch of one.
        centre: the middle of the region.
        radius: of the ball, 0 for a box.
        room: lower and upper limits of x - centre, finite.
        hidden: lower and upper bounds of z, layer by layer.
    """

    layers: tuple[Layer, ...]
    region: AbstractRegion
    centre: Float[np.ndarray, " n"]
    radius: float
    room: tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]
    hidden: tuple[tuple[np.ndarray, np.ndarray], ...] = ()

    @property
    def norm(self) -> str:
        """Of the ball; "box" for a box."""
        return self.region.norm if isinstance(self.region, LpBall) else "box"


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
    """About what the rows will prove without lam, up to constants of the forms."""
    c, total = forms, np.zeros(len(forms))
    for j in range(len(chain.hidden), 0, -1):
        (low, high), g = chain.hidden[j - 1], hints.g[j - 1]
        ends = [c * np.maximum(s, 0) - g * s for s in (low, high)]
        inner = np.where((low < 0) & (high > 0), 0.0, np.inf)
        total += np.minimum(np.minimum(*ends), inner).sum(1) + g @ chain.layers[j - 1][1]
        c = g @ chain.layers[j - 1][0]
    return total + chain.region.minimum(torch.as_tensor(c)[None])[0].numpy()
