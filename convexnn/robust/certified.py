"""What a network guarantees on a ball around each sample: bounds of its output by linear bounds of each neuron.

For any slope d in [0, 1], (t)_+ >= d t, and on [m - r, m + r] also (t)_+ <= d t + max((1 - d)(m + r), d (r - m), 0).
Neurons that help a bound take the first, the others the second. Slopes 0 and 1 by the side that a sample is on are
exact where no neuron changes sides; the chord (m + r) / 2r is the tightest for a neuron alone (Zhang et al. 2018).
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from convexnn.losses import AbstractMarginLoss
from convexnn.neurons import Neurons
from convexnn.problem import Problem
from convexnn.robust.ball import Ball
from convexnn.robust.program import Outputs, worst_outputs


@dataclass(frozen=True)
class Signed:
    """Neurons of one output as signed weights: f = sum_j s_j (x'u_j)_+ + b."""

    u: Float[Tensor, "k d"]
    signs: Float[Tensor, " k"]
    bias: Float[Tensor, " 1"]

    @classmethod
    def of(cls, neurons: Neurons) -> "Signed":
        """u = |a| w, s = sign a."""
        a = neurons.A[:, 0]
        return cls(a.abs()[:, None] * neurons.W, torch.where(a >= 0, 1.0, -1.0).to(a), neurons.bias)

    def ranges(self, X: Float[Tensor, "n d"], ball: Ball) -> tuple[Float[Tensor, "n k"], Float[Tensor, " k"]]:
        """Centre m and half-width r of x'u over the ball."""
        return X @ self.u.T, ball.support(self.u)


def own_slopes(m: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
    """One where the sample itself is on the active side."""
    return (m >= 0).to(m)


def chords(m: Float[Tensor, "n k"], r: Float[Tensor, " k"]) -> Float[Tensor, "n k"]:
    """(m + r) / 2r, cut to [0, 1]; of a neuron that cannot move, its own side."""
    return torch.where(r > 0, ((m + r) / (2 * r).clamp(min=1e-300)).clamp(0.0, 1.0), own_slopes(m))


def lower_bound(
    signed: Signed, X: Float[Tensor, "n d"], ball: Ball, slopes: Float[Tensor, "n k"]
) -> Float[Tensor, " n"]:
    """A lower bound of f over the ball around each row of X, whatever the slopes in [0, 1]."""
    m, r = signed.ranges(X, ball)
    z = (slopes * signed.signs) @ signed.u
    excess = torch.maximum((1 - slopes) * (m + r), slopes * (r - m)).clamp(min=0.0)
    return (X * z).sum(1) - ball.support(z) - excess @ (signed.signs < 0).to(m) + signed.bias


ENDS = (1.0, -1.0)  # the lower and the upper end of the output
Known = Float[Tensor, "n k"] | Float[Tensor, "2 n k"]  # slopes for both ends, or for the lower and for the upper one


def output_bounds(neurons: Neurons, X: Float[Tensor, "n d"], ball: Ball, known: Known | None = None) -> Outputs:
    """The best of two or three choices of slopes at each end; the upper bound is the lower one of -f, negated.

    ``known`` are slopes to try too: those that a program was solved with are better for its network than its own sides.
    """
    signed = Signed.of(neurons)
    if known is not None and known.ndim == 2:
        known = known.expand(2, -1, -1)
    low, high = (best_end(signed, X, ball, end, None if known is None else known[k])[0] for k, end in enumerate(ENDS))
    return Outputs(low, -high)


def best_end(
    signed: Signed, X: Float[Tensor, "n d"], ball: Ball, end: float, known: Float[Tensor, "n k"] | None = None
) -> tuple[Float[Tensor, " n"], Float[Tensor, "n k"]]:
    """The best lower bound of f (end +1) or of -f (end -1), and the slopes that give it at each sample."""
    signed = replace(signed, signs=end * signed.signs, bias=end * signed.bias)
    m, r = signed.ranges(X, ball)
    own = own_slopes(m)
    tried = [own, torch.where(signed.signs < 0, chords(m, r), own)]
    if known is not None:
        tried.append(known)
    bounds = torch.stack([lower_bound(signed, X, ball, slopes) for slopes in tried])
    best, which = bounds.max(0)
    return best, torch.stack(tried)[which, torch.arange(len(X), device=X.device)]


def certified_objective(problem: Problem, ball: Ball, neurons: Neurons, known: Known | None = None) -> float:
    """The loss at the worst output within the bounds, plus the penalty of the weights as they stand.

    At least the worst case over the balls, up to rounding (double precision, not rounded outward); equal to it where
    no active neuron changes sides on any ball.
    """
    margin = isinstance(problem.loss, AbstractMarginLoss)
    F = worst_outputs(problem.loss.targets, output_bounds(neurons, problem.X, ball, known), margin=margin)
    return float(problem.loss.value(F) + problem.weight_decay * neurons.half_squared_norm())
