"""Looking for a point of a region that meets all conditions of a tree."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from certify.bounds.base import place
from certify.rounding import fits_single
from certify.search.deadline import Deadline
from certify.search.phases.trees import Trees

# (point, tree) -> the point as it has to be written, if it really is a witness
Confirm = Callable[[np.ndarray, int], np.ndarray | None]

_FIRST, _FALL = 0.25, 0.93  # length of the first step in radii, and of each further one relative to the last
_DOUBT = 1e-4  # a value whose sign single precision may have got wrong, relative to the conditions' constants


@dataclass(frozen=True, eq=False)
class Witness:
    """A confirmed point, flat, and the tree whose conditions it meets."""

    point: np.ndarray
    tree: int


@dataclass(frozen=True, eq=False)
class Hunter:
    """Descends on the conditions in single precision; only `confirm` makes a point a witness."""

    trees: Trees
    confirm: Confirm
    deadline: Deadline

    def scatter(self, generator: torch.Generator, *, restarts: int, steps: int) -> Witness | None:
        """Descent from random points of every region."""
        everyone = torch.arange(len(self.trees))
        for _ in range(restarts):
            if self.deadline.expired:
                return None
            start = self.trees.region.sample(generator)[self.trees.owner]
            found = self.descend(start, everyone, steps)
            if found is not None:
                return found
        return None

    def descend(self, points: Float[Tensor, "batch n"], trees: Int[Tensor, " batch"], steps: int) -> Witness | None:
        """Descent from given points, each for its tree."""
        region = self.trees.region.select(self.trees.owner[trees])
        region = region.to(torch.float32) if fits_single(*region.bounding_box()) else region
        graph = place(self.trees.graph, region.centre)
        points = points.to(region.centre)
        for step in range(steps + 1):
            points = points.detach().requires_grad_(True)
            with torch.enable_grad():
                slack = self.trees.slack(graph(points), trees)
                (gradient,) = torch.autograd.grad(slack.sum(), points)
            points = points.detach()
            found = self.check(points, trees, slack.detach())
            if found is not None or self.deadline.expired or step == steps:
                return found
            points = region.project(points + _FIRST * _FALL**step * region.ascent_direction(-gradient))
        return None

    def check(
        self, points: Float[Tensor, "batch n"], trees: Int[Tensor, " batch"], slack: Float[Tensor, " batch"]
    ) -> Witness | None:
        """The first point that is confirmed, the most promising one first."""
        for k in slack.argsort().tolist():
            if not slack[k] <= _DOUBT:
                return None
            tree = int(trees[k])
            region = self.trees.region.select(self.trees.owner[tree : tree + 1])
            confirmed = self.confirm(region.project(points[k : k + 1].double())[0].numpy(), tree)
            if confirmed is not None:
                return Witness(confirmed, tree)
        return None
