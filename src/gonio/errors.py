"""Every error gonio raises on purpose.

A message says what was attempted on which path or module, what was found, what was expected and
the cure; shapes and names, never tensor contents. The command line prints the message and exits
with code 2; library users catch :class:`GonioError`.
"""

__all__ = [
    "AdapterError",
    "CodecError",
    "DataError",
    "GonioError",
    "MissingDependencyError",
    "ModelError",
    "OutputError",
    "PeerError",
    "RecordError",
    "RequestError",
    "SettingError",
    "ShapeError",
    "TheoremError",
    "ZeroMatrixError",
]


class GonioError(Exception):
    """Base of every error gonio raises on purpose."""


class ShapeError(GonioError, ValueError):
    """A tensor has a shape the function does not accept."""


class SettingError(GonioError, ValueError):
    """A setting is out of range or contradicts another."""


class ZeroMatrixError(GonioError, ValueError):
    """A quantity that divides by a norm was asked of a zero matrix."""


class AdapterError(GonioError, ValueError):
    """An adapter folder cannot be read, or holds what gonio refuses to guess about."""


class ModelError(GonioError, ValueError):
    """A model source cannot be found, read or handled."""


class DataError(GonioError, ValueError):
    """A text or data set cannot be found, read or split."""


class CodecError(GonioError, ValueError):
    """A cache codec file cannot be read, or does not fit the model it is used with."""


class RecordError(GonioError, ValueError):
    """A record cannot be read, or does not follow the schema."""


class RequestError(SettingError):
    """A request to a server is refused.

    Attributes:
        code: What is wrong, as a word for programs: ``unknown_adapter``.
        status: The HTTP status that says so.
    """

    def __init__(self, message: str, *, code: str, status: int = 400) -> None:
        super().__init__(message)
        self.code, self.status = code, status


class TheoremError(GonioError, ValueError):
    """A theorem name is unknown, or the catalogue is inconsistent."""


class OutputError(GonioError, OSError):
    """A result cannot be written where it was asked for."""


class PeerError(GonioError):
    """A package that gonio is compared with is missing, fails or answers nonsense."""


class MissingDependencyError(GonioError, ImportError):
    """A feature needs an extra that is not installed."""
