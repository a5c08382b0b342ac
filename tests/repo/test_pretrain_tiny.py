"""How many steps `tests.support.pretrain_tiny` gives a run. The run is a program that writes metrics at one speed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from deberta_jax import DebertaConfig

from ..support import pretrain_tiny

# Writes a line for each step, 50 of them a second, and ends after the last one.
PROGRAM = """
import json, sys, time
folder, steps = sys.argv[1], int(sys.argv[2])
with open(folder + "/metrics.jsonl", "w") as file:
    for step in range(1, steps + 1):
        time.sleep(0.02)
        file.write(json.dumps({"step": step, "learning_rate": 0.1}) + "\\n")
        file.flush()
"""


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The steps of every run that is started."""
    steps_of_runs: list[int] = []

    def start(run: Path, corpus: Path, models: Path, steps: int, options: list[str]) -> subprocess.Popen[bytes]:
        steps_of_runs.append(steps)
        run.mkdir()
        return subprocess.Popen([sys.executable, "-c", PROGRAM, str(run), str(steps)], process_group=0)

    monkeypatch.setattr(pretrain_tiny, "start", start)
    monkeypatch.setattr(pretrain_tiny, "WATCHED", 0.5)
    monkeypatch.setattr(pretrain_tiny, "END", 0)
    return steps_of_runs


def run_with(tmp_path: Path, steps: int, seconds: float) -> int:
    arguments = [str(tmp_path / "run"), "--corpus", "rows", "--seconds", str(seconds), "--steps", str(steps)]
    return pretrain_tiny.main(arguments)


def test_a_run_that_ends_in_time_goes_on(started: list[int], tmp_path: Path) -> None:
    assert run_with(tmp_path, steps=60, seconds=4) == 0
    assert started == [60]
    assert pretrain_tiny.newest_step(tmp_path / "run") == 60


@pytest.mark.parametrize("steps", [100_000, 60])
def test_a_run_that_is_too_long_or_too_short_begins_anew(started: list[int], tmp_path: Path, steps: int) -> None:
    assert run_with(tmp_path, steps, seconds=5) == 0
    assert len(started) == 2
    assert 20 < started[1] < 300  # of at most 50 a second
    assert pretrain_tiny.newest_step(tmp_path / "run") == started[1]


def test_the_models_are_those_of_the_package_without_dropout() -> None:
    configs = json.loads(pretrain_tiny.model_text())
    sizes = {name: DebertaConfig.from_json(fields) for name, fields in configs.items()}
    assert sizes["discriminator"].num_hidden_layers == 6
    assert sizes["generator"].num_hidden_layers == 2
    assert all(config.hidden_dropout_prob == config.attention_probs_dropout_prob == 0 for config in sizes.values())
