"""Tests that a run keeps the meaning of the head that it starts from: names, order and rows of its classes."""

import json
from pathlib import Path
from typing import Any
from unittest import mock

import jax.numpy as jnp
import numpy as np
import pytest

from deberta_jax import (
    DebertaConfig,
    DebertaForSequenceClassification,
    DebertaForTokenClassification,
    Tokenizer,
    load_pretrained,
    save_pretrained,
)
from deberta_jax.convert import load_pytorch, save_pytorch
from deberta_jax.train import finetune
from deberta_jax.train.configs import FinetuneConfig, OptimizerConfig
from deberta_jax.train.finetune_setup import model_head, reorder_classifier
from deberta_jax.train.tasks.sources.classes import Head

from ..support.configs import finetune_config
from ..support.small_models import TINY, random_params

WORDS = "the man saw her and he said that it was not a house but one of those old things which nobody wants".split()
STILL = OptimizerConfig(learning_rate=1e-12)


def hub_model(folder: Path, novel: Path, model: Any, *names: str) -> Tokenizer:
    """Writes a model with random weights, as transformers saves it, and our folder of it; returns its tokenizer."""
    config = TINY.replace(num_labels=len(names), label_names=names, initializer_range=0.3)
    params = random_params(model(config), jnp.ones((1, 8), jnp.int32))
    save_pytorch(folder / "hub", config, params)
    converted = load_pytorch(folder / "hub")
    assert converted[0].label_names == names
    save_pretrained(folder / "model", *converted)
    tokenizer = Tokenizer.from_folder(novel / "tokenizer")
    tokenizer.save(folder / "model")
    return tokenizer


def settings(folder: Path, rows: list[dict[str, Any]], run: str = "run", **changes: Any) -> FinetuneConfig:
    path = folder / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    files = {"output": folder / run, "model": folder / "model", "train": str(path), "validation": str(path)}
    return finetune_config(**files, max_length=32, batch_size=16, steps=1, optimizer=STILL, **changes)


def texts(count: int) -> list[list[str]]:
    rng = np.random.default_rng(0)
    return [rng.choice(WORDS, 8).tolist() for _ in range(count)]


@pytest.mark.torch
def test_a_hub_classifier_keeps_its_classes(novel: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The rows have transformers' own answers, whose names are sorted otherwise and written in another case."""
    import torch
    from transformers import AutoModelForSequenceClassification

    tokenizer = hub_model(tmp_path, novel, DebertaForSequenceClassification, "SAFE", "INJECTION")
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path / "hub").eval()
    rows = []
    for words in texts(48):
        with torch.no_grad():
            logits = theirs(torch.tensor([tokenizer(" ".join(words)).input_ids])).logits[0]
        rows.append({"text": " ".join(words), "label": theirs.config.id2label[int(logits.argmax())].lower()})
    assert {row["label"] for row in rows} == {"safe", "injection"}
    results = finetune.main(settings(tmp_path, rows))
    assert results["validation"]["accuracy"] == 1
    printed = " ".join(capsys.readouterr().out.split())
    assert "labels read by the classes' names: 'injection' as 'INJECTION', 'safe' as 'SAFE'" in printed
    assert "head: classifier from the model; pooler from the model" in printed
    assert load_pretrained(tmp_path / "run" / "model")[0].label_names == ("SAFE", "INJECTION")
    first = json.loads((tmp_path / "run" / "predictions" / "validation.jsonl").read_text().splitlines()[0])
    assert first["prediction"] == first["label"] == rows[0]["label"].upper()


@pytest.mark.torch
@pytest.mark.slow
def test_a_hub_tagger_keeps_its_tags_in_the_order_of_the_user(novel: Path, tmp_path: Path) -> None:
    """The data have fewer tags than the head; --labels changes the order, and the rows of the head follow."""
    import torch
    from transformers import AutoModelForTokenClassification

    names = ("I-PER", "B-PER", "O", "B-LOC")
    tokenizer = hub_model(tmp_path, novel, DebertaForTokenClassification, *names)
    theirs = AutoModelForTokenClassification.from_pretrained(tmp_path / "hub").eval()
    rows = []
    for words in texts(64):
        pieces = [tokenizer.encode_batch([word])[0] for word in words]
        ids = [tokenizer.cls_id, *(piece for word in pieces for piece in word), tokenizer.sep_id]
        starts = 1 + np.cumsum([0, *map(len, pieces[:-1])])
        with torch.no_grad():
            tags = theirs(torch.tensor([ids])).logits[0].argmax(dim=-1).numpy()[starts]
        rows.append({"words": words, "labels": [names[tag] for tag in tags]})
    few = [row for row in rows if "B-LOC" not in row["labels"]]
    assert len(few) >= 16
    assert {tag for row in few for tag in row["labels"]} == set(names[:3])
    given = ("O", "B-PER", "I-PER")
    for changes, order in (({}, names), ({"labels": (*given, "B-LOC")}, (*given, "B-LOC"))):
        config = settings(tmp_path, few, f"run-{len(changes)}", kind="tokens", **changes)
        assert finetune.main(config)["validation"] == {"f1": 1, "precision": 1, "recall": 1, "accuracy": 1}
        assert load_pretrained(config.output / "model")[0].label_names == order


def classifier(*names: str, size: int = 3) -> tuple[DebertaConfig, dict[str, Any]]:
    config = TINY.replace(num_labels=size, label_names=names)
    return config, {
        "deberta": {},
        "classifier": {"kernel": np.arange(2.0 * size).reshape(2, size), "bias": np.ones(size)},
    }


def test_the_rows_of_the_classifier_follow_the_classes_of_the_task() -> None:
    config, weights = classifier("no", "maybe", "yes")

    def kernel(*names: str) -> Any:
        reordered = reorder_classifier(weights, config, mock.Mock(label_names=names))
        return reordered["classifier"]["kernel"].tolist() if "classifier" in reordered else None

    assert kernel("no", "maybe", "yes") == [[0, 1, 2], [3, 4, 5]]
    assert kernel("Yes", "NO") == [[2, 0], [5, 3]]
    assert kernel("yes", "no", "perhaps") is None
    assert kernel("no", "No", "yes") is None  # one row cannot be two classes
    assert kernel() == [[0, 1, 2], [3, 4, 5]]  # a regression; its shape decides
    other = {**weights, "classifier": {"kernel": np.ones((2, 1)), "bias": np.ones(1)}}  # of multiple choice
    assert reorder_classifier(other, config, mock.Mock(label_names=("yes", "no"))) is other
    unnamed = classifier(size=3)
    assert reorder_classifier(unnamed[1], unnamed[0], mock.Mock(label_names=("a", "b", "c"))) is unnamed[1]


def test_a_head_is_known_by_its_classifier() -> None:
    config, weights = classifier("no", "maybe", "yes")
    assert model_head(finetune_config(), config, weights) == Head(3, ("no", "maybe", "yes"))
    assert model_head(finetune_config(random_weights=True), config, weights) == Head()
    assert model_head(finetune_config(), config, {"deberta": {}}) == Head()
    assert model_head(finetune_config(), *classifier(size=3)) == Head(3)
