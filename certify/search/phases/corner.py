"""Leaves where nothing is left to split: the network is affine there, and a linear program knows the best bound."""

from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float
from scipy.optimize import OptimizeResult, linprog
from torch import Tensor

from certify.bounds.ascent import Parameters
from certify.bounds.base import Bounds
from certify.regions import AbstractRegion
from certify.search.deadline import Deadline
from certify.search.phases.leaves import Leaves
from certify.search.phases.root import Root

# Price of violating the phases: the program then always has a solution, also where no point has these phases.
_PRICE = 1e6
# A region that is not a box enters by tangents, added where a minimiser is outside by more than this share.
_TANGENTS, _NEAR = 20, 1e-7


def by_linear_program(root: Root, leaf: Leaves, seconds: float) -> tuple[Leaves, Float[Tensor, "1 n"] | None]:
    """One leaf bounded with the multipliers of HiGHS, and the solver's point where it found one.

    min t + price r over x in the region, r >= 0, with condition_c(x) <= t for every condition and
    s_j z_j(x) >= -r for every fixed phase s_j. The dual variables are weights and multipliers of a substitution,
    whose value is the Lagrangian, minimised over the region itself: the substitution proves the bound, whatever the
    solver says, and needs no multipliers of the region's tangents. It gets so many seconds.
    """
    if not root.exact:
        return leaf, None
    owner = leaf.owner
    bounds = root.cut(root.relaxed.bounds, owner, root.spread(leaf.signs, torch.float64))
    signs = _phases_known(root, bounds)
    region = root.relaxed.region.select(owner)
    phases, outputs = _affine_maps(root, bounds, region.centre.shape[1])
    fixed = signs[0] != 0
    result = _solve(root, leaf, region, signs[0, fixed, None] * phases[fixed], outputs, seconds)
    if result.status != 0:
        return leaf, None
    price = -torch.from_numpy(result.ineqlin.marginals).clamp(max=0)
    weights, multipliers = price[: int(root.trees.real[leaf.tree].sum())], torch.zeros_like(signs)
    multipliers[0, fixed] = price[len(weights) :][: int(fixed.sum())] * signs[0, fixed]
    proved = root.relaxed.judge(
        root.trees.form(leaf.tree), owner, _parameters(root, leaf, bounds, multipliers, weights), bounds
    )
    proved = torch.minimum(proved, root.ceiling[leaf.tree])
    return replace(leaf, bound=torch.maximum(leaf.bound, proved)), torch.from_numpy(result.x[None, :-2])


def _phases_known(root: Root, bounds: Bounds) -> Float[Tensor, "1 n"]:
    """Of the entries that were unstable in the whole region: fixed, or known from bounds that hold in a part of it."""
    known = torch.zeros((1, root.width), dtype=torch.float64)
    for slot in root.slots:
        low, high = bounds[slot.source]
        slot.of(known)[:] = (low >= 0).double() - ((high <= 0) & (low < 0)).double()
    return root.spread(known[:, root.columns], torch.float64)


def _parameters(root: Root, leaf: Leaves, bounds: Bounds, multipliers: Tensor, weights: Tensor) -> Parameters:
    active = torch.zeros((1, root.width), dtype=torch.float64)
    for slot in root.slots:
        slot.of(active)[:] = bounds.lower[slot.source] >= 0
    if root.trees.real.shape[1] == 1:
        # The one condition has weight 1; multipliers are relative to it.
        return Parameters(active, multipliers / weights.clamp(min=1e-9))
    padded = torch.zeros(root.trees.real.shape[1], dtype=torch.float64)
    padded[root.trees.real[leaf.tree[0]]] = weights
    return Parameters(active, multipliers, padded[None])


def _affine_maps(
    root: Root, bounds: Bounds, n: int
) -> tuple[Float[Tensor, "entries coefficients"], Float[Tensor, "m coefficients"]]:
    """Every slot's entries and the outputs as offset and coefficients on the flat input."""
    graph = root.trees.graph
    points = torch.cat([torch.zeros(1, n, dtype=torch.float64), torch.eye(n, dtype=torch.float64)])
    values = [points.reshape((-1, *graph.input_shape))]
    relaxed = {slot.node: slot.source for slot in root.slots}
    for k, node in enumerate(graph.nodes[1:], start=1):
        if k in relaxed:
            values.append(values[relaxed[k]] * (bounds.lower[relaxed[k]] >= 0))
        else:
            values.append(node.op.forward(*(values[i] for i in node.inputs)))
    entries = torch.cat([points[:, :0], *(values[slot.source].flatten(1) for slot in root.slots)], 1)
    return _map(entries), _map(values[-1].flatten(1))


def _map(values: Float[Tensor, "points entries"]) -> Float[Tensor, "entries coefficients"]:
    return torch.cat([values[:1], values[1:] - values[:1]]).T


def _solve(
    root: Root,
    leaf: Leaves,
    region: AbstractRegion,
    phases: Float[Tensor, "fixed coefficients"],
    outputs: Float[Tensor, "m coefficients"],
    seconds: float,
) -> OptimizeResult:
    trees, tree = root.trees, int(leaf.tree[0])
    real = trees.real[tree]
    conditions = trees.rows[tree][real] @ outputs
    conditions[:, 0] += trees.constants[tree][real]
    left = torch.cat([conditions[:, 1:], -phases[:, 1:]]).numpy()
    ends = np.zeros((len(left), 2))
    ends[: len(conditions), 0], ends[len(conditions) :, 1] = -1.0, -1.0
    right = torch.cat([-conditions[:, 0], phases[:, 0]]).numpy()
    objective = np.zeros(left.shape[1] + 2)
    objective[-2:] = 1.0, _PRICE
    lower, upper = (v[0].tolist() for v in region.bounding_box())
    box = [*zip(lower, upper, strict=True), (None, None), (0.0, None)]
    rows, deadline = np.hstack([left, ends]), Deadline(seconds)
    for _ in range(_TANGENTS):
        limit = {"time_limit": deadline.left}
        result = linprog(objective, rows, right, bounds=box, method="highs", options=limit)
        tangent = _tangent(region, result.x[:-2]) if result.status == 0 else None
        if tangent is None:
            break
        rows, right = np.vstack([rows, [*tangent[0], 0.0, 0.0]]), np.append(right, tangent[1])
    return result


def _tangent(region: AbstractRegion, x: Float[np.ndarray, " n"]) -> tuple[Float[np.ndarray, " n"], float] | None:
    """normal.x <= limit in the region, and not at a point outside."""
    point = torch.from_numpy(x)[None]
    nearest = region.project(point)
    normal = (point - nearest)[0]
    if float(normal.norm()) <= _NEAR * (float((nearest - region.centre).norm()) + 1e-9):
        return None
    return normal.numpy(), float(normal @ nearest[0])
