"""The command line of benchmarks that are made of parts."""

import argparse
import time
from collections.abc import Callable, Collection, Mapping

import torch


def run_parts(description: str, parts: Mapping[str, Callable[[bool], None]], *, only: Collection[str] = ()) -> None:
    """All parts, or the one asked for; those in `only` run only when asked for. Each is told whether --quick."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", choices=parts)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    started = time.perf_counter()
    for name, part in parts.items():
        if arguments.only == name or (arguments.only is None and name not in only):
            part(arguments.quick)
    print(f"\n{time.perf_counter() - started:.0f} s in all")
