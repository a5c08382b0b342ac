"""Which errors ask for another start."""

import errno

import jax
import pytest

from deberta_jax.train.checkpoints.storage_faults import Fault
from deberta_jax.train.hosts.exit_codes import StoppedError, exit_code


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ValueError("no such column"), 1),
        (KeyError("a bug"), 1),
        (FileNotFoundError(errno.ENOENT, "no such file"), 1),
        (OSError(errno.EIO, "Input/output error"), 42),
        (OSError(errno.ENOSPC, "No space left on device"), 42),
        (OSError(errno.ENAMETOOLONG, "File name too long"), 1),
        (OSError(errno.ELOOP, "Too many levels of symbolic links"), 1),
        (OSError(errno.EROFS, "Read-only file system"), 1),
        (ValueError("RESOURCE_EXHAUSTED: Error writing: No space left on device"), 42),
        (Fault("outage", "Input/output error").error("could not write"), 42),
        (Fault("full", "the disk is full").error("could not write"), 42),
        (Fault("denied", "permission denied").error("could not write"), 1),
        (jax.errors.JaxRuntimeError("UNKNOWN: Gloo all-reduce failed: Connection closed by peer"), 42),
        (ValueError("UNKNOWN: Gloo AllGather failed: Connection closed by peer"), 42),
        (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm"), 1),
        (jax.errors.JaxRuntimeError("INVALID_ARGUMENT: Disallowed host-to-device transfer"), 1),
    ],
)
def test_exit_code_of_an_error(error: Exception, code: int) -> None:
    assert exit_code(error) == code


def test_a_program_that_ignores_a_stop_exits_with_its_code() -> None:
    with pytest.raises(SystemExit) as stop:
        raise StoppedError("preempted", 42)
    assert stop.value.code == 42
    assert str(stop.value) == "preempted"
