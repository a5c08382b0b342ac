"""Reads the options of a command."""

import contextlib
import dataclasses
import difflib
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from .config_file import read_settings
from .help_text import HelpTexts, help_text
from .option_list import CONFIG, Option, command_line_options
from .stores import check_protocol
from .terminal import LONGEST_LINE, list_names, say, shorten
from .versions import version_of

SettingsType = TypeVar("SettingsType")

_COLORS = re.compile("\x1b\\[[0-9;]*m")
_KINDS = {
    "INT": "a whole number",
    "NUMBER": "a number",
    "INT INT": "two whole numbers",
    "INT ...": "whole numbers",
    "NUMBER ...": "numbers",
    "TEXT": "a text",
    "PATH": "a path",
}
_CLOSE = 0.6  # similarity of a name that may have been meant
_MOST_HINTS = 3


def parse_options(
    settings: type[SettingsType],
    options: Sequence[str],
    *,
    prog: str = "deberta-jax",
    default: SettingsType | None = None,
    texts: HelpTexts | None = None,
) -> SettingsType:
    """Returns the settings that the options of a command give.

    `--help` prints the common options, `--help-all` every one (see `help_text`), and `--version` the version. If no
    value is positional, `--config FILE` reads a YAML file (see `config_file`), which gives the defaults of the other
    options. All words after the option that `settings.LAST` names are its values. A mistake is one line on standard
    error.

    Args:
      settings: the dataclass of the settings.
      options: the words of the command line.
      prog: the command as it is typed, such as `deberta-jax pretrain`.
      default: settings with other defaults, in which `tyro.MISSING` stands for what the user has to give.
      texts: what the help says (default: that of `settings`).

    Raises:
      SystemExit: with 2 for a mistake, with 0 after --help and --version.
      UserError: the file of --config cannot be used.
    """
    options, rest = _split_last(settings, options)
    given = list(options[: options.index("--")] if "--" in options else options)
    if {"-h", "--help", "--help-all"} & set(given):
        texts = texts or HelpTexts.of(settings)
        say(help_text(settings, prog=prog, show_all="--help-all" in given, default=default, texts=texts))
        raise SystemExit(0)
    if {"-V", "--version"} & set(given):
        say(version_line())
        raise SystemExit(0)
    known = command_line_options(settings, default)
    words = list(options)
    if CONFIG in known:
        words, file = _split_config(words, prog=prog)
        if file is not None:
            default = read_settings(file, settings, default=default, command=_command(prog))
    parsed = _parse(settings, words, known, prog=prog, default=default)
    return parsed if rest is None else dataclasses.replace(parsed, **rest)  # pyright: ignore[reportArgumentType]


def _split_last(settings: type, options: Sequence[str]) -> tuple[Sequence[str], dict[str, tuple[str, ...]] | None]:
    """Returns the words before the option that the settings name as `LAST`, and that option's words, which are all that
    follow, whatever they look like.
    """
    name = getattr(settings, "LAST", None)
    if name is None or f"--{name}" not in options:
        return options, None
    place = list(options).index(f"--{name}")
    return options[:place], {name: tuple(options[place + 1 :])}


def version_line() -> str:
    """Returns the name and the version of the library."""
    return f"deberta-jax {version_of()}"


def _command(prog: str) -> str:
    """Returns the command that reads a file of settings: a recipe is `finetune` with other defaults."""
    words = prog.split()
    return "finetune" if words[1:2] == ["recipe"] else words[-1]


def _split_config(words: list[str], *, prog: str) -> tuple[list[str], Path | None]:
    """Returns the words without `--config FILE`, and the file."""
    rest, file, words = [], None, list(words)
    while words:
        word = words.pop(0)
        if word == "--":
            return [*rest, word, *words], file
        name, equals, value = word.partition("=")
        if name != "--config":
            rest.append(word)
            continue
        if not equals:
            value = words.pop(0) if words and not words[0].startswith("--") else ""
        if not value:
            _refuse(prog, "--config needs the path of a YAML file")
        if file is not None:
            _refuse(prog, "--config is given twice; give one file")
        file = Path(value)
    return rest, file


def _parse(
    settings: type[SettingsType], words: list[str], known: list[Option], *, prog: str, default: SettingsType | None
) -> SettingsType:
    import tyro

    printed = io.StringIO()
    extra: dict[str, Any] = {} if default is None else {"default": default}
    try:
        with contextlib.redirect_stderr(printed), _paths_are_checked():
            return tyro.cli(settings, args=words, prog=prog, **extra)
    except SystemExit as stopped:
        if stopped.code:
            _refuse(prog, _mistake(_COLORS.sub("", printed.getvalue()), words, known))
        raise


def _refuse(prog: str, mistake: str) -> NoReturn:
    say(shorten(f"{prog}: {mistake} (see {prog} --help)", LONGEST_LINE), error=True)
    raise SystemExit(2)


def _mistake(box: str, words: list[str], known: list[Option]) -> str:
    """Returns on one line what tyro prints in a box, in words of our own where that says more."""
    lines = [re.sub("^[╭╰]─*|[│╮╯]|─+$", lambda border: " " * len(border[0]), line) for line in box.splitlines()]
    title, *rest = lines or [""]
    is_rule = [bool(re.fullmatch(r" *[-─]{4,} *", line)) for line in rest]
    start = is_rule.index(True) + 1 if is_rule[:1] == [True] else 0  # below the title, where a box has no border
    end = is_rule.index(True, start) if True in is_rule[start:] else len(rest)
    body = [line for line in rest[start:end] if line.strip()]
    text = " ".join(" ".join(body).split())
    of_positional = re.match(r"Missing value for argument '(\w[^']*)'", text)
    if ("Unrecognized" in title or "Required" in title or of_positional) and (unknown := _unknown(words, known)):
        return unknown
    if of_positional:
        return f"{of_positional[1].replace('_', '-').upper()} is required"
    if "Unrecognized" in title:
        return f"unexpected {text.partition(': ')[2]}; put a text of several words in quotation marks"
    if "Required" in title:
        return _missing(body, known)
    named = re.search(r"(?:argument '|Error parsing )(--[\w.-]+)", text)
    option = next((option for option in known if named and named[1] in option.names), None)
    if option is not None and named is not None and "the path is empty" not in text and "unknown protocol" not in text:
        value = _value_of(named[1], words)
        allowed = f"one of {', '.join(option.choices)}" if option.choices else _KINDS.get(option.value, option.value)
        return f"{named[1]} is {value!r}; it must be {allowed}" if value else f"{named[1]} needs a value: {allowed}"
    return re.sub(r"^Error parsing ([A-Z]\w*: )?", "", text)


def _missing(body: list[str], known: list[Option]) -> str:
    """Returns what is required. tyro lists names in lines of their own, and of a positional value only its type."""
    margins = [len(line) - len(line.lstrip()) for line in body]
    names = [line.split()[0] for line, margin in zip(body, margins, strict=True) if margin == margins[0] + 4]
    required = [option.value for option in known if option.is_positional and option.is_required]
    unnamed = sum(not name.startswith("--") for name in names)
    missing = [*required[len(required) - unnamed :], *(name for name in names if name.startswith("--"))]
    *first, last = missing or ["a value"]
    return f"{', '.join(first)} and {last} are required" if first else f"{last} is required"


def _value_of(name: str, words: list[str]) -> str:
    """Returns the words that follow the last use of an option."""
    values = []
    for number, word in enumerate(words):
        given, equals, value = word.partition("=")
        if given.replace("_", "-") == name:
            rest = words[number + 1 :]
            end = next((place for place, later in enumerate(rest) if later.startswith("--")), len(rest))
            values = [value] if equals else rest[:end]
    return " ".join(values)


def _unknown(words: list[str], known: list[Option]) -> str:
    """Returns which names do not exist, and similar ones; empty if all do."""
    names = {name for option in known for name in option.names}
    given = [word.partition("=")[0] for word in words if re.match(r"--?[A-Za-z]", word)]
    unknown = [word for word in dict.fromkeys(given) if word.replace("_", "-") not in names]
    if not unknown:
        return ""
    hint = similar_names(unknown[0], known)
    return f"no option {list_names(unknown)}" + (f"; did you mean {' or '.join(hint)}?" if hint else "")


def similar_names(given: str, known: Sequence[Option]) -> list[str]:
    """Returns the names of options that resemble one that does not exist, or whose last part does."""
    wanted = given.lstrip("-").replace("_", "-").lower()
    scores: dict[str, float] = {}
    for option in known:
        for name in option.names:
            whole = name.removeprefix("--")
            score = max(_similarity(wanted, whole), _similarity(wanted, whole.rpartition(".")[2]) - 0.01)
            # The first name of an option stands for its aliases.
            shown = option.names[0] if whole in option.aliases else name
            scores[shown] = max(score, scores.get(shown, 0.0))
    best = max(scores.values(), default=0.0)
    near = [name for name, score in scores.items() if score >= max(_CLOSE, best - 0.02)]
    return sorted(near, key=scores.__getitem__, reverse=True)[:_MOST_HINTS]


def _similarity(first: str, second: str) -> float:
    """Returns how similar two names are, from 0 to 1; hyphens count nothing."""
    return difflib.SequenceMatcher(a=first.replace("-", ""), b=second.replace("-", "")).ratio()


def _paths_are_checked() -> Any:
    """Returns a context in which tyro refuses an empty path, which would be the current folder, and unknown protocols.

    An empty path usually comes from a variable of the shell that is not set.
    """
    from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

    def to_path(words: list[str]) -> Path:
        if not words[0]:
            raise ValueError("the path is empty")
        check_protocol(words[0])
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
