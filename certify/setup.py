"""From what a user passes to a checked problem."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from certify.errors import InvalidInputError, InvalidTypeError
from certify.inputs import as_domain, as_radius
from certify.ir.from_torch import graph_from_torch
from certify.ir.graph import Graph
from certify.ir.module import GraphModule, precision_of
from certify.ir.ops import Shape
from certify.properties import margins_of_labels
from certify.regions import NORMS, LpBall
from certify.regions.spatial import Deformation, as_images
from certify.search import PLANS, Plan, Problem


def plan_of(method: Any) -> Plan:
    """A plan by name, or the one given."""
    if isinstance(method, Plan):
        return method
    if not isinstance(method, str) or method not in PLANS:
        raise InvalidInputError(f"method is {method!r}; expected one of {', '.join(PLANS)}, or a Plan")
    return PLANS[method]


def _graph_of(network: nn.Module, shape: Shape) -> Graph:
    return (
        network.graph_for(shape) if isinstance(network, GraphModule) else graph_from_torch(network, input_shape=shape)
    )


@dataclass(frozen=True, eq=False)
class Question:
    """What is asked about every input: does it keep its label in a ball of this kind?

    Attributes:
        network: the module itself.
        graph: what it computes.
        dtype, device: its precision, and where it is.
        eps, norm: the ball.
        domain: limits of valid inputs, flat.
        deformation: vector fields in the place of the ball, whose eps is 0 then.
    """

    network: nn.Module
    graph: Graph
    dtype: torch.dtype
    device: torch.device
    eps: float
    norm: str
    domain: tuple[Tensor, Tensor] | None
    deformation: Deformation | None = None

    @staticmethod
    def of(
        network: nn.Module,
        shape: Shape,
        *,
        eps: Any,
        norm: str = "linf",
        domain: Any = None,
        deformation: Deformation | None = None,
    ) -> "Question":
        """From what a user passes, checked: either a radius or a deformation."""
        eps = _radius_of(eps, norm, deformation)
        if norm not in NORMS:
            raise InvalidInputError(f"norm is {norm!r}; expected one of {', '.join(NORMS)}")
        radius = as_radius(eps)
        if not isinstance(network, nn.Module):
            raise InvalidTypeError(f"the network is a {type(network).__name__}; expected a torch.nn.Module")
        graph = _graph_of(network, shape)
        if len(graph.output_shape) != 1:
            raise InvalidInputError(
                f"the network's output has shape {graph.output_shape}; expected one score for each class"
            )
        return Question(network, graph, *precision_of(network), radius, norm, as_domain(domain, shape), deformation)

    def problem(self, inputs: Float[Tensor, "batch *shape"], labels: Int[Tensor, " batch"]) -> Problem:
        """The balls around some inputs, and the margins of their labels, checked.

        The inputs are rounded to the network's own precision first, as the network itself would read them.
        """
        if self.deformation is not None:
            return self._spatial(self.deformation, inputs.to(self.device), labels.to(self.device))
        region = _balls(inputs.flatten(1).to(self.device), self.dtype, self.eps, self.norm, self.domain)
        margins = margins_of_labels(labels.to(self.device), self.graph.output_shape[0])
        return Problem(self.network, self.graph, region, margins, self.dtype)

    def _spatial(
        self, deformation: Deformation, inputs: Float[Tensor, "batch *shape"], labels: Int[Tensor, " batch"]
    ) -> Problem:
        """The deformed images of some inputs; a deformed image stays in the domain of its image."""
        flat = inputs.flatten(1)
        _balls(flat, self.dtype, 0.0, "linf", self.domain)  # raises where an input is outside
        read = flat.to(self.dtype).double()
        images = as_images(read.reshape(inputs.shape))
        margins = margins_of_labels(labels, self.graph.output_shape[0])
        flows, canvas = deformation.flows(images), deformation.canvas(images)
        return Problem(self.network, self.graph, flows, margins, self.dtype, canvas)


def _radius_of(eps: Any, norm: str, deformation: Deformation | None) -> Any:
    if deformation is None:
        if eps is None:
            raise InvalidInputError(
                "neither eps nor region is given; expected a radius eps, or a region of vector fields"
            )
        return eps
    if eps is not None or norm != "linf":
        raise InvalidInputError(
            f"eps is {eps!r} and norm is {norm!r} beside a region of vector fields; expected one or the other: the"
            " region has a norm of its own"
        )
    return 0.0


def _balls(
    points: Float[Tensor, "batch n"],
    dtype: torch.dtype,
    eps: float,
    norm: str,
    domain: tuple[Tensor, Tensor] | None,
) -> LpBall:
    read = points.to(dtype).double()
    if domain is None:
        return LpBall(read, eps, norm)
    lower, upper = (limit.to(points.device).expand_as(points) for limit in domain)
    LpBall(points, eps, norm, lower, upper)  # raises where an input is outside
    return LpBall(read.clamp(lower, upper), eps, norm, lower, upper)
