"""The ladder of bounding methods on one network: certified counts, mean worst margins, CPU seconds.

    python -m benchmarks.ladder [--eps 0.03 0.05 0.1] [--methods lp multi-neuron] [--quick]

Network, inputs and the stored table of auto_LiRPA as in `benchmarks.bounds`. Every method starts from nothing.
CPU seconds are process time of one run for all inputs (100, or the first 20 with --quick).
"""

import argparse
import time

import torch

from benchmarks.bounds import PEERS, bound, load
from certify.bounds import METHODS
from certify.ir.from_torch import graph_from_torch
from certify.properties import margins_of_labels
from certify.regions import LpBall


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--eps", type=float, nargs="+", default=[0.03, 0.05, 0.10])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--quick", action="store_true", help="the first 20 inputs only")
    options = parser.parse_args()
    torch.set_num_threads(1)
    network, inputs, labels = load()
    if options.quick:
        inputs, labels = inputs[:20], labels[:20]
    graph, margins = graph_from_torch(network), margins_of_labels(labels, 10)
    with torch.no_grad():
        right = network(inputs.float()).argmax(1) == labels
    print(f"{int(right.sum())} of {len(inputs)} labelled rightly; 1 thread, float64")
    print(f"{'eps':>5} {'method':>12} | {'certified':>9} {'margin':>9} {'CPU s':>9} | {'ratio to the table':>18}")
    for eps in options.eps:
        region = LpBall(inputs, eps, "linf", torch.zeros_like(inputs), torch.ones_like(inputs))
        for name in options.methods:
            start = time.process_time()
            lower = bound(METHODS[name], graph, region, margins).amin(1)
            seconds = time.process_time() - start
            peer = PEERS.get((eps, name))
            known = peer is not None and peer.seconds is not None and not options.quick
            ratio = f"{seconds / peer.seconds:.2f}" if known else "-"
            counted = int(((lower > 0) & right).sum())
            mean = float(lower.mean())
            print(f"{eps:5.2f} {name:>12} | {counted:9d} {mean:9.4f} {seconds:9.4f} | {ratio:>18}", flush=True)


if __name__ == "__main__":
    main()
