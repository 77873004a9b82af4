"""Sliding Frank-Wolfe: price, add, solve for the amplitudes, slide, merge.

Denoyelle, Duval, Peyre & Soubies (Inverse Problems 2019) for measures; Bach (JMLR 2017) for the
view of a two-layer network as a measure on the sphere.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from convexnn.ascent import Candidates, ColumnPairs, distinct, evaluate
from convexnn.duality import judge
from convexnn.neurons import Neurons, no_neurons, unit_rows
from convexnn.pricing import Effort, search
from convexnn.problem import Problem
from convexnn.solvers.amplitudes import group_amplitudes, signed_amplitudes
from convexnn.solvers.slide_scalar import slide_scalar
from convexnn.solvers.slide_vector import slide_vector
from convexnn.solvers.smoothing import Levels

EARLY = Effort(n_starts=192, generations=0, levels=(3e-2, 3e-3, 1e-3, 1e-4))
ROUND = Effort()
TRACKING = Effort(generations=0, levels=(1e-3, 1e-4, 1e-5), survivors=1.0, polish=(1e-5, 1e-7))
_LARGE = 2_000_000  # entries of X above which a confirmation makes fewer, still fresh, starts
LARGE_CONFIRMATION = Effort(n_starts=384, hops=96, flips=192, generations=6, patience=2, n_elite=300)
CONFIRMATION = Effort(n_starts=1536, hops=192, flips=256, generations=16, patience=3, n_elite=300)
FOLLOWING = replace(CONFIRMATION, n_starts=512, patience=2)  # where the maxima of a problem nearby are known


@dataclass(frozen=True)
class SlidingState:
    """One network, its dual point, and what pricing found there."""

    neurons: Neurons
    V: Float[Tensor, "n K"]
    candidates: Candidates  # priced at V; empty before the first pricing
    gap: float  # the loop's relative gap, which sets the accuracy of the next step
    first: bool
    objective: float = 0.0
    idle: int = 0  # rounds since the network or the bound last improved


def confirmation_effort(problem: Problem) -> Effort:
    """Several times as many fresh starts as a round has."""
    return LARGE_CONFIRMATION if problem.X.numel() > _LARGE else CONFIRMATION


@dataclass(frozen=True)
class SlidingFrankWolfe:
    """The method behind ``method="global"``; every member is a setting."""

    early: Effort = EARLY
    effort: Effort = ROUND
    confirmation: Effort | None = None  # None: by the size of the problem
    n_added: int = 60
    n_added_groups: int = 15  # several outputs: the convex step leaves more of them in, and slides are dearer
    n_pool: int = 60
    n_tracked: int = 60
    end_level: float = 1e-8  # finest relative smoothing of a slide
    accuracy: float = 0.3  # smoothing error that a slide may leave, as a share of the gap

    def init(self, problem: Problem, start: Neurons | None, pool: Float[Tensor, "m d"] | None = None) -> SlidingState:
        """The best constant network, or the balanced start; with candidates, where directions are known."""
        neurons = start.balanced() if start is not None else no_neurons(problem.n_inputs, problem.constant())
        V = problem.dual_point(neurons(problem.X))
        known = V.new_zeros((0, problem.n_inputs)) if pool is None else pool
        return SlidingState(neurons, V, evaluate(problem.X, V, known), 1.0, len(neurons) == 0)

    def price(
        self, problem: Problem, state: SlidingState, pairs: ColumnPairs | None, generator: torch.Generator
    ) -> SlidingState:
        """Neurons that violate the dual constraint at V."""
        judgement = judge(
            problem,
            state.V,
            state.neurons,
            effort=self.effort if state.gap < 2e-2 or state.idle else self.early,
            generator=generator,
            known=distinct(state.candidates, self.n_pool).U,
            pairs=pairs,
        )
        return replace(state, candidates=judgement.candidates)

    def track(
        self, problem: Problem, state: SlidingState, pairs: ColumnPairs | None, generator: torch.Generator
    ) -> SlidingState:
        """The maxima near the network's neurons and known directions, and nowhere else."""
        known = torch.cat([unit_rows(state.neurons.W), distinct(state.candidates, self.n_tracked).U])
        candidates = search(
            problem.X,
            state.V,
            known,
            effort=TRACKING,
            scale=problem.typical_activation(),
            generator=generator,
            known=known,
            pairs=pairs,
        )
        return replace(state, candidates=candidates)

    def confirming(self, problem: Problem) -> Effort:
        """How hard the judge searches before a gap counts as confirmed."""
        return self.confirmation or confirmation_effort(problem)

    def improve(
        self, problem: Problem, state: SlidingState, pairs: ColumnPairs | None, deadline: float = float("inf")
    ) -> SlidingState:
        """Add the worst violators, solve for the amplitudes, slide all neurons, merge."""
        limit = self.n_added if problem.loss.n_outputs == 1 else self.n_added_groups
        violators = distinct(state.candidates, limit)
        violators = violators.take(violators.values > problem.weight_decay * (1 + 1e-9))
        # Smoothing raises a loss with kinks by at most half this width, and leaves V in the dual domain.
        problem = problem.smoothed(min(8 * state.gap * state.objective, 0.3))
        neurons = self._amplitudes(problem, state, violators)
        if len(neurons) == 0:
            V = problem.dual_point(neurons(problem.X))
            return replace(state, neurons=neurons, V=V, first=False)
        slide = slide_scalar if neurons.n_outputs == 1 else slide_vector
        neurons, V = slide(problem, neurons, self._levels(state), pairs=pairs, deadline=deadline)
        return replace(state, neurons=neurons.pruned().balanced().merged(), V=V, first=False)

    def _levels(self, state: SlidingState) -> Levels:
        if state.first:
            return Levels(1e-1, 1e-3)
        # Rounds without gain mean that the slides stop too early for the gap that is left.
        enough = self.accuracy * state.gap * state.objective * 0.1**state.idle
        return Levels(min(1e-2, 0.3 * state.gap), self.end_level, enough)

    def _amplitudes(self, problem: Problem, state: SlidingState, violators: Candidates) -> Neurons:
        neurons, wd = state.neurons, problem.weight_decay
        U = torch.cat([unit_rows(neurons.W), violators.U])
        masses = torch.cat([neurons.masses(), violators.values.new_zeros(len(violators))])
        C = torch.cat([unit_rows(neurons.A), violators.B])
        features = torch.relu(problem.X @ U.T)
        bias = neurons.bias if problem.output_bias else None
        if neurons.n_outputs == 1:
            signed = features * C[:, 0]
            masses, bias = signed_amplitudes(signed, problem.loss, wd, masses, bias)
            A = masses[:, None] * C
        else:
            A, bias = group_amplitudes(features, problem.loss, wd, masses[:, None] * C, bias)
        return Neurons(U, A, neurons.bias if bias is None else bias).pruned(1e-9).balanced()
