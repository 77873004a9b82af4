"""What every operation can do."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

Shape = tuple[int, ...]


def is_weight(value: Any) -> bool:
    """Whether it is an array of floating-point numbers, in numpy or torch."""
    return "float" in str(getattr(value, "dtype", ""))


class AbstractOp(ABC):
    """One operation of the graph."""

    @abstractmethod
    def output_shape(self, *inputs: Shape) -> Shape:
        """Shape of the result, without the batch axis; raises `InvalidInputError` where inputs do not fit."""

    @abstractmethod
    def forward(self, *values: Any) -> Any:
        """The values `(batch, *shape)` of the result."""

    @property
    def weights(self) -> dict[str, Any]:
        """The floating-point arrays it holds, by the name of their field."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}  # type: ignore[arg-type]
        return {name: value for name, value in values.items() if is_weight(value)}

    def map_arrays(self, convert: Callable[[Any], Any]) -> "AbstractOp":
        """The same operation with every floating-point array converted (to another precision, device or library)."""
        return replace(self, **{k: convert(v) for k, v in self.weights.items()})  # type: ignore[type-var]


class AbstractAffine(AbstractOp):
    """y = A x + b, of one or several inputs."""

    @property
    @abstractmethod
    def terms(self) -> int:
        """Products in the longest sum that an entry of A x + b or of A'c is (for the rounding error)."""

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


class WithoutOffset:
    """For affine operations with b = 0."""

    def offset_size(self) -> Any:
        """None: 0."""
        return 0.0

    def offset(self, rows: Any) -> Any:
        """None: 0."""
        return 0.0
