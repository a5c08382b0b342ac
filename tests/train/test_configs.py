"""Settings of runs: the names of their options, their checks, and the identity that checkpoints keep."""

import dataclasses
import json
import math
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from deberta_jax.__main__ import main
from deberta_jax.errors import UserError
from deberta_jax.option_list import options_of
from deberta_jax.sift import SiftConfig
from deberta_jax.train import finetune_setup, pretrain_setup
from deberta_jax.train.configs import (
    FinetuneConfig,
    GridConfig,
    HostsConfig,
    MeshConfig,
    OptimizerConfig,
    PretrainConfig,
)
from deberta_jax.train.engine.optimizer import optimizer_identity

from ..support.configs import changed, finetune_config, pretrain_config

SHARED = """
    accumulation batch-size compilation-cache dtype evaluate-every hosts.clock-within hosts.coordinator hosts.count
    hosts.dead-after hosts.index hosts.slow-after hosts.stall-after hosts.start-within keep
    kept-layers log-every max-seconds
    mesh.fsdp mesh.tensor mesh.zero model no-remat optimizer.beta1 optimizer.beta2 optimizer.bias-correction
    optimizer.decay-embedding-delta optimizer.epsilon optimizer.learning-rate optimizer.max-grad-norm
    optimizer.moment-dtype optimizer.no-bias-correction optimizer.no-decay-embedding-delta optimizer.schedule
    optimizer.schedule-end optimizer.warmup optimizer.weight-decay output profile remat save-every seed steps tokenizer
    learning-rate log run-name
"""
PRETRAIN = """
    add-tokens add-tokens-file
    boundary corpus curriculum data-workers decoupled discriminator-learning-rate embedding-sharing evaluate-first
    held-out-fraction init-discriminator init-generator mask-rate max-ngram no-decoupled no-evaluate-first objective
    rtd-lambda sequence-length text vocab-size
"""
FINETUNE = """
    header no-header quoting
    add-tokens add-tokens-file class-weights focal-gamma label-separator metric no-per-class-thresholds
    per-class-thresholds threshold
    choices-columns classifier-dropout data-dir doc-stride epochs freeze-layers grid.batch-size grid.epochs
    grid.learning-rate group-by-length kind label-column label-smoothing labels layer-decay
    lora.alpha lora.dropout lora.rank lora.targets manual-dir
    max-answer-length max-length max-question-length n-best no-group-by-length no-random-weights null-threshold
    pair-column patience random-weights seeds select sift.init-perturbation sift.learning-rate sift.loss
    sift.no-official sift.official sift.weight start-column test text-column top-k train validation
"""


@pytest.mark.parametrize(("command", "special"), [("pretrain", PRETRAIN), ("finetune", FINETUNE)])
def test_help_lists_the_published_options(command: str, special: str, capsys: pytest.CaptureFixture[str]) -> None:
    settings = {"pretrain": PretrainConfig, "finetune": FinetuneConfig}[command]
    options = [name.removeprefix("--") for option in options_of(settings) for name in option.names]
    assert sorted(options) == sorted([*SHARED.split(), *special.split()])
    with pytest.raises(SystemExit):
        main([command, "--help-all"])
    printed = set(re.findall(r"--([a-z][a-z0-9.-]*)", capsys.readouterr().out))
    negated = {name for name in options if re.search(r"(^|[.])no-", name)}  # a flag has the name that changes it
    assert set(options) - negated - {"decoupled", "header"} <= printed


# -------------------------------------------------------------------- checks

COUNTS = "batch_size accumulation log_every keep sequence_length vocab_size max_ngram max_length n_best top_k"
INTERVALS = "steps save_every evaluate_every seed freeze_layers patience"
SHARES = "held_out_fraction mask_rate label_smoothing classifier_dropout"
AMOUNTS = "rtd_lambda discriminator_learning_rate max_seconds epochs layer_decay"
PRETRAIN_NAMES = set((SHARED + PRETRAIN).replace("-", "_").split())


def build(option: str, value: Any) -> Any:
    make = pretrain_config if option in PRETRAIN_NAMES else finetune_config
    return make(**{option: value})


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *((name, value) for name in COUNTS.split() for value in (0, -1, 1.5)),
        *((name, -1) for name in INTERVALS.split()),
        *((name, value) for name in SHARES.split() for value in (-0.1, 1, math.nan)),
        *((name, value) for name in AMOUNTS.split() for value in (-0.1, math.nan)),
        *((name, "other") for name in ("dtype", "boundary", "embedding_sharing", "kind", "select")),
        ("epochs", math.inf),
        ("null_threshold", math.inf),
    ],
)
def test_a_value_that_is_not_allowed_is_refused_by_name(option: str, value: Any) -> None:
    with pytest.raises(UserError, match=rf"^{option} is '?{value}'?; it must be "):
        build(option, value)


@pytest.mark.parametrize(
    ("group", "message"),
    [
        (lambda: MeshConfig(tensor=0), r"mesh\.tensor is 0; it must be at least 1"),
        (lambda: HostsConfig(dead_after=0), r"hosts\.dead_after is 0; it must be above 0"),
        (lambda: HostsConfig(count=2, index=2, coordinator="a:1"), "index is 2; it must be 0 to 1"),
        (lambda: HostsConfig(count=2), "hosts: count given; give coordinator, count and index, or none of them"),
        (lambda: OptimizerConfig(schedule="linear"), "schedule is 'linear'; it must be one of warmup_linear_shift"),  # type: ignore
        (
            lambda: OptimizerConfig(moment_dtype="float16"),  # type: ignore
            "moment_dtype is 'float16'; it must be one of float32, bfloat16",
        ),
        (lambda: OptimizerConfig(beta2=1.0), "beta2 is 1; it must be at least 0 and below 1"),
        (lambda: OptimizerConfig(epsilon=0.0), "epsilon is 0; it must be above 0"),
        (lambda: OptimizerConfig(schedule_end=1.5), "schedule_end is 1.5; it must be at least 0 and at most 1"),
        (lambda: OptimizerConfig(learning_rate=math.nan), "learning_rate is nan; it must be at least 0"),
        (lambda: GridConfig(batch_size=(8, 0)), r"grid\.batch_size is 0; it must be at least 1"),
        (lambda: pretrain_config(objective="nsp"), "name is 'nsp'; it must be one of rtd, mlm"),
        (lambda: pretrain_config(profile=(3, 2)), r"profile is \(3, 2\); give the first and the last step"),
        (lambda: pretrain_config(text=(Path("a"),), corpus=("b",)), "give --text or --corpus, not both"),
        (lambda: pretrain_config(corpus=("a:-1", "b:2")), "corpus 'a:-1' has the weight -1; it must be above 0"),
        (lambda: pretrain_config(curriculum=("128:-9", "512")), "curriculum has -9 steps for length 128"),
        (lambda: pretrain_config(curriculum=("128:9", "512:1"), steps=11), "does not fit into --steps 11"),
        (lambda: pretrain_config(data_workers=-1), "data_workers is -1; it must be at least 0"),
        (lambda: pretrain_config(objective="mlm", decoupled=False), "leave out --no-decoupled"),
        (
            lambda: pretrain_config(objective="mlm", init_discriminator=Path("a")),
            "give the model to start from as --init-generator",
        ),
        (lambda: finetune_config(seeds=(1, 1)), r"seeds \(1, 1\) repeat one; give every seed once"),
        (lambda: finetune_config(grid=GridConfig(epochs=(3.0,)), steps=10), r"grid\.epochs and steps are given"),
    ],
)
def test_groups_that_do_not_fit_are_refused(group: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        group()


def test_the_command_line_refuses_a_bad_value(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["pretrain", "--output", "run", "--tokenizer", "tokenizer", "--accumulation", "0"])
    assert stopped.value.code == 2
    assert "accumulation is 0; it must be at least 1" in capsys.readouterr().err


# -------------------------------------------------------------------- identity of a run, a format on disk

OPTIMIZER = OptimizerConfig(learning_rate=2e-3, beta2=0.98)
OPTIMIZER_ON_DISK = (
    '"optimizer": {"learning_rate": 0.002, "schedule": "warmup_linear_shift", "schedule_end": 0.0, "warmup": 0.1, '
    '"beta1": 0.9, "beta2": 0.98, "epsilon": 1e-06, "weight_decay": 0.01, "max_grad_norm": 1.0, '
    '"bias_correction": false, "decay_embedding_delta": false}'
)


def test_only_another_dtype_of_the_moments_is_part_of_the_identity() -> None:
    """Runs of earlier versions, which had none, can be resumed."""
    assert optimizer_identity(OPTIMIZER) == json.loads(f"{{{OPTIMIZER_ON_DISK}}}")["optimizer"]
    narrow = dataclasses.replace(OPTIMIZER, moment_dtype="bfloat16")
    assert optimizer_identity(narrow) == optimizer_identity(OPTIMIZER) | {"moment_dtype": "bfloat16"}


def test_the_identity_of_a_pretraining_run_is_as_published() -> None:
    config = pretrain_config(
        init_generator=Path("g"),
        init_discriminator=Path("d"),
        sequence_length=64,
        batch_size=16,
        accumulation=2,
        steps=40,
        rtd_lambda=20.0,
        decoupled=False,
        mask_rate=0.2,
        max_ngram=2,
        optimizer=OPTIMIZER,
        discriminator_learning_rate=1e-3,
        dtype="bfloat16",
        seed=7,
    )
    models = SimpleNamespace(to_json=lambda: {"models": 1})
    identity = pretrain_setup.identity(config, models, SimpleNamespace(identity="c0ffee"), {"weights": "f00d"})  # type: ignore[arg-type]
    assert json.dumps(identity) == (
        '{"model": {"models": 1}, "corpus": "c0ffee", "objective": "rtd", "decoupled": false, "rtd_lambda": 20.0, '
        '"sequence_length": 64, "batch_size": 16, "accumulation": 2, "steps": 40, "mask_rate": 0.2, "max_ngram": 2, '
        f'{OPTIMIZER_ON_DISK}, "discriminator_learning_rate": 0.001, "dtype": "bfloat16", "seed": 7, '
        '"init_generator": "g", "init_discriminator": "d", "digests": {"weights": "f00d"}}'
    )


def test_the_identity_of_a_finetuning_run_is_as_published() -> None:
    config = finetune_config(
        model=Path("m"),
        random_weights=True,
        train="t.tsv",
        kind="choice",
        text_column="q",
        pair_column="p",
        choices_columns=("a", "b"),
        label_column="l",
        start_column="s",
        max_length=64,
        max_question_length=8,
        doc_stride=16,
        max_answer_length=4,
        group_by_length=True,
        batch_size=16,
        accumulation=2,
        epochs=2.0,
        steps=40,
        optimizer=OPTIMIZER,
        label_smoothing=0.1,
        layer_decay=0.8,
        freeze_layers=1,
        select="best",
        patience=2,
        sift=SiftConfig(weight=3.0),
        dtype="bfloat16",
        seed=7,
    )
    model, tokenizer = SimpleNamespace(to_json=lambda: {"model": 1}), SimpleNamespace(fingerprint="beef")
    task = SimpleNamespace(splits={"train": SimpleNamespace(lengths=[1, 2, 3])})
    identity = finetune_setup.identity(config, model, tokenizer, task, {"training examples": "f00d"})  # type: ignore[arg-type]
    assert json.dumps(identity) == (
        '{"configuration": {"model": 1}, "tokenizer": "beef", "examples": 3, "model": "m", "random_weights": true, '
        '"train": "t.tsv", "kind": "choice", "text_column": "q", "pair_column": "p", "choices_columns": ["a", "b"], '
        '"label_column": "l", "start_column": "s", "max_length": 64, "max_question_length": 8, "doc_stride": 16, '
        '"max_answer_length": 4, "group_by_length": true, "batch_size": 16, "accumulation": 2, "epochs": 2.0, '
        f'"steps": 40, {OPTIMIZER_ON_DISK}, "label_smoothing": 0.1, "layer_decay": 0.8, "freeze_layers": 1, '
        '"select": "best", "patience": 2, "sift": {"weight": 3.0, "loss": "symmetric_kl", "learning_rate": 0.0001, '
        '"init_perturbation": 0.01, "official": false}, "dtype": "bfloat16", "seed": 7, '
        '"digests": {"training examples": "f00d"}}'
    )


def test_settings_change_by_the_name_of_their_option() -> None:
    config = changed(finetune_config(text_column="question"), train="b.tsv", patience=3)
    assert (config.data.columns.text_column, config.data.train, config.selection.patience) == ("question", "b.tsv", 3)
