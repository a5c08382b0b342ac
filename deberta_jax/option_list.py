"""The options of a command as data, for its help, its hints, its completion and its files of settings.

tyro, which parses the command line, does not list them. A test compares the names with those that tyro accepts.
"""

import ast
import dataclasses
import functools
import inspect
import itertools
import pathlib
import textwrap
import types
import typing
from collections.abc import Sequence
from typing import Any, Literal

_NAMES = {int: "INT", float: "NUMBER", str: "TEXT", pathlib.Path: "PATH"}


@dataclasses.dataclass(frozen=True)
class Option:
    """One option of a command.

    Attributes:
      name: the name without dashes, such as `optimizer.learning-rate`; of a positional the name of its field.
      path: the fields that lead to the value, from the settings of the command.
      group: what the group of settings is about; empty for the settings of the command itself.
      annotation: the type of the field, with what its annotation adds.
      help: the string below the field.
      default: the default value; `dataclasses.MISSING` if the option is required.
      is_positional: whether the value is given without a name.
      aliases: further names, without dashes.
    """

    name: str
    path: tuple[str, ...]
    group: str
    annotation: Any
    help: str
    default: Any
    is_positional: bool
    aliases: tuple[str, ...] = ()

    @property
    def is_required(self) -> bool:
        return self.default is dataclasses.MISSING

    @property
    def is_flag(self) -> bool:
        return without_wrapping(self.annotation) is bool

    @property
    def is_list(self) -> bool:
        return typing.get_origin(without_wrapping(self.annotation)) is tuple

    @property
    def names(self) -> tuple[str, ...]:
        """Every name, with its dashes; none for a positional."""
        if self.is_positional:
            return ()
        head, dot, last = self.name.rpartition(".")
        negated = (f"{head}{dot}no-{last}",) if self.is_flag else ()
        return tuple(f"--{name}" for name in (self.name, *negated, *self.aliases))

    @property
    def choices(self) -> tuple[str, ...]:
        """The values that are allowed, if there are few."""
        types_of_items = typing.get_args(without_wrapping(self.annotation)) if self.is_list else (self.annotation,)
        plain = without_wrapping(types_of_items[0])
        return tuple(map(str, typing.get_args(plain))) if typing.get_origin(plain) is Literal else ()

    @property
    def value(self) -> str:
        """The form of the value, such as INT or {a,b}; empty for a flag."""
        if self.is_positional:
            name = self.path[-1].replace("_", "-").upper() + (" ..." if self.is_list else "")
            return name if self.is_required else f"[{name}]"
        return _form(self.annotation)


CONFIG = Option(
    name="config",
    path=(),
    group="",
    annotation=pathlib.Path,
    help="YAML file of settings by the names of options; the command line wins over it (default: no file)",
    default=None,
    is_positional=False,
)


def options_of(settings: type, default: Any = None) -> list[Option]:
    """Returns the options that set the fields of a command's settings, in the order of the fields.

    Args:
      settings: the dataclass of the settings.
      default: an instance with other defaults (default: none).
    """
    return list(_walk(settings, default, prefix="", path=(), group=""))


def command_line_options(settings: type, default: Any = None) -> list[Option]:
    """Returns what `options_of` returns, and `--config FILE` unless the command has positional values."""
    options = options_of(settings, default)
    takes_file = not any(option.is_positional or option.name == CONFIG.name for option in options)
    return [*options, CONFIG] if takes_file else options


def heading_of(settings: type) -> str:
    """Returns the first line of the docstring of a dataclass."""
    return inspect.cleandoc(settings.__doc__ or "").partition("\n\n")[0].replace("\n", " ").rstrip(".")


def _walk(settings: type, default: Any, *, prefix: str, path: tuple[str, ...], group: str):
    helps, annotations = field_helps(settings), annotations_of(settings)
    for field in dataclasses.fields(settings):
        if not field.init:
            continue
        annotation = annotations[field.name]
        added = typing.get_args(annotation)[1:] if typing.get_origin(annotation) is typing.Annotated else ()
        given = next((part.name for part in added if getattr(part, "name", None) is not None), None)
        own = field.name.replace("_", "-") if given is None else given
        name = f"{prefix}{own}"
        value = _default_of(field) if default is None else getattr(default, field.name)
        plain = without_wrapping(annotation)
        if dataclasses.is_dataclass(plain) and isinstance(plain, type):
            inside = None if value is dataclasses.MISSING or _is_missing(value) else value
            inner = f"{name}." if own else prefix
            yield from _walk(plain, inside, prefix=inner, path=(*path, field.name), group=heading_of(plain))
            continue
        yield Option(
            name=name,
            path=(*path, field.name),
            group=group,
            annotation=annotation,
            help=helps.get(field.name, ""),
            default=dataclasses.MISSING if _is_missing(value) else value,
            is_positional=any(repr(part) == "Positional" for part in added),  # tyro's mark
            aliases=tuple(alias.removeprefix("--") for part in added for alias in getattr(part, "aliases", None) or ()),
        )


def _default_of(field: dataclasses.Field) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _is_missing(value: Any) -> bool:
    """Returns whether a value is a mark of `dataclasses` or tyro for a value that the user has to give."""
    return value is dataclasses.MISSING or type(value).__module__.startswith("tyro.")


@functools.cache
def annotations_of(settings: type) -> dict[str, Any]:
    """Returns the types of the fields of a dataclass, with what their annotations add."""
    return typing.get_type_hints(settings, include_extras=True)


@functools.cache
def field_helps(settings: type) -> dict[str, str]:
    """Returns the strings below the fields of a dataclass and of its bases, on one line each."""
    helps: dict[str, str] = {}
    for part in reversed(settings.__mro__):
        if not dataclasses.is_dataclass(part):
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(part))).body[0]
        statements: Sequence[ast.stmt] = body.body if isinstance(body, ast.ClassDef) else ()
        for field, text in itertools.pairwise(statements):
            if (
                isinstance(field, ast.AnnAssign)
                and isinstance(field.target, ast.Name)
                and isinstance(text, ast.Expr)
                and isinstance(text.value, ast.Constant)
                and isinstance(text.value.value, str)
            ):
                helps[field.target.id] = " ".join(text.value.value.split())
    return helps


def without_wrapping(annotation: Any) -> Any:
    """Returns a type without what `Annotated` adds to it and without `None`."""
    if typing.get_origin(annotation) is typing.Annotated:
        return without_wrapping(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        inside = [part for part in typing.get_args(annotation) if part is not types.NoneType]
        return without_wrapping(inside[0]) if len(inside) == 1 else annotation
    return annotation


def _form(annotation: Any) -> str:
    plain = without_wrapping(annotation)
    parts = typing.get_args(plain)
    if plain is bool:
        return ""
    if typing.get_origin(plain) is Literal:
        return "{" + ",".join(map(str, parts)) + "}"
    if typing.get_origin(plain) is tuple:
        return f"{_form(parts[0])} ..." if parts[1:] == (...,) else " ".join(map(_form, parts))
    if typing.get_origin(plain) in (typing.Union, types.UnionType):
        return "|".join(_form(part) for part in parts if part is not types.NoneType)
    return _NAMES.get(plain, "VALUE")
