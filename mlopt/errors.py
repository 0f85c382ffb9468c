"""The errors that mlopt raises for input it cannot accept.

Every message says what is wrong, what was given, what is allowed and what to do about it.
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
    """A package cannot be written to the requested destination."""


class RunError(MlOptError, RuntimeError):
    """A program failed while it ran; the message names the operation and what it was given."""


class InputError(MlOptError, ValueError):
    """The inputs given to a model are not those that it describes."""
