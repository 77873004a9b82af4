"""Methods that solve one linear program for every bound, input by input."""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from joblib import Parallel, delayed
from torch import Tensor

from certify.bounds.backward import Step
from certify.bounds.base import AbstractMethod, Bounds, place
from certify.bounds.crown import CROWN, substituted, sweep, undecided
from certify.bounds.hints import entries_bound, hints_of, margins_bound
from certify.bounds.linear_model import LinearModel, Question, Solution, linear_model
from certify.ir import Graph
from certify.properties import Margins
from certify.regions import AbstractRegion

T = TypeVar("T")
Item = TypeVar("Item")
Objectives = Float[np.ndarray, "rows variables_and_1"]


@dataclass(frozen=True)
class AbstractProgram(AbstractMethod):
    """Linear programs for the margins and for every undecided entry of every hidden layer.

    Attributes:
        workers: tasks at the same time, in threads (HiGHS frees the interpreter's lock); None leaves it to joblib's
            configuration. A task is a few neurons of an input, or its margins; how many workers there are makes no
            difference to the bounds.
        stop: asked between programs, whether time is over: the rest stays as substitution has it.
    """

    workers: int | None = None
    stop: Callable[[], bool] | None = None

    @property
    def largest_batch(self) -> int:
        """Few: only the attack and the substitution before are faster together."""
        return 8

    @property
    def together(self) -> int:
        """Neurons of an input whose programs start from one another; other ones may run at the same time."""
        return 2**30

    @property
    def stopped(self) -> bool:
        """Whether time is over."""
        return self.stop is not None and self.stop()

    @abstractmethod
    def solve(self, question: Question, model: LinearModel, objectives: Objectives) -> Sequence[Solution | None]:
        """The minimum of every objective; None where there is no answer. Cuts may be added to the model."""

    def steps(self, graph: Graph, region: AbstractRegion, known: Bounds | None = None) -> Iterator[Bounds]:
        """One node more each time."""
        return sweep(graph, region, repeat(known or Bounds()), self._tightened)

    def _tightened(
        self,
        graph: Graph,
        region: AbstractRegion,
        steps: Mapping[int, Step],
        bounds: Bounds,
        k: int,
        positive: Bool[Tensor, "batch *shape"],
    ) -> Bounds:
        """Both sides of the undecided entries of node k, by substitution and then by linear programs."""
        bounds = substituted(graph, region, steps, bounds, k, positive)
        wanted = undecided(graph, bounds, k).flatten(1)
        lower, upper = (v.flatten(1).clone() for v in bounds[k])

        def tighten(task: tuple[int, Int[Tensor, " some"]]) -> Float[Tensor, "2 some"]:
            i, index = task
            return self._both_sides(_one(graph, region, bounds, i), k, index)

        some = wanted.any(1).nonzero()[:, 0].tolist()
        tasks = [(i, index) for i in some for index in wanted[i].nonzero()[:, 0].split(self.together)]
        for (i, index), both in zip(tasks, self._map(tighten, tasks), strict=True):
            lower[i, index], upper[i, index] = both[0], -both[1]
        shape = bounds.lower[k].shape
        return bounds.tightened(k, lower.reshape(shape), upper.reshape(shape))

    def _map(self, task: Callable[[Item], T], items: Sequence[Item]) -> list[T]:
        return list(Parallel(n_jobs=self.workers, prefer="threads")(delayed(task)(i) for i in items))

    def _both_sides(self, question: Question, k: int, index: Int[Tensor, " some"]) -> Float[Tensor, "2 some"]:
        """Lower bounds of entries of node k, and of their negatives."""
        model = linear_model(question, k)
        rows = model.expressions[k][index.cpu().numpy()]
        solutions = self.solve(question, model, np.concatenate([rows, -rows]))
        found = torch.full((2 * len(index),), -torch.inf).to(question.region.centre)
        solved = torch.tensor([i for i, s in enumerate(solutions) if s is not None], dtype=torch.long)
        if len(solved):
            hints = hints_of(question, model, [s for s in solutions if s is not None])
            found[solved] = entries_bound(question, k, index.repeat(2)[solved], solved.to(index) < len(index), hints)
        return found.reshape(2, -1)

    def margins(
        self, graph: Graph, region: AbstractRegion, bounds: Bounds, margins: Margins
    ) -> Float[Tensor, "batch targets"]:
        """Every margin by its own linear program, never below the CROWN bound."""
        graph = place(graph, region.centre)
        floor = CROWN().margins(graph, region, bounds, margins)
        rows = self._map(
            lambda i: self._margins_of_one(_one(graph, region, bounds, i), margins.select([i])), range(len(floor))
        )
        return torch.maximum(torch.stack(rows).to(floor), floor) if rows else floor

    def _margins_of_one(self, question: Question, margins: Margins) -> Float[Tensor, " targets"]:
        graph = question.graph
        model = linear_model(question, graph.output)
        objectives = margins.rows[0].cpu().numpy() @ model.expressions[graph.output]
        objectives[:, -1] += margins.constants[0].cpu().numpy()
        solutions = self.solve(question, model, objectives)
        found = torch.full((len(objectives),), -torch.inf).to(question.region.centre)
        solved = [i for i, s in enumerate(solutions) if s is not None]
        if solved:
            hints = hints_of(question, model, [s for s in solutions if s is not None])
            found[solved] = margins_bound(question, margins.rows[0, solved], margins.constants[0, solved], hints)
        return found


def _one(graph: Graph, region: AbstractRegion, bounds: Bounds, i: int) -> Question:
    return Question(graph, region.select([i]), bounds.select([i]))
