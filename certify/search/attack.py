"""Projected gradient descent on the margins.

Madry et al., "Towards deep learning models resistant to adversarial attacks", ICLR 2018, in the steepest
direction of each norm.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from certify.errors import InvalidInputError
from certify.search.deadline import Deadline
from certify.search.problem import Problem


@dataclass(frozen=True)
class PGD:
    """Descent from several starts: the centre first, then random points of the region.

    The first start lowers the smallest margin; each later one pursues one rival, the nearest first.

    Attributes:
        steps: gradient steps of each start; their length falls linearly.
        restarts: number of starts.
        seed: of the random starts; the same seed gives the same answer.
        step_size: length of the first step, in radii.
    """

    steps: int = 40
    restarts: int = 4
    seed: int = 0
    step_size: float = 0.25

    def __post_init__(self) -> None:
        if self.steps < 1 or self.restarts < 1:
            raise InvalidInputError(
                f"PGD has {self.steps} steps and {self.restarts} restarts; expected at least 1 of each"
            )

    def __call__(self, problem: Problem, deadline: Deadline) -> dict[int, Float[Tensor, " n"]]:
        """Counterexamples by position in the batch, each confirmed on the original network."""
        generator = torch.Generator().manual_seed(self.seed)
        found: dict[int, Tensor] = {}
        left = list(range(len(problem)))
        for restart in range(self.restarts):
            if not left or deadline.expired:
                break
            part = problem.select(left)
            start = part.region.centre if restart == 0 else part.region.sample(generator)
            found |= _confirmed(part, self._descend(part, restart, start, deadline), left)
            left = [k for k in left if k not in found]
        return found

    def near(
        self, problem: Problem, starts: Float[Tensor, "batch starts n"], deadline: Deadline
    ) -> dict[int, Float[Tensor, " n"]]:
        """The same from given starts, one after the other; each lowers the smallest margin."""
        found: dict[int, Tensor] = {}
        for k in range(starts.shape[1]):
            left = [i for i in range(len(problem)) if i not in found]
            if not left or deadline.expired:
                break
            part = problem.select(left)
            points = self._descend(part, 0, part.region.project(starts[left, k]), deadline)
            found |= _confirmed(part, points, left)
        return found

    def _descend(
        self, problem: Problem, restart: int, points: Float[Tensor, "batch n"], deadline: Deadline
    ) -> Float[Tensor, "batch n"]:
        """The point with the lowest pursued margin on the way."""
        region = problem.region
        best, lowest = points, torch.full_like(points[:, 0], torch.inf)
        for step in range(self.steps + 1):
            value, gradient = _pursued(problem, points, restart)
            better = value < lowest
            lowest, best = torch.where(better, value, lowest), torch.where(better[:, None], points, best)
            if step == self.steps or deadline.expired or bool((lowest < 0).all()):
                break
            length = self.step_size * (1 - step / self.steps)
            points = region.project(points + length * region.ascent_direction(-gradient))
        return best


def _confirmed(problem: Problem, points: Float[Tensor, "batch n"], names: list[int]) -> dict[int, Tensor]:
    """Those that the network itself loses a margin at, by name."""
    points = problem.region.representable(points, problem.dtype)
    hits = problem.is_counterexample(points).tolist()
    return {names[k]: points[k] for k, hit in enumerate(hits) if hit}


def _pursued(
    problem: Problem, points: Float[Tensor, "batch n"], restart: int
) -> tuple[Float[Tensor, " batch"], Float[Tensor, "batch n"]]:
    """The margin to lower at each point, and its gradient."""
    points = points.detach().requires_grad_(True)
    with torch.enable_grad():
        margins = problem.margins_at(points)
        if restart == 0:
            chosen = margins.amin(1)
        else:
            rank = (restart - 1) % margins.shape[1]
            with torch.no_grad():
                rival = problem.margins_at(problem.region.centre).argsort(1)[:, rank : rank + 1]
            chosen = margins.gather(1, rival).squeeze(1)
        (gradient,) = torch.autograd.grad(chosen.sum(), points)
    return margins.detach().amin(1), gradient
