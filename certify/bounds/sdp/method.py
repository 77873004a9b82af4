"""The semidefinite relaxation as a method of the ladder: cheap rungs first, so that only what is open reaches it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from certify.bounds.base import AbstractMethod, Bounds
from certify.bounds.dense import DenseNetwork
from certify.bounds.sdp.branch import solve_cases
from certify.bounds.sdp.candidates import candidates
from certify.bounds.sdp.solve import solve
from certify.bounds.sdp.stage import Settings
from certify.bounds.sdp.target import Target, targets_of
from certify.bounds.sdp_crown import SDPCROWN
from certify.ir import Graph
from certify.properties import Margins
from certify.regions import AbstractRegion

# A relaxation whose value is below zero by this share of the margin at the centre is solved no further.
_CLEARLY = 3e-3
# No cases follow one whose value is below zero by this share.
_IN_VAIN = 0.1
# Inputs that are suggested for an attack.
_SUGGESTED = 5


@dataclass(frozen=True)
class SDP(AbstractMethod):
    """Semidefinite programs for the margins that SDP-CROWN leaves open, the worst first.

    Attributes:
        hidden: the method of the hidden bounds, and of the margins before.
        settings: of each program. Its `enough` is the bound from which on a margin is left as it is.
        verdicts: whether only the verdict counts: a margin whose relaxation is clearly negative is given up, and the
            other margins of its input are left as the cheap rungs have them. Without, all open margins are bounded to
            the tolerance.
        cases: of the signs of neurons, at most, for a margin that one program leaves open.
        stop: asked in every iteration, whether time is over: what is known by then is returned, and holds.
    """

    hidden: AbstractMethod = field(default_factory=SDPCROWN)
    settings: Settings = field(default_factory=partial(Settings, enough=0.0))
    verdicts: bool = True
    cases: int = 8
    stop: Callable[[], bool] | None = None

    @property
    def name(self) -> str:
        """What a user calls it."""
        return "sdp"

    @property
    def largest_batch(self) -> int:
        """Only the rungs before are faster together."""
        return 8

    @property
    def _cheap(self) -> AbstractMethod:
        return replace(self.hidden, stop=self.stop) if hasattr(self.hidden, "stop") else self.hidden  # type: ignore[type-var]

    def steps(self, graph: Graph, region: AbstractRegion, known: Bounds | None = None) -> Iterator[Bounds]:
        """The hidden bounds are those of the method for them; a network that no program takes is refused here."""
        DenseNetwork.of(graph)
        yield from self._cheap.steps(graph, region, known)

    def margins(
        self, graph: Graph, region: AbstractRegion, bounds: Bounds, margins: Margins
    ) -> Float[Tensor, "batch targets"]:
        """Never below what the cheap rungs give."""
        network = DenseNetwork.of(graph)
        lower = self._cheap.margins(graph, region, bounds, margins)
        if not network.hidden:
            return lower
        at_centre = margins.of_outputs(graph(region.centre).flatten(1))
        for i in range(len(lower)):
            found = self._of_one(
                network, region.select([i]), bounds.select([i]), margins.select([i]), lower[i], at_centre[i]
            )
            lower[i] = torch.maximum(lower[i], found)
        return lower

    def _of_one(
        self,
        network: DenseNetwork,
        region: AbstractRegion,
        bounds: Bounds,
        margins: Margins,
        lower: Float[Tensor, " targets"],
        at_centre: Float[Tensor, " targets"],
    ) -> Float[Tensor, " targets"]:
        """Bounds of the open margins of one input; minus infinity elsewhere."""
        found = torch.full_like(lower, -torch.inf)
        open_ones = [int(t) for t in lower.argsort() if lower[t] <= self.settings.enough]
        rows, constants = (v[0].cpu().numpy() for v in (margins.rows, margins.constants))
        targets = targets_of(network, region, bounds, rows[open_ones], constants[open_ones]) if open_ones else []
        if not targets or not any(map(len, targets[0].unstable)):
            return found
        for t, target in zip(open_ones, targets, strict=True):
            if self.stop is not None and self.stop():
                break
            found[t] = self._of_target(target, abs(float(at_centre[t])))
            if self.verdicts and found[t] <= self.settings.enough:
                break
        return found

    def _of_target(self, target: Target, size: float) -> float:
        """The bound, by cases where one program is not enough and has not shown that many are not."""
        hopeless = -_CLEARLY * size if self.verdicts else -np.inf
        solution = solve(target, replace(self.settings, hopeless=hopeless), stop=self.stop)
        if solution.bound > self.settings.enough or (self.verdicts and solution.value < -_IN_VAIN * size):
            return solution.bound
        return solve_cases(target, self.settings, known=solution, most=self.cases, stop=self.stop).bound

    def suggestions(
        self,
        graph: Graph,
        region: AbstractRegion,
        bounds: Bounds,
        margins: Margins,
        lower: Float[Tensor, "batch targets"],
    ) -> Float[Tensor, "batch points n"] | None:
        """Of the margin that was tried last, from the moments of its relaxation: their mean, and low-rank factors."""
        network = DenseNetwork.of(graph)
        found = region.centre[:, None].repeat(1, _SUGGESTED, 1)
        cheap = self._cheap.margins(graph, region, bounds, margins).masked_fill(lower > self.settings.enough, torch.inf)
        for i, t in enumerate(cheap.argmin(1).tolist()):
            if self.stop is not None and self.stop():
                break
            row, constant = (v[i, t : t + 1].cpu().numpy() for v in (margins.rows, margins.constants))
            (target,) = targets_of(network, region.select([i]), bounds.select([i]), row, constant)
            if any(map(len, target.unstable)):
                mean = solve(target, self.settings, stop=self.stop).point
                points = np.stack([mean, *candidates(target, _SUGGESTED - 1, stop=self.stop)])
                found[i] = torch.as_tensor(points).to(found)
        return found
