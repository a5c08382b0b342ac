"""How many steps `tests.support.pretrain_tiny` gives a run, with a program that only writes metrics."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from deberta_jax.rtd import RTDConfig

from ..support import pretrain_tiny

# Writes a line for each step and waits for a moment, so that it still runs when it is watched.
PROGRAM = """
import json, sys, time
with open(sys.argv[1] + "/metrics.jsonl", "w") as file:
    for step in range(1, int(sys.argv[2]) + 1):
        file.write(json.dumps({"step": step, "learning_rate": 0.1}) + "\\n")
        file.flush()
        time.sleep(0.1)
"""
RATE = 50.0  # steps per second that `watch` reports


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The steps of every run that is started."""
    steps_of_runs: list[int] = []

    def start(run: Path, corpus: Path, models: Path, steps: int, options: list[str]) -> subprocess.Popen[bytes]:
        steps_of_runs.append(steps)
        run.mkdir()
        return subprocess.Popen([sys.executable, "-c", PROGRAM, str(run), "10"], process_group=0)

    monkeypatch.setattr(pretrain_tiny, "start", start)
    monkeypatch.setattr(pretrain_tiny, "watch", lambda process, run, began: (RATE, 1.0))
    return steps_of_runs


def run_with(tmp_path: Path, steps: int) -> int:
    """Gives a run 1,000 seconds, in which a second run has time for about 47,000 steps."""
    arguments = [str(tmp_path / "run"), "--corpus", "rows", "--seconds", "1000", "--steps", str(steps)]
    return pretrain_tiny.main(arguments)


def test_a_run_that_ends_in_time_goes_on(started: list[int], tmp_path: Path) -> None:
    assert run_with(tmp_path, steps=40_000) == 0
    assert started == [40_000]
    assert pretrain_tiny.newest_step(tmp_path / "run") == 10


@pytest.mark.parametrize("steps", [60_000, 20_000])
def test_a_run_that_is_too_long_or_too_short_begins_anew(started: list[int], tmp_path: Path, steps: int) -> None:
    assert run_with(tmp_path, steps) == 0
    first, second = started
    assert first == steps
    assert 45_000 < second < 0.97 * RATE * (1000 - pretrain_tiny.END)
    assert pretrain_tiny.newest_step(tmp_path / "run") == 10  # of the second run, whose folder is new


def test_speed_is_read_off_the_metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrain_tiny, "WATCHED", 0.5)
    with subprocess.Popen([sys.executable, "-c", PROGRAM, str(tmp_path), "1000"]) as process:
        rate, ready = pretrain_tiny.watch(process, tmp_path, began=0)
        process.kill()
    assert 0 < rate <= 11  # one step in a tenth of a second, or fewer on a busy machine
    assert ready > 0


def test_the_models_are_those_of_the_package_without_dropout() -> None:
    models = RTDConfig.from_json(json.loads(pretrain_tiny.model_text()))
    assert models.embedding_sharing == "gdes"
    assert (models.discriminator.num_hidden_layers, models.generator.num_hidden_layers) == (6, 2)
    for config in (models.discriminator, models.generator):
        assert config.hidden_dropout_prob == config.attention_probs_dropout_prob == 0
