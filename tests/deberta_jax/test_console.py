"""The console prints text: no markup, no emoji codes, no control characters, in any place where rich takes a string."""

import io

import pytest
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from deberta_jax.console import PlainConsole, plain_text
from deberta_jax.terminal import printable

from ..support.hostile_texts import HOSTILE, MARKUP, ORDINARY

LITERAL = [MARKUP, "[/]", ":smile:", *ORDINARY]


def printed(*things: object, terminal: bool = False) -> str:
    below = io.StringIO()
    PlainConsole(file=below, force_terminal=terminal, width=2000, color_system=None).print(*things)
    return below.getvalue()


def table(text: str) -> Table:
    made = Table(text, title=text, caption=text)
    made.add_row(text)
    return made


@pytest.mark.parametrize("text", LITERAL)
def test_text_is_literal_everywhere(text: str) -> None:
    assert printed(text) == text + "\n"
    assert printed(plain_text(text, "red"), text) == f"{text} {text}\n"
    assert printed(table(text)).count(text) == 4
    assert text in printed(Panel(text))


@pytest.mark.parametrize("terminal", [False, True])
def test_what_a_terminal_would_obey_is_visible_everywhere(terminal: bool) -> None:
    for thing in (HOSTILE, table(HOSTILE), Panel(HOSTILE, title=HOSTILE), plain_text(HOSTILE), Text(HOSTILE)):
        shown = printed(thing, terminal=terminal)
        assert printable(shown, lines=True) == shown
    assert printable(HOSTILE) in printed(plain_text(HOSTILE))


def test_columns_are_as_wide_as_what_is_shown() -> None:
    lines = printed(table("\x1b[31m\u202e日本")).splitlines()
    rows = [line for line in lines if line[0] in "│┃"]
    assert [line[-1] for line in rows] == ["┃", "│"]
    assert len(set(map(len, rows))) == 1


def test_styles_are_colors() -> None:
    below = io.StringIO()
    console = PlainConsole(file=below, force_terminal=True, color_system="standard")
    console.print(plain_text("\x1b[5mx", "red"))
    assert below.getvalue() == "\x1b[31m\\x1b[5mx\x1b[0m\n"
