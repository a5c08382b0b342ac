"""How a run ends: its exit code is a contract with whatever starts it again.

0: done, or stopped by --max-seconds. 42: start me again (preempted after a save; a host lost or stuck; storage, network
or a device that failed). 1: a mistake in settings or data, which starting again would not help. 127 to 255: killed by a
signal; 134 is how JAX itself aborts when it loses process 0. `xpk` and `tpu_scripts/queued/watch.sh` start again on 42
and on 127 to 255.
"""

import errno

DONE, FAILED, RESTART = 0, 1, 42
_MISTAKES = (errno.ENOENT, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.EEXIST)


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
    import jax

    chain: BaseException | None = error
    while chain is not None:
        if isinstance(chain, jax.errors.JaxRuntimeError):
            return FAILED if "RESOURCE_EXHAUSTED" in str(chain) else RESTART  # out of memory: again the next time
        if isinstance(chain, OSError) and chain.errno is not None:
            return FAILED if chain.errno in _MISTAKES else RESTART
        chain = chain.__cause__
    return FAILED
