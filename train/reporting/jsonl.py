"""Files of one JSON object per line: metrics.jsonl, goodput.jsonl and predictions."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from deberta_jax.atomic_files import replace_file
from deberta_jax.strict_json import to_json


def read_records(path: Path) -> list[dict[str, Any]]:
    """Returns the objects that have a step. Skips a line that is not JSON, such as one that a kill truncated."""
    records = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):  # ValueError: not JSON, or a number of too many digits
            continue
        if isinstance(record, dict) and isinstance(record.get("step"), int):
            records.append(record)
    return records


def write_records(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """Writes one line per record, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replace_file(path) as partial, partial.open("w", encoding="utf-8") as lines:
        for record in records:
            lines.write(to_json(record) + "\n")
