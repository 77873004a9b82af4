"""The operations a network is made of.

An operation is frozen data plus the few linear-algebra actions that the bounding methods need. The arrays may
be torch tensors or numpy arrays: only their common interface is used, so that a graph can be read and run
without torch.

Affine operations answer for their own transposes here; what is not affine has its linear pieces in
`certify.relaxations`, one record per operation. Values are `(batch, *shape)`, coefficient rows on a value are
`(batch or 1, rows, *shape)`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import cached_property
from math import prod
from typing import Any

from jaxtyping import Float

from certify.errors import InvalidInputError

Shape = tuple[int, ...]


class AbstractOp(ABC):
    """One operation of the graph."""

    @abstractmethod
    def output_shape(self, *inputs: Shape) -> Shape:
        """Shape of the result, without the batch axis; raises `InvalidInputError` where inputs do not fit."""

    @abstractmethod
    def forward(self, *values: Any) -> Any:
        """The values `(batch, *shape)` of the result."""

    def map_arrays(self, convert: Callable[[Any], Any]) -> "AbstractOp":
        """The same operation with every array converted (to another precision, device or library)."""
        arrays = {f.name: getattr(self, f.name) for f in fields(self)}  # type: ignore[arg-type]
        return replace(self, **{k: convert(v) for k, v in arrays.items() if hasattr(v, "dtype")})  # type: ignore[type-var]


class AbstractAffine(AbstractOp):
    """y = A x + b, of one or several inputs."""

    @property
    @abstractmethod
    def terms(self) -> int:
        """Products in the longest sum that one output is (for the rounding error)."""

    @abstractmethod
    def spread(self, *radii: Any) -> Any:
        """|A| r, summed over the inputs: how far the result moves when the inputs move by r."""

    @abstractmethod
    def offset_size(self) -> Any:
        """|b|, broadcastable to the result, or 0."""

    @abstractmethod
    def offset(self, rows: Any) -> Any:
        """c'b for every coefficient row c, `(batch or 1, rows)`, or 0."""

    @abstractmethod
    def adjoint(self, rows: Any) -> tuple[Any, ...]:
        """c'A for every coefficient row c, one array per input."""


class AbstractPointwise(AbstractOp):
    """The same scalar function on every entry; shape and arity 1 are kept."""

    def output_shape(self, *inputs: Shape) -> Shape:
        """The shape of the input."""
        return inputs[0]


@dataclass(frozen=True, eq=False)
class Input(AbstractOp):
    """The network's input."""

    shape: Shape

    def output_shape(self, *inputs: Shape) -> Shape:
        """The shape it was declared with."""
        return self.shape

    def forward(self, *values: Any) -> Any:
        """The values themselves."""
        return values[0]


@dataclass(frozen=True, eq=False)
class Linear(AbstractAffine):
    """y = W x + b on vectors; W is `out x in`, as torch stores it."""

    weight: Float[Any, "out in"]
    bias: Float[Any, " out"]

    @cached_property
    def _size(self) -> Float[Any, "out in"]:
        return abs(self.weight)

    @property
    def terms(self) -> int:
        """One product per input and the bias."""
        return int(self.weight.shape[1]) + 1

    def output_shape(self, *inputs: Shape) -> Shape:
        """(out,), of (in,) only."""
        expected = (int(self.weight.shape[1]),)
        if inputs[0] != expected:
            raise InvalidInputError(
                f"a linear layer with {expected[0]} inputs was given values of shape {inputs[0]};"
                f" expected {expected}: flatten before it, or check the shape of the input"
            )
        return (int(self.weight.shape[0]),)

    def forward(self, *values: Any) -> Any:
        """W x + b."""
        return values[0] @ self.weight.T + self.bias

    def spread(self, *radii: Any) -> Any:
        """|W| r."""
        return radii[0] @ self._size.T

    def offset_size(self) -> Any:
        """|b|."""
        return abs(self.bias)

    def offset(self, rows: Any) -> Any:
        """c'b."""
        return rows @ self.bias

    def adjoint(self, rows: Any) -> tuple[Any, ...]:
        """c'W."""
        return (rows @ self.weight,)


@dataclass(frozen=True, eq=False)
class Scale(AbstractAffine):
    """y = s * x + b per entry: BatchNorm in eval mode where no linear layer can absorb it."""

    scale: Float[Any, " n"]
    shift: Float[Any, " n"]

    @property
    def terms(self) -> int:
        """One product and the shift."""
        return 2

    def output_shape(self, *inputs: Shape) -> Shape:
        """(n,), unchanged."""
        expected = (int(self.scale.shape[0]),)
        if inputs[0] != expected:
            raise InvalidInputError(
                f"a batch normalisation of {expected[0]} features was given values of shape {inputs[0]};"
                f" expected {expected}"
            )
        return inputs[0]

    def forward(self, *values: Any) -> Any:
        """s * x + b."""
        return values[0] * self.scale + self.shift

    def spread(self, *radii: Any) -> Any:
        """|s| r."""
        return radii[0] * abs(self.scale)

    def offset_size(self) -> Any:
        """|b|."""
        return abs(self.shift)

    def offset(self, rows: Any) -> Any:
        """c'b."""
        return rows @ self.shift

    def adjoint(self, rows: Any) -> tuple[Any, ...]:
        """c * s."""
        return (rows * self.scale,)


@dataclass(frozen=True, eq=False)
class Reshape(AbstractAffine):
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

    def offset_size(self) -> Any:
        """None: 0."""
        return 0.0

    def offset(self, rows: Any) -> Any:
        """None: 0."""
        return 0.0

    def adjoint(self, rows: Any) -> tuple[Any, ...]:
        """The rows in the source shape."""
        return (rows.reshape((*rows.shape[:2], *self.source)),)


@dataclass(frozen=True, eq=False)
class ReLU(AbstractPointwise):
    """y = max(x, 0)."""

    def forward(self, *values: Any) -> Any:
        """max(x, 0)."""
        return values[0].clip(0)
