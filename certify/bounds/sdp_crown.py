"""SDP-CROWN, and its form for a ball and a box together: semidefinite coupling at the cost of backward substitution.

Chiu, Chen, Zhang et al., "SDP-CROWN: efficient bound propagation for neural network verification with tightness of
semidefinite programming", ICML 2025, relaxes each layer on an l2 ball. Here every hidden layer is on its ball and in
its box at once, see `certify.bounds.ball`; slopes and multipliers of all rows rise together.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from certify.bounds.ascent import Adam
from certify.bounds.backward import Step
from certify.bounds.ball import Balls, Choice, Layer, balls_of, evaluate, proved
from certify.bounds.base import AbstractMethod, Bounds
from certify.bounds.crown import CROWN, substituted, sweep, undecided
from certify.bounds.dense import DenseNetwork
from certify.ir import Graph
from certify.properties import Margins
from certify.regions import AbstractRegion, LpBall
from certify.rounding import gamma

# Rows are raised in chunks of about this many entries of the widest layer.
_CHUNK = 2**20
# First lengths of the steps of slopes (relative to the coefficients) and of log lam.
_RATES = (0.03, 0.1)
# The first lam, relative to the one that is best if slopes are 0.
_SHARE = 0.3


@dataclass(frozen=True, eq=False)
class Ascent:
    """The best bound that was found for every row, not rounded, and where."""

    value: Float[Tensor, "batch rows"]
    choice: Choice


@dataclass(frozen=True)
class SDPCROWN(AbstractMethod):
    """The lemma at every layer, with slopes and multipliers optimised for every margin and every hidden entry.

    Attributes:
        boxes: whether hidden layers are in their boxes too; without, this is SDP-CROWN as published.
        steps_margins: evaluations of each margin.
        steps_hidden: evaluations of each hidden bound.
        stop: asked before every step, whether time is over.
    """

    boxes: bool = True
    steps_margins: int = 150
    steps_hidden: int = 60
    stop: Callable[[], bool] | None = None

    @property
    def name(self) -> str:
        """What a user calls it."""
        return "sdp-crown" if self.boxes else "sdp-crown-ball"

    @property
    def largest_batch(self) -> int:
        """The matrices are as large as the network."""
        return 16

    def steps(self, graph: Graph, region: AbstractRegion, known: Bounds | None = None) -> Iterator[Bounds]:
        """One node more each time."""
        network = DenseNetwork.of(graph)

        def tighten(
            graph: Graph,
            region: AbstractRegion,
            steps: Mapping[int, Step],
            bounds: Bounds,
            k: int,
            positive: Bool[Tensor, "batch *shape"],
        ) -> Bounds:
            bounds = substituted(graph, region, steps, bounds, k, positive, self.stop)
            return self._tightened(network, graph, region, bounds, k)

        loose = CROWN(stop=self.stop).steps(graph, region, known)
        yield from sweep(graph, region, loose, tighten)

    def _tightened(self, network: DenseNetwork, graph: Graph, region: AbstractRegion, bounds: Bounds, k: int) -> Bounds:
        depth = network.depth_of(k)
        if depth is None or depth < 2:
            return bounds
        wanted = undecided(graph, bounds, k).flatten(1)
        index = wanted.any(0).nonzero()[:, 0]  # the batch shares rows
        if not len(index):
            return bounds
        W, b = (torch.as_tensor(v[index.cpu().numpy()]).to(region.centre) for v in network.hidden[depth - 1])
        balls = self.balls(network, region, bounds, depth - 1)
        rows, constants = torch.cat([W, -W]), torch.cat([b, -b])
        found = self._forms(balls, rows.expand(len(wanted), -1, -1), self.steps_hidden)
        found = _plus(found, constants)
        lower, upper = found.chunk(2, dim=1)
        return _placed(bounds, k, index, lower, -upper)

    def balls(self, network: DenseNetwork, region: AbstractRegion, bounds: Bounds, depth: int) -> Balls:
        """The first `depth` hidden layers on the region: their balls, and their boxes where these are used."""
        boxes = [bounds[k] for k in network.nodes[:depth]]
        return balls_between(network, region, boxes, boxes_used=self.boxes)

    def _forms(self, balls: Balls, rows: Float[Tensor, "batch rows n"], steps: int) -> Float[Tensor, "batch rows"]:
        found = [proved(balls, part, ascend(balls, part, steps, stop=self.stop).choice) for part in _parts(balls, rows)]
        return torch.cat(found, 1)

    def margins(
        self, graph: Graph, region: AbstractRegion, bounds: Bounds, margins: Margins
    ) -> Float[Tensor, "batch targets"]:
        """Ascent on every margin that is not positive by substitution alone, never below it."""
        own = CROWN().margins(graph, region, bounds, margins)
        network = DenseNetwork.of(graph)
        if not network.hidden:
            return own
        left = (own <= 0).any(1).nonzero()[:, 0]
        if not len(left):
            return own
        part, rows, constants, error = self.margin_forms(network, region, bounds, margins, left)
        found = self._forms(part, rows, self.steps_margins)
        own[left] = torch.maximum(own[left], found + constants - error - gamma(4, own.dtype) * found.abs())
        return own

    def margin_forms(
        self,
        network: DenseNetwork,
        region: AbstractRegion,
        bounds: Bounds,
        margins: Margins,
        inputs: Int[Tensor, " some"],
    ) -> tuple[Balls, Tensor, Tensor, Tensor]:
        """The margins of some inputs as forms on the last hidden layer: layers, rows, constants, rounding errors."""
        W, b = (torch.as_tensor(v).to(region.centre) for v in network.output)
        chosen = margins.select(inputs)
        balls = self.balls(network, region.select(inputs), bounds.select(inputs), len(network.hidden))
        rows, constants = chosen.rows @ W, chosen.rows @ b + chosen.constants
        size = chosen.rows.abs() @ b.abs() + chosen.constants.abs()
        entries = ((chosen.rows.abs() @ W.abs()) * balls.layers[-1].size).sum(2)
        return balls, rows, constants, gamma(W.shape[0], rows.dtype) * (size + entries)


def balls_between(
    network: DenseNetwork,
    region: AbstractRegion,
    boxes: Sequence[tuple[Float[Tensor, "batch *_"], Float[Tensor, "batch *_"]]],
    *,
    boxes_used: bool = True,
) -> Balls:
    """The first hidden layers, as many as there are boxes (lower, upper), on the region."""
    with_ball = not boxes_used or (isinstance(region, LpBall) and region.norm == "l2" and region.eps > 0)
    layers = []
    for (W, b), ball, box in zip(network.hidden, balls_of(network, region), boxes, strict=False):
        lower, upper = (v.flatten(1).unsqueeze(1).to(region.centre) for v in box)
        if not boxes_used:
            lower, upper = torch.full_like(lower, -torch.inf), torch.full_like(upper, torch.inf)
        radius = ball.radius if with_ball else torch.full_like(ball.radius, torch.inf)
        weight, bias = (torch.as_tensor(v).to(region.centre) for v in (W, b))
        layers.append(Layer(weight, bias, ball.middle.unsqueeze(1), radius[:, None, None], lower, upper))
    return Balls(tuple(layers), region)


@dataclass(frozen=True, eq=False)
class BallHints:
    """What the lemma leaves free, for every row of one input, from the first layer to the last.

    Attributes:
        g: slopes, `(rows, n_k)` each.
        lam: multipliers of the balls, `(rows,)` each; 0 where the box alone is used.
    """

    g: tuple[np.ndarray, ...]
    lam: tuple[np.ndarray, ...]


def ball_hints(balls: Balls, rows: Float[Tensor, "1 rows n"], steps: int) -> tuple[np.ndarray, BallHints]:
    """Bounds of rows.relu(z) of the last layer, for one input, rounded down; and what they were found with."""
    found = [(proved(balls, part, choice), choice) for part, choice in _ascents(balls, rows, steps)]
    depth = range(len(balls.layers))
    slopes, weights = (
        tuple(np.concatenate([getattr(c, name)[k][0].numpy() for _, c in found]) for k in depth)
        for name in ("slopes", "weights")
    )
    bounds = np.concatenate([bound[0].numpy() for bound, _ in found])
    return bounds, BallHints(slopes, tuple(lam[:, 0] for lam in weights))


def _ascents(balls: Balls, rows: Tensor, steps: int) -> Iterator[tuple[Tensor, Choice]]:
    return ((part, ascend(balls, part, steps).choice) for part in _parts(balls, rows))


def _parts(balls: Balls, rows: Float[Tensor, "batch rows n"]) -> tuple[Float[Tensor, "batch some n"], ...]:
    """The rows a few at a time."""
    widest = max(max(layer.weight.shape) for layer in balls.layers)
    return rows.split(max(1, _CHUNK // (widest * len(rows))), 1)


def _plus(found: Float[Tensor, "batch rows"], constants: Float[Tensor, " rows"]) -> Float[Tensor, "batch rows"]:
    return found + constants - gamma(4, found.dtype) * (found.abs() + constants.abs())


def _placed(bounds: Bounds, k: int, index: Tensor, lower: Tensor, upper: Tensor) -> Bounds:
    """The bounds with some entries of node k tightened."""
    shape = bounds.lower[k].shape
    low = torch.full_like(bounds.lower[k].flatten(1), -torch.inf)
    high = -low
    low[:, index], high[:, index] = lower, upper
    return bounds.tightened(k, low.reshape(shape), high.reshape(shape))


def start(balls: Balls, rows: Float[Tensor, "batch rows n"]) -> tuple[list[Tensor], list[Tensor]]:
    """Relative slopes near those of the triangle relaxation, and log lam."""
    shares, logs = [], []
    c = rows
    for layer in reversed(balls.layers):
        share = _share(layer).expand_as(c)
        size = torch.linalg.vector_norm(c, dim=2, keepdim=True)
        logs.append((_SHARE * size / layer.radius).clamp(min=1e-12).log())
        shares.append(share.clone())
        c = (c * share) @ layer.weight
    return shares[::-1], logs[::-1]


def _share(layer: Layer) -> Tensor:
    """The slope of the triangle's upper line, slightly less; where there is no box, from the ball."""
    low = torch.maximum(layer.lower, layer.middle - layer.radius)
    high = torch.minimum(layer.upper, layer.middle + layer.radius)
    slope = high.clamp(min=0) / (high - low).clamp(min=torch.finfo(high.dtype).tiny)
    return torch.where(low >= 0, 1.0, torch.where(high <= 0, 0.0, 0.9 * slope))


def ascend(
    balls: Balls, rows: Float[Tensor, "batch rows n"], steps: int, *, stop: Callable[[], bool] | None = None
) -> Ascent:
    """Adam in single precision on relative slopes and log lam of all rows at once; the best of what was seen."""
    balls, rows = balls.to(torch.float32), rows.float()
    shares, logs = start(balls, rows)
    with_ball = bool(torch.isfinite(balls.layers[0].radius).all())
    free = [*shares, *logs] if with_ball else shares
    rates = [_RATES[0]] * len(shares) + [_RATES[1]] * len(logs)
    movers = [Adam.like(v) for v in free]
    best: Ascent | None = None
    for count in range(1, steps + 1):
        with torch.enable_grad():
            for v in free:
                v.requires_grad_(True)
            choice = _choice(balls, rows, shares, logs, with_ball)
            value = evaluate(balls, rows, choice)
        best = _better(best, Ascent(value.detach(), _detached(choice)))
        if count == steps or (stop is not None and stop()):
            break
        with torch.enable_grad():
            gradients = torch.autograd.grad(value.sum(), free)
        with torch.no_grad():
            for v, gradient, mover, rate in zip(free, gradients, movers, rates, strict=False):
                v.add_(mover.step(gradient, count, rate))
    assert best is not None
    return best


def _choice(balls: Balls, rows: Tensor, shares: list[Tensor], logs: list[Tensor], with_ball: bool) -> Choice:
    slopes, c = [], rows
    for layer, share in reversed(list(zip(balls.layers, shares, strict=True))):
        slopes.append(c * share)
        c = slopes[-1] @ layer.weight
    weights = tuple(v.exp() if with_ball else torch.zeros_like(v) for v in logs)
    return Choice(tuple(slopes[::-1]), weights)


def _detached(choice: Choice) -> Choice:
    return Choice(*(tuple(v.detach().double() for v in part) for part in (choice.slopes, choice.weights)))


def _better(best: Ascent | None, new: Ascent) -> Ascent:
    if best is None:
        return new
    up = new.value > best.value

    def pick(left: Tensor, right: Tensor) -> Tensor:
        return torch.where(up.unsqueeze(2), left, right)

    slopes = map(pick, new.choice.slopes, best.choice.slopes)
    weights = map(pick, new.choice.weights, best.choice.weights)
    return Ascent(torch.maximum(new.value, best.value), Choice(tuple(slopes), tuple(weights)))
