"""Matrix products and scalings."""

from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

from jaxtyping import Float

from certify.errors import InvalidInputError
from certify.ir.ops.base import AbstractAffine, Shape


def row_sums(values: Any) -> Any:
    """The sum of each row `(batch or 1, rows, *shape)`."""
    return values.reshape((*values.shape[:2], -1)).sum(2)


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
        """One product per input and the bias; in the transpose one per output."""
        return max(int(n) for n in self.weight.shape) + 1

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
class AxisLinear(AbstractAffine):
    """y = W x + b along the last axis of values of any shape."""

    weight: Float[Any, "out in"]
    bias: Float[Any, " out"]

    @property
    def terms(self) -> int:
        """One product per input and the bias; in the transpose one per output."""
        return max(int(n) for n in self.weight.shape) + 1

    def output_shape(self, *inputs: Shape) -> Shape:
        """(..., out), of (..., in)."""
        fan_out, fan_in = (int(n) for n in self.weight.shape)
        if not inputs[0] or inputs[0][-1] != fan_in:
            raise InvalidInputError(
                f"a linear layer with {fan_in} inputs was given values of shape {inputs[0]};"
                f" expected a last axis of {fan_in}"
            )
        return (*inputs[0][:-1], fan_out)

    def forward(self, *values: Any) -> Any:
        """W x + b."""
        return values[0] @ self.weight.T + self.bias

    def spread(self, *radii: Any) -> Any:
        """|W| r."""
        return radii[0] @ abs(self.weight).T

    def offset_size(self) -> Any:
        """|b|."""
        return abs(self.bias)

    def offset(self, rows: Any) -> Any:
        """c'b."""
        return row_sums(rows * self.bias)

    def adjoint(self, rows: Any) -> tuple[Any, ...]:
        """c'W."""
        return (rows @ self.weight,)


@dataclass(frozen=True, eq=False)
class Scale(AbstractAffine):
    """y = s * x + b, entry by entry; s and b have the rank of the values, with axes of length 1 repeated.

    A constant that is added or multiplied, or BatchNorm in eval mode where no other layer can absorb it.
    """

    scale: Float[Any, "..."]
    shift: Float[Any, "..."]

    @property
    def terms(self) -> int:
        """One product and the shift."""
        return 2

    def output_shape(self, *inputs: Shape) -> Shape:
        """The shape of the input, which s and b have to be broadcastable to."""
        for array in (self.scale, self.shift):
            fits = len(array.shape) == len(inputs[0])
            if not fits or any(a not in (1, n) for a, n in zip(array.shape, inputs[0], strict=True)):
                raise InvalidInputError(
                    f"a scaling of shape {tuple(array.shape)} was given values of shape {inputs[0]};"
                    " expected the same shape, up to axes of length 1"
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
        if prod(self.shift.shape) == prod(rows.shape[2:]):
            return rows.reshape((*rows.shape[:2], -1)) @ self.shift.reshape(-1)
        return row_sums(rows * self.shift)

    def adjoint(self, rows: Any) -> tuple[Any, ...]:
        """c * s."""
        return (rows * self.scale,)
