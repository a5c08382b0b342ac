"""Whole pre-training runs: they learn, resume after a kill -9 bit for bit, and name what is wrong."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deberta_jax import DebertaForReplacedTokenDetection, load_pretrained, save_pretrained
from deberta_jax.__main__ import main as command_line
from deberta_jax.errors import UserError
from deberta_jax.options import parse_options
from deberta_jax.rtd import RTDConfig, init_params
from deberta_jax.sharding import make_mesh
from deberta_jax.train import finetune, pretrain
from deberta_jax.train.configs import OptimizerConfig, PretrainConfig
from deberta_jax.train.data.corpus import open_corpus
from deberta_jax.train.data.text import embedded_corpus, read_documents
from deberta_jax.train.engine.divergence import TrainingError
from deberta_jax.train.hosts.exit_codes import StoppedError
from deberta_jax.train.pretrain_setup import load_initial_models, resolve_models
from deberta_jax.train.reporting.goodput import read_goodput

from ..support.configs import changed, finetune_config, pretrain_config
from ..support.small_models import TINY

STEPS = 8


@pytest.fixture(scope="module")
def home(novel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a text, a tokenizer and a model's configuration."""
    folder = tmp_path_factory.mktemp("home")
    shutil.copytree(novel, folder, dirs_exist_ok=True)
    (folder / "model.json").write_text(json.dumps(TINY.to_json()))
    return folder


def settings(home: Path, output: Path, **changes: Any) -> PretrainConfig:
    base = pretrain_config(
        output=output,
        tokenizer=home / "tokenizer",
        text=(home / "text.txt",),
        model=str(home / "model.json"),
        sequence_length=32,
        batch_size=8,
        steps=STEPS,
        optimizer=OptimizerConfig(learning_rate=2e-3),
        log_every=1,
        evaluate_every=4,
        save_every=3,
        held_out_fraction=0.05,
    )
    return changed(base, **changes)


def arguments(config: PretrainConfig) -> list[str]:
    """Returns the command line of these settings."""
    return [
        "pretrain",
        *("--output", str(config.output), "--tokenizer", str(config.tokenizer), "--text", str(config.data.text[0])),
        *("--model", str(config.models.model), "--sequence-length", str(config.data.sequence_length)),
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
    """The folder of an uninterrupted run."""
    output = home / "uninterrupted"
    pretrain.main(settings(home, output))
    return output


def test_a_run_learns_evaluates_and_writes_models(home: Path, finished: Path) -> None:
    records = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records if "generator_loss" in record] == list(range(1, STEPS + 1))
    held_out = [record for record in records if "eval/rtd_accuracy" in record]
    assert [record["step"] for record in held_out] == [4, 8]
    assert held_out[1]["eval/generator_loss"] < held_out[0]["eval/generator_loss"] - 0.05
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


def test_a_run_starts_from_given_models(home: Path, tmp_path: Path) -> None:
    models_config = RTDConfig.half_depth(TINY)
    params = jax.jit(lambda key: init_params(models_config, key))(jax.random.key(5))
    save_pretrained(tmp_path / "generator", models_config.generator, params["generator"])
    folders = {"init_generator": tmp_path / "generator"}
    config = settings(home, tmp_path / "run", **folders)
    initial = load_initial_models(config, make_mesh())
    resolved = resolve_models(config, {name: model.config for name, model in initial.items()})
    assert resolved.generator == models_config.generator
    weights = {name: model.params for name, model in initial.items()}
    state = jax.jit(lambda weights: pretrain.build_state(config, resolved, pretrain.build_optimizers(config), weights))(
        weights
    )
    jax.tree.map(np.testing.assert_array_equal, state.params["generator"], params["generator"])


def test_models_to_start_from_take_the_dropout_of_a_json_file(home: Path, tmp_path: Path) -> None:
    """It was ignored: a run that was to have none trained with that of the models."""
    none = TINY.replace(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    start = RTDConfig.half_depth(TINY.replace(hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.2))
    initial = {"generator": start.generator, "discriminator": start.discriminator}
    pair = {name: none.replace(num_hidden_layers=config.num_hidden_layers) for name, config in initial.items()}
    (tmp_path / "one.json").write_text(json.dumps(none.to_json()), encoding="utf-8")
    text = json.dumps({name: config.to_json() for name, config in pair.items()})
    (tmp_path / "pair.json").write_text(text, encoding="utf-8")
    for file in ("one.json", "pair.json"):
        resolved = resolve_models(settings(home, tmp_path, model=str(tmp_path / file)), initial)
        assert resolved == RTDConfig.half_depth(none), file  # a file without embedding_sharing means gdes
        deeper = {"discriminator": start.discriminator.replace(num_hidden_layers=9)}
        with pytest.raises(UserError, match=r"num_hidden_layers of the discriminator is \d by --model, but 9 in"):
            resolve_models(settings(home, tmp_path, model=str(tmp_path / file)), deeper)
    assert resolve_models(settings(home, tmp_path, model=None), initial) == start
    mlm = settings(home, tmp_path, model=str(tmp_path / "one.json"), objective="mlm")
    assert resolve_models(mlm, {"generator": start.discriminator}).generator == none
    wide = {"generator": start.generator.replace(num_hidden_layers=7)}  # of a file of one model, any generator
    resolved = resolve_models(settings(home, tmp_path, model=str(tmp_path / "one.json")), wide)
    assert resolved.generator == none.replace(num_hidden_layers=7)


def test_the_discriminators_own_size_is_the_default(home: Path, tmp_path: Path) -> None:
    config = settings(home, tmp_path, model=None, init_discriminator=Path("unused"))
    assert resolve_models(config, {"discriminator": TINY}) == RTDConfig.half_depth(TINY)
    mlm = settings(home, tmp_path, objective="mlm", vocab_size=704)
    assert resolve_models(mlm).generator == TINY.replace(vocab_size=704)
    assert resolve_models(settings(home, tmp_path, embedding_sharing="nes")).embedding_sharing == "nes"


def test_the_discriminator_may_have_a_learning_rate_of_its_own() -> None:
    params = {"generator": {"kernel": jnp.ones(2)}, "discriminator": {"kernel": jnp.ones(2)}}
    constant = OptimizerConfig(learning_rate=0.5, schedule="warmup_constant", warmup=0, weight_decay=0)
    for rate, ratio in ((None, 1), (0.25, 0.5), (0.0, 0)):
        optimizers = pretrain.build_optimizers(pretrain_config(optimizer=constant, discriminator_learning_rate=rate))
        state = pretrain.create_state(optimizers, params, seed=0)
        updates = {
            name: optimizer.update(params[name], state.opt_state[name], params[name])[0]["kernel"]
            for name, optimizer in optimizers.items()
        }
        np.testing.assert_allclose(updates["discriminator"], ratio * updates["generator"], rtol=1e-6)


@pytest.mark.slow
def test_training_continues_from_the_models_of_another_run(home: Path, finished: Path, capsys) -> None:
    """With almost no learning rate, the models stay what they were."""
    still = OptimizerConfig(learning_rate=1e-12)
    output, models = home / "continued", ("generator", "discriminator")
    folders = {f"init_{name}": finished / name for name in models}
    pretrain.main(settings(home, output, model=None, optimizer=still, steps=3, **folders))
    assert "generator: 0.0 M parameters, pretrained deberta, mlm_head" in capsys.readouterr().out
    for name in models:
        config, params = load_pretrained(output / name)
        expected_config, expected = load_pretrained(finished / name)
        assert config == expected_config
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), params, expected)


def test_no_steps_save_the_initial_models_without_curves(home: Path, tmp_path: Path, capsys) -> None:
    pretrain.main(settings(home, tmp_path, steps=0, evaluate_every=0))
    assert load_pretrained(tmp_path / "discriminator")[0] == TINY
    out = capsys.readouterr().out.replace("\n", "")
    assert f"could not draw {tmp_path / 'curves.png'}: {tmp_path / 'metrics.jsonl'} holds no step" in out
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_a_finished_run_has_nothing_to_do(home: Path, finished: Path) -> None:
    before = losses(finished)
    pretrain.main(settings(home, finished))
    assert losses(finished) == before


def test_a_run_saves_when_time_is_over_and_resumes(home: Path, finished: Path, tmp_path: Path, capsys) -> None:
    with pytest.raises(StoppedError) as stopped:
        pretrain.main(settings(home, tmp_path, max_seconds=0.01))
    assert stopped.value.code == 0
    printed = capsys.readouterr().out
    assert "stopped after --max-seconds 0.01: step 1 is saved" in printed
    assert re.search(r"first step after \d+\.\d s: .*compile \d", printed)
    assert losses(tmp_path).keys() == {1}
    # From the settings that the run wrote; the command line takes its limit away.
    assert command_line(["pretrain", "--config", str(tmp_path / "config.yaml"), "--max-seconds", "None"]) == 0
    assert losses(tmp_path) == losses(finished)
    from_file = ["--config", str(tmp_path / "config.yaml")]
    assert parse_options(PretrainConfig, from_file, prog="deberta-jax pretrain") == settings(home, tmp_path)
    goodput = read_goodput(tmp_path)
    assert goodput.starts == 2
    assert goodput.lost == 0
    assert goodput.useful > 0
    printed = capsys.readouterr().out.replace("\n", "")
    assert str(goodput) in printed
    assert printed.count("first step after ") == 1


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
    pretrain.main(settings(home, tmp_path, steps=5, evaluate_every=0, **changes))
    steps = losses(tmp_path)
    assert steps[5]["generator_loss"] < steps[1]["generator_loss"]
    load_pretrained(tmp_path / model)


# ---------------------------------------------------------------------------------------------- kill -9


def run_and_kill(config: PretrainConfig, *, rounds: int, until: str) -> None:
    """Runs the command in a process of its own, kills it `rounds` times, and then lets it finish.

    until: "saving" kills while a checkpoint is being written, "anywhere" at a random moment of the steps.
    """
    environment = {**os.environ, "XLA_FLAGS": "--xla_backend_optimization_level=0", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "deberta_jax", *arguments(config)]
    kills = hits = 0
    while True:
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        if kills < rounds:
            wait_for_moment(config.output, process, until=until)
            process.send_signal(signal.SIGKILL)
            process.communicate()
            kills += 1
            hits += process.returncode == -signal.SIGKILL
            continue
        output, _ = process.communicate(timeout=1200)
        assert process.returncode == 0, output.decode()
        assert hits or not rounds, "every run was over before it could be killed"
        return


def wait_for_moment(output: Path, process: subprocess.Popen, *, until: str) -> None:
    """Returns when to kill: a step after the one that the process resumed from, or while a checkpoint is written."""
    deadline, start = time.monotonic() + 1200, lines_logged(output)  # only ends a hang
    while process.poll() is None:
        assert time.monotonic() < deadline, "the run hangs"
        if until == "saving" and any((output / "checkpoints").glob("*tmp*")):
            return
        if until == "anywhere" and lines_logged(output) != start:
            time.sleep(random.uniform(0, 0.5))
            return
        time.sleep(0.001)
    assert process.poll() == 0, "the run failed"


def lines_logged(output: Path) -> int:
    path = output / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


@pytest.mark.slow
@pytest.mark.parametrize("until", ["saving", pytest.param("anywhere", marks=pytest.mark.long)])  # chaos does it, too
def test_a_run_resumes_bit_for_bit_after_kill_9(home: Path, tmp_path: Path, until: str) -> None:
    expected = settings(home, tmp_path / "uninterrupted", evaluate_every=0)
    run_and_kill(expected, rounds=0, until=until)
    config = changed(expected, output=tmp_path / "run")
    run_and_kill(config, rounds=2, until=until)
    assert losses(config.output) == losses(expected.output)
    assert list(losses(config.output)) == list(range(1, STEPS + 1))


# ---------------------------------------------------------------------------------------------- what goes wrong


def error_line(capsys: pytest.CaptureFixture[str], *command: str) -> str:
    """Runs a command that must fail with one line, and returns the line."""
    assert command_line(list(command)) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    return error


@pytest.mark.slow
def test_a_diverged_run_stops_and_keeps_the_last_checkpoint(home: Path, tmp_path: Path) -> None:
    diverging = OptimizerConfig(learning_rate=1e30, max_grad_norm=0, warmup=6)
    config = settings(home, tmp_path, optimizer=diverging, save_every=1, evaluate_every=0)
    with pytest.raises(TrainingError, match=r"not finite at step \d+ .*the checkpoint of step \d+ is kept"):
        pretrain.main(config)
    kept = [int(path.name) for path in (tmp_path / "checkpoints").iterdir() if path.name.isdigit()]
    assert kept
    assert max(kept) < STEPS


@pytest.mark.slow
def test_a_truncated_newest_checkpoint_falls_back_to_the_one_before(
    home: Path, tmp_path: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    for path in (tmp_path / "checkpoints" / "8" / "state").rglob("d/*"):
        path.write_bytes(path.read_bytes()[:100])
    capsys.readouterr()
    pretrain.main(settings(home, tmp_path))
    message = capsys.readouterr().err
    assert "8" in message
    assert "6" in message
    assert losses(tmp_path) == losses(finished)


def test_a_checkpoint_of_another_configuration_is_refused(
    home: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    error = error_line(capsys, *arguments(settings(home, finished, batch_size=16)))
    assert "batch_size" in error
    assert "8" in error
    assert "16" in error


def test_a_tokenizer_with_more_pieces_than_the_model_is_refused(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "model.json").write_text(json.dumps(TINY.replace(vocab_size=500).to_json()))
    config = settings(home, tmp_path / "run", model=str(tmp_path / "model.json"))
    error = error_line(capsys, *arguments(config))
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
    error = error_line(capsys, *arguments(settings(home, tmp_path / "run", text=(path,))))
    assert message in error
    assert not (tmp_path / "run" / "corpus").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 9}, "batch_size 9 does not divide into 1 accumulation steps over 8 devices; give a"),
        ({"accumulation": 3}, "batch_size 8 does not divide into 3 accumulation steps"),
        ({"embedding_sharing": "es"}, "add --no-decoupled"),
        ({"model": "deberta-v3-smal"}, "Did you mean 'deberta-v3-small'"),
    ],
)
def test_settings_that_do_not_fit_are_named(home: Path, tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pretrain.main(settings(home, tmp_path, **changes))


def test_a_corpus_must_have_held_out_rows_to_evaluate(home: Path, finished: Path, tmp_path: Path) -> None:
    from deberta_jax.train.prepare import PrepareConfig
    from deberta_jax.train.prepare import main as prepare

    corpus = {"tokenizer": home / "tokenizer", "text": (home / "text.txt",), "sequence_length": 32}
    prepare(PrepareConfig(output=tmp_path / "corpus", held_out_fraction=0.0, **corpus))
    config = settings(home, tmp_path, text=(), corpus=(str(tmp_path / "corpus"),))
    with pytest.raises(ValueError, match="has no held-out rows to evaluate on"):
        pretrain.main(config)


@pytest.fixture(scope="module")
def mixed(home: Path) -> dict[str, Any]:
    """Settings of a run on two corpora of 16 tokens, then one of 32 tokens."""
    from deberta_jax.tokenizers.tokenizer import Tokenizer
    from deberta_jax.train.data.prepare import prepare

    for name, length, seed in (("short", 16, 0), ("other", 16, 1), ("long", 32, 0)):
        text, options = [home / "text.txt"], {"boundary": "blank_line", "held_out_fraction": 0.02, "seed": seed}
        prepare(text, Tokenizer.from_folder(home / "tokenizer"), home / name, sequence_length=length, **options)
    corpus = (f"{home / 'short'}:3", f"{home / 'other'}:1", str(home / "long"))
    return {"text": (), "corpus": corpus, "curriculum": ("16:5", "32")}


@pytest.mark.slow
def test_a_mixture_and_a_curriculum_are_logged_and_resumed(
    home: Path, mixed: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pretrain.main(settings(home, tmp_path / "whole", **mixed))
    printed = " ".join(capsys.readouterr().out.split())
    assert "corpus short: 75.00% of the rows of 16 tokens in 5 steps" in printed
    assert "corpus long: 100.00% of the rows of 32 tokens in 3 steps" in printed
    steps = losses(tmp_path / "whole")
    rows = {name: open_corpus(home / name).train.rows for name in ("short", "other", "long")}
    assert steps[5]["epoch/short"] == 30 / rows["short"] == steps[8]["epoch/short"]
    assert steps[5]["epoch/other"] == 10 / rows["other"]
    assert (steps[5]["epoch/long"], steps[8]["epoch/long"]) == (0, 24 / rows["long"])
    records = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    evaluated = [(record["step"], key) for record in records for key in record if key.endswith("rtd_accuracy")]
    evaluated = [(step, key) for step, key in evaluated if key.startswith("eval/")]
    assert evaluated == [
        *[(4, f"eval/{name}rtd_accuracy") for name in ("short/", "other/", "")],
        (8, "eval/rtd_accuracy"),
    ]
    with pytest.raises(StoppedError):
        pretrain.main(settings(home, tmp_path / "broken", max_seconds=0.01, **mixed))
    pretrain.main(settings(home, tmp_path / "broken", data_workers=1, **mixed))
    assert losses(tmp_path / "broken") == steps
    other = mixed | {"corpus": (mixed["corpus"][0], f"{home / 'other'}:2", mixed["corpus"][2])}
    with pytest.raises(ValueError, match="corpus"):
        pretrain.main(settings(home, tmp_path / "broken", **other))


def test_corpora_that_do_not_fit_end_the_command_with_one_line(
    home: Path, mixed: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = ("--output", str(tmp_path), "--tokenizer", str(home / "tokenizer"), "--model", str(home / "model.json"))
    common = ("pretrain", *folders, "--corpus", *mixed["corpus"])
    error = error_line(capsys, *common, "--sequence-length", "16")
    assert "has rows of 32 tokens, but the run has rows of 16" in error
    error = error_line(capsys, *common, "--curriculum", "16:5", "64")
    assert "has rows of 32 tokens, but the run has rows of 16, 64" in error


def test_an_unknown_field_of_the_model_is_named(home: Path, tmp_path: Path) -> None:
    (tmp_path / "model.json").write_text(json.dumps({**TINY.to_json(), "num_layers": 3}))
    with pytest.raises(ValueError, match="unknown field 'num_layers'"):
        pretrain.main(settings(home, tmp_path, model=str(tmp_path / "model.json")))


# ---------------------------------------------------------------------------------------------- fine-tuning


@pytest.mark.slow
def test_finetuning_a_pretrained_model_learns_and_saves_its_labels(home: Path, finished: Path, tmp_path: Path) -> None:
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
    assert finetune.main(config) == results


@pytest.mark.long
def test_the_json_file_may_define_a_generator(home: Path, tmp_path: Path) -> None:
    both = RTDConfig(discriminator=TINY, generator=TINY.replace(intermediate_size=32), embedding_sharing="gdes")
    (tmp_path / "rtd.json").write_text(json.dumps(both.to_json()))
    pretrain.main(settings(home, tmp_path / "run", model=str(tmp_path / "rtd.json"), steps=2))
    assert load_pretrained(tmp_path / "run" / "generator")[0].intermediate_size == 32
    assert jax.device_count() == 8  # all of this ran data parallel


# ---------------------------------------------------------------------------------------------- a damaged corpus


@pytest.mark.slow
def test_a_damaged_corpus_ends_the_command_with_one_line(home: Path, tmp_path: Path) -> None:
    """At the start, and in the middle of training, where the last checkpoint stays and a restart would not help."""
    novels = next(read_documents((embedded_corpus(),), boundary="file")).splitlines()[:6000]
    (tmp_path / "text.txt").write_text("\n\n".join(novels), encoding="utf-8")
    corpus = tmp_path / "corpus"
    tokens = ("--tokenizer", str(home / "tokenizer"))
    text = ("--text", str(tmp_path / "text.txt"), "--sequence-length", "32", "--boundary", "blank_line")
    assert command_line(["prepare", "--output", str(corpus), *tokens, *text]) == 0
    shard, manifest = corpus / "train-00000.array_record", corpus / "manifest.json"

    def run() -> tuple[int, str]:
        config = settings(home, tmp_path / "run", steps=60, save_every=1, evaluate_every=0)
        options = arguments(config)
        at = options.index("--text")
        options[at : at + 2] = ["--corpus", str(corpus)]
        environment = {**os.environ, "XLA_FLAGS": "--xla_backend_optimization_level=0", "JAX_PLATFORMS": "cpu"}
        command = [sys.executable, "-m", "deberta_jax", *options]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
        assert "Traceback" not in done.stderr
        return done.returncode, done.stderr.strip().splitlines()[-1]

    choose = random.Random(0)
    for path in (manifest, shard, manifest, shard):
        whole = path.read_bytes()
        place, bit = choose.randrange(min(len(whole), 1 << 16)), choose.randrange(8)
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :])
        code, message = run()
        assert code == 1
        assert message.startswith(f"deberta-jax pretrain: {path} ")
        path.write_bytes(whole)
    content = bytearray(shard.read_bytes())
    assert len(content) > 1 << 19
    for place in range(1 << 17, len(content) // 2, 3500):  # some rows; the first is read in step 9
        content[place] ^= 1
    shard.write_bytes(content)
    for _ in range(2):
        code, message = run()
        assert code == 1
        assert re.match(rf"deberta-jax pretrain: {re.escape(str(shard))}: row \d+ is damaged: ", message)
        steps = [int(path.name) for path in (tmp_path / "run" / "checkpoints").iterdir() if path.name.isdigit()]
        assert 1 <= max(steps) <= 8
