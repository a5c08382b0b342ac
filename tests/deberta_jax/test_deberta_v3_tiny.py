"""The model of the package: its files, its answers, and that no network is needed. `embed_tiny` writes it."""

import functools
import re
import socket
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deberta_jax import DebertaConfig, Predictor, Tokenizer, load_pretrained, make_mesh
from deberta_jax.convert import load_pytorch, verify
from deberta_jax.convert.from_pytorch import find_folder
from deberta_jax.embedded import PACKED_FILE, package_folder
from deberta_jax.file_digests import DIGESTS_FILE, changed_file, read_digests

from ..support.embed_tiny import LARGEST

NAME = "deberta-v3-tiny"
GENERATOR = f"{NAME}/generator"
PACKAGE = package_folder(NAME)
pytestmark = pytest.mark.skipif(
    not all((PACKAGE / model / PACKED_FILE).is_file() for model in ("generator", "discriminator")),
    reason=f"{NAME} is not embedded yet: run `python -m tests.support.embed_tiny`",
)

# A text, words that make sense in it, and the rank that the best of them must have.
MASKED = (
    ("She opened the [MASK] and went into the house.", {"door", "window", "gate"}, 5),
    ("He did not [MASK] what to say.", {"know"}, 3),
    ("He put his [MASK] into his pocket.", {"hand", "hands", "head", "fingers"}, 5),
    ("Her eyes were full of [MASK].", {"tears", "light", "fire", "love", "joy", "pity", "fear"}, 10),
    ("She was the [MASK] of a rich merchant.", {"daughter", "wife", "mother", "sister", "son"}, 10),
)
# A text with one word that does not belong there, and this word.
REPLACED = (
    ("He opened the banana and went into the house.", "banana"),
    ("She did not yellow what to say.", "yellow"),
    ("The king sat upon his suddenly with a crown.", "suddenly"),
    ("He put his hand into his because and took out a letter.", "because"),
    ("The old man of was very tired and went to bed.", "of"),
    ("They walked along the road until they came were a river.", "were"),
    ("The child was sleeping in its mother's seventeen.", "seventeen"),
    ("I have never therefore such a beautiful garden.", "therefore"),
    ("The sun was shining and the birds were quarter.", "quarter"),
    ("He took the him from the table and read it.", "him"),
    ("We shall go to London the morning is.", "is"),
    ("The ship was lost in a terrible between.", "between"),
)


@functools.cache
def predictor(name: str) -> Predictor:
    return Predictor.load(name, batch_size=8)


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Lets every connection fail, and keeps the cache of conversions in a temporary folder."""

    def refuse(*_: Any) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setenv("DEBERTA_JAX_CACHE", str(tmp_path / "cache"))


def test_files_are_those_that_were_embedded_and_small() -> None:
    for model in ("generator", "discriminator"):
        digests = read_digests(PACKAGE / model / DIGESTS_FILE)
        assert digests.keys() == {path.name for path in (PACKAGE / model).iterdir()} - {DIGESTS_FILE}
        assert changed_file(PACKAGE / model, digests) is None
    card = (PACKAGE / "README.md").read_text(encoding="utf-8")
    assert "deberta-jax pretrain" in card
    assert "](curves.png)" in card
    assert (PACKAGE / "curves.png").is_file()
    (snippet,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    exec(snippet, {})
    assert sum(path.stat().st_size for path in PACKAGE.rglob("*") if path.suffix != ".pyc") <= LARGEST


@pytest.mark.parametrize(("name", "head", "layers"), [(NAME, "rtd_head", 6), (GENERATOR, "mlm_head", 2)])
def test_models_load_as_float32(name: str, head: str, layers: int) -> None:
    config, params = load_pretrained(name)
    assert params.keys() == {"deberta", head}
    assert config.num_hidden_layers == layers
    assert (config.hidden_dropout_prob, config.attention_probs_dropout_prob) == (0.1, 0.1)
    assert all(leaf.dtype == jnp.float32 and np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))
    assert params["deberta"]["embeddings"]["word_embeddings"]["embedding"].shape == (config.vocab_size, 192)
    assert Tokenizer.from_folder(name).vocab_size <= config.vocab_size


def test_the_name_is_that_of_a_configuration() -> None:
    assert DebertaConfig.named(NAME) == load_pretrained(NAME)[0]


def test_models_load_onto_a_mesh() -> None:
    config, params = load_pretrained(NAME, mesh=make_mesh(tensor=2))
    table = params["deberta"]["embeddings"]["word_embeddings"]["embedding"]
    assert {shard.data.shape[0] for shard in table.addressable_shards} == {config.vocab_size // 2}
    alone = load_pretrained(NAME)[1]["deberta"]["embeddings"]["word_embeddings"]["embedding"]
    np.testing.assert_array_equal(jax.device_get(table), jax.device_get(alone))


def test_masked_words_make_sense() -> None:
    found = predictor(GENERATOR).fill_mask([text for text, *_ in MASKED], top_k=10)
    for (text, words, rank), (candidates,) in zip(MASKED, found, strict=True):
        predicted = [candidate.piece.removeprefix("▁") for candidate in candidates[:rank]]
        assert words & set(predicted), f"{text} {predicted}"


def test_replaced_words_look_more_suspicious_than_the_others() -> None:
    found = predictor(NAME).replaced_tokens([text for text, _ in REPLACED])
    wrong, right = [], []
    for (text, word), scores in zip(REPLACED, found, strict=True):
        start = text.index(f" {word}")
        for score in scores:
            inside = start <= score.start and score.end <= start + 1 + len(word)
            (wrong if inside else right).append(score.probability)
    assert len(wrong) >= len(REPLACED)
    assert np.mean(wrong) > 3 * np.mean(right)


def test_pytorch_files_have_the_same_parameters() -> None:
    config, params = load_pytorch(GENERATOR)
    own_config, own = load_pretrained(GENERATOR)
    assert config == own_config
    jax.tree.map(np.testing.assert_array_equal, params, jax.device_get(own))


@pytest.mark.torch
@pytest.mark.parametrize("name", [NAME, GENERATOR])
def test_transformers_agrees(name: str) -> None:
    for package in ("torch", "transformers"):
        pytest.importorskip(package, reason=f"{package} is not installed; verify compares with it")
    differences = verify.compare(find_folder(name), *load_pretrained(name))
    assert len(differences) >= 3
    assert all(difference.agrees for difference in differences), differences
