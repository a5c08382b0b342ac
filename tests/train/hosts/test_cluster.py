"""Real processes on loopback: another number of hosts goes on exactly; a lost or different host is named."""

import json
import re
import signal
from pathlib import Path

import pytest

from deberta_jax.tokenizers.tokenizer import Tokenizer
from deberta_jax.train import finetune, pretrain
from deberta_jax.train.configs import OptimizerConfig, PretrainConfig
from deberta_jax.train.data.batches import TrainingBatches
from deberta_jax.train.data.masking import MaskingConfig
from deberta_jax.train.data.prepare import open_corpus

from ...chaos import BATCH, arguments, faulty_rows, losses, prepare_home, rows_of
from ...support.cluster import Process, cluster, wait_until
from ...support.configs import finetune_config, pretrain_config
from ...support.recorded_rows import fingerprints

pytestmark = pytest.mark.slow
STEPS = 60


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    prepare_home(folder)
    return folder


def settings(home: Path, output: Path, **changes) -> PretrainConfig:
    """The same run as that of `arguments`, for this process."""
    return pretrain_config(
        output=output,
        tokenizer=home / "tokenizer",
        corpus=home / "corpus",
        model=str(home / "model.json"),
        sequence_length=32,
        batch_size=BATCH,
        evaluate_every=0,
        optimizer=OptimizerConfig(learning_rate=2e-3),
        **changes,
    )


def stop_after(processes: list[Process], output: Path, *, more: int) -> None:
    """Waits for so many more steps, tells one process to stop (SIGTERM), and checks that all of them do."""
    goal = max(losses(output), default=0) + more
    wait_until(lambda: max(losses(output), default=0) >= goal, seconds=180, what="steps")
    processes[-1].popen.send_signal(signal.SIGTERM)
    assert {process.ends_within(30) for process in processes} == {42}
    assert "preempted (SIGTERM)" in processes[0].said


@pytest.mark.long
def test_a_run_goes_on_with_another_number_of_hosts(home: Path, tmp_path: Path) -> None:
    """Four processes, two with two devices each, four again: no example is left out or repeated, and the losses are
    those of one process that nothing stopped."""
    output = tmp_path / "run"
    command = arguments(home, output, steps=STEPS, save_every=1000)
    with cluster(command, output / "logs", count=4) as processes:
        stop_after(processes, output, more=4)
    reached = [max(losses(output))]
    with cluster(command, output / "logs", count=2, devices=2) as processes:
        stop_after(processes, output, more=4)
    reached.append(max(losses(output)))
    with cluster(command, output / "logs", count=4) as processes:
        assert [process.ends_within(300) for process in processes] == [0] * 4
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
    rows, tokens = rows_of(output, steps=STEPS)
    assert rows == [batch["row"].tolist() for batch in batches]
    assert tokens == [fingerprints(batch) for batch in batches]

    pretrain.main(settings(home, tmp_path / "unbroken", steps=STEPS, save_every=1000, log_every=1))
    unbroken = losses(tmp_path / "unbroken")
    assert losses(output).keys() == unbroken.keys()
    for step in range(1, 31):  # from then on rounding has grown, as it does between any two meshes
        assert losses(output)[step] == pytest.approx(unbroken[step], rel=1e-5)
    assert losses(output)[STEPS] == pytest.approx(unbroken[STEPS], rel=1e-2)


def test_a_killed_process_is_named_and_only_the_first_writes(home: Path, tmp_path: Path) -> None:
    command = arguments(home, tmp_path, steps=100_000, save_every=1000, options=("--profile", "2", "3"))
    with cluster(command, tmp_path / "logs", count=2) as processes:
        wait_until(lambda: max(losses(tmp_path), default=0) >= 5, seconds=180, what="steps")
        processes[1].popen.kill()
        assert processes[0].ends_within(40) == 42
    assert re.search(
        r"process 0 on \S+: lost process 1 on \S+: nothing heard for 6 s\. Exit code 42", processes[0].said
    )
    assert "process 1 on" in processes[0].said.partition("What every process was doing:")[2]
    assert re.search(r"process 1 on \S+ died without a word: killed, or out of memory, or aborted", processes[1].said)
    assert "discriminator" not in processes[1].said
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, len(lines) + 1))
    assert len(list((tmp_path / "tensorboard").iterdir())) == 1
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


def test_a_host_with_other_settings_is_refused_by_name(home: Path, tmp_path: Path) -> None:
    same = arguments(home, tmp_path, steps=10, save_every=1000)
    with cluster(same, tmp_path / "logs", count=2, change={1: ["--seed", "7"]}) as processes:
        assert [process.ends_within(120) for process in processes] == [1, 1]
    for process in processes:
        assert re.search(r"process 1 on \S+: settings\.seed is 7, elsewhere 0\. Install the same wheel", process.said)
    assert not (tmp_path / "metrics.jsonl").exists()


def test_fine_tuning_counts_every_example_once_on_two_hosts(small_model: Path, tmp_path: Path) -> None:
    examples = [
        {"text": f"the {word} dog", "label": label} for word, label in zip("abcdefgh" * 4, "xyyx" * 8, strict=True)
    ]
    for name, part in (("train", examples), ("validation", examples[:13])):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(json.dumps(example) for example in part))
    options = {
        "model": small_model,
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
        assert [process.ends_within(240) for process in processes] == [0, 0]
    assert json.loads((tmp_path / "two" / "results.json").read_text()) == alone
    texts = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("alone", "two")]
    records = [[json.loads(line) for line in text.splitlines()] for text in texts]
    assert [record["step"] for record in records[1]] == [record["step"] for record in records[0]]
    for one, other in zip(*records, strict=True):
        assert other == pytest.approx(one, rel=1e-4)
