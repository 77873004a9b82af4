"""Valid inequalities for small groups of ReLUs of one layer.

For k neurons with pre-activations z in P = {D z <= h}, D all directions in {-1, 0, 1}^k, the convex hull of
{(z, relu(z)) : z in P} is the hull of the vertices of P cut by the orthants (Singh et al., "Beyond the
single-neuron convex barrier for neural network certification", NeurIPS 2019; Mueller et al., "PRIMA", POPL
2022). Its facets come from Qhull in floating point; only their normals are used. The limit of every
inequality is proved afresh: in each orthant relu is linear, and by weak duality

    max {g.z : A z <= b}  <=  y.b + |g - A'y|.|z|     for every y >= 0 ,

evaluated at the multipliers of every basis, with rounding added; the least of these is taken, and the largest
over the orthants.
"""

from dataclasses import dataclass
from functools import cache
from itertools import combinations, product

import numpy as np
from jaxtyping import Float
from scipy.spatial import ConvexHull, QhullError

Vector = Float[np.ndarray, " _"]

# More than twice the unit roundoffs that the longest of these sums can gather.
_ROUNDING = 2.0**-44
# Relative: a vertex may miss a constraint by this much, as may a multiplier its sign.
_NEAR = 1e-9
# Of the longest axis of the vertices: a shorter one is none.
_FLAT = 1e-7
# A random projection: rows that differ, differ there.
_MIXER = np.random.default_rng(0).standard_normal(16)


@cache
def directions(k: int) -> Float[np.ndarray, "directions k"]:
    """All directions in {-1, 0, 1}^k but zero."""
    rows = np.array([d for d in product((-1.0, 0.0, 1.0), repeat=k) if any(d)])
    rows.setflags(write=False)
    return rows


@dataclass(frozen=True, eq=False)
class _Orthant:
    """D z <= h and sign * z >= 0, with all its bases."""

    active: Float[np.ndarray, " k"]
    rows: Float[np.ndarray, "constraints k"]
    bases: np.ndarray
    inverses: Float[np.ndarray, "bases k k"]


@cache
def _orthants(k: int) -> tuple[_Orthant, ...]:
    found = []
    for sign in product((-1.0, 1.0), repeat=k):
        rows = np.concatenate([directions(k), -np.diag(sign)])
        bases = np.array(list(combinations(range(len(rows)), k)))
        regular = np.abs(np.linalg.det(rows[bases])) > 0.5  # integer determinants
        found.append(_Orthant((np.array(sign) > 0) * 1.0, rows, bases[regular], np.linalg.inv(rows[bases[regular]])))
    return tuple(found)


def facets(
    limits: Float[np.ndarray, " directions"], k: int
) -> tuple[Float[np.ndarray, "facets two_k"], Float[np.ndarray, " facets"]]:
    """Normals n on (z, relu(z)) and unproved limits of n.(z, relu(z)) <= limit, for all z with D z <= limits.

    A hull that is flat, as where pre-activations depend on each other, has facets inside its own plane, and the
    plane's normals, both ways. None where it is a segment, or Qhull gives up.
    """
    points = _vertices(limits, k)
    if len(points) < 3:
        return np.zeros((0, 2 * k)), np.zeros(0)
    centre = points.mean(0)
    _, sizes, axes = np.linalg.svd(points - centre)
    rank = int((sizes > _FLAT * sizes[0]).sum())
    if rank < 2:
        return np.zeros((0, 2 * k)), np.zeros(0)
    plane, flat = (np.eye(2 * k), axes[:0]) if rank == 2 * k else (axes[:rank], axes[rank:])
    inner = _facets_in(points @ plane.T)
    normals = np.concatenate([inner[:, :-1] @ plane, flat, -flat])
    # A facet inside the plane of the points has the same offset as in the whole space.
    return normals, np.concatenate([-inner[:, -1], flat @ centre, -flat @ centre])


def _facets_in(points: Float[np.ndarray, "vertices rank"]) -> Float[np.ndarray, "facets rank_and_1"]:
    rank = points.shape[1]
    try:
        found = ConvexHull(points).equations if len(points) > rank else np.zeros((0, rank + 1))
    except QhullError:
        found = np.zeros((0, rank + 1))
    # Qhull cuts facets into simplices: equal ones are merged.
    return found[np.unique(np.round(found @ _MIXER[: rank + 1], 9), return_index=True)[1]]


def _vertices(limits: Float[np.ndarray, " directions"], k: int) -> Float[np.ndarray, "vertices two_k"]:
    near = _NEAR * float(np.abs(limits).max())
    found = []
    for orthant in _orthants(k):
        b = np.concatenate([limits, np.zeros(k)])
        corners = np.einsum("bij,bj->bi", orthant.inverses, b[orthant.bases])
        corners = corners[(corners @ orthant.rows.T <= b + near).all(1)]
        found.append(np.concatenate([corners, orthant.active * corners], 1))
    points = np.concatenate(found)
    return points[np.unique(np.round(points / max(near, 1e-300)), axis=0, return_index=True)[1]]


def proved_limit(normal: Float[np.ndarray, " two_k"], limits: Float[np.ndarray, " directions"]) -> float:
    """The least proved limit of normal.(z, relu(z)) over all z with D z <= limits, rounded up."""
    k = len(normal) // 2
    b = np.concatenate([limits, np.zeros(k)])
    sizes = np.maximum(_box(limits, k, 1.0), _box(limits, k, -1.0))
    return max(_limit_in(o, normal[:k] + o.active * normal[k:], b, sizes) for o in _orthants(k))


def _box(limits: Vector, k: int, sign: float) -> Float[np.ndarray, " k"]:
    """Upper limits of sign * z_i."""
    rows = directions(k)
    return np.array([limits[(rows == sign * unit).all(1)][0] for unit in np.eye(k)])


def _limit_in(
    orthant: _Orthant, objective: Float[np.ndarray, " k"], b: Vector, sizes: Float[np.ndarray, " k"]
) -> float:
    multipliers = np.maximum(objective @ orthant.inverses, 0.0)
    rows, limits = orthant.rows[orthant.bases], b[orthant.bases]
    rest = np.abs(objective - np.einsum("bj,bjk->bk", multipliers, rows))
    mass = np.abs(objective) + np.einsum("bj,bjk->bk", multipliers, np.abs(rows))
    value = (multipliers * limits).sum(1) + rest @ sizes
    slack = _ROUNDING * ((multipliers * np.abs(limits)).sum(1) + 2 * mass @ sizes)
    return float((value + slack).min())
