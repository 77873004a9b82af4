"""A network as affine layers with ReLUs between them, and how large its values can be.

The sizes serve the rounding errors: every bound of this search is lowered by a proved bound on what rounding
did to it. See `certify.search.inputs.bounds`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from certify.errors import InvalidInputError


@dataclass(frozen=True, eq=False)
class Chain:
    """x_0 = x, z_k = W_k x_k + b_k, x_{k+1} = relu(z_k), y = z_K: all in one floating-point type.

    Attributes:
        weights: K + 1 matrices W_k, (n_{k+1}, n_k).
        biases: K + 1 vectors b_k.
        absolute: for every layer (M, v), at least |W_k| and |b_k|. Where several operations were merged into the
            layer, the products of their absolute values: the merged matrix is off by a few units of those.
        terms: additions and roundings that merging took, at most, in any layer.
    """

    weights: tuple[np.ndarray, ...]
    biases: tuple[np.ndarray, ...]
    absolute: tuple[tuple[np.ndarray, np.ndarray], ...]
    terms: int = 0

    def __post_init__(self) -> None:
        for k, (W, b) in enumerate(zip(self.weights, self.biases, strict=True)):
            if W.ndim != 2 or b.shape != W.shape[:1] or (k and W.shape[1] != self.weights[k - 1].shape[0]):
                raise InvalidInputError(f"layer {k} has shapes {W.shape} and {b.shape}, which do not fit together")
            if not (np.isfinite(W).all() and np.isfinite(b).all()):
                raise InvalidInputError(f"layer {k} has weights that are infinite or NaN")

    @staticmethod
    def of(layers: Sequence[tuple[np.ndarray, np.ndarray]]) -> "Chain":
        """From pairs (W, b) that are meant exactly, in float64."""
        weights = tuple(np.ascontiguousarray(W, dtype=np.float64) for W, _ in layers)
        biases = tuple(np.ascontiguousarray(b, dtype=np.float64) for _, b in layers)
        return Chain(weights, biases, tuple((np.abs(W), np.abs(b)) for W, b in zip(weights, biases, strict=True)))

    @property
    def hidden(self) -> int:
        """Number of ReLU layers."""
        return len(self.weights) - 1

    @property
    def n_inputs(self) -> int:
        """Number of inputs."""
        return int(self.weights[0].shape[1])

    @cached_property
    def widest(self) -> int:
        """The longest side of any layer."""
        return max(max(W.shape) for W in self.weights)

    @cached_property
    def rounding(self) -> float:
        """Relative error bound that covers every sum of this search, twice over.

        A sum of n products is off by at most gamma_n = n u / (1 - n u) times the sum of the absolute values, in
        any order of summation (Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., 3.1). The
        longest sums have as many terms as the widest layer, and as merging its operations took; what else
        happens to a coefficient on its way down, and the additions to its constant, are fewer than 4 roundings
        a layer. eps is 2u.
        """
        return (self.widest + self.terms + 4 * len(self.weights) + 32) * float(np.finfo(np.float64).eps)

    def values(self, x: np.ndarray) -> np.ndarray:
        """Outputs (batch, m) at inputs (batch, n), in float64 as it comes."""
        for W, b in zip(self.weights[:-1], self.biases[:-1], strict=True):
            x = np.maximum(x @ W.T + b, 0)
        return x @ self.weights[-1].T + self.biases[-1]


@dataclass(frozen=True, eq=False)
class Sizes:
    """Bounds on absolute values over one box, for rounding errors, and which inputs it leaves free.

    Attributes:
        free: the inputs whose limits differ.
        inputs: (n_0,), at least |x|.
        layers: for every affine layer (n_{k+1},), at least |W_k| |x_k| + |b_k|, the size of all that is summed.
        floors: for every affine layer the error that underflow can cause.
    """

    free: np.ndarray
    inputs: np.ndarray
    layers: tuple[np.ndarray, ...]
    floors: tuple[float, ...]

    @property
    def usable(self) -> bool:
        """Whether nothing comes near the largest double."""
        return all(bool((size < 1e150).all()) for size in (self.inputs, *self.layers))

    @staticmethod
    def of(chain: Chain, lower: np.ndarray, upper: np.ndarray, known: Sequence[np.ndarray] = ()) -> "Sizes":
        """Sizes over a box, layer by layer, from upper bounds of pre-activations where they are known."""
        inputs = np.maximum(np.abs(lower), np.abs(upper))
        grow = 1 + chain.rounding
        size, layers, floors = inputs, [], []
        for k, (matrix, vector) in enumerate(chain.absolute):
            layers.append((matrix @ size + vector) * grow)
            # A product that underflows is off by less than the smallest normal number; there are fewer than
            # 1e20 of them, each multiplied by sizes that are summed here.
            floors.append(1e-280 * float(1 + size.sum() + layers[-1].sum()))
            size = layers[-1] if k >= len(known) else np.minimum(layers[-1], np.maximum(known[k], 0))
        return Sizes(np.flatnonzero(lower < upper), inputs, tuple(layers), tuple(floors))
