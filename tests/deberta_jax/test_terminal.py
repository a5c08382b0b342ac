"""What reaches a terminal: visible characters, lists and lines of bounded length."""

import io
import os
import pickle
import sys
import time

import pytest

from deberta_jax.errors import MissingFileError, MissingPackageError, UserError, one_line
from deberta_jax.terminal import PrintableStream, list_names, message_text, printable, quote_names, say, shorten

from ..support.hostile_texts import HIDDEN, HOSTILE, MARKUP, ORDINARY

HUGE = "word \x1b" * 1_500_000  # 9 MB


def test_every_hidden_character_becomes_a_visible_escape() -> None:
    for character in HIDDEN:
        shown = printable(f"a{character}b")
        assert character not in shown
        assert shown.isascii()
        assert eval(f"'{shown}'") == f"a{character}b"  # nothing is lost
        shown = printable(f"a{character}b", lines=True)
        assert (character in shown) == (character in "\n\t")


@pytest.mark.parametrize("text", [*ORDINARY, MARKUP])
def test_ordinary_text_of_every_script_stays(text: str) -> None:
    assert printable(text) == text


def test_joiners_that_join_nothing_and_tags_without_a_flag_are_visible() -> None:
    assert printable("ad\u200dmin \u200c \u200d\u200d") == r"ad\u200dmin \u200c \u200d\u200d"
    assert printable("é\u200d\u200d") == "é\u200d\\u200d"
    assert printable("\U000e0067\U000e007f") == r"\U000e0067\U000e007f"
    assert printable("\U0001f3f4\U000e0067") == "\U0001f3f4\\U000e0067"


def test_twice_is_as_once() -> None:
    assert printable(printable(HOSTILE)) == printable(HOSTILE)


def test_lists_and_names_have_bounded_length() -> None:
    assert list_names(["a", "b"]) == "a, b"
    assert list_names([str(number) for number in range(11)]) == "0, 1, 2, 3, 4, 5, 6, 7 and 3 more"
    assert list_names(range(10_000), most=2) == "0, 1 and 9,998 more"
    assert quote_names(["a b", "c"]) == "'a b', 'c'"
    assert list_names([]) == "nothing"
    assert len(list_names({HUGE: 1, HUGE + "a": 2})) < 500
    assert shorten("begin" + "x" * 1000 + "end", 30) == "beginxxxxxxxxxxxx ... xxxxxend"
    assert len(shorten("x" * 1000, 30)) == 30


@pytest.mark.parametrize("error", [UserError, MissingFileError, MissingPackageError, ValueError, OSError, KeyError])
def test_errors_are_one_short_printable_line(error: type[Exception]) -> None:
    began = time.process_time()
    for text in (HOSTILE, HUGE, "\x1b" * 10_000, "first\r\nsecond\n\tthird\u2028"):
        line = one_line(error(f"begin {text} what to do"))
        assert "begin" in line
        assert "what to do" in line
        assert printable(line) == line
        assert len(line) <= 2000
    assert one_line(error("first\r\n second")).strip("'") in ("first second", r"first\r\n second")
    assert time.process_time() - began < 5


def test_user_errors_are_short_and_printable_in_a_traceback_too() -> None:
    error = UserError(HUGE)
    assert len(str(error)) <= 2000
    assert "\x1b" not in str(UserError(HOSTILE))
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    assert one_line(UserError("")) == "UserError"


def test_messages_keep_their_lines(capsys: pytest.CaptureFixture[str]) -> None:
    say(f"first\tline\n{HOSTILE}\n{HUGE}")
    say("wrong", error=True)
    out, err = capsys.readouterr()
    assert err == "wrong\n"
    lines = out.split("\n")
    assert lines[0] == "first\tline"
    assert lines[1] == printable(HOSTILE)
    assert len(lines[2]) <= 2000
    assert message_text("a\nb") == "a\nb"


def test_a_reader_that_is_gone_does_not_end_a_command(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w", encoding="utf-8") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        say("nobody reads this")
        say("nor this")


def test_a_stream_obeys_colors_and_progress_bars_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    below = io.StringIO()
    PrintableStream(below).write("\x1b[31mno color\x1b[0m\r\x1b[A\x1b[K")
    assert below.getvalue() == r"\x1b[31mno color\x1b[0m" + "\r\x1b[A\x1b[K"
    below = io.StringIO()
    monkeypatch.setattr(below, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    stream = PrintableStream(below)
    assert stream.write("\x1b[31mred\x1b[0m\r50 %\n\x1b[A\x1b]0;title\x07\x1b[2J\x9b\u202e") == 37
    stream.writelines(["a\n", "\b"])
    expected = "\x1b[31mred\x1b[0m\r50 %\n\x1b[A" + r"\x1b]0;title\x07\x1b[2J\x9b\u202e" + "a\n" + r"\x08"
    assert below.getvalue() == expected
    assert stream.isatty()
