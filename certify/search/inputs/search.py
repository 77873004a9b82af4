"""Branch and bound on boxes of inputs: bound, clip, attack, split, until nothing is open.

Last in, first out: the open boxes stay few, and children find their parents' bounds in memory.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from certify.properties.query import Case
from certify.search.deadline import Deadline, OutOfTimeError
from certify.search.inputs.attack import Replay, descend_box, replay_best, sample_box
from certify.search.inputs.bounds import Boxes, bound_layers
from certify.search.inputs.chain import Chain, Sizes
from certify.search.inputs.cut import clip, split_scores
from certify.search.inputs.targets import Planes, Targets, bound_rows, combine

# The most boxes that are bounded at once, and about how many entries their largest array has.
BATCH = 512
_ENTRIES = 2**21


@dataclass(frozen=True, eq=False)
class Open:
    """Boxes that wait, the last one first.

    Attributes:
        lower, upper: (boxes, n).
        value: (boxes,), the bound inherited from the boxes they were cut from.
        known: pre-activation bounds of every ReLU layer that hold on them; empty at the root.
    """

    lower: np.ndarray
    upper: np.ndarray
    value: np.ndarray
    known: tuple[tuple[np.ndarray, np.ndarray], ...] = ()

    def __len__(self) -> int:
        return len(self.lower)

    def select(self, index: np.ndarray | slice) -> "Open":
        """Some of the boxes."""
        known = tuple((low[index], high[index]) for low, high in self.known)
        return Open(self.lower[index], self.upper[index], self.value[index], known)

    @staticmethod
    def join(parts: Sequence["Open"]) -> "Open":
        """All boxes of several, which have bounds of the same layers or none."""
        lower, upper, value = (
            np.concatenate(arrays) for arrays in zip(*((p.lower, p.upper, p.value) for p in parts), strict=True)
        )
        known = tuple(
            (np.concatenate([low for low, _ in layer]), np.concatenate([high for _, high in layer]))
            for layer in zip(*(part.known for part in parts), strict=True)
        )
        return Open(lower, upper, value, known)


@dataclass(frozen=True, eq=False)
class Progress:
    """What a search knows so far.

    Attributes:
        open: boxes that wait; empty when the search is over.
        floor: the least bound of the boxes that are stuck, at most 0.
        boxes: how many were bounded.
        stuck: how many can be neither proved empty nor split further.
        found: whether a replay confirmed a witness.
    """

    open: tuple[Open, ...]
    floor: float = 0.0
    boxes: int = 0
    stuck: int = 0
    found: bool = False

    @property
    def bound(self) -> float:
        """No input has a margin below this; at most 0, where all is proved. It never falls while a search goes on.

        The margin of an input is the least, over the cases, of the largest A_i y - b_i.
        """
        return min([self.floor, *(float(part.value.min()) for part in self.open if len(part))])

    @property
    def over(self) -> bool:
        """Whether there is nothing left to do."""
        return self.found or not any(map(len, self.open))

    @property
    def proved(self) -> bool:
        """Whether all cases are proved empty."""
        return self.over and not self.found and self.stuck == 0


@dataclass(frozen=True, eq=False)
class InputSearch:
    """The search for one box and the cases that share it.

    Attributes:
        chain: the network.
        cases: with at least one row each.
        sizes: of the values over the box, for the rounding errors.
        targets: the cases as linear targets.
        seed: of the samples.
    """

    chain: Chain
    cases: tuple[Case, ...]
    sizes: Sizes
    targets: Targets
    seed: int = 0

    @staticmethod
    def of(chain: Chain, cases: Sequence[Case], seed: int = 0, deadline: Deadline | None = None) -> "InputSearch":
        """For cases that share a box.

        Raises:
            OutOfTimeError: if time is over before the box is bounded once.
        """
        lower, upper = cases[0].lower, cases[0].upper
        with np.errstate(all="ignore"):
            root = Boxes.of(lower[None], upper[None])
            layers = bound_layers(chain, Sizes.of(chain, lower, upper), root, (), (deadline or Deadline()).require)
            sizes = Sizes.of(chain, lower, upper, [high[0] for _, high in layers.bounds()])
            return InputSearch(chain, tuple(cases), sizes, Targets.of(chain, sizes, cases), seed)

    def start(self) -> Progress:
        """Nothing is known."""
        case = self.cases[0]
        return Progress((Open(case.lower[None], case.upper[None], np.array([-np.inf])),))

    def run(self, progress: Progress, replay: Replay, deadline: Deadline, most: int | None = None) -> Progress:
        """Go on until the search is over, the time is, or `most` boxes more were bounded.

        Samples come first; a search that goes on after as many boxes as a batch has begins with a descent.
        Nothing is lost when time runs out: the same call with the returned progress goes on.
        """

        tick = deadline.require
        limit = None if most is None else progress.boxes + most
        with np.errstate(all="ignore"):
            try:
                if progress.boxes == 0 and self._sampled(replay, tick):
                    return replace(progress, found=True)
                if not self.sizes.usable:
                    return replace(progress, open=(), stuck=1, floor=-np.inf)
                if progress.boxes >= BATCH and not progress.over and self._descended(progress.boxes, replay, tick):
                    return replace(progress, found=True)
                while not progress.over and (limit is None or progress.boxes < limit):
                    tick()
                    progress = self._step(progress, replay, tick)
            except OutOfTimeError:
                pass
        return progress

    def _sampled(self, replay: Replay, tick: Callable[[], None]) -> bool:
        box = (self.cases[0].lower, self.cases[0].upper)
        return sample_box(self.chain, self.targets, box, replay, self.seed, tick)

    def _descended(self, boxes: int, replay: Replay, tick: Callable[[], None]) -> bool:
        box = (self.cases[0].lower, self.cases[0].upper)
        return descend_box(self.chain, self.targets, box, replay, (self.seed, boxes), tick)

    def _step(self, progress: Progress, replay: Replay, tick: Callable[[], None]) -> Progress:
        """One batch."""
        entries = (len(self.sizes.free) + 1) * self.chain.widest
        rest, batch = _take(progress.open, max(1, min(BATCH, _ENTRIES // entries)))
        boxes = Boxes.of(batch.lower, batch.upper)
        layers = bound_layers(self.chain, self.sizes, boxes, batch.known, tick)
        planes = bound_rows(self.chain, self.sizes, self.targets, layers, boxes)
        tick()
        planes = combine(self.chain, self.sizes, self.targets, layers, boxes, planes)
        tick()
        best = planes.best(len(self.cases))
        value = np.fmax(best.min(1), batch.value)
        progress = replace(progress, open=rest, boxes=progress.boxes + len(batch))
        lower, upper = clip(boxes, planes, best <= 0)
        left = np.flatnonzero((lower <= upper).all(1))
        if not len(left):
            return progress
        lower, upper = lower[left], upper[left]
        known = tuple((low[left], high[left]) for low, high in layers.bounds())
        parts = Open(lower, upper, value[left], known)
        tops, form = _worst(planes.select(left), best[left])
        corner = np.where(form > 0, lower, upper)
        points = np.concatenate([corner, 0.5 * lower + 0.5 * upper])
        if replay_best(self.chain, self.targets, points, replay).min() == -np.inf:
            return replace(progress, open=(*rest, parts), found=True)
        tick()
        free = self.sizes.free
        slope = (np.abs(form) * boxes.radius[left])[:, free]
        score = split_scores(self.chain, layers, tops, slope, left)
        score *= ((upper - lower) / (boxes.upper[left] - boxes.lower[left]))[:, free]
        return _split(progress, parts, score, free)


def _take(waiting: tuple[Open, ...], most: int) -> tuple[tuple[Open, ...], Open]:
    """The last `most` boxes, and the rest."""
    rest, room = list(waiting), most
    taken: list[Open] = []
    while rest and room > 0:
        part = rest.pop()
        if len(part) > room:
            rest.append(part.select(slice(0, len(part) - room)))
            part = part.select(slice(len(part) - room, None))
        taken.append(part)
        room -= len(part)
    return tuple(rest), Open.join(taken)


def _worst(planes: Planes, best: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For every box the best plane of its worst open case: the target on the last ReLU layer, and at the inputs."""
    case = np.where(best <= 0, best, np.inf).argmin(1)
    value = np.where(np.isnan(planes.value), -np.inf, planes.value)
    row = np.where(planes.owner == case[:, None], value, -np.inf).argmax(1)
    index = np.arange(len(row))
    tops = planes.tops[0][row] if len(planes.tops) == 1 else planes.tops[index, row]
    return tops, planes.form[index, row]


def _split(progress: Progress, boxes: Open, score: np.ndarray, free: np.ndarray) -> Progress:
    """Bisect every box where the score is highest; those with no double between their limits are stuck."""
    middle = 0.5 * boxes.lower + 0.5 * boxes.upper
    divisible = ((middle > boxes.lower) & (middle < boxes.upper))[:, free]
    able = divisible.any(1)
    floor = min(progress.floor, float(boxes.value[~able].min(initial=0.0)))
    progress = replace(progress, stuck=progress.stuck + int((~able).sum()), floor=floor)
    if not able.any():
        return progress
    score = np.where(divisible, np.where(np.isnan(score), 0.0, score), -np.inf)
    # The worst box comes last, so that it is taken first.
    order = np.flatnonzero(able)[np.argsort(-boxes.value[able], kind="stable")]
    dimension = free[score[order].argmax(1)]
    pairs = boxes.select(np.repeat(order, 2))
    first, second = np.arange(0, len(pairs), 2), np.arange(1, len(pairs), 2)
    pairs.upper[first, dimension] = pairs.lower[second, dimension] = middle[order, dimension]
    return replace(progress, open=(*progress.open, pairs))
