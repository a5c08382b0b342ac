"""The whole command: it learns, goes on after a kill -9 as if nothing had been, and names what is wrong."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from deberta_jax import DebertaForReplacedTokenDetection, load_pretrained
from deberta_jax.__main__ import main as command_line
from deberta_jax.rtd import RTDConfig
from deberta_jax.train import finetune, pretrain
from deberta_jax.train.configs import OptimizerConfig, PretrainConfig
from deberta_jax.train.engine.loop import TrainingError
from deberta_jax.train.hosts.exit_codes import StoppedError
from deberta_jax.train.reporting.goodput import read_goodput

from ..support.configs import changed, finetune_config, pretrain_config
from ..support.novel import small_tokenizer
from ..support.small_models import TINY


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a text, a tokenizer and a model's configuration."""
    folder = tmp_path_factory.mktemp("home")
    small_tokenizer(folder / "tokenizer", folder / "text.txt")
    (folder / "model.json").write_text(json.dumps(TINY.to_json()))
    return folder


def settings(home: Path, output: Path, **changes) -> PretrainConfig:
    base = pretrain_config(
        output=output,
        tokenizer=home / "tokenizer",
        text=(home / "text.txt",),
        model=str(home / "model.json"),
        sequence_length=32,
        batch_size=8,
        steps=12,
        optimizer=OptimizerConfig(learning_rate=2e-3),
        log_every=1,
        evaluate_every=0,
        save_every=3,
        held_out_fraction=0.05,
    )
    return changed(base, **changes)


def arguments(config: PretrainConfig) -> list[str]:
    """The command line of these settings."""
    return [
        "pretrain",
        *("--output", str(config.output), "--tokenizer", str(config.tokenizer), "--text", str(config.data.text[0])),
        *("--model", config.models.model, "--sequence-length", str(config.data.sequence_length)),
        *("--batch-size", str(config.batch_size), "--steps", str(config.steps)),
        *("--optimizer.learning-rate", str(config.optimizer.learning_rate), "--log-every", str(config.log_every)),
        *("--evaluate-every", str(config.evaluate_every), "--save-every", str(config.save_every)),
        *("--held-out-fraction", str(config.data.held_out_fraction)),
    ]


def losses(output: Path) -> dict[int, dict]:
    records = map(json.loads, (output / "metrics.jsonl").read_text().splitlines())
    return {record["step"]: record for record in records if "generator_loss" in record}


@pytest.fixture(scope="module")
def finished(home: Path) -> Path:
    """A run that nothing interrupted."""
    output = home / "unbroken"
    pretrain.main(settings(home, output, evaluate_every=6))
    return output


def test_a_run_learns_evaluates_and_leaves_models(home: Path, finished: Path) -> None:
    records = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records if "generator_loss" in record] == list(range(1, 13))
    held_out = [record for record in records if "eval/rtd_accuracy" in record]
    assert [record["step"] for record in held_out] == [6, 12]
    assert records[-2]["generator_loss"] < records[0]["generator_loss"] - 0.5
    assert (finished / "curves.png").stat().st_size > 10_000
    assert list((finished / "tensorboard").iterdir())
    config, params = load_pretrained(finished / "discriminator")
    assert config == TINY
    assert "embedding" in params["deberta"]["embeddings"]["word_embeddings"]
    ids = np.arange(5, 15)[None]
    logits = DebertaForReplacedTokenDetection(config).apply({"params": params}, ids).logits
    assert np.isfinite(np.asarray(logits)).all()
    assert load_pretrained(finished / "generator")[0].num_hidden_layers == 2
    assert (finished / "generator" / "spm.model").read_bytes() == (home / "tokenizer" / "spm.model").read_bytes()


def test_a_run_goes_on_from_the_models_of_another(home: Path, finished: Path, capsys) -> None:
    """With a learning rate of next to nothing, what comes out is what went in."""
    still = OptimizerConfig(learning_rate=1e-12)
    output, models = home / "continued", ("generator", "discriminator")
    starts = {f"init_{name}": finished / name for name in models}
    pretrain.main(settings(home, output, model=None, optimizer=still, steps=3, **starts))
    assert "generator: 0.0 M parameters, going on from deberta, mlm_head" in capsys.readouterr().out
    for name in models:
        config, params = load_pretrained(output / name)
        given_config, given = load_pretrained(finished / name)
        assert config == given_config
        jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, atol=1e-6), params, given)
    with pytest.raises(ValueError, match="give the model to start from as --init-generator"):
        pretrain.main(settings(home, output, objective="mlm", init_discriminator=finished / "discriminator"))


def test_a_finished_run_has_nothing_left_to_do(home: Path, finished: Path) -> None:
    before = losses(finished)
    pretrain.main(settings(home, finished, evaluate_every=6))
    assert losses(finished) == before


def test_out_of_time_it_saves_and_the_next_start_goes_on(home: Path, finished: Path, tmp_path: Path, capsys) -> None:
    with pytest.raises(StoppedError) as stopped:
        pretrain.main(settings(home, tmp_path, evaluate_every=6, max_seconds=0.01))
    assert stopped.value.code == 0
    assert "stopped after --max-seconds 0.01: step 1 is saved" in capsys.readouterr().out
    assert losses(tmp_path).keys() == {1}
    pretrain.main(settings(home, tmp_path, evaluate_every=6))
    assert losses(tmp_path) == losses(finished)
    goodput = read_goodput(tmp_path)
    assert goodput.starts == 2
    assert goodput.lost == 0
    assert goodput.useful > 0
    assert str(goodput) in capsys.readouterr().out.replace("\n", "")


@pytest.mark.parametrize(
    ("changes", "model"),
    [
        ({"objective": "mlm"}, "model"),
        pytest.param({"decoupled": False, "embedding_sharing": "es"}, "discriminator", marks=pytest.mark.long),
        pytest.param(
            {"embedding_sharing": "nes", "accumulation": 2, "batch_size": 16}, "discriminator", marks=pytest.mark.long
        ),
        pytest.param({"dtype": "bfloat16", "remat": True}, "discriminator", marks=pytest.mark.slow),
    ],
)
def test_other_objectives_and_sharings_train(home: Path, tmp_path: Path, changes: dict, model: str) -> None:
    pretrain.main(settings(home, tmp_path, steps=6, **changes))
    found = losses(tmp_path)
    assert found[6]["generator_loss"] < found[1]["generator_loss"]
    load_pretrained(tmp_path / model)


# ---------------------------------------------------------------------------------------------- kill -9


def run_killed(config: PretrainConfig, *, rounds: int, until: str) -> None:
    """Runs the command in a process of its own, killing it `rounds` times, then lets it finish.

    until: "saving" kills while a checkpoint is being written, "anywhere" at a random moment of the steps.
    """
    environment = {**os.environ, "XLA_FLAGS": "--xla_backend_optimization_level=0", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "deberta_jax", *arguments(config)]
    kills = hits = 0
    while True:
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        if kills < rounds:
            wait_for(config.output, process, until=until)
            process.send_signal(signal.SIGKILL)
            process.communicate()
            kills += 1
            hits += process.returncode == -signal.SIGKILL
            continue
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, output.decode()
        assert hits or not rounds, "every run was over before it could be killed"
        return


def wait_for(output: Path, process: subprocess.Popen, *, until: str) -> None:
    """Returns at the moment to kill: a step further than the process began at, or with a save under way."""
    began, start = time.monotonic(), steps_logged(output)
    while process.poll() is None and time.monotonic() < began + 240:
        unfinished = any((output / "checkpoints").glob("*tmp*"))
        if until == "saving" and unfinished:
            return
        if until == "anywhere" and steps_logged(output) != start:
            time.sleep(random.uniform(0, 0.5))
            return
        time.sleep(0.001)
    assert process.poll() in (None, 0), "the run failed"


def steps_logged(output: Path) -> int:
    path = output / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


@pytest.fixture(scope="module")
def unbroken(home: Path) -> dict[int, dict]:
    output = home / "unbroken-process"
    run_killed(settings(home, output), rounds=0, until="anywhere")
    return losses(output)


@pytest.mark.slow
@pytest.mark.parametrize("until", ["saving", pytest.param("anywhere", marks=pytest.mark.long)])  # chaos does it, too
def test_kill_9_then_the_same_command_gives_the_same_losses_bit_for_bit(
    home: Path, tmp_path: Path, unbroken: dict[int, dict], until: str
) -> None:
    config = settings(home, tmp_path / "run")
    run_killed(config, rounds=3, until=until)
    assert losses(config.output) == unbroken
    assert list(unbroken) == list(range(1, 13))


@pytest.mark.long  # `make test` has the stop by --max-seconds, which is as exact
def test_stopping_in_process_and_going_on_equals_an_unbroken_run(
    home: Path, tmp_path: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As above without the kill: the interruption comes between two checkpoints."""
    config = settings(home, tmp_path, evaluate_every=6)
    from deberta_jax.train.engine import loop

    real = loop._read

    def interrupt(number, *rest):
        if number == 8:
            raise KeyboardInterrupt
        return real(number, *rest)

    monkeypatch.setattr(loop, "_read", interrupt)
    with pytest.raises(KeyboardInterrupt):
        pretrain.main(config)
    assert max(losses(tmp_path)) == 7
    monkeypatch.setattr(loop, "_read", real)
    pretrain.main(config)
    assert losses(tmp_path) == losses(finished)


# ---------------------------------------------------------------------------------------------- what goes wrong


def refused(capsys: pytest.CaptureFixture[str], *command: str) -> str:
    """Runs a command that must fail with one line."""
    assert command_line(list(command)) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    return error


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_checkpoint(home: Path, tmp_path: Path) -> None:
    config = settings(home, tmp_path, optimizer=OptimizerConfig(learning_rate=1e30, max_grad_norm=0, warmup=6))
    config = changed(config, save_every=1)
    with pytest.raises(TrainingError, match=r"not finite at step \d+ .*the checkpoint of step \d+ is kept"):
        pretrain.main(config)
    kept = [int(path.name) for path in (tmp_path / "checkpoints").iterdir() if path.name.isdigit()]
    assert kept
    assert max(kept) < 12


def test_a_truncated_newest_checkpoint_falls_back_to_the_one_before(
    home: Path, tmp_path: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    config = settings(home, tmp_path, evaluate_every=6)
    for path in (tmp_path / "checkpoints" / "12" / "state").rglob("d/*"):
        path.write_bytes(path.read_bytes()[:100])
    capsys.readouterr()
    pretrain.main(config)
    said = capsys.readouterr().err
    assert "12" in said
    assert "9" in said
    assert losses(tmp_path) == losses(finished)


def test_a_checkpoint_of_another_configuration_is_refused(
    home: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = settings(home, finished, evaluate_every=6, batch_size=16)
    error = refused(capsys, *arguments(other))
    assert "batch_size" in error
    assert "8" in error
    assert "16" in error


def test_a_tokenizer_with_more_pieces_than_the_model_is_refused(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "model.json").write_text(json.dumps(TINY.replace(vocab_size=500).to_json()))
    config = settings(home, tmp_path / "run", model=str(tmp_path / "model.json"))
    error = refused(capsys, *arguments(config))
    assert "has 601 pieces, more than the model's vocab_size 500; give --vocab-size 640" in error


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file or folder"),
        (b"", "no text in"),
        (b"Emma\n\nWood\xffhouse", "byte"),
        (b"Emma\n\nWood\x00house", "NUL"),
        (b"One document only.\n", "held"),
    ],
)
def test_bad_text_is_named(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes | None, message: str
) -> None:
    path = tmp_path / "bad.txt"
    if content is not None:
        path.write_bytes(content)
    config = settings(home, tmp_path / "run", text=(path,))
    error = refused(capsys, *arguments(config))
    assert message in error
    assert not (tmp_path / "run" / "corpus").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 9}, "9 rows"),
        ({"accumulation": 3}, "batch_size 8 does not divide into 3 chunks"),
        ({"embedding_sharing": "es"}, "add --no-decoupled"),
        ({"model": "deberta-v3-smal"}, "Did you mean 'deberta-v3-small'"),
        ({"corpus": Path("somewhere")}, "give --text or --corpus, not both"),
    ],
)
def test_settings_that_do_not_fit_are_named(home: Path, tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pretrain.main(settings(home, tmp_path, **changes))


def test_an_unknown_field_of_the_model_is_named(home: Path, tmp_path: Path) -> None:
    (tmp_path / "model.json").write_text(json.dumps({**TINY.to_json(), "num_layers": 3}))
    with pytest.raises(ValueError, match="unknown field 'num_layers'"):
        pretrain.main(settings(home, tmp_path, model=str(tmp_path / "model.json")))


# ---------------------------------------------------------------------------------------------- fine-tuning


def test_finetuning_learns_and_saves_a_model_with_its_labels(home: Path, finished: Path, tmp_path: Path) -> None:
    """Two kinds of sentences that differ by a word: any model that trains at all tells them apart."""
    rows = [f"{'the man' if number % 2 else 'the woman'} was very happy\t{number % 2}" for number in range(64)]
    for split in ("train", "dev"):
        (tmp_path / f"{split}.tsv").write_text("\n".join(["text\tlabel", *rows]) + "\n")
    config = finetune_config(
        output=tmp_path / "run",
        model=finished / "discriminator",
        train=str(tmp_path / "train.tsv"),
        validation=str(tmp_path / "dev.tsv"),
        max_length=16,
        batch_size=16,
        steps=60,
        optimizer=OptimizerConfig(learning_rate=3e-3),
    )
    results = finetune.main(config)
    assert results["validation"]["accuracy"] == 1
    model, params = load_pretrained(tmp_path / "run" / "model")
    assert model.label_names == ("0", "1")
    assert params["classifier"]["kernel"].shape == (32, 2)
    again = finetune.main(config)
    assert again == results


@pytest.mark.long
def test_rtd_json_with_its_own_generator(home: Path, tmp_path: Path) -> None:
    both = RTDConfig(discriminator=TINY, generator=TINY.replace(intermediate_size=32), embedding_sharing="gdes")
    (tmp_path / "rtd.json").write_text(json.dumps(both.to_json()))
    pretrain.main(settings(home, tmp_path / "run", model=str(tmp_path / "rtd.json"), steps=2))
    assert load_pretrained(tmp_path / "run" / "generator")[0].intermediate_size == 32
    assert jax.device_count() == 8  # all of this ran data parallel
