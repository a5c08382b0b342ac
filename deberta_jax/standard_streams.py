"""Standard streams that no text and no closed descriptor can break, for commands."""

import contextlib
import io
import os
import sys


def make_standard_streams_safe() -> None:
    """Opens the standard streams that are closed, and lets those of output escape what their encoding lacks.

    A descriptor that was closed (`>&-`) would be given to the next file that is opened, so that the messages of C++
    libraries would end up in it. And file names may hold bytes that are not UTF-8, or the terminal may take ASCII only.
    """
    for descriptor, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
        if getattr(sys, name) is None:
            setattr(sys, name, open(descriptor, mode, encoding="utf-8", closefd=False))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            with contextlib.suppress(ValueError):  # it is closed
                stream.reconfigure(errors="backslashreplace")
