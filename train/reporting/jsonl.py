"""Files of one JSON object per line: metrics.jsonl, goodput.jsonl and predictions."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from deberta_jax.atomic_files import replace_file
from deberta_jax.strict_json import to_json


def read_records(path: Path, *, log: Callable[[str], None] = lambda _: None) -> list[dict[str, Any]]:
    """Returns the objects that have a step.

    Skips a line that is anything else, such as one that a kill truncated. Bytes that are not UTF-8 become U+FFFD.

    Args:
      path: the file.
      log: receives a message if a line is skipped or has such bytes (default: nothing is reported).
    """
    records, damaged, skipped = [], [], 0
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        text = line.decode("utf-8", errors="replace")
        if not text.strip():
            continue
        if text.encode() != line:
            damaged.append(number)
        try:
            record = json.loads(text)
        except (ValueError, RecursionError):
            record = None
        if isinstance(record, dict) and type(record.get("step")) is int:
            records.append(record)
        else:
            skipped += 1
            damaged.append(number)
    if damaged:
        count = len(set(damaged))
        lines = "1 damaged line" if count == 1 else f"{count} damaged lines"
        log(f"{path}: {lines}, from line {damaged[0]} on; {skipped} left out")
    return records


def write_records(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """Writes one line per record, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replace_file(path) as partial, partial.open("w", encoding="utf-8") as lines:
        for record in records:
            lines.write(to_json(record) + "\n")
