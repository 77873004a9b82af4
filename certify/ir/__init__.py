"""Networks as graphs of operations, and where they come from."""

from certify.ir.graph import Graph, Node
from certify.ir.simplify import simplify

__all__ = ["Graph", "Node", "simplify"]
