"""The commands that show what a model thinks: fill-mask and detect."""

from pathlib import Path

import jax
import numpy as np
import pytest

from deberta_jax import DebertaForMaskedLM, DebertaForReplacedTokenDetection, Tokenizer, save_pretrained
from deberta_jax.__main__ import main as command_line
from deberta_jax.convert import save_pytorch
from deberta_jax.convert.commands.detect import detect
from deberta_jax.convert.commands.fill_mask import fill_mask
from deberta_jax.convert.commands.open_model import OpenedModel, open_model
from deberta_jax.convert.quirks import ConversionError
from deberta_jax.train.data.text import embedded_corpus, read_documents
from deberta_jax.train.data.train_tokenizer import train_tokenizer

from ..support.small_models import SMALL

TEXT = "It was a [MASK] of the [MASK] [MASK]."


@pytest.fixture(scope="module")
def model() -> OpenedModel:
    """Random weights, large enough that the answers differ; both heads, as the released discriminators have them."""
    novel = next(read_documents((embedded_corpus(),), boundary="blank_line"))
    tokenizer = Tokenizer.from_bytes(train_tokenizer(novel.splitlines()[:500], vocab_size=400))
    config = SMALL.replace(vocab_size=448, initializer_range=0.4, num_hidden_layers=2)
    ids = np.ones((1, 8), np.int32)
    params = DebertaForMaskedLM(config).init(jax.random.key(0), ids)["params"]
    params |= DebertaForReplacedTokenDetection(config).init(jax.random.key(1), ids)["params"] | params
    return OpenedModel("random weights", config, jax.tree.map(np.asarray, params), tokenizer)


@pytest.fixture(scope="module")
def folders(model: OpenedModel, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The model in our format, and the generator and the discriminator as published."""
    home = tmp_path_factory.mktemp("models")
    save_pretrained(home / "ours", model.config, model.params)
    save_pytorch(home / "generator", model.config, model.head("mlm_head"))
    save_pytorch(home / "discriminator", model.config, model.head("rtd_head"))
    for name in ("ours", "generator", "discriminator"):
        model.tokenizer.save(home / name)
    return {folder.name: folder for folder in home.iterdir()}


def test_each_mask_gets_the_likeliest_tokens_of_the_enhanced_mask_decoder(model: OpenedModel) -> None:
    tokenizer = model.tokenizer
    ids = np.array([tokenizer(TEXT, parse_mask=True).input_ids])
    out = DebertaForMaskedLM(model.config).apply({"params": model.head("mlm_head")}, ids)
    everywhere = np.asarray(out.logits)[0, :, : tokenizer.vocab_size].astype(np.float64)
    masks = fill_mask(model, TEXT, top_k=7)
    assert len(masks) == 3
    for candidates, logits in zip(masks, everywhere[ids[0] == tokenizer.mask_id], strict=True):
        shares = np.exp(logits) / np.exp(logits).sum()
        best = np.argsort(-shares)[:7]
        assert [candidate.id for candidate in candidates] == best.tolist()
        assert [candidate.piece for candidate in candidates] == tokenizer.pieces(best)
        np.testing.assert_allclose([candidate.probability for candidate in candidates], shares[best], rtol=1e-4)


def test_detection_gives_a_probability_for_each_token_of_the_text(model: OpenedModel) -> None:
    text = "It was  a fine house."
    judgments = detect(model, text)
    ids = np.array([model.tokenizer(text).input_ids])
    out = DebertaForReplacedTokenDetection(model.config).apply({"params": model.head("rtd_head")}, ids)
    want = 1 / (1 + np.exp(-np.asarray(out.logits, np.float64)[0, 1:-1]))
    np.testing.assert_allclose([judgment.probability for judgment in judgments], want, rtol=1e-4)
    assert [judgment.piece for judgment in judgments] == model.tokenizer.pieces(ids[0, 1:-1])
    assert "".join(text[judgment.start : judgment.end] for judgment in judgments).replace(" ", "") == "Itwasafinehouse."


@pytest.mark.parametrize("name", ["ours", "generator"])
def test_models_are_opened_in_our_format_and_in_pytorchs(
    model: OpenedModel, folders: dict[str, Path], name: str
) -> None:
    opened = open_model(str(folders[name]))
    assert fill_mask(opened, TEXT) == fill_mask(model, TEXT)


def test_fill_mask_on_the_command_line(folders: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line(["fill-mask", str(folders["generator"]), "It was a [MASK] of them.", "--top-k", "3"]) == 0
    shown = capsys.readouterr()
    assert "warning" not in shown.err
    assert len([line for line in shown.out.splitlines() if "0." in line]) == 3
    assert shown.out.splitlines()[-1].startswith("It was a")
    assert command_line(["fill-mask", str(folders["ours"]), TEXT]) == 0
    shown = capsys.readouterr()
    assert "discriminator of replaced token detection" in shown.err
    assert "mask 3 of 3" in shown.out


def test_detect_on_the_command_line(folders: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line(["detect", str(folders["discriminator"]), "It was a [bold] move."]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "It was a [bold] move."


@pytest.mark.parametrize(
    ("command", "line"),
    [
        (["fill-mask", "ours", "no mask"], "no [MASK] in 'no mask'; write it where"),
        (["fill-mask", "ours", TEXT, "--top-k", "0"], "top_k is 0; it must be 1 to"),
        (["fill-mask", "discriminator", TEXT], "has no mlm_head; it has deberta, rtd_head"),
        (["detect", "generator", "text"], "has no rtd_head; it has deberta, mlm_head"),
        (["detect", "ours", " "], "the text ' ' has no tokens"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(
    folders: dict[str, Path], capsys: pytest.CaptureFixture[str], command: list[str], line: str
) -> None:
    name, folder, *rest = command
    assert command_line([name, str(folders[folder]), *rest]) == 1
    said = capsys.readouterr().err
    assert line in said
    assert len([one for one in said.splitlines() if "warning" not in one]) == 1


def test_a_tokenizer_larger_than_the_model_is_refused(model: OpenedModel, tmp_path: Path) -> None:
    config = model.config.replace(vocab_size=300)
    save_pretrained(
        tmp_path, config, DebertaForMaskedLM(config).init(jax.random.key(0), np.ones((1, 8), np.int32))["params"]
    )
    model.tokenizer.save(tmp_path)
    with pytest.raises(ValueError, match="more than the model's vocab_size 300"):
        open_model(str(tmp_path))


def test_differences_without_their_generator_are_refused(model: OpenedModel, tmp_path: Path) -> None:
    params = jax.tree.map(np.asarray, model.head("rtd_head"))
    words = params["deberta"]["embeddings"]["word_embeddings"]
    embeddings = {**params["deberta"]["embeddings"], "word_embeddings": {"delta": words["embedding"]}}
    save_pretrained(tmp_path, model.config, {**params, "deberta": {**params["deberta"], "embeddings": embeddings}})
    model.tokenizer.save(tmp_path)
    with pytest.raises(ConversionError, match="only differences to its generator's embeddings"):
        open_model(str(tmp_path))
