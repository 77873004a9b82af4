"""Vector fields as variables of a linear program, beside the pixels that they move.

For t = infinity vector and values of a pixel are a mean of what they are at the cut points of the square: the convex
hull of the graph of the interpolation, for all channels together. For t = 1 and 2 the interpolation enters by one plane
below and one above every pixel, and the disc of t = 2 by a polygon around it. All are relaxations, and what the solver
makes of them is a hint: the region's own minimum judges it.
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

Rows = tuple[Any, np.ndarray, np.ndarray]


def add_flow_rows(solver: highspy.Highs, region: Deformations) -> None:
    """Adds the fields of one image; its pixels, channel by channel, are the first variables of the program."""
    first, pixels = int(solver.getNumCol()), region.images[0, 0].numel()
    delta = region.ball.delta
    solver.addVars(2 * pixels, np.full(2 * pixels, -delta), np.full(2 * pixels, delta))
    if np.isfinite(region.ball.order):
        blocks = [*_planes(region, first), _discs(region, first)]
    else:
        weights = len(region.ball.points) * pixels
        solver.addVars(weights, np.zeros(weights), np.ones(weights))
        blocks = _hull(region, first)
    for rows, lower, upper in (*blocks, _edges(region, first)):
        solver.addRows(
            rows.shape[0],
            np.ascontiguousarray(lower),
            np.ascontiguousarray(upper),
            rows.nnz,
            rows.indptr[:-1].astype(np.int32),
            rows.indices.astype(np.int32),
            rows.data,
        )


def _hull(region: Deformations, first: int) -> list[Rows]:
    """Values and vectors of a pixel are means of those at the points, whose weights come after the fields."""
    points, pixels = region.ball.points, region.images[0, 0].numel()
    around = patches(region.images, region.ball.reach)[0].flatten(1, 2).numpy()
    values = around @ region.ball.weights(points)
    means = [sp.hstack([sp.diags(column) for column in channel.T]) for channel in values]
    vectors = sp.kron(points.T, sp.eye(pixels))
    n = len(values) * pixels
    places = np.concatenate([np.arange(n), first + np.arange(2 * pixels)])
    known = sp.csr_matrix(
        (np.ones(len(places)), (np.arange(len(places)), places)), shape=(len(places), first + 2 * pixels)
    )
    equal = sp.csr_matrix(sp.hstack([known, -sp.vstack([*means, vectors])]))
    total = sp.csr_matrix(
        sp.hstack([sp.csr_matrix((pixels, first + 2 * pixels)), sp.kron(np.ones(len(points)), sp.eye(pixels))])
    )
    zeros, ones = np.zeros(equal.shape[0]), np.ones(pixels)
    return [(equal, zeros, zeros), (total, ones, ones)]


def _planes(region: Deformations, first: int) -> list[Rows]:
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


def _edges(region: Deformations, first: int) -> Rows:
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


def _discs(region: Deformations, first: int) -> Rows:
    """Sides of the disc beside those of the square: all for t = 1, tangents for t = 2."""
    pixels = region.images[0, 0].numel()
    sides = {1: [(1.0, 1.0), (1.0, -1.0)], 2: [(cos(k * pi / _SIDES), sin(k * pi / _SIDES)) for k in range(_SIDES)]}
    blocks = [sp.hstack([x * sp.eye(pixels), y * sp.eye(pixels)]) for x, y in sides[int(region.ball.order)]]
    ahead = sp.csr_matrix((len(blocks) * pixels, first))
    limit = np.full(len(blocks) * pixels, region.ball.delta)
    return sp.csr_matrix(sp.hstack([ahead, sp.vstack(blocks)])), -limit, limit
