"""Errors that a user can fix: the command line prints them as one line, everything else with its traceback."""

from .terminal import message_text


class UserError(ValueError):
    """A mistake in settings, files or the environment that the user can correct.

    The message is one line: what was given, what is allowed and what to do. Any other exception that leaves a command
    is a bug in the library, or a failure of the machine.

    Names and values from files, which a message quotes, may be long and contain control characters: the text of the
    error is `terminal.message_text` of the message.
    """

    exit_status = 1  # of a command that ends with this error

    def __init__(self, message: str) -> None:
        super().__init__(message_text(message))


class MissingFileError(UserError, FileNotFoundError):
    """A file or folder that the user named does not exist or is not what it has to be."""


class MissingPackageError(UserError, ImportError):
    """An optional package is not installed; the message names the extra that installs it."""


def is_expected(error: BaseException) -> bool:
    """Returns whether one line describes an error fully: a user's mistake, or a failed call of the operating system.

    Every other exception is reported with its traceback.
    """
    return isinstance(error, UserError) or (isinstance(error, OSError) and error.errno is not None)


def one_line(error: BaseException) -> str:
    """Returns the message of an error on one line that can be printed, or the name of its class if it has no message.

    Control characters are made visible, and a long message is shortened (see `terminal.message_text`).
    """
    return " ".join(message_text(str(error)).split()) or type(error).__name__
