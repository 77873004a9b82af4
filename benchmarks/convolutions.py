"""Time and peak memory of IBP and CROWN on a convolutional network of 50,000 activations.

    python -m benchmarks.convolutions [--eps 0.001 0.01 0.05] [--threads 1]

Five convolutions with random weights (torch's defaults, seed 0) on one random image of 3 x 32 x 32, domain [0, 1],
l_inf; float64, rounded down. Seconds are process time; memory is the peak of the whole process so far, torch
included.
"""

import argparse
import resource
import time

import torch
from torch import nn

from certify.bounds import CROWN, IBP
from certify.ir.from_torch import graph_from_torch
from certify.properties import margins_of_labels
from certify.regions import LpBall

SHAPE = (3, 32, 32)


def network() -> nn.Sequential:
    """16,384 + 16,384 + 8,192 + 8,192 + 1,024 activations."""
    torch.manual_seed(0)
    channels, strides = (3, 16, 16, 32, 32, 16), (1, 1, 2, 1, 2)
    layers: list[nn.Module] = []
    for fan_in, fan_out, stride in zip(channels, channels[1:], strides, strict=False):
        layers += [nn.Conv2d(fan_in, fan_out, 3, stride=stride, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(1024, 10)).eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--eps", type=float, nargs="+", default=[0.001, 0.01, 0.05])
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    graph = graph_from_torch(network(), input_shape=SHAPE)
    centre = torch.rand((1, 3072), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    margins = margins_of_labels(torch.tensor([0]), 10)
    print(f"{'eps':>6} {'method':>10} | {'undecided':>9} {'margin':>10} {'CPU s':>7} {'GiB':>6}")
    for eps in options.eps:
        region = LpBall(centre, eps, "linf", torch.zeros_like(centre), torch.ones_like(centre))
        for method in (IBP(), CROWN(hidden=False), CROWN()):
            start = time.process_time()
            bounds = method(graph, region)
            margin = float(method.margins(graph, region, bounds, margins).min())
            seconds = time.process_time() - start
            unstable = sum(int(((bounds.lower[k] < 0) & (bounds.upper[k] > 0)).sum()) for k in graph.relaxed)
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
            print(f"{eps:6.3f} {method.name:>10} | {unstable:9d} {margin:10.4f} {seconds:7.1f} {peak:6.2f}", flush=True)


if __name__ == "__main__":
    main()
