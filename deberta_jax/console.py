"""The console of rich as this library uses it: it prints text, never markup, emoji codes or control characters.

Every module that prints tables or colors opens its console here (tests/repo/test_terminal.py).
"""

from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from .terminal import printable


class PlainConsole(Console):
    """A console that prints strings literally. Styles are those of `rich.text.Text` objects and of table columns.

    Args:
      stderr: print to standard error (default: standard output).
      options: further options of rich's Console.
    """

    def __init__(self, *, stderr: bool = False, **options: Any) -> None:
        super().__init__(stderr=stderr, markup=False, emoji=False, highlight=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """Returns a string as text: rich calls it for every string that is printed, also those in tables."""
        return super().render_str(printable(text, lines=True), **{**options, "markup": False, "emoji": False})

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Yields what is printed. Only rich's own sequences, as for the live line, may control the terminal."""
        for segment in super().render(renderable, options):
            if segment.control:
                yield segment
            else:
                yield segment._replace(text=printable(segment.text, lines=True))


def plain_text(text: str, style: str = "", *, lines: bool = False) -> Text:
    """Returns a text to be printed in a style, with what a terminal would obey made visible (see `printable`)."""
    return Text(printable(text, lines=lines), style=style)
