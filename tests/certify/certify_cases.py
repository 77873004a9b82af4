"""The members that the laws are checked on. A new method, operation, region or layer needs a line here."""

from itertools import pairwise

import torch
from torch import nn

from certify.bounds import CROWN, IBP, SDP, SDPCROWN, AlphaCROWN, DeepPoly, LipNaive, MultiNeuron, TriangleLP
from certify.ir.from_torch import graph_from_torch
from certify.ir.graph import Graph
from certify.ir.ops import (
    AxisLinear,
    Concat,
    Conv,
    ConvTranspose,
    Input,
    Linear,
    Maximum,
    ReLU,
    Reshape,
    Scale,
    Select,
    Sigmoid,
    Sum,
    Tanh,
)
from certify.regions import Box, LpBall
from certify.regions.base import AbstractRegion


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randomised(net: nn.Module, seed: int) -> nn.Module:
    """Weights of unit gain, biases and BatchNorm statistics that matter, in eval mode."""
    g = seeded(seed)
    with torch.no_grad():
        for layer in net.modules():
            if isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
                inputs = layer.weight[0].numel()
                layer.weight.copy_(torch.randn(layer.weight.shape, generator=g) / inputs**0.5)
                if layer.bias is not None:
                    layer.bias.copy_(0.3 * torch.randn(layer.bias.shape, generator=g))
            elif isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
                layer.running_mean.copy_(0.5 * torch.randn(layer.running_mean.shape, generator=g))
                layer.running_var.copy_(0.5 + torch.rand(layer.running_var.shape, generator=g))
                if layer.affine:
                    layer.weight.copy_(torch.randn(layer.weight.shape, generator=g))
                    layer.bias.copy_(torch.randn(layer.bias.shape, generator=g))
    return net.eval()


def mlp(*sizes: int, bias: bool = True) -> nn.Sequential:
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(sizes):
        layers += [nn.Linear(fan_in, fan_out, bias=bias), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


# name -> (network, shape of one input)
NETWORKS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "two-layer": (randomised(mlp(3, 8, 3), 0), (3,)),
    "deep": (randomised(mlp(4, 10, 9, 8, 7, 3), 1), (4,)),
    "no-bias": (randomised(mlp(3, 6, 6, 2, bias=False), 2), (3,)),
    "one-output": (randomised(mlp(5, 12, 1), 3), (5,)),
    "linear": (randomised(nn.Sequential(nn.Linear(4, 3)), 4), (4,)),
    "relu-first": (
        randomised(nn.Sequential(nn.ReLU(), nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), 5),
        (3,),
    ),
    "relu-last": (randomised(nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 3), nn.ReLU()), 6), (3,)),
    "batch-norm": (
        randomised(
            nn.Sequential(
                nn.BatchNorm1d(4),
                nn.Linear(4, 7),
                nn.BatchNorm1d(7),
                nn.ReLU(),
                nn.BatchNorm1d(7, affine=False),
                nn.ReLU(),
                nn.Dropout(0.5),
                nn.Linear(7, 6),
                nn.Linear(6, 5),
                nn.ReLU(),
                nn.BatchNorm1d(5),
                nn.Linear(5, 3),
                nn.Identity(),
            ),
            7,
        ),
        (4,),
    ),
    "image": (
        randomised(nn.Sequential(nn.Flatten(), nn.Sequential(nn.Linear(6, 8), nn.ReLU()), nn.Linear(8, 3)), 8),
        (1, 2, 3),
    ),
    "float64": (randomised(mlp(3, 8, 8, 3).double(), 9), (3,)),
}

METHODS = [IBP(), CROWN(hidden=False), CROWN(), AlphaCROWN()]  # loosest first
SLOPES = [DeepPoly(0), DeepPoly(1)]
PROGRAMS = [TriangleLP(), MultiNeuron()]  # loosest first; slower: test_linear_programs.py
CHAINS = [LipNaive(), SDPCROWN(boxes=False), SDPCROWN(), SDP()]  # of chains only: test_ball.py, test_sdp.py
OPERATIONS = [
    Input,
    AxisLinear,
    Concat,
    Conv,
    ConvTranspose,
    Linear,
    Maximum,
    ReLU,
    Reshape,
    Scale,
    Select,
    Sigmoid,
    Sum,
    Tanh,
]


def graph_of(name: str) -> Graph:
    network, shape = NETWORKS[name]
    return graph_from_torch(network, input_shape=shape)


def regions_around(centre: torch.Tensor, eps: float) -> dict[str, AbstractRegion]:
    """Every kind of region, around (batch, n) centres in [0, 1]."""
    zero, one = torch.zeros_like(centre), torch.ones_like(centre)
    return {
        "box": Box(centre - eps, centre + 2 * eps),
        "linf": LpBall(centre, eps, "linf"),
        "l2": LpBall(centre, eps, "l2"),
        "l1": LpBall(centre, eps, "l1"),
        "linf in domain": LpBall(centre, eps, "linf", zero, one),
        "l2 in domain": LpBall(centre, eps, "l2", zero, one),
        "l1 in domain": LpBall(centre, eps, "l1", zero, one),
        "point": LpBall(centre, 0.0, "l2"),
    }


REGIONS = list(regions_around(torch.zeros(1, 1, dtype=torch.float64), 1.0))


def centres(n: int, batch: int, seed: int) -> torch.Tensor:
    """Some in the middle of [0, 1], some on its walls."""
    return (1.4 * torch.rand(batch, n, generator=seeded(seed), dtype=torch.float64) - 0.2).clamp(0, 1)
