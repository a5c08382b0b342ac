"""The command that extends a model: tokenizer, embeddings, and pre-training that goes on from the result."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from deberta_jax import DebertaForReplacedTokenDetection, Tokenizer, load_pretrained, save_pretrained
from deberta_jax.errors import UserError
from deberta_jax.sharding import make_mesh
from deberta_jax.train.data.train_tokenizer import TokenizerConfig, main
from deberta_jax.train.pretrain_setup import check_tables, load_initial_models, resolve_models

from ...support.configs import pretrain_config
from ...support.paths import REPOSITORY
from ...support.small_models import TINY, random_params

SMALL = TINY.replace(vocab_size=610)  # nine rows more than the tokenizer has


@pytest.fixture(scope="module")
def home(novel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, its tokenizer and a text about software."""
    folder = tmp_path_factory.mktemp("home")
    params = random_params(DebertaForReplacedTokenDetection(SMALL), jnp.ones((1, 8), jnp.int32))
    files = Tokenizer.from_folder(novel / "tokenizer").files()
    save_pretrained(folder / "model", SMALL, params, tokenizer=files)
    shutil.copy(REPOSITORY / "docs" / "objectives.md", folder / "text.md")
    return folder


def test_the_model_has_rows_for_the_new_pieces(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = TokenizerConfig(output=home / "out", extend=home / "model", text=(home / "text.md",), new_pieces=40)
    main(config)
    printed = capsys.readouterr().out
    assert "Added 40 pieces" in printed
    assert f"--tokenizer {home / 'out'} --init-discriminator {home / 'out'}" in printed
    old, new = (Tokenizer.from_folder(home / name) for name in ("model", "out"))
    assert (old.vocab_size, new.vocab_size) == (601, 641)
    assert new.pieces(range(601)) == old.pieces(range(601))
    assert new.mask_id == old.mask_id == 600
    grown, params = load_pretrained(home / "out")
    assert grown == SMALL.replace(vocab_size=704)
    before = np.asarray(load_pretrained(home / "model")[1]["deberta"]["embeddings"]["word_embeddings"]["embedding"])
    after = np.asarray(params["deberta"]["embeddings"]["word_embeddings"]["embedding"])
    np.testing.assert_array_equal(after[:601], before[:601])
    for token, piece in zip(range(601, 641), new.pieces(range(601, 641)), strict=True):
        if piece.startswith("▁"):
            np.testing.assert_allclose(after[token], before[old.encode(piece[1:])].mean(axis=0), rtol=1e-5, atol=1e-7)
    main(config)  # the same again
    with pytest.raises(UserError, match=r"is another tokenizer, .* or pass --overwrite"):
        main(dataclasses.replace(config, new_pieces=41))

    run = pretrain_config(tokenizer=home / "out", init_discriminator=home / "out", sequence_length=32)
    initial = load_initial_models(run, make_mesh())
    models = resolve_models(run, {name: model.config for name, model in initial.items()})
    check_tables(run, new, models)
    assert models.discriminator == models.generator.replace(num_hidden_layers=grown.num_hidden_layers) == grown


def test_what_cannot_be_extended_is_named(home: Path, tmp_path: Path) -> None:
    config = TokenizerConfig(output=tmp_path / "out", extend=home / "model", text=(home / "text.md",))
    with pytest.raises(UserError, match="would write its model over the one it starts from"):
        main(dataclasses.replace(config, output=home / "model"))
    with pytest.raises(UserError, match="with --extend, leave them out"):
        dataclasses.replace(config, symbols=("<a>",))
    with pytest.raises(UserError, match="new_pieces is 0; it must be at least 1"):
        dataclasses.replace(config, new_pieces=0)
    shutil.copytree(home / "model", tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text(json.dumps(TINY.replace(vocab_size=600).to_json()))
    with pytest.raises(UserError):
        main(dataclasses.replace(config, extend=tmp_path / "model"))
    assert not (tmp_path / "out").exists()
