"""All optimal networks of a training problem, not one: the polyhedron of optimal solutions.

For a strictly convex loss V = -grad L is the same at every optimum. A block of the convex program over activation
patterns can be active where the projection p of its correlation s X'D V on its cone has the norm of the weight decay,
and it is then a multiple of p (Mishkin & Pilanci, ICML 2023; that p is the projection is Moreau's decomposition).
So with unit neurons u = p / ||p|| the optimal networks are

    F(x) = sum_j x_j (x'u_j)_+ c_j + b,   x >= 0,   outputs on the data as at one optimum:

a bounded polyhedron in x, all of whose points have the penalty weight_decay sum_j x_j = <V, F>.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from convexnn.data import read_loss, read_matrix
from convexnn.errors import InvalidInputError
from convexnn.network import to_torch
from convexnn.neurons import Neurons
from convexnn.result import relative_gap
from convexnn.solutions.polytope import Polytope
from convexnn.task import Task, seed_of

_FIT = 1e-8  # largest change of an output of any element, relative to the largest output
_ROUNDING = 1e-10  # weights, relative to the largest, that count as zero
_POINTS = 2000  # at which functions are compared, at most


@dataclass(frozen=True)
class OptimalNetwork:
    """One element of an optimal set, checked: its outputs on the data, its objective, its weights x >= 0."""

    network: nn.Sequential = field(repr=False)
    weights: Float[np.ndarray, " m"] = field(repr=False)
    n_neurons: int
    objective: float  # recomputed from the weights of ``network``
    fit_change: float  # largest difference of an output from those of the set, relative to the largest output
    value: float  # of the criterion that it was chosen by


@dataclass(frozen=True)
class OptimalSet:
    """The optimal networks over the patterns that ``kind`` names, as weights x >= 0 of fixed unit neurons.

    ``kind`` is ``"sampled-program"``, ``"all-patterns"`` or ``"local-search"``: with the last, neurons were searched
    from many starts, so that the true set can be larger.
    """

    task: Task = field(repr=False)
    neurons: Neurons = field(repr=False)  # unit neurons u_j with unit output weights c_j; bias of the reference
    reference: Float[np.ndarray, " m"] = field(repr=False)
    output: Float[Tensor, "n K"] = field(repr=False)  # F on the data, of every element
    kind: str
    objective: float
    bound: float  # of the same networks, at V
    tolerance: float  # neurons whose correlation is within this of the weight decay, relatively, are in the set
    separation: float  # how far below the weight decay, relatively, the next correlation is; inf: a tenth or more
    residual: float  # of the stationarity of the reference, relative to the weight decay
    blocks: int  # blocks of the program with that correlation; several can hold one neuron

    @property
    def gap(self) -> float:
        """Relative gap between objective and bound."""
        return relative_gap(self.objective, self.bound)

    @cached_property
    def features(self) -> Float[np.ndarray, "N m"]:
        """Outputs of the unit neurons on the data, an output bias taken off."""
        P = contributions(self.neurons, self.task.reduced.X)
        if self.task.reduced.output_bias:
            P = P - P.mean(0)
        return P.flatten(0, 1).numpy()

    @cached_property
    def polytope(self) -> Polytope:
        """The weights x."""
        return Polytope(self.features, self.reference)

    @property
    def dimension(self) -> int:
        """Zero where the weights of the optimal network are unique (up to neurons split into parallel ones)."""
        return self.polytope.dimension

    @cached_property
    def function_dimension(self) -> int:
        """Of the functions that the elements are, off the data too: at most :attr:`dimension`.

        Different weights can be one function: pairs u and -u add up to linear parts, which can cancel everywhere. Found
        from the outputs at random points of the size of the data.
        """
        B = self.polytope.basis
        if B.shape[1] == 0:
            return 0
        X, rng = self.task.full.X, np.random.default_rng(0)
        columns = X[:, :-1] if self.task.hidden_bias else X
        size = 2 * max(float(columns.norm() / columns.numel() ** 0.5), 1e-300)
        points = size * rng.standard_normal((min(20 * len(B), _POINTS), columns.shape[1]))
        return int(np.linalg.matrix_rank(self.outputs_at(points)[0] @ B, tol=1e-8 * float(np.abs(self.features).max())))

    @property
    def unique(self) -> bool:
        """Whether there is one optimal network only."""
        return self.dimension == 0

    def element(self, weights: Float[np.ndarray, " m"], value: float = float("nan")) -> OptimalNetwork:
        """The network of weights x, after a check that it is optimal.

        Raises:
            InvalidInputError: x has a negative entry, or other outputs than the set (beyond 1e-8).
        """
        weights = np.asarray(weights, dtype=float)
        if weights.shape != self.reference.shape or not (np.isfinite(weights) & (weights >= 0)).all():
            raise InvalidInputError(f"weights of shape {self.reference.shape}, finite and >= 0, are expected.")
        weights = np.where(weights > _ROUNDING * weights.max(initial=0.0), weights, 0.0)
        neurons = self._network(torch.from_numpy(weights))
        scale = max(float(self.output.abs().max()), 1e-300)
        change = float((neurons(self.task.reduced.X) - self.output).abs().max()) / scale
        lifted = self.task.reduction.lift(neurons)
        full = self.task.full
        module = to_torch(lifted, hidden_bias=self.task.hidden_bias, output_bias=full.output_bias)
        objective = full.objective(lifted)
        if change > _FIT or abs(objective - self.objective) > _FIT * max(abs(self.objective), full.floor()):
            raise InvalidInputError(
                f"these weights are not in the optimal set: outputs change by {change:.1e} (relative), and the "
                f"objective is {objective:.12g} in place of {self.objective:.12g}."
            )
        return OptimalNetwork(module, weights, len(neurons), objective, change, value)

    def _network(self, x: Float[Tensor, " m"]) -> Neurons:
        keep = x > 0
        root = x[keep].sqrt()[:, None]
        neurons = replace(self.neurons, W=self.neurons.W[keep] * root, A=self.neurons.A[keep] * root)
        if not self.task.reduced.output_bias:
            return neurons
        return replace(neurons, bias=neurons.bias + (self.output - neurons(self.task.reduced.X)).mean(0))

    def vertices(self, most: int = 100_000) -> list[OptimalNetwork]:
        """Every vertex; see :meth:`Polytope.vertices` for what is raised where there are too many."""
        return [self.element(x) for x in self.polytope.vertices(most)]

    def random_vertex(self, random_state: Any = None) -> OptimalNetwork:
        """The vertex that is furthest in a random direction."""
        return self.element(self.polytope.random_vertex(np.random.default_rng(seed_of(random_state))))

    def minimum_norm(self) -> OptimalNetwork:
        """The element with the least sum of squared weights x: mass spread over as many neurons as possible."""
        x = self.polytope.minimum_norm()
        return self.element(x, float(x @ x))

    def sparsest(self, most: int = 100_000) -> OptimalNetwork:
        """A vertex with the fewest neurons; raises as :meth:`vertices` where there are too many to look at."""
        vertices = self.polytope.vertices(most)
        x = vertices[np.count_nonzero(vertices, axis=1).argmin()]
        return self.element(x, float(np.count_nonzero(x)))

    def least(self, costs: Float[np.ndarray, " m"]) -> OptimalNetwork:
        """The vertex with the least costs'x."""
        costs = np.asarray(costs, dtype=float)
        if costs.shape != self.reference.shape or not np.isfinite(costs).all():
            raise InvalidInputError(f"costs of shape {self.reference.shape}, all finite, are expected.")
        x = self.polytope.maximise(-costs)
        return self.element(x, float(costs @ x))

    def least_l1(self) -> OptimalNetwork:
        """The vertex with the least sum of |first-layer weights| x_j, in the columns of X: sparse in the features."""
        lifted = self.task.reduction.lift(self.neurons)
        return self.least(lifted.W.abs().sum(1).numpy())

    def largest_margin(self, X: Any, y: Any) -> OptimalNetwork:
        """The element with the largest min_i y_i f(x_i) on other samples, labels -1 and +1; one output."""
        M, shift, loss = self._held_out(X, y, "logistic")
        signs = loss.targets[:, 0].numpy()
        x, value = self.polytope.maximin(signs[:, None] * M, signs * shift)
        return self.element(x, value)

    def validated(self, X: Any, y: Any, loss: str | None = None) -> OptimalNetwork:
        """The element with the least loss on other samples, of the loss of training unless another one is named."""
        M, shift, read = self._held_out(X, y, loss or self.task.full.loss.name)
        K = self.neurons.n_outputs

        def of(x: np.ndarray) -> Tensor:
            return torch.from_numpy(M @ x + shift).reshape(-1, K)

        x = _least_on(self.polytope, of, M, read)
        return self.element(x, float(read.value(of(x))))

    def outputs_at(self, X: Any) -> tuple[Float[np.ndarray, "N m"], Float[np.ndarray, " N"]]:
        """M and s with outputs M x + s of the element x on other samples (rows: samples, then outputs)."""
        data = read_matrix(X)
        if self.task.hidden_bias:
            data = torch.cat([data, torch.ones_like(data[:, :1])], 1)
        lifted = self.task.reduction.lift(self.neurons)
        if data.shape[1] != lifted.W.shape[1]:
            raise InvalidInputError(
                f"X has {data.shape[1] - self.task.hidden_bias} columns; training had "
                f"{lifted.W.shape[1] - self.task.hidden_bias}."
            )
        M, own = contributions(lifted, data), contributions(self.neurons, self.task.reduced.X)
        shift = self.neurons.bias.expand(len(data), -1)
        if self.task.reduced.output_bias:
            M, shift = M - own.mean(0), self.output.mean(0).expand(len(data), -1)
        return M.flatten(0, 1).numpy(), shift.reshape(-1).numpy()

    def _held_out(self, X: Any, y: Any, loss: str) -> tuple[np.ndarray, np.ndarray, Any]:
        M, shift = self.outputs_at(X)
        read = read_loss(loss, y, len(shift) // self.neurons.n_outputs)
        if read.n_outputs != self.neurons.n_outputs:
            raise InvalidInputError(f"y has {read.n_outputs} outputs; the networks have {self.neurons.n_outputs}.")
        return M, shift, read

    def __str__(self) -> str:
        return (
            f"objective  {self.objective:.12g}, bound {self.bound:.12g} ({self.kind})\n"
            f"neurons    {len(self.neurons)} can be active, from {self.blocks} blocks with a correlation within "
            f"{self.tolerance:.0e} of the weight decay; the next is {self.separation:.1e} below\n"
            f"dimension  {self.dimension}"
            + (": the optimal network is unique" if self.unique else f", as functions {self.function_dimension}")
        )


def contributions(neurons: Neurons, X: Float[Tensor, "n d"]) -> Float[Tensor, "n K m"]:
    """(X w_j)_+ a_j' of every neuron."""
    return torch.relu(X @ neurons.W.T)[:, None, :] * neurons.A.T


def _least_on(polytope: Polytope, of: Callable[[np.ndarray], Tensor], M: np.ndarray, loss: Any) -> np.ndarray:
    """The least loss over the polytope: a logarithmic barrier in the coordinates of its affine hull."""
    B, x = polytope.basis, polytope.centre
    if B.shape[1] == 0:
        return x
    rows = np.flatnonzero(polytope.positive)
    MB, own = torch.from_numpy(M @ B), B[rows]
    mu = max(float(loss.value(of(x))), 1e-12) / len(rows)
    while mu > 1e-14 * max(float(loss.value(of(x))), 1e-300) / len(rows):
        for _ in range(30):
            F = of(x)
            gradient = -(MB.T @ loss.negative_gradient(F).reshape(-1)).numpy() - mu * own.T @ (1 / x[rows])
            columns = MB.T.reshape(-1, *F.shape)
            curved = loss.hessian_product(loss.curvature(F), columns).reshape(len(columns), -1)
            H = (curved @ MB).numpy() + mu * (own / x[rows][:, None] ** 2).T @ own
            step = np.linalg.lstsq(H, -gradient, rcond=1e-15)[0]
            dx = B @ step
            decrement = float(-gradient @ step)
            if not decrement > 1e-3 * mu:
                break
            limit = np.max(-dx[rows] / x[rows], initial=0.0)
            x = x + min(1.0, 0.9 / limit if limit > 0 else 1.0, 1.0) * dx / (1 + max(0.0, np.sqrt(decrement / mu) - 1))
        mu *= 0.1
    return np.maximum(x, 0.0)
