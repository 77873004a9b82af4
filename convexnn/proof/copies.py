"""Samples with equal rows share one neuron output: the proof is about the distinct rows."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

Array = np.ndarray


@dataclass(frozen=True)
class Copies:
    """``first`` has one sample of every distinct row, in the order of the data; ``row`` has the row of every sample."""

    first: Int[Array, " k"]
    row: Int[Array, " n"]

    @staticmethod
    def of(X: Float[Array, "n d"]) -> "Copies":
        """Of a matrix, up to the sign of zeros."""
        places: dict[bytes, int] = {}
        row = [places.setdefault(values.tobytes(), len(places)) for values in np.ascontiguousarray(X + 0.0)]
        return Copies(np.unique(row, return_index=True)[1], np.array(row))

    def spread(self, f: Float[Array, " k"]) -> Float[Array, " n"]:
        """From rows to samples."""
        return f[self.row]

    def gather(self, v: Float[Array, " n"]) -> Float[Array, " k"]:
        """Sums over the samples of a row."""
        return np.bincount(self.row, v, len(self.first))
