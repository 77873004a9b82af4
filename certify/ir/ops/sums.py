"""Sums of several values."""

from dataclasses import dataclass
from typing import Any

from certify.errors import InvalidInputError
from certify.ir.ops.base import AbstractAffine, Shape, WithoutOffset


@dataclass(frozen=True, eq=False)
class Sum(WithoutOffset, AbstractAffine):
    """y = c_1 x_1 + ... + c_k x_k of values of one shape, with numbers c."""

    coefficients: tuple[float, ...]

    @property
    def terms(self) -> int:
        """One product per input."""
        return len(self.coefficients)

    def output_shape(self, *inputs: Shape) -> Shape:
        """The common shape."""
        if len(inputs) != len(self.coefficients) or len(set(inputs)) != 1:
            raise InvalidInputError(
                f"a sum of {len(self.coefficients)} values was given shapes {inputs}; expected that many, all equal"
            )
        return inputs[0]

    def forward(self, *values: Any) -> Any:
        """The weighted sum."""
        return _combined(self.coefficients, values)

    def spread(self, *radii: Any) -> Any:
        """The sum weighted by |c|."""
        return _combined(tuple(map(abs, self.coefficients)), radii)

    def adjoint(self, rows: Any) -> tuple[Any, ...]:
        """The rows, weighted."""
        return tuple(rows if c == 1.0 else c * rows for c in self.coefficients)


@dataclass(frozen=True, eq=False)
class Maximum(WithoutOffset, AbstractAffine):
    """y = x + r with r = relu(z - x), which is max(x, z).

    It is affine in what it reads, x and r, so that every method that knows ReLU knows maxima. Intervals alone
    would forget that x and r move against each other: the node's hints, x and z, repair that.
    """

    @property
    def terms(self) -> int:
        """Two."""
        return 2

    def output_shape(self, *inputs: Shape) -> Shape:
        """The common shape."""
        return Sum((1.0, 1.0)).output_shape(*inputs)

    def forward(self, *values: Any) -> Any:
        """x + r."""
        return values[0] + values[1]

    def spread(self, *radii: Any) -> Any:
        """The sum."""
        return radii[0] + radii[1]

    def adjoint(self, rows: Any) -> tuple[Any, ...]:
        """The rows, twice."""
        return (rows, rows)


def _combined(coefficients: tuple[float, ...], values: tuple[Any, ...]) -> Any:
    total = coefficients[0] * values[0]
    for c, value in zip(coefficients[1:], values[1:], strict=True):
        total = total + c * value
    return total
