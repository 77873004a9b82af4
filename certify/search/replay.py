"""Whether a candidate is a witness: asked of the network itself, in its own precision."""

from typing import Protocol, runtime_checkable

import numpy as np

from certify.properties.query import Case
from certify.verdict import Witness

# How far outside the written box a witness may be, where rounding to the network's precision forces it there:
# the tolerance of VNN-COMP's checker. Outputs have none.
INPUT_TOLERANCE = 1e-4


def representable(x: np.ndarray, case: Case, dtype: np.dtype) -> np.ndarray:
    """The point (n,) in another precision, inside the written box wherever that holds a number of it."""
    assert case.written_lower is not None
    assert case.written_upper is not None
    lower, upper = case.written_lower, case.written_upper
    with np.errstate(over="ignore"):
        near = np.minimum(np.maximum(x, lower), upper).astype(dtype)
    up = np.where(near.astype(np.float64) < lower, np.nextafter(near, dtype.type(np.inf)), near)
    moved = np.where(up.astype(np.float64) > upper, np.nextafter(up, dtype.type(-np.inf)), up)
    inside = (moved.astype(np.float64) >= lower) & (moved.astype(np.float64) <= upper)
    return np.where(inside, moved, near)


@runtime_checkable
class Runs(Protocol):
    """A network as it is run: precision and shape of its input, and outputs."""

    dtype: np.dtype
    shape: tuple[int, ...]

    def __call__(self, inputs: np.ndarray) -> np.ndarray:
        """The outputs for one input."""


def replay(network: Runs, case: Case, x: np.ndarray) -> Witness | None:
    """The witness at or next to x, if the network says that it is one.

    The outputs, as the network computes them, have to satisfy every constraint exactly.
    """
    inputs = representable(x, case, network.dtype)
    excess = case.excess(inputs.astype(np.float64))
    if not excess <= INPUT_TOLERANCE:
        return None
    outputs = network(inputs)
    if not case.holds_for(outputs.astype(np.float64).ravel()):
        return None
    return Witness(inputs.reshape(network.shape), outputs, excess)
