"""Logs that are damaged are read as far as they can be, and the damage is reported."""

import json
import random
from pathlib import Path

import pytest

from deberta_jax.train.reporting.goodput import FILE, read_goodput
from deberta_jax.train.reporting.jsonl import read_records

LINES = [json.dumps({"step": step, "loss": 2.5, "note": "a"}) for step in range(1, 6)]


def read(path: Path, content: bytes) -> tuple[list[int], list[str]]:
    path.write_bytes(content)
    log: list[str] = []
    return [record["step"] for record in read_records(path, log=log.append)], log


@pytest.mark.parametrize(
    ("damage", "steps", "message"),
    [
        (lambda text: text, [1, 2, 3, 4, 5], None),
        (
            lambda text: text.replace(b'"a"', b'"\xff"', 1),
            [1, 2, 3, 4, 5],
            "1 damaged line, from line 1 on; 0 left out",
        ),
        (lambda text: text.replace(b'p": 3', b"p\xe9: 3"), [1, 2, 4, 5], "1 damaged line, from line 3 on; 1 left out"),
        (lambda text: text[:-20], [1, 2, 3, 4], "1 damaged line, from line 5 on; 1 left out"),
        (lambda text: text.replace(b'": 2,', b'": "2",'), [1, 3, 4, 5], "from line 2 on; 1 left out"),
        (lambda text: text.replace(b'": 4,', b'": true,'), [1, 2, 3, 5], "from line 4 on; 1 left out"),
        (lambda text: b"[" * 100_000 + b"\n" + b"\n\n" + text, [1, 2, 3, 4, 5], "from line 1 on; 1 left out"),
        (lambda text: text.replace(b"\n", b"\x00\n", 2), [3, 4, 5], "2 damaged lines, from line 1 on; 2 left out"),
    ],
)
def test_damaged_lines_are_counted_and_named(tmp_path: Path, damage, steps: list[int], message: str | None) -> None:
    found, log = read(tmp_path / "metrics.jsonl", damage("\n".join(LINES).encode() + b"\n"))
    assert found == steps
    assert len(log) == (message is not None)
    for line in log:
        assert line.startswith(f"{tmp_path / 'metrics.jsonl'}: ")
        assert message is not None
        assert line.endswith(message)


def test_any_flipped_bit_leaves_the_other_lines(tmp_path: Path) -> None:
    content = "".join(line + "\n" for line in LINES).encode()
    draw = random.Random(0)
    for _ in range(200):
        flipped = bytearray(content)
        flipped[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        found, _ = read(tmp_path / "metrics.jsonl", bytes(flipped))
        assert len(set(found) & {1, 2, 3, 4, 5}) >= 3  # a flip of a line break joins two lines


def test_goodput_survives_any_flipped_bit(tmp_path: Path) -> None:
    account = {"began": 100.5, "written": 130.25, "from_step": 0, "step": 40, "seconds": {"step": 20.5, "compile": 9}}
    content = "".join(json.dumps(account | {"began": began}) + "\n" for began in (100.5, 200.5, 300.5)).encode()
    draw = random.Random(0)
    for _ in range(200):
        flipped = bytearray(content)
        flipped[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        (tmp_path / FILE).write_bytes(bytes(flipped))
        assert 1 <= read_goodput(tmp_path).starts <= 3
        assert "goodput" in str(read_goodput(tmp_path))
