"""Scalar functions applied to every entry."""

from dataclasses import dataclass
from typing import Any

from certify.ir.ops.base import AbstractPointwise
from certify.ir.ops.library import sigmoid, tanh


@dataclass(frozen=True, eq=False)
class ReLU(AbstractPointwise):
    """y = max(x, 0)."""

    def forward(self, *values: Any) -> Any:
        """max(x, 0)."""
        return values[0].clip(0)


@dataclass(frozen=True, eq=False)
class Sigmoid(AbstractPointwise):
    """y = 1 / (1 + exp(-x))."""

    def forward(self, *values: Any) -> Any:
        """1 / (1 + exp(-x))."""
        return sigmoid(values[0])


@dataclass(frozen=True, eq=False)
class Tanh(AbstractPointwise):
    """y = tanh(x)."""

    def forward(self, *values: Any) -> Any:
        """tanh(x)."""
        return tanh(values[0])
