"""Extreme values of every number and path among the settings: accepted and usable, or refused by name in one line."""

import dataclasses
import json
import math
import numbers
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from deberta_jax.__main__ import main
from deberta_jax.errors import UserError
from deberta_jax.sift import SiftConfig
from deberta_jax.train.compile_ahead.command import CompileAheadConfig
from deberta_jax.train.configs import FinetuneConfig, OptimizerConfig, PretrainConfig
from deberta_jax.train.data.prepare import prepare
from deberta_jax.train.data.train_tokenizer import train_tokenizer
from deberta_jax.train.demo import DemoConfig
from deberta_jax.train.engine.optimizer import build_optimizer
from deberta_jax.train.finetune_setup import count_steps

from ..support.configs import finetune_config
from ..support.small_corpus import Words

WHOLE = [*range(-1, 2), 2**31 - 1, 2**31, 2**63 - 1, 2**63, 2**64, 10**12, 10**30, 10**5000, -(2**63), -(10**5000)]
REAL = [0.0, -0.0, -1.0, 0.5, 1.0, 1e12, 1e39, 1e300, 1e-40, 1e-300, 5e-324, -1e300, math.nan, math.inf, -math.inf]
COMMANDS = (PretrainConfig, FinetuneConfig, DemoConfig, CompileAheadConfig)


def numbers_of(group: type) -> Iterator[tuple[type, str, type]]:
    """Yields every class of settings, including nested ones, and the name and the type of each number in it."""
    for field, annotation in typing.get_type_hints(group).items():
        if dataclasses.is_dataclass(annotation):
            yield from numbers_of(typing.cast(type, annotation))
        parts = {annotation, *typing.get_args(annotation)}
        if int in parts or float in parts:
            yield group, field, int if int in parts else float


NUMBERS = sorted({found for command in COMMANDS for found in numbers_of(command)}, key=str)


def test_the_numbers_of_all_groups_are_found() -> None:
    assert len(NUMBERS) > 60
    assert {"seed", "batch_size", "beta1", "fsdp", "null_threshold", "epochs"} <= {name for _, name, _ in NUMBERS}


@pytest.mark.parametrize(
    ("group", "name", "kind"), NUMBERS, ids=[f"{group.__name__}.{name}" for group, name, _ in NUMBERS]
)
def test_an_extreme_number_is_refused_by_name_or_fits_into_32_bits(group: type, name: str, kind: type) -> None:
    fields = {field.name for field in dataclasses.fields(group)}
    unused: dict[str, Any] = {"output": Path("o"), "tokenizer": Path("t"), "model": Path("m"), "train": "t"}
    required = {key: value for key, value in unused.items() if key in fields}
    if group is FinetuneConfig:
        required |= {"data": finetune_config().data, "tokenizer": None}
    if name in ("count", "index"):
        required |= {"coordinator": "a:1", "count": 3, "index": 0}
    many = "tuple" in str(typing.get_type_hints(group)[name])
    for value in WHOLE if kind is int else [float(value) for value in WHOLE if abs(value) < 2**900] + REAL:
        given = (value, value) if name == "profile" else (value,) if many else value
        try:
            config = group(**required | {name: given})
        except UserError as error:
            text = str(error)
            assert name in text
            assert len(text) < 300
            assert "\n" not in text
            continue
        assert isinstance(value, numbers.Real)
        json.dumps(dataclasses.asdict(config), default=str)
        if name == "profile":
            continue
        if kind is int:
            assert abs(value) < (2**63 if "seed" in name else 2**31)
        else:
            assert value == math.inf or np.isfinite(np.float32(value))


@pytest.mark.parametrize("name", [name for group, name, kind in NUMBERS if group is OptimizerConfig and kind is float])
def test_accepted_settings_of_the_optimizer_make_one(name: str) -> None:
    for value in REAL:
        try:
            optimizer = build_optimizer(OptimizerConfig(**{name: value}), total_steps=10)
        except UserError:
            continue
        params = {"kernel": jnp.ones(2)}
        optimizer.update(params, optimizer.init(params), params)


def test_epochs_are_limited_by_their_steps() -> None:
    assert count_steps(finetune_config(epochs=2.5), 3) == 8
    for epochs in (1e12, 1e38):
        with pytest.raises(UserError, match=r"^epochs is 1e\+\d+, .* at most 2147483647 are possible"):
            count_steps(finetune_config(epochs=epochs), 3)


@pytest.mark.parametrize("name", ["weight", "learning_rate", "init_perturbation"])
@pytest.mark.parametrize("value", [-1.0, 1e39, math.inf, math.nan])
def test_numbers_of_sift(name: str, value: float) -> None:
    with pytest.raises(UserError, match=rf"^{name} of SiFT is .*; it must be finite in 32 bits and not negative"):
        SiftConfig(**{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["sequence_length", "seed"])
@pytest.mark.parametrize("value", [-1, 2**63, 2**64, 2**200])
def test_numbers_of_prepare(name: str, value: int, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"sequence_length": 8, "seed": 0, name: value}
    with pytest.raises(UserError, match=f"^{name} is "):
        prepare([tmp_path], Words(), tmp_path / "out", boundary="line", **settings)


@pytest.mark.parametrize("name", ["vocab_size", "input_sentence_size"])
@pytest.mark.parametrize("value", [-1, 0, 2**31, 2**64, 2**200])
def test_numbers_of_the_tokenizer(name: str, value: int) -> None:
    settings: dict[str, Any] = {"vocab_size": 300, name: value}
    with pytest.raises(UserError, match=f"^{name} is "):
        train_tokenizer(["some text"], **settings)


@pytest.mark.parametrize(
    ("command", "option", "value"),
    [
        ("pretrain", "--seed", "18446744073709551616"),
        ("pretrain", "--steps", f"1{'0' * 30}"),
        ("pretrain", "--batch-size", "1000000000000"),
        ("pretrain", "--optimizer.learning-rate", "1e400"),
        ("finetune", "--seed", "-1"),
        ("finetune", "--epochs", "nan"),
        ("finetune", "--grid.batch-size", "0"),
        ("pretrain", "--output", ""),
        ("finetune", "--model", ""),
        ("finetune", "--train", ""),
        ("finetune", "--validation", ""),
        ("prepare", "--text", ""),
        ("tokenizer", "--output", ""),
        ("demo", "--output", ""),
    ],
)
def test_the_command_line_names_the_option(
    command: str, option: str, value: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    """An empty path would be the current folder. It usually comes from a variable of the shell that is not set."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    required = {
        "pretrain": ("output", "tokenizer"),
        "finetune": ("output", "model", "train"),
        "prepare": ("output", "tokenizer"),
        "tokenizer": ("output",),
        "demo": (),
    }
    given = [word for name in required[command] if f"--{name}" != option for word in (f"--{name}", "unused")]
    try:
        status = main([command, *given, option, value])
    except SystemExit as stopped:
        status = stopped.code
    error = capsys.readouterr().err
    assert status in (1, 2)
    assert option.removeprefix("--").rpartition(".")[2].replace("-", "_") in error.replace("-", "_")
    assert "Traceback" not in error
    assert list(tmp_path.iterdir()) == []
