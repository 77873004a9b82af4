"""Certified accuracy in parts: a batch is bounded at once, and what stays open is searched input by input."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from certify.ir import Graph
from certify.ir.digest import digest_of_graph
from certify.ir.from_torch import graph_from_torch
from certify.ir.module import GraphModule
from certify.jobs import Ledger, array_from_json, array_to_json, digest_of
from certify.jobs.arrays import bound_from_json, bound_to_json
from certify.jobs.ledger import Record
from certify.search import Deadline, Outcome, Plan
from certify.search.climb import AT_CENTRE, climb
from certify.setup import Question
from certify.threads import threads_for
from certify.verdict import Status

# Entries of the largest array that a batch makes, about 64 MiB in float64.
_ENTRIES = 2**23
# In the results: the bounds are there, the search is not.
_OPEN = "OPEN"

Asked = tuple[Question, Plan]


@dataclass(frozen=True, eq=False)
class Batch:
    """Some inputs with their labels; the key tells them from others."""

    key: str
    inputs: Float[Tensor, "batch *shape"]
    labels: Int[Tensor, " batch"]

    def __len__(self) -> int:
        return len(self.labels)

    def single(self, k: int) -> "Batch":
        """One of the inputs, to search."""
        return Batch(f"{self.key}/{k}", self.inputs[k : k + 1], self.labels[k : k + 1])


def batches_of(asked: Asked, inputs: Float[Tensor, "batch *shape"], labels: Int[Tensor, " batch"]) -> list[Batch]:
    """In batches whose size depends on network and methods alone: answers are the same for any number of workers.

    Raises:
        InvalidInputError: for an input outside the domain, or a label that the network does not have.
    """
    question, plan = asked
    size = _batch_size(question.graph, plan)
    parts = zip(inputs.split(size), labels.split(size), strict=True)
    batches = [Batch(digest_of(x.numpy(), y.numpy()), x, y) for x, y in parts]
    for batch in batches:
        question.problem(batch.inputs, batch.labels)
    return batches


def _batch_size(graph: Graph, plan: Plan) -> int:
    widest = max(prod(node.shape) for node in graph.nodes)
    rivals = max(1, graph.output_shape[0] - 1)
    worth = min((method.largest_batch for method in plan.methods), default=1)
    return max(1, min(worth, _ENTRIES // (widest * rivals)))


def digest_of_network(question: Question) -> str:
    """Of the network as it is stored, and the precision it runs in."""
    network = question.network
    if isinstance(network, GraphModule) and network.digest is not None:
        stored = network.digest
    elif isinstance(network, GraphModule):
        stored = digest_of_graph(network.graph)
    else:
        stored = digest_of_graph(graph_from_torch(network, input_shape=question.graph.input_shape, simplified=False))
    return digest_of(stored, str(question.dtype))


def bound_batch(asked: Asked, batch: Batch) -> Record:
    """Attack and bounds, without the search."""
    question, plan = asked
    outcome = outcome_of(question, plan.first_part, batch)
    return _record(question, batch, outcome, _OPEN if plan.searches else Status.UNKNOWN.name)


def search_input(asked: Asked, batch: Batch) -> Record:
    """The search of one input, from the plan's tightest bounds."""
    question, plan = asked
    outcome = outcome_of(question, plan.second_part, batch)
    return _record(question, batch, outcome, Status.UNKNOWN.name)


def outcome_of(question: Question, plan: Plan, batch: Batch) -> Outcome:
    """What a plan finds out about some inputs."""
    problem = question.problem(batch.inputs, batch.labels)
    with threads_for(problem.multiplications * len(batch)):
        return climb(problem, plan, Deadline())


def _record(question: Question, batch: Batch, outcome: Outcome, unknown: str) -> Record:
    names = [unknown if s is None or s is Status.UNKNOWN else s.name for s in outcome.status]
    wrong = [s is Status.FALSIFIED and at == AT_CENTRE for s, at in zip(outcome.status, outcome.stage, strict=True)]
    return {
        "key": batch.key,
        "status": names,
        "clean": [not w for w in wrong],
        "margin": [bound_to_json(v) for v in outcome.lower.amin(1).tolist()],
        **_witnesses(question, batch, outcome),
    }


def _witnesses(question: Question, batch: Batch, outcome: Outcome) -> Record:
    """Counterexamples as the network reads them, and the vector fields that made them, if any did."""
    shape, flows = question.graph.input_shape, {}
    points = dict(sorted(outcome.witness.items()))
    if question.deformation is not None and points:
        chosen = list(points)
        problem = question.problem(batch.inputs[chosen], batch.labels[chosen])
        fields = torch.stack(list(points.values()))
        assert problem.canvas is not None
        flows = dict(zip(chosen, fields.reshape(-1, 2, *problem.canvas.images.shape[2:]), strict=True))
        points = dict(zip(chosen, problem.drawn(fields).to(question.dtype), strict=True))
    return {
        "counterexamples": {str(k): array_to_json(v.reshape(shape).cpu().numpy()) for k, v in points.items()},
        "flows": {str(k): array_to_json(v.cpu().numpy()) for k, v in flows.items()},
    }


def open_inputs(batch: Batch, ledger: Ledger) -> list[Batch]:
    """The inputs of a batch that are bounded and not yet searched."""
    status = ledger.known[batch.key]["status"]
    singles = (batch.single(k) for k, name in enumerate(status) if name == _OPEN)
    return [single for single in singles if single.key not in ledger.known]


@dataclass(frozen=True, eq=False)
class Answers:
    """For some inputs: right or not, statuses, smallest lower bounds, counterexamples and their fields by number."""

    clean: np.ndarray
    statuses: np.ndarray
    margins: np.ndarray
    counterexamples: dict[int, np.ndarray]
    flows: dict[int, np.ndarray]

    @staticmethod
    def of(record: Record) -> "Answers":
        """From the results."""
        names = [Status.UNKNOWN.name if name == _OPEN else name for name in record["status"]]
        return Answers(
            np.array(record["clean"], dtype=bool),
            np.array([Status[name] for name in names], dtype=object),
            np.array([bound_from_json(v) for v in record["margin"]]),
            *({int(k): array_from_json(v) for k, v in record[name].items()} for name in ("counterexamples", "flows")),
        )

    @staticmethod
    def join(parts: Sequence["Answers"]) -> "Answers":
        """One after the other."""
        starts = np.cumsum([0, *(len(part.clean) for part in parts)])[:-1]
        return Answers(
            np.concatenate([p.clean for p in parts]),
            np.concatenate([p.statuses for p in parts]),
            np.concatenate([p.margins for p in parts]),
            {int(s) + k: x for s, p in zip(starts, parts, strict=True) for k, x in p.counterexamples.items()},
            {int(s) + k: x for s, p in zip(starts, parts, strict=True) for k, x in p.flows.items()},
        )

    def searched(self, k: int, found: "Answers") -> None:
        """Puts in what the search of input k found; its bounds only add to the ones there are."""
        self.statuses[k] = found.statuses[0]
        self.margins[k] = max(self.margins[k], found.margins[0])
        for point in found.counterexamples.values():
            self.counterexamples[k] = point
        for field in found.flows.values():
            self.flows[k] = field


def answers_of(question: Question, batch: Batch, known: dict[str, Any]) -> Answers:
    """What the results say; of a batch that was not looked at, which inputs are labelled rightly."""
    if batch.key not in known:
        plan = Plan("the inputs themselves", (), attack=None)
        return Answers.of(_record(question, batch, outcome_of(question, plan, batch), "UNKNOWN"))
    answers = Answers.of(known[batch.key])
    for k in range(len(batch)):
        if batch.single(k).key in known:
            answers.searched(k, Answers.of(known[batch.single(k).key]))
    return answers
