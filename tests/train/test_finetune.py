"""Fine-tuning as a whole: what is selected, frozen, predicted, gone on from, and averaged."""

import json
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deberta_jax import DebertaForSequenceClassification, Tokenizer, load_pretrained, save_pretrained
from deberta_jax.train import finetune
from deberta_jax.train.configs import FinetuneConfig, GridConfig, OptimizerConfig
from deberta_jax.train.finetune_setup import heads_message
from deberta_jax.train.hosts.exit_codes import StoppedError
from deberta_jax.train.hosts.join import Hosts

from ..support.configs import changed, finetune_config
from ..support.novel import small_tokenizer
from . import test_pretrain

TINY = test_pretrain.TINY.replace(initializer_range=0.05)
COLORS = ("red", "green", "blue")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a fresh model and its tokenizer, and sentences that name a color."""
    folder = tmp_path_factory.mktemp("home")
    things = ["house", "dog", "old car", "garden gate that nobody had painted for years", "hat"]
    rows = [
        (f"the {thing} of number {number} is {color}", color)
        for number in range(8)
        for thing in things
        for color in COLORS
    ]
    small_tokenizer(folder / "model", folder / "text.txt", more=[text for text, _ in rows])
    order = np.random.default_rng(0).permutation(len(rows))
    for name, part in (("train", order[:80]), ("validation", order[80:107])):
        lines = [json.dumps({"text": rows[number][0], "label": rows[number][1]}) for number in part]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    unlabeled = [json.dumps({"text": f"my {color} book"}) for color in COLORS]
    (folder / "test.jsonl").write_text("\n".join(unlabeled) + "\n")
    params = DebertaForSequenceClassification(TINY).init(jax.random.key(0), jnp.ones((1, 8), jnp.int32))["params"]
    save_pretrained(folder / "model", TINY, params)
    return folder


def settings(home: Path, output: Path, **changes) -> FinetuneConfig:
    base = finetune_config(
        output=output,
        model=home / "model",
        train=str(home / "train.jsonl"),
        validation=str(home / "validation.jsonl"),
        max_length=32,
        batch_size=16,
        steps=40,
        optimizer=OptimizerConfig(learning_rate=2e-3),
        evaluate_every=10,
        log_every=1,
    )
    return changed(base, **changes)


def lines_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_predictions_are_written_for_every_split_and_scores_where_there_are_labels(
    home: Path, tmp_path: Path, capsys
) -> None:
    results = finetune.main(settings(home, tmp_path, test=str(home / "test.jsonl")))
    assert set(results) == {"validation"}
    assert results["validation"]["accuracy"] > 0.9
    written = lines_of(tmp_path / "predictions" / "validation.jsonl")
    assert [record["text"] for record in written] == [one["text"] for one in lines_of(home / "validation.jsonl")]
    for record in written:
        assert sum(record["probabilities"].values()) == pytest.approx(1, abs=1e-5)
        assert record["prediction"] == max(record["probabilities"], key=record["probabilities"].__getitem__)
    assert (
        "classifier random: the model's is 32 x 2, the task needs 32 x 3; pooler from the model"
        in capsys.readouterr().out
    )
    right = np.mean([record["prediction"] == record["label"] for record in written])
    assert right == pytest.approx(results["validation"]["accuracy"])
    unlabeled = lines_of(tmp_path / "predictions" / "test.jsonl")
    assert [record["text"] for record in unlabeled] == ["my red book", "my green book", "my blue book"]
    assert all("label" not in record for record in unlabeled)
    assert (tmp_path / "predictions" / "validation.png").exists()
    assert not (tmp_path / "predictions" / "test.png").exists()

    # The saved model, by hand, gives the probabilities that were written.
    config, params = load_pretrained(tmp_path / "model")
    encoded = Tokenizer.from_folder(tmp_path / "model")(written[0]["text"])
    ids = np.array([encoded.input_ids])
    out = DebertaForSequenceClassification(config).apply({"params": params}, ids)
    by_hand = dict(zip(config.label_names, jax.nn.softmax(out.logits)[0].tolist(), strict=True))
    assert by_hand == pytest.approx(written[0]["probabilities"], abs=1e-5)


def test_training_ends_when_nothing_gets_better_and_the_best_model_is_the_result(
    home: Path, tmp_path: Path, capsys
) -> None:
    """A learning rate of nothing: every evaluation equals the first, which is the best one."""
    still = OptimizerConfig(learning_rate=0.0)
    config = settings(home, tmp_path, select="best", patience=2, steps=200, evaluate_every=3, optimizer=still)
    results = finetune.main(config)
    records = lines_of(tmp_path / "metrics.jsonl")
    assert max(record["step"] for record in records) == 9  # the best at 3, two more that were no better
    assert "the best evaluation was that of step 3" in capsys.readouterr().out
    assert results["validation"]["accuracy"] == records[-1]["eval/accuracy"]
    assert finetune.main(config) == results  # given again: nothing more is trained
    assert max(record["step"] for record in lines_of(tmp_path / "metrics.jsonl")) == 9


def test_a_run_that_was_stopped_at_an_evaluation_makes_up_for_it(home: Path, tmp_path: Path, monkeypatch) -> None:
    changes = {"steps": 12, "evaluate_every": 4, "select": "best", "patience": 5, "group_by_length": True}
    whole = finetune.main(settings(home, tmp_path / "whole", **changes))

    with monkeypatch.context() as stopped:
        stopped.setattr(Hosts, "stop_requested", lambda _, number: number == 8)
        with pytest.raises(StoppedError):
            finetune.main(settings(home, tmp_path / "stopped", **changes))
    assert "eval/accuracy" not in lines_of(tmp_path / "stopped" / "metrics.jsonl")[-1]
    assert finetune.main(settings(home, tmp_path / "stopped", **changes)) == whole
    one, other = (lines_of(tmp_path / name / "metrics.jsonl") for name in ("whole", "stopped"))
    assert other == one
    best = [load_pretrained(tmp_path / name / "best")[1] for name in ("whole", "stopped")]
    jax.tree.map(np.testing.assert_array_equal, *best)


def test_frozen_layers_stay_and_the_rest_is_trained(home: Path, tmp_path: Path) -> None:
    config = settings(home, tmp_path, steps=4, freeze_layers=1, layer_decay=0.8, label_smoothing=0.1)
    finetune.main(config)
    before, after = load_pretrained(home / "model")[1], load_pretrained(tmp_path / "model")[1]
    for part in ("embeddings", "encoder/layer_0"):
        one, other = before["deberta"], after["deberta"]
        for name in part.split("/"):
            one, other = one[name], other[name]
        jax.tree.map(np.testing.assert_array_equal, one, other)
    moved = jax.tree.map(
        lambda x, y: bool(np.any(x != y)),
        before["deberta"]["encoder"]["layer_1"]["attention"],
        after["deberta"]["encoder"]["layer_1"]["attention"],
    )
    assert all(jax.tree.leaves(moved))


def test_seeds_and_a_grid_are_summed_up(home: Path, tmp_path: Path, capsys) -> None:
    config = settings(home, tmp_path, steps=3, seeds=(0, 1), grid=GridConfig(learning_rate=(2e-3,)))
    results = finetune.main(config)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert [row["setting"] for row in summary["settings"]] == ["learning_rate=0.002"]
    for row in summary["settings"]:
        folders = [tmp_path / row["setting"] / f"seed-{seed}" for seed in (0, 1)]
        values = [json.loads((folder / "results.json").read_text())["validation"]["accuracy"] for folder in folders]
        assert row["values"] == values
        assert row["mean"] == pytest.approx(np.mean(values))
    assert (Path(summary["best"]) / "config.json").exists()
    assert json.loads((Path(summary["best"]).parent / "results.json").read_text()) == results
    assert "± " in capsys.readouterr().out


def test_what_a_head_starts_from_is_said() -> None:
    """The model was trained on three classes."""
    three = TINY.replace(num_labels=3, label_names=("no", "maybe", "yes"))
    weights = DebertaForSequenceClassification(three).init(jax.random.key(0), jnp.ones((1, 8), jnp.int32))["params"]

    def said(classes: tuple[str, ...], **parts) -> str:
        task = mock.Mock(label_names=classes)
        fresh = dict(weights, classifier={"kernel": np.ones((32, len(classes))), "bias": np.ones(len(classes))})
        return heads_message(weights, fresh | parts, three, task)

    assert said(three.label_names) == "head: classifier from the model; pooler from the model"
    assert "classifier from the model, whose classes were no, maybe, yes, now a, b, c" in said(("a", "b", "c"))
    assert "classifier random: the model's is 32 x 3, the task needs 32 x 4" in said(("a", "b", "c", "d"))
    assert "span_classifier random" in said(three.label_names, span_classifier={"bias": np.ones(2)})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"freeze_layers": 3}, "freeze_layers is 3, but the model has 2 layers"),
        ({"validation": None, "patience": 2}, "need the validation split; give --validation"),
        ({"validation": None, "seeds": (0, 1)}, "need the validation split; give --validation"),
        ({"batch_size": 12}, "batch_size 12 does not divide"),
    ],
)
def test_settings_that_do_not_fit_are_named(home: Path, tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        finetune.main(settings(home, tmp_path, **changes))
