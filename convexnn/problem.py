"""The training problem: data, loss, weight decay, and its objective."""

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from convexnn.losses import AbstractLoss
from convexnn.neurons import Neurons


@dataclass(frozen=True)
class Problem:
    """min over networks of any width of J = L(f) + (weight_decay / 2) (||W||^2 + ||A||^2).

    X holds one sample a row; a first-layer bias is a column of ones in it.
    """

    X: Float[Tensor, "n d"]
    loss: AbstractLoss
    weight_decay: float
    output_bias: bool = True

    @property
    def n_inputs(self) -> int:
        """Number d of columns, the column of ones included."""
        return self.X.shape[1]

    def objective(self, neurons: Neurons) -> float:
        """J of these weights as they stand."""
        return float(self.loss.value(neurons(self.X)) + self.weight_decay * neurons.half_squared_norm())

    def constant(self) -> Float[Tensor, " K"]:
        """Output bias of the best constant network (zero where no output bias is trained)."""
        F = torch.zeros_like(self.loss.targets)
        return self.loss.optimal_bias(F) if self.output_bias else F.new_zeros(F.shape[1])

    def admit(self, V: Float[Tensor, "n K"]) -> Float[Tensor, "n K"]:
        """V moved into the domain of the dual, and onto 1'V = 0 where an output bias is trained.

        Solvers leave the domain by their rounding, in single precision by 1e-7; a bound needs a point inside.
        """
        V = self.loss.within_domain(V)
        return self.loss.balance(V) if self.output_bias else V

    def smoothed(self, width: float) -> "Problem":
        """The same problem with the kink of the loss smoothed; smooth losses stay as they are."""
        return replace(self, loss=self.loss.smoothed(width))

    def dual_point(self, F: Float[Tensor, "n K"]) -> Float[Tensor, "n K"]:
        """V = -grad L(F), moved onto 1'V = 0 where an output bias is trained."""
        return self.admit(self.loss.negative_gradient(F))

    def floor(self) -> float:
        """A difference of objectives that is rounding: 1e-13 of the loss of the best constant.

        Targets without spread around a constant are fitted up to their own rounding, squared.
        """
        return self._floor

    @cached_property
    def _floor(self) -> float:
        zero = torch.zeros_like(self.loss.targets)
        return 1e-13 * float(self.loss.value(zero + self.constant())) + 1e-28 * float(self.loss.value(zero))

    def to(self, target: torch.device | torch.dtype) -> "Problem":
        """The same problem on another device or in another precision."""
        loss = replace(self.loss, targets=self.loss.targets.to(target), weights=self.loss.weights.to(target))
        return replace(self, X=self.X.to(target), loss=loss)

    def typical_activation(self) -> float:
        """Root mean square norm of the samples: the scale of the kinks x'u for ||u|| = 1."""
        return float(torch.sqrt((self.X**2).sum(1).mean()))


@dataclass(frozen=True)
class Reduction:
    """An isometry onto the row space of X: group norms do not change, d shrinks to rank(X)."""

    basis: Float[Tensor, "d r"] | None

    def lift(self, neurons: Neurons) -> Neurons:
        """Weights for the original columns."""
        return neurons if self.basis is None else replace(neurons, W=neurons.W @ self.basis.T)

    def restrict(self, neurons: Neurons) -> Neurons:
        """Weights for the reduced columns; parts outside the row space do nothing on the data."""
        return neurons if self.basis is None else replace(neurons, W=neurons.W @ self.basis)


def reduce_to_rank(problem: Problem, tolerance: float = 2.2e-16) -> tuple[Problem, Reduction]:
    """Drop the directions in which no sample has any extent."""
    X = problem.X
    gram = X.T @ X if X.shape[1] <= X.shape[0] else None
    if gram is None:
        basis = torch.linalg.svd(X, full_matrices=False).Vh.T
        singular = (X @ basis).norm(dim=0)
    else:
        values, basis = torch.linalg.eigh(gram)
        singular = (X @ basis).norm(dim=0)  # the square roots of small eigenvalues are not accurate
        del values
    live = singular > tolerance * singular.max() * max(X.shape)
    live[-1] |= ~live.any()  # data of zeros keep one column of zeros
    if bool(live.all()) and X.shape[1] <= X.shape[0]:
        return problem, Reduction(None)
    basis = basis[:, live]
    return replace(problem, X=X @ basis), Reduction(basis)
