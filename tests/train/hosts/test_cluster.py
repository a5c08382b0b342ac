"""Real processes on loopback: a run resumes on another number of hosts, and a lost or different host is named."""

import json
import os
import re
import signal
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from deberta_jax import Deberta, save_pretrained
from deberta_jax.tokenizers.tokenizer import Tokenizer
from deberta_jax.train import finetune, pretrain
from deberta_jax.train.configs import OptimizerConfig, PretrainConfig
from deberta_jax.train.data.batches import TrainingBatches
from deberta_jax.train.data.corpus import open_corpus
from deberta_jax.train.data.masking import MaskingConfig

from ...support.cluster import Process, cluster, wait_for_success, wait_until, wait_while_running
from ...support.configs import finetune_config
from ...support.recorded_rows import fingerprints
from ...support.recorded_runs import (
    BATCH,
    StepRows,
    arguments,
    faulty_rows,
    home_settings,
    last_step,
    losses,
    prepare_home,
    recorded_rows,
)
from ...support.small_models import TINY

pytestmark = pytest.mark.slow
STEPS = 60
PATIENCE = 400  # seconds that end a hang


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run needs, with a model that compiles quickly because it has no dropout."""
    folder = tmp_path_factory.mktemp("home")
    model = TINY.replace(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    prepare_home(folder, model)
    return folder


@pytest.fixture(scope="module")
def one_layer_model(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model to fine-tune, with dropout, whose masks must not depend on the number of hosts."""
    folder, config = tmp_path_factory.mktemp("model"), TINY.replace(num_hidden_layers=1)
    encoder = Deberta(config).init(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"]
    save_pretrained(folder, config, {"deberta": encoder})
    Tokenizer.from_folder(home / "tokenizer").save(folder)
    return folder


def settings(home: Path, output: Path, **changes) -> PretrainConfig:
    """Returns the settings of `arguments`, for a run in this process."""
    return home_settings(home, output, evaluate_every=0, optimizer=OptimizerConfig(learning_rate=2e-3), **changes)


def stop_after(processes: list[Process], output: Path, *, more: int) -> None:
    """Waits for so many more steps, sends SIGTERM to one process, and checks that all of them stop."""
    goal = last_step(output) + more
    wait_while_running(processes, lambda: last_step(output) >= goal, seconds=PATIENCE, purpose="steps")
    processes[-1].popen.send_signal(signal.SIGTERM)
    assert {process.wait_for_exit(PATIENCE) for process in processes} == {42}
    assert "preempted (SIGTERM)" in processes[0].output


@pytest.mark.long
def test_a_run_resumes_on_another_number_of_hosts(tmp_path: Path) -> None:
    """Four processes, two with two devices each, four again: no example is left out or repeated, and the losses equal
    those of one process that was never stopped."""
    home, output = tmp_path / "home", tmp_path / "run"
    prepare_home(home)
    command = arguments(home, output, steps=STEPS, save_every=1000)
    with cluster(command, output / "logs", count=4) as processes:
        stop_after(processes, output, more=4)
    reached = [last_step(output)]
    with cluster(command, output / "logs", count=2, devices=2) as processes:
        stop_after(processes, output, more=4)
    reached.append(last_step(output))
    with cluster(command, output / "logs", count=4) as processes:
        wait_for_success(processes, seconds=PATIENCE)
    assert 4 <= reached[0] < reached[1] < STEPS
    assert faulty_rows(output, steps=STEPS) == (0, 0)

    tokenizer = Tokenizer.from_folder(home / "tokenizer")
    stream = TrainingBatches(
        open_corpus(home / "corpus"),
        tokenizer=tokenizer,
        masking=MaskingConfig(rate=0.15, max_ngram=1, replace="rtd"),
        global_batch=BATCH,
        seed=0,
    )
    batches = [next(stream) for _ in range(STEPS)]
    stream.close()
    expected = [StepRows(batch["row"].tolist(), fingerprints(batch)) for batch in batches]
    assert recorded_rows(output, steps=STEPS) == expected

    pretrain.main(settings(home, tmp_path / "unbroken", steps=STEPS, save_every=1000, log_every=1))
    unbroken = losses(tmp_path / "unbroken")
    assert losses(output).keys() == unbroken.keys()
    for step in range(1, 31):  # later, rounding differs as much as between any two meshes
        assert losses(output)[step] == pytest.approx(unbroken[step], rel=1e-5)
    assert losses(output)[STEPS] == pytest.approx(unbroken[STEPS], rel=1e-2)


def test_a_killed_process_is_named_and_only_the_first_one_writes(home: Path, tmp_path: Path) -> None:
    options = ("--objective", "mlm", "--profile", "2", "3")
    command = arguments(home, tmp_path, steps=100_000, save_every=1000, options=options)
    with cluster(command, tmp_path / "logs", count=2) as processes:
        wait_while_running(processes, lambda: last_step(tmp_path) >= 5, seconds=PATIENCE, purpose="steps")
        processes[1].popen.kill()
        assert processes[0].wait_for_exit(PATIENCE) == 42
        wait_until(lambda: "died without" in processes[1].output, seconds=PATIENCE, purpose="the notice")
    assert re.search(
        r"process 0 on \S+: lost process 1 on \S+: nothing heard for 6 s\. Exit code 42", processes[0].output
    )
    assert "process 1 on" in processes[0].output.partition("What every process was doing:")[2]
    assert re.search(
        r"process 1 on \S+ died without a message: killed, or out of memory, or aborted", processes[1].output
    )
    assert "M parameters" in processes[0].output
    assert "M parameters" not in processes[1].output
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, len(lines) + 1))
    assert len(list((tmp_path / "tensorboard").iterdir())) == 1
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


def test_an_error_on_one_process_ends_all_with_its_message(home: Path, tmp_path: Path) -> None:
    command = arguments(home, tmp_path, steps=10, save_every=1000, options=("--objective", "mlm"))
    (tmp_path / "records" / "rows-1.jsonl").mkdir(parents=True)  # process 1 cannot write its record
    with cluster(command, tmp_path / "logs", count=2) as processes:
        assert [process.wait_for_exit(PATIENCE) for process in processes] == [1, 1]
    assert re.search(r"process 1 on \S+: \[Errno 21\] Is a directory: .*\. Exit code 1", processes[1].output)
    assert re.search(
        r"process 0 on \S+: process 1 on \S+ failed: \[Errno 21\] .*\. Exit code 1|Gloo", processes[0].output
    )
    assert "Traceback" not in processes[1].output


def test_a_host_with_other_settings_is_refused_by_name(home: Path, tmp_path: Path) -> None:
    command = arguments(home, tmp_path, steps=10, save_every=1000)
    with cluster(command, tmp_path / "logs", count=2, extra_arguments={1: ["--seed", "7"]}) as processes:
        assert [process.wait_for_exit(PATIENCE) for process in processes] == [1, 1]
    for process in processes:
        assert re.search(r"process 1 on \S+: settings\.seed is 7, elsewhere 0\. On all hosts, install", process.output)
    assert not (tmp_path / "metrics.jsonl").exists()


def test_a_host_with_other_settings_of_jax_is_refused_by_name(home: Path, tmp_path: Path) -> None:
    """Random numbers would differ silently."""
    command = arguments(home, tmp_path, steps=10, save_every=1000)
    variables = {1: {"JAX_THREEFRY_PARTITIONABLE": "false"}}
    with cluster(command, tmp_path / "logs", count=2, extra_environment=variables) as processes:
        assert [process.wait_for_exit(PATIENCE) for process in processes] == [1, 1]
    for process in processes:
        assert "jax.config.jax_threefry_partitionable is false, elsewhere true" in process.output


@pytest.mark.long  # waits a minute for the file; `make chaos` does the same
def test_hosts_that_do_not_share_the_output_are_refused(home: Path, tmp_path: Path, monkeypatch) -> None:
    """Each host has its own disk under the same path."""
    monkeypatch.setenv("PYTHONPATH", os.getcwd())
    disks = {index: tmp_path / f"disk-{index}" for index in range(2)}
    for disk in disks.values():
        disk.mkdir()
    command = arguments(home, Path("run"), steps=10, save_every=1000)
    with cluster(command, tmp_path / "logs", count=2, working_folders=disks) as processes:
        assert [process.wait_for_exit(PATIENCE) for process in processes] == [1, 1]
    for process in processes:
        assert "--output run is not the same folder on all hosts: process 1 on" in process.output


def test_fine_tuning_counts_every_example_once_on_two_hosts(one_layer_model: Path, tmp_path: Path) -> None:
    examples = [
        {"text": f"the {word} dog", "label": label} for word, label in zip("abcdefgh" * 4, "xyyx" * 8, strict=True)
    ]
    for name, part in (("train", examples), ("validation", examples[:13])):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(json.dumps(example) for example in part))
    options = {
        "model": one_layer_model,
        "train": str(tmp_path / "train.jsonl"),
        "validation": str(tmp_path / "validation.jsonl"),
        "max_length": 16,
        "batch_size": 8,
        "steps": 6,
        "log_every": 1,
    }
    alone = finetune.main(finetune_config(output=tmp_path / "alone", **options))
    words = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    command = ["-m", "deberta_jax", "finetune", "--output", str(tmp_path / "two"), *words]
    with cluster(command, tmp_path / "logs", count=2) as processes:
        wait_for_success(processes, seconds=PATIENCE)
    assert json.loads((tmp_path / "two" / "results.json").read_text()) == alone
    records = [
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("alone", "two")
    ]
    assert [record["step"] for record in records[1]] == [record["step"] for record in records[0]]
    for expected, record in zip(*records, strict=True):
        assert record == pytest.approx(expected, rel=1e-4)
