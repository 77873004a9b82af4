"""Complete search on the digits network: how many images it decides, and in what time.

    python -m benchmarks.complete [--eps 0.1] [--timeout 60] [--limit 100]

Network and images as in `benchmarks.bounds`: digits, 64-100-100-10, l_inf, domain [0, 1]. Every image that is
labelled rightly is one call of `certify.verify(method="complete")`, attacks included. Seconds are CPU seconds of
one thread, from call to verdict.
"""

import argparse
import time
from collections import Counter
from statistics import median

import torch

import certify
from benchmarks.bounds import load


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--eps", type=float, default=0.1)
    parser.add_argument("--timeout", type=float, default=60.0)
    parser.add_argument("--limit", type=int, default=100)
    options = parser.parse_args()
    torch.set_num_threads(1)
    network, inputs, labels = load()
    counts: Counter[tuple[str, str]] = Counter()
    seconds: list[float] = []
    for x, label in zip(inputs[: options.limit], labels[: options.limit].tolist(), strict=True):
        if int(network(x[None].float()).argmax()) != label:
            continue
        start = time.process_time()
        verdict = certify.verify(
            network, x, label=label, eps=options.eps, domain=(0, 1), method="complete", timeout=options.timeout
        )
        seconds.append(time.process_time() - start)
        counts[verdict.status.name, verdict.method] += 1
    decided = sum(n for (status, _), n in counts.items() if certify.Status[status].decided)
    print(f"eps {options.eps:g}, at most {options.timeout:g} s each: {decided} of {len(seconds)} decided")
    for (status, stage), count in sorted(counts.items()):
        print(f"  {status:>9} by {stage:<12} {count:4d}")
    print(f"CPU seconds: {sum(seconds):.1f} in all, median {median(seconds):.3f}, most {max(seconds):.2f}")


if __name__ == "__main__":
    main()
