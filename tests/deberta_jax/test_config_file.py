"""Settings in YAML files: what is read, what the command line changes, what is refused, and what a run writes."""

import dataclasses
import math
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import tyro

from deberta_jax.config_file import read_settings, write_settings
from deberta_jax.errors import MissingFileError, UserError
from deberta_jax.options import parse_options
from deberta_jax.train.settings import Flat, Positive, Seconds, Settings


@dataclasses.dataclass(frozen=True, kw_only=True)
class Group(Settings):
    """A group"""

    rate: Annotated[float, tyro.conf.arg(aliases=("--rate",))] = 0.1
    """rate"""
    kind: Literal["no", "b"] = "b"
    """kind"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Columns(Settings):
    """Columns"""

    label: str | None = "label"
    """label"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run(Settings):
    """A run"""

    output: Path
    """output"""
    steps: Positive | None = None
    """steps"""
    labels: tuple[str, ...] = ()
    """labels"""
    sizes: tuple[int, int] | None = None
    """sizes"""
    seconds: Seconds = 1.0
    """seconds"""
    remat: bool = False
    """remat"""
    group: Group = Group()
    columns: Annotated[Columns, Flat] = Columns()


FULL = """
output: runs/1
steps: 7
labels: [no, yes, "0", null-like]
sizes: [3, 4]
seconds: .inf
remat: yes
group: {rate: 1e-4, kind: no}
label: 3
"""
EXPECTED = Run(
    output=Path("runs/1"),
    steps=7,
    labels=("no", "yes", "0", "null-like"),
    sizes=(3, 4),
    seconds=math.inf,
    remat=True,
    group=Group(rate=1e-4, kind="no"),
    columns=Columns(label="3"),
)


def read(folder: Path, text: str | bytes, *words: str, **how: Any) -> Run:
    path = folder / "run.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return parse_options(Run, ["--config", str(path), *words], prog="deberta-jax train", **how)


def test_the_type_of_an_option_decides_what_a_value_means(tmp_path: Path) -> None:
    """YAML itself reads `no` as false, 1e-4 as text and 3 as a number."""
    assert read(tmp_path, FULL) == EXPECTED


def test_the_command_line_wins(tmp_path: Path) -> None:
    words = ["--steps", "9", "--labels", "a", "--no-remat", "--group.rate=2", "--label", "None"]
    changed = read(tmp_path, FULL, *words)
    assert (changed.steps, changed.labels, changed.remat) == (9, ("a",), False)
    assert changed.group == Group(rate=2.0, kind="no")
    assert changed.columns.label is None
    assert read(tmp_path, "steps: 3", "--output", "x") == Run(output=Path("x"), steps=3)


def test_a_file_changes_other_defaults(tmp_path: Path) -> None:
    recipe = Run(output=tyro.MISSING, steps=5, group=Group(rate=3.0))
    assert read(tmp_path, "output: x\ngroup.kind: no", default=recipe) == Run(
        output=Path("x"), steps=5, group=Group(rate=3.0, kind="no")
    )


@pytest.mark.parametrize("text", ["", "# nothing\n", "steps:\nlabels: null"])
def test_a_file_may_leave_things_open(tmp_path: Path, text: str) -> None:
    assert read(tmp_path, text, "--output", "x") == Run(output=Path("x"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lables: [a, b]", "no setting 'lables'; did you mean labels?"),
        ("optimizer: {rate: 3}", "no setting 'optimizer.rate'; did you mean group.rate"),
        ("steps: many", "steps is 'many'; it must be a whole number"),
        ("steps: 1.5", "steps is '1.5'; it must be a whole number"),
        ("steps: [1, 2]", "steps is a list; it must be a whole number"),
        ("steps: 0", "steps is 0; it must be at least 1"),
        ("group: {kind: c}", "group.kind is 'c'; it must be one of no, b"),
        ("group: {rate: fast}", "group.rate is 'fast'; it must be a number"),
        ("group: {rate: .nan}", "group.rate is '.nan'; it must be a number"),
        ("group: 3", "no setting 'group'"),
        ("remat: 2", "remat is '2'; it must be true or false"),
        ("remat:", "remat has no value; write one, or remove the line"),
        ("sizes: [1]", "sizes has 1 values; it must have 2"),
        ("labels: [[a]]", "labels must be a list of values"),
        ('output: ""', "output: the path is empty"),
        ("steps: 1\nsteps: 2", "'steps' given twice; remove one of them"),
        ("group: {rate: 1}\ngroup.rate: 2", "group.rate is given twice"),
        ("- a\n- b", "expected settings as KEY: VALUE, one a line"),
        ("1: 2", "no setting '1'"),
        ("a: &a {b: *a}", "nest too deeply|not YAML"),
        ("command: export", "command is 'export'; these are settings of `deberta-jax export`"),
        ("a: [", "is not YAML"),
        ("a: !!python/object/apply:os.system [ls]", "is not YAML"),
        (b"\xff\xfe\x00", "is not UTF-8 text"),
    ],
)
def test_a_mistake_is_one_line_with_the_file(tmp_path: Path, text: str | bytes, message: str) -> None:
    with pytest.raises(UserError, match=message) as raised:
        read(tmp_path, text, "--output", "x")
    assert str(raised.value).startswith(str(tmp_path / "run.yaml"))
    assert "\n" not in str(raised.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"none\.yaml: no such file"):
        parse_options(Run, ["--config", str(tmp_path / "none.yaml")])


@pytest.mark.parametrize("settings", [EXPECTED, Run(output=Path("ü: #"), labels=("", "null", "~", "1e3", "é\n"))])
def test_what_is_written_is_read_back(tmp_path: Path, settings: Run) -> None:
    path = tmp_path / "config.yaml"
    write_settings(path, settings, command="train", version="1.2")
    assert read_settings(path, Run, default=None, command="train") == settings
    assert parse_options(Run, ["--config", str(path)], prog="deberta-jax train") == settings
    assert "version: '1.2'" in path.read_text()
