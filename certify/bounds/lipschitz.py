"""Bounds from a Lipschitz constant: the product of the layers' spectral norms.

Known as LipNaive. ReLU does not increase distances, so the values z_k of every layer stay within |W_k|_2 ... |W_1|_2 R
of the values at the centre, R the radius of an l2 ball around the region. The norms are proved upper bounds (see
`certify.bounds.definite`), not results of a power iteration, which approaches a norm from below.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from certify.bounds.backward import Step
from certify.bounds.ball import balls_of, input_radius
from certify.bounds.base import AbstractMethod, Bounds
from certify.bounds.crown import sweep
from certify.bounds.dense import DenseNetwork
from certify.bounds.ibp import IBP
from certify.ir import Graph
from certify.properties import Margins
from certify.regions import AbstractRegion
from certify.rounding import down, gamma, up


@dataclass(frozen=True)
class LipNaive(AbstractMethod):
    """The change of every value bounded by the product of the norms below it, beside intervals."""

    @property
    def name(self) -> str:
        """What a user calls it."""
        return "lipschitz"

    def steps(self, graph: Graph, region: AbstractRegion, known: Bounds | None = None) -> Iterator[Bounds]:
        """One node more each time."""
        network = DenseNetwork.of(graph)
        balls = balls_of(network, region)

        def tighten(
            graph: Graph,
            region: AbstractRegion,
            steps: Mapping[int, Step],
            bounds: Bounds,
            k: int,
            positive: Bool[Tensor, "batch *shape"],
        ) -> Bounds:
            depth = network.depth_of(k)
            if depth is None or depth < 2:
                return bounds
            W = torch.as_tensor(network.hidden[depth - 1][0]).to(region.centre)
            middle, _, off = balls[depth - 1]
            length = torch.linalg.vector_norm(W, dim=1) * (1 + gamma(W.shape[1], W.dtype))
            reach = up(up(length * balls[depth - 2].radius[:, None]) + off)
            shape = bounds.lower[k].shape
            return bounds.tightened(k, down(middle - reach).reshape(shape), up(middle + reach).reshape(shape))

        yield from sweep(graph, region, IBP().steps(graph, region, known), tighten)

    def margins(
        self, graph: Graph, region: AbstractRegion, bounds: Bounds, margins: Margins
    ) -> Float[Tensor, "batch targets"]:
        """The margin at the centre, less its row's norm times the radius; never below the interval bound."""
        own = IBP().margins(graph, region, bounds, margins)
        network = DenseNetwork.of(graph)
        W, b = (torch.as_tensor(v).to(region.centre) for v in network.output)
        if network.hidden:
            middle, radius, _ = balls_of(network, region)[-1]
            value = middle.clamp(min=0)
        else:
            value, radius = region.centre, input_radius(region)
        rows = margins.rows @ W
        reach = torch.linalg.vector_norm(rows, dim=2) * radius[:, None]
        at_centre = (rows @ value.unsqueeze(2)).squeeze(2) + margins.rows @ b + margins.constants
        size = margins.rows.abs() @ b.abs() + margins.constants.abs()
        # Rows are rounded products, at the size of the values.
        most = value.abs() + radius[:, None]
        size = size + ((margins.rows.abs() @ W.abs()) @ most.unsqueeze(2)).squeeze(2) + reach
        return torch.maximum(own, down(at_centre - reach - gamma(sum(W.shape), W.dtype) * size))
