"""Names of models in the package: how they are resolved, and that every reader takes them. The models are random."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deberta_jax import DebertaConfig, Predictor, Tokenizer, embedded, load_pretrained, save_pretrained
from deberta_jax.__main__ import main
from deberta_jax.checkpoint import holds_model
from deberta_jax.convert import load_pytorch, local_model
from deberta_jax.embedded import PACKED_FILE, embedded_folder, masked_lm_of
from deberta_jax.errors import MissingFileError, UserError
from deberta_jax.file_digests import DIGESTS_FILE
from deberta_jax.train.model_folders import model_folder, tokenizer_folder

from ..support.embed_tiny import write_model
from ..support.predictor import head_params, random_predictor

NAME, GENERATOR = "deberta-v3-tiny", "deberta-v3-tiny/generator"


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of the package with random models; the current folder is empty."""
    model = random_predictor()
    for name, head in (("discriminator", "rtd_head"), ("generator", "mlm_head")):
        save_pretrained(tmp_path / name, model.config, head_params(model, head), tokenizer=model.tokenizer.files())
        write_model(tmp_path / name, tmp_path / "package" / name)
    monkeypatch.setattr(embedded, "package_folder", lambda _: tmp_path / "package")
    monkeypatch.setenv("DEBERTA_JAX_CACHE", str(tmp_path / "cache"))
    (tmp_path / "current").mkdir()
    monkeypatch.chdir(tmp_path / "current")
    return tmp_path / "package"


def test_every_reader_takes_the_name(package: Path) -> None:
    discriminator, generator = package / "discriminator", package / "generator"
    assert holds_model(NAME)
    assert local_model(NAME) == model_folder(Path(NAME)) == tokenizer_folder(Path(NAME)) == discriminator
    assert local_model(GENERATOR) == model_folder(Path(GENERATOR)) == generator
    assert model_folder(Path(NAME), generator=True) == embedded_folder(masked_lm_of(NAME)) == generator
    assert Tokenizer.from_folder(NAME).fingerprint == random_predictor().tokenizer.fingerprint
    assert load_pretrained(NAME)[1].keys() == {"deberta", "rtd_head"}
    assert Predictor.load(GENERATOR, tokenizer=NAME).params.keys() == {"deberta", "mlm_head"}
    assert not (package.parent / "cache").exists()


def test_weights_are_rounded_to_bfloat16_and_float32(package: Path) -> None:
    config, params = load_pretrained(GENERATOR)
    expected = head_params(random_predictor(), "mlm_head")
    rounded = jax.tree.map(lambda array: np.asarray(jnp.asarray(array, jnp.bfloat16), np.float32), expected)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(params), rounded)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(np.float32)}
    assert config == random_predictor().config.replace(hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1)


def test_pytorch_files_are_made_once_in_the_cache(package: Path) -> None:
    config, params = load_pytorch(NAME)
    own_config, own = load_pretrained(NAME)
    assert config == own_config
    jax.tree.map(np.testing.assert_array_equal, params, jax.device_get(own))
    (entry,) = (package.parent / "cache").iterdir()
    assert entry.name.startswith("deberta-v3-tiny-pytorch-")
    written = (entry / "model.safetensors").stat().st_mtime_ns
    load_pytorch(NAME)
    assert (entry / "model.safetensors").stat().st_mtime_ns == written


def test_a_folder_of_the_user_wins(package: Path) -> None:
    model = random_predictor()
    save_pretrained(NAME, model.config, model.params)
    assert embedded_folder(NAME) is None
    assert embedded_folder(GENERATOR) is None
    assert masked_lm_of(NAME) == NAME
    assert local_model(NAME) == Path(NAME)
    assert load_pretrained(NAME)[1].keys() == model.params.keys()


@pytest.mark.parametrize("source", ["", ".", "microsoft/deberta-v3-tiny", "./runs/deberta-v3-tiny", "deberta-v3-tinny"])
def test_other_names_are_not_those_of_the_package(package: Path, source: str) -> None:
    assert embedded_folder(source) is None
    assert masked_lm_of(source) == source


def test_a_wrong_model_of_the_pair_is_named(package: Path) -> None:
    with pytest.raises(MissingFileError, match=r"has no model 'genrator'; it has discriminator and generator"):
        load_pretrained("deberta-v3-tiny/genrator")


def test_missing_weights_are_named(package: Path) -> None:
    (package / "generator" / PACKED_FILE).unlink()
    with pytest.raises(MissingFileError, match=r"params.npz is missing; install deberta-jax again"):
        Predictor.load(GENERATOR)


@pytest.mark.parametrize("has_digests", [True, False])
def test_damaged_weights_are_refused(package: Path, has_digests: bool) -> None:
    path = package / "generator" / PACKED_FILE
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    if not has_digests:
        (package / "generator" / DIGESTS_FILE).unlink()
    with pytest.raises(UserError, match=r"params\.npz (is not as it was saved|are damaged or incomplete)"):
        load_pretrained(GENERATOR)


def test_commands_take_the_name(package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fill-mask", NAME, "It was a [MASK] house."]) == 0  # the discriminator has no head for it
    assert "probability" in capsys.readouterr().out
    assert main(["share", NAME, "me/tiny", "--format", "deberta-jax"]) == 0
    assert f"MB  {PACKED_FILE}" in capsys.readouterr().out
    assert main(["export", GENERATOR, "exported"]) == 0
    assert DebertaConfig.from_json("exported") == load_pretrained(GENERATOR)[0]
    assert main(["fill-mask", "deberta-v3-tiny/genrator", "It was a [MASK] house."]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1
