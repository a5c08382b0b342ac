"""The rows of a run with several corpora: how its settings choose them, and what the log says of each."""

import uuid
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from deberta_jax import Tokenizer, stores
from deberta_jax.embedded import embedded_folder
from deberta_jax.errors import UserError
from deberta_jax.sharding import make_mesh
from deberta_jax.store_paths import local_settings
from deberta_jax.train import pretrain
from deberta_jax.train.configs import PretrainConfig
from deberta_jax.train.data.prepare import prepare
from deberta_jax.train.pretrain_setup import PretrainingRows, identity, resolve_masking, resolve_rows

from ..support.configs import changed, pretrain_config
from ..support.tokenizer_texts import corpus

ROWS = {"short": 16, "other": 16, "long": 32}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    folder = embedded_folder("deberta-v3-tiny")
    assert folder is not None
    return Tokenizer.from_folder(folder)


@pytest.fixture(scope="module")
def settings(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> PretrainConfig:
    """Settings of five steps on two corpora of 16 tokens, then three steps on one of 32 tokens."""
    folder = tmp_path_factory.mktemp("rows")
    (folder / "text.txt").write_text("\n".join(corpus(20_000)))
    options: dict[str, Any] = {"boundary": "line", "held_out_fraction": 0.1}
    for seed, (name, length) in enumerate(ROWS.items()):
        prepare([folder / "text.txt"], tokenizer, folder / name, sequence_length=length, seed=seed, **options)
    return pretrain_config(
        output=folder / "run",
        corpus=(f"{folder / 'short'}:3", f"{folder / 'other'}:1", str(folder / "long")),
        curriculum=("16:5", "32"),
        steps=8,
        batch_size=8,
    )


def test_the_log_has_the_epochs_and_the_evaluation_of_each_corpus(
    settings: PretrainConfig, tokenizer: Tokenizer
) -> None:
    rows = PretrainingRows(resolve_rows(settings, tokenizer), resolve_masking(settings), tokenizer, make_mesh())
    sizes = dict(zip(ROWS, (corpus.train.rows for corpus in rows.curriculum.corpora), strict=True))
    assert rows.curriculum.epoch_figures(5, 8) == {
        "epoch/short": 30 / sizes["short"],
        "epoch/other": 10 / sizes["other"],
        "epoch/long": 0,
    }
    assert rows.curriculum.epoch_figures(8, 8)["epoch/long"] == 24 / sizes["long"]

    def measure(params: Any, batch: Any, key: Any) -> dict[str, Any]:
        """Counts the masked tokens in place of a model; all are correct."""
        masked = np.count_nonzero(np.asarray(batch["masked_labels"]))
        shape = np.asarray(batch["input_ids"]).shape
        assert shape == (8, 16 if params == "of step 4" else 32)
        return {"masked_loss_sum": 2.0 * masked, "masked_count": masked, "masked_correct": masked}

    logged: list[tuple[int, str]] = []
    reporter: Any = SimpleNamespace(evaluation=lambda step, figures, name: logged.append((step, name)))
    for step in (4, 8):
        state: Any = SimpleNamespace(step=step, params=f"of step {step}")
        figures = pretrain.evaluate(settings, rows, measure, reporter, state, check_stop=lambda: None)
        assert (figures["generator_loss"], figures["masked_accuracy"]) == (2, 1)
    assert logged == [(4, "short"), (4, "other")]  # a single corpus has no figures beside those of all rows
    batch = next(rows.training_batches(settings))
    assert batch["input_ids"].shape == (8, 16)


def test_a_checkpoint_of_another_mixture_differs(settings: PretrainConfig, tokenizer: Tokenizer) -> None:
    models: Any = SimpleNamespace(to_json=dict)
    known = identity(settings, models, resolve_rows(settings, tokenizer), {})
    assert known == identity(settings, models, resolve_rows(settings, tokenizer), {})
    assert known["sequence_length"] == 32
    other = changed(settings, corpus=(settings.data.corpus[0][:-1] + "5", *settings.data.corpus[1:]))
    assert known["corpus"] != identity(other, models, resolve_rows(other, tokenizer), {})["corpus"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"curriculum": (), "sequence_length": 16}, "has rows of 32 tokens, but the run has rows of 16; prepare"),
        ({"curriculum": ("16:5", "64")}, "has rows of 32 tokens, but the run has rows of 16, 64"),
        ({"curriculum": ("16:2", "32:2", "64")}, "the length 64, but no corpus has; add one to --corpus"),
    ],
)
def test_corpora_that_do_not_fit_are_named(
    settings: PretrainConfig, tokenizer: Tokenizer, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        resolve_rows(changed(settings, **options), tokenizer)


def test_text_is_prepared_for_each_length(settings: PretrainConfig, tokenizer: Tokenizer, tmp_path: Path) -> None:
    text = settings.output.parent / "text.txt"
    options: dict[str, Any] = {"text": (text,), "boundary": "line", "corpus": ()}
    rows = resolve_rows(changed(settings, output=tmp_path, **options), tokenizer)
    assert [corpus.folder.name for corpus in rows.corpora] == ["corpus-16", "corpus-32"]
    assert [(phase.sequence_length, phase.steps) for phase in rows.phases] == [(16, 5), (32, 3)]


def test_corpora_at_an_address_keep_their_weights(
    settings: PretrainConfig, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEBERTA_JAX_CACHE", str(tmp_path / "cache"))
    address, weights = f"memory://{uuid.uuid4().hex}", {"short": ":3", "other": ":1", "long": ""}
    for name in ROWS:
        for file in (settings.output.parent / name).iterdir():
            stores.put_file(file, f"{address}/{name}/{file.name}")
    there = changed(settings, corpus=tuple(f"{address}/{name}{weight}" for name, weight in weights.items()))
    with local_settings(there) as local:
        rows = resolve_rows(local, tokenizer)
    assert local.data.corpus == there.data.corpus  # the log and config.yaml name the addresses
    assert rows.identity == resolve_rows(settings, tokenizer).identity
    assert rows.phases[0].shares == (3, 1)
