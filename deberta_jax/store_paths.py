"""Lets every command take addresses such as gs://bucket/folder for its paths, by local copies of what is there.

Before a command starts, its inputs are fetched, and it is tried whether its output can be written. What it writes is
copied to the store at its end, or during a run (see `run_mirror`). A command whose settings list an option in
READS_STORES reads addresses itself, in parts.
"""

import contextlib
import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from . import stores
from .errors import UserError
from .mirrors import fetch, written_to
from .run_mirror import followed, is_needed_from_run

Settings = TypeVar("Settings")

_OUTPUTS = ("output", "destination", "plot")
_LOCAL = ("compilation_cache", "data_dir", "manual_dir")  # packages open them that know no address
_FORMAT = re.compile(r"(?:[a-z0-9_]+:)(?=[a-z0-9]+://)")  # of `csv:gs://bucket/a`


@contextlib.contextmanager
def local_settings(settings: Settings) -> Iterator[Settings]:
    """Yields settings in which paths of local copies are in the place of addresses, and writes outputs back.

    Outputs are written to the store if the block succeeds, and those of a run in any case.

    Raises:
      UserError: an address cannot be read or written, or not be used for an option.
    """
    is_run = getattr(type(settings), "IS_RUN", False)
    with contextlib.ExitStack() as outputs:

        def output(address: str) -> Path:
            return outputs.enter_context(followed(address) if is_run else written_to(address))

        yield _replace(settings, getattr(type(settings), "READS_STORES", ()), output)


def _replace(settings: Any, native: tuple[str, ...], output: Any) -> Any:
    """Returns settings with local paths. Outputs come first, so that they are tried before anything is fetched."""
    fields = sorted(dataclasses.fields(settings), key=lambda field: field.name not in _OUTPUTS)
    changed = {}
    for field in fields:
        value = getattr(settings, field.name)
        if dataclasses.is_dataclass(value):
            new = _replace(value, native, output)
        elif field.name in native:
            continue
        elif isinstance(value, tuple):
            new = tuple(_local(item, field.name, output) for item in value)
        else:
            new = _local(value, field.name, output)
        if new != value:
            changed[field.name] = new
    return dataclasses.replace(settings, **changed) if changed else settings


def _local(value: Any, name: str, output: Any) -> Any:
    """Returns the local path for an address, of the type of the value, and any other value as it is."""
    if not isinstance(value, str | Path):
        return value
    prefix = match[0] if isinstance(value, str) and (match := _FORMAT.match(value)) else ""
    address = stores.address_of(str(value).removeprefix(prefix))
    if address is None or (isinstance(value, str) and not re.fullmatch(r"\S+://\S+", value)):
        return value
    if name in _LOCAL:
        raise UserError(f"--{name.replace('_', '-')} {address}: this has to be a local folder")
    if isinstance(value, str) and address.startswith(("http://", "https://")):
        return value  # a text
    path = output(address) if name in _OUTPUTS else fetch(address, wanted=is_needed_from_run)
    return type(value)(f"{prefix}{path}")
