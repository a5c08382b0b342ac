"""Whole runs of the kinds that are more than a softmax: several labels, ranking, rewards; weights, and added tokens."""

import json
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deberta_jax import Deberta, Tokenizer, load_pretrained, save_pretrained
from deberta_jax.convert import save_pytorch
from deberta_jax.errors import UserError
from deberta_jax.sift import SiftConfig
from deberta_jax.train import finetune
from deberta_jax.train.configs import FinetuneConfig, OptimizerConfig
from deberta_jax.train.finetune_setup import identity
from deberta_jax.train.hosts.exit_codes import StoppedError
from deberta_jax.train.hosts.join import Hosts

from ..support.configs import changed, finetune_config
from ..support.small_models import TINY

COLORS = ("red", "green", "blue")
THINGS = ("the man", "her house", "a dog", "his wife")  # no digits: transformers has no pieces for their bytes


@pytest.fixture(scope="module")
def model(novel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny encoder that learns within few steps."""
    folder = tmp_path_factory.mktemp("model")
    config = TINY.replace(initializer_range=0.1)
    encoder = jax.jit(Deberta(config).init)(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"]
    tokenizer = Tokenizer.from_folder(novel / "tokenizer")
    save_pretrained(folder, config, {"deberta": encoder}, tokenizer=tokenizer.files())
    return folder


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return str(path)


def colored(count: int, seed: int) -> list[dict[str, Any]]:
    """Sentences with any number of colors, which are their labels."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        labels = [color for color in COLORS if rng.random() < 0.4]
        rows.append({"text": f"{THINGS[number % 4]} was {' and '.join(labels) or 'not'}", "labels": labels})
    return rows


def settings(model: Path, folder: Path, train: list, validation: list | None = None, **changes: Any) -> FinetuneConfig:
    folder.mkdir(exist_ok=True)
    base = finetune_config(
        output=folder / "run",
        model=model,
        train=write(folder / "train.jsonl", train),
        validation=validation and write(folder / "validation.jsonl", validation),
        max_length=32,
        batch_size=16,
        steps=2,
        optimizer=OptimizerConfig(learning_rate=3e-3),
        log_every=1,
    )
    return changed(base, **changes)


def lines_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def exported(run: Path, folder: Path) -> tuple[Path, Tokenizer]:
    """Exports the model of a run, and returns its folder and tokenizer."""
    tokenizer = Tokenizer.from_folder(run / "model")
    save_pytorch(folder, *load_pretrained(run / "model"), tokenizer=tokenizer.files())
    return folder, tokenizer


def test_several_labels_are_learned(model: Path, tmp_path: Path) -> None:
    rows = colored(160, 0)
    config = settings(
        model, tmp_path, rows, colored(48, 1), kind="multilabel", steps=60, evaluate_every=30, select="best"
    )
    config = changed(config, test=write(tmp_path / "test.jsonl", [{"text": "it is red and blue"}, {"text": "a dog"}]))
    results = finetune.main(config)
    assert results["validation"]["micro_f1"] > 0.9
    assert results["validation"]["auc"] > 0.9
    written = json.loads((tmp_path / "run" / "results.json").read_text())
    thresholds = written.pop("thresholds")
    assert written == results
    assert thresholds["used"] == "single"
    assert set(thresholds["per_class"]) == set(COLORS)
    saved = load_pretrained(tmp_path / "run" / "model")[0]
    assert (saved.problem_type, saved.label_names) == ("multi_label_classification", ("blue", "green", "red"))
    records = lines_of(tmp_path / "run" / "predictions" / "validation.jsonl")
    decided = [[name for name, share in record["probabilities"].items() if share >= thresholds["single"]]
               for record in records]  # fmt: skip
    assert decided == [record["predictions"] for record in records]
    right = np.mean([set(record["predictions"]) == set(record["labels"]) for record in records])
    assert right == pytest.approx(results["validation"]["accuracy"])
    assert "labels" not in lines_of(tmp_path / "run" / "predictions" / "test.jsonl")[0]


@pytest.mark.slow
def test_a_stopped_run_with_every_option_equals_an_uninterrupted_one(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {
        "kind": "multilabel",
        "steps": 6,
        "evaluate_every": 3,
        "select": "best",
        "metric": "log_loss",
        "accumulation": 2,
        "class_weights": ("balanced",),
        "focal_gamma": 1.5,
        "label_smoothing": 0.1,
        "per_class_thresholds": True,
        "sift": SiftConfig(weight=1.0),
    }
    rows = colored(48, 0)
    whole = settings(model, tmp_path / "whole", rows, rows, **options)
    expected = finetune.main(whole)
    stopped = settings(model, tmp_path / "stopped", rows, rows, **options)
    stopped = changed(stopped, train=whole.data.train, validation=whole.data.validation)
    with monkeypatch.context() as patch:
        patch.setattr(Hosts, "stop_requested", lambda hosts: hosts.phases.step == 4)
        with pytest.raises(StoppedError):
            finetune.main(stopped)
    assert finetune.main(stopped) == expected
    logs = [lines_of(config.output / "metrics.jsonl") for config in (whole, stopped)]
    assert logs[0] == logs[1]
    best = min((record for record in logs[0] if "eval/log_loss" in record), key=lambda record: record["eval/log_loss"])
    assert expected["validation"]["log_loss"] == best["eval/log_loss"]
    with pytest.raises(UserError, match=r"focal_gamma is 1\.5 there, 2\.0 here"):
        finetune.main(changed(stopped, focal_gamma=2.0))


@pytest.mark.torch
@pytest.mark.slow
def test_an_exported_multilabel_model_is_that_of_transformers(model: Path, tmp_path: Path) -> None:
    """The pipeline applies the sigmoid; the added token has its id, in a spare row and in a table that grew."""
    transformers = pytest.importorskip("transformers")
    many = tuple(f"<t{number}>" for number in range(50))
    for name, tokens in (("spare", ("<n>", "\n")), ("grown", ("<n>", "\n", *many))):
        rows = [{**row, "text": f"{tokens[-1]} {row['text'].replace('was', '<n>')}"} for row in colored(32, 0)]
        config = settings(
            model, tmp_path / name, rows, rows, kind="multilabel", add_tokens=tokens, class_weights=("red=2",)
        )
        finetune.main(config)
        folder, tokenizer = exported(config.output, tmp_path / name / "hub")
        assert tokenizer.encode("<n>") == [601]
        assert load_pretrained(config.output / "model")[0].vocab_size == (640 if name == "spare" else 704)
        pipeline = transformers.pipeline("text-classification", model=str(folder), top_k=None)
        for record in lines_of(config.output / "predictions" / "validation.jsonl")[:8]:
            assert pipeline.tokenizer(record["text"]).input_ids == tokenizer(record["text"]).input_ids
            found = {entry["label"]: entry["score"] for entry in pipeline([record["text"]])[0]}
            assert found == pytest.approx(record["probabilities"], abs=1e-4)


@pytest.mark.torch
@pytest.mark.slow
def test_an_exported_ranking_model_is_a_cross_encoder(model: Path, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    sentence_transformers = pytest.importorskip("sentence_transformers")
    rows = [
        {"text": f"is it {query}", "pair": f"it is {document}", "label": float(query == document)}
        for query in COLORS
        for document in COLORS
    ]
    rows[0]["label"] = 0.75
    config = settings(model, tmp_path, rows * 2, rows, kind="ranking", pair_column="pair")
    results = finetune.main(config)
    assert list(results["validation"]) == ["spearman", "pearson", "log_loss"]
    folder, _ = exported(config.output, tmp_path / "hub")
    encoder = sentence_transformers.CrossEncoder(str(folder), device="cpu")
    records = lines_of(config.output / "predictions" / "validation.jsonl")
    scores = encoder.predict([(record["text"], record["pair"]) for record in records])
    np.testing.assert_allclose(scores, [record["prediction"] for record in records], atol=1e-4)


@pytest.mark.torch
@pytest.mark.slow
def test_an_exported_reward_model_scores_single_answers(model: Path, tmp_path: Path) -> None:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    rows = [
        {"prompt": THINGS[number % 4], "chosen": "it was good and red", "rejected": "it was not"}
        for number in range(16)
    ]
    config = settings(model, tmp_path, rows, rows, kind="reward", steps=12, evaluate_every=6)
    results = finetune.main(config)
    assert results["validation"]["accuracy"] == 1
    folder, _ = exported(config.output, tmp_path / "hub")
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert (theirs.config.num_labels, theirs.config.problem_type) == (1, "regression")
    record = lines_of(config.output / "predictions" / "validation.jsonl")[0]
    for name in ("chosen", "rejected"):
        with torch.no_grad():
            score = theirs(**tokenizer(record["prompt"], record[name], return_tensors="pt")).logits[0].item()
        assert score == pytest.approx(record[f"{name}_score"], abs=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "multilabel", "validation": None, "metric": "auc"}, "metric, seeds and grid need the"),
        ({"kind": "reward", "focal_gamma": 2.0}, "focal_gamma is given for kind 'reward'"),
        ({"kind": "ranking", "class_weights": ("balanced",)}, "class_weights are given for kind 'ranking'"),
        ({"kind": "classification", "threshold": 0.3}, "threshold is given for kind 'classification'; it is a setting"),
        ({"kind": "regression", "labels": ("a", "b")}, "labels are given for kind 'regression'"),
        ({"kind": "multilabel", "add_tokens": ("the",)}, "the token to add 'the' is in the vocabulary already"),
        ({"kind": "multilabel", "add_tokens_file": Path("none.txt")}, "add_tokens_file none.txt: no such file"),
    ],
)  # fmt: skip
def test_settings_that_do_not_fit_are_named(model: Path, tmp_path: Path, changes: dict, message: str) -> None:
    rows = colored(16, 0)
    with pytest.raises(UserError, match=message):
        finetune.main(changed(settings(model, tmp_path, rows, rows), **changes))
    assert not (tmp_path / "run" / "model").exists()


def test_new_settings_count_only_where_they_are_given() -> None:
    """Interrupted runs of earlier versions have none of them."""

    def found(**options: Any) -> dict[str, Any]:
        task: Any = mock.Mock(splits={"train": mock.Mock(lengths=[1])})
        model: Any = mock.Mock(to_json=dict)
        return identity(finetune_config(**options), model, mock.Mock(fingerprint="f"), task, {})

    names = {"class_weights", "focal_gamma", "metric", "threshold", "per_class_thresholds"}
    assert not names & found().keys()
    assert not names & found(metric="auc", threshold=0.5, select="last").keys()
    given = found(metric="auc", threshold=0.0, select="best", class_weights=("balanced",), focal_gamma=2.0)
    assert names - given.keys() == {"per_class_thresholds"}
