"""Reads the options of a command."""

import contextlib
import io
import re
from typing import Any, TypeVar

from .terminal import LONGEST_LINE, message_text, say, shorten

SettingsType = TypeVar("SettingsType")

_COLORS = re.compile("\x1b\\[[0-9;]*m")


def parse_options(settings: type[SettingsType], options: list[str], **how: Any) -> SettingsType:
    """Returns the settings that the options of a command give; `how` are further arguments of `tyro.cli`.

    tyro's message about a mistake quotes the options. It is printed without colors and shortened if one of them is very
    long or has control characters.

    Raises:
      SystemExit: with 2 for a mistake, with 0 after --help.
    """
    import tyro

    if all(message_text(option) == option for option in options):
        return tyro.cli(settings, args=options, **how)
    mistakes = io.StringIO()
    try:
        with contextlib.redirect_stderr(mistakes):
            return tyro.cli(settings, args=options, **how)
    finally:
        if text := _COLORS.sub("", mistakes.getvalue()):
            say(shorten(text.rstrip("\n"), 4 * LONGEST_LINE), error=True)
