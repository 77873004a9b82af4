"""Looking for a point of a region that meets all conditions of a tree."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from certify.bounds.base import place
from certify.regions import AbstractRegion
from certify.search.deadline import Deadline
from certify.search.phases.trees import Trees

# (point, number of its region) -> the point, as it has to be written, if it really is a witness
Confirm = Callable[[np.ndarray, int], np.ndarray | None]

_FALL = 0.93  # of the step, from one to the next
_DOUBT = 1e-4  # a value that single precision may have got wrong in sign


@dataclass(frozen=True, eq=False)
class Witness:
    """A confirmed point, flat, and the region that it is in."""

    point: np.ndarray
    region: int


@dataclass(frozen=True, eq=False)
class Hunter:
    """Descends on the conditions in single precision; only `confirm` makes a point a witness."""

    trees: Trees
    confirm: Confirm

    def scatter(self, generator: torch.Generator, deadline: Deadline, *, restarts: int, steps: int) -> Witness | None:
        """Descent from random points of every region."""
        everyone = torch.arange(len(self.trees))
        for _ in range(restarts):
            if deadline.expired:
                return None
            start = self.trees.region.sample(generator)[self.trees.owner]
            found = self.descend(start, everyone, deadline, steps=steps)
            if found is not None:
                return found
        return None

    def descend(
        self, points: Float[Tensor, "batch n"], trees: Int[Tensor, " batch"], deadline: Deadline, *, steps: int
    ) -> Witness | None:
        """Descent from given points, each for its tree."""
        region = self.trees.region.to(torch.float32).select(self.trees.owner[trees])
        graph = place(self.trees.graph, region.centre)
        points = points.float()
        for step in range(steps + 1):
            points = points.detach().requires_grad_(True)
            with torch.enable_grad():
                slack = self.trees.slack(graph(points), trees)
                (gradient,) = torch.autograd.grad(slack.sum(), points)
            found = self.check(points.detach(), trees, slack.detach())
            if found is not None or deadline.expired or step == steps:
                return found
            length = 0.25 * _FALL**step
            points = region.project(points.detach() + length * region.ascent_direction(-gradient))
        return None

    def check(
        self, points: Float[Tensor, "batch n"], trees: Int[Tensor, " batch"], slack: Float[Tensor, " batch"]
    ) -> Witness | None:
        """The first point that is confirmed, the most promising one first."""
        for k in slack.argsort().tolist():
            if slack[k] > _DOUBT:
                return None
            owner = self.trees.owner[trees[k : k + 1]]
            point = self.trees.region.select(owner).project(points[k : k + 1].double())[0].numpy()
            confirmed = self.confirm(point, int(owner))
            if confirmed is not None:
                return Witness(confirmed, int(owner))
        return None
