"""Typed errors: each message says what was given, what was expected and what to do."""


class ConvexNNError(Exception):
    """Base class of every error that this package raises on purpose."""


class InvalidInputError(ConvexNNError, ValueError):
    """Data or a setting has a value that the method cannot use (NaN, wrong shape, out of range)."""


class InvalidTypeError(ConvexNNError, TypeError):
    """An argument is of a type that cannot be read."""


class InfeasibleConstraintsError(InvalidInputError):
    """No network that can be trained here meets the constraints; ``rows`` and ``names`` are in conflict.

    Without any one of these rows the others could be met. ``weights`` (positive, one for each of ``rows``) prove the
    conflict: the weighted sum of the rows is zero for every network, and that of their limits is negative.
    """

    def __init__(
        self, message: str, rows: tuple[int, ...] = (), names: tuple[str, ...] = (), weights: tuple[float, ...] = ()
    ) -> None:
        super().__init__(message)
        self.rows, self.names, self.weights = rows, names, weights


class UnsupportedNetworkError(ConvexNNError, TypeError):
    """A torch module is not of the form Linear, ReLU, Linear."""


class MissingDependencyError(ConvexNNError, ImportError):
    """An optional package is needed for what was asked and is not installed."""


class DeviceError(ConvexNNError, RuntimeError):
    """The requested device is not present on this machine."""


class SolverError(ConvexNNError, RuntimeError):
    """A solver of another package ended without an answer."""


class ScalingWarning(UserWarning):
    """Columns of the data differ in scale by so much that the search for neurons can miss some."""


class SolverWarning(UserWarning):
    """A solver or proof that was asked for is not to be had, and another answer takes its place."""
