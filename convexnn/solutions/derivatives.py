"""How an optimal network moves with weight decay, targets and sample weights, by implicit differentiation.

At a stationary point on its kinks (:class:`convexnn.solutions.active_set.ActiveSet`) the gradient g(q; theta) is zero
and the Hessian H is positive definite where contributions are independent. So dq = -H^-1 (dg/dtheta) dtheta as
long as the active set stays: kinks keep multipliers inside their interval, other samples keep their sides.
"""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from convexnn.data import read_matrix
from convexnn.errors import InvalidInputError, SolverError
from convexnn.neurons import unit_rows
from convexnn.solutions.active_set import ActiveSet, stationary
from convexnn.solutions.pruning import pruned_neurons, read_network
from convexnn.task import Task

_LOSSES = ("squared", "logistic", "softmax")
_SINGULAR = 1e-12
_RESIDUAL = 1e-6
_MINIMAL_TOL = 1e-6


@dataclass(frozen=True)
class Sensitivity:
    """Derivatives at the stationary point next to a network.

    They hold while the active set stays: ``distance`` says how near the next change is, in two relative measures, of
    samples to kinks and of multipliers to the ends of their intervals; the smaller one.
    """

    at: ActiveSet = field(repr=False)
    task: Task = field(repr=False)
    condition: float  # smallest over largest eigenvalue of the scaled Hessian
    distance: float
    n_neurons: int
    n_kinks: int  # samples on which a neuron has its kink

    @property
    def objective(self) -> float:
        """J of the stationary point."""
        return self.at.objective

    @property
    def objective_by_weight_decay(self) -> float:
        """dJ / d weight_decay: the penalty sum ||w_j|| ||a_j|| (the envelope theorem)."""
        return float(self.at.Z.norm(dim=1).sum())

    @cached_property
    def step_by_weight_decay(self) -> Float[Tensor, " p"]:
        """dq / d weight_decay of the coordinates of the active set."""
        at = self.at
        units = unit_rows(at.Z)
        parts = [N.T @ u for N, u in zip(at.bases, units, strict=True)]
        free = at.bias.new_zeros(len(at.bias) if at.problem.output_bias else 0)
        return -at.solve(torch.cat([*parts, free]))

    @property
    def outputs_by_weight_decay(self) -> Float[Tensor, "n K"]:
        """dF / d weight_decay on the data."""
        return self.at.jacobian @ self.step_by_weight_decay

    @property
    def weights_by_weight_decay(self) -> tuple[Float[Tensor, "k d"], Float[Tensor, " K"]]:
        """d z_j / d weight_decay, z_j = ||a_j|| w_j in the columns of X, a first-layer bias last; and of the bias."""
        dZ, db = self.at.moves(self.step_by_weight_decay)
        basis = self.task.reduction.basis
        return (dZ if basis is None else dZ @ basis.T), db

    @cached_property
    def influence(self) -> Float[Tensor, "N N"]:
        """dF / dy, samples and outputs flattened; squared loss and softmax (of target probabilities).

        Its trace is the effective number of degrees of freedom of the fit.
        """
        if self.at.problem.loss.name == "logistic":
            raise InvalidInputError("labels do not move continuously; see outputs_by_sample_weight for this loss.")
        J = self.at.jacobian
        J = J.reshape(-1, J.shape[2])
        weights = self.at.problem.loss.weights.repeat_interleave(self.at.C.shape[1])
        return J @ self.at.solve(J.T * weights)

    @cached_property
    def outputs_by_sample_weight(self) -> Float[Tensor, "N n"]:
        """dF / d c_i of the weights c_i of the mean loss (1/n where none were given), without renormalising them."""
        at = self.at
        each = at.dual / at.problem.loss.weights[:, None]  # -dl_i/dF_i
        pull = (at.jacobian * each[:, :, None]).sum(1)
        return at.jacobian.flatten(0, 1) @ at.solve(pull.T)


def sensitivity(
    network: nn.Module,
    X: Any,
    y: Any,
    *,
    weight_decay: float,
    loss: str = "squared",
    sample_weight: Any = None,
) -> Sensitivity:
    """Derivatives of an optimal network with respect to weight decay, targets and sample weights.

    The network is pruned to a minimal one, and Newton's method on its active set takes it to a stationary point nearby.
    One output, or several where each neuron feeds one of them (others keep the directions of their output weights).

    Args:
        network: torch module computing Linear, ReLU, Linear, trained with this weight decay and loss.
        X: features ``(n, d)``.
        y: targets, as for :func:`convexnn.train`.
        weight_decay: above zero.
        loss: ``"squared"``, ``"logistic"`` or ``"softmax"``.
        sample_weight: positive weights ``(n,)``.

    Raises:
        UnsupportedNetworkError, InvalidInputError: as for :func:`prune`; a loss with kinks.
        SolverError: no stationary point was reached, or the Hessian there is singular: the network is not unique.

    """
    if loss not in _LOSSES:
        raise InvalidInputError(f"loss={loss!r} is not twice differentiable; choose one of {', '.join(_LOSSES)}.")
    read_matrix(X)
    task, given = read_network(network, X, y, loss, weight_decay, sample_weight)
    with torch.no_grad():
        _, minimal, _ = pruned_neurons(task.reduced, task.reduction.restrict(given), _MINIMAL_TOL)
        at = stationary(task.reduced, minimal)
        if at.residual > _RESIDUAL:
            raise SolverError(
                f"no stationary point was reached near the network: the gradient is {at.residual:.1e} of the weight "
                "decay. Train it longer, or check loss and weight_decay."
            )
        if len(at.Z) and float(at.excess()[0].max()) > _RESIDUAL:
            raise SolverError(
                "the stationary point near the network is no local minimum: the objective falls off a kink. Train it "
                "longer, or check loss and weight_decay."
            )
        if at.condition < _SINGULAR:
            raise SolverError(
                f"the Hessian is singular (condition {at.condition:.1e}): the network next to this one is not unique."
            )
        return Sensitivity(at, task, at.condition, _distance(at), len(at.Z), int(at.kinks.sum()))


def _distance(at: ActiveSet) -> float:
    """Of samples off kinks to the kink, relative to both norms, and of multipliers to their ends; the smaller."""
    scale = at.problem.X.norm(dim=1) * at.Z.norm(dim=1, keepdim=True)
    off = torch.where(~at.kinks & (scale > 0), (at.Z @ at.problem.X.T).abs() / scale.clamp(min=1e-300), torch.inf)
    shares = at.shares()
    inside = torch.where(at.kinks, torch.minimum(shares, 1 - shares), torch.inf)
    return min([float(part.min()) for part in (off, inside) if part.numel()], default=float("inf"))
