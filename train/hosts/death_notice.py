"""A message for the death that a process cannot report itself: SIGKILL, out of memory, or an abort by JAX."""

import contextlib
import subprocess
import sys

from deberta_jax.terminal import message_text


class DeathNotice:
    """Prints a message to standard error if this process is killed.

    No code of a killed process runs. A small child process therefore reads from a pipe, which the operating system
    closes when this process ends, and then prints the last line that it received.
    """

    # The child ignores SIGTERM and SIGINT, which a scheduler or a terminal sends to all processes of a job at once.
    _PROGRAM = (
        "import signal, sys\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN); signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "message = ''\n"
        "for message in sys.stdin: pass\n"
        "sys.stderr.write(message.strip() and message)\n"
    )

    def __init__(self, message: str) -> None:
        self._child = subprocess.Popen(
            [sys.executable, "-S", "-E", "-c", self._PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )
        self._send(message)

    def cancel(self) -> None:
        """Cancels the message: this process is about to exit and has reported why."""
        with contextlib.suppress(BrokenPipeError):
            self._send("")

    def _send(self, line: str) -> None:
        assert self._child.stdin is not None
        self._child.stdin.write(message_text(line) + "\n")
        self._child.stdin.flush()
