"""Losses of certified training: between the loss under attack and the loss of interval bounds.

With g(v) = log(1 + sum_j exp(-v_j)) of the margins v, attacked margins z and interval lower bounds lb (De Palma et al.,
"Expressive losses for verified robustness via convex combinations", ICLR 2024):

    CC-IBP   g(alpha lb + (1 - alpha) z)             MTL-IBP   alpha g(lb) + (1 - alpha) g(z)
    Exp-IBP  g(lb)^alpha g(z)^(1 - alpha)            SABR      g(lb on alpha times the box, around the attack)

All go from g(z) at alpha 0 to g(lb) at alpha 1, and rise in between; on the same z and lb, g(z) <= CC <= MTL and
g(z) <= Exp <= MTL.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from numbers import Real
from typing import Any, SupportsFloat

import torch
from jaxtyping import Float
from torch import Tensor, nn

from certify.errors import InvalidInputError, InvalidTypeError
from certify.training.attacks import FGSM, PGD, Attack
from certify.training.bounds import backward_margin_bounds, margin_bounds
from certify.training.enclosures import Enclosure
from certify.training.margins import log_losses, margins_of
from certify.training.passes import enclose

Domain = tuple[Any, Any] | None
_SMALLEST = 1e-30  # of a loss whose logarithm is taken


@dataclass(frozen=True, eq=False)
class Evaluated:
    """A loss and what it was made from.

    Attributes:
        value: the mean loss, a scalar.
        margins: of the network at the attacked inputs; None where there was no attack.
        bounds: lower bounds of the margins; None where none were computed.
        output: the enclosure of the network's outputs, which knows those of all layers; None likewise.
    """

    value: Float[Tensor, ""]
    margins: Float[Tensor, "batch rivals"] | None
    bounds: Float[Tensor, "batch rivals"] | None
    output: Enclosure | None


@dataclass(frozen=True)
class AbstractLoss(ABC):
    """A value `(network, x, y, eps, alpha) -> scalar`, differentiable in the network's parameters."""

    def __call__(
        self,
        network: nn.Module,
        x: Tensor,
        y: Tensor,
        eps: SupportsFloat,
        alpha: SupportsFloat = 1.0,
        *,
        domain: Domain = None,
    ) -> Float[Tensor, ""]:
        """The mean loss of a batch.

        Args:
            network: a module of the operations that `certify.verify` reads, in train or eval mode; it returns a row of
                scores, or one score (class 1 where it is positive), for every input.
            x: inputs `(batch, ...)`, of the network's precision and device.
            y: class numbers `(batch,)`.
            eps: l_inf radius, in the units of x.
            alpha: how much of the bounds, from 0 to 1; losses without it take none of it.
            domain: lowest and highest valid input (numbers, or arrays of one input's shape); None: no limits.

        Raises:
            InvalidInputError: for a negative or infinite eps, alpha outside [0, 1], labels that are no class.
            UnsupportedOp: for an operation without bounds, by name.
        """
        return self.evaluate(network, x, y, eps, alpha, domain=domain).value

    def evaluate(
        self,
        network: nn.Module,
        x: Tensor,
        y: Tensor,
        eps: SupportsFloat,
        alpha: SupportsFloat = 1.0,
        *,
        domain: Domain = None,
    ) -> Evaluated:
        """The same with the bounds it was made from, for regularisers; arguments as for the call."""
        _require_batch(x, y)
        centre, radius = box_around(x, _require_eps(eps), domain)
        return self._evaluate(network, (x, y), (centre, radius), _require_alpha(alpha))

    @property
    @abstractmethod
    def name(self) -> str:
        """What a user calls it."""

    @abstractmethod
    def _evaluate(
        self, network: nn.Module, batch: tuple[Tensor, Tensor], box: tuple[Tensor, Tensor], alpha: float
    ) -> Evaluated:
        """From checked arguments."""


def _require_batch(x: Any, y: Any) -> None:
    if not isinstance(x, Tensor) or not isinstance(y, Tensor) or not x.is_floating_point():
        raise InvalidTypeError("x and y are no tensors of real numbers and class numbers; convert them first")
    if x.ndim < 2 or y.shape != x.shape[:1] or y.is_floating_point() or not len(x):
        raise InvalidInputError(
            f"x has shape {tuple(x.shape)}, y shape {tuple(y.shape)} of {y.dtype}; expected inputs with the batch axis"
            " first, and a class number for each"
        )


def _require_eps(eps: Any) -> float:
    if not isinstance(eps, Real) or not 0 <= float(eps) < float("inf"):
        raise InvalidInputError(f"eps is {eps!r}; expected a finite radius >= 0 in the units of x")
    return float(eps)


def _require_alpha(alpha: Any) -> float:
    if not isinstance(alpha, Real) or not 0 <= float(alpha) <= 1:
        raise InvalidInputError(f"alpha is {alpha!r}; expected a number from 0 (attack only) to 1 (bounds only)")
    return float(alpha)


def box_around(x: Float[Tensor, "batch *shape"], eps: float, domain: Domain) -> tuple[Tensor, Tensor]:
    """Centre and radius of the valid inputs within eps.

    Raises:
        InvalidInputError: for inputs outside the domain.
    """
    if domain is None:
        return x, torch.full_like(x, eps)
    low, high = (torch.as_tensor(v, dtype=x.dtype, device=x.device) for v in domain)
    if bool(((x < low) | (x > high)).any()):
        raise InvalidInputError("an input is outside the domain; give the domain in the units of x, or None")
    lower, upper = torch.maximum(x - eps, low), torch.minimum(x + eps, high)
    return (lower + upper) / 2, (upper - lower) / 2


@dataclass(frozen=True)
class Natural(AbstractLoss):
    """The cross entropy of the inputs themselves: no robustness."""

    @property
    def name(self) -> str:
        """What a user calls it."""
        return "natural"

    def _evaluate(self, network: nn.Module, batch: Any, box: Any, alpha: float) -> Evaluated:
        margins = margins_of(network(batch[0]), batch[1])
        return Evaluated(log_losses(margins).mean(), margins, None, None)


@dataclass(frozen=True)
class Adversarial(AbstractLoss):
    """The cross entropy under attack: robust in practice, mostly without certificates.

    Attributes:
        attack: `PGD`, `FGSM`, or another one.
    """

    attack: Attack = PGD

    @property
    def name(self) -> str:
        """What a user calls it."""
        return "fgsm" if self.attack.steps == 1 else "pgd"

    def _evaluate(self, network: nn.Module, batch: Any, box: Any, alpha: float) -> Evaluated:
        margins = margins_of(network(self.attack(network, batch[1], *box)), batch[1])
        return Evaluated(log_losses(margins).mean(), margins, None, None)


@dataclass(frozen=True)
class IBP(AbstractLoss):
    """The cross entropy of interval bounds (Gowal et al., ICCV 2019): an upper bound of the worst one."""

    @property
    def name(self) -> str:
        """What a user calls it."""
        return "ibp"

    def _evaluate(self, network: nn.Module, batch: Any, box: Any, alpha: float) -> Evaluated:
        output, bounds = _bounded(network, batch[1], box, None)
        return Evaluated(log_losses(bounds).mean(), None, bounds, output)


@dataclass(frozen=True)
class CROWNIBP(AbstractLoss):
    """The cross entropy of alpha times CROWN's bounds and 1 - alpha times intervals (Zhang et al., ICLR 2020)."""

    @property
    def name(self) -> str:
        """What a user calls it."""
        return "crown-ibp"

    def _evaluate(self, network: nn.Module, batch: Any, box: Any, alpha: float) -> Evaluated:
        output, bounds = _bounded(network, batch[1], box, None)
        if alpha:
            bounds = alpha * backward_margin_bounds(output, batch[1]) + (1 - alpha) * bounds
        return Evaluated(log_losses(bounds).mean(), None, bounds, output)


@dataclass(frozen=True)
class AbstractExpressive(AbstractLoss):
    """Attacked margins and interval bounds, combined.

    Attributes:
        attack: what finds the attacked inputs.
    """

    attack: Attack = FGSM

    def _evaluate(self, network: nn.Module, batch: Any, box: Any, alpha: float) -> Evaluated:
        attacked = self.attack(network, batch[1], *box)
        output, bounds = _bounded(network, batch[1], box, attacked)
        assert output.points is not None  # the attacked inputs ran along
        margins = margins_of(output.points, batch[1])
        return Evaluated(self.combine(margins, bounds, alpha).mean(), margins, bounds, output)

    @abstractmethod
    def combine(
        self, margins: Float[Tensor, "batch rivals"], bounds: Float[Tensor, "batch rivals"], alpha: float
    ) -> Float[Tensor, " batch"]:
        """The loss of every input from its attacked margins and its bounds."""


@dataclass(frozen=True)
class CCIBP(AbstractExpressive):
    """Convex combinations of margins: g(alpha lb + (1 - alpha) z)."""

    @property
    def name(self) -> str:
        """What a user calls it."""
        return "cc-ibp"

    def combine(self, margins: Tensor, bounds: Tensor, alpha: float) -> Tensor:
        """g(alpha lb + (1 - alpha) z)."""
        return log_losses(alpha * bounds + (1 - alpha) * margins)


@dataclass(frozen=True)
class MTLIBP(AbstractExpressive):
    """Convex combinations of losses: alpha g(lb) + (1 - alpha) g(z)."""

    @property
    def name(self) -> str:
        """What a user calls it."""
        return "mtl-ibp"

    def combine(self, margins: Tensor, bounds: Tensor, alpha: float) -> Tensor:
        """alpha g(lb) + (1 - alpha) g(z)."""
        return alpha * log_losses(bounds) + (1 - alpha) * log_losses(margins)


@dataclass(frozen=True)
class ExpIBP(AbstractExpressive):
    """Convex combinations of logarithms of losses: g(lb)^alpha g(z)^(1 - alpha)."""

    @property
    def name(self) -> str:
        """What a user calls it."""
        return "exp-ibp"

    def combine(self, margins: Tensor, bounds: Tensor, alpha: float) -> Tensor:
        """g(lb)^alpha g(z)^(1 - alpha)."""
        above, below = (log_losses(v).clamp(min=_SMALLEST).log() for v in (bounds, margins))
        return (alpha * above + (1 - alpha) * below).exp()


@dataclass(frozen=True)
class SABR(AbstractLoss):
    """Intervals on a box of alpha times the radius around an attack, inside the whole one (Mueller et al., ICLR 2023).

    Attributes:
        attack: what finds the small box's centre.
    """

    attack: Attack = PGD

    @property
    def name(self) -> str:
        """What a user calls it."""
        return "sabr"

    def _evaluate(self, network: nn.Module, batch: Any, box: Any, alpha: float) -> Evaluated:
        centre, radius = box
        # The attack runs in the box of centres, so that nothing has to be moved inside afterwards.
        attacked = self.attack(network, batch[1], centre, (1 - alpha) * radius)
        output, bounds = _bounded(network, batch[1], (attacked, alpha * radius), attacked)
        assert output.points is not None  # the attacked inputs ran along
        return Evaluated(log_losses(bounds).mean(), margins_of(output.points, batch[1]), bounds, output)


def _bounded(
    network: nn.Module, labels: Tensor, box: tuple[Tensor, Tensor], points: Tensor | None
) -> tuple[Enclosure, Tensor]:
    output = enclose(network, *box, points)
    margins_of(output.centre, labels)  # raises where the labels do not fit
    return output, margin_bounds(output, labels)


LOSSES: dict[str, AbstractLoss] = {
    loss.name: loss
    for loss in (Natural(), Adversarial(), Adversarial(FGSM), IBP(), CROWNIBP(), CCIBP(), MTLIBP(), ExpIBP(), SABR())
}


def loss_of(method: Any) -> AbstractLoss:
    """A loss by name, or the one given."""
    if isinstance(method, AbstractLoss):
        return method
    if not isinstance(method, str) or method not in LOSSES:
        raise InvalidInputError(f"method is {method!r}; expected one of {', '.join(LOSSES)}, or a loss")
    return LOSSES[method]
