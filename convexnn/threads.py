"""How many threads a training problem deserves."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from convexnn.problem import Problem

# Entries of the largest activation matrix times columns of X, below which torch's threads wait for each
# other longer than they work; where other programs use the cores, by a factor of three to five.
_WORTH_THREADS = 2**27
_STARTS = 200


@contextmanager
def threads_for(problem: Problem) -> Iterator[None]:
    """One thread for small problems, the caller's setting for large ones and afterwards."""
    before = torch.get_num_threads()
    small = _STARTS * problem.X.numel() < _WORTH_THREADS
    if small and before > 1:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        if torch.get_num_threads() != before:
            torch.set_num_threads(before)
