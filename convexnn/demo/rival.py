"""Adam on the same objective, for comparison: 200 neurons, full batch, cosine step sizes."""

import math
import time
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from convexnn.demo.cases import Case

WIDTH = 200
FIRST_STEP = 3e-2
RECORD_EVERY = 20


@dataclass(frozen=True)
class AdamRun:
    """What Adam reached and when."""

    network: torch.nn.Sequential
    width: int
    seconds: float
    trace: tuple[tuple[float, float], ...]  # (seconds, best objective so far)


def train_adam(case: Case, seed: int = 0) -> AdamRun:
    """Minimise the case's objective by Adam, in single precision as is usual.

    On one thread, as global training does for problems of this size: two only wait for each other.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _descend(case, seed)
    finally:
        torch.set_num_threads(threads)


def _descend(case: Case, seed: int) -> AdamRun:
    network = _network(case, seed)
    X = torch.tensor(case.X, dtype=torch.float32)
    y = torch.tensor(case.y)
    optimiser = torch.optim.Adam(network.parameters(), lr=FIRST_STEP)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, case.adam_steps)
    trace: list[tuple[float, float]] = []
    start = time.perf_counter()
    for step in range(case.adam_steps):
        optimiser.zero_grad()
        value = objective(network, X, y, case)
        value.backward()
        optimiser.step()
        schedule.step()
        if step % RECORD_EVERY == 0 or step == case.adam_steps - 1:
            best = min(float(value.detach()), trace[-1][1] if trace else math.inf)
            trace.append((time.perf_counter() - start, best))
    return AdamRun(network.double(), WIDTH, trace[-1][0], tuple(trace))


def objective(network: torch.nn.Sequential, X: Tensor, y: Tensor, case: Case) -> Tensor:
    """J of the network: mean loss plus half the weight decay times the squared weights, output bias free."""
    outputs = network(X)
    if case.loss == "logistic":
        loss = functional.binary_cross_entropy_with_logits(outputs[:, 0], y.to(outputs.dtype))
    else:
        loss = functional.cross_entropy(outputs, y)
    *penalised, _output_bias = network.parameters()
    return loss + case.weight_decay / 2 * torch.stack([(p**2).sum() for p in penalised]).sum()


def _network(case: Case, seed: int) -> torch.nn.Sequential:
    outputs = 1 if len(case.classes) == 2 else len(case.classes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return torch.nn.Sequential(
            torch.nn.Linear(case.X.shape[1], WIDTH), torch.nn.ReLU(), torch.nn.Linear(WIDTH, outputs)
        )
