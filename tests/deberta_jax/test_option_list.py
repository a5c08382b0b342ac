"""The options of a dataclass as data, and the help that shows them."""

import dataclasses
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import tyro

from deberta_jax.help_text import HelpTexts, help_text
from deberta_jax.option_list import options_of


@dataclasses.dataclass(frozen=True)
class Group:
    """A group of settings."""

    rate: Annotated[float, tyro.conf.arg(aliases=("--rate",))] = 0.5
    """the rate; see the paper"""
    on: bool = True
    """whether it is on"""


@dataclasses.dataclass(frozen=True)
class Base:
    model: tyro.conf.Positional[str]
    """the model"""


@dataclasses.dataclass(frozen=True)
class Command(Base):
    """Does something."""

    COMMON: ClassVar[tuple[str, ...]] = ("group.rate", "kinds")
    EXAMPLES: ClassVar[tuple[str, ...]] = ("model a --kinds a b",)

    texts: tyro.conf.Positional[tuple[str, ...]] = ()
    """the texts (default: standard input)"""
    kinds: tuple[Literal["a", "b"], ...] = ()
    """the kinds (default: all).
    Two lines"""
    path: Path | None = None
    """a path (default: no path)"""
    flat: Annotated[Group, tyro.conf.arg(name="")] = Group(rate=2.0)
    group: Group = Group()


def test_options_have_the_names_that_tyro_gives_them() -> None:
    options = options_of(Command)
    assert [option.name for option in options] == [
        *("model", "texts", "kinds", "path", "rate", "on", "group.rate", "group.on")
    ]
    by_name = {option.name: option for option in options}
    assert by_name["group.rate"].names == ("--group.rate", "--rate")
    assert by_name["group.on"].names == ("--group.on", "--group.no-on")
    assert [option.value for option in options] == [
        *("MODEL", "[TEXTS ...]", "{a,b} ...", "PATH", "NUMBER", "", "NUMBER", "")
    ]
    assert by_name["kinds"].choices == ("a", "b")
    assert by_name["kinds"].help == "the kinds (default: all). Two lines"
    assert (by_name["rate"].default, by_name["group.rate"].default) == (2.0, 0.5)
    assert by_name["model"].is_required
    assert options_of(Command, Command("m", path=Path("p")))[3].default == Path("p")


def test_the_short_help_has_common_options_in_their_order(monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    text = help_text(Command, prog="deberta-jax do", show_all=False, texts=HelpTexts.of(Command))
    assert text.splitlines() == [
        "usage: deberta-jax do MODEL [TEXTS ...] [OPTIONS]",
        "",
        "Does something.",
        "",
        "arguments",
        "  MODEL                           the model",
        "  [TEXTS ...]                     the texts (default: standard input)",
        "",
        "common options",
        "  --group.rate, --rate NUMBER     the rate (default: 0.5)",
        "  --kinds {a,b} ...               the kinds (default: all)",
        "",
        "examples",
        "  deberta-jax do model a --kinds a b",
        "",
        "deberta-jax do --help-all shows 4 more options.",
    ]


def test_the_whole_help_has_groups_and_full_texts(monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    text = help_text(Command, prog="deberta-jax do", show_all=True, texts=HelpTexts.of(Command))
    assert "\nA group of settings\n" in text
    assert "the rate; see the paper (default: 2)" in text
    assert "--group.no-on                   whether it is on (default: on)" in text
