"""Reports: files that hold each step once, lines that fit the screen, curves from made-up numbers."""

import errno
import io
import json
import logging
import math
import subprocess
import sys

import pytest
from rich.console import Console
from tensorboardX.proto import event_pb2

from deberta_jax.terminal import printable
from deberta_jax.train.reporting import reporter as report
from deberta_jax.train.reporting.reporter import RunReporter

from ...support.pseudo_terminal import pseudo_terminal

PRETRAINING = {
    "generator_loss": 10.0621,
    "discriminator_loss": 0.31234,
    "masked_accuracy": 0.2851,
    "replaced_precision": 0.5754,
    "replaced_recall": 0.43,
    "rtd_accuracy": 0.9,
    "generator_grad_norm": 1.5,
    "discriminator_grad_norm": 0.5,
    "learning_rate": 1e-4,
}


@pytest.fixture
def clock(monkeypatch):
    """Time that moves only where a test says so."""
    now = [0.0]
    monkeypatch.setattr(report.time, "monotonic", lambda: now[0])
    return now


def plain_console(*, width=80):
    return Console(file=io.StringIO(), width=width, force_terminal=False)


def make(folder, console=None, *, total_steps=100, every=5):
    console = console or plain_console()
    return RunReporter(folder, total_steps=total_steps, tokens_per_step=1000, every=every, console=console)


def read(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def read_tensorboard(folder):
    """Every (tag, step, value) of the event files, and the purge steps of their starts."""
    scalars, purges = [], []
    for path in sorted((folder / "tensorboard").iterdir(), key=lambda path: path.name):
        data = path.read_bytes()
        position = 0
        while position < len(data):  # length, its CRC (4), the event, its CRC (4)
            size = int.from_bytes(data[position : position + 8], "little")
            event = event_pb2.Event.FromString(data[position + 12 : position + 12 + size])
            position += 16 + size
            scalars += [(value.tag, event.step, value.simple_value) for value in event.summary.value]
            if event.session_log.status == event_pb2.SessionLog.START:
                purges.append(event.step)
    return scalars, purges


def test_files_hold_steps_and_evaluations(tmp_path):
    with make(tmp_path) as reporter:
        reporter.step(1, {"loss": 2.5, "grad_norm": math.nan})
        reporter.flush()
        assert read(tmp_path) == [{"step": 1, "loss": 2.5, "grad_norm": None}]
        reporter.evaluation(1, {"accuracy": 0.5})
        reporter.evaluation(1, {"accuracy": 0.25}, name="mismatched")
    assert read(tmp_path)[1:] == [{"step": 1, "eval/accuracy": 0.5}, {"step": 1, "eval/mismatched/accuracy": 0.25}]
    scalars, _ = read_tensorboard(tmp_path)
    assert scalars == [("loss", 1, 2.5), ("eval/accuracy", 1, 0.5), ("eval/mismatched/accuracy", 1, 0.25)]


def test_resuming_keeps_each_step_once(tmp_path):
    with make(tmp_path) as reporter:
        for step in range(1, 8):
            reporter.step(step, {"loss": float(step)})
        reporter.evaluation(6, {"accuracy": 0.5})
    with open(tmp_path / "metrics.jsonl", "a") as lines:
        lines.write('{"step": 3, "los')  # the last line of a killed process
    with make(tmp_path) as reporter:
        reporter.resume_at(4)
        reporter.step(5, {"loss": 50.0})
    assert [(line["step"], line["loss"]) for line in read(tmp_path)] == [(1, 1), (2, 2), (3, 3), (4, 4), (5, 50)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.jsonl", "tensorboard"]
    assert read_tensorboard(tmp_path)[1] == [5]  # TensorBoard drops what it had from step 5 on
    with make(tmp_path) as reporter:
        reporter.resume_at(0)
    assert read(tmp_path) == []


def test_non_finite_values_are_reported_without_a_warning(tmp_path, caplog):
    console = plain_console()
    with caplog.at_level(logging.WARNING), make(tmp_path, console, every=1) as reporter:
        reporter.step(1, {"loss": math.inf, "grad_norm": -math.inf, "learning_rate": math.nan})
    assert caplog.records == []
    assert console.file.getvalue().splitlines()[1].split() == ["1/100", "inf", "-inf", "nan", "-", "-"]


def test_plain_lines_are_aligned_and_come_every_few_steps(tmp_path):
    console = plain_console()
    with make(tmp_path, console, total_steps=1_000_000) as reporter:
        for step in range(1, 121):
            reporter.step(step, PRETRAINING)
        reporter.message("saved")
    lines = console.file.getvalue().splitlines()
    header, first = lines[0], lines[1]
    assert header.split() == ["step", "gen", "loss", "disc", "loss", "mlm", "acc", "precis", "recall", "tok/s", "left"]
    assert first.split()[:6] == ["5/1000000", "10.06", "0.3123", "0.2851", "0.5754", "0.4300"]
    assert len(lines) == 2 + 24 + 1  # two headers, every fifth step, the message
    assert lines[21] == header
    assert {len(line) for line in lines[:-1]} == {len(header)}
    assert len(header) <= 80


def test_absent_metrics_are_not_shown_and_a_change_brings_a_header(tmp_path):
    console = plain_console()
    with make(tmp_path, console, every=1) as reporter:
        reporter.step(1, {"loss": 1.0, "unknown": 3.0})
        reporter.step(2, {"loss": 1.0, "grad_norm": 3.0})
    lines = console.file.getvalue().splitlines()
    assert [line.split() for line in lines[::2]] == [
        ["step", "loss", "tok/s", "left"],
        ["step", "loss", "grad", "norm", "tok/s", "left"],
    ]


def test_the_last_step_is_always_shown(tmp_path):
    console = plain_console()
    with make(tmp_path, console, total_steps=7) as reporter:
        for step in range(1, 8):
            reporter.step(step, {"loss": 1.0})
    assert [line.split()[0] for line in console.file.getvalue().splitlines()] == ["step", "5/7", "7/7"]


def test_time_left_ignores_compilation_and_evaluations(tmp_path, clock):
    console = plain_console()
    with make(tmp_path, console, every=1) as reporter:
        clock[0] = 300  # the first step compiles
        reporter.step(10, {"loss": 1.0})
        clock[0] += 20
        reporter.step(20, {"loss": 1.0})  # 10 steps in 20 s
        clock[0] += 1000
        reporter.evaluation(20, {"loss": 1.0})
        clock[0] += 20
        reporter.step(30, {"loss": 1.0})
    rows = [line.split() for line in console.file.getvalue().splitlines()]
    assert rows[1][-2:] == ["-", "-"]
    assert rows[2][-2:] == ["500", "2:40"]
    assert rows[4][-2:] == ["500", "2:20"]


@pytest.mark.parametrize(
    ("width", "expected"),
    [
        (80, ["999999/1M", "gen 10.06", "disc 0.3123", "acc 0.2851", "P 0.5754", "R 0.4300", "1k/s 0:01"]),
        (120, ["999999/1000000", "generator 10.06", "precision 0.5754", "recall 0.4300", "1k tok/s", "0:01"]),
        (40, ["999999/1M", "gen 10.06", "1k/s 0:01"]),
    ],
)
def test_the_live_line_fits_one_row(tmp_path, clock, width, expected):
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None, legacy_windows=False)
    with make(tmp_path, console, total_steps=1_000_000) as reporter:
        for step in (999_997, 999_998, 999_999):
            clock[0] += 1
            reporter.step(step, PRETRAINING)
        reporter.message("a message that stays")
        shown = console.file.getvalue()
    assert "a message that stays\n" in shown
    last = shown.split("\n")[-1]
    for text in expected:
        assert text in last
    assert "━" in last
    assert len(last.rstrip()) <= width
    assert console.file.getvalue().endswith("\x1b[?25h")  # the cursor is back


@pytest.mark.parametrize("name", ["tokens_per_step", "every"])
def test_bad_counts_are_refused(tmp_path, name):
    counts = {"total_steps": 1, "tokens_per_step": 1, "every": 1, name: 0}
    with pytest.raises(ValueError, match=f"{name} is 0; it must be at least 1"):
        RunReporter(tmp_path, **counts)


class FullDisk(io.StringIO):
    def write(self, text):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_screen_that_cannot_be_written_does_not_stop_the_run(tmp_path):
    for terminal in (False, True):
        console = Console(file=FullDisk(), force_terminal=terminal)
        with make(tmp_path / str(terminal), console, every=1) as reporter:
            reporter.step(1, {"loss": 1.0})
            reporter.message("saved")
        assert read(tmp_path / str(terminal)) == [{"step": 1, "loss": 1.0}]


def test_training_goes_on_when_the_reader_of_its_output_is_gone(tmp_path):
    program = (
        "import sys\nfrom pathlib import Path\nfrom deberta_jax.train.reporting.reporter import RunReporter\n"
        "with RunReporter(Path(sys.argv[1]), total_steps=999, tokens_per_step=1, every=1) as reporter:\n"
        "    for step in range(1, 1000):\n        reporter.step(step, {'loss': 1.0})\n"
    )
    run = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    run.stdout.readline()
    run.stdout.close()
    error = run.stderr.read()
    run.stderr.close()
    assert (run.wait(), error) == (0, b"")
    assert read(tmp_path)[-1]["step"] == 999


def test_a_message_is_one_short_literal_line(tmp_path, capsys):
    with RunReporter(tmp_path, total_steps=1, tokens_per_step=1, every=1) as reporter:
        reporter.message("\x1b[2J a whole document \u202e" * 100_000)
        reporter.message("[red]x[/red] [/] :smile: \x1b[31m\n")
    first, second, *_ = capsys.readouterr().out.split("\n")
    assert printable(first) == first
    assert len(first) < 2000
    assert second == r"[red]x[/red] [/] :smile: \x1b[31m\n"


def test_the_live_line_may_control_a_real_terminal(tmp_path):
    with (
        pseudo_terminal(TERM="xterm", COLUMNS="100") as screen,
        RunReporter(tmp_path, total_steps=2, tokens_per_step=1, every=1) as reporter,
    ):
        reporter.step(1, PRETRAINING)
        reporter.message("\x1b[31mclass\x1b[0m")
        reporter.step(2, PRETRAINING)
    assert "\x1b[?25l" in screen.text  # hides the cursor
    assert "2/2" in screen.text
    assert r"\x1b[31mclass\x1b[0m" in screen.text
    assert screen.text.count(r"\x1b") == 2
