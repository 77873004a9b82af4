"""The loss inside the interior point: gradient and curvature in the outputs, the kink of the hinge as cones."""

import abc
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float

from convexnn.losses import AbstractLoss

Array = np.ndarray


@dataclass(frozen=True)
class Model:
    """grad + offset + curvature df: the gradient of the loss after a step df of the outputs."""

    gradient: Float[Array, " n"]
    curvature: Float[Array, " n"]
    offset: Float[Array, " n"]


class AbstractTerm(abc.ABC):
    """A loss of one output at a point f, with whatever cones it needs."""

    @property
    def degree(self) -> int:
        """Of the barrier of its cones."""
        return 0

    def complementarity(self) -> float:
        """Inner product of its slacks and multipliers."""
        return 0.0

    def residual(self) -> float:
        """Largest violation of its own equations."""
        return 0.0

    @abc.abstractmethod
    def model(self, sigma_mu: float, correct: bool) -> Model:
        """The Newton model with centring sigma_mu; ``correct`` uses the second-order term of the last direction."""

    def direct(self, df: Float[Array, " n"]) -> "AbstractTerm":
        """The term with the direction that df implies."""
        del df
        return self

    def step(self) -> float:
        """How far the direction stays inside its cones."""
        return np.inf

    @abc.abstractmethod
    def move(self, t: float, f: Float[Array, " n"]) -> "AbstractTerm":
        """The term after a step t to the outputs f."""


@dataclass(frozen=True)
class SmoothTerm(AbstractTerm):
    """A twice differentiable loss: nothing but its Taylor model."""

    loss: AbstractLoss
    f: Float[Array, " n"]

    def model(self, sigma_mu: float, correct: bool) -> Model:
        """Gradient and second derivative at f."""
        del sigma_mu, correct
        F = torch.from_numpy(self.f[:, None])
        curvature = self.loss.curvature(F).numpy()[:, 0]
        return Model(
            -self.loss.negative_gradient(F).numpy()[:, 0], np.maximum(curvature, 1e-12 * self._scale()), 0 * self.f
        )

    def _scale(self) -> float:
        return float(self.loss.weights.max())

    def move(self, t: float, f: Float[Array, " n"]) -> "SmoothTerm":
        """At the outputs f."""
        del t
        return replace(self, f=f)


@dataclass(frozen=True)
class HingeTerm(AbstractTerm):
    """c (1 - y f)_+ as c e with e >= 0 and e - 1 + y f >= 0; multipliers lam (2, n)."""

    y: Float[Array, " n"]
    weights: Float[Array, " n"]
    f: Float[Array, " n"]
    e: Float[Array, " n"]
    slack: Float[Array, "2 n"]
    lam: Float[Array, "2 n"]
    target: Float[Array, "2 n"] | None = None  # of the scaled complementarity, of the last model
    d_e: Float[Array, " n"] | None = None
    d_slack: Float[Array, "2 n"] | None = None
    d_lam: Float[Array, "2 n"] | None = None

    @staticmethod
    def begin(loss: AbstractLoss, f: Float[Array, " n"]) -> "HingeTerm":
        """A centred point at f."""
        y, weights = loss.targets.numpy()[:, 0], loss.weights.numpy()
        e = np.maximum(0.0, 1 - y * f) + 1.0
        slack = np.stack([e, e - 1 + y * f])
        return HingeTerm(y, weights, f, e, slack, np.broadcast_to(weights / 2, slack.shape).copy())

    @property
    def degree(self) -> int:
        """Two rows a sample."""
        return self.slack.size

    def complementarity(self) -> float:
        """slack'lam."""
        return float((self.slack * self.lam).sum())

    def residual(self) -> float:
        """Of c = lam_1 + lam_2, relative to c."""
        return float(np.abs((self.weights - self.lam.sum(0)) / self.weights).max())

    def _primal_residual(self) -> Float[Array, "2 n"]:
        return np.stack([self.e, self.e - 1 + self.y * self.f]) - self.slack

    def _pull(self, sigma_mu: float, correct: bool) -> Float[Array, "2 n"]:
        """lam + dlam where ds = 0, minus lam: W^-1 (point \\ rc) - P r_p."""
        right = sigma_mu - self.slack * self.lam
        if correct:
            right = right - self.d_slack * self.d_lam  # type: ignore[operator]
        return right / self.slack - self.lam / self.slack * self._primal_residual()

    def model(self, sigma_mu: float, correct: bool) -> Model:
        """e eliminated: curvature P1 P2 / (P1 + P2) with P = lam / slack."""
        P, pull = self.lam / self.slack, self._pull(sigma_mu, correct)
        shift = (-(self.weights - self.lam.sum(0)) + pull.sum(0)) / P.sum(0)
        curvature = P[0] * P[1] / P.sum(0)
        return Model(-self.y * self.lam[1], np.maximum(curvature, 1e-12), self.y * (P[1] * shift - pull[1]))

    def directed(self, df: Float[Array, " n"], sigma_mu: float, correct: bool) -> "HingeTerm":
        """With the direction of e, slack and lam."""
        P, pull = self.lam / self.slack, self._pull(sigma_mu, correct)
        shift = (-(self.weights - self.lam.sum(0)) + pull.sum(0)) / P.sum(0)
        d_e = shift - P[1] / P.sum(0) * self.y * df
        change = np.stack([d_e, d_e + self.y * df])
        return replace(self, d_e=d_e, d_slack=change + self._primal_residual(), d_lam=pull - P * change)

    def step(self) -> float:
        """To the boundary of slack and lam."""
        assert self.d_slack is not None
        assert self.d_lam is not None
        ratios = np.concatenate([(-self.d_slack / self.slack).ravel(), (-self.d_lam / self.lam).ravel()])
        worst = float(ratios.max())
        return 1 / worst if worst > 0 else np.inf

    def move(self, t: float, f: Float[Array, " n"]) -> "HingeTerm":
        """After a step t."""
        assert self.d_e is not None
        assert self.d_slack is not None
        assert self.d_lam is not None
        return replace(
            self, f=f, e=self.e + t * self.d_e, slack=self.slack + t * self.d_slack, lam=self.lam + t * self.d_lam
        )
