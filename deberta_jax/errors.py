"""Errors that a user can fix: the command line prints them as one line, everything else with its traceback."""

import errno
import os
import re
import traceback

from .terminal import message_text

# JAX reads its environment variables and starts its backends here, and raises errors of any class.
_JAX_START = (os.path.join("jax", "_src", "xla_bridge.py"), os.path.join("jax", "_src", "config.py"))
_JAX_SETTING = re.compile(r"\bjax_[a-z0-9_]+\b")
_EXHAUSTED = "RESOURCE_EXHAUSTED"  # of XLA, if a device has no memory left, and of TensorStore, if a disk is full
# SafeTensors, TensorStore and ArrayRecord have the words of the operating system in their messages, but no number.
DISK_FULL = re.compile(r"No space left on device|Disk quota exceeded")


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


def as_expected(error: BaseException) -> BaseException:
    """Returns the UserError of a failure that the environment causes and that one line describes, else `error`."""
    text = one_line(error)
    if isinstance(error, MemoryError):
        return UserError(f"out of memory ({text}); give smaller sizes, or use a machine with more memory")
    if isinstance(error, UnicodeEncodeError) and error.reason == "surrogates not allowed":
        return UserError(f"the name {error.object!r} is not UTF-8; rename the file or folder")
    frames = traceback.extract_tb(error.__traceback__)
    if frames and frames[-1].filename.endswith(_JAX_START):
        variables = [f"{name}={value}" for name, value in sorted(os.environ.items()) if name.startswith("JAX_")]
        return UserError(
            f"JAX does not start ({text:.300}); correct or unset {', '.join(variables) or 'JAX_PLATFORMS'}"
        )
    for name in _JAX_SETTING.findall(text):  # a check that JAX makes only where the user asks for it
        if name.upper() in os.environ:
            return UserError(f"{name.upper()}={os.environ[name.upper()]} is not supported ({text:.200}); unset it")
    if text.startswith(f"{_EXHAUSTED}: ") and is_out_of_device_memory(error):
        return UserError(f"device out of memory: {text:.300}; give a smaller batch, --accumulation or --remat")
    return error


def is_out_of_device_memory(error: BaseException) -> bool:
    """Returns whether an error of XLA or TensorStore says that a device has no memory left."""
    return _EXHAUSTED in str(error) and not DISK_FULL.search(str(error))


def write_errno(error: Exception) -> int:
    """Returns the error number of a failed write: ENOSPC if only the message says that the disk is full, else EIO."""
    full = errno.ENOSPC if DISK_FULL.search(str(error)) else errno.EIO
    return (error.errno if isinstance(error, OSError) else None) or full


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
