"""A bit of a saved model that flips is noticed: nothing else is loaded, and the error is one line."""

import shutil
from pathlib import Path

import chex
import numpy as np
import pytest

from deberta_jax import Tokenizer, UserError, load_pretrained, save_pretrained

from ..support.predictor import TEXT, random_predictor

FLIPS = 200


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, model = tmp_path_factory.mktemp("saved") / "model", random_predictor()
    save_pretrained(folder, model.config, model.params, tokenizer=model.tokenizer.files())
    return folder


def flip(path: Path, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def test_no_flipped_bit_is_loaded_as_something_else(saved: Path, tmp_path: Path) -> None:
    config, params = load_pretrained(saved)
    ids = Tokenizer.from_folder(saved).encode(TEXT)
    files = sorted(path.relative_to(saved) for path in saved.rglob("*") if path.is_file())
    assert {"model.sha256", "config.json", "spm.model", "tokenizer_config.json", "_METADATA"} <= {p.name for p in files}
    rng, lines = np.random.default_rng(0), []
    folder = tmp_path / "model"
    shutil.copytree(saved, folder)
    for number in range(FLIPS):
        path = folder / files[number % len(files)]
        original = path.read_bytes()
        bit = int(rng.integers(8 * len(original)))
        flip(path, bit)
        try:
            # The tokenizer first, because reading parameters takes longest.
            assert Tokenizer.from_folder(folder).encode(TEXT) == ids, f"bit {bit} of {path.name}"
            loaded = load_pretrained(folder)
            assert loaded[0] == config, f"bit {bit} of {path.name}"
            chex.assert_trees_all_equal(loaded[1], params)
        except (UserError, OSError) as error:
            lines.append(str(error))
        path.write_bytes(original)
    assert len(lines) > FLIPS * 0.9
    assert not [line for line in lines if len(line.splitlines()) != 1]
    load_pretrained(folder)


def test_an_edit_of_the_configuration_is_accepted_by_deleting_its_line(saved: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(saved, folder)
    path, digests = folder / "config.json", folder / "model.sha256"
    path.write_text(path.read_text().replace('"hidden_dropout_prob": 0.1', '"hidden_dropout_prob": 0.2'))
    with pytest.raises(UserError, match=r"config\.json is not as it was saved: .*to accept an edit, delete its line"):
        load_pretrained(folder)
    lines = digests.read_text().splitlines(keepends=True)
    digests.write_text("".join(line for line in lines if "config.json" not in line or "tokenizer" in line))
    assert load_pretrained(folder)[0].hidden_dropout_prob == 0.2


def test_an_edit_of_the_tokenizer_is_named(saved: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(saved, folder)
    (folder / "spm.model").unlink()
    with pytest.raises(UserError, match=r"spm\.model is missing, but model\.sha256 lists it"):
        Tokenizer.from_folder(folder)
    random_predictor().tokenizer.save(folder)  # the digests follow
    Tokenizer.from_folder(folder)
    (folder / "tokenizer_config.json").write_text("{}")
    with pytest.raises(UserError, match=r"tokenizer_config\.json is not as it was saved"):
        Tokenizer.from_folder(folder)
    load_pretrained(folder)


def test_a_tokenizer_that_was_there_before_the_model_is_listed(tmp_path: Path) -> None:
    model = random_predictor()
    model.tokenizer.save(tmp_path)
    assert not (tmp_path / "model.sha256").exists(), "a tokenizer alone has no digests"
    save_pretrained(tmp_path, model.config, model.params)
    flip(tmp_path / "spm.model", 4000)
    with pytest.raises(UserError, match=r"spm\.model is not as it was saved"):
        Tokenizer.from_folder(tmp_path)


def test_folders_of_earlier_versions_have_no_digests(saved: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(saved, folder)
    (folder / "model.sha256").unlink()
    chex.assert_trees_all_equal(load_pretrained(folder)[1], load_pretrained(saved)[1])
    Tokenizer.from_folder(folder)


def test_damaged_digests_are_named(saved: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(saved, folder)
    for content in (b"\xff\xfe", b"{}", b"0" * 64 + b"  a\n" + b"1" * 64 + b"  a\n"):
        (folder / "model.sha256").write_bytes(content)
        with pytest.raises(UserError, match=r"model\.sha256 is damaged: each line must be"):
            load_pretrained(folder)
        with pytest.raises(UserError, match=r"model\.sha256 is damaged"):
            Tokenizer.from_folder(folder)
