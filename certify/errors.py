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


class ImportMismatchError(CertifyError, RuntimeError):
    """The imported graph does not compute what the original network computes."""
