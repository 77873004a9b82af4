"""Which samples to lift, and with which others."""

import numpy as np
from jaxtyping import Float, Int

from convexnn.proof.leaf import Leaf

Array = np.ndarray


def slack_of(leaf: Leaf, x: Array, v: Float[Array, " n"]) -> Float[Array, " n"]:
    """|v_i| r_i times the width that the relaxation leaves to E[s_i]: what lifting a sample can gain at most."""
    g, *_ = leaf.split(x)
    theta, t, q = g[0], leaf.rows @ g[leaf.u_index], leaf.q_rows @ g
    width = np.maximum(leaf.high - leaf.low, 1e-300)
    above = np.minimum((t + np.sqrt(np.maximum(theta * q, 0))) / 2, leaf.high * (t - leaf.low * theta) / width)
    below = np.maximum(np.maximum(0, t), (q - leaf.low * t) / width)
    open_ = (leaf.low < 0) & (leaf.high > 0)
    return np.where(open_, np.abs(v) * leaf.radii * np.maximum(above - below, 0), 0.0)


def grouped(
    rows: Float[Array, "n d"],
    chosen: Int[Array, " k"],
    m: int,
    *,
    slack: Float[Array, " n"] | None = None,
    parallel: float = 1 - 1e-6,
) -> Int[Array, "J m"]:
    """Full groups of m: the most important sample left, with the m - 1 others most parallel to it.

    With ``slack`` the others weigh in as slack / (1 - |cosine|)^2. Samples parallel up to rounding never share a group:
    their moments leave the relaxation without an interior.
    """
    left, groups = list(chosen), []
    while len(left) >= m:
        group = [left.pop(0)]
        score = np.abs(rows[left] @ rows[group[0]])
        if slack is not None:
            score = slack[left] / (1 + 1e-6 - score) ** 2
        for k in np.argsort(-score, kind="stable"):
            if len(group) < m and np.abs(rows[group] @ rows[left[k]]).max() < parallel:
                group.append(left[k])
        if len(group) == m:
            groups.append(group)
        left = [i for i in left if i not in group]
    return np.array(groups, dtype=np.int64).reshape(len(groups), m)


def lifted(
    leaves: tuple[Leaf, ...],
    points: list[Array],
    v: Float[Array, " n"],
    n_lifted: int,
    m: int,
    *,
    by_slack: bool = False,
) -> list[Int[Array, "J m"]]:
    """Groups of every leaf: the samples that slack the most over all leaves, at most ``n_lifted`` of them."""
    slack = np.stack([slack_of(leaf, x, v) for leaf, x in zip(leaves, points, strict=True)])
    slack[[x[0] < 1e-6 * max(p[0] for p in points) for x in points]] = 0.0
    order = np.argsort(-slack, axis=None, kind="stable")[:n_lifted]
    order = order[slack.ravel()[order] > 1e-9 * slack.max()]
    which, sample = np.unravel_index(order, slack.shape)
    return [
        grouped(leaf.rows, sample[which == k], m, slack=slack[k] if by_slack else None) for k, leaf in enumerate(leaves)
    ]
