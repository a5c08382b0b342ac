"""Reads the options of a command."""

import contextlib
import io
import re
from pathlib import Path
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

    mistakes = io.StringIO()
    is_printable = all(message_text(option) == option for option in options)
    try:
        with (
            contextlib.nullcontext() if is_printable else contextlib.redirect_stderr(mistakes),
            _paths_are_not_empty(),
        ):
            return tyro.cli(settings, args=options, **how)
    finally:
        if text := _COLORS.sub("", mistakes.getvalue()):
            say(shorten(text.rstrip("\n"), 4 * LONGEST_LINE), error=True)


def _paths_are_not_empty() -> Any:
    """Returns a context in which tyro refuses an empty path, which would be the current folder.

    It usually comes from a variable of the shell that is not set.
    """
    from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

    def to_path(words: list[str]) -> Path:
        if not words[0]:
            raise ValueError("the path is empty")
        return Path(words[0])

    registry = ConstructorRegistry()

    @registry.primitive_rule
    def rule(type_info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Path] | None:
        if type_info.type is not Path:
            return None
        return PrimitiveConstructorSpec(
            nargs=1,
            metavar="PATH",
            instance_from_str=to_path,
            is_instance=lambda value: isinstance(value, Path),
            str_from_instance=lambda path: [str(path)],
        )

    return registry
