"""Pictures whose text is drawn as it is, and which never end a run."""

import warnings
from pathlib import Path

import pytest

from deberta_jax.train.reporting.pictures import draw_or_report, open_figure, picture_name

NAMES = (r"$\frac{", "$5 and $6", r"a_b^c\d", "日本🎉", "two\nlines", "\x00", "", "\ud83d", "x" * 400, "%s{}#&~")


@pytest.mark.parametrize("usetex", [False, True])
def test_names_are_drawn_as_they_are(tmp_path: Path, usetex: bool) -> None:
    import matplotlib

    with matplotlib.rc_context({"text.usetex": usetex}), open_figure(tmp_path / "a.png", size=(4, 3)) as figure:
        axes = figure.subplots()
        axes.set_xticks(range(len(NAMES)), [picture_name(name) for name in NAMES])
        axes.set_title("$ $ _")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_the_format_is_that_of_the_ending_and_a_name_is_literal(tmp_path: Path) -> None:
    with open_figure(tmp_path / "a.svg", size=(4, 3)) as figure:
        figure.suptitle("$x^2$ costs $3")
    assert "<!-- $x^2$ costs $3 -->" in (tmp_path / "a.svg").read_text()


def test_names_become_short_lines() -> None:
    assert picture_name(r"$a_1\b$ é日") == r"$a_1\b$ é日"
    assert picture_name("a\tb\nc\x00\ud83d") == r"a\tb\nc\x00\ud83d"
    assert picture_name("begin" + "x" * 100 + "end") == "beginxxxxxxx…xxxxxxxxend"


def test_a_picture_that_fails_is_one_line_and_no_file(tmp_path: Path) -> None:
    path, lines = tmp_path / "a.png", []
    path.write_bytes(b"of an earlier run")

    def fail(_: Path) -> None:
        raise MemoryError("no memory\nat all")

    draw_or_report(path, fail, log=lines.append)
    assert lines == [f"could not draw {path}: MemoryError: no memory at all"]
    assert not path.exists()
    draw_or_report(path, lambda path: None, log=lines.append)  # a kind without a picture
    draw_or_report(path, lambda path: path.touch(), log=lines.append)
    assert lines[1:] == [f"saved {path}"]


def test_warnings_other_than_missing_glyphs_are_shown(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="of another kind"), open_figure(tmp_path / "a.png", size=(2, 2)):
        warnings.warn("of another kind", UserWarning, stacklevel=1)
