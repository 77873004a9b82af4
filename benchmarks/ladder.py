"""The ladder on one network, from intervals to exact: certified counts, mean worst margins, CPU seconds.

    python -m benchmarks.ladder [--eps 0.03 0.05 0.1] [--rungs lp multi-neuron milp] [--limit 100] [--timeout 60]

Network, inputs and the stored table of auto_LiRPA as in `benchmarks.bounds`. Every bounding method starts from nothing
and bounds all nine margins of all inputs, in one call. The exact rungs, "milp" and "complete", are one call of
`certify.verify` for every input that is labelled rightly, attack included, with a time limit each: an attacked or wrong
input has no margin. The multi-neuron rung takes 3 to 6 CPU seconds an input at eps 0.1, all others together a tenth.
CPU seconds are process time of one thread for all inputs.
"""

import argparse
import time
from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import certify
from benchmarks.bounds import PEERS, bound, load
from certify.bounds import METHODS
from certify.ir.from_torch import graph_from_torch
from certify.properties import margins_of_labels
from certify.regions import LpBall

EXACT = ("milp", "complete")
# certified by alpha-CROWN of the stored table at eps 0.1, to be beaten by everything above it
TO_BEAT, TO_DECIDE = 8, 95


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    eps: float
    rung: str
    certified: int
    seconds: float
    margin: float | None = None
    decided: int | None = None
    longest: float | None = None

    def __str__(self) -> str:
        margin = "-" if self.margin is None else f"{self.margin:.4f}"
        decided = "-" if self.decided is None else str(self.decided)
        longest = "-" if self.longest is None else f"{self.longest:.2f}"
        return (
            f"{self.eps:5.2f} {self.rung:>12} | {self.certified:9d} {decided:>8} {margin:>9}"
            f" {self.seconds:9.4f} {longest:>8} | {self._ratio():>8}"
        )

    def _ratio(self) -> str:
        peer = PEERS.get((self.eps, self.rung))
        return "-" if peer is None or peer.seconds is None else f"{self.seconds / peer.seconds:.2f}"


def bounded(name: str, eps: float, network: nn.Module, inputs: Tensor, labels: Tensor, right: Tensor) -> Row:
    graph, margins = graph_from_torch(network), margins_of_labels(labels, 10)
    region = LpBall(inputs, eps, "linf", torch.zeros_like(inputs), torch.ones_like(inputs))
    start = time.process_time()
    lower = bound(METHODS[name], graph, region, margins).amin(1)
    seconds = time.process_time() - start
    return Row(eps, name, int(((lower > 0) & right).sum()), seconds, float(lower.mean()))


def decided(
    name: str, eps: float, network: nn.Module, inputs: Tensor, labels: Tensor, right: Tensor, timeout: float
) -> Row:
    counts: Counter[str] = Counter()
    seconds = []
    for k in right.nonzero().flatten().tolist():
        start = time.process_time()
        label = int(labels[k])
        verdict = certify.verify(network, inputs[k], label=label, eps=eps, domain=(0, 1), method=name, timeout=timeout)
        seconds.append(time.process_time() - start)
        counts[verdict.status.name] += 1
    done = counts["VERIFIED"] + counts["FALSIFIED"]
    return Row(eps, name, counts["VERIFIED"], sum(seconds), decided=done, longest=max(seconds))


def aims(row: Row, complete_set: bool) -> list[str]:
    """What the project wants of a rung, on all inputs at eps 0.1."""
    if row.eps != 0.1 or not complete_set or row.rung not in ("lp", "multi-neuron", *EXACT):
        return []
    found = [f"more than {TO_BEAT} certified: {'met' if row.certified > TO_BEAT else 'missed'}"]
    if row.rung == "complete":
        assert row.decided is not None
        found.append(f"at least {TO_DECIDE} decided: {'met' if row.decided >= TO_DECIDE else 'missed'}")
    return found


def main() -> None:
    names = [*METHODS, *EXACT]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--eps", type=float, nargs="+", default=[0.03, 0.05, 0.10])
    parser.add_argument("--rungs", nargs="+", default=names, choices=names)
    parser.add_argument("--first", type=int, default=0, help="the first input, for runs in pieces")
    parser.add_argument("--limit", type=int, default=100, help="so many inputs only")
    parser.add_argument("--timeout", type=float, default=60.0, help="wall seconds for each input of an exact rung")
    options = parser.parse_args()
    torch.set_num_threads(1)
    network, inputs, labels = load()
    everything = options.first == 0 and options.limit >= len(inputs)
    chosen = slice(options.first, options.first + options.limit)
    inputs, labels = inputs[chosen], labels[chosen]
    with torch.no_grad():
        right = network(inputs.float()).argmax(1) == labels
    print(f"{int(right.sum())} of {len(inputs)} labelled rightly; 1 thread, float64")
    head = f"{'eps':>5} {'rung':>12} | {'certified':>9} {'decided':>8} {'margin':>9} {'CPU s':>9} {'longest':>8}"
    print(f"{head} | to table")
    notes = []
    for eps in options.eps:
        for name in options.rungs:
            if name in EXACT:
                row = decided(name, eps, network, inputs, labels, right, options.timeout)
            else:
                row = bounded(name, eps, network, inputs, labels, right)
            print(row, flush=True)
            notes += [f"eps {eps:g}, {name}: {note}" for note in aims(row, everything)]
    print("\n".join(["", *notes]) if notes else "")


if __name__ == "__main__":
    main()
