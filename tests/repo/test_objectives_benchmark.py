"""Tests tests/benchmarks/objectives.py, with random models in place of trained ones: figures, tables, resumption."""

import argparse
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from deberta_jax import DebertaForMaskedLM, DebertaForReplacedTokenDetection, Tokenizer, save_pretrained
from deberta_jax.errors import MissingFileError, UserError
from deberta_jax.rtd import RTDConfig, RTDModels
from deberta_jax.strict_json import to_json
from deberta_jax.train import pretrain
from deberta_jax.train.data.corpus import open_corpus
from deberta_jax.train.engine.state import training_key
from deberta_jax.train.reporting.pretraining_metrics import pretraining_figures

from ..benchmarks import glue, held_out, objectives
from ..support.configs import pretrain_config
from ..support.novel import small_tokenizer
from ..support.small_models import TINY, random_params

PAIR = RTDConfig(generator=TINY, discriminator=TINY.replace(initializer_range=0.1), embedding_sharing="nes")
IDS = np.ones((1, 8), np.int32)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with text, a tokenizer, the configuration of a pair of models and a task of GLUE."""
    home = tmp_path_factory.mktemp("objectives")
    small_tokenizer(home / "tok", home / "text.txt", lines=400, pieces=600)
    (home / "model.json").write_text(to_json(PAIR.to_json()))
    (home / "rte").mkdir()
    for split in ("train", "dev"):
        rows = [
            f"a ship sank\ta ship {word}\t{index % 2}\n" for index, word in enumerate("sank swam sank flew".split())
        ]
        (home / f"rte/{split}.tsv").write_text("sentence1\tsentence2\tlabel\n" + "".join(rows))
    return home


def options(home: Path, output: Path, **others: Any) -> argparse.Namespace:
    defaults: dict[str, Any] = {
        "glue": home,
        "output": output,
        "text": [home / "text.txt"],
        "vocab_size": 600,
        "corpus": None,
        "tokenizer": None,
        "model": home / "model.json",
        "sequence_length": 32,
        "steps": 8,
        "batch_size": 4,
        "pretraining_rate": 1e-3,
        "dtype": "float32",
        "pretraining_seeds": 1,
        "objectives": ["gdes", "nes", "es", "mlm"],
        "max_hours": float("inf"),
        "page": None,
        "tasks": ["rte"],
        "seeds": 2,
        "rate": 1e-3,
        "random_rate": 1e-3,
        "finetune_steps": 2,
    }
    return argparse.Namespace(**{**defaults, **others})


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Replaces both kinds of training, and the measurements; the list has the settings of all runs."""
    runs: list[Any] = []

    def pretraining(config: Any) -> None:
        runs.append(config)
        for name in ("model",) if config.objective.name == "mlm" else ("generator", "discriminator"):
            (config.output / name).mkdir(parents=True)
            (config.output / name / "model.sha256").write_text(f"{len(runs):064}  weights\n")
            (config.output / name / "config.json").write_text(to_json(TINY.to_json()))
        records = [{"step": step, "eval/generator_loss": 8.0 - step / 4} for step in (2, 4, 6, 8)]
        (config.output / "metrics.jsonl").write_text("".join(to_json(record) + "\n" for record in records))

    def finetuning(config: Any) -> dict[str, dict[str, float]]:
        runs.append(config)
        return {"validation": {"accuracy": 0.5 if config.random_weights else 0.75}}

    def replaced(generator: Path, discriminator: Path, rows: held_out.Rows) -> dict[str, float | None]:
        assert (generator / "model.sha256").exists()
        assert (discriminator / "model.sha256").exists()
        figures = {"replaced": 0.13, "recall": 0.0, "break_even": 0.25, "average_precision": 0.5}
        return {**figures, "precision": None}

    monkeypatch.setattr(objectives, "masked_tokens", lambda generator, rows: {"loss": 6.0, "accuracy": 0.25})
    monkeypatch.setattr(objectives, "replaced_tokens", replaced)
    monkeypatch.setattr(pretrain, "main", pretraining)
    monkeypatch.setattr(glue.finetune, "main", finetuning)
    return runs


def test_tables_and_resumption(home: Path, tmp_path: Path, trained: list[Any]) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n<!-- {objectives.MARK} -->\n<!-- end -->\n")
    chosen = options(home, tmp_path / "out", page=page)
    objectives.run(with_options(chosen, objectives=["mlm"], seeds=1))
    assert len(trained) == 3  # MLM, its fine-tuning, random weights
    objectives.run(chosen)
    assert len(trained) == 3 + 3 + 3 * 2 + 2  # the other objectives, their fine-tuning, and the second seed of the rest
    text = page.read_text()
    assert text == f"before\n<!-- {objectives.MARK} -->\n\n{(tmp_path / 'out/results.md').read_text()}\n<!-- end -->\n"
    lines = text.splitlines()
    losses = [line.split(" | ") for line in lines if line.startswith("| RTD, ES |")]
    assert losses[0][1:] == ["7.500", "7.000", "6.500", "6.000", "25.0 |"]
    assert losses[1][1:] == ["its own", "13.0", "-", "0.0", "25.0", "50.0 |"]
    assert losses[2][1] == "MLM's model"
    assert losses[3][1] == "75.0 ± 0.0 |"
    assert "* MLM minus random weights: RTE +25.0" in lines
    rtd = [config for config in trained if getattr(config, "objective", None) and config.objective.name == "rtd"]
    assert [(config.models.embedding_sharing, config.objective.decoupled) for config in rtd] == [
        ("gdes", True),
        ("nes", True),
        ("es", False),
    ]
    with pytest.raises(UserError, match="result of another steps"):
        objectives.run(with_options(chosen, steps=9))


def with_options(namespace: argparse.Namespace, **others: Any) -> argparse.Namespace:
    return argparse.Namespace(**{**vars(namespace), **others})


def test_measurements_equal_those_of_pretraining(home: Path, tmp_path: Path) -> None:
    settings = objectives.prepared(options(home, tmp_path / "out"))
    rows = held_out.Rows(open_corpus(settings.corpus), Tokenizer.from_folder(settings.tokenizer), 4)
    models = {"generator": DebertaForMaskedLM, "discriminator": DebertaForReplacedTokenDetection}
    folders = tuple(tmp_path / name for name in models)
    params = {name: random_params(models[name](getattr(PAIR, name)), IDS, seed=3) for name in models}
    for name in models:
        save_pretrained(tmp_path / name, getattr(PAIR, name), params[name])
    figures = held_out.replaced_tokens(*folders, rows)
    measure = jax.jit(pretrain.build_evaluation(RTDModels.build(PAIR), pretrain_config(), sharing="nes"))
    sums: dict[str, float] = {}
    for number, (batch, _) in enumerate(held_out._generated(folders[0], rows)):
        out = measure(params, batch, jax.random.fold_in(training_key(0), number))
        sums = {name: sums.get(name, 0.0) + float(value) for name, value in out.items()}
    expected = pretraining_figures(sums)
    masked = held_out.masked_tokens(folders[0], rows)
    assert masked["loss"] == pytest.approx(expected["generator_loss"], rel=1e-5)
    assert masked["accuracy"] == pytest.approx(expected["masked_accuracy"], rel=1e-6)
    assert figures["loss"] == pytest.approx(expected["discriminator_loss"], rel=1e-5)
    assert figures["precision"] == pytest.approx(expected["replaced_precision"])
    assert figures["recall"] == pytest.approx(expected["replaced_recall"])
    assert 0 < figures["recall"] < 1
    assert figures["replaced"] == pytest.approx(sums["replaced_actual"] / sums["rtd_count"])
    # Random weights find nothing: both figures are those of guessing.
    assert figures["break_even"] == pytest.approx(figures["replaced"], abs=0.05)
    assert figures["average_precision"] == pytest.approx(figures["replaced"], abs=0.05)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"corpus": Path("rows")}, "--corpus needs --tokenizer"),
        ({"corpus": Path("rows"), "tokenizer": Path("tok")}, "give --text or --corpus, not both"),
        ({"glue": Path("nowhere")}, "nowhere lacks rte/train.tsv or RTE/train.tsv, rte/dev.tsv"),
        ({"model": Path("no.json")}, "no.json is not a file"),
        ({"pretraining_seeds": 0}, "pretraining-seeds is 0"),
    ],
)
def test_mistakes_are_found_before_training(
    home: Path, tmp_path: Path, trained: list[Any], changed: Any, message: str
) -> None:
    with pytest.raises((UserError, MissingFileError), match=message):
        objectives.run(options(home, tmp_path / "out", **changed))
    assert not trained
