"""Better slopes than CROWN's: by ascent on the lower slopes of every form, and from linear programs.

Both start from the bounds that are proved already, and so does what the checker makes of them.
"""

from functools import partial

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from certify.bounds.base import Bounds
from certify.bounds.hints import hints_of
from certify.bounds.linear_model import Question, linear_model
from certify.ir import Graph
from certify.ir.ops import Linear, ReLU
from certify.proof.emit.hints import Chain, RowHints, chords, crown, substituted, values

_STEPS = 80
_RATE = 0.1


def ascended(chain: Chain, forms: Float[np.ndarray, "m n"]) -> RowHints:
    """Lower slopes by Adam, from those of least area; never worse than CROWN's."""
    start = crown(chain, forms)
    if not any(((low < 0) & (high > 0)).any() for low, high in chain.hidden):
        return start
    alpha = [_first_slopes(low, high, len(forms)).requires_grad_(True) for low, high in chain.hidden]
    optimiser = torch.optim.Adam(alpha, lr=_RATE)
    best = torch.full((len(forms),), -torch.inf, dtype=torch.float64)
    kept = [a.detach().clone() for a in alpha]
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimiser, 0.97)
    for _ in range(_STEPS):
        reached = _bounds(chain, torch.as_tensor(forms), alpha)
        better = reached.detach() > best
        best = torch.where(better, reached.detach(), best)
        for k, a in zip(kept, alpha, strict=True):
            k[better] = a.detach()[better]
        optimiser.zero_grad()
        (-reached.sum()).backward()
        optimiser.step()
        schedule.step()
        with torch.no_grad():
            for a in alpha:
                a.clamp_(0.0, 1.0)
    found = substituted(chain, forms, [_fixed(a, *h) for a, h in zip(kept, chain.hidden, strict=True)])
    return found.where(values(chain, forms, found) >= values(chain, forms, start), start)


def _first_slopes(low: np.ndarray, high: np.ndarray, count: int) -> Tensor:
    return torch.as_tensor((high > -low).astype(float)).repeat(count, 1)


def _fixed(alpha: Tensor, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """The slopes where they are free, 1 at active and 0 at dead entries."""
    return np.where(low >= 0, 1.0, np.where(high <= 0, 0.0, alpha.numpy()))


def _bounds(chain: Chain, c: Tensor, alpha: list[Tensor]) -> Tensor:
    """The bound of every form by substitution, differentiable in the slopes."""
    total = torch.zeros(len(c), dtype=c.dtype)
    for j in range(len(chain.hidden), 0, -1):
        low, high = chain.hidden[j - 1]
        steep = torch.as_tensor(chords(low, high))
        active, dead = torch.as_tensor(low >= 0), torch.as_tensor(high <= 0)
        slope = torch.where(active, 1.0, torch.where(dead, 0.0, alpha[j - 1]))
        total = total - c.clamp(max=0) @ (steep * torch.as_tensor(np.minimum(low, 0)))
        c = c.clamp(min=0) * slope + c.clamp(max=0) * steep
        W, b = (torch.as_tensor(v) for v in chain.layers[j - 1])
        total, c = total + c @ b, c @ W
    return total + chain.region.minimum(c[None])[0]


def programmed(chain: Chain, forms: Float[np.ndarray, "m n"]) -> RowHints:
    """Slopes and walls from the multipliers of one linear program for every form; CROWN's where HiGHS gives up."""
    start = crown(chain, forms)
    question = _question(chain)
    top = question.graph.output
    model = linear_model(question, top)
    solutions = [model.minimise(row) for row in forms @ model.expressions[top]]
    solved = [i for i, s in enumerate(solutions) if s is not None]
    if not solved:
        return start
    hints = hints_of(question, model, [s for s in solutions if s is not None])
    c, found = forms[solved], [g.copy() for g in start.g]
    for j in range(len(chain.hidden), 0, -1):
        slope = _fixed(hints.slopes[2 * j].flatten(1), *chain.hidden[j - 1])
        g = np.maximum(c, 0) * slope + np.minimum(c, 0) * chords(*chain.hidden[j - 1])
        wall = hints.walls[2 * j]
        g[:, wall.index.numpy()] += (wall.upper - wall.lower).numpy()
        found[j - 1][solved] = g
        c = g @ chain.layers[j - 1][0]
    lifted = RowHints.plain(found)
    return lifted.where(values(chain, forms, lifted) >= values(chain, forms, start), start)


def _question(chain: Chain) -> Question:
    """The layers with proved bounds as a graph: node 2 j is the ReLU of layer j."""
    graph, lower, upper = Graph.start((len(chain.centre),)), {}, {}
    tensor = partial(torch.as_tensor, dtype=torch.float64)
    lower[0], upper[0] = chain.region.bounding_box()
    for (W, b), (low, high) in zip(chain.layers, chain.hidden, strict=False):
        graph = graph.append(Linear(tensor(W), tensor(b))).append(ReLU())
        k = graph.output
        lower |= {k - 1: tensor(low)[None], k: tensor(low)[None].clamp(min=0)}
        upper |= {k - 1: tensor(high)[None], k: tensor(high)[None].clamp(min=0)}
    return Question(graph, chain.region, Bounds(lower, upper))
