"""A killed process is reported, unless it has cancelled the report."""

import signal
import subprocess
import sys

import pytest


@pytest.mark.parametrize(("action", "printed"), [("pass", "process 1 died\n"), ("notice.cancel()", "")])
def test_a_killed_process_is_reported_unless_it_has_cancelled(action: str, printed: str) -> None:
    program = (
        "import os, signal\n"
        "from deberta_jax.train.hosts.death_notice import DeathNotice\n"
        f"notice = DeathNotice('process 1 died'); {action}\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    # The child of DeathNotice holds stderr open as well, so this waits for both processes.
    done = subprocess.run([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (-signal.SIGKILL, printed)
