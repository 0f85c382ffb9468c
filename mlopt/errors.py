"""The errors that mlopt raises for input it cannot accept.

Every message says what is wrong, what was got, what is allowed and what to do about it.
"""


class MlOptError(Exception):
    """Base of every error that mlopt raises on purpose."""


class ConfigError(MlOptError, ValueError):
    """An optimization configuration is invalid, or a rule of it cannot be applied."""


class TargetError(MlOptError, ValueError):
    """A request cannot be expressed for the model's deployment target."""


class ModelFormatError(MlOptError, ValueError):
    """A model package is damaged or of a kind that mlopt does not handle.

    The message names the file and, where there is one, the byte offset.
    """


class DestinationError(MlOptError, ValueError):
    """A package cannot be written where it was asked for."""
