"""Linear constraints on the predictions of a network, A f <= b, and builders of the usual ones.

Rows weigh the outputs at the training samples, at extra points, or at both; see :func:`convexnn.train`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from convexnn.data import flag, positive, read_finite, read_matrix
from convexnn.errors import InvalidInputError, InvalidTypeError

_SHOWN = 5


@dataclass(frozen=True)
class Constraints:
    """A f(X) + A_extra f(X_extra) <= b, one row each, of a network with one output.

    Args:
        A: weights of the outputs at the training samples, ``(m, n)``; None where no row uses them.
        b: limits ``(m,)``, finite, in units of the output.
        A_extra: weights of the outputs at the extra points, ``(m, e)``.
        X_extra: extra points ``(e, d)``, in the columns of the training data.
        names: one for each row, for reports and errors; "row 0", "row 1", ... by default.

    Raises:
        InvalidInputError: shapes that do not fit, NaN, infinite limits.
        InvalidTypeError: entries that are no numbers.
    """

    A: Any
    b: Any
    A_extra: Any = None
    X_extra: Any = None
    names: Any = None

    def __post_init__(self) -> None:
        b = read_finite(self.b, "the limits b")
        if b.ndim != 1 or len(b) == 0:
            raise InvalidInputError(f"the limits b have shape {tuple(b.shape)}; one for each row (m,) is expected.")
        if (self.A_extra is None) != (self.X_extra is None):
            raise InvalidInputError("extra points need both X_extra, the points, and A_extra, their weights.")
        if self.A is None and self.A_extra is None:
            raise InvalidInputError("constraints without weights: pass A, for the training samples, or A_extra.")
        extra = None if self.X_extra is None else read_matrix(self.X_extra, "X_extra")
        A = None if self.A is None else _rows(self.A, "A", len(b), None)
        weights = None if extra is None else _rows(self.A_extra, "A_extra", len(b), len(extra))
        names = _names(self.names, len(b))
        for name, value in (("A", A), ("b", b), ("A_extra", weights), ("X_extra", extra), ("names", names)):
            object.__setattr__(self, name, value)

    def __len__(self) -> int:
        return len(self.b)

    def __add__(self, other: "Constraints") -> "Constraints":
        """The rows of both."""
        if not isinstance(other, Constraints):
            return NotImplemented
        if self.A is not None and other.A is not None and self.A.shape[1] != other.A.shape[1]:
            raise InvalidInputError(
                f"one of the constraints is on {self.A.shape[1]} training samples, the other on {other.A.shape[1]}."
            )
        extra, weights = None, None
        if self.X_extra is not None or other.X_extra is not None:
            extra = _stacked(self.X_extra, other.X_extra)
            weights = _diagonal(self.A_extra, other.A_extra, len(self), len(other))
        A = None
        if self.A is not None or other.A is not None:
            n = (self.A if self.A is not None else other.A).shape[1]
            A = torch.cat(
                [torch.zeros(len(part), n, dtype=torch.float64) if part.A is None else part.A for part in (self, other)]
            )
        return Constraints(A, torch.cat([self.b, other.b]), weights, extra, (*self.names, *other.names))

    def __radd__(self, other: Any) -> "Constraints":
        """So that ``sum`` joins several."""
        return self if other == 0 else NotImplemented


def demographic_parity(groups: Any, gap: float) -> Constraints:
    """The mean output of any two groups of training samples differs by at most ``gap``.

    This bounds the mean *score*, not the rate of positive decisions: sign(f) can favour one group with equal means.

    Args:
        groups: the group of each sample ``(n,)``, any labels.
        gap: at least zero, in units of the output. Two rows for each pair of groups.
    """
    labels = _labels(groups, "groups")
    return _equal_means(labels, np.ones(len(labels), bool), gap, "mean score")


def equal_opportunity(groups: Any, y: Any, gap: float) -> Constraints:
    """The mean output of any two groups differs by at most ``gap`` among the samples with y > 0.

    Like :func:`demographic_parity` a statement about scores: equal means are not equal true positive rates.

    Args:
        groups: the group of each sample ``(n,)``, any labels.
        y: targets ``(n,)``; those above zero are the positive ones.
        gap: at least zero, in units of the output.
    """
    labels, targets = _labels(groups, "groups"), read_finite(y, "y").numpy()
    if targets.shape != labels.shape:
        raise InvalidInputError(
            f"y has shape {targets.shape}; one target for each of {len(labels)} groups is expected."
        )
    return _equal_means(labels, targets > 0, gap, "mean score of positives")


def monotone(at: Any, feature: int, grid: Any, *, increasing: bool = True) -> Constraints:
    """The output rises (or falls) along one feature, between neighbours of a grid, everything else held.

    Nothing is said between the grid's values: a network can turn back there.

    Args:
        at: base points ``(k, d)``; each gives a line of points, with the feature set to the values of the grid.
        feature: index of the column.
        grid: at least two values of the feature.
        increasing: False for an output that falls.
    """
    rising = flag(increasing, "increasing")
    base, values = read_matrix(at, "at"), torch.unique(read_finite(grid, "grid"))
    if isinstance(feature, bool) or not isinstance(feature, (int, np.integer)) or not 0 <= feature < base.shape[1]:
        raise InvalidInputError(f"feature={feature!r}; a column from 0 to {base.shape[1] - 1} is expected.")
    if values.ndim != 1 or len(values) < 2:
        raise InvalidInputError("the grid needs at least two different values of the feature.")
    points = base.repeat_interleave(len(values), 0)
    points[:, feature] = values.repeat(len(base))
    step = torch.eye(len(values), dtype=torch.float64)
    rows = (step[:-1] - step[1:]) * (1.0 if rising else -1.0)
    A = torch.block_diag(*[rows] * len(base))
    word = "rises" if rising else "falls"
    names = [
        f"output {word} in feature {feature} from {low:g} to {high:g} at point {k}"
        for k in range(len(base))
        for low, high in zip(values[:-1].tolist(), values[1:].tolist(), strict=True)
    ]
    return Constraints(None, torch.zeros(len(A), dtype=torch.float64), A, points, names)


def output_caps(X: Any, *, lower: float | None = None, upper: float | None = None) -> Constraints:
    """lower <= f(x) <= upper at each of these points (training samples among them count once).

    Args:
        X: points ``(e, d)``.
        lower: lower limit, or None.
        upper: upper limit, or None.
    """
    points = read_matrix(X, "X")
    if lower is None and upper is None:
        raise InvalidInputError("output_caps needs a limit: pass lower, upper or both.")
    limits = [(_limit(upper), 1.0, "above"), (_limit(lower), -1.0, "below")]
    eye, parts = torch.eye(len(points), dtype=torch.float64), []
    for limit, sign, word in limits:
        if limit is not None:
            names = [f"output at point {k} not {word} {limit:g}" for k in range(len(points))]
            b = torch.full((len(points),), sign * limit, dtype=torch.float64)
            parts.append(Constraints(None, b, sign * eye, points, names))
    if len(parts) == 1:
        return parts[0]
    both = torch.cat([part.A_extra for part in parts])
    return Constraints(None, torch.cat([part.b for part in parts]), both, points, [*parts[0].names, *parts[1].names])


def _limit(value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, (bool, np.bool_)):
        raise InvalidTypeError(f"the limit of an output is {value!r}; a number is expected.")
    number = read_finite(value, "the limit of an output")
    if number.numel() != 1:
        raise InvalidInputError(
            f"the limit of an output has shape {tuple(number.shape)}; one number is expected. For limits that differ "
            "add up output_caps of some points each."
        )
    return float(number)


def _equal_means(labels: np.ndarray, among: np.ndarray, gap: float, what: str) -> Constraints:
    limit, kinds = positive(gap, "gap", zero=True), np.unique(labels)
    if len(kinds) < 2:
        raise InvalidInputError(f"groups has {len(kinds)} group; at least two are needed to bound a gap between them.")
    means = {}
    for kind in kinds.tolist():
        mine = (labels == kind) & among
        if not mine.any():
            raise InvalidInputError(f"group {kind!r} has no sample to take the {what} of; drop it or merge groups.")
        means[kind] = torch.from_numpy(mine / mine.sum())
    rows, names = [], []
    for one, two in combinations(means, 2):
        for high, low in ((one, two), (two, one)):
            rows.append(means[high] - means[low])
            names.append(f"{what} of group {high!r} at most {limit:g} above group {low!r}")
    return Constraints(torch.stack(rows), torch.full((len(rows),), limit, dtype=torch.float64), names=names)


def _labels(values: Any, name: str) -> np.ndarray:
    array = np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values)
    if array.ndim != 1 or len(array) == 0:
        raise InvalidInputError(f"{name} has shape {array.shape}; one label for each sample (n,) is expected.")
    numbers = array[[isinstance(label, float) for label in array]] if array.dtype.kind == "O" else array
    missing = array.dtype.kind == "O" and any(label is None for label in array)
    if missing or (array.dtype.kind in "fO" and not np.isfinite(numbers.astype(float)).all()):
        raise InvalidInputError(f"{name} has labels that are missing, NaN or infinite; give each sample a group.")
    return array.astype(str) if array.dtype.kind == "O" else array


def _rows(values: Any, name: str, m: int, columns: int | None) -> Float[Tensor, "m c"]:
    rows = read_finite(values, name)
    fits = rows.ndim == 2 and len(rows) == m and rows.shape[1] > 0 and (columns is None or rows.shape[1] == columns)
    if not fits:
        wanted = "one column for each sample" if columns is None else f"{columns} columns, one for each extra point"
        raise InvalidInputError(
            f"{name} has shape {tuple(rows.shape)}; {m} rows, one for each limit, and {wanted} are expected."
        )
    return rows


def _names(names: Any, m: int) -> tuple[str, ...]:
    if names is None:
        return tuple(f"row {k}" for k in range(m))
    names = tuple(names) if isinstance(names, Iterable) and not isinstance(names, str) else (None,)
    if not all(isinstance(name, str) for name in names):
        raise InvalidTypeError("names of constraints: a sequence of strings is expected.")
    if len(names) != m:
        raise InvalidInputError(f"{len(names)} names were given for {m} rows.")
    return names


def _stacked(one: Tensor | None, two: Tensor | None) -> Tensor:
    parts = [part for part in (one, two) if part is not None]
    if len({part.shape[1] for part in parts}) > 1:
        raise InvalidInputError(f"extra points have {parts[0].shape[1]} and {parts[1].shape[1]} columns.")
    return torch.cat(parts)


def _diagonal(one: Tensor | None, two: Tensor | None, m: int, k: int) -> Tensor:
    return torch.block_diag(
        torch.zeros(m, 0, dtype=torch.float64) if one is None else one,
        torch.zeros(k, 0, dtype=torch.float64) if two is None else two,
    )


def listed(names: Sequence[str]) -> str:
    """The first few of them, for messages."""
    shown = "; ".join(names[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown}; and {len(names) - _SHOWN} more"
