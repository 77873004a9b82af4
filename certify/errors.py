"""Every error that this package raises on purpose.

Each message says what was given, what was expected and what to do.
"""


class CertifyError(Exception):
    """Base of all errors of this package."""


class InvalidInputError(CertifyError, ValueError):
    """A value that no certificate can be computed for: NaN, a wrong shape, a negative radius, ..."""


class InvalidTypeError(CertifyError, TypeError):
    """An object of a kind that is not understood."""


class UnsupportedOp(CertifyError, NotImplementedError):  # noqa: N818
    """A layer or operation without a rule here."""


class TrainModeError(InvalidInputError):
    """A network whose forward pass is random, or depends on the batch, because it is in train mode."""


class QueryError(InvalidInputError):
    """A property file that cannot be read: malformed, undeclared names, wrong sizes, not linear, too large."""

    def __init__(self, message: str, line: int | None = None) -> None:
        super().__init__(message if line is None else f"line {line}: {message}")
        self.message, self.line = message, line


class EmptyQueryError(QueryError):
    """A property that no input can have: every box has a lower limit above its upper one."""


class ImportMismatchError(CertifyError, RuntimeError):
    """The imported graph does not compute what the original network computes."""


class MissingDependencyError(CertifyError, ImportError):
    """An optional package that this needs is not installed."""


class ResultsFileError(InvalidInputError):
    """A results file that is something else, damaged, in use, or about another question."""


class WorkerLostError(CertifyError, RuntimeError):
    """A worker process died, or its machine did."""


class DivergedError(CertifyError, RuntimeError):
    """Training reached a loss or gradient that is not finite."""
