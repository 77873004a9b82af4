"""What robust convex programs are compared with: gradient descent on the same network, plain or on attacked samples.

GD-std descends on the loss, GD-FGSM on the loss after one signed step (Goodfellow, Shlens & Szegedy 2015), GD-PGD after
several projected ones (Madry et al. 2018). The objective has the penalty of :func:`convexnn.train`.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from convexnn.data import positive, read_matrix, read_targets
from convexnn.errors import InvalidInputError
from convexnn.robust.ball import Ball, read_ball

ATTACKS = ("std", "fgsm", "pgd")
LOSSES = ("squared", "logistic", "hinge")


@dataclass(frozen=True)
class Attack:
    """Perturbations that raise the loss of a network with one output.

    Args:
        ball: the perturbations of a sample.
        steps: projected steps; 1 from the sample itself is FGSM: the far end of the ball along the gradient.
        restarts: the first from the sample itself, further ones from random points of the ball.
        domain: lower and upper limits of every feature, or None.
        seed: of the random points.
    """

    ball: Ball
    steps: int = 1
    restarts: int = 1
    domain: tuple[float, float] | None = None
    seed: int = 0

    def __call__(
        self, network: nn.Module, X: Float[Tensor, "n d"], targets: Float[Tensor, "n 1"], loss: str
    ) -> Float[Tensor, "n d"]:
        """The perturbed samples of the largest loss, or smallest margin, on the way, the samples as given included."""
        generator, best = torch.Generator().manual_seed(self.seed), X
        with torch.no_grad():
            largest = _climbed(loss, network(X), targets)
        for restart in range(self.restarts):
            start = torch.zeros_like(X) if restart == 0 else self.ball.sample((len(X),), generator)
            point = self._inside(X + start)
            for step in range(self.steps):
                point = self._moved(network, X, point, targets, loss, step)
                with torch.no_grad():
                    values = _climbed(loss, network(point), targets)
                worse = values > largest
                largest, best = torch.maximum(values, largest), torch.where(worse[:, None], point, best)
        return best

    def last(
        self, network: nn.Module, X: Float[Tensor, "n d"], targets: Float[Tensor, "n 1"], loss: str
    ) -> Float[Tensor, "n d"]:
        """The end of the first run, for training."""
        point = X
        for step in range(self.steps):
            point = self._moved(network, X, point, targets, loss, step)
        return point

    def _moved(self, network: nn.Module, X: Tensor, at: Tensor, targets: Tensor, loss: str, step: int) -> Tensor:
        """One step; their lengths fall linearly from a half of the ball, so that they add up to more than its width."""
        at = at.detach().requires_grad_(True)
        (gradient,) = torch.autograd.grad(_climbed(loss, network(at), targets).sum(), at)
        length = 1.0 if self.steps == 1 else 0.5 * (1 - step / self.steps)
        moved = at.detach() - X + length * self.ball.worst(gradient)
        return self._inside(X + self.ball.project(moved, torch.ones_like(X[:, 0])))

    def _inside(self, points: Tensor) -> Tensor:
        return points if self.domain is None else points.clamp(*self.domain)


def sample_losses(loss: str, F: Float[Tensor, "n 1"], targets: Float[Tensor, "n 1"]) -> Float[Tensor, " n"]:
    """The loss of each sample."""
    if loss == "squared":
        return (0.5 * (F - targets) ** 2)[:, 0]
    margin = (targets * F)[:, 0]
    return torch.relu(1 - margin) if loss == "hinge" else nn.functional.softplus(-margin)


def _climbed(loss: str, F: Float[Tensor, "n 1"], targets: Float[Tensor, "n 1"]) -> Float[Tensor, " n"]:
    """What an attack raises. Of margin losses minus the margin: the hinge is flat where a sample is well classified,
    and an attack that follows it stays there.
    """
    return sample_losses(loss, F, targets) if loss == "squared" else -(targets * F)[:, 0]


@dataclass(frozen=True)
class Descent:
    """Adam on minibatches, with a step size that falls to zero along a cosine."""

    epochs: int = 200
    batch: int = 128
    step: float = 1e-2
    attack_steps: int = 10  # of "pgd"

    def __post_init__(self) -> None:
        for name in ("epochs", "batch", "attack_steps"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InvalidInputError(f"{name}={value!r}; an integer of at least 1 is expected.")
        positive(self.step, "step")


def train_by_descent(
    X: Any,
    y: Any,
    *,
    width: int,
    weight_decay: float,
    loss: str = "hinge",
    attack: str = "std",
    eps: Any = 0.0,
    norm: str = "linf",
    domain: tuple[float, float] | None = None,
    descent: Descent = Descent(),
    seed: int = 0,
) -> nn.Sequential:
    """A network Linear, ReLU, Linear of this width by gradient descent; the same seed gives the same network.

    Args:
        X: samples ``(n, d)``.
        y: targets ``(n,)``: -1 and +1 (or 0 and 1), real for ``"squared"``.
        width: hidden neurons.
        weight_decay: of J, as in :func:`convexnn.train`.
        loss: ``"hinge"``, ``"logistic"`` or ``"squared"``.
        attack: ``"std"`` (none), ``"fgsm"`` or ``"pgd"``: what happens to the samples of each minibatch.
        eps: radius, or radii of the features.
        norm: ``"linf"``, ``"l2"`` or ``"l1"``.
        domain: limits of perturbed features.
        descent: epochs, minibatches, step size.
        seed: of the weights and of the order of samples.

    Raises:
        InvalidInputError: unknown loss or attack, radii or data that cannot be used.
    """
    if attack not in ATTACKS or loss not in LOSSES:
        raise InvalidInputError(f"attack={attack!r}, loss={loss!r}; one of {ATTACKS} and one of {LOSSES} are expected.")
    samples = read_matrix(X).float()
    targets = read_targets(y, len(samples), loss).float()
    if targets.shape[1] != 1:
        raise InvalidInputError(f"y has {targets.shape[1]} columns; one output is trained here.")
    ball = read_ball(eps, norm, samples.shape[1], hidden_bias=False).to(torch.float32)
    generator = torch.Generator().manual_seed(seed)
    network = initial(samples.shape[1], width, generator)
    attacker = Attack(ball, 1 if attack == "fgsm" else descent.attack_steps, domain=domain)
    optimiser = torch.optim.Adam(network.parameters(), lr=descent.step)
    total, done = descent.epochs * math.ceil(len(samples) / descent.batch), 0
    for _ in range(descent.epochs):
        for part in torch.randperm(len(samples), generator=generator).split(descent.batch):
            inputs, wanted = samples[part], targets[part]
            if attack != "std":
                inputs = attacker.last(network, inputs, wanted, loss)
            optimiser.param_groups[0]["lr"] = 0.5 * descent.step * (1 + math.cos(math.pi * done / total))
            optimiser.zero_grad()
            objective = sample_losses(loss, network(inputs), wanted).mean() + weight_decay * _half_squares(network)
            objective.backward()
            optimiser.step()
            done += 1
    return network.double()


def initial(d: int, width: int, generator: torch.Generator) -> nn.Sequential:
    """He weights of the first layer, small ones of the second, no biases."""
    if isinstance(width, bool) or not isinstance(width, int) or width < 1:
        raise InvalidInputError(f"width={width!r}; an integer of at least 1 is expected.")
    network = nn.Sequential(nn.Linear(d, width), nn.ReLU(), nn.Linear(width, 1))
    with torch.no_grad():
        for layer, scale in zip(_layers(network), (math.sqrt(2 / d), math.sqrt(1 / width)), strict=True):
            layer.weight.copy_(scale * torch.randn(layer.weight.shape, generator=generator))
            layer.bias.zero_()
    return network


def _layers(network: nn.Sequential) -> tuple[nn.Linear, nn.Linear]:
    first, last = network[0], network[2]
    assert isinstance(first, nn.Linear)
    assert isinstance(last, nn.Linear)
    return first, last


def _half_squares(network: nn.Sequential) -> Tensor:
    first, last = _layers(network)
    return 0.5 * ((first.weight**2).sum() + (first.bias**2).sum() + (last.weight**2).sum())


@dataclass(frozen=True)
class AttackedAccuracy:
    """Shares of samples that a network classifies right: as they are, after one step, after many."""

    clean: float
    fgsm: float
    pgd: float


def attacked_accuracy(network: nn.Module, X: Any, y: Any, *, attack: Attack, loss: str = "hinge") -> AttackedAccuracy:
    """Accuracy of the sign of the output, clean, after FGSM and after ``attack`` (FGSM's points count for it too).

    Args:
        network: one output.
        X: samples ``(n, d)``.
        y: labels -1 and +1 (or 0 and 1).
        attack: the stronger attack; its ball and domain are FGSM's, too.
        loss: what attacks climb: the squared one, or of the others minus the margin.
    """
    samples = read_matrix(X)
    targets = torch.where(torch.as_tensor(read_matrix([[float(v)] for v in y], "y")) > 0, 1.0, -1.0).double()
    ball = attack.ball.to(torch.float64)
    one, many = replace(attack, ball=ball, steps=1, restarts=1), replace(attack, ball=ball)
    right = []
    for points in (samples, one(network, samples, targets, loss), many(network, samples, targets, loss)):
        with torch.no_grad():
            right.append((targets * network(points))[:, 0] > 0)
    share = [float(part.double().mean()) for part in (right[0], right[0] & right[1], right[0] & right[1] & right[2])]
    return AttackedAccuracy(*share)
