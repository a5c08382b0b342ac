"""How a run ends: its exit code is a contract with whatever starts it again.

| Code       | Meaning                                                                                            |
|------------|----------------------------------------------------------------------------------------------------|
| 0          | Training is done, or was stopped by `--max-seconds`.                                               |
| 42         | Start the run again: it was preempted after a save, a host died or hung, or storage, the network   |
|            | or a device failed.                                                                                |
| 1          | A mistake in settings or data, or a bug: the next start would fail in the same way.                |
| 127 to 255 | The process was killed by a signal. JAX aborts with 134 (SIGABRT) when it loses process 0.         |

`xpk` and `tpu_scripts/queued/watch.sh` start a run again on 42 and on 127 to 255.
"""

import errno
import re

import jax

from deberta_jax.errors import UserError, is_out_of_device_memory

DONE, FAILED, RESTART = 0, 1, 42
# Other errors of the operating system, such as EIO or ENOSPC, may be gone at the next start.
_MISTAKE_ERRNOS = (
    errno.ENOENT,
    errno.EACCES,
    errno.EPERM,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EEXIST,
    errno.ENAMETOOLONG,
    errno.ELOOP,
    errno.EROFS,
    errno.EINVAL,
)
_XLA_STATUS = re.compile(
    r"(UNKNOWN|UNAVAILABLE|INTERNAL|ABORTED|CANCELLED|DEADLINE_EXCEEDED|DATA_LOSS|RESOURCE_EXHAUSTED): "
)
_WRONG_PROGRAM = re.compile(r"INVALID_ARGUMENT: |UNIMPLEMENTED: ")  # no failure of a machine


class RestartError(UserError):
    """Base class of errors after which the run should be started again: the process exits with RESTART."""

    exit_status = RESTART


class StoppedError(SystemExit):
    """Training stopped before its last step, with everything saved.

    This is a SystemExit, so a program that does not handle it exits with `code`: RESTART, or DONE if the stop was
    requested by `--max-seconds`.
    """

    def __init__(self, message: str, code: int) -> None:
        super().__init__(code)
        self.message = message

    def __str__(self) -> str:
        return self.message


class StopRequested(Exception):  # noqa: N818  # not an error
    """A stop was requested during an evaluation or a prediction, which is given up. Raised on every process alike."""


def exit_code(error: BaseException) -> int:
    """Returns RESTART if starting the run again may succeed after this error, otherwise FAILED."""
    if is_runtime_failure(error):
        repeats = is_out_of_device_memory(error) or _WRONG_PROGRAM.match(str(error))
        return FAILED if repeats else RESTART
    if isinstance(error, OSError) and error.errno is not None:
        return FAILED if error.errno in _MISTAKE_ERRNOS else RESTART
    return error.exit_status if isinstance(error, UserError) else FAILED


def is_runtime_failure(error: BaseException) -> bool:
    """Returns whether an error comes from XLA or its network, such as a broken collective or a failed device."""
    # JAX raises JaxRuntimeError when a program fails. If it fails while a result is being fetched, JAX raises a
    # ValueError whose message starts with the status.
    return isinstance(error, jax.errors.JaxRuntimeError) or (
        isinstance(error, ValueError) and _XLA_STATUS.match(str(error)) is not None
    )
