"""A training loop: radii that grow, clipped gradients, checkpoints."""

import logging
import math
import os
import time
from collections.abc import Callable, Iterable, Sized
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path
from typing import Any, SupportsFloat

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from certify.errors import DivergedError, InvalidInputError, InvalidTypeError
from certify.training.checkpoints import Checkpoint
from certify.training.initialisation import initialise
from certify.training.losses import AbstractLoss, Domain, Evaluated, loss_of
from certify.training.regularisers import l1_norm, stability
from certify.training.schedule import Ramp

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recipe:
    """How long and how fast; the defaults are those that the literature uses on MNIST.

    Attributes:
        epochs: passes over the data.
        warmup: epochs before the radius grows.
        ramp: epochs in which it grows from 0 to eps.
        learning_rate: of Adam.
        milestones: epochs at which the learning rate falls to `decay` of itself.
        decay: see there.
        l1: weight of the sum of absolute weights.
        stability: weight of Shi et al.'s regulariser at radius 0; it falls to 0 with the ramp.
        clip: largest norm of the gradient.
        initialise: whether to start with Shi et al.'s weights instead of the network's own.
        seed: of the initial weights, of attacks, and of a loader without a generator of its own.
        schedule: the radius at a time in epochs, instead of the ramp; never above eps.
    """

    epochs: int = 70
    warmup: float = 1.0
    ramp: float = 20.0
    learning_rate: float = 5e-4
    milestones: tuple[int, ...] = (50, 60)
    decay: float = 0.2
    l1: float = 2e-6
    stability: float = 0.5
    clip: float = 10.0
    initialise: bool = True
    seed: int = 0
    schedule: Callable[[float], float] | None = None

    def __post_init__(self) -> None:
        low = {"epochs": 1, "warmup": 0, "ramp": 0, "l1": 0, "stability": 0, "seed": 0}
        for name, least in low.items():
            if not least <= getattr(self, name) < math.inf:
                raise InvalidInputError(f"{name} is {getattr(self, name)!r}; expected a finite number >= {least}")
        for name in ("learning_rate", "decay", "clip"):
            if not 0 < getattr(self, name) < math.inf:
                raise InvalidInputError(f"{name} is {getattr(self, name)!r}; expected a finite number > 0")

    def rate(self, epoch: int) -> float:
        """The learning rate of an epoch."""
        return self.learning_rate * self.decay ** sum(epoch >= m for m in self.milestones)


@dataclass(frozen=True, eq=False)
class TrainingReport:
    """What a run did.

    Attributes:
        network: the network that was given, trained in place, in eval mode.
        trace: for every epoch its mean loss, accuracy on the attacked (or natural) inputs of training, fraction
            proved by the bounds used in training, radius, alpha and learning rate at its end, and seconds; nan for
            what the loss does not compute. These are figures of training: `certify.certified_accuracy` judges.
        epochs: finished ones, those before a resumption included.
        seconds: wall time of this call.
        interrupted: whether it was stopped by an interrupt; the checkpoint, if any, is of the last finished epoch.
    """

    network: nn.Module = field(repr=False)
    trace: list[dict[str, float]] = field(repr=False)
    epochs: int
    seconds: float
    interrupted: bool = False


def fit(
    network: nn.Module,
    loader: Iterable[Any],
    *,
    eps: SupportsFloat,
    method: str | AbstractLoss = "mtl-ibp",
    alpha: SupportsFloat | Ramp = 0.5,
    recipe: Recipe | None = None,
    domain: Domain = None,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: bool | None = None,
) -> TrainingReport:
    """Trains a network to be robust, and provably so.

    Args:
        network: a module of the operations that `certify.verify` reads; it is trained in place, on its device.
        loader: an iterable of batches (x, y), run through once an epoch, such as a torch `DataLoader`.
        eps: l_inf radius, in the units of x.
        method: a loss, or the name of one in `LOSSES`: "mtl-ibp", "cc-ibp", "exp-ibp", "sabr", "ibp", "crown-ibp", ...
        alpha: how much of the bounds, from 0 to 1, or a `Ramp` of it.
        recipe: epochs, rates, regularisers.
        domain: lowest and highest valid input; None: no limits.
        checkpoint: a file that keeps the state after every epoch. A run that was killed goes on from it, and ends with
            the weights it would have had; torch's generator, and the loader's own, are set back as well.
        progress: a progress bar: yes, no, or (None) only on a terminal.

    Returns:
        The report. An interrupt (Ctrl-C) is no error: the network keeps its weights.

    Raises:
        DivergedError: at the first loss or gradient that is not finite; the checkpoint of the epoch before is kept.
        ResultsFileError: for a checkpoint of another run.
        InvalidInputError: for bad settings, or batches without labels.
        UnsupportedOp: for a network that cannot be bounded, naming the operation.
    """
    run = _Run.of(network, loader, (eps, method, alpha), recipe or Recipe(), domain)
    started = time.monotonic()
    with torch.random.fork_rng():
        torch.manual_seed(run.recipe.seed)
        if run.recipe.initialise:
            initialise(network)
        trace, interrupted = run.go(checkpoint, progress)
    network.eval()
    return TrainingReport(network, trace, len(trace), time.monotonic() - started, interrupted)


@dataclass(frozen=True, eq=False)
class _Run:
    network: nn.Module
    loader: Iterable[Any]
    loss: AbstractLoss
    eps: float
    radius: Callable[[float], float]
    alpha: Ramp
    recipe: Recipe
    domain: Domain

    @staticmethod
    def of(
        network: nn.Module, loader: Iterable[Any], aim: tuple[Any, Any, Any], recipe: Recipe, domain: Domain
    ) -> "_Run":
        eps, method, alpha = aim
        if not isinstance(network, nn.Module):
            raise InvalidTypeError(f"the network is a {type(network).__name__}; expected a torch.nn.Module")
        if not isinstance(eps, Real) or not 0 <= float(eps) < math.inf:
            raise InvalidInputError(f"eps is {eps!r}; expected a finite radius >= 0 in the units of x")
        if not isinstance(alpha, Ramp | Real):
            raise InvalidTypeError(f"alpha is {alpha!r}; expected a number from 0 to 1, or a Ramp")
        ramp = alpha if isinstance(alpha, Ramp) else Ramp(float(alpha), start=float(alpha))
        if not all(0 <= v <= 1 for v in (ramp.start, ramp.end)):
            raise InvalidInputError(f"alpha goes from {ramp.start} to {ramp.end}; expected numbers from 0 to 1")
        radius = recipe.schedule or Ramp(float(eps), recipe.warmup, recipe.ramp)
        return _Run(network, loader, loss_of(method), float(eps), radius, ramp, recipe, domain)

    def radius_at(self, epoch: float) -> float:
        """The radius, which no schedule may make larger than eps."""
        radius = float(self.radius(epoch))
        if not 0 <= radius <= self.eps * (1 + 1e-9):
            raise InvalidInputError(
                f"the schedule gives radius {radius:g} at epoch {epoch:g}; expected one from 0 to eps, {self.eps:g}"
            )
        return radius

    def go(self, path: Any, progress: bool | None) -> tuple[list[dict[str, float]], bool]:
        optimiser = torch.optim.Adam(self.network.parameters(), lr=self.recipe.learning_rate)
        checkpoint = None if path is None else Checkpoint(Path(path), self._asked())
        trace = (checkpoint.restore(self.network, optimiser, self.loader) if checkpoint else None) or []
        hidden = None if progress is None else not progress
        with tqdm(total=self.recipe.epochs, initial=len(trace), desc="train", unit="epoch", disable=hidden) as bar:
            try:
                while len(trace) < self.recipe.epochs:
                    trace.append(self._epoch(len(trace), optimiser))
                    if checkpoint:
                        checkpoint.save(self.network, optimiser, self.loader, trace)
                    bar.update()
                    bar.set_postfix(loss=trace[-1]["loss"], eps=trace[-1]["eps"])
            except KeyboardInterrupt:
                _log.warning("interrupted after %d of %d epochs", len(trace), self.recipe.epochs)
                return trace, True
        return trace, False

    def _asked(self) -> dict[str, Any]:
        """What the result depends on, beside the data and the network's own first weights."""
        shapes = [(name, list(p.shape)) for name, p in self.network.named_parameters()]
        limits = None if self.domain is None else [torch.as_tensor(v).tolist() for v in self.domain]
        settings = {"loss": repr(self.loss), "eps": repr(self.eps), "alpha": repr(self.alpha)}
        return {**settings, "recipe": repr(self.recipe), "network": repr(shapes), "domain": repr(limits)}

    def _epoch(self, epoch: int, optimiser: torch.optim.Optimizer) -> dict[str, float]:
        started = time.monotonic()
        for group in optimiser.param_groups:
            group["lr"] = self.recipe.rate(epoch)
        self.network.train()
        length = len(self.loader) if isinstance(self.loader, Sized) else None
        totals, eps, alpha = _Totals(), 0.0, 0.0
        for k, batch in enumerate(self.loader):
            time_now = epoch + (k / length if length else 0.0)
            eps, alpha = self.radius_at(time_now), self.alpha(time_now)
            x, y = _read(batch, next(self.network.parameters()))
            evaluated = self.loss.evaluate(self.network, x, y, eps, alpha, domain=self.domain)
            self._step(evaluated, eps, optimiser, f"epoch {epoch + 1}, batch {k + 1}")
            totals.add(evaluated, len(y))
        if totals.inputs == 0:
            raise InvalidInputError("the loader gave no batches; an iterator runs only once: pass what can run again")
        ends = {"eps": eps, "alpha": alpha, "learning_rate": self.recipe.rate(epoch)}
        return {**totals.means(), **ends, "seconds": time.monotonic() - started}

    def _step(self, evaluated: Evaluated, eps: float, optimiser: torch.optim.Optimizer, where: str) -> None:
        loss = evaluated.value
        if self.recipe.l1:
            loss = loss + self.recipe.l1 * l1_norm(self.network)
        weight = self.recipe.stability * (1 - eps / self.eps) if self.eps > 0 else 0.0
        if weight and evaluated.output is not None:
            loss = loss + weight * stability(evaluated.output)
        optimiser.zero_grad()
        loss.backward()
        size = nn.utils.clip_grad_norm_(self.network.parameters(), self.recipe.clip)
        if not bool(torch.isfinite(loss) & torch.isfinite(size)):
            raise DivergedError(
                f"the loss is {float(loss.detach()):g}, its gradient's norm {float(size):g}, in {where}, at radius"
                f" {eps:g}; lower the learning rate, or lengthen the ramp. The step was not taken"
            )
        optimiser.step()


@dataclass
class _Totals:
    """Sums over an epoch."""

    inputs: int = 0
    loss: float = 0.0
    right: float = 0.0
    proved: float = 0.0

    def add(self, evaluated: Evaluated, count: int) -> None:
        self.inputs += count
        self.loss += float(evaluated.value.detach()) * count
        self.right += _positive(evaluated.margins)
        self.proved += _positive(evaluated.bounds)

    def means(self) -> dict[str, float]:
        n = self.inputs
        return {"loss": self.loss / n, "accuracy": self.right / n, "proved": self.proved / n}


def _positive(margins: Tensor | None) -> float:
    return math.nan if margins is None else float((margins.amin(1) > 0).sum())


def _read(batch: Any, parameter: nn.Parameter) -> tuple[Tensor, Tensor]:
    """Inputs and class numbers on the network's device, in its precision."""
    if not isinstance(batch, list | tuple) or len(batch) != 2:
        raise InvalidInputError(
            f"the loader gave a {type(batch).__name__}; expected pairs (inputs, labels): certified training needs both"
        )
    x, y = (torch.as_tensor(v) for v in batch)
    if y.is_floating_point() or y.dtype == torch.bool:
        raise InvalidInputError(f"the labels are of {y.dtype}; expected class numbers 0, 1, ... as whole numbers")
    if not bool(torch.isfinite(x).all()):
        raise InvalidInputError("a batch has NaN or infinite entries; expected finite inputs: fill or drop them")
    return x.to(parameter.device, parameter.dtype), y.to(parameter.device).long()
