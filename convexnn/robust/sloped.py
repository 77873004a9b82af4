"""Robust objectives for given slopes of each neuron: convex in the weights, and at least the network's worst case.

For any slope d in [0, 1] a neuron t = x'u obeys, on a ball where t stays within r = r(u) of its centre m,
d t <= (t)_+ <= d t + max((1 - d)(m + r), d (r - m)). With one slope for each neuron, sample and end of the output this
bounds the output as :mod:`convexnn.robust.certified` does, but as a function of the weights. Slopes of 0 and 1 by an
activation pattern are the soft cones of :mod:`convexnn.robust.program`; those that are tight at a given
network give a majorant of its certified loss that touches it there.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from convexnn.losses import AbstractMarginLoss
from convexnn.neurons import Neurons
from convexnn.problem import Problem
from convexnn.robust.ball import Ball


@dataclass(frozen=True)
class SlopedProgram:
    """min over signed weights u_j of the loss at the worst ends of the output, plus weight_decay * sum_j ||u_j||.

    The ends that a loss looks at are one for each sample for losses of the margin, the one on the side of its
    target (``ends`` = y), and both for the squared loss (+1 the lower one, -1 the upper one).
    """

    problem: Problem
    ball: Ball
    signs: Float[Tensor, " K"]
    slopes: Float[Tensor, "q K n"]

    @property
    def margin_loss(self) -> bool:
        """Whether the loss falls with y f; else it is the squared one."""
        return isinstance(self.problem.loss, AbstractMarginLoss)

    @cached_property
    def ends(self) -> Float[Tensor, "q n"]:
        """+1 where the lower end of the output counts, -1 where the upper one does."""
        return ends_of(self.problem)

    @cached_property
    def goal(self) -> Float[Tensor, "q n"]:
        """What the ends are compared with: see :meth:`shortfall`."""
        y = self.problem.loss.targets[:, 0]
        if not self.margin_loss:
            return self.ends * y
        return torch.full_like(y, 1.0 if self.problem.loss.name == "hinge" else 0.0)[None]

    @cached_property
    def mixing(self) -> Float[Tensor, "q K n"]:
        """Signed slopes: z = sum_j mixing_j u_j is the slope of the linear bound at each sample."""
        return self.signs[:, None] * self.slopes

    @cached_property
    def harmful(self) -> Bool[Tensor, "q K n"]:
        """Where a neuron moves the end the wrong way, so that its upper bound counts."""
        return self.signs[:, None] * self.ends[:, None, :] < 0

    def shortfall(self, U: Float[Tensor, "K d"], bias: Float[Tensor, " 1"]) -> Float[Tensor, "q n"]:
        """goal - ends * (x'z + b) + r(z) + excesses of harmful neurons: at least goal - ends * f on the whole ball."""
        X, ball = self.problem.X, self.ball
        m, r = U @ X.T, ball.support(U)[:, None]
        excess = torch.maximum((1 - self.slopes) * (m + r), self.slopes * (r - m))
        z = self.mixing.mT @ U
        f = (X * z).sum(-1) + bias
        return self.goal - self.ends * f + ball.support(z) + torch.where(self.harmful, excess, 0.0).sum(1)

    def objective(self, U: Float[Tensor, "K d"], bias: Float[Tensor, " 1"]) -> float:
        """The convex objective."""
        short = self.shortfall(U, bias)
        y = self.problem.loss.targets[:, 0]
        worst = self.ends[0] * (self.goal[0] - short[0]) if self.margin_loss else y + short.amax(0)
        return float(self.problem.loss.value(worst[:, None]) + self.problem.weight_decay * U.norm(dim=1).sum())

    def network(self, U: Float[Tensor, "K d"], bias: Float[Tensor, " 1"]) -> Neurons:
        """The network of these weights, balanced, neurons in the same order, zero ones too."""
        root = U.norm(dim=1, keepdim=True).sqrt()
        return Neurons(U / root.clamp(min=1e-150), self.signs[:, None] * root, bias)


def ends_of(problem: Problem) -> Float[Tensor, "q n"]:
    """The ends of the output that the loss looks at: see :class:`SlopedProgram`."""
    y = problem.loss.targets[:, 0]
    if isinstance(problem.loss, AbstractMarginLoss):
        return torch.where(y > 0, 1.0, -1.0).to(y)[None]
    return torch.stack([torch.ones_like(y), -torch.ones_like(y)])
