"""Vector fields as variables of a linear program, beside the pixels that they move.

The interpolation enters by one plane below and one above every pixel, the disc of t = 2 by a polygon around it. Both
are relaxations, and what the solver makes of them is a hint: the region's own minimum judges it.
"""

from math import cos, pi, sin
from typing import Any

import highspy
import numpy as np
import scipy.sparse as sp
import torch

from certify.regions.spatial.bilinear import patches
from certify.regions.spatial.deformations import Deformations
from certify.regions.spatial.planes import planes_below

# Pairs of parallel sides of the polygon around a disc.
_SIDES = 8


def add_flow_rows(solver: highspy.Highs, region: Deformations) -> None:
    """Adds the fields of one image; its pixels, channel by channel, are the first variables of the program."""
    first, pixels = int(solver.getNumCol()), region.images[0, 0].numel()
    delta = region.ball.delta
    solver.addVars(2 * pixels, np.full(2 * pixels, -delta), np.full(2 * pixels, delta))
    for rows, lower, upper in (*_planes(region, first), _edges(region, first), _discs(region, first)):
        solver.addRows(
            rows.shape[0],
            np.ascontiguousarray(lower),
            np.ascontiguousarray(upper),
            rows.nnz,
            rows.indptr[:-1].astype(np.int32),
            rows.indices.astype(np.int32),
            rows.data,
        )


def _planes(region: Deformations, first: int) -> list[tuple[Any, np.ndarray, np.ndarray]]:
    """x - b.v >= a and x - b.v <= a for the planes below and above."""
    around = patches(region.images, region.ball.reach)[0]
    n, pixels = region.centre.shape[1], region.images[0, 0].numel()
    found = []
    for sign in (1.0, -1.0):
        height, slope = (sign * v for v in planes_below(region.ball, sign * around))
        where = np.arange(n)
        pixel = first + where % pixels
        b = slope.reshape(-1, 2).numpy()
        rows = sp.csr_matrix(
            (
                np.concatenate([np.ones(n), -b[:, 0], -b[:, 1]]),
                (np.tile(where, 3), np.concatenate([where, pixel, pixel + pixels])),
            ),
            shape=(n, first + 2 * pixels),
        )
        a, free = height.flatten().numpy(), np.full(n, np.inf)
        found.append((rows, a, free) if sign > 0 else (rows, -free, a))
    return found


def _edges(region: Deformations, first: int) -> tuple[Any, np.ndarray, np.ndarray]:
    """Neighbours differ by at most gamma, in both components."""
    _, height, width = region.images.shape[1:]
    index = torch.arange(2 * height * width).reshape(2, height, width).numpy()
    pairs = np.concatenate(
        [
            np.stack([index[:, :, :-1].ravel(), index[:, :, 1:].ravel()], 1),
            np.stack([index[:, :-1].ravel(), index[:, 1:].ravel()], 1),
        ]
    )
    count = len(pairs)
    values = np.concatenate([-np.ones(count), np.ones(count)])
    rows = sp.csr_matrix(
        (values, (np.tile(np.arange(count), 2), first + pairs.T.ravel())), shape=(count, first + index.size)
    )
    limit = np.full(count, region.gamma)
    return rows, -limit, limit


def _discs(region: Deformations, first: int) -> tuple[Any, np.ndarray, np.ndarray]:
    """Sides of the disc beside those of the square: none for t = infinity, all for t = 1, tangents for t = 2."""
    pixels = region.images[0, 0].numel()
    sides = {1: [(1.0, 1.0), (1.0, -1.0)], 2: [(cos(k * pi / _SIDES), sin(k * pi / _SIDES)) for k in range(_SIDES)]}
    chosen = sides.get(int(region.ball.order), []) if np.isfinite(region.ball.order) else []
    blocks = [sp.hstack([x * sp.eye(pixels), y * sp.eye(pixels)]) for x, y in chosen]
    ahead = sp.csr_matrix((len(blocks) * pixels, first))
    body = sp.vstack(blocks) if blocks else sp.csr_matrix((0, 2 * pixels))
    limit = np.full(len(blocks) * pixels, region.ball.delta)
    return sp.csr_matrix(sp.hstack([ahead, body])), -limit, limit
