"""Smooth lower bounds of the sloped objectives, whose gradients are points of the dual.

Every kink is a maximum over multipliers in a convex set; subtracting half their squared distance to a centre makes it
smooth (Moreau 1965; Nesterov 2005), and the maximisers are what the dual needs: weights of the samples, perturbations,
sides of the neurons, unit directions. Taking the maximisers as the next centre is the method of multipliers
(Rockafellar 1976): the smoothing error vanishes at a fixed width.
"""

from dataclasses import dataclass, fields
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from convexnn.robust.ball import Ball
from convexnn.robust.sloped import SlopedProgram
from convexnn.solvers.quasi_newton import Valued

_FIRST_WEIGHT = 0.5


@dataclass(frozen=True)
class Centre:
    """Multipliers: each in its set, so that any of them gives a lower bound."""

    level: Float[Tensor, " n"]  # hinge: weight of the sample, relative; squared: in [-1, 1], which end counts
    worst: Float[Tensor, "q n d"]  # a perturbation for each sample and end, over the radii
    sides: Float[Tensor, "q K n"]  # which of the two bounds of a harmful neuron counts, in [0, 1]
    own: Float[Tensor, "K d"]  # the same for each neuron
    unit: Float[Tensor, "K d"]  # inside the unit ball

    def parts(self) -> tuple[Tensor, ...]:
        """The tensors in order."""
        return tuple(getattr(self, part.name) for part in fields(self))


@dataclass(frozen=True)
class Evaluated(Valued):
    """The smoothed objective, the maximisers, and the weight on each end of each sample.

    The gradient is that of U, row by row, then of the bias where there is one.
    """

    maximisers: Centre
    weights: Float[Tensor, "q n"]


@dataclass(frozen=True)
class Smoothed:
    """The objective of a program, smoothed over a width in units of the output."""

    program: SlopedProgram
    width: float

    @cached_property
    def _unit_ball(self) -> Ball:
        """The ball in units of its radii."""
        ball = self.program.ball
        return Ball((ball.radii > 0).to(ball.radii), ball.norm)

    @cached_property
    def _reach_width(self) -> float:
        """Of multipliers that are perturbations; a cube's are as long as the root of its dimension."""
        ball = self.program.ball
        return self.width / (max(1, int((ball.radii > 0).sum())) if ball.norm == "linf" else 1)

    @cached_property
    def _norm_width(self) -> float:
        return self.width / max(self.program.problem.typical_activation(), 1e-300)

    def centre(self) -> Centre:
        """The first one."""
        program = self.program
        X, (q, K, _) = program.problem.X, program.slopes.shape
        level = torch.full_like(X[:, 0], _FIRST_WEIGHT if program.margin_loss else 0.0)
        zero = X.new_zeros((K, X.shape[1]))
        return Centre(level, X.new_zeros((q, *X.shape)), program.slopes.clone(), zero, zero)

    def split(self, x: Float[Tensor, " N"]) -> tuple[Float[Tensor, "K d"], Float[Tensor, " 1"]]:
        """U and the bias of a flat point."""
        program = self.program
        K, d = program.slopes.shape[1], program.problem.n_inputs
        bias = x[K * d :] if program.problem.output_bias else x.new_zeros(1)
        return x[: K * d].reshape(K, d), bias

    def joined(self, U: Float[Tensor, "K d"], bias: Float[Tensor, " 1"]) -> Float[Tensor, " N"]:
        """The flat point."""
        return torch.cat([U.reshape(-1), bias]) if self.program.problem.output_bias else U.reshape(-1)

    def evaluate(self, x: Float[Tensor, " N"], centre: Centre) -> Evaluated:
        """In dense products with the samples and the slopes."""
        program, problem, D = self.program, self.program.problem, self.program.slopes
        (U, bias), X, radii = self.split(x), problem.X, program.ball.radii
        z, m = program.mixing.mT @ U, U @ X.T
        reach, worst = self._support(z, centre.worst)
        r, own = self._support(U, centre.own)
        low, across = D * (r[:, None] - m), m + (1 - 2 * D) * r[:, None]
        sides = (centre.sides + across / self.width).clamp(0.0, 1.0)
        excess = low + sides * across - 0.5 * self.width * (sides - centre.sides) ** 2
        excess = torch.where(program.harmful, excess, 0.0).sum(1)
        short = program.goal - program.ends * ((X * z).sum(-1) + bias) + reach + excess
        value, weights, level = self._loss(short, centre.level)
        norm, unit = self._norm(U, centre.unit)
        charged = torch.where(program.harmful, weights[:, None, :], 0.0)
        onto = charged * (sides - D) - program.mixing * (program.ends * weights)[:, None, :]
        stretch = (charged * (D + sides * (1 - 2 * D))).sum((0, 2))
        gradient = onto.sum(0) @ X + (program.mixing @ (weights[..., None] * (radii * worst))).sum(0)
        gradient = gradient + stretch[:, None] * (radii * own) + problem.weight_decay * unit
        slope = -(program.ends * weights).sum()[None]
        value = value + problem.weight_decay * norm
        maximisers = Centre(level, worst, sides, own, unit)
        return Evaluated(value, self.joined(gradient, slope), maximisers, weights)

    def _support(self, Z: Float[Tensor, "*lead d"], centre: Float[Tensor, "*lead d"]) -> tuple[Tensor, Tensor]:
        """The smoothed support function of the ball, and where it is attained."""
        width, Z = self._reach_width, self.program.ball.radii * Z
        unit = self._unit_ball.project(centre + Z / width, torch.ones_like(Z[..., 0]))
        return (unit * Z).sum(-1) - 0.5 * width * ((unit - centre) ** 2).sum(-1), unit

    def _norm(self, U: Float[Tensor, "K d"], centre: Float[Tensor, "K d"]) -> tuple[Tensor, Tensor]:
        """The smoothed sum of norms."""
        width = self._norm_width
        unit = centre + U / width
        unit = unit / unit.norm(dim=1, keepdim=True).clamp(min=1.0)
        return (unit * U).sum() - 0.5 * width * ((unit - centre) ** 2).sum(), unit

    def _loss(self, short: Float[Tensor, "q n"], centre: Float[Tensor, " n"]) -> tuple[Tensor, Tensor, Tensor]:
        """The smoothed loss, its slope in each shortfall, and its own multipliers."""
        loss = self.program.problem.loss
        if loss.name == "logistic":
            return loss.weights @ torch.nn.functional.softplus(short[0]), loss.weights * torch.sigmoid(short), centre
        if loss.name == "hinge":
            level = (centre + short[0] / self.width).clamp(0.0, 1.0)
            value = level * short[0] - 0.5 * self.width * (level - centre) ** 2
            return loss.weights @ value, (loss.weights * level)[None], level
        half = 0.5 * (short[0] - short[1])
        level = (centre + half / self.width).clamp(-1.0, 1.0)
        worst = 0.5 * (short[0] + short[1]) + level * half - 0.5 * self.width * (level - centre) ** 2
        worst = worst.clamp(min=0.0)
        weights = 0.5 * loss.weights * worst * torch.stack([1 + level, 1 - level])
        return 0.5 * loss.weights @ worst**2, weights, level
