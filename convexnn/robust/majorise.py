"""Lowering what a network certifies: majorise its certified loss at the present slopes, minimise, repeat.

The certified loss is the least of the sloped objectives (:mod:`convexnn.robust.sloped`) over the slopes that are tried.
With the slopes that are best at the present weights, chords of the neurons that can change sides among them, the
sloped objective touches the certified loss there and is above it elsewhere: weights that lower the former lower
the latter. Any network can be the start, one trained by attacks too.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from convexnn.neurons import Neurons
from convexnn.problem import Problem
from convexnn.result import Status, TraceEntry
from convexnn.robust.ball import Ball
from convexnn.robust.certified import ENDS, Known, Signed, best_end, certified_objective
from convexnn.robust.descent import WIDTHS, WIDTHS_FINE, WIDTHS_NEAR, descend
from convexnn.robust.sloped import SlopedProgram, ends_of
from convexnn.solvers.answer import ProgramLimits

_INNER = 0.3  # share of the tolerance to which each majorant is minimised
_COARSE = 1e-2  # but not further than this: the next majorant gains more
# Each when a round with the one before gains too little: near the start, from afar, and closer to the kinks.
_STAGES = (WIDTHS_NEAR, WIDTHS, WIDTHS_FINE)
_TOLERANCES = (1e-3, 1e-5, 0.0)  # masses, relative to the largest, below which neurons are left out if nothing is lost

_PATIENCE = 3  # rounds in a row without a better value on held-out samples

Report = Callable[[TraceEntry], None] | None
HeldOut = Callable[[Neurons], float] | None  # a value of a network that is to be low


@dataclass(frozen=True)
class Majorised:
    """A network, the slopes that certify it, and the certified objective at the start and after each round."""

    neurons: Neurons
    slopes: Float[Tensor, "2 n k"]
    history: tuple[float, ...]
    status: Status
    validation: tuple[float, ...] = ()  # the values on held-out samples, where there are some

    @property
    def round(self) -> int:
        """The round whose network this is: the last one, or the best one on held-out samples."""
        return self.validation.index(min(self.validation)) if self.validation else len(self.history) - 1

    @property
    def objective(self) -> float:
        """That of the network."""
        return self.history[self.round]


@dataclass
class _Run:
    """The majorant that touches at the present weights; the values on held-out samples, and the best run by them."""

    program: SlopedProgram
    U: Float[Tensor, "K d"]
    bias: Float[Tensor, " 1"]
    history: list[float]
    held_out: HeldOut = None
    validation: tuple[float, ...] = ()
    best: "_Run | None" = None

    def validate(self) -> None:
        """Keep what is best on the held-out samples so far."""
        if self.held_out is None:
            return
        value = self.held_out(self.program.network(self.U, self.bias))
        if not self.validation or value < min(self.validation):
            self.best = replace(self, history=self.history[:], best=None)
        self.validation = (*self.validation, value)

    @property
    def patient(self) -> bool:
        """Whether the best on held-out samples is not long ago."""
        return not self.validation or self.validation.index(min(self.validation)) + _PATIENCE >= len(self.validation)


def majorise(
    problem: Problem,
    ball: Ball,
    start: Neurons,
    limits: ProgramLimits,
    *,
    known: Known | None = None,
    report: Report = None,
    held_out: HeldOut = None,
) -> Majorised:
    """Rounds until none gains ``limits.tol``, relative, however smooth; the certified objective never rises.

    ``known`` are slopes that may certify the start better than those that are tried by themselves. An interrupt ends
    with what was accepted. ``limits.max_steps`` are rounds. With ``held_out`` rounds end where its value has not fallen
    for a few of them, and the network of the round with the least value is returned.
    """
    began = time.perf_counter()
    signed = Signed.of(start)
    program = touching(problem, ball, signed, _by_end(problem, known))
    run = _Run(program, signed.u, signed.bias, [program.objective(signed.u, signed.bias)], held_out)
    run.validate()
    try:
        status = _rounds(run, limits, began, report)
    except KeyboardInterrupt:
        status = Status.INTERRUPTED
    chosen = _pruned(run.best or run, status, run.validation)
    return replace(chosen, history=tuple(run.history), validation=run.validation)


def touching(
    problem: Problem, ball: Ball, signed: Signed, known: Float[Tensor, "q K n"] | None = None
) -> SlopedProgram:
    """The sloped program whose objective equals the certified one at these weights."""
    ends = ends_of(problem)
    both = []
    for k, end in enumerate(ENDS):
        own = None if known is None else known[min(k, len(known) - 1)].T
        both.append(best_end(signed, problem.X, ball, end, own)[1].T)
    return SlopedProgram(problem, ball, signed.signs, torch.where(ends[:, None, :] > 0, both[0], both[1]))


def _rounds(run: _Run, limits: ProgramLimits, began: float, report: Report) -> Status:
    deadline, tol, stage = began + limits.max_seconds, max(_INNER * limits.tol, _COARSE), 0
    for _ in range(limits.max_steps):
        found = descend(run.program, run.U, run.bias, tol=tol, deadline=deadline, widths=_STAGES[stage])
        before = run.history[-1]
        if found.objective < before:
            _accept(run, found.U, found.bias)
            if report is not None:
                report(TraceEntry(time.perf_counter() - began, run.history[-1], -float("inf"), len(run.U)))
        if time.perf_counter() > deadline:
            return Status.MAX_SECONDS
        if not run.patient:
            return Status.STALLED
        if before - run.history[-1] < limits.tol * abs(before):
            stage += 1
            if stage == len(_STAGES):
                return Status.STALLED
    return Status.MAX_ROUNDS


def _accept(run: _Run, U: Float[Tensor, "K d"], bias: Float[Tensor, " 1"]) -> None:
    """Go on from weights that lower the majorant, with the one that touches there."""
    run.U, run.bias = U, bias
    signed = Signed(U, run.program.signs, bias)
    run.program = touching(run.program.problem, run.program.ball, signed, run.program.slopes)
    run.history.append(run.program.objective(U, bias))
    run.validate()


def _by_end(problem: Problem, known: Known | None) -> Float[Tensor, "q K n"] | None:
    """Slopes in the layout of sloped programs."""
    if known is None or known.ndim == 2:
        return None if known is None else known.T[None]
    ends = ends_of(problem)
    return torch.where(ends[:, None, :] > 0, known[0].T, known[1].T)


def _pruned(run: _Run, status: Status, known: tuple[float, ...]) -> Majorised:
    """Without the neurons that are all but zero; ``known`` are the values on held-out samples of all rounds."""
    program, norms = run.program, run.U.norm(dim=1)
    both = program.slopes.mT.expand(2, -1, -1)
    for tolerance in _TOLERANCES:
        live = norms > (tolerance * norms.max() if len(norms) else 0.0)  # a constant network has none
        part = replace(program, signs=program.signs[live], slopes=program.slopes[:, live])
        neurons, slopes = part.network(run.U[live], run.bias), both[:, :, live]
        value = certified_objective(program.problem, program.ball, neurons, slopes)
        held = run.held_out is None or run.held_out(neurons) <= min(known) * (1 + 1e-9)
        if value <= run.history[-1] * (1 + 1e-9) and held:
            break
    return Majorised(neurons, slopes, tuple(run.history), status)
