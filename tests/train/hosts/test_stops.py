"""Real processes that receive SIGTERM where a run spends a long time: an evaluation, predictions, a full disk."""

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from deberta_jax import Deberta, save_pretrained
from deberta_jax.tokenizers.tokenizer import Tokenizer

from ...support.cluster import Process, cluster, wait_while_running
from ...support.small_disk import fill, mounted
from ...support.small_models import TINY

pytestmark = pytest.mark.slow
PATIENCE = 300  # seconds that end a hang
MANY = 30_000  # examples, whose predictions take far longer than a process may take to end
WITHIN = 30.0  # seconds from the signal to the end, on a busy machine


@pytest.fixture(scope="module")
def home(novel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with one layer, a few examples to train on and many to evaluate or predict."""
    folder, config = tmp_path_factory.mktemp("home"), TINY.replace(num_hidden_layers=1)
    encoder = Deberta(config).init(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"]
    save_pretrained(folder / "model", config, {"deberta": encoder})
    Tokenizer.from_folder(novel / "tokenizer").save(folder / "model")
    lines = [json.dumps({"text": f"number {number}", "label": "ab"[number % 2]}) + "\n" for number in range(MANY)]
    (folder / "few.jsonl").write_text("".join(lines[:40]))
    (folder / "many.jsonl").write_text("".join(lines))
    return folder


def command(home: Path, output: Path, *options: str) -> list[str]:
    files = ("--output", str(output), "--model", str(home / "model"), "--train", str(home / "few.jsonl"))
    settings = ("--batch-size", "8", "--max-length", "16", "--log-every", "1", "--save-every", "1")
    return ["-m", "deberta_jax", "finetune", *files, *settings, *options]


def records(output: Path) -> list[dict]:
    path = output / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def stop(processes: list[Process]) -> None:
    """Sends SIGTERM to the last process: all have to end in time, with the exit code that asks for a restart."""
    processes[-1].popen.send_signal(signal.SIGTERM)
    assert [process.wait_for_exit(WITHIN) for process in processes] == [42] * len(processes)


@pytest.mark.parametrize("count", [1, 2])
def test_an_evaluation_is_given_up_and_owed(home: Path, tmp_path: Path, count: int) -> None:
    output = tmp_path / "run"
    options = ("--validation", str(home / "many.jsonl"), "--steps", "2", "--evaluate-every", "1")
    with cluster(command(home, output, *options), tmp_path / "logs", count=count) as processes:
        wait_while_running(processes, lambda: bool(records(output)), seconds=PATIENCE, purpose="a step")
        stop(processes)
        assert "preempted (SIGTERM): step 1 is saved" in processes[0].output
    assert not [record for record in records(output) if "eval/accuracy" in record]
    manifest = json.loads((output / "checkpoints" / "1" / "meta" / "metadata").read_text())
    assert manifest["content"]["data"]["owes_evaluation"]


def test_predictions_after_the_last_step_are_given_up(home: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    options = ("--test", str(home / "many.jsonl"), "--steps", "1")
    with cluster(command(home, output, *options), tmp_path / "logs", count=1) as processes:
        saved = output / "checkpoints" / "1"
        wait_while_running(processes, saved.exists, seconds=PATIENCE, purpose="the last checkpoint")
        stop(processes)
        assert "preempted (SIGTERM): step 1 is saved" in processes[0].output
    assert not (output / "predictions").exists()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    with mounted(tmp_path / "disk", megabytes=20):
        yield tmp_path / "disk"


def test_a_full_disk_does_not_make_a_run_deaf_and_space_lets_it_go_on(home: Path, small_disk: Path) -> None:
    output = small_disk / "run"
    line = command(home, output, "--steps", "1000000")
    with cluster(line, small_disk.with_name("logs"), count=1) as processes:
        wait_while_running(processes, lambda: len(records(output)) > 3, seconds=PATIENCE, purpose="steps")
        fill(small_disk / "filling")
        tries_again = lambda: "the disk is full; trying again" in processes[0].output  # noqa: E731
        wait_while_running(processes, tries_again, seconds=PATIENCE, purpose="a failed save")
        before = len(records(output))
        (small_disk / "filling").unlink()
        wait_while_running(processes, lambda: len(records(output)) > before + 3, seconds=PATIENCE, purpose="steps")
        fill(small_disk / "filling")
        tries_twice = lambda: processes[0].output.count("the disk is full; trying again") == 2  # noqa: E731
        wait_while_running(processes, tries_twice, seconds=PATIENCE, purpose="a failed save")
        stop(processes)
        assert "free some space, then run the same command again to resume" in processes[0].output
    (small_disk / "filling").unlink()
    reached = len(records(output))
    with cluster(line, small_disk.with_name("logs"), count=1) as processes:
        wait_while_running(processes, lambda: len(records(output)) > reached + 3, seconds=PATIENCE, purpose="steps")
        stop(processes)
    steps = [record["step"] for record in records(output)]
    assert steps == list(range(1, len(steps) + 1))
