"""Certified counts, margins and CPU seconds of every bounding method, beside a stored table of auto_LiRPA.

    python -m benchmarks.bounds [--threads 1] [--repeats 20]

The network (digits, 64-100-100-10, ReLU) and its 100 test inputs are read from
`nets/digits_64_100_100_10.npz` under `$CONVEXNN_SHARED` (default: `../shared` beside the repository). Domain
[0, 1], l_inf. The table was measured with auto_LiRPA 0.7.1 (float32, two threads): it is not on PyPI, and the
0.3 of 2022 that is does not import with a current torch. The bounds here are float64 and rounded down.
CPU seconds are process time, the least of the repeats, for all 100 inputs and nine margins each.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.data import shared_file
from certify.bounds import METHODS
from certify.bounds.base import AbstractMethod, Bounds, last
from certify.ir import Graph
from certify.ir.from_torch import graph_from_torch
from certify.properties import Margins, margins_of_labels
from certify.regions import AbstractRegion, LpBall

NETWORK = "nets/digits_64_100_100_10.npz"


@dataclass(frozen=True)
class Peer:
    """One cell of the stored table; None where it has no figure."""

    certified: int
    margin: float | None
    seconds: float | None


PEERS = {
    (0.03, "ibp"): Peer(1, None, 0.003),
    (0.03, "crown-ibp"): Peer(90, None, None),
    (0.03, "crown"): Peer(91, 5.1107, 0.027),
    (0.03, "alpha-crown"): Peer(91, 5.1268, 3.3),
    (0.05, "ibp"): Peer(0, None, 0.003),
    (0.05, "crown-ibp"): Peer(45, None, None),
    (0.05, "crown"): Peer(83, 2.5751, 0.027),
    (0.05, "alpha-crown"): Peer(83, 2.6279, 3.3),
    (0.10, "ibp"): Peer(0, None, 0.003),
    (0.10, "crown-ibp"): Peer(0, None, None),
    (0.10, "crown"): Peer(6, -4.8698, 0.029),
    (0.10, "alpha-crown"): Peer(8, -4.5411, 2.8),
}


def load() -> tuple[nn.Module, Tensor, Tensor]:
    """The network, its inputs and their labels; exits with a message where the file is absent."""
    data = np.load(shared_file(NETWORK))
    network = nn.Sequential(nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 100), nn.ReLU(), nn.Linear(100, 10)).eval()
    weights = {k.replace("_", "."): torch.tensor(data[k]) for k in data if k[0].isdigit()}
    network.load_state_dict(weights)
    return network, torch.tensor(data["X"]).double(), torch.tensor(data["y"])


def bound(method: AbstractMethod, graph: Graph, region: AbstractRegion, margins: Margins) -> Tensor:
    """The lower bounds of all margins, from nothing."""
    with torch.no_grad():
        hidden = last(islice(method.steps(graph, region), graph.output), Bounds())
        return method.margins(graph, region, hidden, margins)


def cpu_seconds(task: Callable[[], object], repeats: int) -> float:
    """The least process time of the repeats."""
    best = float("inf")
    for _ in range(repeats):
        start = time.process_time()
        task()
        best = min(best, time.process_time() - start)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=20)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    network, inputs, labels = load()
    graph, margins = graph_from_torch(network), margins_of_labels(labels, 10)
    with torch.no_grad():
        right = network(inputs.float()).argmax(1) == labels
    print(f"{int(right.sum())} of {len(inputs)} labelled rightly; {options.threads} thread(s), float64")
    head = f"{'eps':>5} {'method':>11} | {'certified':>9} {'margin':>9} {'CPU s':>8}"
    print(f"{head} | table: the same three | CPU ratio")
    for (eps, name), peer in PEERS.items():
        region = LpBall(inputs, eps, "linf", torch.zeros_like(inputs), torch.ones_like(inputs))
        method = METHODS[name]
        lower = bound(method, graph, region, margins).amin(1)
        seconds = cpu_seconds(lambda m=method, r=region: bound(m, graph, r, margins), options.repeats)
        certified = int(((lower > 0) & right).sum())
        told = f"{peer.certified:3d} {_or_dash(peer.margin, '.4f'):>8} {_or_dash(peer.seconds, '.3f'):>6}"
        ratio = _or_dash(peer.seconds and seconds / peer.seconds, ".2f")
        own = f"{eps:5.2f} {name:>11} | {certified:9d} {float(lower.mean()):9.4f} {seconds:8.4f}"
        print(f"{own} | {told} | {ratio}")


def _or_dash(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


if __name__ == "__main__":
    main()
