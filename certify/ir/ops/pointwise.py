"""Scalar functions applied to every entry."""

from dataclasses import dataclass
from typing import Any

from certify.ir.ops.base import AbstractPointwise


@dataclass(frozen=True, eq=False)
class ReLU(AbstractPointwise):
    """y = max(x, 0)."""

    def forward(self, *values: Any) -> Any:
        """max(x, 0)."""
        return values[0].clip(0)
