"""The search on phases as property files ask for it."""

from collections.abc import Callable, Iterable
from itertools import pairwise
from math import prod

import numpy as np
import torch

from certify.bounds.base import place
from certify.errors import InvalidInputError
from certify.ir import Graph
from certify.properties.query import Case, Query
from certify.search.deadline import Deadline
from certify.search.phases.bounding import Effort
from certify.search.phases.search import PhaseOutcome, search
from certify.search.phases.trees import Trees
from certify.search.phases.witness import Confirm
from certify.threads import threads_for


def search_phases(
    graph: Graph,
    cases: Query | Iterable[Case],
    *,
    deadline: Deadline,
    seed: int = 0,
    confirm: Callable[[np.ndarray, Case], bool] | None = None,
    effort: Effort | None = None,
    workers: int = 1,
) -> PhaseOutcome:
    """Whether some case has a point, by branch and bound on the phases of the network's ReLUs.

    Args:
        graph: the network, of torch or numpy arrays.
        cases: the unsafe sets; those that share a box share its bounds. A tree of the outcome is a case, in the
            order of `Query.groups`.
        deadline: looked at between the steps of every ascent.
        seed: of the attack's starts; the same seed gives the same answer, unless time runs out.
        confirm: whether a point x (n,) of the written box really is a witness of a case; by default the graph in
            float64 and the case's exact arithmetic say so.
        effort: how much is spent where.
        workers: processes for what is not decided soon; how many makes no difference to the answer, unless time
            runs out.

    Returns:
        EMPTY only if every leaf of every tree is proved by a substitution in float64 with its rounding errors, a
        statement about real arithmetic on the graph's weights. WITNESS only with a point that was confirmed.

    Raises:
        InvalidInputError: for cases that do not fit the network, and fewer than one process.
    """
    if workers < 1:
        raise InvalidInputError(f"workers is {workers}; expected at least 1")
    query = cases if isinstance(cases, Query) else Query(tuple(cases))
    sizes = (prod(graph.input_shape), prod(graph.output_shape))
    if (query.n_inputs, query.n_outputs) != sizes:
        raise InvalidInputError(
            f"the cases have {query.n_inputs} inputs and {query.n_outputs} outputs, the network {sizes[0]} and"
            f" {sizes[1]}; check that they belong together"
        )
    placed = place(graph, torch.zeros(0, dtype=torch.float64))
    ordered = [case for group in query.groups for case in group]
    judge = _judge(placed, ordered, confirm)
    widths = [prod(node.shape) for node in graph.nodes]
    with threads_for((effort or Effort()).batch * max((a * b for a, b in pairwise(widths)), default=0)):
        return search(
            Trees.of_cases(placed, query.groups), judge, deadline=deadline, seed=seed, effort=effort, workers=workers
        )


def _judge(graph: Graph, cases: list[Case], confirm: Callable[[np.ndarray, Case], bool] | None) -> Confirm:
    """Points are moved into the box as written, which rounding can have made smaller than the one searched."""

    def judge(x: np.ndarray, tree: int) -> np.ndarray | None:
        case = cases[tree]
        assert case.written_lower is not None
        assert case.written_upper is not None
        x = np.minimum(np.maximum(x, case.written_lower), case.written_upper)
        if confirm is not None:
            return x if confirm(x, case) else None
        y = graph(torch.from_numpy(x)[None]).flatten().numpy()
        return x if case.excess(x) == 0 and case.holds_for(y) else None

    return judge
