"""Models that are loaded with their tokenizer, and pairs of the two that do not fit."""

import dataclasses
import json
from pathlib import Path

import pytest

from deberta_jax import save_pretrained
from deberta_jax.errors import MissingFileError, UserError
from deberta_jax.predict import Predictor
from deberta_jax.predict.loaded_model import LoadedModel

from ...support.predictor import random_classifier, random_predictor
from ...support.pytorch_files import assert_same


def test_saved_model_is_loaded_with_its_tokenizer(tmp_path: Path) -> None:
    model = random_predictor()
    save_pretrained(tmp_path, model.config, model.params)
    with pytest.raises(MissingFileError, match=r"has no spm\.model"):
        LoadedModel.from_folder(tmp_path)
    model.tokenizer.save(tmp_path)
    loaded = LoadedModel.from_folder(tmp_path)
    assert loaded.config == model.config
    assert loaded.tokenizer.fingerprint == model.tokenizer.fingerprint
    assert_same(loaded.params, model.params)


def test_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="nothing is not a model"):
        LoadedModel.from_folder(tmp_path / "nothing")


def test_tokenizer_larger_than_the_model_is_refused() -> None:
    model = random_predictor()
    with pytest.raises(UserError, match=r"the tokenizer of random weights has .* vocab_size 300"):
        dataclasses.replace(model, config=model.config.replace(vocab_size=300))


def test_differences_without_their_generator_are_refused() -> None:
    model = random_predictor()
    encoder = model.params["deberta"]
    words = {"delta": encoder["embeddings"]["word_embeddings"]["embedding"]}
    params = {"deberta": {**encoder, "embeddings": {**encoder["embeddings"], "word_embeddings": words}}}
    with pytest.raises(UserError, match="only differences to its generator's embeddings"):
        dataclasses.replace(model, params=params)


@pytest.mark.parametrize(
    ("thresholds", "expected"),
    [
        ({"used": "per_class", "single": 0.9, "per_class": {"a": 0.0, "b": 1.0}}, ("a",)),
        ({"used": "single", "single": 0.0, "per_class": {"a": 1.0, "b": 1.0}}, ("a", "b")),
        ({"used": "fixed", "fixed": 1.0}, ()),
    ],
)
def test_a_multi_label_run_predicts_from_its_thresholds(tmp_path: Path, thresholds: dict, expected: tuple) -> None:
    model = random_classifier(2, label_names=("a", "b"), problem_type="multi_label_classification")
    save_pretrained(tmp_path / "model", model.config, model.params)
    model.tokenizer.save(tmp_path / "model")
    results = tmp_path / "results.json"
    results.write_text(json.dumps({"validation": {}, "thresholds": thresholds}))
    (result,) = Predictor.load(tmp_path / "model").classify(["It was a house"])
    assert tuple(sorted(result.labels)) == expected
    results.write_text('{"thresholds": {"used": "per_class", "per_class": {"a": 0.5}}}')
    with pytest.raises(UserError, match=r"results\.json does not have a threshold for each class"):
        LoadedModel.from_folder(tmp_path / "model")
