"""A real terminal for commands that run in this process: a pseudo terminal of the operating system."""

import contextlib
import os
import pty
import sys
import threading
from collections.abc import Iterator
from unittest import mock


class Screen:
    """What reached the terminal, once the context that yielded it has ended."""

    text: str = ""


@contextlib.contextmanager
def pseudo_terminal(**environment: str) -> Iterator[Screen]:
    """Makes standard output and standard error a terminal inside the context.

    Args:
      environment: variables to set, such as TERM="dumb".
    """
    screen, received = Screen(), bytearray()
    master, slave = pty.openpty()

    def read() -> None:
        with contextlib.suppress(OSError):  # the other side was closed
            while data := os.read(master, 65536):
                received.extend(data)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        with (
            open(os.dup(slave), "w", encoding="utf-8") as out,
            open(slave, "w", encoding="utf-8") as err,
            mock.patch.dict(os.environ, environment),
            mock.patch.multiple(sys, stdout=out, stderr=err),
        ):
            yield screen
    finally:
        reader.join()
        os.close(master)
        screen.text = received.decode("utf-8").replace("\r\n", "\n")
