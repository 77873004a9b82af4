"""Certified accuracy over many limits of vector fields, monotone by construction.

A certificate for a set of fields holds for its subsets, and a field that fools the network does so in every set that
has it. So one proof, or one field, answers for many sets, and few of them need work.
"""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from torch import nn
from tqdm.auto import tqdm

from certify.accuracy import asked_of
from certify.batches import Batch, outcome_of
from certify.errors import InvalidInputError, InvalidTypeError
from certify.inputs import as_inputs, as_labels
from certify.jobs import Ledger, digest_of, run_jobs
from certify.jobs.ledger import Record
from certify.regions.spatial import Deformation
from certify.search import Plan
from certify.search.climb import AT_CENTRE
from certify.setup import Question, plan_of
from certify.verdict import Status


@dataclass(frozen=True, eq=False)
class AccuracyMap:
    """What holds for every input and every set of fields; where sets hold each other, answers agree.

    Attributes:
        regions: the limits of the fields.
        clean: for every input whether the network labels it rightly.
        statuses: (inputs, regions), a `Status` each; a wrongly labelled input is FALSIFIED everywhere.
        seconds: (inputs, regions), CPU seconds of a bound, without the attack; NaN where none was needed.
        method: as asked.
    """

    regions: tuple[Deformation, ...]
    clean: np.ndarray = field(repr=False)
    statuses: np.ndarray = field(repr=False)
    seconds: np.ndarray = field(repr=False)
    method: str

    @property
    def certified(self) -> np.ndarray:
        """For every region the fraction of inputs proved to keep their label."""
        return np.asarray((self.statuses == Status.VERIFIED).mean(0))

    @property
    def attacked(self) -> np.ndarray:
        """For every region the fraction labelled rightly for which no field was found: a ceiling of `certified`."""
        return np.asarray((self.statuses != Status.FALSIFIED).mean(0))

    def __str__(self) -> str:
        rows = [f"{len(self.clean)} inputs, {self.clean.mean():.1%} clean, method {self.method}: certified, attacked"]
        shares = zip(self.regions, self.certified, self.attacked, strict=True)
        return "\n".join([*rows, *(f"  {low:7.2%} {high:7.2%}   {region}" for region, low, high in shares)])


def accuracy_map(
    network: nn.Module,
    X: Any,
    y: Any,
    *,
    regions: Sequence[Deformation],
    method: str | Plan = "crown",
    domain: Any = None,
    n_jobs: int | None = None,
    results: str | os.PathLike[str] | None = None,
    progress: bool | None = None,
) -> AccuracyMap:
    """Attack and certify every image in many sets of fields.

    For every image the sets are looked at in an order that halves what is open. A method that leaves a set open is not
    tried on sets that hold it, nor an attack that finds nothing on their subsets: certified shares fall as delta and
    gamma grow, exactly.

    Args:
        network: a torch module that `graph_from_torch` can read, in eval mode.
        X: images (batch, height, width) or (batch, channels, height, width).
        y: class numbers, one for each image.
        regions: limits of fields, in any order, of any norms.
        method: as for `verify`.
        domain: as for `verify`.
        n_jobs: as for `certified_accuracy`.
        results: as for `certified_accuracy`.
        progress: as for `certified_accuracy`.

    Raises:
        CertifyError: as for `certified_accuracy`.
    """
    plan, regions = plan_of(method), tuple(regions)
    _check(regions)
    inputs = as_inputs(X, "X")
    labels = as_labels(y, len(inputs))
    question = Question.of(network, tuple(inputs.shape[1:]), eps=None, domain=domain, deformation=regions[0])
    question.problem(inputs, labels)
    jobs = [Batch(digest_of(x.numpy(), y.numpy()), x, y) for x, y in zip(inputs.split(1), labels.split(1), strict=True)]
    asked = {} if results is None else {**asked_of(question, plan), "command": "map", "deformation": repr(regions)}
    with Ledger.open(results, asked) as ledger:
        waiting = {job.key: job for job in jobs if job.key not in ledger.known}
        hidden = None if progress is None else not progress
        with tqdm(total=len(waiting), desc="certify", unit="input", disable=hidden) as bar:
            for record in run_jobs(_answer, (question, plan, regions), list(waiting.values()), n_jobs=n_jobs):
                ledger.add(record["key"], record)
                bar.update()
        return _joined(regions, plan, [ledger.known[job.key] for job in jobs])


def _check(regions: tuple[Any, ...]) -> None:
    if not regions:
        raise InvalidInputError("regions is empty; expected at least one Deformation")
    for region in regions:
        if not isinstance(region, Deformation):
            raise InvalidTypeError(f"a region is a {type(region).__name__}; expected a Deformation")


def _joined(regions: tuple[Deformation, ...], plan: Plan, records: list[Record]) -> AccuracyMap:
    return AccuracyMap(
        regions,
        np.array([record["clean"] for record in records], dtype=bool),
        np.array([[Status[name] for name in record["statuses"]] for record in records], dtype=object),
        np.array([record["seconds"] for record in records], dtype=float),
        plan.name,
    )


def _answer(asked: tuple[Question, Plan, tuple[Deformation, ...]], image: Batch) -> Record:
    """One image in all regions."""
    question, plan, regions = asked
    attack, bound = replace(plan.first_part, methods=()), replace(plan, attack=None)
    seconds: dict[int, float] = {}

    def fooled(k: int) -> bool:
        outcome = outcome_of(replace(question, deformation=regions[k]), attack, image)
        return outcome.status[0] is Status.FALSIFIED

    def settled(k: int) -> Status:
        before = time.process_time()
        outcome = outcome_of(replace(question, deformation=regions[k]), bound, image)
        seconds[k] = time.process_time() - before
        return outcome.status[0] or Status.UNKNOWN

    still = outcome_of(replace(question, deformation=Deformation(0.0)), replace(attack, attack=None), image)
    wrong = still.status[0] is Status.FALSIFIED and still.stage[0] == AT_CENTRE
    statuses = [Status.FALSIFIED] * len(regions) if wrong else walk(regions, fooled, settled)
    return {
        "key": image.key,
        "clean": not wrong,
        "statuses": [status.name for status in statuses],
        "seconds": [seconds.get(k) for k in range(len(regions))],
    }


def walk(
    regions: Sequence[Deformation], fooled: Callable[[int], bool], settled: Callable[[int], Status]
) -> list[Status]:
    """A status for every region, from few calls.

    Args:
        regions: limits of fields.
        fooled: whether an attack in region k finds a field.
        settled: what bounds, or a search, say about region k.
    """
    n = len(regions)
    holds = np.array([[a.holds(b) for b in regions] for a in regions]).reshape(n, n)
    proved, untried = np.zeros(n, dtype=bool), np.ones(n, dtype=bool)
    found, unattacked = np.zeros(n, dtype=bool), np.ones(n, dtype=bool)
    while True:
        left = ~proved & ~found & (untried | unattacked)
        if not left.any():
            break
        k = int(np.where(left, np.minimum((holds & left).sum(1), (holds & left[:, None]).sum(0)), -1).argmax())
        if unattacked[k]:
            if fooled(k):
                found |= holds[:, k]
                continue
            unattacked &= ~holds[k]
        if untried[k]:
            status = settled(k)
            if status is Status.VERIFIED:
                proved |= holds[k]
            else:
                untried &= ~holds[:, k]
                found |= holds[:, k] & (status is Status.FALSIFIED)
    assert not (proved & found).any()
    return [
        Status.VERIFIED if p else Status.FALSIFIED if f else Status.UNKNOWN for p, f in zip(proved, found, strict=True)
    ]
