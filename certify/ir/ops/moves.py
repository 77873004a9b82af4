"""Entries moved, dropped, repeated or joined; nothing is computed."""

from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import numpy as np
from jaxtyping import Int

from certify.errors import InvalidInputError
from certify.ir.ops.base import AbstractAffine, Shape, WithoutOffset
from certify.ir.ops.library import add_at, join, take

# A transpose that repeats entries this often at most is a sum of that many gathers.
_MOST_LAYERS = 32


@dataclass(frozen=True, eq=False)
class Reshape(WithoutOffset, AbstractAffine):
    """The same entries in another shape (row-major), the batch axis kept."""

    source: Shape
    target: Shape

    @property
    def terms(self) -> int:
        """Nothing is computed."""
        return 0

    def output_shape(self, *inputs: Shape) -> Shape:
        """The target shape."""
        if inputs[0] != self.source or prod(self.source) != prod(self.target):
            raise InvalidInputError(f"cannot reshape values of shape {inputs[0]} from {self.source} to {self.target}")
        return self.target

    def forward(self, *values: Any) -> Any:
        """The values in the target shape."""
        return values[0].reshape((len(values[0]), *self.target))

    def spread(self, *radii: Any) -> Any:
        """The radii in the target shape."""
        return self.forward(*radii)

    def adjoint(self, rows: Any) -> tuple[Any, ...]:
        """The rows in the source shape."""
        return (rows.reshape((*rows.shape[:2], *self.source)),)


@dataclass(frozen=True, eq=False)
class Select(WithoutOffset, AbstractAffine):
    """Every entry of the result is one entry of the input, or zero.

    Attributes:
        source: the shape that is read.
        index: for every entry of the result the flat (row-major) position of the entry it is, or -1 for zero.
    """

    source: Shape
    index: Int[np.ndarray, "*target"]

    @cached_property
    def _zero(self) -> Int[np.ndarray, " zeros"]:
        return np.flatnonzero(self.index < 0)

    @cached_property
    def _layers(self) -> tuple[np.ndarray, ...]:
        """The transpose as gathers: layer m holds for every source entry the m-th place it goes to, or -1."""
        flat = self.index.ravel()
        order = np.argsort(flat, kind="stable")
        order = order[flat[order] >= 0]
        at = flat[order]
        first = np.searchsorted(at, at)  # where the run of equal positions begins
        occurrence = np.arange(len(at)) - first
        layers = np.full((self.terms, prod(self.source)), -1, dtype=np.intp)
        layers[occurrence, at] = order
        return tuple(layers)

    @cached_property
    def terms(self) -> int:
        """The most often that one entry is used."""
        used = self.index[self.index >= 0]
        return int(np.bincount(used).max()) if used.size else 1

    def output_shape(self, *inputs: Shape) -> Shape:
        """The shape of the index."""
        limit = prod(self.source)
        wrong = self.index.size and (int(self.index.max()) >= limit or int(self.index.min()) < -1)
        if inputs[0] != self.source or wrong:
            raise InvalidInputError(
                f"a selection from shape {self.source} was given values of shape {inputs[0]};"
                f" expected that shape, and positions from -1 to {limit - 1}"
            )
        return tuple(int(n) for n in self.index.shape)

    def forward(self, *values: Any) -> Any:
        """The chosen entries."""
        value = values[0].reshape((len(values[0]), prod(self.source)))
        return take(value, self.index.ravel(), self._zero).reshape((len(value), *self.index.shape))

    def spread(self, *radii: Any) -> Any:
        """The chosen radii."""
        return self.forward(*radii)

    def adjoint(self, rows: Any) -> tuple[Any, ...]:
        """The rows, added up where an entry was chosen more than once."""
        shape = (*rows.shape[:2], *self.source)
        flat = rows.reshape((prod(rows.shape[:2]), self.index.size))
        if self.terms > _MOST_LAYERS:
            return (add_at(flat, self.index.ravel(), prod(self.source)).reshape(shape),)
        total = take(flat, self._layers[0])
        for layer in self._layers[1:]:
            total = total + take(flat, layer)
        return (total.reshape(shape),)


@dataclass(frozen=True, eq=False)
class Concat(WithoutOffset, AbstractAffine):
    """Values joined along an axis (counted without the batch axis)."""

    axis: int
    lengths: tuple[int, ...]

    @property
    def terms(self) -> int:
        """Nothing is computed."""
        return 0

    def output_shape(self, *inputs: Shape) -> Shape:
        """The common shape, with the lengths added up along the axis."""
        shapes = {(*s[: self.axis], *s[self.axis + 1 :]) for s in inputs}
        if tuple(s[self.axis] for s in inputs) != self.lengths or len(shapes) != 1:
            raise InvalidInputError(
                f"cannot join values of shapes {inputs} along axis {self.axis}; expected lengths {self.lengths}"
                " there and equal ones elsewhere"
            )
        return (*inputs[0][: self.axis], sum(self.lengths), *inputs[0][self.axis + 1 :])

    def forward(self, *values: Any) -> Any:
        """Joined."""
        return join(values, self.axis + 1)

    def spread(self, *radii: Any) -> Any:
        """Joined."""
        return join(radii, self.axis + 1)

    def adjoint(self, rows: Any) -> tuple[Any, ...]:
        """Cut apart."""
        ends = np.cumsum(self.lengths).tolist()
        before = (slice(None),) * (self.axis + 2)
        return tuple(rows[(*before, slice(end - n, end))] for n, end in zip(self.lengths, ends, strict=True))
