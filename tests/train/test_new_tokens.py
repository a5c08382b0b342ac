"""Tokens that pre-training and its data add to a vocabulary."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from deberta_jax import Deberta, Tokenizer
from deberta_jax.errors import MissingFileError, UserError
from deberta_jax.train import prepare
from deberta_jax.train.data.corpus import open_corpus
from deberta_jax.train.new_tokens import new_tokens_message, read_new_tokens, with_new_tokens
from deberta_jax.train.pretrain_setup import PretrainedModel, add_new_tokens
from deberta_jax.train.task_configs import NewTokensConfig

from ..support.configs import pretrain_config
from ..support.small_models import TINY, random_params

pytest.importorskip("tokenizers")


def test_tokens_come_from_the_command_line_and_a_file(tmp_path: Path) -> None:
    path = tmp_path / "tokens.txt"
    path.write_text("<b>\n\n<c>\n", encoding="utf-8")
    assert read_new_tokens(NewTokensConfig(add_tokens=("<a>",), add_tokens_file=path)) == ("<a>", "<b>", "<c>")
    assert read_new_tokens(NewTokensConfig()) == ()
    path.write_text("\n")
    with pytest.raises(UserError, match=r"tokens.txt has no tokens; write one on each line"):
        read_new_tokens(NewTokensConfig(add_tokens_file=path))
    path.write_bytes(b"\xff")
    with pytest.raises(UserError, match=r"tokens.txt is not UTF-8"):
        read_new_tokens(NewTokensConfig(add_tokens_file=path))
    with pytest.raises(MissingFileError, match="no such file"):
        read_new_tokens(NewTokensConfig(add_tokens_file=tmp_path / "none"))


def test_generator_and_discriminator_have_rows_for_the_tokens(novel: Path) -> None:
    tokenizer = Tokenizer.from_folder(novel / "tokenizer")
    small = TINY.replace(vocab_size=601)
    model = PretrainedModel(small, {"deberta": random_params(Deberta(small), jnp.ones((1, 8), jnp.int32))})
    config = pretrain_config(add_tokens=("<a>", "<b>"))
    extended, models = add_new_tokens(config, tokenizer, {"generator": model, "discriminator": model})
    assert extended.vocab_size == 603
    assert [grown.config.vocab_size for grown in models.values()] == [640, 640]
    table = models["generator"].params["deberta"]["embeddings"]["word_embeddings"]["embedding"]
    pieces = [piece for piece in tokenizer.encode("<b>") if piece != tokenizer.unk_id]
    old = np.asarray(model.params["deberta"]["embeddings"]["word_embeddings"]["embedding"])
    np.testing.assert_allclose(table[602], old[pieces].mean(axis=0), rtol=1e-5)
    assert new_tokens_message(extended, 2, 640) == (
        "tokens added: '<a>' 601, '<b>' 602; the table of embeddings has 640 rows"
    )
    with pytest.raises(UserError, match="the tokenizer has 601 pieces, more than the model's vocab_size 600"):
        add_new_tokens(config, tokenizer, {"generator": model._replace(config=small.replace(vocab_size=600))})


def test_a_prepared_corpus_has_the_added_tokens(novel: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("".join(f"the <a> man {number}\n\nshe was {number}\n\n" for number in range(20)))
    tokens = NewTokensConfig(add_tokens=("<a>",))
    settings = {"output": tmp_path / "corpus", "tokenizer": novel / "tokenizer", "text": (text,), "new_tokens": tokens}
    prepare.main(prepare.PrepareConfig(**settings, sequence_length=32, held_out_fraction=0.2))
    plain = Tokenizer.from_folder(novel / "tokenizer")
    open_corpus(tmp_path / "corpus").check(tokenizer=with_new_tokens(tokens, plain), sequence_length=32)
    with pytest.raises(UserError):
        open_corpus(tmp_path / "corpus").check(tokenizer=plain, sequence_length=32)
