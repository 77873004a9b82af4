"""How many threads the linear algebra of a problem deserves."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

# Multiplications in the largest product below which threads wait for each other longer than they work;
# on a machine with other load, by an order of magnitude.
_WORTH_THREADS = 2**26


@contextmanager
def threads_for(multiplications: int) -> Iterator[None]:
    """One thread for small products, the caller's setting for large ones and afterwards."""
    before = torch.get_num_threads()
    if multiplications < _WORTH_THREADS and before > 1:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        if torch.get_num_threads() != before:
            torch.set_num_threads(before)
