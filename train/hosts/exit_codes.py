"""How a run ends: its exit code is a contract with whatever starts it again.

0: done, or stopped by --max-seconds. 42: start me again (preempted after a save; a host lost or stuck; storage, network
or a device that failed). 1: a mistake in settings or data, which starting again would not help. 127 to 255: killed by a
signal; 134 is how JAX itself aborts when it loses process 0. `xpk` and `tpu_scripts/queued/watch.sh` start again on 42
and on 127 to 255.
"""

import errno
import re

from deberta_jax.errors import UserError

DONE, FAILED, RESTART = 0, 1, 42
_MISTAKES = (errno.ENOENT, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.EEXIST)
_STATUS = re.compile(
    r"(UNKNOWN|UNAVAILABLE|INTERNAL|ABORTED|CANCELLED|DEADLINE_EXCEEDED|DATA_LOSS|RESOURCE_EXHAUSTED): "
)
_OUT_OF_MEMORY = "RESOURCE_EXHAUSTED"  # of a device: again the next time


class RestartError(UserError):
    """An error that may be gone when the run is started again: the process exits with RESTART."""


class StoppedError(SystemExit):
    """Training ended before its last step, with everything saved. `code`: RESTART, or DONE if it was to end here.

    A SystemExit, so that a program which does not handle it ends with that exit code.
    """

    def __init__(self, message: str, code: int) -> None:
        super().__init__(code)
        self.message = message

    def __str__(self) -> str:
        return self.message


def exit_code(error: BaseException) -> int:
    """FAILED for what starting again would not help, RESTART for what it may."""
    if from_runtime(error):
        return FAILED if _OUT_OF_MEMORY in str(error) else RESTART
    if isinstance(error, OSError) and error.errno is not None:
        return FAILED if error.errno in _MISTAKES else RESTART
    return RESTART if isinstance(error, RestartError) else FAILED


def from_runtime(error: BaseException) -> bool:
    """Whether it comes from XLA or its network: a collective whose other end is gone, a device that failed."""
    import jax

    # Waiting for a value raises a ValueError with the status in its text, waiting for a program a JaxRuntimeError.
    return isinstance(error, jax.errors.JaxRuntimeError) or (
        isinstance(error, ValueError) and _STATUS.match(str(error)) is not None
    )
