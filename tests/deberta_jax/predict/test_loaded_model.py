"""Models that are loaded with their tokenizer, and pairs of the two that do not fit."""

import dataclasses
from pathlib import Path

import pytest

from deberta_jax import save_pretrained
from deberta_jax.errors import MissingFileError, UserError
from deberta_jax.predict.loaded_model import LoadedModel

from ...support.predictor import random_predictor
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
