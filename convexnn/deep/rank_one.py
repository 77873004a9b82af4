"""Data of rank one: the standard three-layer ReLU network in closed form.

X = c v' with ||v|| = 1. The first layer sees c_+ and c_- = (-c)_+ only, which have disjoint supports, and so does every
layer: f = A c_+ + B c_-. For weights W_1, W_2, w_3 split W_2 into the parts that read c_+ and c_-; by the inequality of
Cauchy and Schwarz |A| and |B| are at most the product of the norms of their parts, and

    min (||W_1||^2 + ||W_2||^2 + ||w_3||^2) / 2  =  (3/2) (|A| + |B|)^(2/3)              where A B >= 0,
                                                    (3/2) (|A|^(2/3) + |B|^(2/3))        where A B <= 0:

of one sign both share a second-layer neuron, of two signs they cannot (after Wang, Ergen & Pilanci, ICLR 2023; the sum
for regularised training is derived here). The loss is quadratic in A and B, so that scalar problems remain.
"""

import time
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from convexnn.data import positive, read_loss, read_matrix
from convexnn.deep.modules import layer_norms
from convexnn.deep.spectral import local_minimum, power_minimiser
from convexnn.errors import InvalidInputError
from convexnn.network import linear_layer

_DEPTH = 3
_ZERO = 1e-10  # singular values, relative to the largest, that count as zero


@dataclass(frozen=True)
class RankOneNetwork:
    """The optimal network for data c v' of rank one: its objective is the least of all widths, up to rounding."""

    network: nn.Sequential  # Linear, ReLU, Linear, ReLU, Linear without biases
    objective: float  # recomputed from the network's weights
    direction: Float[Tensor, " d"]  # v, of norm one
    on_positive: float  # A: the outputs are A where c = 1
    on_negative: float  # B: and B where c = -1
    seconds: float

    def __str__(self) -> str:
        return (
            f"objective {self.objective:.8g} (closed-form)\n"
            f"outputs   {self.on_positive:.6g} c_+ + {self.on_negative:.6g} c_-"
        )


@dataclass(frozen=True)
class _Channels:
    """The loss as p A^2 / 2 - q A + r B^2 / 2 - t B + a constant."""

    p: float
    q: float
    r: float
    t: float

    def value(self, A: float, B: float) -> float:
        return 0.5 * self.p * A**2 - self.q * A + 0.5 * self.r * B**2 - self.t * B


def train_rank_one(X: Any, y: Any, *, weight_decay: float, sample_weight: Any = None) -> RankOneNetwork:
    """The standard three-layer ReLU network f(x) = ((x W_1)_+ W_2)_+ w_3 that is optimal for data of rank one.

    Minimises (1/2n) ||f - y||^2 + (weight_decay / 2) (||W_1||^2 + ||W_2||^2 + ||w_3||^2) over all widths; two neurons
    in each layer are enough.

    Parameters
    ----------
    X:
        Features (n, d) of rank one: multiples of one row. There are no biases, whose column of ones would make it two.
    y:
        Targets (n,), real.
    weight_decay:
        Above zero.
    sample_weight:
        Positive weights (n,); the mean loss becomes a weighted mean.

    Raises
    ------
    InvalidInputError, InvalidTypeError
        X is not of rank one, several outputs, NaN or infinity, weight_decay <= 0.
    """
    started = time.perf_counter()
    data = read_matrix(X)
    loss = read_loss("squared", y, len(data), sample_weight)
    if loss.n_outputs != 1:
        raise InvalidInputError(f"y has {loss.n_outputs} columns; the closed form is for one output.")
    decay = positive(weight_decay, "weight_decay")
    with torch.no_grad():
        v = _direction(data)
        c, target = data @ v, loss.targets[:, 0]
        up, down = torch.relu(c), torch.relu(-c)
        channels = _Channels(*(float(loss.weights @ part) for part in (up**2, up * target, down**2, down * target)))
        A, B = _best(channels, decay)
        network = _network(v, A, B)
        penalty = 0.5 * sum(size**2 for size in layer_norms(network))
        objective = float(loss.value(network(data))) + decay * penalty
    return RankOneNetwork(network, objective, v, A, B, time.perf_counter() - started)


def _direction(data: Float[Tensor, "n d"]) -> Float[Tensor, " d"]:
    sigma, Vh = torch.linalg.svd(data, full_matrices=False)[1:]
    rank = int((sigma > _ZERO * sigma[0]).sum())
    if rank != 1:
        raise InvalidInputError(
            f"X has rank {rank}; the closed form is for rows that are multiples of one. Use convexnn.train_parallel."
        )
    return Vh[0]


def penalty_of(A: float, B: float) -> float:
    """The least weight decay of a three-layer network with outputs A c_+ + B c_-, without its factor."""
    if A * B > 0:
        return 1.5 * (abs(A) + abs(B)) ** (2 / 3)
    return 1.5 * (abs(A) ** (2 / 3) + abs(B) ** (2 / 3))


def _best(of: _Channels, decay: float) -> tuple[float, float]:
    """The best of: nothing, each channel on its own, and both with one sign, either one."""
    apart = _alone(of.p, of.q, decay), _alone(of.r, of.t, decay)
    mirrored = _Channels(of.p, -of.q, of.r, -of.t)
    points = [(0.0, 0.0), apart, *_together(of, decay), *((-A, -B) for A, B in _together(mirrored, decay))]
    return min(points, key=lambda point: of.value(*point) + decay * penalty_of(*point))


def _alone(p: float, q: float, decay: float) -> float:
    """min p A^2 / 2 - q A + (3/2) decay |A|^(2/3)."""
    if p == 0.0:
        return 0.0
    size = torch.tensor([abs(q) / p], dtype=torch.float64)
    return float(power_minimiser(size, p, decay, _DEPTH)) * (1.0 if q > 0 else -1.0)


def _together(of: _Channels, decay: float) -> list[tuple[float, float]]:
    """Local minima over A, B >= 0 with (A + B)^(2/3) in the penalty.

    For a given sum the best split is linear, clipped; the loss of the sum is quadratic while both are positive, and
    while one is zero: a scalar problem each.
    """
    pieces = [(of.p, of.q / of.p if of.p else 0.0), (of.r, of.t / of.r if of.r else 0.0)]
    if of.p and of.r:
        pieces.append((of.p * of.r / (of.p + of.r), pieces[0][1] + pieces[1][1]))
    out = []
    for curvature, centre in pieces:
        if curvature == 0.0 or centre <= 0:
            continue
        total, exists = local_minimum(torch.tensor([centre], dtype=torch.float64), curvature, decay, _DEPTH)
        if bool(exists):
            size = float(total)
            A = min(max((of.r * size + of.q - of.t) / (of.p + of.r), 0.0), size)
            out.append((A, size - A))
    return out


def _network(v: Float[Tensor, " d"], A: float, B: float) -> nn.Sequential:
    """Balanced: a neuron for each channel, then one second-layer neuron for both, or one each."""
    if A * B > 0:
        last = (abs(A) + abs(B)) ** (1 / 3)
        own = v.new_tensor([abs(A), abs(B)]).div(last).sqrt()
        second, third = own[None], v.new_tensor([[last if A > 0 else -last]])
    else:
        own = v.new_tensor([abs(A), abs(B)]) ** (1 / 3)
        second, third = torch.diag(own), (own * v.new_tensor([A, B]).sign())[None]
    first = own[:, None] * torch.stack([v, -v])
    relu = nn.ReLU()
    return nn.Sequential(
        linear_layer(first, None), relu, linear_layer(second, None), nn.ReLU(), linear_layer(third, None)
    )
