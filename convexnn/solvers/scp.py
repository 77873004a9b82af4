"""Sampled convex programs (SCP): random neurons whose first layer stays fixed (Bai, Gautam & Sojoudi 2022).

min over a, b of L(sum_j a_j (X u_j)_+ + b) + weight_decay * sum_j ||a_j||, u_j uniform on the sphere:
unconstrained, a lasso for the squared loss and one output.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from convexnn.duality import DualPoint, dual_point
from convexnn.neurons import Neurons
from convexnn.problem import Problem
from convexnn.result import Status, TraceEntry, relative_gap
from convexnn.solvers.amplitudes import group_amplitudes, signed_amplitudes
from convexnn.solvers.answer import ProgramLimits

_FIRST = 50


@dataclass(frozen=True)
class SCPAnswer:
    """A network with first layers among the given ones, and a bound for all such networks."""

    neurons: Neurons
    objective: float
    dual: DualPoint
    status: Status
    n_steps: int
    trace: tuple[TraceEntry, ...] = ()


def sample_sphere(d: int, count: int, generator: torch.Generator) -> Float[Tensor, "N d"]:
    """Uniform directions."""
    U = torch.randn((count, d), generator=generator, dtype=torch.float64)
    return U / U.norm(dim=1, keepdim=True)


@dataclass
class _Run:
    problem: Problem
    U: Float[Tensor, "N d"]
    features: Float[Tensor, "n N"]
    A: Float[Tensor, "N K"]
    bias: Float[Tensor, " K"]
    objective: float = float("inf")
    dual: DualPoint | None = None
    best: tuple[Tensor, Tensor] | None = None

    def gap(self) -> float:
        return relative_gap(self.objective, self.dual.bound, self.problem.floor()) if self.dual else 1.0


def solve_scp(
    problem: Problem,
    U: Float[Tensor, "N d"],
    limits: ProgramLimits,
    *,
    report: Callable[[TraceEntry], None] | None = None,
) -> SCPAnswer:
    """Amplitudes of the neurons U, on a growing working set of the most correlated ones."""
    started, features = time.perf_counter(), torch.relu(problem.X @ U.T)
    run = _Run(problem, U, features, features.new_zeros((len(U), problem.loss.n_outputs)), problem.constant())
    trace: list[TraceEntry] = []
    while True:
        norms = _judge(run)
        seconds = time.perf_counter() - started
        trace.append(TraceEntry(seconds, run.objective, _bound(run), int((run.A.norm(dim=1) > 0).sum())))
        if report is not None:
            report(trace[-1])
        status = limits.status(run.gap(), seconds, len(trace))
        if (
            status is None
            and len(trace) > 8
            and trace[-8].objective == run.objective
            and trace[-8].bound == _bound(run)
        ):
            status = Status.STALLED
        if status is not None:
            break
        try:
            _improve(run, _working_set(run, norms))
        except KeyboardInterrupt:
            status = Status.INTERRUPTED
            break
    assert run.best is not None
    assert run.dual is not None
    neurons = Neurons(U, *run.best).balanced()
    return SCPAnswer(neurons, run.objective, run.dual, status, len(trace), tuple(trace))


def _bound(run: _Run) -> float:
    return run.dual.bound if run.dual is not None else -float("inf")


def _loss(run: _Run):  # type: ignore[no-untyped-def]
    width = max(min(0.3, 2 * run.gap() * abs(run.objective)), 1e-12) if run.dual is not None else 0.3
    return run.problem.loss.smoothed(width)


def _judge(run: _Run) -> Float[Tensor, " N"]:
    """Keep the better objective and bound; the correlation of every neuron at this point."""
    problem = run.problem
    F = run.features @ run.A + run.bias
    objective = float(problem.loss.value(F) + problem.weight_decay * run.A.norm(dim=1).sum())
    if objective < run.objective:
        run.objective, run.best = objective, (run.A, run.bias)
    V = problem.admit(_loss(run).negative_gradient(F))
    norms = (run.features.T @ V).norm(dim=1)
    dual = dual_point(problem, V, float(norms.max()))
    if run.dual is None or dual.bound > run.dual.bound:
        run.dual = dual
    return norms


def _working_set(run: _Run, norms: Float[Tensor, " N"]) -> Int[Tensor, " k"]:
    used = run.A.norm(dim=1) > 0
    score = torch.where(used, torch.inf, norms)
    size = min(len(norms), max(_FIRST, 2 * int(used.sum())))
    return torch.sort(torch.topk(score, size).indices).values


def _improve(run: _Run, chosen: Int[Tensor, " k"]) -> None:
    problem, loss = run.problem, _loss(run)
    Phi, bias = run.features[:, chosen], run.bias if problem.output_bias else None
    if problem.loss.n_outputs > 1:
        A, new = group_amplitudes(Phi, loss, problem.weight_decay, run.A[chosen], bias, max_steps=300)
    else:
        a = run.A[chosen, 0]
        both = torch.cat([a.clamp(min=0.0), (-a).clamp(min=0.0)])
        masses, new = signed_amplitudes(torch.cat([Phi, -Phi], 1), loss, problem.weight_decay, both, bias)
        A = (masses[: len(a)] - masses[len(a) :])[:, None]
    run.A = torch.zeros_like(run.A)
    run.A[chosen] = A
    run.bias = run.bias if new is None else new
