"""The help of a command: its common options on one screen, and all of them.

A class of settings may have two class variables:

* `COMMON`: the names of the options that `--help` shows, such as ("output", "optimizer.learning-rate"). All others
  appear under `--help-all`. Without it, `--help` shows every option.
* `EXAMPLES`: commands to copy, without the name of the program and of the command.
"""

import dataclasses
import re
import shutil
import textwrap
from collections.abc import Sequence
from typing import Any, Self

from .option_list import CONFIG, Option, command_line_options

_NARROWEST, _WIDEST = 60, 110  # columns
_LEFT = 34  # columns of names; a longer name has a line of its own


@dataclasses.dataclass(frozen=True)
class HelpTexts:
    """What the help of a command says besides its options.

    Attributes:
      description: what the command does.
      common: names of the options that `--help` shows (default: all).
      examples: commands to copy, without the name of the program and of the command.
    """

    description: str
    common: Sequence[str] = ()
    examples: Sequence[str] = ()

    @classmethod
    def of(cls, settings: type) -> Self:
        """Returns the docstring of a class of settings, its `COMMON` and its `EXAMPLES`."""
        return cls(settings.__doc__ or "", getattr(settings, "COMMON", ()), getattr(settings, "EXAMPLES", ()))


def help_text(settings: type, *, prog: str, show_all: bool, texts: HelpTexts, default: Any = None) -> str:
    """Returns the help of a command.

    Args:
      settings: the dataclass of its settings.
      prog: the command as it is typed, such as `deberta-jax pretrain`.
      show_all: whether to show every option.
      texts: what the help says besides.
      default: settings with other defaults (default: none).
    """
    width = max(_NARROWEST, min(_WIDEST, shutil.get_terminal_size((100, 40)).columns))
    options = command_line_options(settings, default)
    common = () if show_all else texts.common
    shown = _common(options, common) if common else options
    positionals = [option for option in options if option.is_positional]
    lines = [" ".join(["usage:", prog, *(option.value for option in positionals), "[OPTIONS]"]), ""]
    for paragraph in texts.description.split("\n\n"):
        lines += [*textwrap.wrap(" ".join(paragraph.split()), width, break_on_hyphens=False), ""]
    for title, group in _groups(shown, one_group=bool(common)):
        lines += textwrap.wrap(title, width)
        lines += [line for option in group for line in _lines(option, width, short=bool(common))]
        lines.append("")
    if texts.examples:
        lines += ["examples", *(line for example in texts.examples for line in _example(prog, example, width)), ""]
    lines.append(_footer(prog, hidden=len(options) - len(shown)))
    return "\n".join(lines)


def _footer(prog: str, *, hidden: int) -> str:
    if hidden:
        return f"{prog} --help-all shows {hidden} more options."
    return "--help shows this help, and --version the version."


def _common(options: Sequence[Option], common: Sequence[str]) -> list[Option]:
    """Returns positional values, required options, the common options in their order, and --config."""
    by_name = {option.name: option for option in options}
    needed = [option.name for option in options if option.is_positional or option.is_required]
    names = [*needed, *common, *(name for name in (CONFIG.name,) if name in by_name)]
    return [by_name[name] for name in dict.fromkeys(names)]


def _groups(options: Sequence[Option], *, one_group: bool) -> list[tuple[str, list[Option]]]:
    """Returns options by the titles of their groups: arguments, required options, those of the command, and others."""
    groups: dict[str, list[Option]] = {"arguments": [], "required": [], "common options": [], "options": []}
    for option in options:
        title = "arguments" if option.is_positional else "required" if option.is_required else ""
        groups.setdefault(title or ("common options" if one_group else option.group or "options"), []).append(option)
    return [(title, group) for title, group in groups.items() if group]


def _lines(option: Option, width: int, *, short: bool) -> list[str]:
    """Returns the lines of one option: its names and its value on the left, what it means on the right."""
    names = option.value if option.is_positional else f"{', '.join(_shown_names(option))} {option.value}".rstrip()
    help_of_option = _first_clause(meaning(option)) if short else meaning(option)
    text = textwrap.wrap(help_of_option, width - _LEFT, break_on_hyphens=False) or [""]
    left = f"  {names}"
    if len(left) <= _LEFT - 2:
        text[0] = f"{left:{_LEFT}}{text[0]}"
        first, rest = text[:1], text[1:]
    else:
        first, rest = _fitting(left, width), text
    return [*first, *(" " * _LEFT + line for line in rest)]


def _fitting(names: str, width: int) -> list[str]:
    """Returns the names of an option as lines; a long list of values continues on the next one."""
    if len(names) <= width:
        return [names]
    return textwrap.wrap(re.sub(",(?! )", ", ", names), width, subsequent_indent=" " * 6, break_on_hyphens=False)


def _first_clause(text: str) -> str:
    """Returns a help without what follows its first semicolon or sentence, but with its default at the end."""
    body, default = re.fullmatch(r"(.*?)( \((?:default|here): [^()]*\))?", text, re.DOTALL).groups()  # pyright: ignore
    depth = 0
    for place, character in enumerate(body):
        depth += {"(": 1, ")": -1}.get(character, 0)
        if not depth and body[place : place + 2] in ("; ", ". "):
            body = body[:place]
            break
    return body + (default or "")


def _shown_names(option: Option) -> list[str]:
    """Returns the names that matter: of a flag the one that changes its default."""
    if not option.is_flag:
        return list(option.names)
    return [option.names[1 if option.default is True else 0]]


def meaning(option: Option) -> str:
    """Returns the help of an option with its default."""
    text = option.help
    if option.is_required or option.is_positional:
        return text
    if option.is_flag:
        return f"{text} (default: {'on' if option.default else 'off'})"
    says_default = "(default:" in text
    if option.default is None or option.default == ():
        return text if says_default else f"{text} (default: none)"
    values = option.default if isinstance(option.default, tuple) else (option.default,)
    shown = " ".join(f"{value:g}" if isinstance(value, float) else str(value) for value in values)
    return f"{text} (here: {shown})" if says_default else f"{text} (default: {shown or chr(34) * 2})"


def _example(prog: str, example: str, width: int) -> list[str]:
    """Returns an example in lines that end with a backslash, which a shell joins. No line ends after a name."""
    lines = textwrap.wrap(
        re.sub(r"(--\S+) (?!--)", "\\1\0", f"{prog} {example}".rstrip()),
        width - 4,
        initial_indent="  ",
        subsequent_indent="      ",
        break_long_words=False,
        break_on_hyphens=False,
    )
    lines = [line.replace("\0", " ") for line in lines]
    return [f"{line} \\" for line in lines[:-1]] + lines[-1:]
