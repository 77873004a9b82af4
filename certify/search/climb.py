"""Attack, then bounds from loose to tight, then search, each only where no answer is known yet."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from itertools import islice, product, takewhile

import numpy as np
import torch
from torch import Tensor

from certify.bounds import METHODS, AbstractMethod, Bounds
from certify.bounds.base import count_needed, last, place
from certify.ir import Graph
from certify.regions import AbstractRegion, Box, LpBall
from certify.regions.spatial.deformations import Deformations
from certify.search.attack import PGD
from certify.search.deadline import Deadline
from certify.search.milp import require_relu, solve
from certify.search.phases import Finding, Trees, search
from certify.search.phases.witness import Confirm
from certify.search.problem import Problem
from certify.verdict import Status


@dataclass(frozen=True)
class Plan:
    """What is tried, in this order.

    Attributes:
        name: what a user calls it.
        methods: bounds, one after the other.
        attack: before them.
        complete: whether what is still open is searched, phase by phase.
        limit: seconds for the search of one input; None for no limit but the caller's.
        mixed_integer: whether what the bounds leave open goes to mixed-integer programs before the search.
    """

    name: str
    methods: tuple[AbstractMethod, ...]
    attack: PGD | None = field(default_factory=PGD)
    complete: bool = False
    limit: float | None = None
    mixed_integer: bool = False

    @property
    def searches(self) -> bool:
        """Whether it goes on, input by input, where its bounds leave something open."""
        return self.complete or self.mixed_integer

    @property
    def first_part(self) -> "Plan":
        """Attack and bounds, of many inputs at once."""
        return replace(self, complete=False, mixed_integer=False)

    @property
    def second_part(self) -> "Plan":
        """What is left for an input that the first part left open: the search, from the tightest bounds."""
        return replace(self, methods=self.methods[-1:], attack=None)


# The stage of an input that is its own counterexample.
AT_CENTRE = "the input itself"

_LADDER = tuple(METHODS[name] for name in ("ibp", "crown-ibp", "crown", "alpha-crown"))

PLANS: dict[str, Plan] = {
    "auto": Plan("auto", _LADDER, complete=True, limit=60.0),
    "complete": Plan("complete", _LADDER[2:], complete=True),
    **{name: Plan(name, (method,)) for name, method in METHODS.items()},
    "milp": Plan("milp", _LADDER[2:], complete=True, mixed_integer=True),
}


@dataclass
class Outcome:
    """The answers so far, input by input; it only ever learns."""

    status: list[Status | None]
    stage: list[str]
    witness: dict[int, Tensor]
    lower: Tensor  # batch, targets
    claims: dict[int, dict[int, float]] = field(default_factory=dict)  # by input and target, not proved

    @staticmethod
    def start(problem: Problem) -> "Outcome":
        """Nothing is known."""
        lower = torch.full_like(problem.margins.constants, -torch.inf)
        return Outcome([None] * len(problem), ["none"] * len(problem), {}, lower)

    @property
    def left(self) -> list[int]:
        """The inputs without an answer."""
        return [k for k, status in enumerate(self.status) if status is None]

    def settle(self, index: Iterable[int], status: Status) -> None:
        """One answer for some inputs."""
        for k in index:
            self.status[k] = status


def climb(problem: Problem, plan: Plan, deadline: Deadline) -> Outcome:
    """An answer for every input of the batch."""
    if plan.mixed_integer:
        require_relu(problem.graph)
    outcome = Outcome.start(problem)
    _check_centres(problem, outcome)
    if plan.attack is not None and outcome.left and not deadline.expired:
        _attack(problem, plan.attack, outcome, deadline)
    known: Bounds | None = None
    for view, method in product(problem.widest_first, plan.methods):
        if outcome.left and not deadline.expired:
            known = _bound(view, method, known, outcome, deadline)
            if plan.attack is not None and known is not None:
                known = _attack_again(problem, plan.attack, method, known, outcome, deadline)
    if plan.searches:
        _search(problem, plan, known, outcome, deadline)
    outcome.settle(outcome.left, Status.TIMEOUT if deadline.expired else Status.UNKNOWN)
    return outcome


def _record(outcome: Outcome, stage: str, index: list[int], witnesses: dict[int, Tensor]) -> None:
    for k in index:
        outcome.stage[k] = stage
    outcome.witness |= witnesses
    outcome.settle(witnesses, Status.FALSIFIED)


def _check_centres(problem: Problem, outcome: Outcome) -> None:
    points = problem.region.centre if problem.canvas is not None else problem.region.centre.to(problem.dtype)
    with torch.no_grad():
        lost = problem.margins.violated(problem.margins_at(points)).nonzero().flatten().tolist()
    if lost:
        confirmed = problem.select(lost).is_counterexample(points[lost]).tolist()
        _record(
            outcome,
            AT_CENTRE,
            lost,
            {k: points[k] for k, sure in zip(lost, confirmed, strict=True) if sure},
        )


def _attack(problem: Problem, attack: PGD, outcome: Outcome, deadline: Deadline) -> None:
    left = outcome.left
    found = attack(problem.select(left), deadline)
    _record(outcome, "pgd", left, {left[k]: point for k, point in found.items()})


def _bound(
    problem: Problem, method: AbstractMethod, known: Bounds | None, outcome: Outcome, deadline: Deadline
) -> Bounds | None:
    """Bound the margins of the inputs without an answer; the bounds of those still left are returned."""
    left = outcome.left
    part = problem.select(left)
    method = _timed(method, deadline)
    hidden = islice(method.steps(problem.graph, part.inputs, known), count_needed(problem.graph))
    bounds = last(takewhile(lambda _: not deadline.expired, hidden), Bounds())
    if deadline.expired:
        return None
    lower = method.margins(problem.graph, part.inputs, bounds, part.margins)
    outcome.lower[left] = torch.maximum(outcome.lower[left], lower.to(outcome.lower))
    for k in left:
        outcome.stage[k] = method.name
    proved = (outcome.lower[left] > 0).all(1).tolist()
    outcome.settle([k for k, sure in zip(left, proved, strict=True) if sure], Status.VERIFIED)
    return bounds.select([not sure for sure in proved])


def _attack_again(
    problem: Problem, attack: PGD, method: AbstractMethod, known: Bounds, outcome: Outcome, deadline: Deadline
) -> Bounds:
    """From where a method that left margins open suggests it; the bounds of the inputs still left are returned."""
    left = outcome.left
    if not left or deadline.expired or problem.canvas is not None:
        return known
    part = problem.select(left)
    starts = _timed(method, deadline).suggestions(
        problem.graph, part.region, known, part.margins, outcome.lower[left].to(part.region.centre)
    )
    if starts is None:
        return known
    found = attack.near(part, starts, deadline)
    _record(outcome, f"pgd from {method.name}", [left[k] for k in found], {left[k]: p for k, p in found.items()})
    return known.select([k not in found for k in range(len(left))])


def _timed(method: AbstractMethod, deadline: Deadline) -> AbstractMethod:
    """The method that stops inside a layer too, where it can."""
    if deadline.seconds is None or not hasattr(method, "stop"):
        return method
    return replace(method, stop=lambda: deadline.expired)  # type: ignore[type-var]


def _search(problem: Problem, plan: Plan, known: Bounds | None, outcome: Outcome, deadline: Deadline) -> None:
    """Programs and search for every input without an answer; `known` are the bounds of these, in order."""
    for position, k in enumerate(outcome.left):
        if deadline.expired:
            return
        part, bounds = problem.select([k]), None if known is None else known.select([position])
        limit = deadline.within(plan.limit)
        # Programs and search run on the CPU, wherever the network is.
        graph, region = place(problem.graph, torch.zeros(0).double()), _on_cpu(part)
        bounds = bounds and bounds.to("cpu")
        if plan.mixed_integer:
            bounds = _programs(part, graph, bounds, outcome, k, limit)
            if outcome.status[k] is not None or not plan.complete:
                continue
        trees = Trees.of_margins(graph, region, part.margins.cpu())
        found = search(trees, _confirm(part), deadline=limit, known=bounds)
        outcome.stage[k] = "milp, then complete" if plan.mixed_integer else "complete"
        outcome.lower[k] = torch.maximum(outcome.lower[k], found.bound.to(outcome.lower))
        if found.witness is not None:
            outcome.witness[k] = torch.from_numpy(found.witness.point).to(part.region.centre.device)
            outcome.settle([k], Status.FALSIFIED)
        elif found.finding is Finding.EMPTY:
            outcome.settle([k], Status.VERIFIED)
        elif found.finding is Finding.TIMEOUT:
            outcome.settle([k], Status.TIMEOUT)


def _programs(
    part: Problem, graph: Graph, known: Bounds | None, outcome: Outcome, k: int, deadline: Deadline
) -> Bounds:
    """The mixed-integer programs of input k, which settle it where they find a counterexample or are not needed."""
    judge = _confirm(part)
    found = solve(
        graph,
        _on_cpu(part),
        part.margins.cpu(),
        lambda x: judge(x, 0),
        deadline=deadline,
        known=known,
        lower=outcome.lower[k].cpu(),
    )
    outcome.stage[k], outcome.claims[k] = "milp", found.claims
    outcome.lower[k] = found.lower.to(outcome.lower)
    if found.witness is not None:
        outcome.witness[k] = found.witness.to(part.region.centre.device)
        outcome.settle([k], Status.FALSIFIED)
    elif bool((found.lower > 0).all()):
        outcome.stage[k] = "lp"
        outcome.settle([k], Status.VERIFIED)
    return found.bounds


def _on_cpu(problem: Problem) -> AbstractRegion:
    region = problem.inputs
    assert isinstance(region, Box | Deformations | LpBall)
    return region.cpu()


def _confirm(problem: Problem) -> Confirm:
    """The network itself, on the point as it reads it, or on what a vector field near it makes."""

    def confirm(x: np.ndarray, tree: int) -> np.ndarray | None:
        near = torch.from_numpy(x)[None].to(problem.region.centre)
        near = near if problem.canvas is None else problem.canvas.fields_near(near)
        point = problem.region.representable(near, problem.dtype)
        return point[0].cpu().numpy() if bool(problem.is_counterexample(point)) else None

    return confirm
