"""Settings of a command in a YAML file: read by `--config FILE`, written into the folder of every run.

    model: microsoft/deberta-v3-small
    output: runs/sst2
    train: tfds:glue/sst2
    optimizer:
      learning-rate: 2e-5
    seeds: [0, 1, 2]

The keys are the names of the options, with hyphens or underscores. The options of a group are nested below its name, or
begin with it, as in `optimizer.learning-rate: 2e-5`. Options of the command line win over the file. A relative path is
relative to the current folder. `null` means that an option has no value. A file that a run wrote has two further keys:
`command`, which must name the command that reads the file, and `version`, the version of the library, which is ignored.
"""

import difflib
import math
import pathlib
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from .atomic_files import write_file
from .errors import MissingFileError, MissingPackageError, UserError, one_line
from .option_list import Option, annotations_of, options_of, without_wrapping
from .stores import check_protocol
from .terminal import quote_names, shorten, with_addresses

SettingsType = TypeVar("SettingsType")

FILE = "config.yaml"  # in the folder of a run
_COMMAND, _VERSION = "command", "version"
_TRUE, _FALSE = ("true", "yes", "on"), ("false", "no", "off")
_LARGEST_FILE = 1 << 20  # bytes


def read_settings(
    path: Path, settings: type[SettingsType], *, default: SettingsType | None, command: str
) -> SettingsType:
    """Returns the settings that a file gives, with `tyro.MISSING` for required ones that it does not have.

    Args:
      path: the file.
      settings: the dataclass of the settings.
      default: settings with other defaults (default: those of the dataclass).
      command: the command that reads it.

    Raises:
      MissingFileError: there is no such file.
      UserError: the file is not YAML, or a key or a value is wrong; the message names the file and the key.
    """
    import tyro

    content = dict(_load(path))
    given = content.pop(_COMMAND, command)
    content.pop(_VERSION, None)
    if given != command:
        raise UserError(f"{path}: command is {given!r}; these are settings of `deberta-jax {given}`")
    options = options_of(settings, default)
    known = {name: option for option in options for name in (option.name, *option.aliases)}
    chosen: dict[tuple[str, ...], Any] = {}
    for key, value in _flatten(path, content):
        option = known.get(key) or known.get(key.replace("_", "-"))
        if option is None:
            raise UserError(f"{path}: no setting {key!r}{_hint(key, known)}")
        if option.path in chosen:
            raise UserError(f"{path}: {option.name} is given twice; remove one of them")
        chosen[option.path] = _convert(value, option, where=f"{path}: {key}")
    values = {option.path: tyro.MISSING if option.is_required else option.default for option in options}
    try:
        return _build(settings, values | chosen)
    except ValueError as error:  # of the checks of the settings
        raise UserError(f"{path}: {one_line(error)}") from None


def recorded_settings(path: Path) -> dict[str, Any]:
    """Returns what a file of settings says, as text, by the names of options, with the keys `command` and `version`.

    Nothing is checked, so that files of other versions can be shown. The value of an option is text, a list of texts or
    None.

    Raises:
      MissingFileError, UserError: the file does not exist or is not YAML.
    """
    return {key.replace("_", "-"): value for key, value in _flatten(path, _load(path))}


def write_settings(path: Path, settings: Any, *, command: str, version: str) -> None:
    """Writes all settings to a file, from which the command can be run again. Replaces the file atomically.

    Raises:
      OSError: the file cannot be written.
    """
    yaml = _yaml()
    content: dict[str, Any] = {_COMMAND: command, _VERSION: version}
    for option in options_of(type(settings), settings):
        inside = content
        *groups, name = option.name.split(".")
        for group in groups:
            inside = inside.setdefault(group, {})
        inside[name] = _plain_value(option.default)
    head = f"# Settings of a run. `deberta-jax {command} --config THIS_FILE --output OTHER_FOLDER` repeats it.\n"
    write_file(path, head + yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=1000))


def _plain_value(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain_value(item) for item in value]
    return with_addresses(str(value)) if isinstance(value, pathlib.PurePath | str) else value


def _yaml() -> Any:
    try:
        import yaml
    except ModuleNotFoundError:
        raise MissingPackageError(
            "a file of settings needs the package 'yaml', which is not installed: pip install 'deberta-jax[train]'"
        ) from None
    return yaml


def _load(path: Path) -> Mapping[Any, Any]:
    """Returns the content of a file, in which every scalar but null is text.

    YAML 1.1 reads `no` as false, and `1e-4` as text; here the type of the option decides.
    """
    yaml = _yaml()

    class Loader(yaml.SafeLoader):
        yaml_implicit_resolvers: typing.ClassVar = {
            letter: [(tag, pattern) for tag, pattern in rules if tag.endswith((":null", ":merge"))]
            for letter, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
        }

        def construct_mapping(self, node: Any, deep: bool = False) -> dict:
            names = [key.value for key, _ in node.value if isinstance(key.value, str) and key.value != "<<"]
            if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
                raise UserError(f"{path}: {quote_names(twice)} given twice; remove one of them")
            return super().construct_mapping(node, deep=deep)

    if not path.expanduser().is_file():
        raise MissingFileError(f"{path}: no such file; give a YAML file with settings, such as {FILE} of a run")
    if path.expanduser().stat().st_size > _LARGEST_FILE:
        raise UserError(f"{path} is no file of settings: it is larger than {_LARGEST_FILE >> 20} MiB")
    try:
        content = yaml.load(path.expanduser().read_text(encoding="utf-8-sig"), Loader)
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text; give a YAML file with settings") from None
    except (yaml.YAMLError, RecursionError) as error:
        raise UserError(f"{path} is not YAML: {shorten(one_line(error), 300)}") from None
    if content is None:
        return {}
    if not isinstance(content, Mapping):
        raise UserError(f"{path}: expected settings as KEY: VALUE, one a line")
    return content


def _flatten(path: Path, content: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    if prefix.count(".") > 8:  # an anchor may contain itself
        raise UserError(f"{path}: groups nest too deeply at {shorten(prefix, 80)!r}")
    for key, value in content.items():
        if not isinstance(key, str):
            raise UserError(f"{path}: the key {shorten(repr(key))} is not text")
        if isinstance(value, Mapping):
            yield from _flatten(path, value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _hint(key: str, known: Mapping[str, Option]) -> str:
    wanted = key.replace("_", "-")
    ends = [name for name in known if name.rpartition(".")[2] == wanted]
    near = ends or difflib.get_close_matches(wanted, known, n=2) or difflib.get_close_matches(wanted, known, 1, 0.4)
    return f"; did you mean {' or '.join(near[:2])}?" if near else ""


def _convert(value: Any, option: Option, *, where: str) -> Any:
    """Returns the value of an option from text, `None` or a list of texts.

    Raises:
      UserError: it is of another type.
    """
    plain = without_wrapping(option.annotation)
    if value is None:
        if option.is_list and type(None) not in typing.get_args(option.annotation):
            return ()
        if option.default is not None and type(None) not in _parts(option.annotation):
            raise UserError(f"{where} has no value; write one, or remove the line")
        return None
    if not option.is_list:
        if not isinstance(value, str):
            raise UserError(f"{where} is a list; it must be {_kind(plain)}")
        return _convert_text(value, plain, where=where)
    items = [value] if isinstance(value, str) else value
    kinds = typing.get_args(plain)
    if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
        raise UserError(f"{where} must be a list of values")
    if kinds[1:] != (...,) and len(items) != len(kinds):
        raise UserError(f"{where} has {len(items)} values; it must have {len(kinds)}")
    kinds = (kinds[0],) * len(items) if kinds[1:] == (...,) else kinds
    return tuple(
        _convert_text(item, without_wrapping(kind), where=where) for item, kind in zip(items, kinds, strict=True)
    )


def _parts(annotation: Any) -> tuple[Any, ...]:
    inside = typing.get_args(annotation)
    return (annotation, *(part for item in inside for part in _parts(item)))


def _kind(kind: Any) -> str:
    if typing.get_origin(kind) is typing.Literal:
        return f"one of {', '.join(map(str, typing.get_args(kind)))}"
    return {bool: "true or false", int: "a whole number", float: "a number"}.get(kind, "a single value")


def _convert_text(text: str, kind: Any, *, where: str) -> Any:
    converted = None
    if kind is bool and text.lower() in (*_TRUE, *_FALSE):
        return text.lower() in _TRUE
    if kind in (int, float):
        converted = _number(text, kind)
    elif typing.get_origin(kind) is typing.Literal:
        converted = next((choice for choice in typing.get_args(kind) if str(choice) == text), None)
    elif kind is pathlib.Path:
        if not text:
            raise UserError(f"{where}: the path is empty")
        try:
            check_protocol(text)
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
        converted = Path(text)
    elif kind is str:
        converted = text
    if converted is None:
        raise UserError(f"{where} is {shorten(text)!r}; it must be {_kind(kind)}")
    return converted


def _number(text: str, kind: type) -> Any:
    """Returns a number, or None. YAML writes infinity as .inf."""
    try:
        number = kind(text.replace(".inf", "inf").replace(".nan", "nan") if kind is float else text)
    except ValueError:
        return None
    return None if kind is float and math.isnan(number) else number


def _build(settings: type[SettingsType], values: Mapping[tuple[str, ...], Any]) -> SettingsType:
    """Returns an instance with these values, which have the paths of their fields as keys."""
    annotations = annotations_of(settings)
    fields: dict[str, Any] = {}
    for name in dict.fromkeys(path[0] for path in values):
        inside = {path[1:]: value for path, value in values.items() if path[0] == name}
        fields[name] = inside[()] if () in inside else _build(without_wrapping(annotations[name]), inside)
    return settings(**fields)
